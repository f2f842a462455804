//! The client's connection as the HTTP/1.1 adapter uses it: the response written, and what is left of a request read.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::AsyncWrite as _;

use crate::{
    connection_table::TimerKind,
    exchange::client::Client,
    http1::{framing::BodyState, server::ServerCodec},
    outcome::Outcome,
    sys::socket,
    yield_budget::YieldBudget,
};

/// How much of a body that is not wanted is read all the same, where it is here already: then the connection can stay.
const MAX_DRAIN: usize = 64 * 1024;

/// An HTTP/1.1 connection during one exchange.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Its codec.
    pub codec: &'a RefCell<ServerCodec>,
    /// The client, as the exchange sees it.
    pub client: &'a Client<'a>,
    /// How long the client may take no byte; `None` = no limit.
    pub write_timeout: Option<Duration>,
}

impl Connection<'_> {
    /// Whether all of its message was read.
    pub fn is_between(&self) -> bool {
        self.codec.borrow().is_between()
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

    /// Reads what is here of a body that nobody wants, unless the client waits to be asked for it. Says whether that was all.
    pub fn poll_drain(&self, context: &mut Context<'_>) -> bool {
        let mut codec = self.codec.borrow_mut();
        let mut rest = MAX_DRAIN;
        while !codec.is_between() && !codec.awaits_word && rest > 0 {
            match codec.poll_body(context, self.client.buffers, self.client.room) {
                Poll::Ready(Ok(Some(piece))) => {
                    rest = rest.saturating_sub(piece.len());
                }
                Poll::Ready(Ok(None) | Err(_)) | Poll::Pending => break,
            }
        }
        codec.is_between()
    }

    /// Reads the rest of a body that nobody wants, behind an answer that promised to. `read_timeout` is how long the client
    /// may give no byte of it. Says whether all of it came.
    pub fn poll_rest(
        &self,
        context: &mut Context<'_>,
        seen: &mut Option<u64>,
        read_timeout: Option<Duration>,
    ) -> Poll<bool> {
        let slot = self.client.exchange_context.slot;
        let mut yield_budget = YieldBudget::new();
        loop {
            let polled =
                self.codec
                    .borrow_mut()
                    .poll_body(context, self.client.buffers, self.client.room);
            match polled {
                Poll::Ready(Ok(Some(piece))) => {
                    slot.moved(piece.len());
                    slot.client_blocks();
                }
                Poll::Ready(Ok(None)) => return Poll::Ready(true),
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending if slot.is_late(seen, self.client.bytes_read(), read_timeout) => {
                    return Poll::Ready(false);
                }
                Poll::Pending => return Poll::Pending,
            }
            ready!(yield_budget.poll_next(context));
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
        let slot = self.client.exchange_context.slot;
        match &result {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(count)) => slot.took(*count),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let sign = || socket::taken(&codec.io.socket());
                if slot.is_stalled(TimerKind::Client, self.write_timeout, sign) {
                    self.client.exchange_context.note(Outcome::WriteTimedOut);
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        result
    }

    /// From now on only the close tells the client that it has everything; until then, and if it is cut short, a close is
    /// a reset.
    pub fn ends_by_close(&self, on: bool) {
        let codec = self.codec.borrow();
        drop(codec.io.socket().set_linger(on.then_some(Duration::ZERO)));
    }
}
