//! CORS as in the Fetch standard: a verdict on each request, and the fields to set on its response.
//!
//! Pure. A policy is built once from the configuration, with every field value ready to be sent; only values that echo the
//! request are formatted later. No response has two `Access-Control-Allow-Origin`.

mod origin;

use http::{
    HeaderValue, Method, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
        ORIGIN, VARY,
    },
};

use crate::{
    cors::origin::{Pattern, parse_origin},
    fields::{Fields, members},
    http1::cursor,
};

/// The keys of `cors:` with their defaults filled in, not yet validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `*`, `null`, or `scheme://host[:port]`, where the host may begin with `*.` and the port may be `*`. Empty = off. Beside
    /// `*` the other entries have no effect.
    pub allowed_origins: Vec<String>,
    /// Tokens, sent as written (methods are case-sensitive); `*` = the method asked for.
    pub allowed_methods: Vec<String>,
    /// Field names; `*` = the names asked for.
    pub allowed_headers: Vec<String>,
    /// Field names; empty = the upstream's own value passes.
    pub exposed_headers: Vec<String>,
    /// Whether credentials are allowed. Default `auto`.
    pub allow_credentials: Credentials,
    /// Seconds, 0 or more; -1 = no field.
    pub max_age: i64,
}

/// Whether a browser may let a page read a response to a request with cookies or a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// The upstream decides: its `true` passes where an origin of the list matched. A preflight, which no upstream answers, has
    /// no such field, so that a list of origins alone never allows credentials.
    Auto,
    /// Allowed for every origin of the list, in preflights too.
    Yes,
    /// Never allowed.
    No,
}

/// A mistake in [`Settings`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The key below `cors`.
    pub key: &'static str,
    /// The index of an entry in a list, from 0.
    pub index: Option<usize>,
    /// What is wrong, to be read after the field's path: lower case, no full stop.
    pub sentence: String,
}

/// A policy with at least one origin. Where none is listed there is no `Cors`, and everything passes unchanged.
#[derive(Debug, Clone)]
pub struct Cors {
    origins: Origins,
    methods: Allowed,
    headers: Allowed,
    exposed: Option<HeaderValue>,
    credentials: Credentials,
    max_age: Option<HeaderValue>,
}

/// The verdict of a policy on a request.
#[derive(Debug)]
pub enum Verdict {
    /// A preflight (or other OPTIONS) from an allowed origin: answer with this status, these fields and no body. The answer is
    /// not stamped.
    Answer(StatusCode, Fields),
    /// A preflight from an origin that is not allowed: answer 403 with these fields. The answer is not stamped.
    Refused(Fields),
    /// The request goes on, and its response is stamped with this.
    Grant(Grant),
}

/// What [`Cors::stamp`] needs of the request. Small, because it lives as long as the exchange.
#[derive(Debug, Default)]
pub struct Grant {
    /// The request's Origin, if it matched an entry of the list; `None` under `*`. Always a copy: a slice would keep the whole
    /// request head in memory.
    pub origin: Option<HeaderValue>,
}

#[derive(Debug, Clone)]
enum Origins {
    Any,
    Listed(Vec<Pattern>),
}

/// The value of Allow-Methods or Allow-Headers.
#[derive(Debug, Clone)]
enum Allowed {
    /// `None` = the list is empty and the field is not sent.
    Listed(Option<HeaderValue>),
    /// `*`: the names that the request asks for.
    Asked,
}

impl Cors {
    /// Builds a policy; `Ok(None)` where no origin is listed, all mistakes where there are any.
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

    /// Judges a request under this policy.
    ///
    /// OPTIONS with an allowed Origin is answered by the proxy. From another origin a preflight is refused, and any other
    /// OPTIONS goes on like a GET: its response has no grant, so that the browser hides it from the page. The method and the
    /// names that a preflight asks for are not checked: the answer lists those that are allowed, and the browser decides.
    pub fn judge(&self, method: &Method, headers: &Fields) -> Verdict {
        let grant = self.grant(headers);
        if *method == Method::OPTIONS && headers.contains(ORIGIN) {
            match &grant {
                Some(grant) => {
                    return Verdict::Answer(StatusCode::NO_CONTENT, self.preflight(grant, headers));
                }
                None if headers.contains(ACCESS_CONTROL_REQUEST_METHOD) => {
                    let fields = Fields::from_iter([(VARY, PREFLIGHT_VARY)]);
                    return Verdict::Refused(fields);
                }
                None => {}
            }
        }
        Verdict::Grant(grant.unwrap_or_default())
    }

    /// Why a preflight was refused, for the log: its origin, and those that are allowed.
    pub fn explain(&self, headers: &Fields) -> String {
        let asked: Vec<_> = headers
            .get_all(ORIGIN)
            .map(String::from_utf8_lossy)
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

    /// Replaces the upstream's Access-Control fields by the policy's.
    ///
    /// A field that is replaced keeps its position, so that most responses keep the order of their fields.
    pub fn stamp(&self, grant: &Grant, headers: &mut Fields) {
        let allow_origin = self.allow_origin(grant);
        let matched = grant.origin.is_some();
        let credentials_pass =
            self.credentials == Credentials::Auto && matched && says_true(headers);
        headers.retain(|name, _| match name {
            b"access-control-allow-origin" => allow_origin.is_some(),
            b"access-control-expose-headers" => self.exposed.is_none(),
            b"access-control-allow-credentials" => credentials_pass,
            _ => !is_grant(name),
        });
        if let Some(origin) = allow_origin {
            headers.set(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            if let Some(names) = &self.exposed {
                headers.set(ACCESS_CONTROL_EXPOSE_HEADERS, names);
            }
        }
        if self.credentials == Credentials::Yes && matched {
            headers.set(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        if matches!(self.origins, Origins::Listed(_)) {
            vary_by_origin(headers);
        }
    }

    /// The grant for a request; `None` where it has no Origin, or one that is not allowed.
    fn grant(&self, headers: &Fields) -> Option<Grant> {
        let origin = headers
            .only(ORIGIN)
            .filter(|origin| (1..=MAX_ORIGIN).contains(&origin.len()))?;
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

    /// The fields of the 204 for an allowed origin.
    fn preflight(&self, grant: &Grant, headers: &Fields) -> Fields {
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

/// Removes every Access-Control field, for an interim response, which must not grant anything.
pub fn remove_grants(headers: &mut Fields) {
    headers.retain(|name, _| !is_grant(name));
}

fn is_grant(name: &[u8]) -> bool {
    name.starts_with(b"access-control-")
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

/// Joins a list into one field value, and reports entries that are no tokens; `None` for an empty list.
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

/// Reports methods in lower case: methods are case-sensitive (RFC 9110 §9.1), and browsers send them in capitals.
fn check_case(methods: &[String], complaints: &mut Vec<Complaint>) {
    for (index, method) in methods.iter().enumerate() {
        let upper = method.to_ascii_uppercase();
        if is_token(method.as_bytes()) && upper != *method {
            let sentence = format!("methods are written in capitals: {upper:?}, not {method:?}");
            complaints.push(Complaint::new("allowed_methods", Some(index), sentence));
        }
    }
}

/// The method that a preflight asks for, if it is a token.
fn asked_method(headers: &Fields) -> Option<HeaderValue> {
    let method = headers.only(ACCESS_CONTROL_REQUEST_METHOD)?;
    HeaderValue::from_bytes(method)
        .ok()
        .filter(|_| is_token(method))
}

/// The field names that a preflight asks for; `None` where there are none, too many, or one that is not a token.
fn asked_headers(headers: &Fields) -> Option<HeaderValue> {
    let (mut joined, mut count) = (Vec::new(), 0);
    for name in members(headers.get_all(ACCESS_CONTROL_REQUEST_HEADERS)) {
        count += 1;
        if !is_token(name) || count > MAX_ASKED || joined.len() + name.len() + 2 > MAX_ASKED_BYTES {
            return None;
        }
        if count > 1 {
            joined.extend_from_slice(b", ");
        }
        joined.extend_from_slice(name);
    }
    if joined.is_empty() {
        None
    } else {
        HeaderValue::try_from(joined).ok()
    }
}

/// Adds `Origin` to the response's Vary, and keeps what is there (RFC 9110 §12.5.5).
fn vary_by_origin(headers: &mut Fields) {
    let is_origin = |name: &[u8]| name == b"*" || name.eq_ignore_ascii_case(b"origin");
    if members(headers.get_all(VARY)).any(is_origin) {
        return;
    }
    let names = headers.get(VARY).unwrap_or_default().trim_ascii();
    let merged = if names.is_empty() {
        b"Origin".to_vec()
    } else {
        [names, b", Origin"].concat()
    };
    if !headers.replace_first(VARY, &merged) {
        headers.append(VARY, merged);
    }
}

/// Whether the upstream sent Allow-Credentials once, and exactly as `true` (Fetch, CORS check).
fn says_true(headers: &Fields) -> bool {
    headers.only(ACCESS_CONTROL_ALLOW_CREDENTIALS) == Some(b"true")
}

/// Whether a name is a token (RFC 9110 §5.6.2).
fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| cursor::is_token(*byte))
}

/// Bounds the bytes of an Origin: a host name has 253 at most, so a longer one is not from a browser.
const MAX_ORIGIN: usize = 512;
/// Bounds the names of Access-Control-Request-Headers that are echoed, and below the bytes of the echo: far more than a
/// page asks for, and little memory.
const MAX_ASKED: usize = 64;
const MAX_ASKED_BYTES: usize = 2048;

const ANY: HeaderValue = HeaderValue::from_static("*");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const PREFLIGHT_VARY: HeaderValue = HeaderValue::from_static(
    "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
);

#[cfg(test)]
mod tests;
