//! Bounds how much one task transfers before it yields to the others.

use std::task::{Context, Poll};

/// The pieces of a body that a task may still transfer before it yields. tokio's own bound of 128 operations allows half a
/// megabyte and more: behind a hundred fast uploads a health check would wait for seconds.
#[derive(Debug)]
pub struct YieldBudget {
    left: u32,
}

/// Pieces between two yields: 32 kB with buffers of 4 kB.
pub const PIECES: u32 = 8;

impl YieldBudget {
    /// A full budget.
    pub fn new() -> YieldBudget {
        YieldBudget { left: PIECES }
    }

    /// Call after each piece. Ready while the task may go on; otherwise pending, and the task is woken behind the others.
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
pub mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        task::Wake,
    };

    use super::*;

    /// A waker that counts.
    #[derive(Default)]
    pub struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    impl Count {
        /// How often it was woken since this was asked last.
        pub fn take(&self) -> usize {
            self.0.swap(0, Relaxed)
        }
    }

    #[test]
    fn a_spent_budget_yields_and_wakes_the_task() {
        let count = Arc::new(Count::default());
        let waker = Arc::clone(&count).into();
        let mut context = Context::from_waker(&waker);
        let mut yield_budget = YieldBudget::new();
        for _ in 1..PIECES {
            assert!(yield_budget.poll_next(&mut context).is_ready());
            assert_eq!(count.take(), 0);
        }
        assert!(yield_budget.poll_next(&mut context).is_pending());
        assert_eq!(count.take(), 1);
    }
}
