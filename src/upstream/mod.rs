//! upstream.

pub mod dial;
pub mod dns;
pub mod pool;
pub mod tls;
