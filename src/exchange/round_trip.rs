//! One attempt: sends a request to the upstream, and reads the head of its answer.
//!
//! Request and answer are moved in the same poll, so that an upstream may answer early and interim answers are passed
//! on. Each wait has a time-out of its own.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Method, StatusCode};

use crate::{
    connection_table::Directive,
    cors,
    exchange::{
        client::Client,
        deadline::{Deadline, Limits, Wait},
        upload::{Upload, UploadError},
    },
    failure::Failure,
    http1::{
        client::Upstream,
        response_head::{Head, MAX_HEAD},
    },
    memory::prices::LARGE_HEAD,
    observe::metrics,
    route::Route,
};

/// Most interim answers (1xx) of one exchange; more are a 502.
const MAX_INTERIM: u32 = 10;

/// Most bytes of them; more are a 502. They are not sent to a client that does not take them, so they cost time alone.
const MAX_INTERIM_BYTES: usize = MAX_HEAD;

/// The parts of its exchange that an attempt needs.
#[derive(Clone, Copy)]
pub struct RoundTrip<'a> {
    /// The client.
    pub client: &'a Client<'a>,
    /// The time-outs of its waits.
    pub limits: Limits,
    /// The request's method.
    pub method: &'a Method,
    /// Whether the client speaks HTTP/1.0, and so knows no interim answers.
    pub is_http10: bool,
    /// The route that serves the request.
    pub route: &'a Route,
    /// How long a large head may wait for memory.
    pub queue_timeout: Duration,
}

/// How an attempt failed.
pub enum RoundTripError {
    /// A reused connection was closed before it answered: the request may be sent once more.
    Stale,
    /// There is no answer.
    Failed(Failure),
}

impl RoundTrip<'_> {
    /// Sends the request and reads the head of its answer, both as far as possible. `reused` = the connection was idle
    /// before, and may have been closed unnoticed.
    ///
    /// # Errors
    /// [`RoundTripError`].
    pub async fn make(
        self,
        upload: &mut Upload,
        upstream: &mut Upstream,
        reused: bool,
    ) -> Result<Head, RoundTripError> {
        let mut sending = InFlight {
            attempt: self,
            deadline: Deadline::default(),
            interim: 0,
            interim_bytes: 0,
            unread: false,
            broken: false,
            may_repeat: reused && is_idempotent(self.method),
        };
        let result = loop {
            match poll_fn(|context| sending.poll(context, upload, upstream)).await {
                Ok(Some(head)) => break Ok(head),
                Err(miss) => break Err(miss),
                Ok(None) => {}
            }
            // rare, and its future large: boxed, it costs the others nothing
            if let Err(failure) = Box::pin(self.pay_for_large_head(upstream)).await {
                break Err(RoundTripError::Failed(failure));
            }
            sending.deadline = Deadline::default();
        };
        let slot = self.client.exchange_context.slot;
        slot.uploads(!upload.is_done());
        sending.deadline.end(slot);
        result
    }

    /// Waits until the budget has room for a large head, and no longer than `queue_timeout`; the rest of it waits in the
    /// kernel meanwhile.
    ///
    /// # Errors
    /// [`Failure::NoMemory`].
    async fn pay_for_large_head(self, upstream: &Upstream) -> Result<(), Failure> {
        let (exchange_context, budget) = (self.client.exchange_context, upstream.lease.budget());
        let fund = &budget.large_heads;
        let _waiting = metrics::GaugeGuard::new(&exchange_context.metrics.waiting);
        let claim = exchange_context.slot.claim(true);
        let line = fund.queue.until(claim, || budget.large_head());
        let permit = exchange_context
            .slot
            .within(Some(self.queue_timeout), line)
            .await;
        exchange_context.hold_head(permit.map_err(|_| Failure::NoMemory)?);
        Ok(())
    }
}

/// A request in flight, until the head of its answer has arrived.
struct InFlight<'a> {
    attempt: RoundTrip<'a>,
    deadline: Deadline,
    interim: u32,
    interim_bytes: usize,
    /// Part of a head has arrived that was not parsed yet.
    unread: bool,
    /// The upstream takes no more of the request; it may have answered early.
    broken: bool,
    may_repeat: bool,
}

impl InFlight<'_> {
    /// Moves both messages as far as possible; `Ok(None)`: a large head must be paid for first.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        upload: &mut Upload,
        upstream: &mut Upstream,
    ) -> Poll<Result<Option<Head>, RoundTripError>> {
        let slot = self.attempt.client.exchange_context.slot;
        if let Err(failure) = self.send(context, upload, upstream) {
            return Poll::Ready(Err(RoundTripError::Failed(failure)));
        }
        let answer = self.read(context, upload, upstream);
        if answer.is_ready() {
            return answer;
        }
        if slot.order() == Directive::Leave {
            let outcome = slot.leave_outcome();
            return Poll::Ready(Err(RoundTripError::Failed(Failure::told_to_leave(outcome))));
        }
        let wait = self.wait(upload);
        let moves = matches!(wait, Wait::Client(_) | Wait::Upstream(_));
        slot.uploads(moves);
        let io = upstream.lease.io.as_ref();
        if !self.deadline.is_past(slot, wait, &self.attempt.limits, io) {
            return Poll::Pending;
        }
        match wait {
            Wait::Continue => {
                self.release(upload);
                Poll::Pending
            }
            _ => Poll::Ready(Err(RoundTripError::Failed(wait.failure()))),
        }
    }

    /// What the attempt currently waits for.
    fn wait(&self, upload: &Upload) -> Wait {
        if self.broken || upload.is_done() {
            Wait::Answer
        } else if upload.is_held_back() {
            Wait::Continue
        } else if upload.waits_for_client() {
            Wait::Client(self.attempt.client.bytes_read())
        } else {
            Wait::Upstream(upload.sent)
        }
    }

    /// Lets the client send its body.
    fn release(&mut self, upload: &mut Upload) {
        upload.release();
        let slot = self.attempt.client.exchange_context.slot;
        self.deadline.end(slot);
        slot.wake();
    }

    fn send(
        &mut self,
        context: &mut Context<'_>,
        upload: &mut Upload,
        upstream: &mut Upstream,
    ) -> Result<(), Failure> {
        if self.broken || upload.is_done() {
            return Ok(());
        }
        let Some(io) = &mut upstream.lease.io else {
            return Ok(());
        };
        match upload.poll(context, io, self.attempt.client) {
            Poll::Ready(Err(UploadError::TooLarge)) => Err(Failure::BodyTooLarge),
            Poll::Ready(Err(UploadError::Client)) => Err(Failure::BodyBroken),
            Poll::Ready(Err(UploadError::Upstream)) => {
                self.broken = true;
                Ok(())
            }
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Reads once from the upstream; the end of its connection is an error.
    #[inline]
    fn poll_fill(
        &self,
        context: &mut Context<'_>,
        upload: &Upload,
        upstream: &mut Upstream,
    ) -> Poll<Result<(), RoundTripError>> {
        match ready!(upstream.poll_fill(context, self.attempt.client.buffers)) {
            Ok(0) => Poll::Ready(Err(self.closed(
                upload,
                upstream,
                "closed before it answered",
            ))),
            Ok(_) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(self.closed(upload, upstream, &error.to_string()))),
        }
    }

    /// Reads heads until the final one is here; passes the interim ones on.
    fn read(
        &mut self,
        context: &mut Context<'_>,
        upload: &mut Upload,
        upstream: &mut Upstream,
    ) -> Poll<Result<Option<Head>, RoundTripError>> {
        let exchange_context = self.attempt.client.exchange_context;
        loop {
            if self.interim > 0
                && upstream.unread().is_empty()
                && self.attempt.client.has_told(context)
            {
                // the next head is a new one
                exchange_context.free_head();
            }
            // the permit pays for one large head: what follows is read when the client has it
            if self.attempt.client.has_large_interim() && !self.attempt.client.has_told(context) {
                return Poll::Pending;
            }
            if !self.unread {
                ready!(self.poll_fill(context, upload, upstream))?;
            }
            self.unread = false;
            while !upstream.unread().is_empty() {
                let read = upstream.read_head(self.attempt.method);
                let is_large = match &read {
                    Ok(Some(head)) => head.len > LARGE_HEAD,
                    Ok(None) => upstream.has_large_head(),
                    Err(_) => false,
                };
                if is_large && !exchange_context.holds_head() {
                    if let Ok(Some(head)) = &read {
                        upstream.put_back_head(head.len);
                    }
                    self.unread = true;
                    return Poll::Ready(Ok(None));
                }
                let head = match read {
                    Err(reason) => {
                        return Poll::Ready(Err(RoundTripError::Failed(Failure::UpstreamGarbled(
                            reason,
                        ))));
                    }
                    Ok(None) => break,
                    Ok(Some(head)) => head,
                };
                if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS
                {
                    return Poll::Ready(Ok(Some(head)));
                }
                self.take_interim(head, upload)?;
            }
        }
    }

    /// Counts a 1xx, and passes it on.
    fn take_interim(&mut self, head: Head, upload: &mut Upload) -> Result<(), RoundTripError> {
        self.interim += 1;
        self.interim_bytes += head.len;
        if self.interim > MAX_INTERIM || self.interim_bytes > MAX_INTERIM_BYTES {
            return Err(RoundTripError::Failed(Failure::UpstreamGarbled(
                "too many interim answers",
            )));
        }
        if head.status == StatusCode::CONTINUE && upload.is_held_back() {
            // the client gets its 100 when its body is wanted
            self.release(upload);
        } else {
            self.pass_interim(head);
        }
        Ok(())
    }

    /// Passes a 1xx on, to clients that know them (RFC 9110 §15.2). Its fields get the same edits as the final
    /// answer's, but no CORS fields.
    fn pass_interim(&self, mut head: Head) {
        if self.attempt.is_http10 {
            return;
        }
        let route = self.attempt.route;
        route.response_headers.apply(&mut head.headers);
        if route.cors.is_some() {
            cors::remove_grants(&mut head.headers);
        }
        let mut text = Vec::with_capacity(head.len);
        text.extend_from_slice(b"HTTP/1.1 ");
        text.extend_from_slice(head.status.as_str().as_bytes());
        text.push(b' ');
        text.extend_from_slice(head.status.canonical_reason().unwrap_or("").as_bytes());
        text.extend_from_slice(b"\r\n");
        head.headers.write(&mut text);
        text.extend_from_slice(b"\r\n");
        self.attempt.client.say(text);
    }

    fn closed(&self, upload: &Upload, upstream: &Upstream, reason: &str) -> RoundTripError {
        if self.may_repeat
            && upstream.unread().is_empty()
            && self.interim == 0
            && upload.can_rewind()
        {
            return RoundTripError::Stale;
        }
        RoundTripError::Failed(Failure::UpstreamClosed(reason.to_owned()))
    }
}

/// Methods that may be repeated without harm (RFC 9110 §9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
    )
}
