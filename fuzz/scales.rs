//! How much is held at most.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The system's allocator, which remembers how much was held at most.
#[derive(Debug)]
pub struct Scales {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Scales {
    /// Nothing weighed yet.
    pub const fn new() -> Scales {
        Scales {
            now: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        }
    }

    /// How many bytes `work` held at the same time, beyond what was held before.
    pub fn weigh<T>(&self, work: impl FnOnce() -> T) -> (T, usize) {
        let before = self.now.load(Relaxed);
        self.peak.store(before, Relaxed);
        let result = work();
        (result, self.peak.load(Relaxed).saturating_sub(before))
    }
}

impl Default for Scales {
    fn default() -> Scales {
        Scales::new()
    }
}

// SAFETY: everything is the system allocator's; only numbers are kept beside it.
unsafe impl GlobalAlloc for Scales {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = self.now.fetch_add(layout.size(), Relaxed) + layout.size();
        self.peak.fetch_max(now, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        self.now.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(place, layout) }
    }
}
