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
    body::{Ride, Turn},
    budget::{Buffer, Buffers, Room},
    dial::Io,
    outcome::Outcome,
    park::Order,
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
    /// Bytes that went through since they were last counted.
    moved: usize,
}

/// Which side of a direction broke.
#[derive(Debug)]
enum Broken {
    /// The side that bytes come from.
    Source(io::Error),
    /// The side that they go to.
    Sink(io::Error),
}

/// Joins them until both directions have ended, one breaks, or the seat is told to leave. `first` are bytes that were
/// read from each before: (from the client, from the upstream). Bytes are counted in `ride` as they pass.
pub async fn join(
    client: &mut Io,
    upstream: &mut Io,
    first: (Vec<u8>, Vec<u8>),
    room: Room,
    buffers: &Rc<Buffers>,
    ride: &Ride<'_>,
) {
    let watch = ride.watch;
    let mut up = Flow::new(first.0, room);
    let mut down = Flow::new(first.1, room);
    let outcome = poll_fn(|context| {
        if watch.order() == Order::Leave {
            return Poll::Ready(watch.leave_outcome());
        }
        let upward = up.poll(context, client, upstream, buffers);
        let downward = down.poll(context, upstream, client, buffers);
        let (received, sent) = (up.passed(), down.passed());
        if received + sent > 0 {
            ride.took_in(received);
            ride.gave_out(sent);
            watch.moved(received + sent);
        }
        match (upward, downward) {
            (Poll::Ready(Err(Broken::Source(_))), _) | (_, Poll::Ready(Err(Broken::Sink(_)))) => {
                Poll::Ready(Outcome::ClientGone)
            }
            (Poll::Ready(Err(Broken::Sink(error))), _)
            | (_, Poll::Ready(Err(Broken::Source(error)))) => {
                // TLS without its closing word: a WebSocket has one of its own (RFC 6455 §5.5.1)
                if error.kind() == io::ErrorKind::UnexpectedEof {
                    return Poll::Ready(Outcome::Ok);
                }
                ride.note_cut(&error);
                Poll::Ready(Outcome::UpstreamCut)
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Outcome::Ok),
            _ => Poll::Pending,
        }
    })
    .await;
    ride.note(outcome);
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

    /// Bytes that went through since the last call.
    fn passed(&mut self) -> usize {
        std::mem::take(&mut self.moved)
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
        buffers: &Rc<Buffers>,
    ) -> Poll<Result<(), Broken>> {
        let mut turn = Turn::new();
        loop {
            while self.start < self.end {
                let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
                let count = ready!(Pin::new(&mut *sink).poll_write(context, bytes))
                    .map_err(Broken::Sink)?;
                if count == 0 {
                    return Poll::Ready(Err(Broken::Sink(io::ErrorKind::WriteZero.into())));
                }
                self.start += count;
                self.moved += count;
            }
            self.buffer = Buffer::default();
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            ready!(Pin::new(&mut *sink).poll_flush(context)).map_err(Broken::Sink)?;
            if self.ended {
                ready!(Pin::new(&mut *sink).poll_shutdown(context)).map_err(Broken::Sink)?;
                self.closed = true;
                continue;
            }
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
            ready!(turn.poll_next(context));
        }
    }
}
