//! How an exchange ended: one word for the access line, and a label of `lean_proxy_failures_total`.
//!
//! Pure. Every exchange has exactly one outcome, and so has every connection that is refused before its request is read.
//! The words are part of the program's interface, because dashboards and alerts contain them.

use std::fmt;

use crate::config::Level;

/// Whose fault an outcome is. It decides the level of the log line: `debug` for the client's, `warn` for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The client's, or no fault at all.
    Client,
    /// The target's.
    Upstream,
    /// The proxy's: a limit was reached, memory was short, or the program was stopping.
    Proxy,
}

impl Blame {
    /// The level of the log line.
    pub fn level(self) -> Level {
        match self {
            Blame::Client => Level::Debug,
            Blame::Upstream | Blame::Proxy => Level::Warn,
        }
    }
}

/// Declares [`Outcome`], its words and its list together, so that they cannot differ.
macro_rules! outcomes {
    ($($(#[doc = $help:literal])+ $name:ident $word:literal $blame:ident,)+) => {
        /// How an exchange ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Outcome {
            $($(#[doc = $help])+ $name,)+
        }

        impl Outcome {
            /// All outcomes, in the order of their declaration.
            pub const ALL: [Outcome; [$($word),+].len()] = [$(Outcome::$name),+];

            /// The word for the log and the metrics.
            pub fn word(self) -> &'static str {
                match self {
                    $(Outcome::$name => $word,)+
                }
            }

            /// Whose fault it is.
            pub fn blame(self) -> Blame {
                match self {
                    $(Outcome::$name => Blame::$blame,)+
                }
            }
        }
    };
}

outcomes! {
    /// The client was sent the whole response, or both sides have closed their half of the tunnel.
    Ok "ok" Client,

    /// The request head is malformed.
    Malformed "malformed" Client,
    /// The first byte was that of a TLS handshake, on a listener for plain HTTP.
    TlsHello "tls-hello" Client,
    /// The first bytes were the preface of HTTP/2, on a listener that does not offer it.
    Preface "preface" Client,
    /// The TLS handshake with a client failed, or was not done in `server.header_timeout`.
    HandshakeFailed "handshake-failed" Client,
    /// The request head was not complete in `server.header_timeout`.
    HeadTimedOut "head-timed-out" Client,
    /// The request head is over `server.max_header_bytes`, or has too many fields.
    HeadTooLarge "head-too-large" Client,
    /// The request target is too long.
    TargetTooLong "target-too-long" Client,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    VersionNotSupported "version-not-supported" Client,

    /// An HTTP/2 connection exceeded the number of control frames that it may send, or the memory that it may hold.
    Flooded "flooded" Client,

    /// No route for this path.
    NoRoute "no-route" Client,
    /// A `..` segment, plain or percent-encoded, in the path.
    DotSegment "dot-segment" Client,
    /// CONNECT or TRACE; anything but GET and HEAD on the health path.
    MethodNotAllowed "method-not-allowed" Client,
    /// A redirect to `{host}`, and a Host that is missing or not a plain name.
    HostUnusable "host-unusable" Client,
    /// A WebSocket was asked for on a route whose target speaks HTTP/2.
    NoUpgrade "no-upgrade" Client,
    /// A CORS preflight from an origin that is not allowed.
    PreflightRefused "preflight-refused" Client,
    /// The request body is larger than `max_body_size`.
    BodyTooLarge "body-too-large" Client,
    /// No byte of the request body came for `server.read_timeout`.
    BodyTimedOut "body-timed-out" Client,
    /// The request body was cut short, or its framing is broken.
    BodyBroken "body-broken" Client,

    /// `proxy.max_concurrent_requests` was full for `proxy.queue_timeout`.
    NoPlace "no-place" Proxy,
    /// The memory budget is spent.
    NoMemory "no-memory" Proxy,
    /// `transport.max_conns_per_host` was full for `proxy.queue_timeout`.
    NoConnection "no-connection" Proxy,
    /// As many tunnels are open as `proxy.max_tunnels` allows.
    NoTunnel "no-tunnel" Proxy,
    /// Ended under pressure: it made no progress, and others needed what it held.
    Evicted "evicted" Proxy,
    /// Not finished within `server.shutdown_timeout` after the stop began.
    Shutdown "shutdown" Proxy,
    /// A panic ended it: a bug.
    Panicked "panicked" Proxy,

    /// The name of the target could not be resolved.
    NameUnresolved "name-unresolved" Upstream,
    /// The connection could not be made.
    DialFailed "dial-failed" Upstream,
    /// No connection within `transport.dial_timeout`.
    DialTimedOut "dial-timed-out" Upstream,
    /// The TLS handshake with the target failed.
    TlsFailed "tls-failed" Upstream,
    /// The upstream closed the connection before it answered.
    UpstreamClosed "upstream-closed" Upstream,
    /// The upstream's response is not valid HTTP.
    UpstreamGarbled "upstream-garbled" Upstream,
    /// No response head within `response_header_timeout`.
    ResponseTimedOut "response-timed-out" Upstream,
    /// The upstream took no byte of the request for `server.write_timeout`.
    RequestStalled "request-stalled" Upstream,
    /// The upstream closed or reset the connection in the middle of its response or of a tunnel, or sent a broken body.
    UpstreamCut "upstream-cut" Upstream,

    /// The client took no byte of the response for `server.write_timeout`.
    WriteTimedOut "write-timed-out" Client,
    /// The client left before it had the whole response.
    ClientGone "client-gone" Client,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn words_are_unique_and_need_no_escaping() {
        let mut words = HashSet::new();
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index, "{outcome}");
            assert!(words.insert(outcome.word()), "{outcome}");
            assert!(
                outcome
                    .word()
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'-'),
                "{outcome}"
            );
        }
    }
}
