//! HTTP/2, which hyper speaks: what stands between its frames and an exchange.
//!
//! [`server`] serves a client's connection, [`frames`] looks at what hyper is given to read there, [`client`] shares a
//! connection to an upstream, [`head`] maps heads.

pub mod body;
pub mod client;
pub mod frames;
pub mod head;
pub mod io;
pub mod server;
