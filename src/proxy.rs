//! The life of a request, in order: judge, probe, route, admit, connect, forward, stream.
//!
//! [`Worker::handle`] never fails; [`Worker::answer`] does, and its failures become statuses and log lines here and
//! nowhere else. What an exchange holds rides on its response body until the last byte is gone.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::Incoming,
    header::{self, HeaderMap, HeaderValue},
    http::request,
};

use crate::{
    body::{Body, Ride, Signals},
    budget::{BUFFER, Budget, Buffers},
    config::{Config, Level},
    cors::{Grant, Verdict},
    dial::{Dialer, SocketOptions},
    failure::{Blame, Failure},
    headers::{self, Present, Sender},
    health::{self, Report},
    keeper::EVICTED_AT_ONCE,
    log::{self, Record},
    metrics::{self, Metrics},
    park::{Order, Park},
    pool::{Checkout, Host, Lease, Places, Pool},
    route::{Address, Found, Origin, Route, holds_dot_segment},
    screen,
    wire::{Delimiter, Download, Head, Upload, UploadError, Upstream, read_head},
};

/// Interim answers (1xx) of one exchange; 502 above.
const MAX_INTERIM: u32 = 10;

/// How long an upstream may think about `Expect: 100-continue` before the body is sent all the same (as Go does).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Everything that the connections of one thread share.
pub struct Worker {
    /// The seats of its connections.
    pub park: Rc<Park>,
    /// What its strangers may cost.
    pub budget: Rc<Budget>,
    /// Its upstream connections.
    pub pool: Rc<Pool>,
    /// Its share of `max_concurrent_requests`.
    pub places: Rc<Places>,
    /// Places for answers that need no upstream when memory is spent.
    pub reserve: Rc<Places>,
    /// Read buffers.
    pub buffers: Rc<Buffers>,
    /// What one read of a request head may bring.
    pub scratch: Rc<RefCell<Box<[u8]>>>,
    /// Everybody's counters.
    pub metrics: Arc<Metrics>,
    /// Health says 503, and clients are told to leave.
    pub draining: Cell<bool>,
    state: RefCell<Rc<State>>,
    workers: usize,
    start: SystemTime,
}

/// What follows from one configuration; an exchange keeps the one it began with.
pub struct State {
    /// The configuration.
    pub config: Arc<Config>,
    report: Report,
    /// Whose connections each route uses, in the order of the routes.
    hosts: Vec<Rc<Host>>,
    dialer: Dialer,
}

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

/// How an attempt to send a request failed.
enum Attempt {
    /// A reused connection was closed before it answered.
    Stale,
    Failed(Failure),
}

impl Worker {
    /// One of `config.threads` workers.
    pub fn new(config: Arc<Config>, budget: Rc<Budget>, metrics: Arc<Metrics>, start: SystemTime) -> Rc<Worker> {
        let workers = config.threads;
        let pool = Pool::new(&config.transport, workers, Rc::clone(&budget), Arc::clone(&metrics));
        let state = State::new(config, &pool, &budget, start);
        Rc::new(Worker {
            park: Park::new(tick(&state.config)),
            places: Places::new(state.config.proxy.max_concurrent_requests, workers),
            reserve: Places::new(Some(2), 1),
            buffers: Rc::default(),
            scratch: Rc::new(RefCell::new(vec![0; BUFFER].into_boxed_slice())),
            draining: Cell::new(false),
            state: RefCell::new(Rc::new(state)),
            budget,
            pool,
            metrics,
            workers,
            start,
        })
    }

    /// What is in force now.
    pub fn state(&self) -> Rc<State> {
        Rc::clone(&self.state.borrow())
    }

    /// Takes over another configuration; exchanges in work keep theirs.
    pub fn reload(&self, config: Arc<Config>) {
        self.pool.set_limits(&config.transport, self.workers);
        self.places.set_limit(config.proxy.max_concurrent_requests, self.workers);
        self.park.set_tick(tick(&config));
        let state = State::new(config, &self.pool, &self.budget, self.start);
        *self.state.borrow_mut() = Rc::new(state);
    }

    /// Answers a request, whatever comes.
    ///
    /// # Errors
    /// None.
    pub async fn handle(self: Rc<Worker>, signals: Rc<Signals>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let state = self.state();
        let (parts, body) = request.into_parts();
        let ride = self.ride(signals, &parts);
        let exchange = Exchange {
            worker: &self,
            state: &state,
            ride: &ride,
            method: parts.method.clone(),
            is_old: parts.version == Version::HTTP_10,
            path: parts.uri.path().into(),
            takes_trailers: Cell::new(false),
            wants_websocket: Cell::new(false),
        };
        let mut response = exchange.judge(parts, body).await;
        if self.draining.get() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.metrics.answered(response.status().as_u16());
        if let Some(record) = &mut *ride.record.borrow_mut() {
            record.status = response.status().as_u16();
            if record.outcome == "client-gone" {
                record.outcome = "ok";
            }
        }
        Ok(response)
    }

    fn ride(&self, signals: Rc<Signals>, parts: &request::Parts) -> Rc<Ride> {
        metrics::count(&self.metrics.exchanges);
        let record = log::access_enabled()
            .then(|| Record::begin(signals.watch.client(), parts.method.as_str(), authority(parts).as_bytes(), parts.uri.path()))
            .flatten();
        Rc::new(Ride {
            signals,
            buffers: Rc::clone(&self.buffers),
            place: RefCell::default(),
            record: RefCell::new(record),
            sent: Cell::new(0),
            until_close: parts.version == Version::HTTP_10,
            metrics: Arc::clone(&self.metrics),
        })
    }

    /// Asks those who are silent longest to give way.
    pub fn make_room(&self) {
        let evicted = self.park.evict_silent(EVICTED_AT_ONCE, true);
        metrics::add(&self.metrics.connections_evicted, evicted as u64);
    }

    /// Bytes to read from an upstream or tunnel at a time.
    pub fn buffer_size(&self, least: usize) -> usize {
        if self.budget.is_short() { least } else { least.max(BUFFER) }
    }
}

impl State {
    fn new(config: Arc<Config>, pool: &Rc<Pool>, budget: &Budget, start: SystemTime) -> State {
        let plan = budget.plan();
        let dialer = Dialer::new(SocketOptions {
            keep_alive: config.transport.dial_keep_alive,
            receive_buffer: plan.socket_buffer,
            send_buffer: plan.socket_buffer,
            notsent_lowat: Some(plan.unsent),
        });
        let hosts = config.routes.iter().map(|route| pool.host(&route.target.origin)).collect();
        let report = Report::new(&config.version, start, config.routes.len());
        State { config, report, hosts, dialer }
    }

    fn host(&self, route: &Route) -> &Rc<Host> {
        let index = self.config.routes.iter().position(|other| std::ptr::eq(other, route));
        index.and_then(|index| self.hosts.get(index)).expect("every route of this configuration has its host")
    }
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
        let found = if is_health || is_outside { Found::Nothing } else { config.routes.find(authority(&parts), path) };
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
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let accept = parts.headers.get(header::ACCEPT).map(HeaderValue::as_bytes);
        let (status, kind, text) = self.state.report.answer(accept, parts.uri.query(), self.worker.draining.get());
        let mut response = Response::new(Body::made(Rc::clone(self.ride), text.to_vec()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(health::CACHE_CONTROL));
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
        let level = if failure.blame() == Blame::Client { Level::Debug } else { Level::Warn };
        if log::enabled(level) {
            log::event(level, "no answer", &[("method", &self.method), ("path", &self.path), ("status", &failure.status().as_u16()), ("reason", failure)]);
        }
        let mut response = Response::new(Body::own(Rc::clone(self.ride), failure.sentence().as_bytes()));
        *response.status_mut() = failure.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Some(seconds) = failure.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if let Some(methods) = failure.allow() {
            headers.insert(header::ALLOW, HeaderValue::from_static(methods));
        }
        response
    }

    /// Admit, connect, forward, and hand over the stream.
    async fn answer(&self, route: &Route, parts: request::Parts, body: Incoming) -> Result<Response<Body>, Failure> {
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
        let began = self.worker.park.now();
        self.take_place().await?;
        let host = self.state.host(route);
        let checkout = self.checkout(host, began).await?;
        let mut upload = self.upload(route, &parts, &present, body);
        drop(parts);
        let (lease, reused) = match checkout {
            Checkout::Reused(lease) => (lease, true),
            Checkout::Room(lease) => (self.dial(lease).await?, false),
        };
        self.note_upstream(route);
        let mut upstream = Upstream::new(lease, self.read_size());
        let mut attempt = self.attempt(route, &mut upload, &mut upstream, reused).await;
        if let Err(Attempt::Stale) = attempt {
            metrics::count(&self.worker.metrics.retries);
            log::debug("once more on a fresh connection", &[("path", &self.path)]);
            drop(upstream);
            upload.rewind();
            let room = self.wait(began, host, || host.room()).await?;
            upstream = Upstream::new(self.dial(room).await?, self.read_size());
            attempt = self.attempt(route, &mut upload, &mut upstream, false).await;
        }
        match attempt {
            Ok(head) => self.hand_over(route, head, upload, upstream),
            Err(Attempt::Failed(failure)) => Err(failure),
            Err(Attempt::Stale) => Err(Failure::UpstreamClosed("a fresh connection".to_owned())),
        }
    }

    fn read_size(&self) -> usize {
        self.worker.buffer_size(self.state.config.transport.read_buffer_size)
    }

    /// Takes one of `max_concurrent_requests`, and waits for it no longer than `queue_timeout`.
    async fn take_place(&self) -> Result<(), Failure> {
        let places = &self.worker.places;
        let place = match places.take() {
            Some(place) if places.queue.len() == 0 => place,
            taken => {
                drop(taken);
                metrics::count(&self.worker.metrics.waiting);
                let limit = Some(self.state.config.proxy.queue_timeout);
                let place = self.ride.signals.watch.within(limit, places.queue.until(|| places.take())).await;
                metrics::gone(&self.worker.metrics.waiting);
                place.map_err(|_| Failure::NoPlace)?
            }
        };
        *self.ride.place.borrow_mut() = Some(place);
        Ok(())
    }

    async fn checkout(&self, host: &Rc<Host>, began: u32) -> Result<Checkout, Failure> {
        if host.queue.len() == 0
            && let Some(checkout) = host.checkout()
        {
            return Ok(checkout);
        }
        self.wait(began, host, || host.checkout()).await
    }

    /// Waits in a host's line for what is left of `queue_timeout`.
    async fn wait<T>(&self, began: u32, host: &Host, take: impl FnMut() -> Option<T>) -> Result<T, Failure> {
        let waited = Duration::from_millis(u64::from(self.worker.park.now().wrapping_sub(began)));
        let limit = self.state.config.proxy.queue_timeout.saturating_sub(waited);
        metrics::count(&self.worker.metrics.waiting);
        let taken = self.ride.signals.watch.within(Some(limit), host.queue.until(take)).await;
        metrics::gone(&self.worker.metrics.waiting);
        taken.map_err(|_| Failure::NoConnection)
    }

    async fn dial(&self, mut lease: Lease) -> Result<Lease, Failure> {
        let metrics = &self.worker.metrics;
        metrics::count(&metrics.dials);
        let host = Rc::clone(lease.host());
        // boxed: it is large, rare, and would else be paid for by every exchange
        let dial = Box::pin(self.state.dialer.dial(&host.origin));
        let dialled = self.ride.signals.watch.within(self.state.config.transport.dial_timeout, dial).await;
        match dialled.map_err(|_| Failure::DialTimedOut).flatten() {
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
    fn upload(&self, route: &Route, parts: &request::Parts, present: &Present, body: Incoming) -> Upload {
        let has_body = !hyper::body::Body::is_end_stream(&body);
        let chunked = present.transfer_encoding;
        let authority = authority(parts);
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(parts.method.as_str().as_bytes());
        out.push(b' ');
        route.push_upstream_path(parts.uri.path(), parts.uri.query(), &mut out);
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let edited = (!route.request_headers.is_empty()).then(|| {
            let mut headers = parts.headers.clone();
            route.request_headers.apply(&mut headers);
            headers
        });
        let set_host = route.request_headers.set.iter().find(|(name, _)| name == header::HOST).map(|(_, value)| value.as_bytes());
        let host = set_host.unwrap_or(if route.preserve_host && !authority.is_empty() {
            authority.as_bytes()
        } else {
            route.target.host_header.as_bytes()
        });
        let (headers, present) = match &edited {
            Some(headers) => (headers, &Present::of(headers)),
            None => (&parts.headers, present),
        };
        headers::write_request(&mut out, headers, present, host, authority.as_bytes(), self.sender());
        if chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            if present.trailer && let Some(names) = headers::announced_trailers(headers) {
                headers::line(&mut out, b"trailer", names.as_bytes());
            }
        }
        if present.upgrade && headers::wants_websocket(parts) {
            self.wants_websocket.set(true);
            out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
        }
        out.extend_from_slice(b"\r\n");
        self.takes_trailers.set(present.te && headers::takes_trailers(headers));
        let expects = present.expect
            && !self.is_old
            && headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        Upload::new(out, (has_body || chunked).then_some(body), chunked, route.max_body_size, has_body && expects)
    }

    fn sender(&self) -> Sender {
        let client = self.ride.signals.watch.client();
        let trusted = &self.state.config.server.trusted_proxies;
        let is_trusted = client.is_none_or(|client| trusted.iter().any(|network| network.contains(client)));
        Sender { client, trusted: trusted.is_empty() || is_trusted }
    }

    fn note_upstream(&self, route: &Route) {
        if let Some(record) = &mut *self.ride.record.borrow_mut() {
            record.upstream = Some(name(&route.target.origin));
        }
        if log::enabled(Level::Debug) {
            let mut path = Vec::new();
            route.push_upstream_path(&self.path, None, &mut path);
            let url = format!("{}{}", name(&route.target.origin), String::from_utf8_lossy(&path));
            log::debug("forward", &[("method", &self.method), ("path", &self.path), ("url", &url)]);
        }
    }

    /// Sends the request and reads the head of its answer, both as far as they go.
    async fn attempt(&self, route: &Route, upload: &mut Upload, upstream: &mut Upstream, reused: bool) -> Result<Head, Attempt> {
        let may_repeat = reused && is_idempotent(&self.method);
        let mut attempt = Sending {
            exchange: self,
            wait: Wait::Nothing,
            limit: route.response_header_timeout,
            interim: 0,
            broken: false,
            may_repeat,
        };
        let result = poll_fn(|context| attempt.poll(context, upload, upstream)).await;
        self.ride.signals.watch.set_deadline(None);
        result
    }

    /// Makes the response out of the upstream's head, and lets the rest follow by itself.
    fn hand_over(&self, route: &Route, mut head: Head, upload: Upload, mut upstream: Upstream) -> Result<Response<Body>, Failure> {
        let buffers = &self.worker.buffers;
        let mut headers = std::mem::take(&mut head.headers);
        let (status, reason) = (head.status, head.reason.take());
        route.response_headers.apply(&mut headers);
        if let Some(record) = &mut *self.ride.record.borrow_mut() {
            record.received = upload.taken;
        }
        metrics::add(&self.worker.metrics.client_bytes_in, upload.taken);
        let body = if status == StatusCode::SWITCHING_PROTOCOLS {
            if !(head.websocket && self.wants_websocket.get()) {
                return Err(Failure::UpstreamGarbled("a 101 that nobody asked for"));
            }
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            *self.ride.signals.tunnel.borrow_mut() = Some(Box::new(upstream));
            Body::own(Rc::clone(self.ride), b"")
        } else {
            upstream.release(buffers);
            let upload = (!upload.is_done()).then_some(upload);
            if self.ride.until_close && matches!(head.delimiter, Delimiter::Chunked(_) | Delimiter::Close) {
                // HTTP/1.0 knows no chunks: the close is the end, whatever the client would like
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            let takes_trailers = self.takes_trailers.get();
            Body::upstream(Rc::clone(self.ride), Download::new(upstream, upload, head, takes_trailers, self.ride.signals.watch.clone()))
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        if headers.get(header::CONNECTION).is_some_and(|option| option == "close") {
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

/// What a request in flight waits for; each has its own time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Nothing,
    /// For the client's body: `read_timeout` since the last byte of it.
    Client(u64),
    /// For the upstream to take more: `write_timeout`.
    Upstream,
    /// For the upstream to ask for the body.
    Continue,
    /// For the answer: `response_header_timeout` since the request's end.
    Answer,
}

/// A request in flight, until the head of its answer is there.
struct Sending<'a> {
    exchange: &'a Exchange<'a>,
    wait: Wait,
    limit: Option<Duration>,
    interim: u32,
    /// The upstream takes no more of the request; it may have answered early.
    broken: bool,
    may_repeat: bool,
}

impl Sending<'_> {
    fn poll(&mut self, context: &mut Context<'_>, upload: &mut Upload, upstream: &mut Upstream) -> Poll<Result<Head, Attempt>> {
        let watch = &self.exchange.ride.signals.watch;
        if let Err(failure) = self.send(context, upload, upstream) {
            return Poll::Ready(Err(Attempt::Failed(failure)));
        }
        let answer = self.read(context, upload, upstream);
        if answer.is_ready() {
            return answer;
        }
        if watch.order() == Order::Leave {
            return Poll::Ready(Err(Attempt::Failed(Failure::NoMemory)));
        }
        self.arm(upload);
        if !watch.is_overdue() {
            return Poll::Pending;
        }
        match self.wait {
            Wait::Continue => {
                upload.release();
                watch.set_deadline(None);
                self.wait = Wait::Nothing;
                watch.wake();
                Poll::Pending
            }
            Wait::Client(_) => Poll::Ready(Err(Attempt::Failed(Failure::BodyTimedOut))),
            Wait::Upstream => Poll::Ready(Err(Attempt::Failed(Failure::RequestStalled))),
            Wait::Nothing | Wait::Answer => Poll::Ready(Err(Attempt::Failed(Failure::ResponseTimedOut))),
        }
    }

    fn send(&mut self, context: &mut Context<'_>, upload: &mut Upload, upstream: &mut Upstream) -> Result<(), Failure> {
        let Some(io) = &mut upstream.lease.io else { return Ok(()) };
        if self.broken || upload.is_done() {
            return Ok(());
        }
        let watch = &self.exchange.ride.signals.watch;
        match upload.poll(context, io, &mut |count| watch.moved(count)) {
            Poll::Ready(Err(UploadError::TooLarge)) => Err(Failure::BodyTooLarge),
            Poll::Ready(Err(UploadError::Client)) => {
                self.exchange.ride.signals.broken.set(true);
                Err(Failure::BodyBroken)
            }
            Poll::Ready(Err(UploadError::Upstream)) => {
                self.broken = true;
                Ok(())
            }
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    fn read(&mut self, context: &mut Context<'_>, upload: &mut Upload, upstream: &mut Upstream) -> Poll<Result<Head, Attempt>> {
        loop {
            match ready!(upstream.poll_fill(context, &self.exchange.worker.buffers)) {
                Ok(0) => return Poll::Ready(Err(self.closed(upload, upstream, "closed before it answered"))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(self.closed(upload, upstream, &error.to_string()))),
            }
            while !upstream.unread().is_empty() {
                match read_head(upstream.unread(), &self.exchange.method) {
                    Err(reason) => return Poll::Ready(Err(Attempt::Failed(Failure::UpstreamGarbled(reason)))),
                    Ok(None) => break,
                    Ok(Some(head)) => {
                        upstream.start += head.len;
                        if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                            return Poll::Ready(Ok(head));
                        }
                        self.interim += 1;
                        if self.interim > MAX_INTERIM {
                            return Poll::Ready(Err(Attempt::Failed(Failure::UpstreamGarbled("too many interim answers"))));
                        }
                        if head.status == StatusCode::CONTINUE && upload.is_held_back() {
                            // hyper says 100 to the client when the body is asked for
                            upload.release();
                            self.wait = Wait::Nothing;
                            watch_again(&self.exchange.ride.signals);
                        } else {
                            self.pass_interim(&head);
                        }
                    }
                }
            }
        }
    }

    /// Passes a 1xx on, to clients that know them (RFC 9110 §15.2).
    fn pass_interim(&self, head: &Head) {
        if self.exchange.is_old {
            return;
        }
        let mut interim = self.exchange.ride.signals.interim.borrow_mut();
        let reason = head.status.canonical_reason().unwrap_or("");
        interim.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", head.status.as_str()).as_bytes());
        for (name, value) in &head.headers {
            headers::line(&mut interim, name.as_str().as_bytes(), value.as_bytes());
        }
        interim.extend_from_slice(b"\r\n");
    }

    fn closed(&self, upload: &Upload, upstream: &Upstream, reason: &str) -> Attempt {
        if self.may_repeat && upstream.unread().is_empty() && self.interim == 0 && upload.can_rewind() {
            return Attempt::Stale;
        }
        Attempt::Failed(Failure::UpstreamClosed(reason.to_owned()))
    }

    /// Starts the clock of whatever is waited for now.
    fn arm(&mut self, upload: &Upload) {
        let config = &self.exchange.state.config;
        let wait = if self.broken || upload.is_done() {
            Wait::Answer
        } else if upload.is_held_back() {
            Wait::Continue
        } else if upload.waits_for_client() {
            Wait::Client(upload.taken)
        } else {
            Wait::Upstream
        };
        if wait == self.wait {
            return;
        }
        self.wait = wait;
        let watch = &self.exchange.ride.signals.watch;
        let limit = match wait {
            Wait::Nothing => None,
            Wait::Client(_) => {
                watch.client_blocks();
                config.server.read_timeout
            }
            Wait::Upstream => config.server.write_timeout,
            Wait::Continue => Some(CONTINUE_WAIT),
            Wait::Answer => self.limit,
        };
        watch.set_deadline(limit);
    }
}

fn watch_again(signals: &Signals) {
    signals.watch.set_deadline(None);
    signals.watch.wake();
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH).and_then(|value| screen::decimal(value.as_bytes()))
}

/// The host that was asked for: the target's own, or Host (RFC 9112 §3.2.2); empty where HTTP/1.0 gives none.
fn authority(parts: &request::Parts) -> &str {
    let asked = parts.uri.authority().map(hyper::http::uri::Authority::as_str);
    let host = || parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    asked.or_else(host).unwrap_or_default()
}

/// Methods that may be repeated without harm (RFC 9110 §9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}

/// An origin as the log shows it.
fn name(origin: &Origin) -> String {
    let scheme = if origin.tls.is_some() { "https" } else { "http" };
    match &origin.address {
        Address::Tcp(host, port) => format!("{scheme}://{host}:{port}"),
        Address::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// How often the sweep must look so that no time-out is late by much: a tenth of the shortest, and five times a second at least.
fn tick(config: &Config) -> Duration {
    let limits = [
        config.server.header_timeout,
        config.server.read_timeout,
        config.server.write_timeout,
        config.server.idle_timeout,
        config.transport.dial_timeout,
        config.transport.idle_conn_timeout,
        Some(config.proxy.queue_timeout),
    ];
    let routes = config.routes.iter().map(|route| route.response_header_timeout);
    let shortest = limits.into_iter().chain(routes).flatten().filter(|limit| !limit.is_zero()).min();
    (shortest.unwrap_or(Duration::MAX) / 10).clamp(Duration::from_millis(10), Duration::from_millis(200))
}
