//! HTTP/1.1 (RFC 9112) on both sides: pure parsers of heads, chunks and fields, and two codecs over a stream.
//!
//! `server` is the codec towards clients, `client` the one towards upstreams. They are written here because the codec's
//! buffers are most of what a busy connection costs.

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
