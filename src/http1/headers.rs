//! Decides which fields are passed on, which are dropped, and which are written anew.
//!
//! Pure. Requests are written to the upstream straight from the client's fields, in their order. Names are in lower
//! case here.

use std::net::IpAddr;

use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER, UPGRADE};

use crate::{
    fields::{Fields, line, members},
    http1::{
        cursor::{Cursor, LineEnd, is_token},
        request::{Present, RequestHead},
    },
    route::Edits,
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Always hop-by-hop (RFC 9110 §7.6.1), in one direction or both.
const HOP_BY_HOP: [&[u8]; 9] = [
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
];

/// Most fields of a trailer section; one with more is malformed.
const MAX_TRAILERS: usize = 64;

/// The Connection fields of a message.
#[derive(Debug, Clone, Copy)]
pub struct Hops<'a> {
    headers: &'a Fields,
    /// Connection lists a name that is not always hop-by-hop.
    nominates: bool,
}

impl<'a> Hops<'a> {
    /// Reads the Connection fields.
    pub fn of(headers: &'a Fields) -> Hops<'a> {
        let nominates = connection_options(headers).any(nominates);
        Hops { headers, nominates }
    }

    /// Whether a field is dropped because it is for this hop alone.
    pub fn stays_behind(&self, name: &[u8]) -> bool {
        is_hop_by_hop(name) || (self.nominates && self.is_nominated(name))
    }

    fn is_nominated(&self, name: &[u8]) -> bool {
        is_nominable(name)
            && connection_options(self.headers).any(|option| option.eq_ignore_ascii_case(name))
    }
}

/// Whether a connection option is the name of a field that is not always hop-by-hop.
pub fn nominates(option: &[u8]) -> bool {
    !option.eq_ignore_ascii_case(b"close")
        && !HOP_BY_HOP
            .iter()
            .any(|name| option.eq_ignore_ascii_case(name))
}

/// Whether a field of this name is always hop-by-hop.
pub fn is_hop_by_hop(name: &[u8]) -> bool {
    match name.len() {
        2 | 7 | 10 | 16 | 17 | 18 | 19 => HOP_BY_HOP.contains(&name),
        _ => false,
    }
}

/// Whether Connection may remove a field of this name: not one that the other side, or a later hop, depends on.
pub fn is_nominable(name: &[u8]) -> bool {
    let is_kept = name.starts_with(b"content-")
        || name.starts_with(b"x-forwarded-")
        || matches!(
            name,
            b"host"
                | b"authorization"
                | b"cookie"
                | b"cache-control"
                | b"expect"
                | b"date"
                | b"set-cookie"
                | b"location"
                | b"vary"
        );
    !is_kept
}

/// The options of all Connection fields.
pub fn connection_options(headers: &Fields) -> impl Iterator<Item = &[u8]> {
    members(headers.get_all(CONNECTION))
}

/// The names that Connection lists: fields of these names are dropped from trailer sections too (RFC 9110 §7.6.1).
pub fn nominated<'a>(
    connection: impl Iterator<Item = &'a [u8]>,
) -> impl Iterator<Item = HeaderName> {
    members(connection)
        .filter(|option| nominates(option))
        .filter_map(|option| HeaderName::from_bytes(option).ok())
}

/// Whether a request asks for a WebSocket (RFC 6455 §4.1); every other upgrade is dropped, `h2c` above all.
pub fn wants_websocket(parts: &RequestHead) -> bool {
    parts.version == http::Version::HTTP_11
        && parts.method == http::Method::GET
        && is_websocket(&parts.headers)
}

/// Whether Upgrade is `websocket`, and Connection lists it.
pub fn is_websocket(headers: &Fields) -> bool {
    let upgrade = headers.only(UPGRADE);
    upgrade.is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"))
        && connection_options(headers).any(|option| option.eq_ignore_ascii_case(b"upgrade"))
}

/// Whether the sender accepts trailers (`TE: trailers`, RFC 9110 §10.1.4).
pub fn takes_trailers(headers: &Fields) -> bool {
    members(headers.get_all(TE)).any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
}

/// Whether a field is allowed in a trailer section: none that frames, routes, authenticates, modifies the request,
/// controls the response or describes the content (RFC 9110 §6.5.1), and none that a CGI-like server would read as such
/// a name.
pub fn may_trail(name: &[u8]) -> bool {
    let may = if name.iter().all(|&byte| is_plain(byte)) {
        !is_control(name)
    } else {
        !is_control(&plain(name))
    };
    may && !is_twin(name)
}

/// Whether a field is allowed in the head alone.
fn is_control(name: &[u8]) -> bool {
    const FAMILIES: [&[u8]; 6] = [
        b"content-",
        b"access-control-",
        b"accept",
        b"if-",
        b"proxy-",
        b"sec-",
    ];
    is_hop_by_hop(name)
        || is_forwarding(name)
        || is_reserved(name)
        || name.ends_with(b"cache-control")
        || FAMILIES.iter().any(|family| name.starts_with(family))
        || matches!(
            name,
            b"host"
                | b"age"
                | b"authorization"
                | b"cookie"
                | b"cookie2"
                | b"date"
                | b"expect"
                | b"expires"
                | b"from"
                | b"location"
                | b"max-forwards"
                | b"origin"
                | b"pragma"
                | b"range"
                | b"referer"
                | b"retry-after"
                | b"set-cookie"
                | b"set-cookie2"
                | b"user-agent"
                | b"vary"
                | b"via"
                | b"warning"
                | b"www-authenticate"
        )
}

/// Whether every server reads a byte of a name as itself.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

/// A name as a CGI-like server reads it: other bytes than letters and digits become a `-`.
fn plain(name: &[u8]) -> Vec<u8> {
    let read = |&byte: &u8| if is_plain(byte) { byte } else { b'-' };
    name.iter().map(read).collect()
}

/// Parses a trailer section, its closing empty line included; fields that are not allowed there are dropped, and so are
/// the `withheld` names. `None` where the section is malformed.
pub fn read_trailers(section: &[u8], withheld: &[HeaderName]) -> Option<HeaderMap> {
    let (mut cursor, mut trailers) = (Cursor::new(section), HeaderMap::new());
    while let Some(place) = cursor.field(LineEnd::CrLf).ok()? {
        if trailers.len() == MAX_TRAILERS {
            return None;
        }
        let name = HeaderName::from_bytes(place.name(section)).ok()?;
        let value = HeaderValue::from_bytes(place.value(section)).ok()?;
        if passes_behind(name.as_str().as_bytes(), withheld) {
            trailers.append(name, value);
        }
    }
    Some(trailers)
}

/// Whether a field is allowed in a trailer section, and neither it nor a twin of it is withheld. Withheld are the names
/// that the operator's edits set or remove (a set field is in the head) and those that Connection lists.
pub fn passes_behind(name: &[u8], withheld: &[HeaderName]) -> bool {
    let is_withheld = |other: &HeaderName| reads_as(name, other.as_ref());
    may_trail(name) && !withheld.iter().any(is_withheld)
}

/// The trailers that may be passed on.
pub fn passed_trailers(trailers: &HeaderMap, withheld: &[HeaderName]) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for (name, value) in trailers {
        if passes_behind(name.as_str().as_bytes(), withheld) {
            passed.append(name, value.clone());
        }
    }
    passed
}

/// Whether a name belongs to the fields about earlier hops.
pub fn is_forwarding(name: &[u8]) -> bool {
    name == b"forwarded" || name == b"x-real-ip" || name.starts_with(b"x-forwarded-")
}

/// Names with a `-` that another name could be read as; names without one have no twins.
const TWINNED: [&[u8]; 7] = [
    b"content-length",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"transfer-encoding",
    b"x-real-ip",
];

/// Whether a CGI-like server (WSGI, PHP, Rack), to which all bytes except letters and digits are the same, would read a
/// name as a hop-by-hop or forwarding one: `x_forwarded_for`, `transfer.encoding`.
///
/// A name is compared only if its length and its first letter are those of a twin.
pub fn is_twin(name: &[u8]) -> bool {
    const PREFIX: &[u8] = b"x-forwarded-";
    let is_any = |twinned: &[&[u8]]| {
        twinned
            .iter()
            .any(|other| *other != name && reads_as(name, other))
    };
    match (name.first(), name.len()) {
        (Some(b'x'), 9) => is_any(&TWINNED),
        (Some(b'x'), len) if len >= PREFIX.len() => {
            name.get(..PREFIX.len())
                .is_some_and(|prefix| reads_as(prefix, PREFIX))
                && !name.iter().copied().all(is_plain)
        }
        (Some(b'c'), 14) | (Some(b'k'), 10) | (Some(b'p'), 16 | 18 | 19) | (Some(b't'), 17) => {
            is_any(&TWINNED)
        }
        _ => false,
    }
}

/// Whether two names are equal to a server to which all bytes except letters and digits are the same.
fn reads_as(name: &[u8], other: &[u8]) -> bool {
    name.len() == other.len()
        && name
            .iter()
            .zip(other)
            .all(|(a, b)| a == b || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric()))
}

/// The subject of the client's certificate, for the upstream. A client's own field of this name, or of one that reads
/// like it, is dropped on every listener.
const CERTIFICATE_SUBJECT: &str = "x-client-cert-subject";

/// Whether a (lower-case) name is, or reads as, one that the proxy alone sets.
fn is_reserved(name: &[u8]) -> bool {
    let reserved = CERTIFICATE_SUBJECT.as_bytes();
    name.len() == reserved.len() && reads_as(name, reserved)
}

/// Where a request came from, for the fields that say so.
#[derive(Debug, Clone, Copy)]
pub struct Sender<'a> {
    /// The client's address; `None` on a unix socket.
    pub client: Option<IpAddr>,
    /// Whether its fields about earlier hops are believed.
    pub trusted: bool,
    /// Whether it came over TLS.
    pub is_secured: bool,
    /// The subject of its certificate, where it was asked for one; printable ASCII.
    pub subject: Option<&'a str>,
}

/// Appends the fields that go to the target, in the client's order, with Host and the forwarding fields of the proxy;
/// the caller appends framing and the closing empty line.
///
/// `host` is the Host for the target, `authority` the one that the client asked for. A client can neither remove nor
/// replace what the operator's `edits` set or remove: neither by Connection nor by a field of that name, or of one that
/// reads like it (`X_User` where `X-User` is set).
pub fn write_request(
    out: &mut Vec<u8>,
    headers: &Fields,
    present: &Present,
    edits: &Edits,
    host: &[u8],
    authority: &[u8],
    sender: Sender<'_>,
) {
    let hops = if present.connection {
        Hops::of(headers)
    } else {
        Hops {
            headers,
            nominates: false,
        }
    };
    let is_edited = edits.names().next().is_some();
    whole_line(out, b"host: ", host);
    headers.write_where(out, |name, _| {
        let stays =
            name == b"host" || hops.stays_behind(name) || is_twin(name) || is_reserved(name);
        let is_taken = is_edited && edits.names().any(|other| reads_as(name, other.as_ref()));
        let is_ours = is_forwarding(name) && (!sender.trusted || name == b"x-forwarded-for");
        !(stays || is_taken || is_ours)
    });
    let touches = |name: &HeaderName| is_edited && edits.touches(name);
    if !touches(&FORWARDED_FOR) {
        forwarded_for(out, headers, present, sender);
    }
    if !(authority.is_empty()
        || (sender.trusted && present.forwarded_host)
        || touches(&FORWARDED_HOST))
    {
        whole_line(out, b"x-forwarded-host: ", authority);
    }
    if !((sender.trusted && present.forwarded_proto) || touches(&FORWARDED_PROTO)) {
        if sender.is_secured {
            out.extend_from_slice(b"x-forwarded-proto: https\r\n");
        } else {
            out.extend_from_slice(b"x-forwarded-proto: http\r\n");
        }
    }
    if let Some(subject) = sender.subject
        && !touches(&HeaderName::from_static(CERTIFICATE_SUBJECT))
    {
        line(out, CERTIFICATE_SUBJECT.as_bytes(), subject.as_bytes());
    }
    for (name, value) in edits.set.iter().filter(|(name, _)| name != HOST) {
        line(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// Whether X-Forwarded-Proto says that the client used https; of several values the first counts, because it is of the
/// hop that saw the client.
pub fn says_https(headers: &Fields) -> bool {
    let first = headers
        .get(FORWARDED_PROTO)
        .and_then(|proto| proto.split(|byte| *byte == b',').next());
    first.is_some_and(|proto| proto.trim_ascii().eq_ignore_ascii_case(b"https"))
}

/// Appends a line of which the beginning is constant, and so costs no call.
fn whole_line<const N: usize>(out: &mut Vec<u8>, beginning: &[u8; N], value: &[u8]) {
    out.reserve(N + value.len() + 2);
    out.extend_from_slice(beginning);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn forwarded_for(out: &mut Vec<u8>, headers: &Fields, present: &Present, sender: Sender<'_>) {
    let is_kept = sender.trusted && present.forwarded_for;
    if !is_kept && sender.client.is_none() {
        return;
    }
    out.extend_from_slice(b"x-forwarded-for: ");
    let start = out.len();
    if is_kept {
        for value in headers
            .get_all(FORWARDED_FOR)
            .filter(|value| !value.is_empty())
        {
            separate(out, start);
            out.extend_from_slice(value);
        }
    }
    if let Some(client) = sender.client {
        separate(out, start);
        push_address(out, client.to_canonical());
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends an address; IPv4 without the formatter, which costs as much as all other fields together.
fn push_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for (index, octet) in address.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                if octet >= 100 {
                    out.push(b'0' + octet / 100);
                }
                if octet >= 10 {
                    out.push(b'0' + octet / 10 % 10);
                }
                out.push(b'0' + octet % 10);
            }
        }
        IpAddr::V6(address) => out.extend_from_slice(address.to_string().as_bytes()),
    }
}

fn separate(out: &mut Vec<u8>, start: usize) {
    if out.len() > start {
        out.extend_from_slice(b", ");
    }
}

/// Appends the fields that are for the next hop alone: `TE` and `Upgrade`, each with its option in `Connection` (RFC
/// 9110 §7.6.1, §7.8, §10.1.4).
pub fn hop_fields(out: &mut Vec<u8>, takes_trailers: bool, is_websocket: bool) {
    let text: &[u8] = match (takes_trailers, is_websocket) {
        (false, false) => b"",
        (true, false) => b"te: trailers\r\nconnection: te\r\n",
        (false, true) => b"connection: upgrade\r\nupgrade: websocket\r\n",
        (true, true) => b"te: trailers\r\nconnection: te, upgrade\r\nupgrade: websocket\r\n",
    };
    out.extend_from_slice(text);
}

/// Appends a number.
pub fn push_decimal(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let (mut at, mut left) = (digits.len(), number);
    for kind in digits.iter_mut().rev() {
        *kind = b'0' + (left % 10) as u8;
        at -= 1;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

/// The names in Trailer fields whose fields are passed on, joined anew; `None` where none is left.
pub fn joined_trailers<'a>(
    announced: impl Iterator<Item = &'a [u8]>,
    withheld: &[HeaderName],
) -> Option<Vec<u8>> {
    let mut names = Vec::new();
    for name in members(announced) {
        let is_token = name.iter().all(|&byte| is_token(byte));
        if is_token && passes_behind(&name.to_ascii_lowercase(), withheld) {
            separate(&mut names, 0);
            names.extend_from_slice(name);
        }
    }
    (!names.is_empty()).then_some(names)
}

/// Removes the names from an answer's Trailer field whose fields are not passed on.
pub fn announce(headers: &mut Fields, withheld: &[HeaderName]) {
    if withheld.is_empty() || !headers.contains(TRAILER) {
        return;
    }
    match joined_trailers(headers.get_all(TRAILER), withheld) {
        Some(names) => headers.set(TRAILER, names),
        None => headers.remove(TRAILER),
    }
}

#[cfg(test)]
mod tests;
