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

impl Cors {
    /// Judges a request under this policy (SPEC 5.1 to 5.3, 5.5).
    pub fn judge(&self, _method: &Method, _headers: &HeaderMap) -> Verdict {
        Verdict::Grant(Grant::default())
    }

    /// Removes the upstream's Access-Control fields and sets ours (SPEC 5.3, 5.4).
    pub fn stamp(&self, _grant: &Grant, _headers: &mut HeaderMap) {}
}
