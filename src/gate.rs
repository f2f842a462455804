//! The socket under hyper: what the client sends passes here first, and hyper gets one whole message at a time.
//!
//! A request head is collected in a buffer of its own, as large as the bytes that came, and read strictly by
//! `screen.rs`; only a complete and sound one is handed on. The body's framing is walked along, so hyper never holds
//! a byte of the next request: between two messages a connection can be taken from hyper and put to rest. What hyper
//! writes passes through, with interim responses put in where nothing else is under way.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    body::Signals,
    budget::{Budget, Permit},
    chunked::{Chunked, Piece},
    dial::Io,
    park::{Phase, Watch},
    screen::{self, Arrival, Framing, Head, Refusal},
    sys,
};

/// A client's socket with the bytes that were read from it and not handed on.
#[derive(Debug)]
pub struct Gate {
    /// The socket.
    pub io: Io,
    held: Vec<u8>,
    /// How much of `held` was handed on already.
    start: usize,
    /// How much of `held` was searched in vain for the end of a head.
    scanned: usize,
    /// How much of `held` may be handed on.
    feed: usize,
    due: Due,
    /// What `held` costs while the head is not complete.
    permit: Option<Permit>,
}

/// What the bytes after `feed` belong to.
#[derive(Debug)]
enum Due {
    /// So many bytes of a body; 0 = the next head.
    Length(u64),
    /// A chunked body.
    Chunked(Box<Chunked>),
}

/// Bytes that one read may bring between two messages, where memory is short.
const FIRST: usize = 4 * 1024;

/// Bytes of a body read at a time: one less than the step at which hyper's buffer would double once more.
const AMPLE: usize = 32 * 1024 - 1;

impl Gate {
    /// A gate before the first request.
    pub fn new(io: Io) -> Gate {
        Gate {
            io,
            held: Vec::new(),
            start: 0,
            scanned: 0,
            feed: 0,
            due: Due::Length(0),
            permit: None,
        }
    }

    /// Whether part of a head is held.
    pub fn is_amid_head(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether bytes of the last message may still be unread: then the close has to be a lingering one.
    pub fn is_amid_message(&self) -> bool {
        self.feed > 0 || !self.held.is_empty() || !self.is_between()
    }

    /// The target of the head that is ready.
    pub fn target(&self, head: &Head) -> &[u8] {
        self.held
            .get(head.skip + head.target.0..head.skip + head.target.1)
            .unwrap_or_default()
    }

    /// Whether the head that is ready begins with this method.
    pub fn has_method(&self, head: &Head, method: &[u8]) -> bool {
        self.held
            .get(head.skip..head.skip + head.target.0)
            .is_some_and(|line| line.trim_ascii_end() == method)
    }

    /// What was read behind an upgrade's head: the first bytes of the tunnel.
    pub fn into_parts(mut self) -> (Io, Vec<u8>) {
        let rest = self
            .held
            .split_off((self.start + self.feed).min(self.held.len()));
        (self.io, rest)
    }

    /// While an exchange is in work nothing more is read, but a client that leaves is noticed: ready where it did. Behind
    /// bytes that must wait the end shows only when asked for, at every tick.
    pub fn poll_gone(&mut self, context: &mut Context<'_>, watch: &Watch) -> Poll<()> {
        if self.feed > 0 || !self.is_between() {
            return Poll::Pending;
        }
        if self.held.is_empty() {
            match ready!(self.io.poll_peek(context)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        watch.look_back(true);
        if sys::has_hung_up(&self.io.socket()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn is_between(&self) -> bool {
        match &self.due {
            Due::Length(left) => *left == 0,
            Due::Chunked(chunked) => chunked.is_end(),
        }
    }

    /// Collects a request head. `scratch` is the worker's, for one read; `max` the bytes that a head may have.
    pub fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut [u8],
        budget: &Rc<Budget>,
        max: usize,
    ) -> Poll<io::Result<Arrival>> {
        loop {
            if self.held.len() > self.scanned {
                match screen::head(&self.held, &mut self.scanned, max) {
                    Ok(Some(head)) => return Poll::Ready(Ok(self.admit(head))),
                    Ok(None) if !self.pay(budget) => {
                        return Poll::Ready(Ok(Arrival::Refused(Refusal::NoMemory)));
                    }
                    Ok(None) => {}
                    Err(refusal) => return Poll::Ready(Ok(Arrival::Refused(refusal))),
                }
            }
            // where memory is short a read brings little that belongs to a body
            let room = if budget.plan().tight {
                scratch.get_mut(..FIRST)
            } else {
                Some(&mut *scratch)
            };
            let mut buffer = ReadBuf::new(room.unwrap_or_default());
            ready!(Pin::new(&mut self.io).poll_read(context, &mut buffer))?;
            let bytes = buffer.filled();
            if bytes.is_empty() {
                return Poll::Ready(Ok(Arrival::End));
            }
            self.hold(bytes);
        }
    }

    /// Keeps bytes: exactly what came at first, for most heads come in one piece, then with room for half as much again.
    fn hold(&mut self, bytes: &[u8]) {
        let needed = self.held.len() + bytes.len();
        if needed > self.held.capacity() {
            let target = if self.held.is_empty() {
                needed
            } else {
                needed + needed / 2
            };
            self.held.reserve_exact(target - self.held.len());
        }
        self.held.extend_from_slice(bytes);
    }

    /// Pays for a head that is not complete: twice its buffer, for it moves when it grows. Says whether there was enough.
    fn pay(&mut self, budget: &Rc<Budget>) -> bool {
        let price = 2 * self.held.capacity() as u64;
        if self
            .permit
            .as_ref()
            .is_none_or(|permit| permit.bytes() < price)
        {
            self.permit = None;
            self.permit = budget.head(price);
        }
        self.permit.is_some()
    }

    /// Makes the head, and what of its body is already here, ready to be handed on.
    fn admit(&mut self, head: Head) -> Arrival {
        self.permit = None;
        self.held.drain(..head.skip);
        let head = Head { skip: 0, ..head };
        self.scanned = 0;
        self.feed = head.len;
        let behind = self.held.len() - head.len;
        match head.framing {
            Framing::Length(length) => {
                let here = usize::try_from(length).unwrap_or(usize::MAX).min(behind);
                self.feed += here;
                self.due = Due::Length(length - here as u64);
            }
            Framing::Chunked => {
                let mut chunked = Box::new(Chunked::new());
                match walk(&mut chunked, self.held.get(head.len..).unwrap_or_default()) {
                    Ok(here) => self.feed += here,
                    Err(reason) => return Arrival::Refused(Refusal::Malformed(reason)),
                }
                self.due = Due::Chunked(chunked);
            }
        }
        Arrival::Head(head)
    }

    /// Hands on what is ready.
    fn feed(&mut self, cursor: &mut ReadBufCursor<'_>) {
        let count = self.feed.min(cursor.remaining());
        cursor.put_slice(
            self.held
                .get(self.start..self.start + count)
                .unwrap_or_default(),
        );
        self.feed -= count;
        self.start += count;
        if self.feed == 0 {
            // mostly all of it; what is left is the next request
            let rest = self.held.split_off(self.start.min(self.held.len()));
            self.held = rest;
            self.start = 0;
        }
    }
}

/// Walks as far as the body goes; gives how many of the bytes belong to it.
fn walk(chunked: &mut Chunked, bytes: &[u8]) -> Result<usize, &'static str> {
    let mut at = 0;
    while at < bytes.len() && !chunked.is_end() {
        let piece = chunked
            .next(bytes.get(at..).unwrap_or_default())
            .map_err(|broken| broken.0)?;
        let (Piece::Framing(n) | Piece::Data(n) | Piece::Trailer(n)) = piece;
        at += n;
    }
    Ok(at)
}

/// Bytes of a body read at a time: `write_buffer_size` is what memory always allows, and it is larger while that is ample.
fn upload_room(least: usize, is_short: bool) -> usize {
    if is_short { least } else { least.max(AMPLE) }
}

/// What hyper holds as its socket.
#[derive(Debug)]
pub struct Socket {
    /// The gate; the task looks at it too, and keeps it when hyper is taken down.
    gate: Rc<RefCell<Gate>>,
    /// Shared with the exchange and the task.
    signals: Rc<Signals>,
    /// What this hyper can read.
    limits: Limits,
    budget: Rc<Budget>,
    scratch: Rc<RefCell<Box<[u8]>>>,
    write_timeout: Option<Duration>,
    /// Bytes of a body read at a time: what may be on its way to the upstream.
    room: usize,
    max_head: usize,
}

/// What a hyper connection was built for: a larger head needs another one.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of its read buffer, and so of a head.
    pub head: usize,
    /// Fields of a head.
    pub fields: usize,
}

impl Limits {
    /// Whether a head fits.
    pub fn admit(&self, head: &Head) -> bool {
        head.len < self.head && head.fields <= self.fields
    }
}

impl Socket {
    /// A socket whose gate has a head ready, or not.
    pub fn new(
        gate: Rc<RefCell<Gate>>,
        signals: Rc<Signals>,
        limits: Limits,
        worker: &crate::worker::Worker,
    ) -> Socket {
        let config = &worker.state().config;
        Socket {
            gate,
            signals,
            limits,
            budget: Rc::clone(&worker.budget),
            scratch: Rc::clone(&worker.scratch),
            write_timeout: config.server.write_timeout,
            room: upload_room(config.transport.write_buffer_size, worker.budget.is_short()),
            max_head: config.server.max_header_bytes,
        }
    }

    /// Between two messages: looks for the next head. What hyper is not to read is for the task to see.
    fn poll_next(
        &self,
        gate: &mut Gate,
        context: &mut Context<'_>,
        cursor: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let signals = &self.signals;
        if signals.active.get() || !signals.flushed.get() || signals.arrival.get().is_some() {
            return Poll::Pending;
        }
        signals.looked.set(true);
        let arrival = gate.poll_head(
            context,
            &mut self.scratch.borrow_mut(),
            &self.budget,
            self.max_head,
        );
        match ready!(arrival)? {
            Arrival::Head(head) if self.limits.admit(&head) => {
                signals.began.set(signals.watch.now());
                self.begin();
                gate.feed(cursor);
                Poll::Ready(Ok(()))
            }
            arrival => {
                signals.arrival.set(Some(arrival));
                Poll::Pending
            }
        }
    }

    fn begin(&self) {
        self.signals.active.set(true);
        self.signals.looked.set(false);
        self.signals.watch.enter(Phase::Busy, None);
    }

    /// Reads on in a body, straight into hyper's buffer.
    fn poll_body(
        &self,
        gate: &mut Gate,
        context: &mut Context<'_>,
        cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut room = self.room;
        if let Due::Length(left) = &gate.due {
            room = room.min(usize::try_from(*left).unwrap_or(usize::MAX));
        }
        let (due, held) = (&mut gate.due, &mut gate.held);
        sys::read_into(&mut gate.io, context, cursor, room, |bytes| {
            self.signals.watch.moved(bytes.len());
            match due {
                Due::Length(left) => {
                    *left -= bytes.len() as u64;
                    Ok(bytes.len())
                }
                Due::Chunked(chunked) => match walk(chunked, bytes) {
                    Ok(count) => {
                        held.extend_from_slice(bytes.get(count..).unwrap_or_default());
                        Ok(count)
                    }
                    Err(reason) => {
                        self.signals.broken.set(true);
                        Err(io::Error::other(reason))
                    }
                },
            }
        })
    }

    /// Writes what must come before hyper's bytes.
    fn poll_interim(&self, gate: &mut Gate, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut interim = self.signals.interim.borrow_mut();
        while !interim.is_empty() {
            let written = ready!(Pin::new(&mut gate.io).poll_write(context, &interim))?;
            interim.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// Notes how a write went: progress, or a wait that has its time.
    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Ready(Ok(count)) => self.signals.watch.took(*count),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                if self.signals.watch.is_write_overdue() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                self.signals.watch.write_blocked(self.write_timeout);
            }
        }
        result
    }
}

impl Read for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut gate = self.gate.borrow_mut();
        if gate.feed > 0 {
            if !self.signals.active.get() {
                self.begin();
            }
            gate.feed(&mut cursor);
            Poll::Ready(Ok(()))
        } else if gate.is_between() {
            self.poll_next(&mut gate, context, &mut cursor)
        } else {
            self.poll_body(&mut gate, context, cursor)
        }
    }
}

impl Write for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut gate = self.gate.borrow_mut();
        self.signals.flushed.set(false);
        if self.poll_interim(&mut gate, context)?.is_pending() {
            return self.wrote(Poll::Pending);
        }
        self.wrote(Pin::new(&mut gate.io).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gate = self.gate.borrow_mut();
        self.signals.flushed.set(false);
        if self.poll_interim(&mut gate, context)?.is_pending() {
            return self.wrote(Poll::Pending);
        }
        self.wrote(Pin::new(&mut gate.io).poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper calls it only with an empty write buffer.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self
            .poll_interim(&mut self.gate.borrow_mut(), context)?
            .is_pending()
        {
            return self.wrote(Poll::Pending).map_ok(|_| ());
        }
        self.signals.flushed.set(true);
        if self.signals.pieces.get() == 0 && self.signals.waiting.replace(false) {
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    /// The task closes the socket, in its own time.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_buffer_size_holds_where_memory_is_short() {
        assert_eq!(upload_room(512, true), 512);
        assert_eq!(upload_room(512, false), AMPLE);
        assert_eq!(upload_room(AMPLE + 1, false), AMPLE + 1);
    }
}
