//! The response to a request that is refused before there is an exchange, because of its head.
//!
//! Pure. The response is written whole; the connection closes after it.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_whole_response_and_the_last_of_its_connection() {
        let grant = Fields::from_iter([("access-control-allow-origin", "*")]);
        let text = response(&Failure::NoMemory, &grant);
        assert_eq!(
            str::from_utf8(&text).unwrap(),
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 42\r\n\
             content-type: text/plain; charset=utf-8\r\nretry-after: 1\r\nconnection: close\r\n\
             access-control-allow-origin: *\r\n\r\nThere is no memory left for this request.\n"
        );
    }
}
