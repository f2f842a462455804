//! The life of a request, in order: judge, probe, route, admit, connect, forward, stream.
//!
//! [`handle`] never fails; [`Exchange::answer`] does, and its failures become statuses and log lines here and nowhere
//! else. What an exchange holds is given back when the kernel has the last byte of its answer, or when all is dropped.

pub mod body;
pub mod client;
pub mod context;
pub mod deadline;
pub mod download;
pub mod ending;
pub mod respond;
pub mod round_trip;
pub mod subject;
pub mod tunnel;
pub mod upload;
pub mod worker;

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{
    Method, StatusCode,
    header::{self, HeaderMap, HeaderValue},
};

use crate::{
    client_address::real_client,
    config::Level,
    connection_table::{Directive, SlotRef},
    cors::{Cors, Grant, Verdict},
    direct::{Redirect, Response},
    exchange::{
        body::{Body, Tunnel},
        client::Client,
        context::ExchangeContext,
        deadline::Limits,
        download::Download,
        respond::{Answer, ConnectionMode},
        round_trip::{RoundTrip, RoundTripError},
        subject::Subject,
        upload::{Upload, UploadBody},
        worker::{State, Worker},
    },
    failure::Failure,
    http1::{
        client::Upstream,
        headers::{self, Present, Sender},
        request::RequestHead,
        request_head,
        response_head::{Delimiter, Head},
        server::ServerCodec,
    },
    location::{self, Asked},
    memory::{
        budget::in_step,
        concurrency::ConcurrencyPermit,
        queue::{Claim, Queue},
    },
    observe::{
        health,
        log::{self, Record},
        metrics::{self, GaugeGuard},
    },
    outcome::Blame,
    route::{Action, Found, Route, Target, holds_parent_segment},
    upstream::pool::{Checkout, Host, Lease},
};

/// One request with its response, and what every step of it needs. The request's own head is not among it: it is let
/// go as soon as it is written to the upstream.
struct Exchange<'a> {
    worker: &'a Worker,
    state: &'a State,
    client: Client<'a>,
    /// Whether the client speaks HTTP/1.0.
    is_http10: bool,
    /// The client came by https: to its own connection, or to a trusted sender that says so.
    is_https: Cell<bool>,
    /// Answer without an upstream: there is no memory for more.
    is_full: bool,
    /// The client takes trailers.
    takes_trailers: Cell<bool>,
    /// The client asked for a WebSocket.
    wants_websocket: Cell<bool>,
    /// A place among `max_tunnels`, where it may become one.
    tunnel: Cell<Option<ConcurrencyPermit>>,
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

/// Answers a request, whatever comes, and sends the answer to its end. `waited` is how many milliseconds it has waited
/// for memory; `is_full` = without an upstream, for there is no memory for more.
pub async fn handle(
    worker: &Worker,
    codec: &RefCell<ServerCodec>,
    slot: &SlotRef,
    parts: Box<RequestHead>,
    waited: u32,
    is_full: bool,
) -> End {
    let state = worker.state();
    let subject = subject(&state, slot, &parts);
    let exchange_context = exchange_context(worker, &state, slot, &subject, waited);
    let room = worker.room(state.config.transport.write_buffer_size);
    let client = Client::new(
        codec,
        &exchange_context,
        &worker.buffers,
        room,
        state.config.server.write_timeout,
    );
    let mut mode = ConnectionMode::of(&parts);
    let exchange = Exchange {
        worker,
        state: &state,
        client,
        is_http10: mode.is_http10,
        is_https: Cell::new(false),
        is_full,
        takes_trailers: Cell::new(false),
        wants_websocket: Cell::new(false),
        tunnel: Cell::new(None),
    };
    let (status, tunnel, answer) = part(exchange.judge(parts).await);
    mode.stays &= !worker.draining.get() && !is_full && !codec.borrow().io.is_too_wide();
    exchange_context.answers(status);
    match respond::send(&client, answer, mode).await {
        Err(_) => End::Broken,
        Ok(stays) => match tunnel {
            Some(upstream) => {
                let (record, route, waited) = (
                    exchange_context.record.take(),
                    exchange_context.route.get(),
                    exchange_context.waited.get(),
                );
                let place = exchange.tunnel.take();
                drop(exchange_context);
                End::Tunnel(Box::new(Tunnel {
                    upstream: *upstream,
                    subject,
                    config: Arc::clone(&state.config),
                    counters: Rc::clone(&state.counters),
                    route,
                    waited,
                    record,
                    place,
                }))
            }
            None if stays => End::Stays,
            None => End::Closes,
        },
    }
}

/// Takes an answer apart. A function of its own, so that the answer is moved and not borrowed: what is borrowed would keep
/// its place in the future while the answer is written.
fn part(mut answer: Answer) -> (u16, Option<Box<Upstream>>, Answer) {
    (answer.status.as_u16(), answer.tunnel.take(), answer)
}

fn subject(state: &State, slot: &SlotRef, parts: &RequestHead) -> Subject {
    let trusted = &state.config.server.trusted_proxies;
    let client: Option<IpAddr> = if trusted.is_empty() {
        slot.client()
    } else {
        real_client(slot.client(), trusted, &parts.headers)
    };
    let method = parts.method.clone();
    Subject::new(client, method, authority(parts), parts.uri.path())
}

fn exchange_context<'a>(
    worker: &'a Worker,
    state: &'a State,
    slot: &'a SlotRef,
    subject: &'a Subject,
    waited: u32,
) -> ExchangeContext<'a> {
    metrics::inc(&worker.metrics.requests);
    metrics::inc(&worker.metrics.exchanges);
    let begun = (worker.metrics.is_exposed() || log::access_enabled()).then(|| {
        let now = Instant::now();
        now.checked_sub(Duration::from_millis(waited.into()))
            .unwrap_or(now)
    });
    let record = begun.and_then(|begun| {
        let (method, host) = (subject.method.as_str(), subject.host());
        Record::begin(subject.client, method, host, subject.path(), begun)
    });
    ExchangeContext {
        slot,
        waited: Cell::new(waited),
        subject,
        config: &state.config,
        counters: &state.counters,
        route: Cell::new(None),
        place: RefCell::default(),
        record: RefCell::new(record),
        begun,
        status: Cell::new(0),
        received: Cell::new(0),
        sent: Cell::new(0),
        head: RefCell::default(),
        budget: &worker.budget,
        rest: Cell::new(0),
        complete: Cell::new(false),
        outcome: Cell::new(None),
        cause: OnceCell::new(),
        told: Cell::new(false),
        is_tunnel: false,
        metrics: &worker.metrics,
    }
}

impl Exchange<'_> {
    /// CORS around everything: a preflight is answered here, every other answer is stamped.
    async fn judge(&self, parts: Box<RequestHead>) -> Answer {
        let path = parts.uri.path();
        let method = &self.client.exchange_context.subject.method;
        let config = &self.state.config;
        if path == "*" {
            return empty(StatusCode::NO_CONTENT, HeaderMap::new());
        }
        let is_health = path == config.health_path;
        let is_outside = holds_parent_segment(path);
        let found = if is_health || is_outside {
            Found::Nothing
        } else {
            config.routes.find(self.authority(&parts), path)
        };
        let policy = match &found {
            Found::Route(route) | Found::AddSlash(route) => route.cors.as_ref(),
            Found::Nothing => config.cors.as_ref(),
        };
        if let Found::Route(route) | Found::AddSlash(route) = &found {
            let index = self.state.index(route);
            self.client.exchange_context.route.set(index);
        }
        let grant = match policy.map(|policy| policy.judge(method, &parts.headers)) {
            Some(Verdict::Answer(status, headers)) => return empty(status, headers),
            Some(Verdict::Refused(headers)) => {
                return self.refuse_preflight(policy, &parts, headers);
            }
            Some(Verdict::Grant(grant)) => grant,
            None => Grant::default(),
        };
        let mut answer = match found {
            _ if *method == Method::TRACE => self.fail(&Failure::MethodNotAllowed),
            _ if is_health => self.health(&parts),
            Found::Route(route) => match &route.action {
                Action::Forward(target) => match self.answer(route, target, parts).await {
                    Ok(answer) => answer,
                    Err(failure) => self.fail(&failure),
                },
                Action::Redirect(redirect) => self.redirect(route, redirect, &parts),
                Action::Respond(response) => respond_directly(route, response),
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

    /// Says in the log which origin asked and which ones may: CORS is where a newcomer looks longest.
    #[cold]
    fn refuse_preflight(
        &self,
        policy: Option<&Cors>,
        parts: &RequestHead,
        headers: HeaderMap,
    ) -> Answer {
        let is_told = log::enabled(Level::Debug);
        let reason = policy
            .filter(|_| is_told)
            .map(|it| it.explain(&parts.headers));
        let mut answer = self.fail(&Failure::PreflightRefused(reason.unwrap_or_default()));
        answer.headers.extend(headers);
        answer
    }

    fn redirect(&self, route: &Route, redirect: &Redirect, parts: &RequestHead) -> Answer {
        let to = &redirect.to;
        let location = to.location(self.authority(parts), |base, out| {
            route.push_joined(base, parts.uri.path(), parts.uri.query(), out);
        });
        let Some(location) = location else {
            return self.fail(&Failure::HostUnusable);
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, location);
        route.response_headers.apply(&mut headers);
        empty(redirect.status, headers)
    }

    fn health(&self, parts: &RequestHead) -> Answer {
        if !matches!(
            self.client.exchange_context.subject.method,
            Method::GET | Method::HEAD
        ) {
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
        Answer::new(status, headers, Body::Made(text))
    }

    /// The one place where a failure becomes a status and a log line.
    fn fail(&self, failure: &Failure) -> Answer {
        let exchange_context = self.client.exchange_context;
        exchange_context.note(failure.outcome());
        exchange_context.told.set(true);
        self.tell(failure);
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

    /// Tells the log why there is no answer; where a bound was full, which one, and how long the request waited for it.
    #[cold]
    fn tell(&self, failure: &Failure) {
        let exchange_context = self.client.exchange_context;
        let repeats = &self.worker.repeats;
        if failure.blame() == Blame::Proxy
            && !repeats.is_first(failure.outcome().word(), self.worker.table.now())
        {
            return;
        }
        let level = if failure.blame() == Blame::Client {
            Level::Debug
        } else {
            Level::Warn
        };
        let status = failure.status().as_u16();
        let mut fields: Vec<log::Field<'_>> = vec![("status", &status), ("reason", failure)];
        let bound = self.bound(failure);
        if let Some((bound, value)) = &bound {
            fields.extend([("bound", bound as &_), ("value", value as &_)]);
        }
        let waited = exchange_context.waited.get();
        if failure.blame() == Blame::Proxy {
            fields.push(("waited_ms", &waited));
        }
        let subject = exchange_context.subject;
        subject.tell(level, "no answer", exchange_context.route(), &fields);
    }

    /// The bound that was full, and its value.
    fn bound(&self, failure: &Failure) -> Option<(&'static str, u64)> {
        let config = &self.state.config;
        let places = config.proxy.max_concurrent_requests;
        let connections = config.transport.max_conns_per_host;
        Some(match failure {
            Failure::NoPlace => ("proxy.max_concurrent_requests", places? as u64),
            Failure::NoConnection => ("transport.max_conns_per_host", connections? as u64),
            Failure::NoMemory => self.worker.memory_bound(),
            _ => return None,
        })
    }

    /// Admit, connect, forward, and hand over the stream.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` keeps room for its arguments twice"
    )]
    fn answer(
        &self,
        route: &Route,
        target: &Target,
        parts: Box<RequestHead>,
    ) -> impl Future<Output = Result<Answer, Failure>> {
        async move {
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
            // before any wait: what waits is the text that the upstream gets, and not the client's fields as well
            let mut upload = self.upload(route, target, &parts, &present);
            self.is_https.set(self.is_sent_by_https(&parts, &present));
            drop(parts);
            if self.wants_websocket.get() {
                let place = self.worker.tunnels.take().ok_or(Failure::NoTunnel)?;
                self.tunnel.set(Some(place));
            }
            self.take_place().await?;
            let host = self.state.host(self.client.exchange_context.route.get());
            let checkout = self.checkout(host).await?;
            self.client.exchange_context.slot.asks(host.id);
            // a wait or a connect is rare, and its future large: boxed, it costs the others nothing
            let (mut lease, mut reused) = match checkout {
                Checkout::Reused(lease) => (lease, true),
                Checkout::Room(lease) => (Box::pin(self.dial(lease)).await?, false),
            };
            self.note_upstream(route, target);
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
                    Err(RoundTripError::Failed(failure)) => return Err(failure),
                    Err(RoundTripError::Stale) => {}
                }
                metrics::inc(&self.worker.metrics.retries);
                let path = self.client.exchange_context.subject.path();
                log::debug("once more on a fresh connection", &[("path", &path)]);
                drop(upstream);
                upload.rewind();
                let unused = Box::pin(self.wait(host, || host.room())).await?;
                lease = Box::pin(self.dial(unused)).await?;
                reused = false;
            }
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
        *self.client.exchange_context.place.borrow_mut() = Some(place);
        self.client.exchange_context.slot.has_place();
        Ok(())
    }

    /// Waits in a line, no longer than `queue_timeout` allows.
    async fn in_line<T>(&self, queue: &Queue, take: impl FnMut() -> Option<T>) -> Option<T> {
        let _waiting = GaugeGuard::new(&self.worker.metrics.waiting);
        let limit = Some(self.state.config.proxy.queue_timeout);
        let exchange_context = self.client.exchange_context;
        let slot = exchange_context.slot;
        let claim = Claim {
            group: slot.group(),
            since: slot.now().wrapping_sub(exchange_context.waited.get()),
            is_whole: self.client.is_between(),
        };
        slot.queues(true);
        let since = Instant::now();
        let line = queue.until(claim, take);
        let taken = slot.within_rest(Some(self.patience()), limit, line).await;
        slot.queues(false);
        exchange_context.note_wait(since.elapsed());
        taken.ok()
    }

    /// What is left of `queue_timeout`: the waits for memory, for a place and for a connection share it.
    fn patience(&self) -> Duration {
        let waited = self.client.exchange_context.waited.get();
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
        metrics::inc(&metrics.dials);
        let host = Rc::clone(lease.host());
        let dial = self.state.dialer.dial(&host.origin);
        let dialled = self
            .client
            .exchange_context
            .slot
            .within(self.state.config.transport.dial_timeout, dial)
            .await;
        let is_told_to_leave = self.client.exchange_context.slot.order() == Directive::Leave;
        let late = |_| {
            if is_told_to_leave {
                Failure::told_to_leave(self.client.exchange_context.slot.leave_outcome())
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
                metrics::inc(&metrics.dial_failures);
                Err(failure)
            }
        }
    }

    /// Writes the head that the upstream gets, and says how the body follows.
    fn upload(
        &self,
        route: &Route,
        target: &Target,
        parts: &RequestHead,
        present: &Present,
    ) -> Upload {
        let has_body = !self.client.is_between();
        let chunked = present.transfer_encoding;
        let authority = self.authority(parts);
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(parts.method.as_str().as_bytes());
        out.push(b' ');
        route.push_joined(&target.base, parts.uri.path(), parts.uri.query(), &mut out);
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
            target.host_header.as_bytes()
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
        let mut withheld = Vec::new();
        if chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            withheld.extend(route.request_headers.names().cloned());
            if present.connection {
                withheld.extend(headers::nominated(headers));
            }
            if present.trailer
                && let Some(names) = headers::announced_trailers(headers, &withheld)
            {
                headers::line(&mut out, b"trailer", names.as_bytes());
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

    /// The host that was asked for, without looking for it again.
    fn authority<'p>(&'p self, parts: &'p RequestHead) -> &'p str {
        let known = self.client.exchange_context.subject.whole_host();
        known.unwrap_or_else(|| authority(parts))
    }

    /// Whether a sender that is believed says so.
    fn is_sent_by_https(&self, parts: &RequestHead, present: &Present) -> bool {
        present.forwarded_proto && self.sender().trusted && headers::says_https(&parts.headers)
    }

    fn sender(&self) -> Sender {
        let client = self.client.exchange_context.slot.client();
        let trusted = &self.state.config.server.trusted_proxies;
        let is_trusted =
            client.is_none_or(|client| trusted.iter().any(|network| network.contains(client)));
        Sender {
            client,
            trusted: trusted.is_empty() || is_trusted,
        }
    }

    fn note_upstream(&self, route: &Route, target: &Target) {
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

    async fn attempt(
        &self,
        route: &Route,
        upload: &mut Upload,
        upstream: &mut Upstream,
        reused: bool,
    ) -> Result<Head, RoundTripError> {
        let attempt = RoundTrip {
            client: &self.client,
            limits: self.limits(route),
            method: &self.client.exchange_context.subject.method,
            is_http10: self.is_http10,
            route,
            queue_timeout: self.state.config.proxy.queue_timeout,
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
        let slot = self.client.exchange_context.slot;
        let (status, reason) = (head.status, head.reason.take());
        let mut headers = std::mem::take(&mut head.headers);
        if matches!(head.delimiter, Delimiter::Chunked(_)) {
            let edited = route.response_headers.names();
            head.withheld.extend(edited.cloned());
            headers::announce(&mut headers, &head.withheld);
        }
        if head.locates {
            let authority = self
                .client
                .exchange_context
                .subject
                .whole_host()
                .unwrap_or_default();
            let asked = Asked {
                authority,
                is_https: self.is_https.get(),
            };
            location::rewrite(&mut headers, route, asked);
        }
        route.response_headers.apply(&mut headers);
        slot.streams();
        let (body, tunnel) = if status == StatusCode::SWITCHING_PROTOCOLS {
            if !(head.websocket && self.wants_websocket.get()) {
                return Err(Failure::UpstreamGarbled("a 101 that nobody asked for"));
            }
            upstream.lease.detach();
            *self.client.exchange_context.place.borrow_mut() = None;
            (Body::Own(b""), Some(Box::new(upstream)))
        } else {
            self.client.exchange_context.rest.set(upstream.shrink());
            let download = Download::new(
                upstream,
                (!upload.is_done()).then_some(upload),
                head,
                self.takes_trailers.get(),
                self.limits(route),
                slot.now(),
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

/// A fixed response, whatever the method and the rest of the path.
fn respond_directly(route: &Route, response: &Response) -> Answer {
    let mut headers = HeaderMap::new();
    if let Some(kind) = &response.content_type {
        headers.insert(header::CONTENT_TYPE, kind.clone());
    }
    route.response_headers.apply(&mut headers);
    Answer::new(response.status, headers, Body::Made(response.body.clone()))
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
        .and_then(|value| request_head::decimal(value.as_bytes()))
}

/// The host that was asked for: the target's own, or Host (RFC 9112 §3.2.2); empty where HTTP/1.0 gives none.
fn authority(parts: &RequestHead) -> &str {
    let host = || {
        parts
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
    };
    parts.uri.authority().or_else(host).unwrap_or_default()
}
