//! A request on one stream of an HTTP/2 connection, until the head of its answer is there.
//!
//! What `round_trip.rs` is for HTTP/1.1. Interim answers do not reach an exchange: hyper drops them.

use std::{
    future::{Future as _, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderName, Response, StatusCode, header};

use crate::{
    connection_table::Directive,
    exchange::{
        answer::Answer,
        body::Body,
        deadline::{Deadline, Limits, Wait},
        round_trip::is_idempotent,
        scope::Exchange,
        stream_download::StreamDownload,
        stream_upload::StreamUpload,
        upload::{Upload, UploadError},
    },
    failure::Failure,
    http1::headers,
    http2::{
        client::asking::{Asking, ResponseBody, Unanswered},
        head,
    },
    memory::prices::LARGE_HEAD,
    route::Route,
    upstream::pool::StreamLease,
};

/// How a stream ended that brought no answer.
pub enum StreamError {
    /// The upstream has not processed the request: it may be sent once more.
    Repeat(Upload),
    /// There is no answer.
    Failed(Failure),
}

impl From<Failure> for StreamError {
    fn from(failure: Failure) -> StreamError {
        StreamError::Failed(failure)
    }
}

impl<'a> Exchange<'a> {
    /// Sends the request on a stream, and makes the answer out of what comes back; `may_repeat`: it was sent once so far.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn ask(
        &self,
        route: &Route,
        mut upload: Upload,
        lease: StreamLease,
        may_repeat: bool,
        limits: Limits,
    ) -> Result<Answer<'a>, StreamError> {
        if self.wants_websocket.get() {
            return Err(Failure::NoUpgrade.into());
        }
        let is_https = route.target().is_some_and(|it| it.origin.tls.is_some());
        let request = head::upstream_request(upload.head(), is_https)?;
        let slot = self.client.exchange_context.slot;
        let is_proven = lease.connection.is_proven.get();
        let stream = StreamUpload::new(&upload);
        let mut trip = StreamTrip {
            exchange: self,
            limits,
            asked: lease.connection.ask(request, stream.outgoing(), slot),
            stream,
            deadline: Deadline::default(),
        };
        let response = poll_fn(|context| trip.poll(context, &mut upload)).await;
        slot.uploads(!trip.stream.outgoing().is_done());
        trip.deadline.end(slot);
        let StreamTrip { stream, .. } = trip;
        match response {
            Ok(response) => {
                lease.connection.is_proven.set(true);
                let rest = (!stream.outgoing().is_done()).then_some((stream, upload));
                Ok(self.stream_answer(route, response, rest, lease, limits)?)
            }
            Err(TripError::Failed(failure)) => {
                if matches!(failure, Failure::ResponseTimedOut) {
                    // perhaps it is the connection that is dead
                    lease.retire();
                }
                Err(failure.into())
            }
            Err(TripError::Unanswered(why)) => {
                let method = &self.client.exchange_context.subject.method;
                let is_stale = why.is_broken && is_proven && is_idempotent(method);
                if why.is_unprocessed || why.is_broken {
                    lease.retire();
                }
                if may_repeat && (why.is_unprocessed || is_stale) && upload.taken == 0 {
                    return Err(StreamError::Repeat(upload));
                }
                Err(Failure::UpstreamClosed(why.reason).into())
            }
        }
    }

    /// Makes the answer out of the upstream's head, and lets the rest follow by itself.
    fn stream_answer(
        &self,
        route: &Route,
        response: Response<ResponseBody>,
        rest: Option<(StreamUpload, Upload)>,
        lease: StreamLease,
        limits: Limits,
    ) -> Result<Answer<'a>, Failure> {
        let (parts, incoming) = response.into_parts();
        let status = parts.status;
        let mut fields =
            head::response_fields(status, &parts.headers).map_err(Failure::UpstreamGarbled)?;
        let len = text_len(&parts.headers);
        drop(parts);
        let withheld: Vec<HeaderName> = route.response_headers.names().cloned().collect();
        headers::announce(&mut fields, &withheld);
        if len > LARGE_HEAD {
            self.client.exchange_context.resize_head(len);
        }
        let locates =
            fields.contains(header::LOCATION) || fields.contains(header::CONTENT_LOCATION);
        self.edit(route, &mut fields, locates);
        self.client.exchange_context.slot.streams();
        let passed = (self.takes_trailers.get(), withheld);
        let download = StreamDownload::new(self.client, incoming, rest, lease, passed, limits);
        Ok(Answer::new(
            status,
            fields,
            Body::Stream(Box::new(download)),
        ))
    }
}

fn text_len(map: &HeaderMap) -> usize {
    let len = |(name, value): (&HeaderName, &http::HeaderValue)| name.as_str().len() + value.len();
    map.iter().map(len).sum()
}

/// Why there is no head.
enum TripError {
    Failed(Failure),
    Unanswered(Unanswered),
}

/// A request in flight, until the head of its answer is there.
struct StreamTrip<'e, 'a> {
    exchange: &'e Exchange<'a>,
    limits: Limits,
    asked: Asking,
    stream: StreamUpload,
    deadline: Deadline,
}

impl StreamTrip<'_, '_> {
    /// Moves both messages as far as they go.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        upload: &mut Upload,
    ) -> Poll<Result<Response<ResponseBody>, TripError>> {
        let client = self.exchange.client;
        let slot = client.exchange_context.slot;
        let fail = |failure| Poll::Ready(Err(TripError::Failed(failure)));
        match self.stream.poll(context, upload, client) {
            Poll::Ready(Err(UploadError::TooLarge)) => return fail(Failure::BodyTooLarge),
            Poll::Ready(Err(_)) => return fail(Failure::BodyBroken),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match Pin::new(&mut self.asked).poll(context) {
            Poll::Ready(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                return fail(Failure::UpstreamGarbled("a 101 in HTTP/2"));
            }
            Poll::Ready(response) => return Poll::Ready(response.map_err(TripError::Unanswered)),
            Poll::Pending => {}
        }
        if slot.order() == Directive::Leave {
            return fail(Failure::told_to_leave(slot.leave_outcome()));
        }
        let wait = self.stream.wait(client, upload);
        slot.uploads(matches!(wait, Wait::Client(_) | Wait::Upstream(_)));
        if !self.deadline.is_past(slot, wait, &self.limits, None) {
            return Poll::Pending;
        }
        fail(wait.failure())
    }
}
