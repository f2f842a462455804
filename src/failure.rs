//! Why an exchange fails: for each failure its outcome, the status, and the sentence for the client.
//!
//! Pure. The client gets one plain sentence, which never contains an address, a path or an inner error; the log gets those.

use std::fmt;

use http::{StatusCode, header};

use crate::{
    fields::Fields,
    outcome::{Blame, Outcome},
};

/// Why a client gets an error from the proxy instead of the upstream's response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The request head is malformed; the reason, for the log.
    Malformed(&'static str),
    /// The client began a TLS handshake on a listener for plain HTTP.
    TlsHello,
    /// The client speaks HTTP/2, and the listener does not offer it.
    Preface,
    /// The request head was not complete in `server.header_timeout`.
    HeadTimedOut,
    /// The request target is too long.
    TargetTooLong,
    /// The request head is over `server.max_header_bytes`, or has too many fields.
    HeadTooLarge,
    /// Neither HTTP/1.1 nor HTTP/1.0.
    VersionNotSupported,
    /// No route for this path.
    NoRoute,
    /// A `..` segment in the path.
    DotSegment,
    /// CONNECT or TRACE.
    MethodNotAllowed,
    /// A redirect needs the request's Host, which is missing or not a plain name or address.
    HostUnusable,
    /// A WebSocket was asked for on a route whose target speaks HTTP/2.
    NoUpgrade,
    /// A preflight from an origin that is not allowed; for the log, that origin and the allowed ones.
    PreflightRefused(String),
    /// The request body is larger than `max_body_size`.
    BodyTooLarge,
    /// The client sent no byte of its body for `read_timeout`.
    BodyTimedOut,
    /// The client's body was cut short or broken.
    BodyBroken,
    /// No place came free within `queue_timeout`.
    NoPlace,
    /// The memory budget is spent.
    NoMemory,
    /// Ended under pressure, before there was a response.
    Evicted,
    /// Not answered within `shutdown_timeout` after the stop began.
    Shutdown,
    /// No connection of `max_conns_per_host` came free within `queue_timeout`.
    NoConnection,
    /// As many tunnels are open as `max_tunnels` allows.
    NoTunnel,
    /// The name of the target could not be resolved.
    NameUnresolved(String),
    /// The connection could not be made: refused, unreachable, out of descriptors.
    DialFailed(String),
    /// No connection within `dial_timeout`.
    DialTimedOut,
    /// The TLS handshake failed.
    TlsFailed(String),
    /// The upstream closed or reset the connection before it answered.
    UpstreamClosed(String),
    /// The upstream's response is not valid HTTP.
    UpstreamGarbled(&'static str),
    /// No response head within `response_header_timeout`.
    ResponseTimedOut,
    /// The upstream took no byte of the request for `write_timeout`.
    RequestStalled,
}

/// The value of Allow. Other methods are forwarded too, but cannot be listed.
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH";

impl Failure {
    /// The failure of an exchange that was told to end before there was a response; `outcome` is the reason.
    pub fn told_to_leave(outcome: Outcome) -> Failure {
        if outcome == Outcome::Shutdown {
            Failure::Shutdown
        } else {
            Failure::Evicted
        }
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Failure::NoRoute => StatusCode::NOT_FOUND,
            Failure::Malformed(_)
            | Failure::TlsHello
            | Failure::Preface
            | Failure::DotSegment
            | Failure::BodyBroken
            | Failure::HostUnusable => StatusCode::BAD_REQUEST,
            Failure::TargetTooLong => StatusCode::URI_TOO_LONG,
            Failure::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Failure::VersionNotSupported => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Failure::NoUpgrade => StatusCode::NOT_IMPLEMENTED,
            Failure::PreflightRefused(_) => StatusCode::FORBIDDEN,
            Failure::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Failure::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Failure::HeadTimedOut | Failure::BodyTimedOut => StatusCode::REQUEST_TIMEOUT,
            Failure::NoPlace
            | Failure::NoMemory
            | Failure::NoConnection
            | Failure::NoTunnel
            | Failure::Evicted
            | Failure::Shutdown => StatusCode::SERVICE_UNAVAILABLE,
            Failure::NameUnresolved(_)
            | Failure::DialFailed(_)
            | Failure::TlsFailed(_)
            | Failure::UpstreamClosed(_)
            | Failure::UpstreamGarbled(_) => StatusCode::BAD_GATEWAY,
            Failure::DialTimedOut | Failure::ResponseTimedOut | Failure::RequestStalled => {
                StatusCode::GATEWAY_TIMEOUT
            }
        }
    }

    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        self.outcome().blame()
    }

    /// One short plain sentence for the client, with a newline at its end.
    pub fn sentence(&self) -> &'static str {
        match self {
            Failure::Malformed(_) => "The request is malformed.\n",
            Failure::TlsHello => "This port speaks plain HTTP, not TLS.\n",
            Failure::Preface => "This port does not speak version 2 of HTTP.\n",
            Failure::HeadTimedOut => "The request head did not arrive in time.\n",
            Failure::TargetTooLong => "The request target is too long.\n",
            Failure::HeadTooLarge => "The request head is too large.\n",
            Failure::VersionNotSupported => "The HTTP version is not supported.\n",
            Failure::NoRoute => "Nothing is served at this path.\n",
            Failure::DotSegment => "The path may not hold \"..\" segments.\n",
            Failure::MethodNotAllowed => "This method is not allowed.\n",
            Failure::HostUnusable => "The Host of the request cannot be used here.\n",
            Failure::NoUpgrade => "WebSockets do not pass to this upstream.\n",
            Failure::PreflightRefused(_) => "This origin is not allowed.\n",
            Failure::BodyTooLarge => "The request body is too large.\n",
            Failure::BodyTimedOut => "The request body did not arrive in time.\n",
            Failure::BodyBroken => "The request body is broken.\n",
            Failure::NoPlace => "No place came free in time.\n",
            Failure::NoMemory => "There is no memory left for this request.\n",
            Failure::Evicted => "The request had to give way to others.\n",
            Failure::Shutdown => "The proxy is stopping.\n",
            Failure::NoConnection => "No connection to the upstream came free in time.\n",
            Failure::NoTunnel => "There are too many tunnels already.\n",
            Failure::NameUnresolved(_) => "The upstream's name is not known.\n",
            Failure::DialFailed(_) => "The upstream could not be reached.\n",
            Failure::DialTimedOut => "The upstream could not be reached in time.\n",
            Failure::TlsFailed(_) => "No secure connection to the upstream could be made.\n",
            Failure::UpstreamClosed(_) => {
                "The upstream closed the connection before it answered.\n"
            }
            Failure::UpstreamGarbled(_) => "The upstream's answer could not be understood.\n",
            Failure::ResponseTimedOut => "The upstream did not answer in time.\n",
            Failure::RequestStalled => "The upstream did not take the request in time.\n",
        }
    }

    /// How the exchange ended, for the log and the metrics.
    pub fn outcome(&self) -> Outcome {
        match self {
            Failure::Malformed(_) => Outcome::Malformed,
            Failure::TlsHello => Outcome::TlsHello,
            Failure::Preface => Outcome::Preface,
            Failure::HeadTimedOut => Outcome::HeadTimedOut,
            Failure::TargetTooLong => Outcome::TargetTooLong,
            Failure::HeadTooLarge => Outcome::HeadTooLarge,
            Failure::VersionNotSupported => Outcome::VersionNotSupported,
            Failure::NoRoute => Outcome::NoRoute,
            Failure::DotSegment => Outcome::DotSegment,
            Failure::MethodNotAllowed => Outcome::MethodNotAllowed,
            Failure::HostUnusable => Outcome::HostUnusable,
            Failure::NoUpgrade => Outcome::NoUpgrade,
            Failure::PreflightRefused(_) => Outcome::PreflightRefused,
            Failure::BodyTooLarge => Outcome::BodyTooLarge,
            Failure::BodyTimedOut => Outcome::BodyTimedOut,
            Failure::BodyBroken => Outcome::BodyBroken,
            Failure::NoPlace => Outcome::NoPlace,
            Failure::NoMemory => Outcome::NoMemory,
            Failure::Evicted => Outcome::Evicted,
            Failure::Shutdown => Outcome::Shutdown,
            Failure::NoConnection => Outcome::NoConnection,
            Failure::NoTunnel => Outcome::NoTunnel,
            Failure::NameUnresolved(_) => Outcome::NameUnresolved,
            Failure::DialFailed(_) => Outcome::DialFailed,
            Failure::DialTimedOut => Outcome::DialTimedOut,
            Failure::TlsFailed(_) => Outcome::TlsFailed,
            Failure::UpstreamClosed(_) => Outcome::UpstreamClosed,
            Failure::UpstreamGarbled(_) => Outcome::UpstreamGarbled,
            Failure::ResponseTimedOut => Outcome::ResponseTimedOut,
            Failure::RequestStalled => Outcome::RequestStalled,
        }
    }

    /// The fields of the answer: Content-Type, Retry-After on every 503, and Allow, which a 405 must have (RFC 9110 §15.5.6).
    pub fn fields(&self) -> Fields {
        let mut fields = Fields::new();
        fields.append(header::CONTENT_TYPE, "text/plain; charset=utf-8");
        match self.status() {
            StatusCode::SERVICE_UNAVAILABLE => fields.append(header::RETRY_AFTER, "1"),
            StatusCode::METHOD_NOT_ALLOWED => fields.append(header::ALLOW, METHODS),
            _ => {}
        }
        fields
    }
}

impl fmt::Display for Failure {
    /// For the log: the outcome, with the inner error where there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.outcome().word())?;
        match self {
            Failure::PreflightRefused(inner)
            | Failure::NameUnresolved(inner)
            | Failure::DialFailed(inner)
            | Failure::TlsFailed(inner)
            | Failure::UpstreamClosed(inner) => write!(f, ": {inner}"),
            Failure::UpstreamGarbled(inner) | Failure::Malformed(inner) => write!(f, ": {inner}"),
            Failure::TlsHello => f.write_str(": a TLS hello on a plain listener"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner() -> String {
        "10.0.0.1:80 refused".to_owned()
    }

    fn table() -> Vec<(Failure, u16, Blame)> {
        use Blame::{Client, Proxy, Upstream};
        vec![
            (Failure::Malformed("10.0.0.1:80 refused"), 400, Client),
            (Failure::TlsHello, 400, Client),
            (Failure::Preface, 400, Client),
            (Failure::HeadTimedOut, 408, Client),
            (Failure::TargetTooLong, 414, Client),
            (Failure::HeadTooLarge, 431, Client),
            (Failure::VersionNotSupported, 505, Client),
            (Failure::NoRoute, 404, Client),
            (Failure::DotSegment, 400, Client),
            (Failure::MethodNotAllowed, 405, Client),
            (Failure::HostUnusable, 400, Client),
            (Failure::NoUpgrade, 501, Client),
            (Failure::PreflightRefused(inner()), 403, Client),
            (Failure::BodyTooLarge, 413, Client),
            (Failure::BodyTimedOut, 408, Client),
            (Failure::BodyBroken, 400, Client),
            (Failure::NoPlace, 503, Proxy),
            (Failure::NoMemory, 503, Proxy),
            (Failure::NoConnection, 503, Proxy),
            (Failure::Evicted, 503, Proxy),
            (Failure::Shutdown, 503, Proxy),
            (Failure::NoTunnel, 503, Proxy),
            (Failure::NameUnresolved(inner()), 502, Upstream),
            (Failure::DialFailed(inner()), 502, Upstream),
            (Failure::DialTimedOut, 504, Upstream),
            (Failure::TlsFailed(inner()), 502, Upstream),
            (Failure::UpstreamClosed(inner()), 502, Upstream),
            (
                Failure::UpstreamGarbled("10.0.0.1:80 refused"),
                502,
                Upstream,
            ),
            (Failure::ResponseTimedOut, 504, Upstream),
            (Failure::RequestStalled, 504, Upstream),
        ]
    }

    #[test]
    fn each_failure_has_its_status_and_blame() {
        for (failure, status, blame) in table() {
            assert_eq!(failure.status().as_u16(), status, "{failure}");
            assert_eq!(failure.blame(), blame, "{failure}");
            let fields = failure.fields();
            let retry = (status == 503).then_some(&b"1"[..]);
            assert_eq!(fields.only(header::RETRY_AFTER), retry, "{failure}");
            let allow = (status == 405).then_some(METHODS.as_bytes());
            assert_eq!(fields.only(header::ALLOW), allow, "{failure}");
            assert!(fields.only(header::CONTENT_TYPE).is_some(), "{failure}");
        }
    }

    #[test]
    fn no_two_failures_have_the_same_outcome() {
        let mut seen = Vec::new();
        for (failure, ..) in table() {
            assert!(!seen.contains(&failure.outcome()), "{failure}");
            seen.push(failure.outcome());
        }
    }

    #[test]
    fn sentences_are_distinct_and_hide_the_inner_error() {
        let mut seen = Vec::new();
        for (failure, ..) in table() {
            let sentence = failure.sentence();
            assert!(
                sentence.ends_with(".\n") && sentence.lines().count() == 1,
                "{failure}"
            );
            assert!(
                sentence.is_ascii() && !sentence.contains(['/', ':', '0']),
                "{failure}"
            );
            assert!(!seen.contains(&sentence), "{sentence}");
            seen.push(sentence);
        }
    }

    #[test]
    fn the_log_gets_the_inner_error() {
        assert_eq!(
            Failure::DialFailed(inner()).to_string(),
            "dial-failed: 10.0.0.1:80 refused"
        );
        assert_eq!(
            Failure::UpstreamGarbled("bad chunk size").to_string(),
            "upstream-garbled: bad chunk size"
        );
        assert_eq!(
            Failure::Malformed("no Host").to_string(),
            "malformed: no Host"
        );
        assert_eq!(Failure::NoPlace.to_string(), "no-place");
    }

    #[test]
    fn a_failure_stays_small() {
        assert!(size_of::<Failure>() <= 32, "{}", size_of::<Failure>());
    }
}
