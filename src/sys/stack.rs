//! Returns the pages of a thread's stack that are not in use.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::arch::asm;
use std::ptr;

/// Bytes of a page; larger ones are not split, so that nothing is returned where they do not fit.
const PAGE: usize = 4096;

/// Bytes below the stack pointer that are returned at most. Less than a stack has left where this is called: the first
/// thread's has 132 kB mapped at least, with a gap of a megabyte below it, and another one's 512 kB.
const MOST: usize = 128 * 1024;

/// Returns the calling thread's pages below its stack pointer to the system: what deeper calls have used. The start of the
/// program uses 50 kB of stack, and waiting 10.
///
/// The address comes from the stack pointer itself. That of a variable would be inside the frame of whatever function this
/// is inlined into, and the rest of that frame would be lost.
#[inline(never)]
pub fn forget_unused() {
    let pointer: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads a register.
    unsafe {
        asm!("mov {}, rsp", out(reg) pointer, options(nomem, nostack, preserves_flags));
    };
    #[cfg(target_arch = "aarch64")]
    // SAFETY: reads a register.
    unsafe {
        asm!("mov {}, sp", out(reg) pointer, options(nomem, nostack, preserves_flags));
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        pointer = 0;
    }
    // a page at least stays for the red zone (128 bytes) and the call below
    let Some(start) = (pointer & !(PAGE - 1)).checked_sub(PAGE + MOST) else {
        return;
    };
    // SAFETY: nothing below the stack pointer is in use, except by the call, whose frame is inside the page that is kept.
    unsafe {
        libc::madvise(
            ptr::without_provenance_mut(start),
            MOST,
            libc::MADV_DONTNEED,
        )
    };
}
