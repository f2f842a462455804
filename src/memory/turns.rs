//! Turns: those that let others finish first, because few at a time are soon over and all at once would be slow.

use std::{cell::Cell, pin::pin, time::Duration};

use tokio::time::timeout;

use crate::memory::queue::{Claim, Queue};

/// How long one waits while no other has its turn, and how many times as long while others have.
const PATIENCE: Duration = Duration::from_millis(100);
const MOST: usize = 10;

/// A line of those that let others finish first.
#[derive(Debug, Default)]
pub struct Turns {
    /// Who waits.
    pub queue: Queue,
    /// How many had their turn.
    had: Cell<u64>,
}

impl Turns {
    /// Waits until `take` gives something; `None` where there is no turn in time: nothing is wrong then.
    pub async fn wait<T>(&self, claim: Claim, take: impl FnMut() -> Option<T>) -> Option<T> {
        let mut turn = pin!(self.queue.until(claim, take));
        for _ in 0..MOST {
            let before = self.had.get();
            if let Ok(taken) = timeout(PATIENCE, &mut turn).await {
                self.had.set(self.had.get() + 1);
                return Some(taken);
            }
            if self.had.get() == before {
                return None;
            }
        }
        None
    }
}
