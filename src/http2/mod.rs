//! HTTP/2 on both sides: hyper's implementation, and the adapters between it and an exchange.
//!
//! [`server`] serves a client's connection, [`frames`] bounds what hyper reads there, [`client`] shares a connection to an
//! upstream between requests, [`head`] maps heads.

pub mod body;
pub mod client;
pub mod frames;
pub mod head;
pub mod io;
pub mod server;
