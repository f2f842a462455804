//! Connections to upstreams: names looked up, connections dialled, TLS verified, idle ones kept.

pub mod dial;
pub mod dns;
pub mod pool;
pub mod tls;
