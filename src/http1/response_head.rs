//! The strict reading of an answer's head, and where its body ends.
//!
//! Pure: bytes in, a head out. Answers come from targets that the operator chose, and are read strictly all the same:
//! what could be read in two ways is an error, never passed on. Hop-by-hop fields end here (RFC 9110 §7.6.1).

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{
    Method, StatusCode,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};

use crate::http1::{chunked, headers, request_head};

/// Bytes of a response head; 502 above.
pub const MAX_HEAD: usize = 96 * 1024;

/// Fields of a response head; 502 above.
const MAX_FIELDS: usize = 256;

/// The head of an answer, ready to be passed on: hop-by-hop fields are gone.
#[derive(Debug)]
pub struct Head {
    /// Its status.
    pub status: StatusCode,
    /// Its reason, where it is not the usual one.
    pub reason: Option<Bytes>,
    /// Its fields.
    pub headers: HeaderMap,
    /// Where its body ends.
    pub delimiter: Delimiter,
    /// Whether the connection can be used again afterwards.
    pub persistent: bool,
    /// Bytes of it.
    pub len: usize,
    /// Whether it carries an Upgrade to `websocket`.
    pub websocket: bool,
    /// Fields that do not pass behind a chunked body: those that Connection lists (RFC 9110 §7.6.1).
    pub withheld: Vec<HeaderName>,
    /// Whether it has a Location or Content-Location.
    pub locates: bool,
}

/// What ends a response body (RFC 9112 §6.3).
#[derive(Debug)]
pub enum Delimiter {
    /// So many bytes.
    Length(u64),
    /// Its last chunk.
    Chunked(Box<chunked::Body>),
    /// The close of the connection.
    Close,
}

/// Whether [`read_head`], which begins at the first byte each time, may say more than it said before: of the first bytes,
/// for most that is no HTTP shows at once; then when the empty line has come, or no more may come. So a head that drips
/// in is read twice and not once for each drop.
///
/// `scanned` is how many of the bytes were there before; the caller keeps it, and sets it to 0 for another head.
pub fn is_due(bytes: &[u8], scanned: &mut usize) -> bool {
    let before = std::mem::replace(scanned, bytes.len());
    before == 0 || bytes.len() >= MAX_HEAD || request_head::ends_somewhere(bytes, before)
}

/// Reads the head of an answer to `method`; `None` where it is not complete yet.
///
/// # Errors
/// A word for the log where it cannot be passed on.
pub fn read_head(bytes: &[u8], method: &Method) -> Result<Option<Head>, &'static str> {
    // httparse would skip any number of empty lines
    if matches!(bytes, [b'\r' | b'\n', ..]) {
        return Err("an empty line before the answer");
    }
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut fields,
    );
    let len = match parsed {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err("head too large");
        }
        Err(_) => return Err("malformed head"),
    };
    let (Some(code), Some(version)) = (response.code, response.version) else {
        return Err("malformed head");
    };
    let status = StatusCode::from_u16(code).map_err(|_| "malformed status")?;
    // one copy for all values: they are slices of it
    let text = Bytes::copy_from_slice(bytes.get(..len).unwrap_or_default());
    let mut said = FramingFields {
        persistent: version == 1,
        ..FramingFields::default()
    };
    let mut headers = read_fields(response.headers, &mut said, |part| {
        text.slice_ref_of(bytes, part)
    })?;
    if said.chunked && version == 0 {
        return Err("Transfer-Encoding in HTTP/1.0");
    }
    let has_no_body = status.is_informational() || status == StatusCode::NO_CONTENT;
    let delimiter = said
        .delimiter(has_no_body || status == StatusCode::NOT_MODIFIED || *method == Method::HEAD);
    if has_no_body || matches!(delimiter, Delimiter::Chunked(_)) {
        // no such answer may have a length, and a reader that believed it would wait (RFC 9110 §8.6, RFC 9112 §6.3)
        headers.remove(header::CONTENT_LENGTH);
    }
    let ends_by_close = said.close || matches!(delimiter, Delimiter::Close);
    let usual = status.canonical_reason().unwrap_or_default();
    let reason = response
        .reason
        .filter(|reason| !reason.is_empty() && *reason != usual);
    Ok(Some(Head {
        status,
        reason: reason.map(|reason| text.slice_ref_of(bytes, reason.as_bytes())),
        headers,
        delimiter,
        persistent: said.persistent && !ends_by_close && !said.is_ambiguous(status),
        len,
        websocket: said.websocket,
        withheld: said.nominated,
        locates: said.locates,
    }))
}

/// The fields that are passed on; `value` makes one of a part of the head.
fn read_fields(
    fields: &[httparse::Header<'_>],
    said: &mut FramingFields,
    value: impl Fn(&[u8]) -> Bytes,
) -> Result<HeaderMap, &'static str> {
    let hops = connection_fields(fields)?;
    let mut headers = HeaderMap::with_capacity(fields.len() + 4);
    for field in fields {
        let name =
            HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| "malformed field name")?;
        if said.keeps(&name, field.value, &hops)? {
            let part = if name == header::CONTENT_LENGTH {
                request_head::without_zeros(field.value)
            } else {
                field.value
            };
            let value =
                HeaderValue::from_maybe_shared(value(part)).map_err(|_| "malformed field value")?;
            headers.append(name, value);
        }
    }
    if said.chunked {
        let names = hops.iter().filter(|option| headers::nominates(option));
        said.nominated = names
            .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok())
            .collect();
    }
    if said.trailer
        && said.chunked
        && let Some(names) = announced_in(fields)
    {
        headers.insert(header::TRAILER, names);
    }
    Ok(headers)
}

/// A slice of a copy that stands where `part` stands in the original.
trait SliceRefOf {
    fn slice_ref_of(&self, original: &[u8], part: &[u8]) -> Bytes;
}

impl SliceRefOf for Bytes {
    fn slice_ref_of(&self, original: &[u8], part: &[u8]) -> Bytes {
        if part.is_empty() {
            return Bytes::new();
        }
        let start = (part.as_ptr() as usize).wrapping_sub(original.as_ptr() as usize);
        self.slice(start..start + part.len())
    }
}

/// What the fields of an answer say of its framing.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is what one field said")]
struct FramingFields {
    length: Option<u64>,
    chunked: bool,
    persistent: bool,
    close: bool,
    trailer: bool,
    websocket: bool,
    /// What Connection lists, of a chunked answer.
    nominated: Vec<HeaderName>,
    locates: bool,
}

impl FramingFields {
    /// Takes note of a field; says whether it is passed on.
    fn keeps(
        &mut self,
        name: &HeaderName,
        value: &[u8],
        hops: &[&str],
    ) -> Result<bool, &'static str> {
        match *name {
            header::CONTENT_LENGTH => {
                let length = request_head::decimal(value).ok_or("malformed Content-Length")?;
                if self.length.is_some_and(|before| before != length) {
                    return Err("two lengths");
                }
                Ok(self.length.replace(length).is_none())
            }
            header::TRANSFER_ENCODING => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("unknown transfer coding");
                }
                self.chunked = true;
                Ok(false)
            }
            header::CONNECTION => {
                self.close |= hops
                    .iter()
                    .any(|option| option.eq_ignore_ascii_case("close"));
                self.persistent |= hops
                    .iter()
                    .any(|option| option.eq_ignore_ascii_case("keep-alive"));
                Ok(false)
            }
            header::UPGRADE => {
                self.websocket = value.eq_ignore_ascii_case(b"websocket");
                Ok(false)
            }
            header::TRAILER => {
                self.trailer = true;
                Ok(false)
            }
            // an upstream that asks for a proxy's credentials asks us, not the client
            _ if headers::is_hop_by_hop(name.as_str()) => Ok(false),
            _ => {
                self.locates |= matches!(*name, header::LOCATION | header::CONTENT_LOCATION);
                Ok(!hops
                    .iter()
                    .any(|option| option.eq_ignore_ascii_case(name.as_str()) && is_nominable(name)))
            }
        }
    }

    /// What ends the body; `is_bodiless` where there is none whatever the fields say.
    fn delimiter(&self, is_bodiless: bool) -> Delimiter {
        match (self.chunked, self.length) {
            _ if is_bodiless => Delimiter::Length(0),
            (true, _) => Delimiter::Chunked(Box::new(chunked::Body::new())),
            (false, Some(length)) => Delimiter::Length(length),
            (false, None) => Delimiter::Close,
        }
    }

    /// A length beside chunks, or a body where none may be: who knows what comes behind it.
    fn is_ambiguous(&self, status: StatusCode) -> bool {
        let is_both = self.chunked && self.length.is_some();
        let has_body = self.chunked || self.length.is_some_and(|length| length > 0);
        is_both || (status == StatusCode::NO_CONTENT && has_body)
    }
}

/// Whether Connection may take a field away; not what the client cannot do without.
fn is_nominable(name: &HeaderName) -> bool {
    let name = name.as_str();
    !name.starts_with("content-")
        && !matches!(
            name,
            "set-cookie" | "date" | "location" | "cache-control" | "vary"
        )
}

/// The options that the Connection fields list.
fn connection_fields<'a>(fields: &[httparse::Header<'a>]) -> Result<Vec<&'a str>, &'static str> {
    let mut options = Vec::new();
    for field in fields
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("connection"))
    {
        let value = std::str::from_utf8(field.value).map_err(|_| "malformed Connection")?;
        options.extend(
            value
                .split(',')
                .map(str::trim)
                .filter(|option| !option.is_empty()),
        );
    }
    Ok(options)
}

fn announced_in(fields: &[httparse::Header<'_>]) -> Option<HeaderValue> {
    let mut map = HeaderMap::new();
    for field in fields
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("trailer"))
    {
        map.append(header::TRAILER, HeaderValue::from_bytes(field.value).ok()?);
    }
    headers::announced_trailers(&map, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    const LENGTH: &str =
        "HTTP/1.1 200 Fine\r\nContent-Length: 11\r\nA: b\r\nA: c\r\n\r\nhello world";
    const CLOSE: &str = "HTTP/1.1 200 OK\r\nConnection: x\r\nX: y\r\n\r\nhello world";
    const EMPTY: &str = "HTTP/1.1 304 Not Modified\r\nContent-Length: 11\r\nETag: a\r\n\r\n";

    #[test]
    fn a_head_is_whole_at_its_last_byte_and_not_before() {
        for text in [CHUNKED, LENGTH, CLOSE, EMPTY] {
            let end = text.find("\r\n\r\n").unwrap() + 4;
            for cut in 0..text.len() {
                let head = read_head(&text.as_bytes()[..cut], &Method::GET).unwrap();
                assert_eq!(
                    head.map(|head| head.len),
                    (cut >= end).then_some(end),
                    "{text} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn a_head_that_drips_in_is_read_twice_whatever_its_length() {
        for newline in ["\r\n", "\n"] {
            for fields in [0, 1, 200] {
                let lines = format!("X-Y: z{newline}").repeat(fields);
                let text = format!("HTTP/1.1 200 OK{newline}{lines}{newline}");
                for step in 1..9 {
                    let (mut scanned, mut count, mut head) = (0, 0, None);
                    for end in (step..text.len()).step_by(step).chain([text.len()]) {
                        let bytes = &text.as_bytes()[..end];
                        if is_due(bytes, &mut scanned) {
                            count += 1;
                            head = read_head(bytes, &Method::GET).unwrap();
                        }
                        assert_eq!(head.is_some(), end == text.len(), "{end} of {text:?}");
                    }
                    assert!(count <= 2, "read {count} times");
                }
            }
        }
        let endless = vec![b'a'; MAX_HEAD];
        assert!(!is_due(&endless[1..], &mut (MAX_HEAD / 2)));
        assert!(is_due(&endless, &mut (MAX_HEAD / 2)));
    }

    #[test]
    fn a_length_where_no_body_may_be_is_taken_away() {
        for (status, method, passes) in [
            ("103 Early Hints", Method::GET, false),
            ("204 No Content", Method::GET, false),
            ("204 No Content", Method::HEAD, false),
            ("304 Not Modified", Method::GET, true),
            ("200 OK", Method::HEAD, true),
        ] {
            let text = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n");
            let head = read_head(text.as_bytes(), &method).unwrap().unwrap();
            assert!(matches!(head.delimiter, Delimiter::Length(0)), "{status}");
            assert_eq!(
                head.headers.contains_key(header::CONTENT_LENGTH),
                passes,
                "{status}"
            );
        }
    }

    #[test]
    fn a_length_is_handed_on_without_leading_zeros() {
        for (given, passed) in [("0005", "5"), ("00", "0"), ("5", "5"), ("50", "50")] {
            let text = format!("HTTP/1.1 200 OK\r\nA: 05\r\nContent-Length: {given}\r\n\r\n");
            let head = read_head(text.as_bytes(), &Method::HEAD).unwrap().unwrap();
            assert_eq!(head.headers[header::CONTENT_LENGTH], passed, "{given}");
            assert_eq!(head.headers["a"], "05");
        }
    }

    #[test]
    fn no_beginning_of_a_bad_head_is_taken_for_a_head() {
        for bad in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "\n\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            for cut in 0..bad.len() {
                let head = read_head(&bad.as_bytes()[..cut], &Method::GET);
                assert!(matches!(head, Ok(None) | Err(_)), "{bad} cut at {cut}");
            }
            assert!(read_head(bad.as_bytes(), &Method::GET).is_err(), "{bad}");
        }
    }
}
