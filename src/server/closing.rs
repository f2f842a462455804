//! How a client's connection ends: by a close after a short read, or by a reset where the client does not read.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    connection_table::{Directive, SlotRef, TimerKind, phase::Phase},
    exchange::worker::Worker,
    http1::server::ServerCodec,
    memory::prices::{INPUT, NARROW, UNSENT},
    net::Stream,
    observe::log,
    outcome::Outcome,
    sys::socket,
    yield_budget::YieldBudget,
};

/// What becomes of a connection after an exchange or a refusal, whose memory is freed first.
pub enum Next {
    /// It stays open, and nothing of another request was read.
    Rests(Stream),
    /// It stays open, and part of another request was read.
    Reads(Box<ServerCodec>),
    /// It is read for a short time, and at most so many bytes: [`linger`].
    Lingers(Stream, usize),
    /// It is kept until the client has acknowledged its answer: [`depart`].
    Departs(Stream),
    /// It is over.
    Over,
}

/// How long a final answer may take to be written, and how long the connection is read after it (RFC 9112 §9.6).
pub const LINGER: Duration = Duration::from_secs(5);

/// Closes the sending half and reads on for a short time, so that the client can read the last answer before a reset
/// discards it (RFC 9112 §9.6). At most `rest` bytes are read, for at most [`LINGER`]. Where memory is tight and the budget has
/// nothing left for what the client sends meanwhile, the connection is closed at once.
pub async fn linger(worker: &Worker, mut io: Stream, slot: &SlotRef, mut rest: usize) {
    slot.enter(Phase::Lingering, Some(LINGER));
    let is_tight = worker.budget.plan().tight;
    let permit = worker.budget.take_inside(INPUT);
    if is_tight && permit.is_none() {
        return leave(worker, &io);
    }
    poll_fn(|context| {
        if ready!(Pin::new(&mut io).poll_shutdown(context)).is_err() {
            return Poll::Ready(());
        }
        let mut yield_budget = YieldBudget::new();
        loop {
            if slot.is_overdue() || slot.order() == Directive::Leave {
                return Poll::Ready(());
            }
            let mut scratch = worker.scratch.borrow_mut();
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut io).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() && rest > 0 => {
                    rest = rest.saturating_sub(buffer.filled().len());
                }
                // the client's bytes are all read, but it has not acknowledged its answer yet
                Ok(()) if is_tight && socket::unsent(&io.socket()) > 0 => {
                    slot.look_back(true);
                    return Poll::Pending;
                }
                _ => return Poll::Ready(()),
            }
            ready!(yield_budget.poll_next(context));
        }
    })
    .await;
    leave(worker, &io);
}

/// Whether much of what was sent may still be in the kernel while memory is tight. It is measured where memory is short.
pub fn is_unread(worker: &Worker, io: &mut Stream) -> bool {
    let budget = &worker.budget;
    budget.plan().tight
        && io.sent_at_most() > NARROW
        && (!budget.is_short() || io.unsent() > NARROW)
}

/// Waits for a sign that the client has read its answer, which costs no system call: its next request, or the next tick.
pub async fn await_sign(io: &mut Stream, slot: &SlotRef) {
    slot.look_back(true);
    poll_fn(|context| match io.poll_read_ready(context) {
        Poll::Pending if !slot.is_to_look() && slot.order() != Directive::Leave => Poll::Pending,
        _ => Poll::Ready(()),
    })
    .await;
}

/// Makes the close a reset where the client has not acknowledged all that it was sent and memory is tight: otherwise
/// the kernel would hold those bytes for minutes after the connection, and no permit would pay for them.
pub fn leave(worker: &Worker, io: &Stream) {
    if worker.budget.plan().tight {
        socket::reset_unsent(&io.socket());
    }
}

/// Waits until the client has acknowledged all but `most` bytes of what it was sent. Until then the exchange holds its
/// memory, and may be evicted as a stream whose client blocks it.
///
/// # Errors
/// The client has left, or the connection was told to leave: the close will be a reset.
pub async fn settle(
    worker: &Worker,
    io: &mut Stream,
    slot: &SlotRef,
    most: usize,
) -> io::Result<()> {
    let limit = worker.state().config.server.write_timeout;
    let mut left = io.unsent();
    let settled = poll_fn(|context| {
        if left <= most {
            return Poll::Ready(Ok(()));
        }
        // mostly the client's next request shows that it has read this answer; otherwise the timer wakes this task
        let _ = io.poll_read_ready(context)?;
        // the queue of a dead connection does not get shorter
        if socket::is_dead(&io.socket()) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let unsent = io.unsent();
        if unsent < left {
            slot.took(left - unsent);
            left = unsent;
        }
        if left <= most {
            return Poll::Ready(Ok(()));
        }
        let is_stalled = slot.is_stalled(TimerKind::Client, limit, || socket::taken(&io.socket()));
        slot.has_looked();
        if is_stalled || slot.order() == Directive::Leave {
            tell_unread(worker, slot, unsent, is_stalled);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    })
    .await;
    slot.look_back(false);
    slot.took(0);
    if settled.is_err() {
        leave(worker, io);
    }
    settled
}

/// Counts and logs that an answer is cut off which the kernel has whole and the client does not read.
#[cold]
fn tell_unread(worker: &Worker, slot: &SlotRef, unsent: usize, is_stalled: bool) {
    let outcome = if is_stalled {
        Outcome::WriteTimedOut
    } else {
        slot.leave_outcome()
    };
    worker.metrics.failed(outcome);
    log::debug(
        "answer not read",
        &[
            ("client", &log::client(slot.client())),
            ("unread", &unsent),
            ("outcome", &outcome),
        ],
    );
}

/// Ends the sending half after the last answer of a connection, and keeps the socket and its permit until the client
/// has acknowledged all of it. Such connections are among the first to be evicted.
pub async fn depart(worker: &Worker, mut io: Stream, slot: &SlotRef) {
    let _permit = worker.budget.force(UNSENT);
    slot.enter(Phase::Lingering, None);
    let told = poll_fn(|context| Pin::new(&mut io).poll_shutdown(context)).await;
    if told.is_ok() {
        drop(settle(worker, &mut io, slot, 0).await);
    } else {
        leave(worker, &io);
    }
}
