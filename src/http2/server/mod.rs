//! A client's HTTP/2 connection, served by hyper on the worker's own thread.
//!
//! It holds a permit worth what a hostile client can make hyper hold within the bounds of [`Frames`]; each stream pays for
//! itself like any exchange. Its time-outs are those of HTTP/1.1: `header_timeout` before its first request,
//! `idle_timeout` between two.

pub mod outlet;
pub mod shared;
pub mod stream;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{body::Incoming, rt::Executor, server::conn::http2::Builder, service::Service};
use tokio::io::AsyncWrite;

use crate::{
    connection_table::{Directive, SlotRef, phase::Phase},
    exchange::worker::Worker,
    http2::{
        body::Sender,
        frames::{
            Frames,
            bounds::{Bounds, Excess, frames_within},
        },
        io::{Handle, Io},
        server::{
            outlet::{Answering, Outlet, ResponseBody},
            shared::Shared,
        },
    },
    net::{Stream, secured::Secured},
    observe::{log, repeats::Kind},
    outcome::Outcome,
    server::{
        admission::records,
        closing::{LINGER, leave, linger},
        refusal::REFUSED_REST,
    },
};

/// What a connection may use, by how much memory there is.
struct Limits {
    streams: u32,
    stream_window: u32,
    window: u32,
    head: usize,
    bounds: Bounds,
}

const SMALL: Limits = Limits {
    streams: 32,
    stream_window: 16 * 1024,
    window: 128 * 1024,
    head: 16 * 1024,
    bounds: Bounds {
        bodies: 32,
        pieces: 240,
        heads: 32,
        trailers: 1,
    },
};

const WIDE: Limits = Limits {
    streams: 100,
    stream_window: 65_535,
    window: 512 * 1024,
    head: 32 * 1024,
    bounds: Bounds {
        bodies: 96,
        pieces: 1_000,
        heads: 128,
        trailers: 2,
    },
};

const _: () = {
    assert!(SMALL.bounds.pieces <= frames_within(SMALL.window));
    assert!(WIDE.bounds.pieces <= frames_within(WIDE.window));
};

/// The smallest value that hyper accepts, and the largest frame that it sends and receives.
const FRAME: u32 = 16 * 1024;

/// Error codes (RFC 9113 §7).
const NO_ERROR: u32 = 0;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Lets hyper's streams run beside their exchanges.
#[derive(Clone)]
struct Streams(Rc<Shared>);

impl<F: Future<Output = ()> + 'static> Executor<F> for Streams {
    fn execute(&self, hyper: F) {
        if let Some(outlet) = self.0.accepted.take() {
            // In an allocation of its own, made first: tokio moves what it is given several times, and this is large.
            let place = Box::new_uninit();
            let stream = Box::write(place, stream::run(Rc::clone(&self.0), outlet, hyper));
            tokio::task::spawn_local(Box::into_pin(stream));
        }
    }
}

impl Service<Request<Incoming>> for Streams {
    type Response = Response<ResponseBody>;
    type Error = h2::Error;
    type Future = Answering;

    /// hyper calls this, and then [`Executor::execute`] with what sends the response.
    fn call(&self, request: Request<Incoming>) -> Answering {
        let outlet: Rc<Outlet> = Rc::default();
        outlet.request.set(Some(request));
        self.0.accepted.set(Some(Rc::clone(&outlet)));
        Answering(outlet)
    }
}

/// Serves a connection whose client has sent the preface of HTTP/2; `first` is what was read of it. Where the budget has no
/// room for the connection, the client gets a GOAWAY.
pub async fn serve(worker: Rc<Worker>, mut stream: Stream, first: Bytes, slot: SlotRef) {
    let is_small = worker.budget.plan().small;
    let limits = if is_small { &SMALL } else { &WIDE };
    let frames = Frames::of_client(limits.bounds, worker.table.now());
    let records = records(&worker.budget, &stream, true);
    let permit = worker.budget.http2(records).or_else(|| {
        // idle upstream connections and their wide buffers give way
        worker.pool.clear();
        worker.budget.http2(records)
    });
    let Some(_permit) = permit else {
        return refuse(&worker, stream, &slot).await;
    };
    let mut sender = Sender::default();
    if let Some(secured) = stream.secured_mut() {
        secured.set_paid(true);
        sender.is_secured = true;
        sender.certificate_subject = secured.subject().map(Rc::clone);
    }
    if !is_small {
        stream.widen(limits.stream_window as usize);
    }
    let io = Io::of_client(
        stream,
        first,
        frames,
        &worker.scratch,
        &worker.table,
        is_small,
    );
    let shared = Shared::new(Rc::clone(&worker), Rc::clone(&io), slot.clone(), sender);
    drive(&shared, limits).await;
    let Some(mut stream) = io.take() else {
        return;
    };
    if let Some(excess) = io.excess() {
        let word = last_word(&worker, &io, &stream, &slot, excess);
        slot.enter(Phase::Lingering, Some(LINGER));
        say(&mut stream, &slot, &word).await;
    }
    leave(&worker, &stream);
}

/// Counts and logs a connection that is over a bound; gives its GOAWAY, which is empty where hyper has written half a
/// frame, or where a record is under way of whose frames nothing is known yet.
fn last_word(worker: &Worker, io: &Io, stream: &Stream, slot: &SlotRef, excess: Excess) -> Vec<u8> {
    worker.metrics.failed(Outcome::Flooded);
    let client = log::client(slot.client());
    log::debug(
        "HTTP/2 connection ended",
        &[("client", &client), ("reason", &excess.0)],
    );
    let frames = io.frames.borrow();
    let is_amid_record = |it: &Secured| it.session().is_claimed();
    if frames.is_sent_whole() && !stream.secured().is_some_and(is_amid_record) {
        go_away(frames.highest(), ENHANCE_YOUR_CALM, excess.0)
    } else {
        Vec::new()
    }
}

/// Polls the connection until it is over.
async fn drive(shared: &Rc<Shared>, limits: &Limits) {
    let (worker, slot) = (&shared.worker, &shared.slot);
    let server = worker.state().config.server.clone();
    let head = u32::try_from(limits.head.min(server.max_header_bytes)).unwrap_or(FRAME);
    let streams = Streams(Rc::clone(shared));
    let mut builder = Builder::new(streams.clone());
    builder
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.window)
        .max_frame_size(FRAME)
        .max_header_list_size(head)
        .max_send_buf_size(FRAME as usize)
        .auto_date_header(false);
    let mut connection = pin!(builder.serve_connection(Handle(Rc::clone(&shared.io)), streams));
    slot.enter(Phase::Head, server.header_timeout);
    let mut is_told = false;
    poll_fn(|context| {
        if slot.order() == Directive::Leave || shared.is_over.get() {
            return Poll::Ready(());
        }
        let is_overdue = slot.is_overdue();
        if is_overdue && is_told {
            return Poll::Ready(());
        }
        let is_ending = is_overdue
            || slot.order() == Directive::Finish
            || worker.draining.get()
            || shared.io.frames.borrow().is_worn();
        if is_ending && !is_told {
            is_told = true;
            connection.as_mut().graceful_shutdown();
        }
        shared.io.frames.borrow_mut().resume();
        if connection.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        shared.relieve();
        // no event tells when the client has acknowledged the last bytes
        slot.look_back(shared.io.give_back());
        slot.has_looked();
        let is_active = shared.active.get() > 0;
        match (slot.phase(), is_active) {
            (Phase::Multiplexed, true) | (Phase::Idle | Phase::Lingering, false) => {}
            (_, true) => slot.enter(Phase::Multiplexed, None),
            (_, false) if is_told => slot.enter(Phase::Lingering, Some(LINGER)),
            (Phase::Head, false) if !shared.has_begun.get() => {}
            (_, false) => slot.enter(Phase::Idle, server.idle_timeout),
        }
        Poll::Pending
    })
    .await;
}

/// Sends a GOAWAY that says that there is no memory for an HTTP/2 connection: no request of it was processed.
async fn refuse(worker: &Worker, mut stream: Stream, slot: &SlotRef) {
    const REASON: &str = "no memory for an HTTP/2 connection";
    let outcome = Outcome::NoMemory;
    worker.metrics.failed(outcome);
    if worker
        .repeats
        .is_first(Kind("HTTP/2 refused", outcome), slot.now())
    {
        let (bound, value) = worker.memory_bound();
        let client = log::client(slot.client());
        log::warn(
            "HTTP/2 refused",
            &[
                ("client", &client),
                ("reason", &REASON),
                ("bound", &bound),
                ("value", &value),
            ],
        );
    }
    // SETTINGS come first (RFC 9113 §3.4)
    let mut bytes = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    bytes.extend(go_away(0, NO_ERROR, REASON));
    slot.enter(Phase::Lingering, Some(LINGER));
    say(&mut stream, slot, &bytes).await;
    linger(worker, stream, slot, REFUSED_REST).await;
}

/// A GOAWAY frame (RFC 9113 §6.8): streams above `last` were not processed.
fn go_away(last: u32, reason: u32, text: &str) -> Vec<u8> {
    let len = u32::try_from(8 + text.len()).unwrap_or(8);
    let mut frame = Vec::with_capacity(9 + len as usize);
    frame.extend_from_slice(len.to_be_bytes().get(1..).unwrap_or_default());
    frame.extend_from_slice(&[7, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&last.to_be_bytes());
    frame.extend_from_slice(&reason.to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// Writes final frames, as far as the client takes them within its deadline.
async fn say(stream: &mut Stream, slot: &SlotRef, mut bytes: &[u8]) {
    poll_fn(|context| {
        while !bytes.is_empty() {
            match Pin::new(&mut *stream).poll_write(context, bytes) {
                Poll::Ready(Ok(count)) => bytes = bytes.get(count..).unwrap_or_default(),
                Poll::Pending if !slot.is_overdue() && slot.order() != Directive::Leave => {
                    return Poll::Pending;
                }
                _ => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    })
    .await;
}
