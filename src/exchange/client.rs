//! The client as an exchange sees it: its body, and what it is answered.

use crate::{
    connection_table::Slot,
    exchange::context::Ride,
    http1::server::{Due, Gate, MAX_INTERIM},
    memory::{
        budget::Budget,
        buffers::{Buffers, Room},
        chunk::Piece,
    },
    net::Way,
    outcome::Outcome,
    sys::socket,
    yield_budget::Turn,
};
use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::io::AsyncWrite as _;
/// How much of a body that nobody wants is read all the same, where it is here already: then the connection can stay.
pub const MAX_DRAIN: usize = 64 * 1024;

/// The client as an exchange sees it.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    gate: &'a RefCell<Gate>,
    /// What the exchange holds, and counts.
    pub ride: &'a Ride<'a>,
    /// Where buffers come from and go back to.
    pub buffers: &'a Rc<Buffers>,
    /// What of a body may be on its way to the upstream at a time.
    room: Room,
    write_timeout: Option<Duration>,
}

impl<'a> Client<'a> {
    /// The client behind a gate. `room` is for one read of its body; `write_timeout` is how long it may take no byte.
    pub fn new(
        gate: &'a RefCell<Gate>,
        ride: &'a Ride<'a>,
        buffers: &'a Rc<Buffers>,
        room: Room,
        write_timeout: Option<Duration>,
    ) -> Client<'a> {
        Client {
            gate,
            ride,
            buffers,
            room,
            write_timeout,
        }
    }

    /// Whether all of its message was read.
    pub fn is_between(&self) -> bool {
        self.gate.borrow().is_between()
    }

    /// Bytes of its body that have come or are known to come.
    pub fn expects(&self) -> u64 {
        let left = match self.gate.borrow().due {
            Due::Length(left) => left,
            Due::Chunked(_) | Due::Broken => 0,
        };
        self.ride.received.get().saturating_add(left)
    }

    /// Bytes of its body that were read, framing included; wraps.
    pub fn bytes_read(&self) -> u64 {
        self.gate.borrow().read.into()
    }

    /// Whether it may still wait to be asked for its body (`Expect: 100-continue`).
    pub fn awaits_word(&self) -> bool {
        self.gate.borrow().awaits_word
    }

    /// The next bytes of its body; `None` at the end.
    ///
    /// # Errors
    /// The connection broke or ended early, or the framing is broken.
    pub fn poll_body(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Piece>>> {
        let polled = self
            .gate
            .borrow_mut()
            .poll_body(context, self.buffers, self.room);
        if let Poll::Ready(Ok(Some(piece))) = &polled {
            let ride = self.ride;
            ride.took_in(piece.len());
            ride.watch.moved(piece.len());
        }
        polled
    }

    /// Whether fields stand behind its body; known at the end of it.
    pub fn has_trailers(&self) -> bool {
        matches!(&self.gate.borrow().due, Due::Chunked(body) if body.has_trailers())
    }

    /// The trailer section of its body, at the end of it.
    pub fn trailers(&self) -> Vec<u8> {
        self.gate.borrow_mut().trailers()
    }

    /// Reads what is here of a body that nobody wants, unless the client waits to be asked for it. Says whether that was all.
    pub fn poll_drain(&self, context: &mut Context<'_>) -> bool {
        let mut gate = self.gate.borrow_mut();
        let mut rest = MAX_DRAIN;
        while !gate.is_between() && !gate.awaits_word && rest > 0 {
            match gate.poll_body(context, self.buffers, self.room) {
                Poll::Ready(Ok(Some(piece))) => {
                    rest = rest.saturating_sub(piece.len());
                }
                Poll::Ready(Ok(None) | Err(_)) | Poll::Pending => break,
            }
        }
        gate.is_between()
    }

    /// Whether what is left of the request is known and so short that it is read even where the upstream takes none of it.
    pub fn owes_little(&self) -> bool {
        let gate = self.gate.borrow();
        !gate.awaits_word && matches!(gate.due, Due::Length(left) if left <= MAX_DRAIN as u64)
    }

    /// The client is told that the connection stays: from now on nothing is done for its body after which it could not.
    pub fn promise_to_stay(&self) {
        self.gate.borrow_mut().promised = true;
    }

    /// Reads the rest of a body that nobody wants, behind an answer that promised to. `read_timeout` is how long the client
    /// may give no byte of it. Says whether all of it came.
    pub fn poll_rest(
        &self,
        context: &mut Context<'_>,
        read_timeout: Option<Duration>,
    ) -> Poll<bool> {
        let watch = self.ride.watch;
        let mut turn = Turn::new();
        loop {
            let polled = self
                .gate
                .borrow_mut()
                .poll_body(context, self.buffers, self.room);
            match polled {
                Poll::Ready(Ok(Some(piece))) => {
                    watch.moved(piece.len());
                    watch.client_blocks();
                    watch.set_deadline(read_timeout);
                }
                Poll::Ready(Ok(None)) => return Poll::Ready(true),
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending if watch.is_overdue() => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
            ready!(turn.poll_next(context));
        }
    }

    /// Says something before the answer; dropped where too much waits already.
    pub fn say(&self, interim: &[u8]) {
        let mut gate = self.gate.borrow_mut();
        if gate.interim.len() + interim.len() <= MAX_INTERIM {
            gate.interim.extend_from_slice(interim);
        }
    }

    /// Writes, and notes how it went: progress, or a wait that has its time.
    ///
    /// # Errors
    /// Those of the socket; `TimedOut` where it takes nothing for too long.
    pub fn poll_write(
        &self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gate = self.gate.borrow_mut();
        let mut result = gate.poll_interim(context).map_ok(|()| 0);
        if matches!(result, Poll::Ready(Ok(_))) {
            result = Pin::new(&mut gate.io).poll_write_vectored(context, slices);
        }
        let watch = self.ride.watch;
        match &result {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(count)) => watch.took(*count),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let sign = || socket::taken(&gate.io.socket());
                if watch.is_stalled(Slot::Client, self.write_timeout, sign) {
                    self.ride.note(Outcome::WriteTimedOut);
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        result
    }

    /// Lets the kernel hold more of a long body, where memory allows it.
    pub fn widen(&self, way: Way, budget: &Rc<Budget>) {
        let mut gate = self.gate.borrow_mut();
        // a connection that receives wide cannot be kept
        let breaks_word = way == Way::In && gate.promised;
        if gate.wide.is_none() && !breaks_word {
            gate.wide = gate.io.widen(way, budget);
        }
    }

    /// From now on only the close tells the client that it has everything; until then, and if it is cut short, a close is
    /// a reset.
    pub fn ends_by_close(&self, on: bool) {
        let gate = self.gate.borrow();
        drop(gate.io.socket().set_linger(on.then_some(Duration::ZERO)));
    }
}
