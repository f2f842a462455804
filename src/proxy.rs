//! The life of a request, in order: judge, probe, route, admit, connect, forward, stream.
//!
//! [`handle`] never fails; [`Exchange::answer`] does, and its failures become statuses and log lines here and nowhere
//! else. What an exchange holds rides on its response body until the last byte is gone.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::Incoming,
    header::{self, HeaderMap, HeaderValue},
    http::request,
};

use crate::{
    body::{Body, Ride, Signals, Tunnel},
    config::Level,
    cors::{Grant, Verdict},
    failure::{Blame, Failure},
    forward::{Attempt, Miss},
    headers::{self, Present, Sender},
    health,
    log::{self, Record},
    metrics,
    park::Order,
    pool::{Checkout, Host, Lease},
    route::{Address, Found, Origin, Route, holds_dot_segment},
    screen,
    wire::{Delimiter, Download, Head, Upload, Upstream},
    worker::{State, Worker},
};

/// One request with its response, and what every step of it needs. The request's own head is not among it: it is let
/// go as soon as it is written to the upstream, for it holds hyper's whole read buffer.
struct Exchange<'a> {
    worker: &'a Worker,
    state: &'a State,
    ride: &'a Rc<Ride>,
    method: Method,
    /// Whether the client speaks HTTP/1.0.
    is_old: bool,
    /// For the log.
    path: Box<str>,
    /// The client takes trailers.
    takes_trailers: Cell<bool>,
    /// The client asked for a WebSocket.
    wants_websocket: Cell<bool>,
}
/// Answers a request, whatever comes.
///
/// # Errors
/// None.
pub async fn handle(
    worker: Rc<Worker>,
    signals: Rc<Signals>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let state = worker.state();
    let (parts, body) = request.into_parts();
    let ride = ride(&worker, signals, &parts);
    let exchange = Exchange {
        worker: &worker,
        state: &state,
        ride: &ride,
        method: parts.method.clone(),
        is_old: parts.version == Version::HTTP_10,
        path: parts.uri.path().into(),
        takes_trailers: Cell::new(false),
        wants_websocket: Cell::new(false),
    };
    let mut response = exchange.judge(parts, body).await;
    if worker.draining.get() || ride.signals.full.get() {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    worker.metrics.answered(response.status().as_u16());
    if let Some(record) = &mut *ride.record.borrow_mut() {
        record.status = response.status().as_u16();
        if record.outcome == "client-gone" {
            record.outcome = "ok";
        }
    }
    Ok(response)
}

fn ride(worker: &Worker, signals: Rc<Signals>, parts: &request::Parts) -> Rc<Ride> {
    metrics::count(&worker.metrics.exchanges);
    let record = log::access_enabled()
        .then(|| {
            Record::begin(
                signals.watch.client(),
                parts.method.as_str(),
                authority(parts).as_bytes(),
                parts.uri.path(),
            )
        })
        .flatten();
    Rc::new(Ride {
        signals,
        buffers: Rc::clone(&worker.buffers),
        place: RefCell::default(),
        record: RefCell::new(record),
        received: Cell::new(0),
        sent: Cell::new(0),
        cut: Cell::new(false),
        metrics: Arc::clone(&worker.metrics),
    })
}
impl Exchange<'_> {
    /// CORS around everything: a preflight is answered here, every other answer is stamped.
    async fn judge(&self, parts: request::Parts, body: Incoming) -> Response<Body> {
        let path = &*self.path;
        let config = &self.state.config;
        if path == "*" {
            return self.empty(StatusCode::NO_CONTENT, HeaderMap::new());
        }
        let is_health = path == config.health_path;
        let is_outside = holds_dot_segment(path);
        let found = if is_health || is_outside {
            Found::Nothing
        } else {
            config.routes.find(authority(&parts), path)
        };
        let policy = match &found {
            Found::Route(route) | Found::AddSlash(route) => route.cors.as_ref(),
            Found::Nothing => config.cors.as_ref(),
        };
        let grant = match policy.map(|policy| policy.judge(&self.method, &parts.headers)) {
            Some(Verdict::Answer(status, headers)) => return self.empty(status, headers),
            Some(Verdict::Grant(grant)) => grant,
            None => Grant::default(),
        };
        let mut response = match found {
            _ if self.method == Method::TRACE => self.fail(&Failure::MethodNotAllowed),
            _ if is_health => self.health(&parts),
            Found::Route(route) => match self.answer(route, parts, body).await {
                Ok(response) => response,
                Err(failure) => self.fail(&failure),
            },
            Found::AddSlash(route) => self.add_slash(route, parts.uri.query()),
            Found::Nothing if is_outside => self.fail(&Failure::DotSegment),
            Found::Nothing => self.fail(&Failure::NoRoute),
        };
        if let Some(policy) = policy {
            policy.stamp(&grant, response.headers_mut());
        }
        response
    }

    fn health(&self, parts: &request::Parts) -> Response<Body> {
        if !matches!(self.method, Method::GET | Method::HEAD) {
            let mut response = self.fail(&Failure::MethodNotAllowed);
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let accept = parts.headers.get(header::ACCEPT).map(HeaderValue::as_bytes);
        let (status, kind, text) =
            self.state
                .report
                .answer(accept, parts.uri.query(), self.worker.draining.get());
        let mut response = Response::new(Body::made(Rc::clone(self.ride), text.to_vec()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static(health::CACHE_CONTROL),
        );
        response
    }

    fn add_slash(&self, route: &Route, query: Option<&str>) -> Response<Body> {
        let query = query.map_or_else(String::new, |query| format!("?{query}"));
        let mut response = self.empty(StatusCode::TEMPORARY_REDIRECT, HeaderMap::new());
        if let Ok(location) = HeaderValue::try_from(format!("{}{query}", route.path)) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }

    fn empty(&self, status: StatusCode, headers: HeaderMap) -> Response<Body> {
        let mut response = Response::new(Body::own(Rc::clone(self.ride), b""));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// The one place where a failure becomes a status and a log line.
    fn fail(&self, failure: &Failure) -> Response<Body> {
        self.worker.metrics.failed(failure.outcome());
        if let Some(record) = &mut *self.ride.record.borrow_mut() {
            record.outcome = failure.outcome();
        }
        let level = if failure.blame() == Blame::Client {
            Level::Debug
        } else {
            Level::Warn
        };
        if log::enabled(level) {
            log::event(
                level,
                "no answer",
                &[
                    ("method", &self.method),
                    ("path", &self.path),
                    ("status", &failure.status().as_u16()),
                    ("reason", failure),
                ],
            );
        }
        let mut response = Response::new(Body::own(
            Rc::clone(self.ride),
            failure.sentence().as_bytes(),
        ));
        *response.status_mut() = failure.status();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        if let Some(seconds) = failure.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if let Some(methods) = failure.allow() {
            headers.insert(header::ALLOW, HeaderValue::from_static(methods));
        }
        response
    }

    /// Admit, connect, forward, and hand over the stream.
    async fn answer(
        &self,
        route: &Route,
        parts: request::Parts,
        body: Incoming,
    ) -> Result<Response<Body>, Failure> {
        if self.ride.signals.full.get() {
            return Err(Failure::NoMemory);
        }
        let present = Present::of(&parts.headers);
        if let Some(limit) = route.max_body_size
            && present.content_length
            && content_length(&parts.headers).is_some_and(|length| length > limit)
        {
            return Err(Failure::BodyTooLarge);
        }
        self.take_place().await?;
        let host = self.state.host(route);
        let checkout = self.checkout(host).await?;
        self.ride.signals.watch.asks(host.id);
        let mut upload = self.upload(route, &parts, &present, body);
        drop(parts);
        let (lease, reused) = match checkout {
            Checkout::Reused(lease) => (lease, true),
            Checkout::Room(lease) => (self.dial(lease).await?, false),
        };
        self.note_upstream(route);
        let mut upstream = Upstream::new(lease, self.read_size());
        let mut attempt = self
            .attempt(route, &mut upload, &mut upstream, reused)
            .await;
        if let Err(Miss::Stale) = attempt {
            metrics::count(&self.worker.metrics.retries);
            log::debug("once more on a fresh connection", &[("path", &self.path)]);
            drop(upstream);
            upload.rewind();
            let room = self.wait(host, || host.room()).await?;
            upstream = Upstream::new(self.dial(room).await?, self.read_size());
            attempt = self.attempt(route, &mut upload, &mut upstream, false).await;
        }
        match attempt {
            Ok(head) => self.hand_over(route, head, upload, upstream),
            Err(Miss::Failed(failure)) => Err(failure),
            Err(Miss::Stale) => Err(Failure::UpstreamClosed("a fresh connection".to_owned())),
        }
    }

    fn read_size(&self) -> usize {
        self.worker
            .buffer_size(self.state.config.transport.read_buffer_size)
    }

    /// Takes one of `max_concurrent_requests`, and waits for it no longer than `queue_timeout`.
    async fn take_place(&self) -> Result<(), Failure> {
        let places = &self.worker.places;
        let place = match places.take() {
            Some(place) if places.queue.len() == 0 => place,
            taken => {
                drop(taken);
                metrics::count(&self.worker.metrics.waiting);
                let limit = Some(self.patience());
                let place = self
                    .ride
                    .signals
                    .watch
                    .within(limit, places.queue.until(|| places.take()))
                    .await;
                metrics::gone(&self.worker.metrics.waiting);
                place.map_err(|_| Failure::NoPlace)?
            }
        };
        *self.ride.place.borrow_mut() = Some(place);
        Ok(())
    }

    /// What is left of `queue_timeout`: the waits for memory, for a place and for a connection share it.
    fn patience(&self) -> Duration {
        let waited = self
            .worker
            .park
            .now()
            .wrapping_sub(self.ride.signals.began.get());
        self.state
            .config
            .proxy
            .queue_timeout
            .saturating_sub(Duration::from_millis(u64::from(waited)))
    }

    async fn checkout(&self, host: &Rc<Host>) -> Result<Checkout, Failure> {
        if host.queue.len() == 0
            && let Some(checkout) = host.checkout()
        {
            return Ok(checkout);
        }
        self.wait(host, || host.checkout()).await
    }

    /// Waits in a host's line.
    async fn wait<T>(&self, host: &Host, take: impl FnMut() -> Option<T>) -> Result<T, Failure> {
        let limit = self.patience();
        metrics::count(&self.worker.metrics.waiting);
        let taken = self
            .ride
            .signals
            .watch
            .within(Some(limit), host.queue.until(take))
            .await;
        metrics::gone(&self.worker.metrics.waiting);
        taken.map_err(|_| Failure::NoConnection)
    }

    async fn dial(&self, mut lease: Lease) -> Result<Lease, Failure> {
        let metrics = &self.worker.metrics;
        metrics::count(&metrics.dials);
        let host = Rc::clone(lease.host());
        // boxed: it is large, rare, and would else be paid for by every exchange
        let dial = Box::pin(self.state.dialer.dial(&host.origin));
        let dialled = self
            .ride
            .signals
            .watch
            .within(self.state.config.transport.dial_timeout, dial)
            .await;
        let is_evicted = self.ride.signals.watch.order() == Order::Leave;
        let late = |_| {
            if is_evicted {
                Failure::NoMemory
            } else {
                Failure::DialTimedOut
            }
        };
        match dialled.map_err(late).flatten() {
            Ok(io) => {
                lease.io = Some(io);
                Ok(lease)
            }
            Err(failure) => {
                metrics::count(&metrics.dial_failures);
                Err(failure)
            }
        }
    }

    /// Writes the head that the upstream gets, and says how the body follows.
    fn upload(
        &self,
        route: &Route,
        parts: &request::Parts,
        present: &Present,
        body: Incoming,
    ) -> Upload {
        let has_body = !hyper::body::Body::is_end_stream(&body);
        let chunked = present.transfer_encoding;
        let authority = authority(parts);
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(parts.method.as_str().as_bytes());
        out.push(b' ');
        route.push_upstream_path(parts.uri.path(), parts.uri.query(), &mut out);
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let set_host = route
            .request_headers
            .set
            .iter()
            .find(|(name, _)| name == header::HOST)
            .map(|(_, value)| value.as_bytes());
        let host = set_host.unwrap_or(if route.preserve_host && !authority.is_empty() {
            authority.as_bytes()
        } else {
            route.target.host_header.as_bytes()
        });
        let headers = &parts.headers;
        headers::write_request(
            &mut out,
            headers,
            present,
            &route.request_headers,
            host,
            authority.as_bytes(),
            self.sender(),
        );
        if chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            if present.trailer
                && let Some(names) = headers::announced_trailers(headers)
            {
                headers::line(&mut out, b"trailer", names.as_bytes());
            }
        }
        if present.upgrade && !has_body && !chunked && headers::wants_websocket(parts) {
            self.wants_websocket.set(true);
            out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
        }
        out.extend_from_slice(b"\r\n");
        self.takes_trailers
            .set(present.te && headers::takes_trailers(headers));
        let expects = present.expect
            && !self.is_old
            && headers
                .get(header::EXPECT)
                .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        Upload::new(
            out,
            (has_body || chunked).then_some(body),
            chunked,
            route.max_body_size,
            has_body && expects,
        )
    }

    fn sender(&self) -> Sender {
        let client = self.ride.signals.watch.client();
        let trusted = &self.state.config.server.trusted_proxies;
        let is_trusted =
            client.is_none_or(|client| trusted.iter().any(|network| network.contains(client)));
        Sender {
            client,
            trusted: trusted.is_empty() || is_trusted,
        }
    }

    fn note_upstream(&self, route: &Route) {
        if let Some(record) = &mut *self.ride.record.borrow_mut() {
            record.upstream = Some(name(&route.target.origin));
        }
        if log::enabled(Level::Debug) {
            let mut path = Vec::new();
            route.push_upstream_path(&self.path, None, &mut path);
            let url = format!(
                "{}{}",
                name(&route.target.origin),
                String::from_utf8_lossy(&path)
            );
            log::debug(
                "forward",
                &[
                    ("method", &self.method),
                    ("path", &self.path),
                    ("url", &url),
                ],
            );
        }
    }

    async fn attempt(
        &self,
        route: &Route,
        upload: &mut Upload,
        upstream: &mut Upstream,
        reused: bool,
    ) -> Result<Head, Miss> {
        let attempt = Attempt {
            ride: self.ride,
            server: &self.state.config.server,
            method: &self.method,
            is_old: self.is_old,
            limit: route.response_header_timeout,
        };
        attempt.make(upload, upstream, reused).await
    }

    /// Makes the response out of the upstream's head, and lets the rest follow by itself.
    fn hand_over(
        &self,
        route: &Route,
        mut head: Head,
        upload: Upload,
        mut upstream: Upstream,
    ) -> Result<Response<Body>, Failure> {
        let buffers = &self.worker.buffers;
        let mut headers = std::mem::take(&mut head.headers);
        let (status, reason) = (head.status, head.reason.take());
        route.response_headers.apply(&mut headers);
        self.ride.signals.watch.streams();
        let body = if status == StatusCode::SWITCHING_PROTOCOLS {
            if !(head.websocket && self.wants_websocket.get()) {
                return Err(Failure::UpstreamGarbled("a 101 that nobody asked for"));
            }
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            let record = self.ride.record.take();
            *self.ride.signals.tunnel.borrow_mut() = Some(Box::new(Tunnel { upstream, record }));
            Body::own(Rc::clone(self.ride), b"")
        } else {
            upstream.release(buffers);
            let upload = (!upload.is_done()).then_some(upload);
            if self.is_old && matches!(head.delimiter, Delimiter::Chunked(_) | Delimiter::Close) {
                // HTTP/1.0 knows no chunks: the close is the end, whatever the client would like
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                self.ride.signals.reset.set(true);
            }
            let takes_trailers = self.takes_trailers.get();
            Body::upstream(
                Rc::clone(self.ride),
                Download::new(
                    upstream,
                    upload,
                    head,
                    takes_trailers,
                    self.state.config.server.read_timeout,
                    self.ride.signals.watch.clone(),
                ),
            )
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        if headers
            .get(header::CONNECTION)
            .is_some_and(|option| option == "close")
        {
            // else hyper promises an HTTP/1.0 client that asks for it to stay
            *response.version_mut() = Version::HTTP_10;
        }
        *response.headers_mut() = headers;
        if let Some(reason) = reason {
            response.extensions_mut().insert(reason);
        }
        Ok(response)
    }
}
fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| screen::decimal(value.as_bytes()))
}
/// The host that was asked for: the target's own, or Host (RFC 9112 §3.2.2); empty where HTTP/1.0 gives none.
fn authority(parts: &request::Parts) -> &str {
    let asked = parts
        .uri
        .authority()
        .map(hyper::http::uri::Authority::as_str);
    let host = || {
        parts
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
    };
    asked.or_else(host).unwrap_or_default()
}
/// An origin as the log shows it.
fn name(origin: &Origin) -> String {
    let scheme = if origin.tls.is_some() {
        "https"
    } else {
        "http"
    };
    match &origin.address {
        Address::Tcp(host, port) => format!("{scheme}://{host}:{port}"),
        Address::Unix(path) => format!("unix:{}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_output<A, B, C, R>(_: impl Fn(A, B, C) -> R) -> usize {
        size_of::<R>()
    }

    #[test]
    fn what_hyper_keeps_for_every_connection_is_small() {
        let size = size_of_output(handle);
        assert!(size <= 2_688, "{size} bytes");
    }
}
