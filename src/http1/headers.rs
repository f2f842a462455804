//! Which fields travel on, which stay behind, and which are written anew.
//!
//! Pure. Requests are written to the upstream straight from the client's fields, in their order; nothing is removed
//! from a map on the way, for removal would reorder it.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::{http1::request::RequestHead, route::Edits};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Hop-by-hop by themselves (RFC 9110 §7.6.1), in one direction or both.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Which of the fields that matter to a proxy a request has: one pass over the names instead of a look-up for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is the presence of one field"
)]
pub struct Present {
    /// Connection.
    pub connection: bool,
    /// Content-Length.
    pub content_length: bool,
    /// Expect.
    pub expect: bool,
    /// TE.
    pub te: bool,
    /// Trailer.
    pub trailer: bool,
    /// Transfer-Encoding.
    pub transfer_encoding: bool,
    /// Upgrade.
    pub upgrade: bool,
    /// X-Forwarded-For.
    pub forwarded_for: bool,
    /// X-Forwarded-Host.
    pub forwarded_host: bool,
    /// X-Forwarded-Proto.
    pub forwarded_proto: bool,
}

impl Present {
    /// Looks at every name once.
    pub fn of(headers: &HeaderMap) -> Present {
        let mut present = Present::default();
        for name in headers.keys() {
            let flag = match name.as_str() {
                "connection" => &mut present.connection,
                "content-length" => &mut present.content_length,
                "expect" => &mut present.expect,
                "te" => &mut present.te,
                "trailer" => &mut present.trailer,
                "transfer-encoding" => &mut present.transfer_encoding,
                "upgrade" => &mut present.upgrade,
                "x-forwarded-for" => &mut present.forwarded_for,
                "x-forwarded-host" => &mut present.forwarded_host,
                "x-forwarded-proto" => &mut present.forwarded_proto,
                _ => continue,
            };
            *flag = true;
        }
        present
    }
}

/// What a message's Connection fields say of the others.
#[derive(Debug, Clone, Copy)]
pub struct Hops<'a> {
    headers: &'a HeaderMap,
    /// Connection lists a name that is not hop-by-hop by itself.
    nominates: bool,
}

impl<'a> Hops<'a> {
    /// Reads the Connection fields.
    pub fn of(headers: &'a HeaderMap) -> Hops<'a> {
        let nominates = connection_options(headers).any(nominates);
        Hops { headers, nominates }
    }

    /// Whether a field ends its journey here.
    pub fn stays_behind(&self, name: &HeaderName) -> bool {
        let name = name.as_str();
        is_hop_by_hop(name) || (self.nominates && self.is_nominated(name))
    }

    fn is_nominated(&self, name: &str) -> bool {
        !is_end_to_end(name)
            && connection_options(self.headers).any(|option| option.eq_ignore_ascii_case(name))
    }
}

/// Whether a connection option is the name of a field that is not hop-by-hop by itself.
pub fn nominates(option: &str) -> bool {
    !option.eq_ignore_ascii_case("close")
        && !HOP_BY_HOP
            .iter()
            .any(|name| option.eq_ignore_ascii_case(name))
}

/// Whether a field of this (lower-case) name is hop-by-hop by itself.
pub fn is_hop_by_hop(name: &str) -> bool {
    match name.len() {
        2 | 7 | 10 | 16 | 17 | 18 | 19 => HOP_BY_HOP.contains(&name),
        _ => false,
    }
}

/// What Connection may not take away: a client that lists these would steal them from the hops behind us.
fn is_end_to_end(name: &str) -> bool {
    name.starts_with("content-")
        || name.starts_with("x-forwarded-")
        || matches!(
            name,
            "host"
                | "authorization"
                | "cookie"
                | "cache-control"
                | "expect"
                | "date"
                | "set-cookie"
                | "location"
        )
}

/// The options of all Connection fields.
pub fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let fields = headers.get_all(header::CONNECTION).iter();
    fields
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|option| !option.is_empty())
}

/// The names that Connection lists: fields of these names end here too where they stand in a trailer section (RFC 9110
/// §7.6.1).
pub fn nominated(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    connection_options(headers)
        .filter(|option| nominates(option))
        .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok())
}

/// Whether a request asks to become a WebSocket (RFC 6455 §4.1); every other upgrade is dropped, `h2c` above all.
pub fn wants_websocket(parts: &RequestHead) -> bool {
    parts.version == http::Version::HTTP_11
        && parts.method == http::Method::GET
        && is_websocket(&parts.headers)
}

/// Whether Upgrade is `websocket`, and Connection means it.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    let mut upgrades = headers.get_all(header::UPGRADE).iter();
    let upgrade = upgrades
        .next()
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    upgrade
        && upgrades.next().is_none()
        && connection_options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"))
}

/// Whether the sender takes trailers (`TE: trailers`, RFC 9110 §10.1.4).
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    let fields = headers
        .get_all(header::TE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    fields
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// Whether a field may stand in a trailer section: none that frames, routes, authenticates, modifies the request, controls
/// the response or describes the content (RFC 9110 §6.5.1). What a CGI-like server would read as such a name may not either.
pub fn may_trail(name: &HeaderName) -> bool {
    let name = name.as_str();
    let may = if name.bytes().all(is_plain) {
        !is_control(name)
    } else {
        !is_control(&plain(name))
    };
    may && !is_twin(name)
}

/// Fields that belong to the head alone; the name is in lower case.
fn is_control(name: &str) -> bool {
    const FAMILIES: [&str; 6] = [
        "content-",
        "access-control-",
        "accept",
        "if-",
        "proxy-",
        "sec-",
    ];
    is_hop_by_hop(name)
        || is_forwarding(name)
        || is_reserved(name)
        || name.ends_with("cache-control")
        || FAMILIES.iter().any(|family| name.starts_with(family))
        || matches!(
            name,
            "host"
                | "age"
                | "authorization"
                | "cookie"
                | "cookie2"
                | "date"
                | "expect"
                | "expires"
                | "from"
                | "location"
                | "max-forwards"
                | "origin"
                | "pragma"
                | "range"
                | "referer"
                | "retry-after"
                | "set-cookie"
                | "set-cookie2"
                | "user-agent"
                | "vary"
                | "via"
                | "warning"
                | "www-authenticate"
        )
}

/// A byte of a (lower-case) name that every reader takes for itself.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

/// A name as a CGI-like server reads it: what is no letter or digit is a `-` to it.
fn plain(name: &str) -> String {
    let read = |byte: u8| {
        if is_plain(byte) {
            char::from(byte)
        } else {
            '-'
        }
    };
    name.bytes().map(read).collect()
}

/// Reads a trailer section, its closing empty line included; what may not stand there is left out, and so are the
/// `withheld` names. `None` where it is malformed.
pub fn read_trailers(section: &[u8], withheld: &[HeaderName]) -> Option<HeaderMap> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(section, &mut fields)
    else {
        return None;
    };
    let mut trailers = HeaderMap::new();
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let value = HeaderValue::from_bytes(field.value).ok()?;
        if passes_behind(&name, withheld) {
            trailers.append(name, value);
        }
    }
    Some(trailers)
}

/// Whether a field may stand in a trailer section, and neither it nor its twin is withheld: what the operator sets or
/// removes (a set field is not added there, it stands in the head), and what Connection lists.
pub fn passes_behind(name: &HeaderName, withheld: &[HeaderName]) -> bool {
    let is_withheld = |other: &HeaderName| reads_as(name.as_str(), other.as_str());
    may_trail(name) && !withheld.iter().any(is_withheld)
}

/// Whether a (lower-case) name tells of the hops before us.
pub fn is_forwarding(name: &str) -> bool {
    name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-")
}

/// Names with a `-` that another name could be taken for; the others have no twins.
const TWINNED: [&str; 7] = [
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "transfer-encoding",
    "x-real-ip",
];

/// Whether a (lower-case) name would be taken for a hop-by-hop or forwarding one by a CGI-like server (WSGI, PHP, Rack),
/// to which every byte that is no letter or digit is the same: `x_forwarded_for`, `transfer.encoding`.
///
/// No name is scanned unless its length and its first letter are those of a twin.
pub fn is_twin(name: &str) -> bool {
    const PREFIX: &str = "x-forwarded-";
    let (bytes, is_any) = (name.as_bytes(), |twinned: &[&str]| {
        twinned
            .iter()
            .any(|other| *other != name && reads_as(name, other))
    });
    match (bytes.first(), name.len()) {
        (Some(b'x'), 9) => is_any(&TWINNED),
        (Some(b'x'), len) if len >= PREFIX.len() => {
            name.get(..PREFIX.len())
                .is_some_and(|prefix| reads_as(prefix, PREFIX))
                && !bytes.iter().copied().all(is_plain)
        }
        (Some(b'c'), 14) | (Some(b'k'), 10) | (Some(b'p'), 16 | 18 | 19) | (Some(b't'), 17) => {
            is_any(&TWINNED)
        }
        _ => false,
    }
}

/// Whether two (lower-case) names are one to a reader that takes every byte that is no letter or digit for the same.
fn reads_as(name: &str, other: &str) -> bool {
    name.len() == other.len()
        && name
            .bytes()
            .zip(other.bytes())
            .all(|(a, b)| a == b || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric()))
}

/// Whom a client's certificate names, for the upstream. No client can set it, on whatever listener, nor a name that reads
/// like it.
const CERTIFICATE_SUBJECT: &str = "x-client-cert-subject";

/// Whether a (lower-case) name is, or reads as, one that the proxy alone sets.
fn is_reserved(name: &str) -> bool {
    name.len() == CERTIFICATE_SUBJECT.len() && reads_as(name, CERTIFICATE_SUBJECT)
}

/// What a request is told of where it came from.
#[derive(Debug, Clone, Copy)]
pub struct Sender<'a> {
    /// The client's address; `None` on a unix socket.
    pub client: Option<IpAddr>,
    /// Whether what it says of earlier hops is believed.
    pub trusted: bool,
    /// Whether it came by TLS.
    pub is_secured: bool,
    /// Whom its certificate names, where it was asked for one; printable ASCII.
    pub subject: Option<&'a str>,
}

/// Appends the fields that go to the target, in the client's order, with Host and the forwarding fields as they should
/// be; framing and the closing empty line are the caller's.
///
/// `host` is what the target reads as Host, `authority` what the client asked for. What the operator's `edits` set or
/// remove is out of the client's reach: its Connection field cannot take it away, nor a field of its own replace it, be it
/// one that only reads like it (`X_User` where `X-User` is set).
pub fn write_request(
    out: &mut Vec<u8>,
    headers: &HeaderMap,
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
    line(out, b"host", host);
    for (name, value) in headers {
        let text = name.as_str();
        if name == header::HOST || hops.stays_behind(name) || is_twin(text) || is_reserved(text) {
            continue;
        }
        if is_edited && edits.names().any(|other| reads_as(text, other.as_str())) {
            continue;
        }
        if is_forwarding(text) && (!sender.trusted || text == "x-forwarded-for") {
            continue;
        }
        line(out, text.as_bytes(), value.as_bytes());
    }
    if !edits.touches(&FORWARDED_FOR) {
        forwarded_for(out, headers, present, sender);
    }
    if !(authority.is_empty()
        || (sender.trusted && present.forwarded_host)
        || edits.touches(&FORWARDED_HOST))
    {
        line(out, b"x-forwarded-host", authority);
    }
    if !((sender.trusted && present.forwarded_proto) || edits.touches(&FORWARDED_PROTO)) {
        let proto: &[u8] = if sender.is_secured { b"https" } else { b"http" };
        line(out, b"x-forwarded-proto", proto);
    }
    if let Some(subject) = sender.subject
        && !edits.touches(&HeaderName::from_static(CERTIFICATE_SUBJECT))
    {
        line(out, CERTIFICATE_SUBJECT.as_bytes(), subject.as_bytes());
    }
    for (name, value) in edits.set.iter().filter(|(name, _)| name != header::HOST) {
        line(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// Whether X-Forwarded-Proto says that the client came by https; of several hops the first counts, which saw the client.
pub fn says_https(headers: &HeaderMap) -> bool {
    let first = headers
        .get(&FORWARDED_PROTO)
        .and_then(|proto| proto.as_bytes().split(|byte| *byte == b',').next());
    first.is_some_and(|proto| proto.trim_ascii().eq_ignore_ascii_case(b"https"))
}

fn forwarded_for(out: &mut Vec<u8>, headers: &HeaderMap, present: &Present, sender: Sender<'_>) {
    let is_kept = sender.trusted && present.forwarded_for;
    if !is_kept && sender.client.is_none() {
        return;
    }
    out.extend_from_slice(b"x-forwarded-for: ");
    let start = out.len();
    if is_kept {
        for value in headers
            .get_all("x-forwarded-for")
            .iter()
            .filter(|value| !value.is_empty())
        {
            separate(out, start);
            out.extend_from_slice(value.as_bytes());
        }
    }
    if let Some(client) = sender.client {
        separate(out, start);
        push_address(out, client.to_canonical());
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends an address; IPv4 by hand, for the formatter costs as much as all other fields together.
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

/// Appends one field line.
pub fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends the fields that are for the next hop alone: `TE` and `Upgrade`, each with its option in `Connection` (RFC 9110
/// §7.6.1, §7.8, §10.1.4).
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

/// The names that a Trailer field announces and that pass, joined anew; `None` where none is left.
pub fn announced_trailers(headers: &HeaderMap, withheld: &[HeaderName]) -> Option<HeaderValue> {
    let mut names = Vec::new();
    for value in headers.get_all(header::TRAILER) {
        for name in value.to_str().unwrap_or_default().split(',') {
            if HeaderName::from_bytes(name.trim().as_bytes())
                .is_ok_and(|name| passes_behind(&name, withheld))
            {
                separate(&mut names, 0);
                names.extend_from_slice(name.trim().as_bytes());
            }
        }
    }
    if names.is_empty() {
        None
    } else {
        HeaderValue::from_bytes(&names).ok()
    }
}

/// Takes the names out of an answer's Trailer field that do not pass.
pub fn announce(headers: &mut HeaderMap, withheld: &[HeaderName]) {
    if withheld.is_empty() || !headers.contains_key(header::TRAILER) {
        return;
    }
    match announced_trailers(headers, withheld) {
        Some(names) => headers.insert(header::TRAILER, names),
        None => headers.remove(header::TRAILER),
    };
}

#[cfg(test)]
mod tests;
