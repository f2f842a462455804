//! Read buffers that are lent while they hold bytes, and then reused.
//!
//! A buffer is taken when there are bytes to read and comes back when they are written, so that only connections that wait
//! for the other side hold one. The more are lent, the smaller are the next.

use std::{
    cell::{Cell, RefCell},
    ops::{Deref, DerefMut},
    rc::Rc,
};

use crate::memory::budget::{Budget, Permit};

/// The read buffers of one worker.
#[derive(Debug, Default)]
pub struct Buffers {
    pub free: RefCell<Vec<Vec<u8>>>,
    /// Bytes of the free buffers.
    pub kept: Cell<usize>,
    /// Bytes of the lent buffers.
    pub lent: Cell<usize>,
    /// Lent bytes beyond [`PAID`] of each buffer, which the price of its exchange covers.
    wide: Cell<usize>,
    /// Where memory is limited.
    bounds: Option<Bounds>,
}

/// What the budget allows.
#[derive(Debug)]
struct Bounds {
    /// Lent bytes up to which buffers are large, and up to which they have [`USUAL`] bytes.
    plenty: (usize, usize),
    /// Most bytes of free buffers.
    kept: usize,
    /// Pays for free buffers and for what is lent beyond [`PAID`].
    permit: RefCell<Permit>,
}

/// A lent buffer; its initial content has no meaning.
#[derive(Debug, Default)]
pub struct Buffer {
    pub bytes: Vec<u8>,
    home: Option<Rc<Buffers>>,
}

/// How many bytes to read at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadSize {
    least: usize,
    pub most: usize,
}

/// Bytes of a buffer where memory is not short.
pub const USUAL: usize = 16 * 1024;

/// Bytes of a buffer without a memory limit, or with a large one: 0.94 CPU seconds per GB, against 1.08 with [`USUAL`].
pub const BULK: usize = 64 * 1024;

/// Lent bytes up to which buffers are large, and up to which they have [`USUAL`] bytes.
const PLENTY: (usize, usize) = (128 * 1024, 512 * 1024);

/// Bounds the bytes of free buffers that are kept for reuse.
pub const KEPT: usize = 1 << 20;

/// Bytes of a lent buffer that the price of an exchange covers.
const PAID: usize = 4 * 1024;

/// The permit follows in steps, so that a small request does not change it.
const STEP: usize = 16 * 1024;

/// Buffers below this size are freed instead of kept.
pub const LEAST_KEPT: usize = 4 * 1024;

impl ReadSize {
    /// `least` bytes while a request waits for memory, otherwise [`BULK`] if that is more.
    pub fn new(least: usize, is_wanted: bool) -> ReadSize {
        let most = if is_wanted { least } else { least.max(BULK) };
        ReadSize { least, most }
    }

    /// How many bytes of a buffer of `len` bytes may be filled.
    pub fn bound(self, len: usize) -> usize {
        self.most.min(len)
    }

    /// Reduces the size to the bytes that are wanted.
    pub fn at_most(self, bytes: u64) -> ReadSize {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        ReadSize {
            least: self.least.min(bytes),
            most: self.most.min(bytes),
        }
    }
}

impl Buffer {
    /// Makes it `len` bytes long and keeps its content. From then on it does not count as lent: it has a permit of its own, and
    /// is freed when it is dropped.
    pub fn grow(&mut self, len: usize) {
        let before = self.bytes.len();
        if let Some(home) = self.home.take() {
            home.lent.set(home.lent.get() - before);
            home.wide.set(home.wide.get() - before.saturating_sub(PAID));
            home.settle();
        }
        self.bytes.reserve_exact(len.saturating_sub(before));
        self.bytes.resize(len.max(before), 0);
    }

    /// Whether [`Buffer::grow`] was called.
    pub fn has_grown(&self) -> bool {
        self.home.is_none() && !self.bytes.is_empty()
    }
}

impl From<Vec<u8>> for Buffer {
    /// A buffer that was not lent.
    fn from(bytes: Vec<u8>) -> Buffer {
        Buffer { bytes, home: None }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.lent.set(home.lent.get() - self.bytes.len());
            home.keep(std::mem::take(&mut self.bytes));
        }
    }
}

impl Buffers {
    /// The buffers of a worker with this budget, which pays for what is kept, and for what is lent beyond the price of the
    /// exchanges: a small part of it.
    pub fn within(budget: &Rc<Budget>) -> Buffers {
        let bounds = budget.plan().pool.map(|pool| {
            let pool = usize::try_from(pool).unwrap_or(usize::MAX);
            Bounds {
                plenty: (PLENTY.0.min(pool / 64), PLENTY.1.min(pool / 16)),
                kept: KEPT.min(pool / 16),
                permit: RefCell::new(budget.force(0)),
            }
        });
        Buffers {
            bounds,
            ..Buffers::default()
        }
    }

    /// A buffer as large as `room`, the lent bytes and the budget allow.
    pub fn take(self: &Rc<Buffers>, room: ReadSize) -> Buffer {
        let plenty = self.bounds.as_ref().map_or(PLENTY, |it| it.plenty);
        let size = match self.lent.get() {
            lent if lent < plenty.0 => room.most,
            lent if lent < plenty.1 => room.most.min(room.least.max(USUAL)),
            _ => room.least,
        };
        let fits = |buffer: &Vec<u8>| buffer.len() >= size && buffer.len() < 4 * size;
        let mut free = self.free.borrow_mut();
        let bytes = match free.iter().rposition(fits) {
            Some(at) => {
                let bytes = free.swap_remove(at);
                self.kept.set(self.kept.get() - bytes.len());
                bytes
            }
            None if self.pay(size.saturating_sub(PAID)) => vec![0; size],
            None => {
                let size = size.min(room.least);
                self.owe(size.saturating_sub(PAID));
                vec![0; size]
            }
        };
        self.lent.set(self.lent.get() + bytes.len());
        self.wide
            .set(self.wide.get() + bytes.len().saturating_sub(PAID));
        Buffer {
            bytes,
            home: Some(Rc::clone(self)),
        }
    }

    /// Takes a buffer back, which is freed where memory is wanted.
    fn keep(&self, bytes: Vec<u8>) {
        self.wide
            .set(self.wide.get() - bytes.len().saturating_sub(PAID));
        let most = self.bounds.as_ref().map_or(KEPT, |it| it.kept);
        let kept = self.kept.get() + bytes.len();
        if bytes.len() >= LEAST_KEPT && kept <= most && self.pay(bytes.len()) {
            self.kept.set(kept);
            self.free.borrow_mut().push(bytes);
        } else {
            self.settle();
        }
    }

    /// Pays for so many bytes more; says whether the budget has them. Memory that is wanted is not taken.
    fn pay(&self, more: usize) -> bool {
        let Some(bounds) = self.bounds.as_ref().filter(|_| more > 0) else {
            return true;
        };
        let mut permit = bounds.permit.borrow_mut();
        let needed = (self.kept.get() + self.wide.get() + more) as u64;
        needed <= permit.bytes() && !permit.budget().is_wanted()
            || permit.extend(needed.next_multiple_of(STEP as u64))
    }

    /// Pays for so many bytes more even where the budget does not have them: a configured size is lent in any case.
    fn owe(&self, more: usize) {
        let Some(bounds) = self.bounds.as_ref().filter(|_| more > 0) else {
            return;
        };
        let needed = self.kept.get() + self.wide.get() + more;
        let needed = needed.next_multiple_of(STEP) as u64;
        let mut permit = bounds.permit.borrow_mut();
        if needed > permit.bytes() {
            permit.resize(needed);
        }
    }

    /// Gives back what is paid and not used.
    fn settle(&self) {
        let Some(bounds) = &self.bounds else { return };
        let needed = (self.kept.get() + self.wide.get()).next_multiple_of(STEP) as u64;
        let mut permit = bounds.permit.borrow_mut();
        if needed < permit.bytes() {
            permit.resize(needed);
        }
    }

    /// Frees half of the free buffers, and returns whether any are left; called when fewer are needed, so that an idle proxy
    /// keeps none.
    pub fn trim(&self) -> bool {
        let mut free = self.free.borrow_mut();
        let keep = free.len() / 2;
        free.truncate(keep);
        self.kept.set(free.iter().map(Vec::len).sum());
        if keep == 0 {
            free.shrink_to_fit();
        }
        self.settle();
        keep > 0
    }
}
