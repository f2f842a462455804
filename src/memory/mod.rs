//! memory.

pub mod budget;
pub mod buffers;
pub mod chunk;
pub mod concurrency;
pub mod footprint;
pub mod queue;
