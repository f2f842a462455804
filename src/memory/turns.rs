//! Turns: requests and messages that let others finish first, because few at a time are fast and all at once are slow.
//!
//! A wait is bounded: 100 ms where no other gets its turn, a second where others do.

use std::{cell::Cell, pin::pin, time::Duration};

use crate::{
    clock::timeout,
    memory::queue::{Claim, Queue},
};

/// How long a waiter waits while no other gets its turn, and how many times as long while others do.
const PATIENCE: Duration = Duration::from_millis(100);
const MOST: usize = 10;

/// A queue of waiters that let others finish first.
#[derive(Debug, Default)]
pub struct Turns {
    /// The waiters.
    pub queue: Queue,
    /// How many got their turn.
    had: Cell<u64>,
}

impl Turns {
    /// Waits until `take` returns a value; `None` where the wait is over, which is no error.
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
