//! Parses a request head strictly.
//!
//! A head that is accepted can be read in one way only, and the end of its message is known. Pure: bytes in, a head or
//! a [`Failure`] out. RFC 9112 §2.2, §3, §5 and §6 are obeyed without their "may be lenient" clauses. The fields are
//! parsed once; later steps use their positions.

use std::net::Ipv6Addr;

use http::{
    HeaderValue, Method, Version,
    header::{CONTENT_LENGTH, ORIGIN},
};

use crate::{
    failure::Failure,
    fields::{Fields, Place},
    http1::{
        authority::port_at,
        cursor::{ByteSet, Cursor, Fault, LineEnd, find, is_token, target_len},
        framing::Framing,
        request::{Present, RequestHead, RequestUri},
    },
};

/// A head that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Bytes to skip before it: one empty line (RFC 9112 §2.2).
    pub skip: usize,
    /// Its length in bytes, the closing empty line included.
    pub len: usize,
    /// The positions of its fields, counted from its first byte.
    pub fields: Vec<Place>,
    /// Where its body ends.
    pub framing: Framing,
    /// The position of its target, counted from its first byte.
    pub target: (usize, usize),
    /// Whether its version is HTTP/1.0.
    pub is_http10: bool,
    /// Whether the client sends `Expect: 100-continue` in HTTP/1.1.
    pub expects: bool,
}

impl Head {
    /// Whether a body follows it.
    pub fn has_body(&self) -> bool {
        self.framing != Framing::Length(0)
    }
}

/// What the next bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// A complete head that is ready to be handed on.
    Head(Head),
    /// The end of the connection, with or without part of a head.
    End,
    /// A request that is refused.
    Refused(Failure),
}

/// The first byte of a TLS connection: the content type of a handshake record (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// Most fields of a head, more than common clients send; each costs memory in every parser behind the proxy.
pub const MAX_FIELDS: usize = 256;

/// Fields that space is reserved for at first: browsers send 10 to 15.
pub const USUAL_FIELDS: usize = 16;

/// Most bytes of a method: no registered one has more than 17 (IANA). It is kept as long as its exchange.
const MAX_METHOD: usize = 64;

/// Most bytes of a target, whatever `max_header_bytes` is: common parsers, such as `http::Uri`, accept no more.
const MAX_TARGET: usize = 65_534;

/// Parses the head at the start of `bytes`; `None` where it is incomplete.
///
/// `scanned` is how many bytes were searched for the end before: the caller keeps it, so that a head that arrives byte
/// by byte is not searched from its start each time.
///
/// # Errors
/// A [`Failure`] where the head is malformed, or cannot be valid within `max` bytes.
pub fn head(bytes: &[u8], scanned: &mut usize, max: usize) -> Result<Option<Head>, Failure> {
    if bytes == b"\r" {
        return Ok(None);
    }
    let skip = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let rest = bytes.get(skip..).unwrap_or_default();
    if rest.starts_with(b"\r") || rest.starts_with(b"\n") {
        return Err(Failure::Malformed("an empty line before the request"));
    }
    if let Some(&first) = rest.first()
        && !is_token(first)
    {
        // it cannot become a method, so there is no reason to wait for the rest
        return Err(if first == TLS_HANDSHAKE {
            Failure::TlsHello
        } else {
            Failure::Malformed("a first byte that begins no method")
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
    let head = read_whole(rest, skip)?;
    if head.len > max {
        return Err(too_large(rest.get(..max).unwrap_or(rest)));
    }
    Ok(Some(head))
}

/// The parts of a head that was accepted; `text` is exactly the head.
///
/// # Errors
/// The method or the target is malformed after all.
pub fn parts(text: Vec<u8>, head: Head) -> Result<Box<RequestHead>, Failure> {
    let (start, end) = head.target;
    let line = text.get(..start).unwrap_or_default().trim_ascii_end();
    let method = Method::from_bytes(line).map_err(|_| Failure::Malformed("a malformed method"))?;
    let uri = RequestUri::new(text.get(start..end).unwrap_or_default())
        .ok_or(Failure::Malformed("a malformed target"))?;
    let mut headers = Fields::of(text, head.fields);
    let present = Present::of(&headers);
    if present.content_length
        && let Some(shorter) = headers.get(CONTENT_LENGTH).and_then(without_zeros)
    {
        headers.set(CONTENT_LENGTH, shorter);
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
        present,
    }))
}

/// The Origin of a head that is refused, as far as it has arrived: the only field that the response to it depends on.
/// `None` where it has none, or more than one.
pub fn origin(head: &[u8]) -> Option<HeaderValue> {
    let lines = head.split_inclusive(|&byte| byte == b'\n').skip(1);
    let mut found = None;
    for line in lines {
        let Some(line) = line.strip_suffix(b"\r\n").filter(|line| !line.is_empty()) else {
            break;
        };
        let colon = line.iter().position(|&byte| byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        if name.eq_ignore_ascii_case(ORIGIN.as_str().as_bytes())
            && found.replace(value.get(1..)?.trim_ascii()).is_some()
        {
            return None;
        }
    }
    HeaderValue::from_bytes(found?).ok()
}

/// Whether an empty line follows `from`; a bare LF counts, so that it is refused at once.
pub fn ends_somewhere(bytes: &[u8], from: usize) -> bool {
    if bytes.ends_with(b"\r\n\r\n") {
        return true;
    }
    let mut rest = bytes.get(from.saturating_sub(3)..).unwrap_or_default();
    while let Some(line) = find(rest, b'\n') {
        rest = rest.get(line + 1..).unwrap_or_default();
        if matches!(rest, [b'\n', ..] | [b'\r', b'\n', ..]) {
            return true;
        }
    }
    false
}

/// 414 where the request line alone fills the limit, else 431.
fn too_large(bytes: &[u8]) -> Failure {
    if bytes.contains(&b'\n') {
        Failure::HeadTooLarge
    } else {
        Failure::TargetTooLong
    }
}

/// The fields that decide about the message.
#[derive(Default)]
struct Seen {
    host: bool,
    length: Option<u64>,
    chunked: bool,
    expects: bool,
}

/// Parses a head that begins with the first of these bytes and ends within them.
fn read_whole(bytes: &[u8], skip: usize) -> Result<Head, Failure> {
    let mut cursor = Cursor::new(bytes);
    let (http11, target) = request_line(&mut cursor)?;
    let (mut seen, mut fields) = (Seen::default(), Vec::with_capacity(USUAL_FIELDS));
    while let Some(place) = cursor.field(LineEnd::CrLf).map_err(malformed)? {
        if fields.len() == MAX_FIELDS {
            return Err(Failure::HeadTooLarge);
        }
        seen.note(place.name(bytes), place.value(bytes), http11)?;
        fields.push(place);
    }
    if !seen.host && http11 {
        return Err(Failure::Malformed("no Host"));
    }
    let framing = match (seen.chunked, seen.length) {
        (true, Some(_)) => {
            return Err(Failure::Malformed(
                "both Content-Length and Transfer-Encoding",
            ));
        }
        (true, None) => Framing::Chunked,
        (false, length) => Framing::Length(length.unwrap_or(0)),
    };
    Ok(Head {
        skip,
        len: cursor.at(),
        fields,
        framing,
        target,
        is_http10: !http11,
        expects: http11 && seen.expects,
    })
}

fn malformed(fault: Fault) -> Failure {
    Failure::Malformed(match fault {
        Fault::Name | Fault::Partial => "a line that begins with no field name",
        Fault::Colon => "a field name without its colon",
        Fault::Value => "a byte in a value that may not stand there",
    })
}

/// Takes `METHOD SP target SP HTTP/1.x CRLF`; says whether the version is HTTP/1.1, and gives the target's position.
fn request_line(cursor: &mut Cursor<'_>) -> Result<(bool, (usize, usize)), Failure> {
    let method = cursor.take_token();
    if method.is_empty() || method.len() > MAX_METHOD || !cursor.eat(b' ') {
        return Err(Failure::Malformed("a malformed method"));
    }
    let start = cursor.at();
    let target = cursor.take_target();
    let end = cursor.at();
    if target.len() > MAX_TARGET {
        return Err(Failure::TargetTooLong);
    }
    let is_text = target.is_ascii() || str::from_utf8(target).is_ok();
    if !cursor.eat(b' ') || !is_text {
        return Err(Failure::Malformed(
            "a byte in the target that may not stand there",
        ));
    }
    let version = if cursor.eat_whole(b"HTTP/1.1\r\n") {
        b"HTTP/1.1"
    } else {
        let version = cursor.take_while(|byte| byte != b'\r' && byte != b'\n');
        if cursor.eat_line_end(LineEnd::CrLf) != Some(true) {
            return Err(Failure::Malformed("a bare CR or LF in the request line"));
        }
        version
    };
    if method == b"PRI" {
        return Err(Failure::Preface);
    }
    let http11 = is_http11(version)?;
    check_form(method, target)?;
    Ok((http11, (start, end)))
}

impl Seen {
    fn note(&mut self, name: &[u8], value: &[u8], http11: bool) -> Result<(), Failure> {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                if self.host {
                    return Err(Failure::Malformed("more than one Host"));
                }
                if !is_host(value) {
                    return Err(Failure::Malformed("a malformed Host"));
                }
                self.host = true;
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                self.expects |= value.eq_ignore_ascii_case(b"100-continue");
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.length.is_some() {
                    return Err(Failure::Malformed("more than one Content-Length"));
                }
                self.length =
                    Some(decimal(value).ok_or(Failure::Malformed("a malformed Content-Length"))?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked || !http11 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Failure::Malformed("a Transfer-Encoding other than chunked"));
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }
}

/// A number of digits only, few enough that no parser overflows (RFC 9110 §8.6).
pub fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, &byte| {
        byte.is_ascii_digit()
            .then(|| sum * 10 + u64::from(byte - b'0'))
    })
}

/// A number without leading zeros, which some parsers take for octal; `None` where it has none.
pub fn without_zeros(number: &[u8]) -> Option<Vec<u8>> {
    let zeros = number.iter().take_while(|&&byte| byte == b'0').count();
    let start = zeros.min(number.len().saturating_sub(1));
    (start > 0).then(|| number.get(start..).unwrap_or_default().to_vec())
}

/// The path of a valid target, without its query; `/` where an absolute-form has none (RFC 9110 §4.2.3).
pub fn path(target: &[u8]) -> &[u8] {
    let from_path = match target {
        [b'/', ..] => target,
        _ => strip_scheme(target).map_or(target, |rest| {
            let end = rest.iter().position(|&byte| matches!(byte, b'/' | b'?'));
            rest.get(end.unwrap_or(rest.len())..).unwrap_or_default()
        }),
    };
    let end = find(from_path, b'?').unwrap_or(from_path.len());
    match from_path.get(..end) {
        None | Some([]) => b"/",
        Some(path) => path,
    }
}

/// Whether the version is HTTP/1.1; otherwise HTTP/1.0.
fn is_http11(version: &[u8]) -> Result<bool, Failure> {
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Failure::VersionNotSupported)
        }
        _ => Err(Failure::Malformed("a malformed version")),
    }
}

/// Checks a target that another parser took out of its head, byte by byte.
///
/// # Errors
/// The failure of a head with this target.
pub fn check_target(method: &[u8], target: &[u8]) -> Result<(), Failure> {
    if method.len() > MAX_METHOD {
        return Err(Failure::Malformed("a malformed method"));
    }
    if target.len() > MAX_TARGET {
        return Err(Failure::TargetTooLong);
    }
    if target_len(target) < target.len() {
        return Err(Failure::Malformed(
            "a byte in the target that may not stand there",
        ));
    }
    check_form(method, target)
}

/// Checks the form of a target (RFC 9112 §3.2): origin-form, asterisk-form or absolute-form; the authority-form belongs
/// to CONNECT.
fn check_form(method: &[u8], target: &[u8]) -> Result<(), Failure> {
    match target {
        _ if method == b"CONNECT" => Err(Failure::MethodNotAllowed),
        [b'/', ..] => Ok(()),
        b"*" if method == b"OPTIONS" => Ok(()),
        _ => {
            let authority =
                strip_scheme(target).ok_or(Failure::Malformed("a target of no known form"))?;
            let end = authority
                .iter()
                .position(|&byte| byte == b'/' || byte == b'?')
                .unwrap_or(authority.len());
            let authority = authority.get(..end).unwrap_or_default();
            // a Host may contain `%`, but the parsers behind the proxy refuse it in the authority of a target
            if is_host(authority) && !authority.contains(&b'%') {
                Ok(())
            } else {
                Err(Failure::Malformed("a malformed authority"))
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
    let (host, port) = value.split_at(port_at(value));
    is_port(port)
        && match host {
            [b'[', literal @ .., b']'] => {
                str::from_utf8(literal).is_ok_and(|literal| literal.parse::<Ipv6Addr>().is_ok())
            }
            _ => is_name(host),
        }
}

/// A name of at least one label, none of them empty; it may end with a dot. The allowed bytes are those of RFC 3986
/// §3.2.2.
fn is_name(name: &[u8]) -> bool {
    const NAME: ByteSet = ByteSet::alphanumeric_and(b"-._~%!$&'()*+;=");
    let mut before = b'.';
    let mut fits = |byte: u8| {
        let fits = NAME.has(byte) && !(byte == b'.' && before == b'.');
        before = byte;
        fits
    };
    !name.is_empty() && name.iter().all(|&byte| fits(byte))
}

/// Nothing, a colon alone, or a colon and a port.
fn is_port(rest: &[u8]) -> bool {
    match rest {
        [] | [b':'] => true,
        [b':', port @ ..] => port.len() <= 5 && decimal(port).is_some_and(|port| port <= 65_535),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
