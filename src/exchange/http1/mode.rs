//! What an HTTP/1.1 request asks of its connection.

use http::{Method, Version};

use crate::http1::{headers, request::RequestHead};

/// What the request line and Connection ask for.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionMode {
    /// HEAD: the answer has no body.
    pub is_head: bool,
    /// The client speaks HTTP/1.0.
    pub is_http10: bool,
    /// The connection is to stay (RFC 9112 §9.3).
    pub stays: bool,
}

impl ConnectionMode {
    /// Of a request.
    pub fn of(parts: &RequestHead) -> ConnectionMode {
        let is_http10 = parts.version == Version::HTTP_10;
        let says = |word: &str| {
            parts.present.connection
                && headers::connection_options(&parts.headers)
                    .any(|option| option.eq_ignore_ascii_case(word.as_bytes()))
        };
        ConnectionMode {
            is_head: parts.method == Method::HEAD,
            is_http10,
            stays: if is_http10 {
                says("keep-alive") && !says("close")
            } else {
                !says("close")
            },
        }
    }
}
