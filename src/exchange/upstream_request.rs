//! Writes the request for the upstream: its head, and how its body is framed.

use http::{HeaderName, header};
use http_body::Body as _;

use crate::{
    config::Level,
    exchange::{
        scope::Exchange,
        upload::{Upload, UploadBody},
    },
    fields::{Fields, line},
    http1::{
        headers,
        request::{Present, RequestHead},
        request_head,
    },
    memory::prices::in_step,
    observe::log,
    route::{Route, Scheme, Target},
};

impl Exchange<'_> {
    /// Writes the head for the upstream, and gives the framing of the body.
    pub fn upload(&self, route: &Route, target: &Target, parts: &RequestHead) -> Upload {
        let present = &parts.present;
        let has_body = !self.client.is_end_stream();
        // an HTTP/2 body without Content-Length has no known length (RFC 9112 §6.1)
        let chunked = present.transfer_encoding || (has_body && !present.content_length);
        let authority = self.authority(parts);
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(parts.method.as_str().as_bytes());
        out.push(b' ');
        route.push_joined(&target.base, parts.uri.path(), parts.uri.query(), &mut out);
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let headers = &parts.headers;
        let subject = self.client.certificate_subject();
        headers::write_request(
            &mut out,
            headers,
            present,
            &route.request_headers,
            host_for(route, target, authority),
            authority.as_bytes(),
            self.sender(subject.as_deref()),
        );
        let mut withheld = Vec::new();
        if chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        // in HTTP/2 trailers may follow any body
        if chunked || (has_body && target.origin.http2) {
            withheld = withheld_trailers(route, headers, present);
            if present.trailer
                && let Some(names) =
                    headers::joined_trailers(headers.get_all(header::TRAILER), &withheld)
            {
                line(&mut out, b"trailer", &names);
            }
        }
        let is_websocket = present.upgrade && !has_body && headers::wants_websocket(parts);
        let takes_trailers = present.te && !self.is_http10 && headers::takes_trailers(headers);
        self.wants_websocket.set(is_websocket);
        self.takes_trailers.set(takes_trailers);
        headers::hop_fields(&mut out, takes_trailers, is_websocket);
        out.extend_from_slice(b"\r\n");
        let body = has_body.then(|| UploadBody {
            chunked,
            limit: route.max_body_size,
            held_back: self.client.awaits_word(),
            withheld,
        });
        Upload::new(in_step(out), body)
    }

    /// Whether the client used https: according to a trusted sender, otherwise by its own connection.
    pub fn is_sent_by_https(&self, parts: &RequestHead) -> bool {
        if parts.present.forwarded_proto && self.sender(None).trusted {
            return headers::says_https(&parts.headers);
        }
        self.client.is_secured()
    }

    /// The client's scheme: that of [`is_sent_by_https`](Self::is_sent_by_https), but always https on a connection with
    /// TLS.
    pub fn scheme(&self, parts: &RequestHead) -> Scheme {
        let is_https = self.client.is_secured() || self.is_sent_by_https(parts);
        if is_https {
            Scheme::Https
        } else {
            Scheme::Http
        }
    }

    /// Records the upstream for the log.
    pub fn note_upstream(&self, route: &Route, target: &Target) {
        if let Some(record) = &mut *self.client.exchange_context.record.borrow_mut() {
            record.upstream = Some(target.origin.to_string());
        }
        if log::enabled(Level::Debug) {
            let subject = self.client.exchange_context.subject;
            let (mut path, asked) = (Vec::new(), subject.path());
            route.push_joined(&target.base, asked, None, &mut path);
            let url = format!("{}{}", target.origin, String::from_utf8_lossy(&path));
            log::debug(
                "forward",
                &[("method", &subject.method), ("path", &asked), ("url", &url)],
            );
        }
    }
}

/// The Host for the upstream: the one that the route sets, the client's where the route preserves it, or the target's.
#[inline]
fn host_for<'a>(route: &'a Route, target: &'a Target, authority: &'a str) -> &'a [u8] {
    let mut set = route.request_headers.set.iter();
    match set.find(|(name, _)| name == header::HOST) {
        Some((_, value)) => value.as_bytes(),
        None if route.preserve_host && !authority.is_empty() => authority.as_bytes(),
        None => target.host_header.as_bytes(),
    }
}

/// Names that are not passed on in trailers: those that the route edits, and those that Connection lists.
fn withheld_trailers(route: &Route, headers: &Fields, present: &Present) -> Vec<HeaderName> {
    let mut withheld: Vec<HeaderName> = route.request_headers.names().cloned().collect();
    if present.connection {
        withheld.extend(headers::nominated(headers.get_all(header::CONNECTION)));
    }
    withheld
}

/// The length in a request's Content-Length.
pub fn content_length(headers: &Fields) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(request_head::decimal)
}
