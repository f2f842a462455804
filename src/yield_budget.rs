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
