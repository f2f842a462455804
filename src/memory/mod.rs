//! Memory that clients and upstreams can make the process hold, and what pays for it.
//!
//! `plan` is what the limit allows and `prices` what things cost, `budget` gives out permits, `queue` is where requests wait for one and `turns` where they let others finish first,
//! `sockets` is what the kernel holds for one socket, `buffers` and `chunk` hold the bytes of bodies, `concurrency` bounds
//! requests and tunnels by number, and `footprint` measures what the configuration itself needs.

pub mod budget;
pub mod buffers;
pub mod chunk;
pub mod concurrency;
pub mod footprint;
pub mod plan;
pub mod prices;
pub mod queue;
pub mod sockets;
pub mod turns;
