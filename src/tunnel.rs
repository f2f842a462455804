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
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    body::Turn,
    budget::{Buffer, Buffers, Room},
    dial::Io,
    park::{Order, Watch},
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
}

/// How a tunnel went: bytes from the client, bytes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// From the client to the upstream.
    pub received: u64,
    /// From the upstream to the client.
    pub sent: u64,
}

/// Joins them until both directions have ended, one breaks, or the seat is told to leave. `first` are bytes that were
/// read from each before: (from the client, from the upstream).
pub async fn join(
    client: &mut Io,
    upstream: &mut Io,
    first: (Vec<u8>, Vec<u8>),
    room: Room,
    buffers: &Rc<Buffers>,
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

impl Flow {
    fn new(mut first: Vec<u8>, room: Room) -> Flow {
        first.shrink_to_fit();
        Flow {
            start: 0,
            end: first.len(),
            buffer: first.into(),
            room,
            ended: false,
            closed: false,
            moved: 0,
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
                return Poll::Ready(Ok(()));
            }
            ready!(Pin::new(&mut *sink).poll_flush(context))?;
            if self.ended {
                ready!(Pin::new(&mut *sink).poll_shutdown(context))?;
                self.closed = true;
                continue;
            }
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
