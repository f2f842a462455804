//! One stream: an exchange, and hyper's half of it, in one task.
//!
//! The exchange puts the response into an [`Outlet`] part by part, hyper takes it out and sends it. Both are polled by
//! the same task, so that the request's body goes on while the client takes nothing of the response, and so that a
//! stream can be reset whatever hyper waits for.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::{Body as _, Frame};

use crate::{
    connection_table::{Directive, SlotRef, TimerKind, phase::Phase},
    exchange::{
        answer::Answer,
        body::Body,
        client::Client,
        context::ExchangeContext,
        own_answers::own_length,
        scope::Exchange,
        subject::Subject,
        worker::{State, Worker},
    },
    failure::Failure,
    http1::request::RequestHead,
    http2::{
        body::RequestBody,
        head,
        server::{
            outlet::{Emptied, Outlet},
            shared::Shared,
        },
    },
    memory::chunk::BodyChunk,
    outcome::Outcome,
    server::{
        admission::{self, Ask, BRIEF, admit},
        refusal::{tell_refused, tell_unanswered},
    },
};

/// How the exchange of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// hyper has all of the response and has sent it.
    Done,
    /// The stream is to be reset.
    Reset,
    /// It is to be refused: nothing of the request was processed.
    Refused,
}

/// Serves one stream; `hyper` sends what its exchange puts into `outlet`.
pub async fn run(shared: Rc<Shared>, outlet: Rc<Outlet>, hyper: impl Future<Output = ()>) {
    let _active = shared.begin();
    let _emptied = Emptied(&outlet);
    let slot = shared.worker.table.stream(shared.slot.client());
    let mut hyper = pin!(hyper);
    let mut exchange = pin!(serve(&shared, &slot, &outlet));
    let (mut end, mut is_sent) = (None, false);
    poll_fn(|context| {
        // the waker stays the same as long as the task lives
        if outlet.waker.borrow().is_none() {
            slot.settle(context.waker());
            *outlet.waker.borrow_mut() = Some(context.waker().clone());
        }
        loop {
            outlet.has_moved.set(false);
            if end.is_none()
                && let Poll::Ready(how) = exchange.as_mut().poll(context)
            {
                end = Some(how);
            }
            if !is_sent && hyper.as_mut().poll(context).is_ready() {
                is_sent = true;
                // the client has reset the stream, or the connection is over
                if !outlet.has_ended.get() || outlet.frame.borrow().is_some() {
                    return Poll::Ready(());
                }
            }
            match end {
                Some(End::Done) if is_sent => return Poll::Ready(()),
                Some(End::Refused) => {
                    outlet.is_refused.set(true);
                    let _ = hyper.as_mut().poll(context);
                    return Poll::Ready(());
                }
                Some(End::Reset) => {
                    if is_sent && outlet.held.get() > 0 {
                        // the last piece waits for the client, and hyper has no hold on the stream any more
                        shared.end();
                    }
                    return Poll::Ready(());
                }
                _ => {}
            }
            if !outlet.has_moved.get() {
                slot.has_looked();
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// Runs the exchange: admitted, answered, and its response sent to the end.
async fn serve(shared: &Shared, slot: &SlotRef, outlet: &Rc<Outlet>) -> End {
    let worker = &*shared.worker;
    let state = worker.state();
    let Some(request) = outlet.request.take() else {
        return End::Reset;
    };
    let (parts, incoming) = request.into_parts();
    let body = RequestBody::new(incoming, &shared.io.frames, &shared.sender);
    let body = RefCell::new(body);
    let _upload = shared.uploads(body.borrow().stream(), slot);
    let head = match head::request(parts, state.config.server.max_header_bytes) {
        Ok(head) => head,
        Err(failure) => return refuse(worker, slot, &failure, outlet).await,
    };
    admission::count_by_client(&state, slot, || head.headers.get_all("x-forwarded-for"));
    let ask = Ask {
        size: head::size(&head),
        has_body: !body.borrow().is_end_stream(),
        // the connection's permit pays for its TLS
        records: 0,
        is_brief: is_brief(&state, &head),
    };
    let gone = |_: &mut Context<'_>| Poll::Pending;
    let (_permit, full, waited) = match admit(worker, slot, ask, gone).await {
        Ok(admitted) => admitted,
        Err(outcome) => {
            tell_unanswered(worker, slot, outcome);
            return End::Refused;
        }
    };
    let is_full = full.is_some();
    slot.enter(Phase::Busy, is_full.then_some(BRIEF));
    let subject = Subject::of(&state, slot, &head);
    let exchange_context = ExchangeContext::begin(worker, &state, slot, &subject, waited);
    let room = worker.room(state.config.transport.write_buffer_size);
    let client = Client::http2(&body, &exchange_context, &worker.buffers, room);
    let exchange = Exchange::new(worker, &state, &client, false, is_full);
    let mut responding = pin!(exchange.respond(head));
    // an answer to a stream that is told to leave could not be sent to its end, and the connection would end with it
    let answer = poll_fn(|context| match responding.as_mut().poll(context) {
        _ if is_over(slot, is_full) => Poll::Ready(None),
        answer => answer.map(Some),
    });
    let Some(answer) = answer.await else {
        let is_untouched = !exchange_context.asked.get() && body.borrow().read == 0;
        return if slot.order() == Directive::Leave && is_untouched {
            End::Refused
        } else {
            End::Reset
        };
    };
    exchange_context.answers(answer.status.as_u16());
    let write_timeout = state.config.server.write_timeout;
    let sent = send(&exchange_context, answer, outlet, write_timeout, is_full).await;
    if sent.is_err() {
        return End::Reset;
    }
    exchange_context.complete.set(true);
    End::Done
}

/// Whether an exchange has to end at once.
fn is_over(slot: &SlotRef, is_full: bool) -> bool {
    slot.order() == Directive::Leave || (is_full && slot.is_overdue())
}

/// Puts an answer into the outlet, to its end, and waits until it is sent.
///
/// # Errors
/// The client takes no more of it, or its body broke off.
async fn send(
    exchange_context: &ExchangeContext<'_>,
    answer: Answer<'_>,
    outlet: &Rc<Outlet>,
    write_timeout: Option<Duration>,
    is_full: bool,
) -> io::Result<()> {
    let slot = exchange_context.slot;
    let is_head = exchange_context.subject.method == Method::HEAD;
    let mut body = put_head(answer, is_head, outlet);
    let mut broken = None;
    let result = poll_fn(|context| {
        if broken.is_none() {
            body.poll_upload(context)?;
        }
        let sent = outlet.sent.take();
        if sent > 0 {
            exchange_context.gave_out(sent);
            slot.took(sent);
        }
        if outlet.is_cut.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        while broken.is_none() && outlet.has_room() {
            match Pin::new(&mut body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => outlet.put(frame, body.is_end_stream()),
                Poll::Ready(Some(Err(error))) => {
                    exchange_context.note_cut(&error);
                    broken = Some(error);
                }
                Poll::Ready(None) => outlet.end(),
                Poll::Pending => break,
            }
        }
        if outlet.is_done() {
            return Poll::Ready(Ok(()));
        }
        // the client gets what came before: a reset drops what hyper has not sent
        if let Some(error) = broken.take_if(|_| outlet.is_empty()) {
            outlet.is_broken.set(true);
            return Poll::Ready(Err(error));
        }
        if is_over(slot, is_full) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let waits = outlet.held.get() > 0 || outlet.frame.borrow().is_some();
        let sign = || outlet.sign.get();
        if waits && slot.is_stalled(TimerKind::Client, write_timeout, sign) {
            exchange_context.note(Outcome::WriteTimedOut);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    });
    result.await
}

/// Hands the head to hyper; gives the body that is to follow.
fn put_head<'a>(answer: Answer<'a>, is_head: bool, outlet: &Rc<Outlet>) -> Body<'a> {
    let Answer {
        status,
        mut headers,
        body,
        ..
    } = answer;
    let is_empty = is_head
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || body.is_end_stream();
    if is_head {
        own_length(status, &mut headers, &body);
    }
    let length = body.size_hint().exact();
    let mut head = head::response(status, &headers);
    let waits = is_empty && is_large(head.headers());
    if waits && status == StatusCode::NOT_MODIFIED {
        // some clients expect no DATA behind it, not even an empty frame
        head.headers_mut().remove(header::CONTENT_LENGTH);
    }
    // hyper would add a length that a 204 must not have
    let length = length.filter(|_| !waits);
    outlet.put_head(head, is_empty && !waits, length);
    if waits {
        outlet.put(Frame::data(BodyChunk::fixed(b"")), true);
    }
    body
}

/// Whether a head costs so much in hyper that its exchange, which pays for it, must not end before it is sent. Such a head
/// is followed by an empty DATA frame where it has no body: hyper says when that is sent, and of a head it does not.
fn is_large(head: &HeaderMap) -> bool {
    const FIELDS: usize = 32;
    const BYTES: usize = 2 * 1024;
    head.len() > FIELDS || head.values().map(HeaderValue::len).sum::<usize>() > BYTES
}

/// Answers a request that HTTP/1.1 would refuse as well.
async fn refuse(worker: &Worker, slot: &SlotRef, failure: &Failure, outlet: &Rc<Outlet>) -> End {
    tell_refused(worker, slot, failure);
    slot.enter(Phase::Busy, Some(BRIEF));
    let head = head::response(failure.status(), &failure.fields());
    let sentence = BodyChunk::fixed(failure.sentence().as_bytes());
    outlet.put_head(head, false, Some(sentence.len() as u64));
    outlet.put(Frame::data(sentence), true);
    poll_fn(|_| {
        if outlet.is_done() {
            Poll::Ready(End::Done)
        } else if is_over(slot, true) {
            Poll::Ready(End::Reset)
        } else {
            Poll::Pending
        }
    })
    .await
}

/// Whether an answer needs neither an upstream nor a wait.
fn is_brief(state: &State, head: &RequestHead) -> bool {
    admission::is_brief(
        state,
        head.uri.path().as_bytes(),
        || head.method == Method::OPTIONS,
        || head.authority().as_bytes(),
    )
}
