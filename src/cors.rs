//! CORS as the Fetch standard asks for it: one judgement for a request, one stamp for its answer.
//!
//! Pure. A policy is built once from the configuration with every field value ready to be sent.

use hyper::http::{HeaderMap, HeaderValue, Method};

/// A policy that lists at least one origin; where none is listed there is no `Cors` at all and everything passes untouched.
#[derive(Debug, Clone)]
pub struct Cors {}

/// What a policy says of a request.
#[derive(Debug)]
pub enum Verdict {
    /// Answered here: 204 (allowed) or 403 (not), with these fields and no body.
    Answer(hyper::http::StatusCode, HeaderMap),
    /// Goes on; stamp this on whatever is answered.
    Grant(Grant),
}

/// What [`Cors::stamp`] needs to remember of the request. Small: it lives as long as the exchange.
#[derive(Debug, Default)]
pub struct Grant {
    /// The request's Origin, where the policy matched it.
    pub origin: Option<HeaderValue>,
}

/// `cors:` as written, every key filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Empty = off.
    pub allowed_origins: Vec<String>,
    /// `["*"]` = the method asked for.
    pub allowed_methods: Vec<String>,
    /// `["*"]` = the names asked for.
    pub allowed_headers: Vec<String>,
    /// Empty: the upstream's own value passes.
    pub exposed_headers: Vec<String>,
    /// Whether credentials are allowed.
    pub allow_credentials: Credentials,
    /// Seconds; -1 = no header.
    pub max_age: i64,
}

/// `allow_credentials:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// The upstream's `true` passes for a matched explicit origin.
    Auto,
    /// Always.
    Yes,
    /// Never.
    No,
}

/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The key within `cors:`.
    pub key: &'static str,
    /// The place within that list.
    pub index: Option<usize>,
    /// What is wrong.
    pub sentence: String,
}

impl Cors {
    /// `Ok(None)` where no origin is listed.
    pub fn new(settings: &Settings) -> Result<Option<Cors>, Vec<Complaint>> {
        // STUB: the real one is written elsewhere.
        let mut complaints = Vec::new();
        for (index, origin) in settings.allowed_origins.iter().enumerate() {
            let host = origin.split_once("://").map_or("", |(_, host)| host);
            if origin != "*" && origin != "null" && (host.is_empty() || host.contains('/')) {
                complaints.push(Complaint {
                    key: "allowed_origins",
                    index: Some(index),
                    sentence: "is no origin".to_owned(),
                });
            }
            if origin == "*" && settings.allow_credentials == Credentials::Yes {
                complaints.push(Complaint {
                    key: "allow_credentials",
                    index: None,
                    sentence: "cannot be true with the origin \"*\"".to_owned(),
                });
            }
        }
        if complaints.is_empty() {
            Ok((!settings.allowed_origins.is_empty()).then_some(Cors {}))
        } else {
            Err(complaints)
        }
    }

    /// Judges a request under this policy (SPEC 5.1 to 5.3, 5.5).
    pub fn judge(&self, _method: &Method, _headers: &HeaderMap) -> Verdict {
        Verdict::Grant(Grant::default())
    }

    /// Removes the upstream's Access-Control fields and sets ours (SPEC 5.3, 5.4).
    pub fn stamp(&self, _grant: &Grant, _headers: &mut HeaderMap) {}
}
