//! The client as an exchange sees it: its body, and what it is answered.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::AsyncWrite as _;

use crate::{
    connection_table::TimerKind,
    exchange::context::ExchangeContext,
    http1::server::{BodyState, MAX_INTERIM, ServerCodec},
    memory::{
        buffers::{Buffers, ReadSize},
        chunk::BodyChunk,
    },
    outcome::Outcome,
    sys::socket,
    yield_budget::YieldBudget,
};

/// How much of a body that nobody wants is read all the same, where it is here already: then the connection can stay.
pub const MAX_DRAIN: usize = 64 * 1024;

/// The client as an exchange sees it.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    codec: &'a RefCell<ServerCodec>,
    /// What the exchange holds, and counts.
    pub exchange_context: &'a ExchangeContext<'a>,
    /// Where buffers come from and go back to.
    pub buffers: &'a Rc<Buffers>,
    /// What of a body may be on its way to the upstream at a time.
    room: ReadSize,
    write_timeout: Option<Duration>,
}

impl<'a> Client<'a> {
    /// The client behind a gate. `room` is for one read of its body; `write_timeout` is how long it may take no byte.
    pub fn new(
        codec: &'a RefCell<ServerCodec>,
        exchange_context: &'a ExchangeContext<'a>,
        buffers: &'a Rc<Buffers>,
        room: ReadSize,
        write_timeout: Option<Duration>,
    ) -> Client<'a> {
        Client {
            codec,
            exchange_context,
            buffers,
            room,
            write_timeout,
        }
    }

    /// Whether all of its message was read.
    pub fn is_between(&self) -> bool {
        self.codec.borrow().is_between()
    }

    /// Bytes of its body that were read, framing included; wraps.
    pub fn bytes_read(&self) -> u64 {
        self.codec.borrow().read.into()
    }

    /// Whether it may still wait to be asked for its body (`Expect: 100-continue`).
    pub fn awaits_word(&self) -> bool {
        self.codec.borrow().awaits_word
    }

    /// The next bytes of its body; `None` at the end.
    ///
    /// # Errors
    /// The connection broke or ended early, or the framing is broken.
    pub fn poll_body(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<BodyChunk>>> {
        let polled = self
            .codec
            .borrow_mut()
            .poll_body(context, self.buffers, self.room);
        if let Poll::Ready(Ok(Some(piece))) = &polled {
            let exchange_context = self.exchange_context;
            exchange_context.took_in(piece.len());
            exchange_context.slot.moved(piece.len());
        }
        polled
    }

    /// Whether fields stand behind its body; known at the end of it.
    pub fn has_trailers(&self) -> bool {
        matches!(&self.codec.borrow().due, BodyState::Chunked(body) if body.has_trailers())
    }

    /// The trailer section of its body, at the end of it.
    pub fn trailers(&self) -> Vec<u8> {
        self.codec.borrow_mut().trailers()
    }

    /// Reads what is here of a body that nobody wants, unless the client waits to be asked for it. Says whether that was all.
    pub fn poll_drain(&self, context: &mut Context<'_>) -> bool {
        let mut codec = self.codec.borrow_mut();
        let mut rest = MAX_DRAIN;
        while !codec.is_between() && !codec.awaits_word && rest > 0 {
            match codec.poll_body(context, self.buffers, self.room) {
                Poll::Ready(Ok(Some(piece))) => {
                    rest = rest.saturating_sub(piece.len());
                }
                Poll::Ready(Ok(None) | Err(_)) | Poll::Pending => break,
            }
        }
        codec.is_between()
    }

    /// Whether what is left of the request is known and so short that it is read even where the upstream takes none of it.
    pub fn owes_little(&self) -> bool {
        let codec = self.codec.borrow();
        !codec.awaits_word
            && matches!(codec.due, BodyState::Length(left) if left <= MAX_DRAIN as u64)
    }

    /// The client is told that the connection stays: from now on nothing is done for its body after which it could not.
    pub fn promise_to_stay(&self) {
        self.codec.borrow_mut().promised = true;
    }

    /// Reads the rest of a body that nobody wants, behind an answer that promised to. `read_timeout` is how long the client
    /// may give no byte of it. Says whether all of it came.
    pub fn poll_rest(
        &self,
        context: &mut Context<'_>,
        read_timeout: Option<Duration>,
    ) -> Poll<bool> {
        let slot = self.exchange_context.slot;
        let mut yield_budget = YieldBudget::new();
        loop {
            let polled = self
                .codec
                .borrow_mut()
                .poll_body(context, self.buffers, self.room);
            match polled {
                Poll::Ready(Ok(Some(piece))) => {
                    slot.moved(piece.len());
                    slot.client_blocks();
                    slot.set_deadline(read_timeout);
                }
                Poll::Ready(Ok(None)) => return Poll::Ready(true),
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending if slot.is_overdue() => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
            ready!(yield_budget.poll_next(context));
        }
    }

    /// Says something before the answer; dropped where too much waits already.
    pub fn say(&self, interim: &[u8]) {
        let mut codec = self.codec.borrow_mut();
        if codec.interim.len() + interim.len() <= MAX_INTERIM {
            codec.interim.extend_from_slice(interim);
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
        let mut codec = self.codec.borrow_mut();
        let mut result = codec.poll_interim(context).map_ok(|()| 0);
        if matches!(result, Poll::Ready(Ok(_))) {
            result = Pin::new(&mut codec.io).poll_write_vectored(context, slices);
        }
        let slot = self.exchange_context.slot;
        match &result {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(count)) => slot.took(*count),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let sign = || socket::taken(&codec.io.socket());
                if slot.is_stalled(TimerKind::Client, self.write_timeout, sign) {
                    self.exchange_context.note(Outcome::WriteTimedOut);
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        result
    }

    /// Nothing is written to it for a while.
    pub fn rests(&self) {
        self.codec.borrow_mut().io.give_back();
    }

    /// From now on only the close tells the client that it has everything; until then, and if it is cut short, a close is
    /// a reset.
    pub fn ends_by_close(&self, on: bool) {
        let codec = self.codec.borrow();
        drop(codec.io.socket().set_linger(on.then_some(Duration::ZERO)));
    }
}
