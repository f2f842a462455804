//! The table of client connections: a slot for each, and one timer that serves every deadline of the program.
//!
//! A slot is 88 bytes that say what its connection does, until when, and how far it has come. The table owns no
//! socket: the timer only wakes a connection's task, which then reads its slot. Time is coarse. It is read once a tick, and
//! deadlines are rounded up and never early. While all connections are idle the timer sleeps until the first deadline;
//! without connections it does not run.

mod directives;
pub mod eviction;
pub mod phase;
mod slot;
mod slot_state;
mod table;
#[cfg(test)]
mod tests;

pub use slot::{Slot, SlotRef};
pub use slot_state::{Directive, TimerKind};
pub use table::ConnectionTable;
