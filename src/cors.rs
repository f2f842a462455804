//! CORS as the Fetch standard asks for it: one judgement for a request, one stamp for its answer.
//!
//! Pure. A policy is built once from the configuration with every field value ready to be sent; no request makes it
//! format anything but an echo of its own words. No answer ever leaves with two `Access-Control-Allow-Origin`.

use std::{fmt::Write as _, net::Ipv6Addr};

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
        Entry, HeaderName, ORIGIN, VARY,
    },
};

use crate::http1::chunked;

/// `cors:` with its defaults filled in, not yet validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `*`, `null`, or `scheme://host[:port]`, where the host may begin with `*.` and the port be `*`. Empty = off.
    /// `*` makes every other entry beside it meaningless.
    pub allowed_origins: Vec<String>,
    /// Tokens, sent as written (methods are case-sensitive); `*` = the method asked for.
    pub allowed_methods: Vec<String>,
    /// Field names; `*` = the names asked for.
    pub allowed_headers: Vec<String>,
    /// Field names; empty = the upstream's own value passes.
    pub exposed_headers: Vec<String>,
    /// Who decides about credentials.
    pub allow_credentials: Credentials,
    /// Seconds, 0 or more; -1 = no field.
    pub max_age: i64,
}

/// Whether a browser may show an answer that it got with cookies or a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// The upstream's `true` passes where an origin of the list matched. A preflight, which no upstream answers, says
    /// nothing, so that a list of origins alone never grants credentials.
    Auto,
    /// `FramingFields` to every origin that matched, in preflights too.
    Yes,
    /// Never said.
    No,
}

/// Something in [`Settings`] that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The key below `cors`.
    pub key: &'static str,
    /// Which entry of a list, from 0.
    pub index: Option<usize>,
    /// What is wrong, to be read after the field's path: lower case, no full stop.
    pub sentence: String,
}

/// A policy that lists at least one origin; where none is listed there is no `Cors` at all and everything passes untouched.
#[derive(Debug, Clone)]
pub struct Cors {
    origins: Origins,
    methods: Allowed,
    headers: Allowed,
    exposed: Option<HeaderValue>,
    credentials: Credentials,
    max_age: Option<HeaderValue>,
}

/// What a policy says of a request.
#[derive(Debug)]
pub enum Verdict {
    /// Answered here: 204, with these fields and no body. Nothing is stamped on it.
    Answer(StatusCode, HeaderMap),
    /// A preflight from an origin that is not allowed: 403 with these fields. Nothing is stamped on it.
    Refused(HeaderMap),
    /// Goes on; stamp this on whatever is answered.
    Grant(Grant),
}

/// What [`Cors::stamp`] needs to remember of the request. Small: it lives as long as the exchange.
#[derive(Debug, Default)]
pub struct Grant {
    /// The request's Origin, where an entry of the policy's list matched it; `None` under `*`. Never a slice of the
    /// request's head, which would stay in memory with it.
    pub origin: Option<HeaderValue>,
}

#[derive(Debug, Clone)]
enum Origins {
    Any,
    Listed(Vec<Pattern>),
}

#[derive(Debug, Clone)]
enum Pattern {
    /// Compared whole, and ready to be sent.
    Exact(HeaderValue),
    Wild(Wild),
}

/// An origin with a wildcard for its labels, its port or both.
#[derive(Debug, Clone)]
struct Wild {
    /// With its `://`.
    scheme: String,
    host: WildHost,
    /// With its colon, empty for the default port; `None` = any port or none.
    port: Option<String>,
}

#[derive(Debug, Clone)]
enum WildHost {
    Exact(String),
    /// One label or more before this suffix, which begins with a dot.
    Below(String),
}

/// The value of Allow-Methods or Allow-Headers.
#[derive(Debug, Clone)]
enum Allowed {
    /// `None` = the list is empty and the field is not sent.
    Listed(Option<HeaderValue>),
    /// What the request asks for.
    Asked,
}

impl Cors {
    /// Builds a policy; `Ok(None)` where no origin is listed, all complaints where something cannot be honoured.
    pub fn new(settings: &Settings) -> Result<Option<Cors>, Vec<Complaint>> {
        let mut complaints = Vec::new();
        let cors = Cors {
            origins: Origins::new(&settings.allowed_origins, &mut complaints),
            methods: Allowed::new(
                "allowed_methods",
                &settings.allowed_methods,
                &mut complaints,
            ),
            headers: Allowed::new(
                "allowed_headers",
                &settings.allowed_headers,
                &mut complaints,
            ),
            exposed: join_tokens(
                "exposed_headers",
                &settings.exposed_headers,
                &mut complaints,
            ),
            credentials: settings.allow_credentials,
            max_age: u64::try_from(settings.max_age).ok().map(HeaderValue::from),
        };
        check_case(&settings.allowed_methods, &mut complaints);
        if matches!(cors.origins, Origins::Any) && cors.credentials == Credentials::Yes {
            let sentence = "cannot be true where allowed_origins has \"*\": list the origins";
            complaints.push(Complaint::new("allow_credentials", None, sentence));
        }
        if settings.max_age < -1 {
            let sentence = format!(
                "must be -1 (no field), 0 or more seconds, got {}",
                settings.max_age
            );
            complaints.push(Complaint::new("max_age", None, sentence));
        }
        if complaints.is_empty() {
            Ok((!settings.allowed_origins.is_empty()).then_some(cors))
        } else {
            Err(complaints)
        }
    }

    /// Judges a request under this policy (SPEC 5.1 to 5.3, 5.5).
    ///
    /// From an origin that is not allowed, a preflight is refused, and any other OPTIONS goes on like a GET would: it
    /// asks nothing of CORS, and the answer comes without a grant, so that the browser keeps it to itself.
    /// Neither the method nor the names asked for are checked: the answer lists ours, and the browser decides.
    pub fn judge(&self, method: &Method, headers: &HeaderMap) -> Verdict {
        let grant = self.grant(headers);
        if *method == Method::OPTIONS && headers.contains_key(ORIGIN) {
            match &grant {
                Some(grant) => {
                    return Verdict::Answer(StatusCode::NO_CONTENT, self.preflight(grant, headers));
                }
                None if headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) => {
                    let fields = HeaderMap::from_iter([(VARY, PREFLIGHT_VARY)]);
                    return Verdict::Refused(fields);
                }
                None => {}
            }
        }
        Verdict::Grant(grant.unwrap_or_default())
    }

    /// Why a preflight was refused: which origin asked, and which ones are allowed. For the log.
    pub fn explain(&self, headers: &HeaderMap) -> String {
        let asked: Vec<_> = headers
            .get_all(ORIGIN)
            .iter()
            .map(|origin| String::from_utf8_lossy(origin.as_bytes()))
            .collect();
        let allowed: Vec<String> = match &self.origins {
            Origins::Any => vec!["*".to_owned()],
            Origins::Listed(patterns) => patterns.iter().map(Pattern::shown).collect(),
        };
        format!(
            "origin {} is not among {}",
            asked.join(", "),
            allowed.join(", ")
        )
    }

    /// Removes the upstream's Access-Control fields and sets ours (SPEC 5.3, 5.4).
    ///
    /// Nothing is removed that ours replaces in its place, so that most answers keep the order of their fields.
    pub fn stamp(&self, grant: &Grant, headers: &mut HeaderMap) {
        let allow_origin = self.allow_origin(grant);
        let matched = grant.origin.is_some();
        let credentials_pass =
            self.credentials == Credentials::Auto && matched && says_true(headers);
        let stays = |name: &HeaderName| {
            *name == ACCESS_CONTROL_ALLOW_ORIGIN && allow_origin.is_some()
                || *name == ACCESS_CONTROL_EXPOSE_HEADERS && self.exposed.is_none()
                || *name == ACCESS_CONTROL_ALLOW_CREDENTIALS && credentials_pass
                || !name.as_str().starts_with("access-control-")
        };
        while let Some(foreign) = headers.keys().find(|name| !stays(name)).cloned() {
            headers.remove(foreign);
        }
        if let Some(origin) = allow_origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            if let Some(names) = &self.exposed {
                headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, names.clone());
            }
        }
        if self.credentials == Credentials::Yes && matched {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        if matches!(self.origins, Origins::Listed(_)) {
            vary_by_origin(headers);
        }
    }

    /// `None` where the request has no Origin, or one that is not allowed.
    fn grant(&self, headers: &HeaderMap) -> Option<Grant> {
        let origin =
            only(headers, &ORIGIN).filter(|origin| (1..=MAX_ORIGIN).contains(&origin.len()))?;
        let Origins::Listed(patterns) = &self.origins else {
            return Some(Grant::default());
        };
        let origin = patterns.iter().find_map(|pattern| pattern.echo(origin))?;
        Some(Grant {
            origin: Some(origin),
        })
    }

    fn allow_origin(&self, grant: &Grant) -> Option<HeaderValue> {
        match &self.origins {
            Origins::Any => Some(ANY),
            Origins::Listed(_) => grant.origin.clone(),
        }
    }

    /// The fields of the 204 for an origin that is allowed.
    fn preflight(&self, grant: &Grant, headers: &HeaderMap) -> HeaderMap {
        let methods = match &self.methods {
            Allowed::Listed(names) => names.clone(),
            Allowed::Asked => asked_method(headers),
        };
        let names = match &self.headers {
            Allowed::Listed(names) => names.clone(),
            Allowed::Asked => asked_headers(headers),
        };
        let credentials = (self.credentials == Credentials::Yes).then_some(TRUE);
        [
            (ACCESS_CONTROL_ALLOW_ORIGIN, self.allow_origin(grant)),
            (ACCESS_CONTROL_ALLOW_METHODS, methods),
            (ACCESS_CONTROL_ALLOW_HEADERS, names),
            (ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials),
            (ACCESS_CONTROL_MAX_AGE, self.max_age.clone()),
            (VARY, Some(PREFLIGHT_VARY)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

/// Removes every Access-Control field: from an interim answer, which grants nothing.
pub fn remove_grants(headers: &mut HeaderMap) {
    let is_grant = |name: &&HeaderName| name.as_str().starts_with("access-control-");
    while let Some(grant) = headers.keys().find(is_grant).cloned() {
        headers.remove(grant);
    }
}

impl Complaint {
    fn new(key: &'static str, index: Option<usize>, sentence: impl Into<String>) -> Complaint {
        Complaint {
            key,
            index,
            sentence: sentence.into(),
        }
    }
}

impl Origins {
    fn new(written: &[String], complaints: &mut Vec<Complaint>) -> Origins {
        let mut patterns = Vec::new();
        for (index, origin) in written
            .iter()
            .enumerate()
            .filter(|(_, origin)| *origin != "*")
        {
            match parse_origin(origin) {
                Ok(pattern) => patterns.push(pattern),
                Err(sentence) => {
                    complaints.push(Complaint::new("allowed_origins", Some(index), sentence));
                }
            }
        }
        if written.iter().any(|origin| origin == "*") {
            Origins::Any
        } else {
            Origins::Listed(patterns)
        }
    }
}

impl Allowed {
    fn new(key: &'static str, names: &[String], complaints: &mut Vec<Complaint>) -> Allowed {
        let joined = join_tokens(key, names, complaints);
        if names.iter().any(|name| name == "*") {
            Allowed::Asked
        } else {
            Allowed::Listed(joined)
        }
    }
}

impl Pattern {
    /// What to answer to an origin, if it matches. Origins are compared byte by byte: browsers send them normalised
    /// (RFC 6454 §6.2).
    fn echo(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match self {
            Pattern::Exact(value) => (value == origin).then(|| value.clone()),
            Pattern::Wild(wild) => wild
                .matches(origin.to_str().ok()?)
                .then(|| HeaderValue::from_bytes(origin.as_bytes()).ok())?,
        }
    }
}

impl Pattern {
    /// As `allowed_origins` writes it.
    fn shown(&self) -> String {
        match self {
            Pattern::Exact(origin) => String::from_utf8_lossy(origin.as_bytes()).into_owned(),
            Pattern::Wild(wild) => {
                let (star, host) = match &wild.host {
                    WildHost::Exact(host) => ("", host),
                    WildHost::Below(suffix) => ("*", suffix),
                };
                let port = wild.port.as_deref().unwrap_or(":*");
                format!("{}{star}{host}{port}", wild.scheme)
            }
        }
    }
}

impl Wild {
    fn matches(&self, origin: &str) -> bool {
        let Some(authority) = origin.strip_prefix(self.scheme.as_str()) else {
            return false;
        };
        let (host, port) = split_port(authority);
        let host_matches = match &self.host {
            WildHost::Exact(name) => host == name,
            WildHost::Below(suffix) => host.strip_suffix(suffix.as_str()).is_some_and(is_host),
        };
        host_matches
            && match &self.port {
                Some(exact) => port == exact,
                None => {
                    port.is_empty()
                        || port
                            .strip_prefix(':')
                            .is_some_and(|digits| parse_port(digits).is_some())
                }
            }
    }
}

/// Reads an entry of `allowed_origins` other than `*`, and normalises it as browsers do.
fn parse_origin(written: &str) -> Result<Pattern, String> {
    if written == "null" {
        return Ok(Pattern::Exact(HeaderValue::from_static("null")));
    }
    let Some((scheme, rest)) = written.split_once("://") else {
        return Err(format!(
            "must begin with a scheme such as https://, got {written:?}"
        ));
    };
    let scheme = scheme.to_ascii_lowercase();
    if !is_scheme(&scheme) {
        return Err(format!("has a bad scheme, got {written:?}"));
    }
    let end = rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len());
    let (authority, beyond) = rest.split_at_checked(end).unwrap_or((rest, ""));
    if authority.contains('@') {
        // Not repeated: it may be a password.
        return Err("must have no user info".to_owned());
    }
    if !beyond.is_empty() {
        let fault = match beyond {
            "/" => "not end in a slash",
            _ => "have no path, query or fragment",
        };
        return Err(format!("must {fault}, write \"{scheme}://{authority}\""));
    }
    let (host, port) = split_port(authority);
    let read = normal_port(&scheme, port).and_then(|port| Ok((parse_host(host)?, port)));
    let (host, port) = read.map_err(|sentence| format!("{sentence}, got {written:?}"))?;
    Ok(match (host, port) {
        (WildHost::Exact(host), Some(port)) => Pattern::Exact(
            HeaderValue::try_from(format!("{scheme}://{host}{port}"))
                .expect("every part was checked to be ASCII"),
        ),
        (host, port) => Pattern::Wild(Wild {
            scheme: scheme + "://",
            host,
            port,
        }),
    })
}

/// The port as an Origin shows it, colon included: empty where it is the scheme's own; `None` = any.
fn normal_port(scheme: &str, written: &str) -> Result<Option<String>, &'static str> {
    let Some(digits) = written.strip_prefix(':') else {
        return Ok(Some(String::new()));
    };
    if digits == "*" {
        return Ok(None);
    }
    match (parse_port(digits), scheme) {
        (Some(80), "http") | (Some(443), "https") => Ok(Some(String::new())),
        (Some(number), _) => Ok(Some(format!(":{number}"))),
        (None, _) => Err("has a bad port (1 to 65535, or *)"),
    }
}

fn parse_host(written: &str) -> Result<WildHost, &'static str> {
    let lower = written.to_ascii_lowercase();
    if let Some(literal) = lower
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        let address: Ipv6Addr = literal.parse().map_err(|_| "has a bad IPv6 address")?;
        return Ok(WildHost::Exact(format!("[{address}]")));
    }
    match lower.strip_prefix('*') {
        Some("" | ".") => Err("must name a host after *. (or be \"*\" alone for every origin)"),
        Some(suffix) if suffix.strip_prefix('.').is_some_and(is_host) => {
            Ok(WildHost::Below(suffix.to_owned()))
        }
        None if is_host(&lower) => Ok(WildHost::Exact(lower)),
        None if lower.is_empty() => Err("must name a host"),
        None if !lower.is_ascii() => {
            Err("must have its host in ASCII (xn--…), as browsers send it")
        }
        _ if lower.contains('*') => {
            Err("may have a wildcard only as its first label, as in https://*.example.com")
        }
        _ => Err("has a bad host"),
    }
}

/// The values of a list as one field value; `None` for an empty list.
fn join_tokens(
    key: &'static str,
    names: &[String],
    complaints: &mut Vec<Complaint>,
) -> Option<HeaderValue> {
    for (index, name) in names
        .iter()
        .enumerate()
        .filter(|(_, name)| !is_token(name.as_bytes()))
    {
        let sentence = format!("must be letters, digits and !#$%&'*+-.^_`|~ only, got {name:?}");
        complaints.push(Complaint::new(key, Some(index), sentence));
    }
    if names.is_empty() {
        None
    } else {
        HeaderValue::try_from(names.join(", ")).ok()
    }
}

/// Methods are case-sensitive (RFC 9110 §9.1), and no browser sends one of these in lower case.
fn check_case(methods: &[String], complaints: &mut Vec<Complaint>) {
    for (index, method) in methods.iter().enumerate() {
        let upper = method.to_ascii_uppercase();
        if is_token(method.as_bytes()) && upper != *method {
            let sentence = format!("methods are written in capitals: {upper:?}, not {method:?}");
            complaints.push(Complaint::new("allowed_methods", Some(index), sentence));
        }
    }
}

/// The method a preflight asks for, where it is a token.
fn asked_method(headers: &HeaderMap) -> Option<HeaderValue> {
    only(headers, &ACCESS_CONTROL_REQUEST_METHOD)
        .filter(|method| is_token(method.as_bytes()))
        .cloned()
}

/// The names a preflight asks for; `None` where there are none, too many, or one that is no token.
fn asked_headers(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut joined = String::new();
    let mut count = 0;
    for field in headers.get_all(ACCESS_CONTROL_REQUEST_HEADERS) {
        for name in field
            .to_str()
            .ok()?
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            count += 1;
            if !is_token(name.as_bytes())
                || count > MAX_ASKED
                || joined.len() + name.len() + 2 > MAX_ASKED_BYTES
            {
                return None;
            }
            let comma = if joined.is_empty() { "" } else { ", " };
            let _ = write!(joined, "{comma}{name}");
        }
    }
    if joined.is_empty() {
        None
    } else {
        HeaderValue::try_from(joined).ok()
    }
}

/// Merges `Origin` into the answer's Vary, and keeps what is there (RFC 9110 §12.5.5).
fn vary_by_origin(headers: &mut HeaderMap) {
    let origin_is_listed = headers
        .get_all(VARY)
        .iter()
        .flat_map(|field| field.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .any(|name| name == b"*" || name.eq_ignore_ascii_case(b"origin"));
    if origin_is_listed {
        return;
    }
    match headers.entry(VARY) {
        Entry::Vacant(entry) => {
            entry.insert(HeaderValue::from_static("Origin"));
        }
        Entry::Occupied(mut entry) => {
            let value = entry.get_mut();
            let names = value.as_bytes().trim_ascii();
            let merged = if names.is_empty() {
                b"Origin".to_vec()
            } else {
                [names, b", Origin"].concat()
            };
            *value =
                HeaderValue::try_from(merged).expect("a field value and a word are a field value");
        }
    }
}

/// Whether the upstream's Allow-Credentials is there once and exactly `true` (Fetch, CORS check).
fn says_true(headers: &HeaderMap) -> bool {
    only(headers, &ACCESS_CONTROL_ALLOW_CREDENTIALS).is_some_and(|value| value == "true")
}

/// The value of a field that is there exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Parts an authority into host and port, which keeps its colon; an IPv6 literal keeps its brackets.
fn split_port(authority: &str) -> (&str, &str) {
    let name_end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let colon = authority
        .bytes()
        .skip(name_end)
        .position(|byte| byte == b':')
        .map(|colon| name_end + colon);
    colon
        .and_then(|colon| authority.split_at_checked(colon))
        .unwrap_or((authority, ""))
}

/// A port as a browser writes it: 1 to 65535, no sign, no zero in front.
fn parse_port(digits: &str) -> Option<u16> {
    digits
        .parse()
        .ok()
        .filter(|_| matches!(digits.as_bytes(), [b'1'..=b'9', ..]))
}

/// Labels of lower-case letters, digits, `-` and `_`, parted by dots, none of them empty.
fn is_host(name: &str) -> bool {
    name.len() <= MAX_HOST
        && name.split('.').all(|label| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        })
}

/// RFC 3986 §3.1, in lower case.
fn is_scheme(name: &str) -> bool {
    name.len() <= MAX_HOST
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'-' | b'.'))
}

/// RFC 9110 §5.6.2.
fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| chunked::is_token(*byte))
}

/// Bytes of an Origin that is looked at.
const MAX_ORIGIN: usize = 512;
/// Bytes of a host name, as DNS has it.
const MAX_HOST: usize = 253;
/// Names of an Access-Control-Request-Headers that is echoed, and the bytes of the echo.
const MAX_ASKED: usize = 64;
const MAX_ASKED_BYTES: usize = 2048;

const ANY: HeaderValue = HeaderValue::from_static("*");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const PREFLIGHT_VARY: HeaderValue = HeaderValue::from_static(
    "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
);

#[cfg(test)]
mod tests {
    use super::*;

    type Fields<'a> = &'a [(&'a str, &'a str)];

    fn settings(origins: &[&str]) -> Settings {
        let owned = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        Settings {
            allowed_origins: owned(origins),
            allowed_methods: owned(&["GET", "POST"]),
            allowed_headers: owned(&["Content-Type", "X-A"]),
            exposed_headers: vec![],
            allow_credentials: Credentials::Auto,
            max_age: 86400,
        }
    }

    fn cors(settings: &Settings) -> Cors {
        Cors::new(settings).unwrap().unwrap()
    }

    fn map(fields: Fields<'_>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    /// The fields in the order of their names, one `name: value` a line.
    fn shown(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort_by_key(|line| line.split(':').next().unwrap().to_owned());
        lines
    }

    fn answer(cors: &Cors, method: &Method, fields: Fields<'_>) -> Option<(u16, Vec<String>)> {
        match cors.judge(method, &map(fields)) {
            Verdict::Answer(status, headers) => Some((status.as_u16(), shown(&headers))),
            Verdict::Refused(headers) => Some((403, shown(&headers))),
            Verdict::Grant(_) => None,
        }
    }

    fn allows(cors: &Cors, origin: &str) -> bool {
        cors.grant(&map(&[("origin", origin)])).is_some()
    }

    /// What leaves for a GET with these request fields where the upstream answered with those.
    fn stamped(cors: &Cors, request: Fields<'_>, upstream: Fields<'_>) -> Vec<String> {
        let Verdict::Grant(grant) = cors.judge(&Method::GET, &map(request)) else {
            panic!("a GET is never answered here")
        };
        let mut headers = map(upstream);
        cors.stamp(&grant, &mut headers);
        shown(&headers)
    }

    const A: (&str, &str) = ("origin", "https://a.example");
    const EVIL: (&str, &str) = ("origin", "https://evil.example");
    const ASKS_PUT: (&str, &str) = ("access-control-request-method", "PUT");
    const ASKS_NAMES: (&str, &str) = ("access-control-request-headers", "x-a,x-b");
    const VARY_ALL: &str =
        "vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers";

    #[test]
    fn no_origin_listed_is_no_policy() {
        assert!(Cors::new(&settings(&[])).unwrap().is_none());
    }

    /// `good` and `bad` are origins parted by white space.
    fn check_origins(table: &[(&str, &str, &str)]) {
        for (written, good, bad) in table {
            let policy = cors(&settings(&[written]));
            for origin in good.split_whitespace() {
                assert!(allows(&policy, origin), "{written} allows {origin}");
            }
            for origin in bad.split_whitespace() {
                assert!(
                    !allows(&policy, origin),
                    "{written} does not allow {origin}"
                );
            }
        }
    }

    #[test]
    fn origins_match_byte_by_byte() {
        check_origins(&[
            (
                "https://a.example",
                "https://a.example",
                "http://a.example https://a.example:443 https://A.example HTTPS://a.example https://a.example. https://a.example/
                 https://a.examplee https://a.exampl https://b.a.example null * a.example",
            ),
            ("HTTPS://A.Example:443", "https://a.example", "HTTPS://A.Example:443 https://a.example:443"),
            ("http://a.example:80", "http://a.example", "http://a.example:80"),
            ("http://a.example:443", "http://a.example:443", "http://a.example"),
            ("https://a.example:8443", "https://a.example:8443", "https://a.example https://a.example:84433"),
            ("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000", "http://[::1]"),
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000", "http://127.0.0.1"),
            ("null", "null", "NULL https://null"),
            ("capacitor://localhost", "capacitor://localhost", "http://localhost"),
            ("*", "https://a.example null anything", ""),
        ]);
    }

    #[test]
    fn a_wildcard_takes_labels_or_ports_and_nothing_else() {
        check_origins(&[
            (
                "https://*.example.com",
                "https://a.example.com https://a.b.example.com https://x-1_y.example.com",
                "https://example.com https://.example.com https://a..example.com http://a.example.com https://a.example.com:8443
                 https://notexample.com https://evil.com/.example.com https://a.example.com.evil.com https://%61.example.com
                 https://evil.com@a.example.com https://evil.com:1.example.com https://evil.com?.example.com
                 https://evil.com#.example.com https://evil.com\\.example.com https://a.example.com/ https://A.example.com
                 https://a.EXAMPLE.com https://[::1].example.com https://*.example.com https://https://a.example.com",
            ),
            ("https://*.a.example:8443", "https://b.a.example:8443", "https://b.a.example https://b.a.example:443"),
            ("https://*.a.example:*", "https://b.a.example:8443 https://b.a.example", "https://a.example:1"),
            (
                "http://localhost:*",
                "http://localhost http://localhost:1 http://localhost:3000 http://localhost:65535",
                "https://localhost http://localhost: http://localhost:0 http://localhost:65536 http://localhost:+80
                 http://localhost:03000 http://localhost:3000.evil.com http://localhost:3000:1 http://localhost.evil.com
                 http://localhost@evil.com:80 http://a.localhost:80 http://localhost:*",
            ),
            ("http://[::1]:*", "http://[::1] http://[::1]:80", "http://[::2] http://[::1]1"),
        ]);
        assert!(!allows(
            &cors(&settings(&["https://*.example.com"])),
            "https://a b.example.com"
        ));
    }

    #[test]
    fn two_origins_or_an_endless_one_are_never_allowed() {
        let long = format!("https://{}.example.com", ["a"; 300].join("."));
        for policy in [
            cors(&settings(&["*"])),
            cors(&settings(&["https://a.example", "https://*.example.com"])),
        ] {
            assert!(policy.grant(&map(&[A, A])).is_none());
            assert!(!allows(&policy, &long));
            assert!(!allows(&policy, ""));
            assert_eq!(
                answer(&policy, &Method::OPTIONS, &[A, A, ASKS_PUT]),
                Some((403, vec![VARY_ALL.to_owned()]))
            );
        }
        let mut bytes = HeaderMap::new();
        bytes.insert(
            ORIGIN,
            HeaderValue::from_bytes(b"https://\xff.example.com").unwrap(),
        );
        assert!(
            cors(&settings(&["https://*.example.com"]))
                .grant(&bytes)
                .is_none()
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_complained_about() {
        for (origin, part) in [
            ("", "scheme"),
            ("a.example", "scheme"),
            ("*.a.example", "scheme"),
            ("://a.example", "bad scheme"),
            ("1https://a.example", "bad scheme"),
            ("https//a.example", "scheme"),
            (" https://a.example", "bad scheme"),
            (
                "https://a.example/",
                "must not end in a slash, write \"https://a.example\"",
            ),
            ("https://a.example/x", "no path"),
            ("https://a.example//", "no path"),
            ("https://a.example?q", "query"),
            ("https://a.example#f", "fragment"),
            ("https://a.example\\", "path"),
            ("https://u:p@a.example", "user info"),
            ("https://", "host"),
            ("https://:80", "host"),
            ("https://*", "every origin"),
            ("https://*:*", "every origin"),
            ("https://*.", "every origin"),
            ("https://a.*.example", "wildcard"),
            ("https://a*.example", "wildcard"),
            ("https://*a.example", "wildcard"),
            ("https://*.*.example", "wildcard"),
            ("https://a..example", "bad host"),
            ("https://a.example.", "bad host"),
            ("https://a b", "bad host"),
            ("https://a,https://b", "no path"),
            ("https://bücher.example", "xn--"),
            ("https://[::1", "bad"),
            ("https://[::g]", "IPv6"),
            ("https://a.example:", "bad port"),
            ("https://a.example:0", "bad port"),
            ("https://a.example:65536", "bad port"),
            ("https://a.example:x", "bad port"),
            ("NULL", "scheme"),
        ] {
            let complaints = Cors::new(&settings(&["*", origin])).unwrap_err();
            let [complaint] = complaints.as_slice() else {
                panic!("{origin}: {complaints:?}")
            };
            assert_eq!(
                (complaint.key, complaint.index),
                ("allowed_origins", Some(1)),
                "{origin}"
            );
            assert!(
                complaint.sentence.contains(part),
                "{origin}: {}",
                complaint.sentence
            );
        }

        let wrong = Settings {
            allowed_methods: vec!["GET".to_owned(), "PU T".to_owned()],
            allowed_headers: vec!["X-A, X-B".to_owned(), String::new()],
            exposed_headers: vec!["X:".to_owned()],
            allow_credentials: Credentials::Yes,
            max_age: -2,
            ..settings(&["*", "a"])
        };
        let seen: Vec<_> = Cors::new(&wrong)
            .unwrap_err()
            .into_iter()
            .map(|it| (it.key, it.index))
            .collect();
        assert_eq!(
            seen,
            [
                ("allowed_origins", Some(1)),
                ("allowed_methods", Some(1)),
                ("allowed_headers", Some(0)),
                ("allowed_headers", Some(1)),
                ("exposed_headers", Some(0)),
                ("allow_credentials", None),
                ("max_age", None),
            ]
        );
        assert!(
            Cors::new(&Settings {
                max_age: -2,
                ..settings(&[])
            })
            .is_err(),
            "checked even where the policy is off"
        );
    }

    #[test]
    fn a_preflight_has_exactly_one_of_each_field() {
        let listed = settings(&["https://a.example"]);
        let full = [
            "access-control-allow-headers: Content-Type, X-A",
            "access-control-allow-methods: GET, POST",
            "access-control-allow-origin: https://a.example",
            "access-control-max-age: 86400",
            VARY_ALL,
        ];
        for request in [
            &[A, ASKS_PUT][..],
            &[A, ASKS_PUT, ASKS_NAMES],
            &[ASKS_NAMES, A],
            &[A],
        ] {
            let (status, fields) = answer(&cors(&listed), &Method::OPTIONS, request).unwrap();
            assert_eq!(
                (status, fields.as_slice()),
                (204, &full.map(str::to_owned)[..]),
                "{request:?}"
            );
        }

        let yes = Settings {
            allow_credentials: Credentials::Yes,
            max_age: -1,
            ..listed.clone()
        };
        let fields = answer(&cors(&yes), &Method::OPTIONS, &[A, ASKS_PUT])
            .unwrap()
            .1;
        assert!(
            fields.contains(&"access-control-allow-credentials: true".to_owned()),
            "{fields:?}"
        );
        assert!(
            !fields
                .iter()
                .any(|line| line.starts_with("access-control-max-age")),
            "{fields:?}"
        );

        let fields = answer(
            &cors(&Settings {
                max_age: 0,
                ..settings(&["*"])
            }),
            &Method::OPTIONS,
            &[A, ASKS_PUT],
        )
        .unwrap()
        .1;
        assert!(
            fields.contains(&"access-control-allow-origin: *".to_owned()),
            "{fields:?}"
        );
        assert!(
            fields.contains(&"access-control-max-age: 0".to_owned()),
            "{fields:?}"
        );

        let bare = Settings {
            allowed_methods: vec![],
            allowed_headers: vec![],
            max_age: -1,
            ..listed
        };
        let fields = answer(&cors(&bare), &Method::OPTIONS, &[A, ASKS_PUT])
            .unwrap()
            .1;
        assert_eq!(
            fields,
            ["access-control-allow-origin: https://a.example", VARY_ALL]
        );
    }

    #[test]
    fn options_are_answered_refused_or_forwarded() {
        let policy = cors(&settings(&["https://a.example"]));
        let refused = Some((403, vec![VARY_ALL.to_owned()]));
        assert_eq!(
            answer(&policy, &Method::OPTIONS, &[EVIL, ASKS_PUT]),
            refused
        );
        assert_eq!(
            answer(&policy, &Method::OPTIONS, &[("origin", ""), ASKS_PUT]),
            refused
        );
        assert_eq!(
            answer(&policy, &Method::OPTIONS, &[EVIL]),
            None,
            "no preflight: goes on without a grant"
        );
        assert_eq!(answer(&policy, &Method::OPTIONS, &[]), None);
        assert_eq!(answer(&policy, &Method::OPTIONS, &[ASKS_PUT]), None);
        for method in [
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::DELETE,
        ] {
            assert_eq!(answer(&policy, &method, &[A, ASKS_PUT]), None, "{method}");
        }
    }

    #[test]
    fn a_wildcard_echoes_what_is_asked_for_if_it_is_sound() {
        let any = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        let policy = cors(&Settings {
            allowed_methods: any(&["*"]),
            allowed_headers: any(&["Authorization", "*"]),
            ..settings(&["https://a.example"])
        });
        let method = "access-control-request-method";
        let names = "access-control-request-headers";
        let (most, many) = (["x"; 64].join(","), ["x"; 65].join(","));
        let (most_shown, long, short) = (["x"; 64].join(", "), "y".repeat(2047), "y".repeat(2046));
        for (request, methods, headers) in [
            (
                &[(method, "PUT"), (names, "x-a,x-b")][..],
                "PUT",
                "x-a, x-b",
            ),
            (
                &[(method, "patch"), (names, " X-A ,, x-b ")],
                "patch",
                "X-A, x-b",
            ),
            (
                &[(method, "PUT"), (names, "x-a"), (names, "x-b, x-c")],
                "PUT",
                "x-a, x-b, x-c",
            ),
            (&[(method, "PUT"), (names, "")], "PUT", ""),
            (&[(method, "PUT")], "PUT", ""),
            (&[(names, "x-a")], "", "x-a"),
            (&[(method, "PU T"), (names, "x a")], "", ""),
            (&[(method, ""), (names, "x-a, x:b")], "", ""),
            (
                &[(method, "PUT"), (method, "GET"), (names, "x-a\u{e9}")],
                "",
                "",
            ),
            (&[(names, &most)], "", &most_shown),
            (&[(names, &many)], "", ""),
            (&[(names, &short)], "", &short),
            (&[(names, &long)], "", ""),
        ] {
            let fields = answer(&policy, &Method::OPTIONS, &[&[A], request].concat())
                .unwrap()
                .1;
            let value = |name: &str| {
                fields
                    .iter()
                    .find_map(|line| line.strip_prefix(name))
                    .unwrap_or_default()
            };
            assert_eq!(
                value("access-control-allow-methods: "),
                methods,
                "{request:?}"
            );
            assert_eq!(
                value("access-control-allow-headers: "),
                headers,
                "{request:?}"
            );
        }
    }

    #[test]
    fn answers_carry_our_fields_and_not_the_upstreams() {
        let listed = settings(&["https://a.example", "https://*.b.example"]);
        let with = |credentials, exposed: &[&str], base: &Settings| {
            let exposed_headers = exposed.iter().map(|name| (*name).to_owned()).collect();
            cors(&Settings {
                allow_credentials: credentials,
                exposed_headers,
                ..base.clone()
            })
        };
        let auto = with(Credentials::Auto, &[], &listed);
        let yes = with(Credentials::Yes, &["X-Total", "X-Page"], &listed);
        let no = with(Credentials::No, &[], &listed);
        let star = with(Credentials::Auto, &[], &settings(&["*"]));
        let star_exposed = with(Credentials::No, &["X-Total"], &settings(&["*"]));

        let origin = "access-control-allow-origin: https://a.example";
        let any = "access-control-allow-origin: *";
        let expose = "access-control-expose-headers: X-Up";
        let ours = "access-control-expose-headers: X-Total, X-Page";
        let credentials = "access-control-allow-credentials: true";
        let vary = "vary: Origin";
        let upstream: Fields<'_> = &[
            ("access-control-allow-origin", "https://up.example"),
            ("access-control-allow-origin", "*"),
            ("access-control-allow-methods", "UP"),
            ("access-control-allow-headers", "up"),
            ("access-control-max-age", "1"),
            ("access-control-allow-private-network", "true"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "X-Up"),
            ("content-type", "a/b"),
        ];
        let kind = "content-type: a/b";
        let b = ("origin", "https://x.b.example");
        for (name, policy, request, expected) in [
            (
                "auto",
                &auto,
                &[A][..],
                &[credentials, origin, expose, kind, vary][..],
            ),
            (
                "auto, wild",
                &auto,
                &[b],
                &[
                    credentials,
                    "access-control-allow-origin: https://x.b.example",
                    expose,
                    kind,
                    vary,
                ],
            ),
            ("auto, not allowed", &auto, &[EVIL], &[expose, kind, vary]),
            ("auto, no origin", &auto, &[], &[expose, kind, vary]),
            ("auto, two origins", &auto, &[A, A], &[expose, kind, vary]),
            ("yes", &yes, &[A], &[credentials, origin, ours, kind, vary]),
            ("yes, not allowed", &yes, &[EVIL], &[kind, vary]),
            ("no", &no, &[A], &[origin, expose, kind, vary]),
            ("star", &star, &[A], &[any, expose, kind]),
            ("star, no origin", &star, &[], &[any, expose, kind]),
            ("star, two origins", &star, &[A, A], &[any, expose, kind]),
            (
                "star, exposed",
                &star_exposed,
                &[],
                &[any, "access-control-expose-headers: X-Total", kind],
            ),
        ] {
            assert_eq!(stamped(policy, request, upstream), expected, "{name}");
        }

        for (name, policy, request, expected) in [
            ("auto", &auto, &[A][..], &[origin, vary][..]),
            ("auto, no origin", &auto, &[], &[vary]),
            ("yes", &yes, &[A], &[credentials, origin, ours, vary]),
            ("star", &star, &[], &[any]),
        ] {
            assert_eq!(
                stamped(policy, request, &[]),
                expected,
                "{name}, nothing of the upstream's"
            );
        }
    }

    #[test]
    fn only_an_exact_true_lets_credentials_pass() {
        let policy = cors(&settings(&["https://a.example"]));
        let name = "access-control-allow-credentials";
        for (upstream, passes) in [
            (&[(name, "true")][..], true),
            (&[(name, "True")], false),
            (&[(name, "false")], false),
            (&[(name, "true,true")], false),
            (&[(name, "true"), (name, "true")], false),
            (&[], false),
        ] {
            let fields = stamped(&policy, &[A], upstream);
            assert_eq!(
                fields.iter().filter(|line| line.starts_with(name)).count(),
                usize::from(passes),
                "{upstream:?}"
            );
        }
    }

    #[test]
    fn vary_is_merged_and_never_doubled() {
        let policy = cors(&settings(&["https://a.example"]));
        for (upstream, expected) in [
            (&[][..], &["vary: Origin"][..]),
            (&[("vary", "")], &["vary: Origin"]),
            (
                &[("vary", "Accept-Encoding")],
                &["vary: Accept-Encoding, Origin"],
            ),
            (
                &[("vary", "Accept"), ("vary", "Cookie")],
                &["vary: Accept, Origin", "vary: Cookie"],
            ),
            (&[("vary", "Origin")], &["vary: Origin"]),
            (&[("vary", "accept , ORIGIN")], &["vary: accept , ORIGIN"]),
            (
                &[("vary", "Accept"), ("vary", "origin")],
                &["vary: Accept", "vary: origin"],
            ),
            (&[("vary", "*")], &["vary: *"]),
            (&[("vary", "X-Origin")], &["vary: X-Origin, Origin"]),
        ] {
            assert_eq!(
                stamped(&policy, &[EVIL], upstream),
                expected,
                "{upstream:?}"
            );
        }
        assert_eq!(
            stamped(&cors(&settings(&["*"])), &[A], &[("vary", "Accept")])[1..],
            ["vary: Accept"]
        );
    }

    #[test]
    fn fields_keep_their_order_where_ours_take_the_place_of_the_upstreams() {
        let upstream: Fields<'_> = &[
            ("x-1", "a"),
            ("access-control-allow-origin", "*"),
            ("x-2", "b"),
            ("x-3", "c"),
        ];
        let mut headers = map(upstream);
        cors(&settings(&["*"])).stamp(&Grant::default(), &mut headers);
        assert_eq!(
            headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            upstream.iter().map(|it| it.0).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_grant_stays_small() {
        assert!(size_of::<Grant>() <= 40, "{}", size_of::<Grant>());
    }
}
