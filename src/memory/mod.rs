//! Memory that clients and upstreams can make the process hold, and what pays for it.
//!
//! `budget` sells permits, `queue` is where requests wait for one, `buffers` and `chunk` are what bytes stand in,
//! `turns` is where they let others finish first,
//! `sockets` is what the kernel holds for one,
//! `concurrency` bounds requests and tunnels by number, `footprint` says what the configuration itself needs.

pub mod budget;
pub mod buffers;
pub mod chunk;
pub mod concurrency;
pub mod footprint;
pub mod queue;
pub mod sockets;
pub mod turns;
