//! TLS on listeners: what rustls is told for each of them, and the handshake with one client.

pub mod contexts;
pub mod handshake;
pub mod renewal;
pub mod resolver;
