//! The strict reading of a request head.
//!
//! What passes can be read in one way only, and it is known where the message ends. Pure: bytes in, a verdict out.
//! RFC 9112 §2.2, §3, §5 and §6 are obeyed without their "may be lenient" clauses. The fields are then taken out by
//! httparse: a head that two readers do not agree on is refused.

use std::{mem::MaybeUninit, net::Ipv6Addr};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{self, CONTENT_LENGTH},
};

use crate::{
    failure::METHODS,
    http1::{
        chunked::is_token,
        headers,
        request::{RequestHead, RequestUri},
    },
    outcome::Outcome,
};

/// A head that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes before it to skip: one empty line (RFC 9112 §2.2).
    pub skip: usize,
    /// Its bytes behind those, the closing empty line included.
    pub len: usize,
    /// How many fields it has.
    pub fields: usize,
    /// What follows it.
    pub framing: Framing,
    /// Where its target stands, counted from its first byte.
    pub target: (usize, usize),
    /// Whether it speaks HTTP/1.0.
    pub is_http10: bool,
    /// Whether the client says `Expect: 100-continue`, and knows what that means.
    pub expects: bool,
}

impl Head {
    /// Whether a body follows it.
    pub fn has_body(&self) -> bool {
        self.framing != Framing::Length(0)
    }
}

/// What a connection's next bytes came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// A whole head that is ready to be handed on.
    Head(Head),
    /// The client has closed, with or without a part of one.
    End,
    /// Not to be served.
    Refused(Refusal),
}

/// How a request body is delimited (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes; none where neither Content-Length nor Transfer-Encoding is given.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// Why a request is answered by a close before anybody looked at what it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 400, with what is wrong for the log.
    Malformed(&'static str),
    /// 400: the client speaks TLS, and this listener does not.
    TlsHello,
    /// 400: the client speaks HTTP/2, and this listener does not.
    Preface,
    /// 405: CONNECT.
    Connect,
    /// 408: the head was not complete in `server.header_timeout`.
    HeadTimedOut,
    /// 414: the target alone is over the limit.
    TargetTooLong,
    /// 431: the head is over `server.max_header_bytes`, or has too many fields.
    HeadTooLarge,
    /// 505: well-formed, but neither HTTP/1.1 nor HTTP/1.0.
    Version,
    /// 503: the memory budget has no room for this head.
    NoMemory,
}

/// The first byte of a TLS connection: the content type of a handshake record (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// More fields than any client of ours has; each costs memory in every parser on the way.
pub const MAX_FIELDS: usize = 256;

/// Bytes of a method: no registered one has more than 17 (IANA). It is kept as long as its exchange.
const MAX_METHOD: usize = 64;

/// Bytes of a target, whatever `max_header_bytes` says: common readers, `http::Uri` for one, hold no more.
const MAX_TARGET: usize = 65_534;

impl Refusal {
    /// The status that is answered before the close.
    pub fn status(self) -> StatusCode {
        match self {
            Refusal::Malformed(_) | Refusal::TlsHello | Refusal::Preface => StatusCode::BAD_REQUEST,
            Refusal::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::HeadTimedOut => StatusCode::REQUEST_TIMEOUT,
            Refusal::TargetTooLong => StatusCode::URI_TOO_LONG,
            Refusal::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Refusal::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Refusal::NoMemory => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// One plain sentence for the client.
    pub fn sentence(self) -> &'static str {
        match self {
            Refusal::Malformed(_) => "The request is malformed.\n",
            Refusal::TlsHello => "This port speaks plain HTTP, not TLS.\n",
            Refusal::Preface => "This port speaks HTTP/1.1, not HTTP/2.\n",
            Refusal::Connect => "The method is not allowed.\n",
            Refusal::HeadTimedOut => "The request head did not arrive in time.\n",
            Refusal::TargetTooLong => "The request target is too long.\n",
            Refusal::HeadTooLarge => "The request head is too large.\n",
            Refusal::Version => "The HTTP version is not supported.\n",
            Refusal::NoMemory => "There is no room for this request now.\n",
        }
    }

    /// What the log says.
    pub fn reason(self) -> &'static str {
        match self {
            Refusal::Malformed(reason) => reason,
            Refusal::TlsHello => "a TLS hello on a plain listener",
            Refusal::Preface => "the HTTP/2 preface",
            Refusal::Connect => "CONNECT",
            Refusal::HeadTimedOut => "head timed out",
            Refusal::TargetTooLong => "target too long",
            Refusal::HeadTooLarge => "head too large",
            Refusal::Version => "unknown HTTP version",
            Refusal::NoMemory => "no memory for the head",
        }
    }

    /// How the connection ended, for the access line and the metrics.
    pub fn outcome(self) -> Outcome {
        match self {
            Refusal::Malformed(_) | Refusal::Preface => Outcome::Malformed,
            Refusal::Connect => Outcome::MethodNotAllowed,
            Refusal::HeadTimedOut => Outcome::HeadTimedOut,
            Refusal::TargetTooLong => Outcome::TargetTooLong,
            Refusal::HeadTooLarge => Outcome::HeadTooLarge,
            Refusal::Version => Outcome::VersionNotSupported,
            Refusal::NoMemory => Outcome::NoMemory,
            Refusal::TlsHello => Outcome::TlsHello,
        }
    }

    /// The whole answer, to be written as it is before the close; `fields` are added to it (CORS).
    pub fn answer(self, fields: &HeaderMap) -> Vec<u8> {
        let (status, sentence) = (self.status(), self.sentence());
        let extra = match self {
            Refusal::Connect => format!("allow: {METHODS}\r\n"),
            Refusal::NoMemory => "retry-after: 1\r\n".to_owned(),
            _ => String::new(),
        };
        let mut answer = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n{extra}connection: close\r\n",
            status.as_str(),
            status.canonical_reason().unwrap_or(""),
            sentence.len(),
        )
        .into_bytes();
        for (name, value) in fields {
            headers::line(&mut answer, name.as_str().as_bytes(), value.as_bytes());
        }
        answer.extend_from_slice(b"\r\n");
        answer.extend_from_slice(sentence.as_bytes());
        answer
    }
}

/// Reads the head at the start of `bytes`; `None` where it is not complete yet.
///
/// `scanned` is how many bytes were looked at in vain before: the caller keeps it, so that a head that drips in byte
/// by byte is not read again from its start each time.
///
/// # Errors
/// A [`Refusal`] where the head is malformed, or cannot become right within `max` bytes.
pub fn head(bytes: &[u8], scanned: &mut usize, max: usize) -> Result<Option<Head>, Refusal> {
    if bytes == b"\r" {
        return Ok(None);
    }
    let skip = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let rest = bytes.get(skip..).unwrap_or_default();
    if rest.starts_with(b"\r") || rest.starts_with(b"\n") {
        return Err(Refusal::Malformed("an empty line before the request"));
    }
    if let Some(&first) = rest.first()
        && !is_token(first)
    {
        // no method can come of it: why wait for the rest
        return Err(if first == TLS_HANDSHAKE {
            Refusal::TlsHello
        } else {
            Refusal::Malformed("a first byte that begins no method")
        });
    }
    if !ends_somewhere(bytes, (*scanned).max(skip)) {
        *scanned = bytes.len();
        return if rest.len() < max {
            Ok(None)
        } else {
            Err(too_large(rest))
        };
    }
    let head = Walk { bytes: rest, at: 0 }.head(skip)?;
    if head.len > max {
        return Err(too_large(rest.get(..max).unwrap_or(rest)));
    }
    Ok(Some(head))
}

/// Takes the parts out of a head that passed; they are slices of `text`, which holds it and nothing else.
///
/// # Errors
/// Another reader does not see in it what [`head`] saw.
pub fn parts(text: &Bytes, head: &Head) -> Result<Box<RequestHead>, Refusal> {
    const DISAGREE: Refusal = Refusal::Malformed("a head that can be read in two ways");
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(text, &mut fields);
    if parsed != Ok(httparse::Status::Complete(head.len)) || request.headers.len() != head.fields {
        return Err(DISAGREE);
    }
    let (start, end) = head.target;
    let method =
        Method::from_bytes(request.method.unwrap_or_default().as_bytes()).map_err(|_| DISAGREE)?;
    let uri = RequestUri::new(text.get(start..end).unwrap_or_default()).ok_or(DISAGREE)?;
    let mut headers = HeaderMap::with_capacity(head.fields);
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| DISAGREE)?;
        let value = if name == CONTENT_LENGTH {
            without_zeros(field.value)
        } else {
            field.value
        };
        let value = HeaderValue::from_maybe_shared(text.slice_ref(value)).map_err(|_| DISAGREE)?;
        headers.append(name, value);
    }
    Ok(Box::new(RequestHead {
        method,
        uri,
        version: if head.is_http10 {
            Version::HTTP_10
        } else {
            Version::HTTP_11
        },
        headers,
    }))
}

/// The Origin of a head that is refused, as far as it came: the only field of it that its answer depends on. `None` where
/// it has none, or more than one.
pub fn origin(head: &[u8]) -> Option<HeaderValue> {
    let lines = head.split_inclusive(|&byte| byte == b'\n').skip(1);
    let mut found = None;
    for line in lines {
        let Some(line) = line.strip_suffix(b"\r\n").filter(|line| !line.is_empty()) else {
            break;
        };
        let colon = line.iter().position(|&byte| byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        if name.eq_ignore_ascii_case(header::ORIGIN.as_str().as_bytes())
            && found.replace(value.get(1..)?.trim_ascii()).is_some()
        {
            return None;
        }
    }
    HeaderValue::from_bytes(found?).ok()
}

/// Whether an empty line stands behind `from`; a bare LF counts, so that it is refused at once and not waited for.
pub fn ends_somewhere(bytes: &[u8], from: usize) -> bool {
    if bytes.ends_with(b"\r\n\r\n") {
        return true;
    }
    let mut rest = bytes.get(from.saturating_sub(3)..).unwrap_or_default();
    while let Some(line) = find_lf(rest) {
        rest = rest.get(line + 1..).unwrap_or_default();
        if matches!(rest, [b'\n', ..] | [b'\r', b'\n', ..]) {
            return true;
        }
    }
    false
}

/// 414 where the request line alone fills the limit, else 431.
fn too_large(bytes: &[u8]) -> Refusal {
    if bytes.contains(&b'\n') {
        Refusal::HeadTooLarge
    } else {
        Refusal::TargetTooLong
    }
}

/// A field's name and value.
type Field<'a> = (&'a [u8], &'a [u8]);

/// A walk over the lines of one head.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What the fields said about the message.
#[derive(Default)]
struct Seen {
    host: bool,
    length: Option<u64>,
    chunked: bool,
    expects: bool,
}

impl<'a> Walk<'a> {
    fn head(mut self, skip: usize) -> Result<Head, Refusal> {
        let (http11, target) = self.request_line()?;
        let mut seen = Seen::default();
        let mut fields = 0;
        while let Some((name, value)) = self.field()? {
            fields += 1;
            if fields > MAX_FIELDS {
                return Err(Refusal::HeadTooLarge);
            }
            seen.note(name, value, http11)?;
        }
        if !seen.host && http11 {
            return Err(Refusal::Malformed("no Host"));
        }
        let framing = match (seen.chunked, seen.length) {
            (true, Some(_)) => {
                return Err(Refusal::Malformed(
                    "both Content-Length and Transfer-Encoding",
                ));
            }
            (true, None) => Framing::Chunked,
            (false, length) => Framing::Length(length.unwrap_or(0)),
        };
        Ok(Head {
            skip,
            len: self.at,
            fields,
            framing,
            target,
            is_http10: !http11,
            expects: http11 && seen.expects,
        })
    }

    /// Takes `METHOD SP target SP HTTP/1.x CRLF`.
    fn request_line(&mut self) -> Result<(bool, (usize, usize)), Refusal> {
        let method = self.take_while(is_token);
        if method.is_empty() || method.len() > MAX_METHOD || !self.eat(b' ') {
            return Err(Refusal::Malformed("a malformed method"));
        }
        let start = self.at;
        let target = self.take_while(is_target);
        let end = self.at;
        if target.len() > MAX_TARGET {
            return Err(Refusal::TargetTooLong);
        }
        if !self.eat(b' ') || std::str::from_utf8(target).is_err() {
            return Err(Refusal::Malformed(
                "a byte in the target that may not stand there",
            ));
        }
        let version = self.take_while(|byte| byte != b'\r' && byte != b'\n');
        if !(self.eat(b'\r') && self.eat(b'\n')) {
            return Err(Refusal::Malformed("a bare CR or LF in the request line"));
        }
        if method == b"PRI" {
            return Err(Refusal::Preface);
        }
        let http11 = is_http11(version)?;
        check_form(method, target)?;
        Ok((http11, (start, end)))
    }

    /// Takes one field line; `None` at the empty line that closes the head.
    fn field(&mut self) -> Result<Option<Field<'a>>, Refusal> {
        let name = self.take_while(is_token);
        if name.is_empty() {
            return if self.eat(b'\r') && self.eat(b'\n') {
                Ok(None)
            } else {
                Err(Refusal::Malformed("a line that begins with no field name"))
            };
        }
        if !self.eat(b':') {
            return Err(Refusal::Malformed("a field name without its colon"));
        }
        let value = self.take(value_len(self.bytes.get(self.at..).unwrap_or_default()));
        if !(self.eat(b'\r') && self.eat(b'\n')) {
            return Err(Refusal::Malformed(
                "a byte in a value that may not stand there",
            ));
        }
        Ok(Some((name, value.trim_ascii())))
    }

    fn take_while(&mut self, fits: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest
            .iter()
            .position(|&byte| !fits(byte))
            .unwrap_or(rest.len());
        self.take(len)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let taken = self.bytes.get(self.at..self.at + len).unwrap_or_default();
        self.at += len;
        taken
    }

    fn eat(&mut self, byte: u8) -> bool {
        let fits = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(fits);
        fits
    }
}

impl Seen {
    fn note(&mut self, name: &[u8], value: &[u8], http11: bool) -> Result<(), Refusal> {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                if self.host {
                    return Err(Refusal::Malformed("more than one Host"));
                }
                if !is_host(value) {
                    return Err(Refusal::Malformed("a malformed Host"));
                }
                self.host = true;
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                self.expects |= value.eq_ignore_ascii_case(b"100-continue");
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.length.is_some() {
                    return Err(Refusal::Malformed("more than one Content-Length"));
                }
                self.length =
                    Some(decimal(value).ok_or(Refusal::Malformed("a malformed Content-Length"))?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked || !http11 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::Malformed("a Transfer-Encoding other than chunked"));
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Digits only, and few enough of them that no reader overflows (RFC 9110 §8.6).
pub fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, &byte| {
        byte.is_ascii_digit()
            .then(|| sum * 10 + u64::from(byte - b'0'))
    })
}

/// A number as everybody writes it: some readers take one with leading zeros for octal.
pub fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|&&byte| byte == b'0').count();
    let start = zeros.min(number.len().saturating_sub(1));
    number.get(start..).unwrap_or_default()
}

/// The path of a target that passed, without its query; `/` where an absolute one has none (RFC 9110 §4.2.3).
pub fn path(target: &[u8]) -> &[u8] {
    let from_path = match strip_scheme(target) {
        Some(rest) => {
            let end = rest.iter().position(|&byte| matches!(byte, b'/' | b'?'));
            rest.get(end.unwrap_or(rest.len())..).unwrap_or_default()
        }
        None => target,
    };
    match from_path.split(|&byte| byte == b'?').next() {
        None | Some([]) => b"/",
        Some(path) => path,
    }
}

/// Whether it is HTTP/1.1; else HTTP/1.0.
fn is_http11(version: &[u8]) -> Result<bool, Refusal> {
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Refusal::Version)
        }
        _ => Err(Refusal::Malformed("a malformed version")),
    }
}

/// A target that another reader took out of its head: whether it is one of the forms, byte by byte.
///
/// # Errors
/// What a head is refused for that has it.
pub fn check_target(method: &[u8], target: &[u8]) -> Result<(), Refusal> {
    if method.len() > MAX_METHOD {
        return Err(Refusal::Malformed("a malformed method"));
    }
    if target.len() > MAX_TARGET {
        return Err(Refusal::TargetTooLong);
    }
    if !target.iter().copied().all(is_target) {
        return Err(Refusal::Malformed(
            "a byte in the target that may not stand there",
        ));
    }
    check_form(method, target)
}

/// The four forms of a target (RFC 9112 §3.2): origin, asterisk, absolute; authority belongs to CONNECT.
fn check_form(method: &[u8], target: &[u8]) -> Result<(), Refusal> {
    match target {
        _ if method == b"CONNECT" => Err(Refusal::Connect),
        [b'/', ..] => Ok(()),
        b"*" if method == b"OPTIONS" => Ok(()),
        _ => {
            let authority =
                strip_scheme(target).ok_or(Refusal::Malformed("a target of no known form"))?;
            let end = authority
                .iter()
                .position(|&byte| byte == b'/' || byte == b'?')
                .unwrap_or(authority.len());
            let authority = authority.get(..end).unwrap_or_default();
            // a Host may hold `%`, but no parser behind us takes it in the authority of a target
            if is_host(authority) && !authority.contains(&b'%') {
                Ok(())
            } else {
                Err(Refusal::Malformed("a malformed authority"))
            }
        }
    }
}

fn strip_scheme(target: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = target.split_at_checked(7)?;
    if scheme.eq_ignore_ascii_case(b"http://") {
        return Some(rest);
    }
    let (scheme, rest) = target.split_at_checked(8)?;
    scheme.eq_ignore_ascii_case(b"https://").then_some(rest)
}

/// `host`, `host:port` or `[v6]:port` (RFC 9110 §7.2), never empty, without user info.
pub fn is_host(value: &[u8]) -> bool {
    if let [b'[', inside @ ..] = value {
        let Some(end) = inside.iter().position(|&byte| byte == b']') else {
            return false;
        };
        let (literal, rest) = inside.split_at(end);
        let literal = std::str::from_utf8(literal).unwrap_or_default();
        return literal.parse::<Ipv6Addr>().is_ok() && is_port(rest.get(1..).unwrap_or_default());
    }
    let colon = value.iter().position(|&byte| byte == b':');
    let (name, rest) = value.split_at(colon.unwrap_or(value.len()));
    is_name(name) && is_port(rest)
}

/// A name of one label or more, none of them empty; a dot may end it.
fn is_name(name: &[u8]) -> bool {
    let mut before = b'.';
    let mut fits = |byte: u8| {
        let fits = is_name_byte(byte) && !(byte == b'.' && before == b'.');
        before = byte;
        fits
    };
    !name.is_empty() && name.iter().all(|&byte| fits(byte))
}

/// What may stand in a name (RFC 3986 §3.2.2).
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&byte)
}

/// Nothing, a colon alone, or a colon and a port.
fn is_port(rest: &[u8]) -> bool {
    match rest {
        [] | [b':'] => true,
        [b':', port @ ..] => port.len() <= 5 && decimal(port).is_some_and(|port| port <= 65_535),
        _ => false,
    }
}

/// What may stand in a target: all that browsers leave as it is (WHATWG URL), and more than RFC 3986 allows; not `<` and
/// `>`, which end up in pages, nor the fragment's `#`.
fn is_target(byte: u8) -> bool {
    matches!(byte, b'!' | b'"' | b'$'..=b';' | b'=' | b'?'..=b'~' | 0x80..)
}

/// What may stand in a field value: no control byte but the tab.
fn is_value(byte: u8) -> bool {
    (byte >= b' ' && byte != 0x7f) || byte == b'\t'
}

/// How many of the first bytes may stand in a field value.
fn value_len(bytes: &[u8]) -> usize {
    // under the space, or DEL
    let odd = |word: u64| (word.wrapping_sub(ONES * 0x20) & !word) | zeros(word ^ (ONES * 0x7f));
    let plain = skip_words(bytes, odd);
    let rest = bytes.get(plain..).unwrap_or_default();
    plain + rest.iter().take_while(|&&byte| is_value(byte)).count()
}

/// Where the first line feed stands.
fn find_lf(bytes: &[u8]) -> Option<usize> {
    let plain = skip_words(bytes, |word| zeros(word ^ (ONES * u64::from(b'\n'))));
    let rest = bytes.get(plain..).unwrap_or_default();
    Some(plain + rest.iter().position(|&byte| byte == b'\n')?)
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);

/// The highest bit of some byte is set where one is zero.
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word
}

/// Eight bytes at a time: how many come before those in which `odd` sets the highest bit of one.
fn skip_words(bytes: &[u8], odd: impl Fn(u64) -> u64) -> usize {
    let (words, _) = bytes.as_chunks::<8>();
    let is_plain = |word: &&[u8; 8]| odd(u64::from_ne_bytes(**word)) & (ONES * 0x80) == 0;
    8 * words.iter().take_while(is_plain).count()
}

#[cfg(test)]
mod tests;
