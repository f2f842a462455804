//! The global allocator: mimalloc, with options that keep an idle process small.
//!
//! The options are set before the first allocation and yield to the environment's `MIMALLOC_*`.

#[cfg(not(fuzzing))]
use mimalloc::MiMalloc;
#[cfg(not(fuzzing))]
use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{c_int, c_long};
#[cfg(not(fuzzing))]
#[global_allocator]
pub static ALLOCATOR: Allocator = Allocator;

/// [`MiMalloc`], except for small alignments, for which it would always take mimalloc's aligned path. The plain path saves
/// 2.4 % of a request's instructions (22.0 against 22.6 thousand).
#[cfg(not(fuzzing))]
pub struct Allocator;

#[cfg(not(fuzzing))]
impl Allocator {
    /// The size that is asked of mimalloc. Small sizes become powers of two: each size of blocks in use keeps a page or two of
    /// its own, and an idle process has few blocks of some twenty sizes.
    #[inline]
    const fn rounded(size: usize) -> usize {
        if size <= 32 {
            32
        } else if size <= LARGEST_ROUNDED {
            size.next_power_of_two()
        } else {
            size
        }
    }

    /// The bytes that a block of `size` bytes takes.
    #[cfg(test)]
    const fn charged(layout: Layout, size: usize) -> usize {
        if Allocator::aligns_anyway(layout.align()) {
            Allocator::rounded(size)
        } else {
            size
        }
    }

    /// Whether `mi_malloc` alone honours a layout whose size is rounded: it aligns to 16.
    const fn aligns_anyway(align: usize) -> bool {
        align <= 16
    }
}

// SAFETY: each method passes its arguments to `MiMalloc`, or to the mimalloc function with the same contract where
// `aligns_anyway` says that the unaligned form gives the alignment. Blocks of either form may be freed and resized by both.
#[cfg(not(fuzzing))]
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        #[cfg(test)]
        live::count(0, Allocator::charged(layout, layout.size()));
        if Allocator::aligns_anyway(layout.align()) {
            // SAFETY: no precondition.
            unsafe { libmimalloc_sys::mi_malloc(Allocator::rounded(layout.size())).cast() }
        } else {
            // SAFETY: the caller keeps the contract.
            unsafe { MiMalloc.alloc(layout) }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        #[cfg(test)]
        live::count(0, Allocator::charged(layout, layout.size()));
        if Allocator::aligns_anyway(layout.align()) {
            // SAFETY: no precondition.
            unsafe { libmimalloc_sys::mi_zalloc(Allocator::rounded(layout.size())).cast() }
        } else {
            // SAFETY: the caller keeps the contract.
            unsafe { MiMalloc.alloc_zeroed(layout) }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        #[cfg(test)]
        live::count(Allocator::charged(layout, layout.size()), 0);
        // SAFETY: the caller keeps the contract.
        unsafe { MiMalloc.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        #[cfg(test)]
        live::count(
            Allocator::charged(layout, layout.size()),
            Allocator::charged(layout, size),
        );
        if Allocator::aligns_anyway(layout.align()) {
            if Allocator::rounded(size) == Allocator::rounded(layout.size()) {
                return block;
            }
            // SAFETY: the caller promises that the block came from this allocator.
            unsafe { libmimalloc_sys::mi_realloc(block.cast(), Allocator::rounded(size)).cast() }
        } else {
            // SAFETY: the caller keeps the contract.
            unsafe { MiMalloc.realloc(block, layout, size) }
        }
    }
}

/// Bytes of the largest blocks whose size is rounded up.
#[cfg(not(fuzzing))]
const LARGEST_ROUNDED: usize = 1024;

/// Runs before mimalloc's own constructor and thus before the first allocation: entries with a number come first.
#[used]
#[unsafe(link_section = ".init_array.00001")]
pub static BEFORE_FIRST_ALLOCATION: extern "C" fn() = tune_allocator;

extern "C" fn tune_allocator() {
    for (option, value) in OPTIONS {
        // SAFETY: writes to mimalloc's static table while there is one thread. A default yields to the environment's
        // MIMALLOC_*, which is read later.
        unsafe { libmimalloc_sys::mi_option_set_default(option, value) }
    }
}

/// Positions in `mi_option_e` of mimalloc 3.3; a test compares each with the name that the C side prints.
pub const ARENA_RESERVE: c_int = 23;

pub const ALLOW_THP: c_int = 43;

pub const PURGE_DELAY: c_int = 15;

pub const OPTIONS: [(c_int, c_long); 3] = [
    // KiB. The default arena of 1 GiB costs 150 kB of bitmaps before anything is stored in it.
    (ARENA_RESERVE, 1024),
    // With 0 mimalloc calls prctl(PR_SET_THP_DISABLE): with huge pages an idle process takes 8 MB instead of 2.
    (ALLOW_THP, 0),
    // Milliseconds until a free page is given back, 1,000 by default: a burst of large buffers that were freed would hold 1.3 MB
    // for a second, which no permit knows.
    (PURGE_DELAY, 10),
];

/// Returns the calling thread's free memory to the system. Worth calling after a burst, because mimalloc does so itself
/// only while it allocates; takes a millisecond for 6 MB, microseconds where there is none.
pub fn collect() {
    // SAFETY: touches only the allocator's own state of this thread.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

#[cfg(test)]
pub use live::live_bytes;

/// What each thread has allocated and not freed, counted for tests.
#[cfg(test)]
mod live {
    use std::cell::Cell;

    thread_local! {
        static BYTES: Cell<i64> = const { Cell::new(0) };
    }

    /// A block changes its size; 0 = there is none.
    pub fn count(before: usize, after: usize) {
        BYTES.with(|bytes| bytes.set(bytes.get() + signed(after) - signed(before)));
    }

    fn signed(bytes: usize) -> i64 {
        i64::try_from(bytes).unwrap_or(i64::MAX)
    }

    /// Bytes that this thread has allocated, less those that it has freed.
    pub fn live_bytes() -> i64 {
        BYTES.get()
    }
}
