//! TLS on listeners: the rustls configuration of each, and the handshake with one client.

pub mod contexts;
pub mod handshake;
pub mod renewal;
pub mod resolver;
