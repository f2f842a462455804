//! The client's connection as the HTTP/1.1 adapter uses it: writes the response, and reads the rest of a request.

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

/// Most bytes of an unwanted body that are read where they have arrived already, so that the connection can stay.
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
    /// Whether the request was read to its end.
    pub fn is_between(&self) -> bool {
        self.codec.borrow().is_between()
    }

    /// Whether the rest of the request is known and so short that it is read even where the upstream takes none of it.
    pub fn owes_little(&self) -> bool {
        let codec = self.codec.borrow();
        !codec.awaits_word
            && matches!(codec.due, BodyState::Length(left) if left <= MAX_DRAIN as u64)
    }

    /// Records that the client was told that the connection stays: from now on the connection does not end for its
    /// body.
    pub fn promise_to_stay(&self) {
        self.codec.borrow_mut().promised = true;
    }

    /// Reads the part of an unwanted body that has arrived, unless the client waits for `100 Continue`. Says whether
    /// that was the rest.
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

    /// Reads the rest of an unwanted body after an answer that said that the connection stays. `read_timeout` is how
    /// long the client may send no byte of it. Says whether all of it arrived.
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

    /// Writes, and records progress, or a wait with its time-out.
    ///
    /// # Errors
    /// Those of the socket; `TimedOut` where the client takes nothing for too long.
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

    /// Sets whether the close of the connection ends the answer; if so, a close before the answer's end is a reset.
    pub fn ends_by_close(&self, on: bool) {
        let codec = self.codec.borrow();
        drop(codec.io.socket().set_linger(on.then_some(Duration::ZERO)));
    }
}
