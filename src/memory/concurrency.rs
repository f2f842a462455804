//! `max_concurrent_requests` and `max_tunnels`: bounds a number, and queues the requests beyond it.

use std::{cell::Cell, rc::Rc};

use crate::memory::queue::Queue;

/// A place below a [`ConcurrencyLimit`]; given back on drop.
#[derive(Debug)]
pub struct ConcurrencyPermit(Rc<ConcurrencyLimit>);

/// A limit of one worker.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    limit: Cell<usize>,
    taken: Cell<usize>,
    /// The requests that wait for a place.
    pub queue: Queue,
}

impl ConcurrencyLimit {
    /// A worker's share of `limit` places; `None` = no limit.
    pub fn new(limit: Option<usize>, workers: usize) -> Rc<ConcurrencyLimit> {
        let places = ConcurrencyLimit {
            limit: Cell::new(0),
            taken: Cell::new(0),
            queue: Queue::default(),
        };
        places.set_limit(limit, workers);
        Rc::new(places)
    }

    /// Replaces the limit.
    pub fn set_limit(&self, limit: Option<usize>, workers: usize) {
        self.limit
            .set(limit.map_or(usize::MAX, |limit| limit.div_ceil(workers)));
        self.queue.wake();
    }

    /// Takes a place if one is free.
    pub fn take(self: &Rc<ConcurrencyLimit>) -> Option<ConcurrencyPermit> {
        if self.taken.get() >= self.limit.get() {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(ConcurrencyPermit(Rc::clone(self)))
    }
}

impl Drop for ConcurrencyPermit {
    fn drop(&mut self) {
        self.0.taken.set(self.0.taken.get() - 1);
        self.0.queue.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::Arc,
        task::{Context, Poll, Waker},
    };

    use super::*;
    use crate::{memory::queue::Claim, yield_budget::tests::Count};

    #[test]
    fn as_many_places_are_taken_as_there_are_and_the_next_waits_for_one() {
        let limit = ConcurrencyLimit::new(Some(3), 2);
        let first = limit.take();
        let _second = limit.take().expect("a worker's share is rounded up");
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let mut third = pin!(limit.queue.until(Claim::plain(), || limit.take()));
        assert!(third.as_mut().poll(&mut context).is_pending());
        drop(first);
        assert_eq!(count.take(), 1);
        let Poll::Ready(_third) = third.as_mut().poll(&mut context) else {
            panic!("a place is free")
        };
        let mut fourth = pin!(limit.queue.until(Claim::plain(), || limit.take()));
        assert!(fourth.as_mut().poll(&mut context).is_pending());
        limit.set_limit(None, 2);
        assert_eq!(count.take(), 1, "after a reload");
        assert!(fourth.as_mut().poll(&mut context).is_ready());
    }
}
