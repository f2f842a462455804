//! http1.

pub mod chunked;
pub mod client;
pub mod headers;
pub mod request;
pub mod request_head;
pub mod response_head;
pub mod server;
pub mod write_buffer;
