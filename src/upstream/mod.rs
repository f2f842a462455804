//! Connections to upstreams: resolving names, dialling, verifying TLS, and keeping idle connections.

pub mod dial;
pub mod dns;
pub mod limits;
pub mod pool;
pub mod sharing;
pub mod tls;
