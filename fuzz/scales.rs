//! An allocator that measures the peak of memory in use.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The system's allocator, which records the peak of bytes in use.
#[derive(Debug)]
pub struct Scales {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Scales {
    /// Nothing is measured yet.
    pub const fn new() -> Scales {
        Scales {
            now: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        }
    }

    /// Runs `work`; returns its result, and the peak of bytes in use beyond those before.
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

// SAFETY: every call is passed to the system's allocator; only numbers are kept.
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
