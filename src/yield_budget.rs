//! How much one task may move before the others run.

use std::task::{Context, Poll};

/// What one task may move before the others have theirs. tokio's own bound, 128 operations, is half a megabyte and more
/// each time: behind a hundred fast uploads a request for health would wait for seconds.
#[derive(Debug)]
pub struct YieldBudget {
    left: u32,
}

/// Pieces of a [`YieldBudget`].
pub const PIECES: u32 = 8;

impl YieldBudget {
    /// One that begins.
    pub fn new() -> YieldBudget {
        YieldBudget { left: PIECES }
    }

    /// After a piece: ready while there may be another, else the task is woken again behind the others.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.left -= 1;
        if self.left > 0 {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        task::Wake,
    };

    use super::*;

    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_turn_ends_and_asks_for_the_next() {
        let count = Arc::new(Count(AtomicU32::new(0)));
        let waker = Arc::clone(&count).into();
        let mut context = Context::from_waker(&waker);
        let mut yield_budget = YieldBudget::new();
        for _ in 1..PIECES {
            assert!(yield_budget.poll_next(&mut context).is_ready());
            assert_eq!(count.0.load(Ordering::Relaxed), 0);
        }
        assert!(yield_budget.poll_next(&mut context).is_pending());
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }
}
