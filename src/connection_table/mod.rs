//! Every client connection has a seat here, and one sweep looks after all of them: every deadline of the program, who
//! is silent longest, who makes least progress.
//!
//! A seat is some fifty bytes in one table. Nothing here owns a socket: the sweep only wakes the task that does, and
//! that task looks at its seat. Time is coarse: it stands still between two ticks, deadlines are rounded up and never
//! early. While only resting connections are open the sweep sleeps until the first of them is due; with none it does
//! not run at all.

mod directives;
pub mod eviction;
pub mod phase;
mod slot;
mod slot_state;
mod table;

pub use slot::{Slot, SlotRef};
pub use slot_state::{Directive, TimerKind};
pub use table::ConnectionTable;
