//! The upstream half of HTTP/1.1.
