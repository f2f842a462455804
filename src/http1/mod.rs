//! HTTP/1.1 (RFC 9112), both ways: pure readers of heads, chunks and fields, and two codecs over a stream.
//!
//! `server` is the codec towards clients, `client` the one towards upstreams. A codec of our own, because its buffers are
//! what a busy connection costs.

pub mod authority;
pub mod chunked;
pub mod client;
pub mod cursor;
pub mod framing;
pub mod headers;
pub mod refusal;
pub mod request;
pub mod request_head;
pub mod response_head;
pub mod server;
pub mod write_buffer;
