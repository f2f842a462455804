//! The response to a request that is refused before there is an exchange: its head could not be read, or may not be.
//!
//! Pure. It is written whole, before the close.

use http::header;

use crate::{
    failure::Failure,
    fields::{Fields, line},
    http1::headers::push_decimal,
};

/// The response to `failure`, with `fields` added to it (CORS).
pub fn response(failure: &Failure, fields: &Fields) -> Vec<u8> {
    let (status, sentence) = (failure.status(), failure.sentence());
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\ncontent-length: ");
    push_decimal(&mut out, sentence.len() as u64);
    out.extend_from_slice(b"\r\n");
    failure.fields().write(&mut out);
    line(&mut out, header::CONNECTION.as_str().as_bytes(), b"close");
    fields.write(&mut out);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(sentence.as_bytes());
    out
}
