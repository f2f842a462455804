//! The life of a request, in order: judge, probe, route, admit, connect, forward, stream.
//!
//! [`handle`] never fails; [`Exchange::answer`] does, and its failures become statuses and log lines here and nowhere
//! else. What an exchange holds is given back when the kernel has the last byte of its answer, or when all is dropped.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use http::{
    Method, StatusCode,
    header::{self, HeaderMap, HeaderValue},
    request,
};

use crate::{
    answer::Head,
    body::{Body, Ride, Tunnel},
    config::Level,
    cors::{Grant, Verdict},
    deadline::Limits,
    failure::{Blame, Failure},
    forward::{Attempt, Miss},
    gate::{Client, Gate},
    headers::{self, Present, Sender},
    health,
    log::{self, Record},
    metrics,
    park::{Order, Watch},
    pool::{Checkout, Host, Lease, Place},
    queue::{Claim, Queue},
    respond::{self, Answer, Manner},
    route::{Address, Found, Origin, Route, holds_dot_segment},
    screen,
    wire::{Download, Upload, UploadBody, Upstream},
    worker::{State, Worker},
};

/// One request with its response, and what every step of it needs. The request's own head is not among it: it is let
/// go as soon as it is written to the upstream.
struct Exchange<'a> {
    worker: &'a Worker,
    state: &'a State,
    client: Client<'a>,
    method: Method,
    /// Whether the client speaks HTTP/1.0.
    is_old: bool,
    /// For the log.
    path: Box<str>,
    /// Answer without an upstream: there is no memory for more.
    is_full: bool,
    /// The client takes trailers.
    takes_trailers: Cell<bool>,
    /// The client asked for a WebSocket.
    wants_websocket: Cell<bool>,
    /// A place among `max_tunnels`, where it may become one.
    tunnel: Cell<Option<Place>>,
}

/// How an exchange ended.
pub enum End {
    /// The client can go on.
    Stays,
    /// It has its answer, and must go.
    Closes,
    /// It has gone, or its answer broke off.
    Broken,
    /// It is to be joined with the upstream.
    Tunnel(Box<Tunnel>),
}

/// Answers a request, whatever comes, and sends the answer to its end. `began` is when it was whole, in the park's time,
/// before it waited for memory; `is_full` = without an upstream, for there is no memory for more.
pub async fn handle(
    worker: &Worker,
    gate: &RefCell<Gate>,
    watch: &Watch,
    parts: Box<request::Parts>,
    began: u32,
    is_full: bool,
) -> End {
    let state = worker.state();
    let ride = ride(worker, watch, &parts, began);
    let room = worker.room(state.config.transport.write_buffer_size);
    let client = Client::new(
        gate,
        &ride,
        &worker.buffers,
        room,
        state.config.server.write_timeout,
    );
    let mut manner = Manner::of(&parts);
    let exchange = Exchange {
        worker,
        state: &state,
        client,
        method: parts.method.clone(),
        is_old: manner.is_old,
        path: parts.uri.path().into(),
        is_full,
        takes_trailers: Cell::new(false),
        wants_websocket: Cell::new(false),
        tunnel: Cell::new(None),
    };
    let mut answer = exchange.judge(parts).await;
    manner.stays &= !worker.draining.get() && !is_full && !gate.borrow().receives_wide();
    worker.metrics.answered(answer.status.as_u16());
    if let Some(record) = &mut *ride.record.borrow_mut() {
        record.status = answer.status.as_u16();
        if record.outcome == "client-gone" {
            record.outcome = "ok";
        }
    }
    let tunnel = answer.tunnel.take();
    match respond::send(&client, answer, manner).await {
        Err(_) => End::Broken,
        Ok(stays) => match tunnel {
            Some(upstream) => End::Tunnel(Box::new(Tunnel {
                upstream: *upstream,
                record: ride.record.take(),
                place: exchange.tunnel.take(),
            })),
            None if stays => End::Stays,
            None => End::Closes,
        },
    }
}

fn ride<'a>(worker: &'a Worker, watch: &'a Watch, parts: &request::Parts, began: u32) -> Ride<'a> {
    metrics::count(&worker.metrics.exchanges);
    let record = log::access_enabled()
        .then(|| {
            Record::begin(
                watch.client(),
                parts.method.as_str(),
                authority(parts).as_bytes(),
                parts.uri.path(),
            )
        })
        .flatten();
    Ride {
        watch,
        began,
        place: RefCell::default(),
        record: RefCell::new(record),
        received: Cell::new(0),
        sent: Cell::new(0),
        complete: Cell::new(false),
        metrics: &worker.metrics,
    }
}

impl Exchange<'_> {
    /// CORS around everything: a preflight is answered here, every other answer is stamped.
    async fn judge(&self, parts: Box<request::Parts>) -> Answer {
        let path = &*self.path;
        let config = &self.state.config;
        if path == "*" {
            return empty(StatusCode::NO_CONTENT, HeaderMap::new());
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
            Some(Verdict::Answer(status, headers)) => return empty(status, headers),
            Some(Verdict::Grant(grant)) => grant,
            None => Grant::default(),
        };
        let mut answer = match found {
            _ if self.method == Method::TRACE => self.fail(&Failure::MethodNotAllowed),
            _ if is_health => self.health(&parts),
            Found::Route(route) => match self.answer(route, parts).await {
                Ok(answer) => answer,
                Err(failure) => self.fail(&failure),
            },
            Found::AddSlash(route) => add_slash(route, parts.uri.query()),
            Found::Nothing if is_outside => self.fail(&Failure::DotSegment),
            Found::Nothing => self.fail(&Failure::NoRoute),
        };
        if let Some(policy) = policy {
            policy.stamp(&grant, &mut answer.headers);
        }
        answer
    }

    fn health(&self, parts: &request::Parts) -> Answer {
        if !matches!(self.method, Method::GET | Method::HEAD) {
            let mut answer = self.fail(&Failure::MethodNotAllowed);
            answer
                .headers
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        let accept = parts.headers.get(header::ACCEPT).map(HeaderValue::as_bytes);
        let (status, kind, text) =
            self.state
                .report
                .answer(accept, parts.uri.query(), self.worker.draining.get());
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static(health::CACHE_CONTROL),
        );
        Answer::new(status, headers, Body::Made(text.to_vec()))
    }

    /// The one place where a failure becomes a status and a log line.
    fn fail(&self, failure: &Failure) -> Answer {
        self.worker.metrics.failed(failure.outcome());
        if let Some(record) = &mut *self.client.ride.record.borrow_mut() {
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
        let mut headers = HeaderMap::new();
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
        let text = failure.sentence().as_bytes();
        Answer::new(failure.status(), headers, Body::Own(text))
    }

    /// Admit, connect, forward, and hand over the stream.
    async fn answer(&self, route: &Route, parts: Box<request::Parts>) -> Result<Answer, Failure> {
        if self.is_full {
            return Err(Failure::NoMemory);
        }
        let present = Present::of(&parts.headers);
        if let Some(limit) = route.max_body_size
            && present.content_length
            && content_length(&parts.headers).is_some_and(|length| length > limit)
        {
            return Err(Failure::BodyTooLarge);
        }
        if present.upgrade && self.client.is_between() && headers::wants_websocket(&parts) {
            self.wants_websocket.set(true);
            let place = self.worker.tunnels.take().ok_or(Failure::NoTunnel)?;
            self.tunnel.set(Some(place));
        }
        self.take_place().await?;
        let host = self.state.host(route);
        let checkout = self.checkout(host).await?;
        self.client.ride.watch.asks(host.id);
        let mut upload = self.upload(route, &parts, &present);
        drop(parts);
        // a wait or a connect is rare, and its future large: boxed, it costs the others nothing
        let (mut lease, mut reused) = match checkout {
            Checkout::Reused(lease) => (lease, true),
            Checkout::Room(lease) => (Box::pin(self.dial(lease)).await?, false),
        };
        self.note_upstream(route);
        let room = self
            .worker
            .room(self.state.config.transport.read_buffer_size);
        loop {
            let mut upstream = Upstream::new(lease, room);
            match self
                .attempt(route, &mut upload, &mut upstream, reused)
                .await
            {
                Ok(head) => return self.hand_over(route, head, upload, upstream),
                Err(Miss::Failed(failure)) => return Err(failure),
                Err(Miss::Stale) => {}
            }
            metrics::count(&self.worker.metrics.retries);
            log::debug("once more on a fresh connection", &[("path", &self.path)]);
            drop(upstream);
            upload.rewind();
            let unused = Box::pin(self.wait(host, || host.room())).await?;
            lease = Box::pin(self.dial(unused)).await?;
            reused = false;
        }
    }

    /// Takes one of `max_concurrent_requests`, and waits for it no longer than `queue_timeout`.
    async fn take_place(&self) -> Result<(), Failure> {
        let places = &self.worker.places;
        let at_once = places.take().filter(|_| places.queue.len() == 0);
        let place = match at_once {
            Some(place) => place,
            None => Box::pin(self.in_line(&places.queue, || places.take()))
                .await
                .ok_or(Failure::NoPlace)?,
        };
        *self.client.ride.place.borrow_mut() = Some(place);
        self.client.ride.watch.has_place();
        Ok(())
    }

    /// Waits in a line, no longer than `queue_timeout` allows.
    async fn in_line<T>(&self, queue: &Queue, take: impl FnMut() -> Option<T>) -> Option<T> {
        let _waiting = metrics::Held::new(&self.worker.metrics.waiting);
        let limit = Some(self.state.config.proxy.queue_timeout);
        let ride = self.client.ride;
        let watch = ride.watch;
        let claim = Claim {
            group: watch.group(),
            since: ride.began,
            is_whole: self.client.is_between(),
        };
        watch.queues(true);
        let line = queue.until(claim, take);
        let taken = watch.within_rest(Some(self.patience()), limit, line).await;
        watch.queues(false);
        taken.ok()
    }

    /// What is left of `queue_timeout`: the waits for memory, for a place and for a connection share it.
    fn patience(&self) -> Duration {
        let waited = self.worker.park.now().wrapping_sub(self.client.ride.began);
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
        Box::pin(self.wait(host, || host.checkout())).await
    }

    /// Waits in a host's line.
    async fn wait<T>(&self, host: &Host, take: impl FnMut() -> Option<T>) -> Result<T, Failure> {
        self.in_line(&host.queue, take)
            .await
            .ok_or(Failure::NoConnection)
    }

    async fn dial(&self, mut lease: Lease) -> Result<Lease, Failure> {
        let metrics = &self.worker.metrics;
        metrics::count(&metrics.dials);
        let host = Rc::clone(lease.host());
        let dial = self.state.dialer.dial(&host.origin);
        let dialled = self
            .client
            .ride
            .watch
            .within(self.state.config.transport.dial_timeout, dial)
            .await;
        let is_evicted = self.client.ride.watch.order() == Order::Leave;
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
    fn upload(&self, route: &Route, parts: &request::Parts, present: &Present) -> Upload {
        let has_body = !self.client.is_between();
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
        if self.wants_websocket.get() {
            out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
        }
        out.extend_from_slice(b"\r\n");
        self.takes_trailers
            .set(present.te && headers::takes_trailers(headers));
        let body = has_body.then(|| UploadBody {
            chunked,
            limit: route.max_body_size,
            held_back: self.client.awaits_word(),
        });
        Upload::new(out, body)
    }

    fn sender(&self) -> Sender {
        let client = self.client.ride.watch.client();
        let trusted = &self.state.config.server.trusted_proxies;
        let is_trusted =
            client.is_none_or(|client| trusted.iter().any(|network| network.contains(client)));
        Sender {
            client,
            trusted: trusted.is_empty() || is_trusted,
        }
    }

    fn note_upstream(&self, route: &Route) {
        if let Some(record) = &mut *self.client.ride.record.borrow_mut() {
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
            client: &self.client,
            limits: self.limits(route),
            method: &self.method,
            is_old: self.is_old,
        };
        attempt.make(upload, upstream, reused).await
    }

    fn limits(&self, route: &Route) -> Limits {
        Limits::of(&self.state.config.server, route.response_header_timeout)
    }

    /// Makes the answer out of the upstream's head, and lets the rest follow by itself.
    fn hand_over(
        &self,
        route: &Route,
        mut head: Head,
        upload: Upload,
        mut upstream: Upstream,
    ) -> Result<Answer, Failure> {
        let watch = self.client.ride.watch;
        let (status, reason) = (head.status, head.reason.take());
        let mut headers = std::mem::take(&mut head.headers);
        route.response_headers.apply(&mut headers);
        watch.streams();
        let (body, tunnel) = if status == StatusCode::SWITCHING_PROTOCOLS {
            if !(head.websocket && self.wants_websocket.get()) {
                return Err(Failure::UpstreamGarbled("a 101 that nobody asked for"));
            }
            upstream.lease.detach();
            *self.client.ride.place.borrow_mut() = None;
            (Body::Own(b""), Some(Box::new(upstream)))
        } else {
            upstream.release();
            let download = Download::new(
                upstream,
                (!upload.is_done()).then_some(upload),
                head,
                self.takes_trailers.get(),
                self.limits(route),
                watch.now(),
            );
            (Body::Upstream(Box::new(download)), None)
        };
        Ok(Answer {
            status,
            reason,
            headers,
            body,
            tunnel,
        })
    }
}

fn add_slash(route: &Route, query: Option<&str>) -> Answer {
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    let mut headers = HeaderMap::new();
    if let Ok(location) = HeaderValue::try_from(format!("{}{query}", route.path)) {
        headers.insert(header::LOCATION, location);
    }
    empty(StatusCode::TEMPORARY_REDIRECT, headers)
}

fn empty(status: StatusCode, headers: HeaderMap) -> Answer {
    Answer::new(status, headers, Body::Own(b""))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| screen::decimal(value.as_bytes()))
}
/// The host that was asked for: the target's own, or Host (RFC 9112 §3.2.2); empty where HTTP/1.0 gives none.
fn authority(parts: &request::Parts) -> &str {
    let asked = parts.uri.authority().map(http::uri::Authority::as_str);
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
