//! Parses the head of an answer strictly, and finds where its body ends.
//!
//! Pure: bytes in, a head out. Answers come from targets that the operator chose, and are parsed strictly all the same:
//! one that could be read in two ways is an error and is not passed on. Hop-by-hop fields are removed (RFC 9110
//! §7.6.1).

use http::{
    Method, StatusCode, Version,
    header::{CONTENT_LENGTH, HeaderName, TRAILER},
};

use crate::{
    fields::{Fields, Place, members},
    http1::{
        cursor::{Cursor, Fault, LineEnd, is_value},
        framing::Framing,
        headers,
        request_head::{self, MAX_FIELDS, USUAL_FIELDS},
    },
};

/// Most bytes of a response head; a longer one is a 502.
pub const MAX_HEAD: usize = 96 * 1024;

/// The head of an answer, ready to be passed on: hop-by-hop fields are removed.
#[derive(Debug)]
pub struct Head {
    /// Its status.
    pub status: StatusCode,
    /// Its reason phrase, where it is not the usual one.
    pub reason: Option<Box<[u8]>>,
    /// Its fields.
    pub headers: Fields,
    /// Where its body ends.
    pub framing: Framing,
    /// Whether the connection can be used again.
    pub persistent: bool,
    /// Its length in bytes.
    pub len: usize,
    /// Whether it carries an Upgrade to `websocket`.
    pub websocket: bool,
    /// Names that are not passed on in trailers: those that Connection lists (RFC 9110 §7.6.1).
    pub withheld: Vec<HeaderName>,
    /// Whether it has a Location or Content-Location.
    pub locates: bool,
}

/// Whether [`read_head`], which starts at the first byte each time, may give another result than before: for the first
/// bytes, because most input that is not HTTP shows there; then when the empty line has arrived, or the head has the
/// largest size. So a head that arrives byte by byte is parsed twice and not once for each byte.
///
/// `scanned` is how many of the bytes were there before; the caller keeps it, and sets it to 0 for another head.
pub fn is_due(bytes: &[u8], scanned: &mut usize) -> bool {
    let before = std::mem::replace(scanned, bytes.len());
    before == 0 || bytes.len() >= MAX_HEAD || request_head::ends_somewhere(bytes, before)
}

/// Parses the head of an answer to `method`; `None` where it is incomplete.
///
/// # Errors
/// A text for the log where the head cannot be passed on.
pub fn read_head(bytes: &[u8], method: &Method) -> Result<Option<Head>, &'static str> {
    let mut cursor = Cursor::new(bytes);
    match read_whole(&mut cursor, bytes, method) {
        Ok(head) => Ok(Some(head)),
        Err(Unreadable::Partial) if bytes.len() < MAX_HEAD => Ok(None),
        Err(Unreadable::Partial) => Err("head too large"),
        Err(Unreadable::Garbled(reason)) => Err(reason),
    }
}

/// Why a head cannot be parsed.
enum Unreadable {
    /// It is incomplete.
    Partial,
    /// It cannot be passed on.
    Garbled(&'static str),
}

impl From<&'static str> for Unreadable {
    fn from(reason: &'static str) -> Unreadable {
        Unreadable::Garbled(reason)
    }
}

fn read_whole(cursor: &mut Cursor<'_>, bytes: &[u8], method: &Method) -> Result<Head, Unreadable> {
    let (version, status, reason) = status_line(cursor)?;
    let places = field_places(cursor)?;
    let text = bytes.get(..cursor.at()).unwrap_or_default().to_vec();
    let headers = Fields::of(text, places);
    let said = FramingFields::of(bytes, &headers, version)?;
    let has_no_body = status.is_informational() || status == StatusCode::NO_CONTENT;
    let framing =
        said.framing(has_no_body || status == StatusCode::NOT_MODIFIED || *method == Method::HEAD);
    // such an answer must not have a length, and a client that believed it would wait (RFC 9110 §8.6, RFC 9112 §6.3)
    let has_no_length = has_no_body || framing == Framing::Chunked;
    let ends_by_close = said.close || framing == Framing::Close;
    let usual = status.canonical_reason().unwrap_or_default().as_bytes();
    Ok(Head {
        status,
        reason: (!reason.is_empty() && reason != usual).then(|| reason.into()),
        headers: said.passed_on(headers, has_no_length),
        framing,
        persistent: said.persistent && !ends_by_close && !said.is_ambiguous(status),
        len: cursor.at(),
        websocket: said.websocket,
        withheld: said.withheld(),
        locates: said.locates,
    })
}

/// Takes `HTTP/1.x SP status [SP reason]` (RFC 9112 §4); a reason that is not ASCII is dropped.
fn status_line<'a>(cursor: &mut Cursor<'a>) -> Result<(Version, StatusCode, &'a [u8]), Unreadable> {
    const VERSION: &[u8] = b"HTTP/1.";
    let version = match cursor.eat_all(VERSION) {
        true if cursor.eat(b'1') => Version::HTTP_11,
        true if cursor.eat(b'0') => Version::HTTP_10,
        _ => return Err(unreadable(cursor, "malformed head")),
    };
    if !cursor.eat(b' ') {
        return Err(unreadable(cursor, "malformed head"));
    }
    let code = cursor.take_while(|byte| byte.is_ascii_digit());
    if code.len() < 3 {
        return Err(unreadable(cursor, "malformed head"));
    }
    let status = StatusCode::from_bytes(code).map_err(|_| "malformed status")?;
    let reason = if cursor.eat(b' ') {
        cursor.take_while(is_value)
    } else {
        b""
    };
    match cursor.eat_line_end(LineEnd::Lf) {
        Some(true) if reason.is_ascii() => Ok((version, status, reason)),
        Some(true) => Ok((version, status, b"")),
        Some(false) => Err("malformed head".into()),
        None => Err(Unreadable::Partial),
    }
}

/// `Partial` where the bytes have ended, otherwise `Garbled`.
fn unreadable(cursor: &Cursor<'_>, reason: &'static str) -> Unreadable {
    if cursor.is_end() {
        Unreadable::Partial
    } else {
        Unreadable::Garbled(reason)
    }
}

fn field_places(cursor: &mut Cursor<'_>) -> Result<Vec<Place>, Unreadable> {
    let mut places = Vec::with_capacity(USUAL_FIELDS);
    loop {
        match cursor.field(LineEnd::Lf) {
            Ok(Some(_)) if places.len() == MAX_FIELDS => return Err("head too large".into()),
            Ok(Some(place)) => places.push(place),
            Ok(None) => return Ok(places),
            Err(Fault::Partial) => return Err(Unreadable::Partial),
            Err(Fault::Name | Fault::Colon | Fault::Value) => return Err("malformed head".into()),
        }
    }
}

/// The fields of an answer that decide about its framing.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is what one field said")]
struct FramingFields<'a> {
    length: Option<u64>,
    /// The length is repeated, or has leading zeros.
    is_unusual_length: bool,
    chunked: bool,
    persistent: bool,
    close: bool,
    websocket: bool,
    locates: bool,
    /// The values of the Connection fields.
    connection: Vec<&'a [u8]>,
    /// Those of the Trailer fields.
    trailers: Vec<&'a [u8]>,
}

impl<'a> FramingFields<'a> {
    fn of(
        bytes: &'a [u8],
        headers: &Fields,
        version: Version,
    ) -> Result<FramingFields<'a>, &'static str> {
        let mut said = FramingFields {
            persistent: version == Version::HTTP_11,
            ..FramingFields::default()
        };
        for (name, value) in headers.iter_in(bytes) {
            said.note(name, value)?;
        }
        if said.chunked && version == Version::HTTP_10 {
            return Err("Transfer-Encoding in HTTP/1.0");
        }
        Ok(said)
    }

    /// Takes note of one field; its name is in lower case.
    fn note(&mut self, name: &[u8], value: &'a [u8]) -> Result<(), &'static str> {
        match name {
            b"trailer" => self.trailers.push(value),
            b"upgrade" => self.websocket = value.eq_ignore_ascii_case(b"websocket"),
            b"location" | b"content-location" => self.locates = true,
            b"connection" => {
                std::str::from_utf8(value).map_err(|_| "malformed Connection")?;
                for option in members([value].into_iter()) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.persistent |= option.eq_ignore_ascii_case(b"keep-alive");
                }
                self.connection.push(value);
            }
            b"content-length" => {
                let length = request_head::decimal(value).ok_or("malformed Content-Length")?;
                if self.length.is_some_and(|before| before != length) {
                    return Err("two lengths");
                }
                self.is_unusual_length |= self.length.is_some() || value.starts_with(b"0");
                self.length = Some(length);
            }
            b"transfer-encoding" => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("unknown transfer coding");
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// The fields that are passed on.
    fn passed_on(&self, mut headers: Fields, has_no_length: bool) -> Fields {
        // the upstream's request for proxy credentials is meant for this proxy, not for the client
        let nominates = !self.connection.is_empty();
        headers.retain(|name, _| {
            let stays_behind = nominates && self.is_nominated(name);
            !(stays_behind || headers::is_hop_by_hop(name))
        });
        if has_no_length {
            headers.remove(CONTENT_LENGTH);
        } else if let Some(length) = self.length.filter(|_| self.is_unusual_length) {
            headers.set(CONTENT_LENGTH, length.to_string());
        }
        if self.chunked
            && let Some(names) = headers::joined_trailers(self.trailers.iter().copied(), &[])
        {
            headers.append(TRAILER, names);
        }
        headers
    }

    /// Whether Connection removes a field (RFC 9110 §7.6.1).
    fn is_nominated(&self, name: &[u8]) -> bool {
        let mut options = members(self.connection.iter().copied());
        options.any(|option| option.eq_ignore_ascii_case(name)) && headers::is_nominable(name)
    }

    /// The names that are not passed on in trailers.
    fn withheld(&self) -> Vec<HeaderName> {
        if !self.chunked {
            return Vec::new();
        }
        headers::nominated(self.connection.iter().copied()).collect()
    }

    /// Where the body ends; `is_bodiless` where there is none, whatever the fields say.
    fn framing(&self, is_bodiless: bool) -> Framing {
        match (self.chunked, self.length) {
            _ if is_bodiless => Framing::Nothing,
            (true, _) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::Close,
        }
    }

    /// A length beside chunks, or a body where none is allowed: the connection cannot be used again.
    fn is_ambiguous(&self, status: StatusCode) -> bool {
        let is_both = self.chunked && self.length.is_some();
        let has_body = self.chunked || self.length.is_some_and(|length| length > 0);
        is_both || (status == StatusCode::NO_CONTENT && has_body)
    }
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
            assert_eq!(head.framing, Framing::Nothing, "{status}");
            assert_eq!(head.headers.contains(CONTENT_LENGTH), passes, "{status}");
        }
    }

    #[test]
    fn a_connection_persists_where_the_end_of_its_answer_is_beyond_doubt() {
        for (head, persists) in [
            ("1.1 200 OK\r\nContent-Length: 5", true),
            ("1.0 200 OK\r\nContent-Length: 5", false),
            (
                "1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5",
                true,
            ),
            (
                "1.1 200 OK\r\nConnection: close\r\nContent-Length: 5",
                false,
            ),
            ("1.1 200 OK", false),
            ("1.1 200 OK\r\nTransfer-Encoding: chunked", true),
            (
                "1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
                false,
            ),
            ("1.1 204 No Content", true),
            ("1.1 204 No Content\r\nContent-Length: 0", true),
            ("1.1 204 No Content\r\nContent-Length: 5", false),
            ("1.1 204 No Content\r\nTransfer-Encoding: chunked", false),
        ] {
            let text = format!("HTTP/{head}\r\n\r\n");
            let found = read_head(text.as_bytes(), &Method::GET).unwrap().unwrap();
            assert_eq!(found.persistent, persists, "{head}");
        }
    }

    #[test]
    fn a_reason_is_kept_where_it_is_not_the_usual_one() {
        for (line, kept) in [("200 OK", None), ("200 Fine", Some("Fine")), ("200 ", None)] {
            let text = format!("HTTP/1.1 {line}\r\n\r\n");
            let found = read_head(text.as_bytes(), &Method::GET).unwrap().unwrap();
            assert_eq!(found.reason.as_deref(), kept.map(str::as_bytes), "{line}");
        }
    }

    #[test]
    fn an_unfinished_head_that_fills_its_bound_is_too_large() {
        let mut text = b"HTTP/1.1 200 OK\r\nA: ".to_vec();
        text.resize(MAX_HEAD - 1, b'x');
        assert!(matches!(read_head(&text, &Method::GET), Ok(None)));
        text.push(b'x');
        assert_eq!(read_head(&text, &Method::GET).err(), Some("head too large"));
    }

    #[test]
    fn a_length_is_handed_on_without_leading_zeros() {
        for (given, passed) in [("0005", "5"), ("00", "0"), ("5", "5"), ("50", "50")] {
            let text = format!("HTTP/1.1 200 OK\r\nA: 05\r\nContent-Length: {given}\r\n\r\n");
            let head = read_head(text.as_bytes(), &Method::HEAD).unwrap().unwrap();
            let value = |name: &str| str::from_utf8(head.headers.only(name).unwrap()).unwrap();
            assert_eq!((value("content-length"), value("a")), (passed, "05"));
        }
    }

    #[test]
    fn equal_lengths_are_handed_on_as_one() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\ncontent-length: 5\r\n\r\n";
        let head = read_head(text.as_bytes(), &Method::GET).unwrap().unwrap();
        let fields = Fields::from_iter([("content-length", "5"), ("a", "b")]);
        assert_eq!(head.headers, fields);
        assert_eq!(head.framing, Framing::Length(5));
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

    /// Length, status and fields of a head.
    type Read = (usize, u16, Vec<(String, Vec<u8>)>);

    /// What httparse reads; `None` where the head is incomplete.
    fn by_httparse(bytes: &[u8]) -> Result<Option<Read>, httparse::Error> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        // httparse skips empty lines, which are refused here
        let status = match bytes {
            [b'\r' | b'\n', ..] => return Err(httparse::Error::Status),
            _ => response.parse(bytes)?,
        };
        let httparse::Status::Complete(len) = status else {
            return Ok(None);
        };
        let fields = response.headers.iter();
        let fields = fields.map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec()));
        Ok(Some((len, response.code.unwrap(), fields.collect())))
    }

    #[test]
    fn a_head_with_any_byte_changed_is_read_as_httparse_reads_it() {
        let text = b"HTTP/1.1 200 OK\r\nServer: a b\r\nX-Y:z\r\nX-Y: \t\r\nA: \"c\"\n\r\n";
        for at in 0..text.len() {
            for byte in 0..=255 {
                let (mut changed, mut longer) = (text.to_vec(), text.to_vec());
                changed[at] = byte;
                longer.insert(at, byte);
                for bytes in [changed, longer] {
                    let shown = bytes.escape_ascii();
                    let ours = read_head(&bytes, &Method::HEAD);
                    match (by_httparse(&bytes), ours) {
                        // httparse takes any three digits for a status
                        (Err(_) | Ok(Some((_, 0..100, _))), Err(_)) | (Ok(None), Ok(None)) => {}
                        (Ok(Some((len, code, fields))), Ok(Some(head))) => {
                            assert_eq!((head.len, head.status.as_u16()), (len, code), "{shown}");
                            let ours = head.headers.iter();
                            let ours = ours.map(|(name, value)| (name.to_vec(), value.to_vec()));
                            let theirs = fields.into_iter();
                            let theirs = theirs.map(|(name, value)| (name.into_bytes(), value));
                            assert!(ours.eq(theirs), "{shown}");
                        }
                        (theirs, ours) => panic!("{shown}: {theirs:?} {ours:?}"),
                    }
                }
            }
        }
    }
}
