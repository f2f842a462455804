//! What can go wrong with an exchange, whose fault it is, and what the client is told.
//!
//! The text for the client is one plain sentence that never shows an address, a path or an inner error; the log gets those.

use std::fmt;

use hyper::http::StatusCode;

/// Why an exchange has no answer from its upstream.
#[derive(Debug)]
pub enum Failure {
    /// No route for this path.
    NoRoute,
    /// A `.` or `..` segment in the path.
    DotSegment,
    /// CONNECT or TRACE.
    MethodNotAllowed,
    /// The request body is larger than `max_body_size`.
    BodyTooLarge,
    /// The client stopped sending its body for `read_timeout`.
    BodyTimedOut,
    /// The client's body was cut short or broken.
    BodyBroken,
    /// No place in `queue_timeout`.
    NoPlace,
    /// The memory budget is spent.
    NoMemory,
    /// No connection of `max_conns_per_host` came free in `queue_timeout`.
    NoConnection,
    /// The name of the target could not be resolved.
    NameUnresolved(String),
    /// The connection could not be made: refused, unreachable, out of descriptors.
    DialFailed(String),
    /// No connection within `dial_timeout`.
    DialTimedOut,
    /// The TLS handshake failed.
    TlsFailed(String),
    /// The upstream closed or reset before it answered.
    UpstreamClosed(String),
    /// The upstream's answer is not HTTP that can be passed on.
    UpstreamGarbled(&'static str),
    /// No response head within `response_header_timeout`.
    ResponseTimedOut,
    /// The upstream took no byte of the request for `write_timeout`.
    RequestStalled,
    /// Stopping.
    Draining,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The caller's.
    Client,
    /// The target's.
    Upstream,
    /// Ours.
    Proxy,
}

impl Failure {
    /// The status that the client is answered with.
    pub fn status(&self) -> StatusCode {
        StatusCode::BAD_GATEWAY
    }

    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        Blame::Upstream
    }

    /// One short plain sentence for the client, with a newline at its end.
    pub fn sentence(&self) -> &'static str {
        "Bad gateway.\n"
    }

    /// A short stable word for the log, such as `dial-timed-out`.
    pub fn outcome(&self) -> &'static str {
        "failed"
    }
}

impl fmt::Display for Failure {
    /// For the log: with the inner error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.outcome())
    }
}
