//! The life of a request, in order: judge, probe, route, admit, connect, forward, stream.
//!
//! An exchange is one function, [`Exchange::respond`], from a request's head and body to a response's head and body;
//! bodies are [`http_body::Body`]. It knows no protocol of the client's: [`http1`] and `http2::server` are the adapters
//! that read the one and write the other. It never fails; [`Exchange::answer`] does, and its failures become statuses and log lines here and
//! nowhere else. What an exchange holds is given back when the client's kernel has the last byte of its answer, or when
//! all is dropped.

pub mod answer;
pub mod body;
pub mod client;
pub mod context;
pub mod deadline;
pub mod download;
pub mod ending;
pub mod http1;
pub mod own_answers;
pub mod round_trip;
pub mod scope;
pub mod stream_download;
pub mod stream_trip;
pub mod stream_upload;
pub mod subject;
pub mod tunnel;
pub mod upload;
pub mod upstream_request;
pub mod worker;

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use http_body::Body as _;

use crate::{
    connection_table::Directive,
    cors::{Grant, Verdict},
    exchange::{
        answer::Answer,
        body::Body,
        deadline::Limits,
        download::Download,
        own_answers::{add_slash, empty, respond_directly},
        round_trip::{RoundTrip, RoundTripError},
        scope::Exchange,
        stream_trip::StreamError,
        upload::Upload,
        upstream_request::content_length,
    },
    failure::Failure,
    fields::Fields,
    http1::{
        client::Upstream, framing::Framing, headers, request::RequestHead, response_head::Head,
    },
    location::{self, Asked},
    memory::queue::Queue,
    observe::{
        log,
        metrics::{self, GaugeGuard},
    },
    route::{Action, Found, Route, Target, holds_parent_segment},
    upstream::pool::{Checkout, Host, Lease, StreamLease},
};

/// What a request is sent on.
enum Link {
    /// A connection of its own; whether it was idle before.
    Connection(Lease, bool),
    /// A stream of an HTTP/2 connection.
    Stream(StreamLease),
}

impl<'a> Exchange<'a> {
    /// Answers every request. CORS applies first: a preflight is answered here, and every other answer gets its CORS
    /// fields.
    pub async fn respond(&self, parts: Box<RequestHead>) -> Answer<'a> {
        let path = parts.uri.path();
        let method = &self.client.exchange_context.subject.method;
        let config = &self.state.config;
        if path == "*" {
            return empty(StatusCode::NO_CONTENT, Fields::new());
        }
        let is_health = path == config.health_path;
        let is_outside = holds_parent_segment(path);
        let found = if is_health || is_outside {
            Found::Nothing
        } else {
            let scheme = || self.scheme(&parts);
            config.routes.find(self.authority(&parts), path, scheme)
        };
        let policy = match &found {
            Found::Route(route) | Found::AddSlash(route) => route.cors.as_ref(),
            Found::Nothing => config.cors.as_ref(),
        };
        if let Found::Route(route) | Found::AddSlash(route) = &found {
            self.client.exchange_context.route.set(Some(route.index));
        }
        let grant = match policy.map(|policy| policy.judge(method, &parts.headers)) {
            Some(Verdict::Answer(status, headers)) => return empty(status, headers),
            Some(Verdict::Refused(headers)) => {
                return self.refuse_preflight(policy, &parts, &headers);
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

    /// Admits, connects and forwards the request, and hands the answer over.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` keeps room for its arguments twice"
    )]
    fn answer(
        &self,
        route: &Route,
        target: &Target,
        parts: Box<RequestHead>,
    ) -> impl Future<Output = Result<Answer<'a>, Failure>> {
        async move {
            let mut upload = self.prepare(route, target, parts)?;
            self.take_place().await?;
            let host = self.state.host(self.client.exchange_context.route.get());
            let checkout = self.checkout(host).await?;
            self.client.exchange_context.slot.asks(host.id);
            self.client.exchange_context.asked.set(true);
            // a wait or a connect is rare, and its future large: boxed, it does not enlarge the future of other
            // requests
            let mut link = match checkout {
                Checkout::Reused(lease) => Link::Connection(lease, true),
                Checkout::Room(lease) => Box::pin(self.dial(lease)).await?,
                Checkout::Stream(stream) => Link::Stream(stream),
            };
            self.note_upstream(route, target);
            let room = self
                .worker
                .room(self.state.config.transport.read_buffer_size);
            let (mut may_repeat, limits) = (true, self.limits(route));
            loop {
                match link {
                    Link::Connection(lease, reused) => {
                        // boxed, because it moves on to the answer's body, or to a tunnel
                        let mut upstream = Box::new(Upstream::new(lease, room));
                        match self
                            .attempt(route, &mut upload, &mut upstream, reused, limits)
                            .await
                        {
                            Ok(head) => {
                                let rest = if upload.is_done() {
                                    None
                                } else {
                                    Some(Box::new(upload))
                                };
                                return self.hand_over(route, head, rest, upstream, limits);
                            }
                            Err(RoundTripError::Failed(failure)) => return Err(failure),
                            Err(RoundTripError::Stale) => {}
                        }
                    }
                    Link::Stream(stream) => {
                        let asked = self.ask(route, upload, stream, may_repeat, limits);
                        match Box::pin(asked).await {
                            Ok(answer) => return Ok(answer),
                            Err(StreamError::Failed(failure)) => return Err(failure),
                            Err(StreamError::Repeat(same)) => upload = same,
                        }
                    }
                }
                may_repeat = false;
                metrics::inc(&self.worker.metrics.retries);
                let path = self.client.exchange_context.subject.path();
                log::debug("once more on a fresh connection", &[("path", &path)]);
                upload.rewind();
                let unused = Box::pin(self.wait(host, || host.room())).await?;
                link = Box::pin(self.dial(unused)).await?;
            }
        }
    }

    /// The request as the upstream gets it. Made before any wait, so that only this text is held meanwhile, and not the
    /// client's fields as well.
    fn prepare(
        &self,
        route: &Route,
        target: &Target,
        parts: Box<RequestHead>,
    ) -> Result<Upload, Failure> {
        if self.is_full {
            return Err(Failure::NoMemory);
        }
        let present = parts.present;
        if let Some(limit) = route.max_body_size
            && present.content_length
            && content_length(&parts.headers).is_some_and(|length| length > limit)
        {
            return Err(Failure::BodyTooLarge);
        }
        let upload = self.upload(route, target, &parts);
        self.is_https.set(self.is_sent_by_https(&parts));
        drop(parts);
        if self.wants_websocket.get() {
            let place = self.worker.tunnels.take().ok_or(Failure::NoTunnel)?;
            self.tunnel.set(Some(place));
        }
        Ok(upload)
    }

    /// Takes a place of `max_concurrent_requests`, after a wait of at most `queue_timeout`.
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

    /// Waits in a queue, for at most what is left of `queue_timeout`.
    async fn in_line<T>(&self, queue: &Queue, take: impl FnMut() -> Option<T>) -> Option<T> {
        let _waiting = GaugeGuard::new(&self.worker.metrics.waiting);
        let limit = Some(self.state.config.proxy.queue_timeout);
        let exchange_context = self.client.exchange_context;
        let slot = exchange_context.slot;
        let mut claim = slot.claim(self.client.is_end_stream());
        claim.since = claim.since.wrapping_sub(exchange_context.waited.get());
        slot.queues(true);
        let since = Instant::now();
        let line = queue.until(claim, take);
        let taken = slot.within_rest(Some(self.patience()), limit, line).await;
        slot.queues(false);
        exchange_context.note_wait(since.elapsed());
        taken.ok()
    }

    /// The rest of `queue_timeout`: the waits for memory, for a place and for a connection share it.
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

    /// Waits in the queue of a host.
    async fn wait<T>(&self, host: &Host, take: impl FnMut() -> Option<T>) -> Result<T, Failure> {
        self.in_line(&host.queue, take)
            .await
            .ok_or(Failure::NoConnection)
    }

    async fn dial(&self, mut lease: Lease) -> Result<Link, Failure> {
        let metrics = &self.worker.metrics;
        metrics::inc(&metrics.dials);
        let host = Rc::clone(lease.host());
        let dial = async {
            let io = self.state.dialer.dial(&host.origin).await?;
            if !(host.origin.http2 && io.speaks_http2()) {
                lease.keep(io);
                return Ok(Link::Connection(lease, false));
            }
            let stream = lease
                .share(io, &self.worker.scratch, &self.worker.table)
                .await;
            let failed = |error: hyper::Error| Failure::DialFailed(error.to_string());
            stream.map(Link::Stream).map_err(failed)
        };
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
            Ok(link) => Ok(link),
            Err(failure) => {
                metrics::inc(&metrics.dial_failures);
                Err(failure)
            }
        }
    }

    async fn attempt(
        &self,
        route: &Route,
        upload: &mut Upload,
        upstream: &mut Upstream,
        reused: bool,
        limits: Limits,
    ) -> Result<Head, RoundTripError> {
        let attempt = RoundTrip {
            client: self.client,
            limits,
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

    /// Rewrites the fields of an answer for the client: addresses of the target, and the route's edits.
    fn edit(&self, route: &Route, fields: &mut Fields, locates: bool) {
        if locates {
            let subject = self.client.exchange_context.subject;
            let asked = Asked {
                authority: subject.whole_host().unwrap_or_default(),
                is_https: self.is_https.get(),
            };
            location::rewrite(fields, route, asked);
        }
        route.response_headers.apply(fields);
    }

    /// Makes the answer from the upstream's head; its body follows by itself. `upload` is the request, where it was not
    /// sent completely.
    fn hand_over(
        &self,
        route: &Route,
        mut head: Head,
        upload: Option<Box<Upload>>,
        mut upstream: Box<Upstream>,
        limits: Limits,
    ) -> Result<Answer<'a>, Failure> {
        let slot = self.client.exchange_context.slot;
        let (status, reason) = (head.status, head.reason.take());
        let mut headers = std::mem::take(&mut head.headers);
        if head.framing == Framing::Chunked {
            let edited = route.response_headers.names();
            head.withheld.extend(edited.cloned());
            headers::announce(&mut headers, &head.withheld);
        }
        self.edit(route, &mut headers, head.locates);
        slot.streams();
        let (body, tunnel) = if status == StatusCode::SWITCHING_PROTOCOLS {
            if !(head.websocket && self.wants_websocket.get()) {
                return Err(Failure::UpstreamGarbled("an unrequested 101"));
            }
            upstream.lease.detach();
            *self.client.exchange_context.place.borrow_mut() = None;
            (Body::Own(b""), Some(upstream))
        } else {
            self.client.exchange_context.rest.set(upstream.shrink());
            let download = Download::new(
                self.client,
                upstream,
                upload,
                head,
                self.takes_trailers.get(),
                limits,
            );
            (Body::Upstream(download), None)
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
