//! A tunnel between two upgraded connections: bytes both ways, through two small buffers that are held only while bytes
//! are in them.
//!
//! The end of one half is passed on while the other direction goes on (RFC 6455 has a closing handshake of its own, and
//! other protocols rely on half-close).

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    connection_table::{Directive, SlotRef, TimerKind},
    exchange::context::ExchangeContext,
    memory::buffers::{Buffer, Buffers, ReadSize},
    net::Stream,
    outcome::Outcome,
    sys::socket,
    yield_budget::YieldBudget,
};

/// One direction.
#[derive(Debug)]
struct Flow {
    buffer: Buffer,
    start: usize,
    end: usize,
    room: ReadSize,
    /// The source has ended.
    ended: bool,
    /// The sink's half was closed.
    closed: bool,
    /// Bytes that were passed on.
    moved: u64,
    /// How many of them were counted.
    counted: u64,
    /// The value of `moved` when the sink's progress was last checked.
    seen: u64,
    /// Bytes wait for the sink.
    waits: bool,
}

/// The side of a direction that failed.
#[derive(Debug)]
enum Broken {
    /// The side that bytes come from.
    Source(io::Error),
    /// The side that they go to.
    Sink(io::Error),
}

/// Joins the two until both directions have ended, one fails, the connection is told to leave, or a side takes no byte
/// of what waits for it for `limit`. `first` are the bytes that were read from each before: (from the client, from the
/// upstream). Bytes are counted in `exchange_context` as they pass.
pub async fn join(
    client: &mut Stream,
    upstream: &mut Stream,
    first: (Vec<u8>, Vec<u8>),
    room: ReadSize,
    buffers: &Rc<Buffers>,
    limit: Option<Duration>,
    exchange_context: &ExchangeContext<'_>,
) {
    let slot = exchange_context.slot;
    let mut up = Flow::new(first.0, room);
    let mut down = Flow::new(first.1, room);
    let outcome = poll_fn(|context| {
        if slot.order() == Directive::Leave {
            return Poll::Ready(slot.leave_outcome());
        }
        let upward = up.poll(context, client, upstream, buffers);
        let downward = down.poll(context, upstream, client, buffers);
        let is_paid = client.give_back() | upstream.give_back();
        // no event tells when the last bytes are acknowledged
        slot.look_back(is_paid);
        let (received, sent) = (up.passed(), down.passed());
        if received + sent > 0 {
            exchange_context.took_in(received);
            exchange_context.gave_out(sent);
            slot.moved(received + sent);
        }
        let is_stuck = is_stalled(slot, TimerKind::Work, &mut up, upstream, limit)
            || is_stalled(slot, TimerKind::Client, &mut down, client, limit);
        let looks = slot.is_to_look();
        slot.has_looked();
        if is_stuck {
            return Poll::Ready(Outcome::WriteTimedOut);
        }
        if looks && is_dead(client) {
            return Poll::Ready(Outcome::ClientGone);
        }
        if looks && is_dead(upstream) {
            return Poll::Ready(Outcome::UpstreamCut);
        }
        match (upward, downward) {
            (Poll::Ready(Err(Broken::Source(_))), _) | (_, Poll::Ready(Err(Broken::Sink(_)))) => {
                Poll::Ready(Outcome::ClientGone)
            }
            (Poll::Ready(Err(Broken::Sink(error))), _)
            | (_, Poll::Ready(Err(Broken::Source(error)))) => {
                // an end without `close_notify` is accepted: a WebSocket has a close frame (RFC 6455 §5.5.1)
                if error.kind() == io::ErrorKind::UnexpectedEof {
                    return Poll::Ready(Outcome::Ok);
                }
                exchange_context.note_cut(&error);
                Poll::Ready(Outcome::UpstreamCut)
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Outcome::Ok),
            _ => Poll::Pending,
        }
    })
    .await;
    exchange_context.note(outcome);
}

/// Whether a side has taken nothing of what waits for it for too long.
fn is_stalled(
    slot: &SlotRef,
    kind: TimerKind,
    flow: &mut Flow,
    sink: &Stream,
    limit: Option<Duration>,
) -> bool {
    if !flow.waits || flow.seen != flow.moved {
        flow.seen = flow.moved;
        slot.goes_on(kind);
    }
    flow.waits && slot.is_stalled(kind, limit, || socket::taken(&sink.socket()))
}

/// Whether a side is dead, which a direction that is blocked by the other side would not notice.
fn is_dead(io: &Stream) -> bool {
    socket::is_dead(&io.socket())
}

impl Flow {
    fn new(mut first: Vec<u8>, room: ReadSize) -> Flow {
        first.shrink_to_fit();
        Flow {
            start: 0,
            end: first.len(),
            buffer: first.into(),
            room,
            ended: false,
            closed: false,
            moved: 0,
            counted: 0,
            seen: 0,
            waits: false,
        }
    }

    /// Bytes that were passed on since the last call.
    fn passed(&mut self) -> usize {
        let passed = self.moved - self.counted;
        self.counted = self.moved;
        usize::try_from(passed).unwrap_or(usize::MAX)
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        source: &mut Stream,
        sink: &mut Stream,
        buffers: &Rc<Buffers>,
    ) -> Poll<Result<(), Broken>> {
        let mut yield_budget = YieldBudget::new();
        loop {
            self.waits = true;
            while self.start < self.end {
                let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
                let count = ready!(Pin::new(&mut *sink).poll_write(context, bytes))
                    .map_err(Broken::Sink)?;
                if count == 0 {
                    return Poll::Ready(Err(Broken::Sink(io::ErrorKind::WriteZero.into())));
                }
                self.start += count;
                self.moved += count as u64;
            }
            self.buffer = Buffer::default();
            if self.closed {
                self.waits = false;
                return Poll::Ready(Ok(()));
            }
            ready!(Pin::new(&mut *sink).poll_flush(context)).map_err(Broken::Sink)?;
            if self.ended {
                ready!(Pin::new(&mut *sink).poll_shutdown(context)).map_err(Broken::Sink)?;
                self.closed = true;
                continue;
            }
            self.waits = false;
            ready!(source.poll_read_ready(context)).map_err(Broken::Source)?;
            let mut buffer = buffers.take(self.room);
            let mut space = ReadBuf::new(&mut buffer);
            let result = Pin::new(&mut *source).poll_read(context, &mut space);
            let count = space.filled().len();
            if count > 0 {
                self.buffer = buffer;
            }
            ready!(result).map_err(Broken::Source)?;
            self.start = 0;
            self.end = count;
            self.ended = count == 0;
            ready!(yield_budget.poll_next(context));
        }
    }
}
