//! Two upgraded connections joined: bytes both ways, through two small buffers that are held only while bytes are in them.
//!
//! A half that ends is ended for the other side too, while the other direction goes on (RFC 6455 closes by a handshake
//! of its own, and other protocols rely on half-close).

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
    body::Turn,
    budget::{Buffer, Buffers, Room},
    dial::Io,
    park::{Order, Slot, Watch},
    sys,
};

/// One direction.
#[derive(Debug)]
struct Flow {
    buffer: Buffer,
    start: usize,
    end: usize,
    room: Room,
    /// The source has ended.
    ended: bool,
    /// The sink has been told.
    closed: bool,
    /// Bytes that went through.
    moved: u64,
    /// How many they were when the sink was last asked how it gets on.
    seen: u64,
    /// Something waits for the sink.
    waits: bool,
}

/// How a tunnel went: bytes from the client, bytes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// From the client to the upstream.
    pub received: u64,
    /// From the upstream to the client.
    pub sent: u64,
}

/// Joins them until both directions have ended, one breaks, the seat is told to leave, or a side takes no byte of what
/// waits for it for `limit`. `first` are bytes that were read from each before: (from the client, from the upstream).
pub async fn join(
    client: &mut Io,
    upstream: &mut Io,
    first: (&[u8], &[u8]),
    room: Room,
    buffers: &Rc<Buffers>,
    limit: Option<Duration>,
    watch: &Watch,
) -> Carried {
    let mut up = Flow::new(first.0, room);
    let mut down = Flow::new(first.1, room);
    poll_fn(|context| {
        if watch.order() == Order::Leave {
            return Poll::Ready(());
        }
        let before = up.moved + down.moved;
        let upward = up.poll(context, client, upstream, buffers);
        let downward = down.poll(context, upstream, client, buffers);
        if up.moved + down.moved > before {
            watch.moved(usize::try_from(up.moved + down.moved - before).unwrap_or(usize::MAX));
        }
        let is_over = is_stalled(watch, Slot::Work, &mut up, upstream, limit)
            || is_stalled(watch, Slot::Client, &mut down, client, limit)
            || (watch.is_to_look() && (is_dead(client) || is_dead(upstream)));
        watch.has_looked();
        if is_over {
            return Poll::Ready(());
        }
        match (upward, downward) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(())))
            | (Poll::Ready(Err(_)), _)
            | (_, Poll::Ready(Err(_))) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
    Carried {
        received: up.moved,
        sent: down.moved,
    }
}

/// Whether a side has taken nothing of what waits for it for too long.
fn is_stalled(
    watch: &Watch,
    slot: Slot,
    flow: &mut Flow,
    sink: &Io,
    limit: Option<Duration>,
) -> bool {
    if !flow.waits || flow.seen != flow.moved {
        flow.seen = flow.moved;
        watch.goes_on(slot);
    }
    flow.waits && watch.is_stalled(slot, limit, || sys::taken(&sink.socket()))
}

/// Whether a side is gone, which a direction that is blocked by the other would not see.
fn is_dead(io: &Io) -> bool {
    sys::is_dead(&io.socket())
}

impl Flow {
    fn new(first: &[u8], room: Room) -> Flow {
        Flow {
            buffer: first.to_vec().into(),
            start: 0,
            end: first.len(),
            room,
            ended: false,
            closed: false,
            moved: 0,
            seen: 0,
            waits: false,
        }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
        buffers: &Rc<Buffers>,
    ) -> Poll<io::Result<()>> {
        let mut turn = Turn::new();
        loop {
            self.waits = true;
            while self.start < self.end {
                let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
                let count = ready!(Pin::new(&mut *sink).poll_write(context, bytes))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.start += count;
                self.moved += count as u64;
            }
            self.buffer = Buffer::default();
            if self.closed {
                self.waits = false;
                return Poll::Ready(Ok(()));
            }
            ready!(Pin::new(&mut *sink).poll_flush(context))?;
            if self.ended {
                ready!(Pin::new(&mut *sink).poll_shutdown(context))?;
                self.closed = true;
                continue;
            }
            self.waits = false;
            ready!(source.poll_read_ready(context))?;
            let mut buffer = buffers.take(self.room);
            let mut space = ReadBuf::new(&mut buffer);
            let result = Pin::new(&mut *source).poll_read(context, &mut space);
            let count = space.filled().len();
            if count > 0 {
                self.buffer = buffer;
            }
            ready!(result)?;
            self.start = 0;
            self.end = count;
            self.ended = count == 0;
            ready!(turn.poll_next(context));
        }
    }
}
