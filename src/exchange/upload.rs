//! Sends a request to the upstream.
//!
//! The head leaves together with the body bytes that have arrived; a body is passed on chunk by chunk, and never over
//! its limit.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderName};
use http_body::{Body as _, Frame};
use tokio::io::AsyncWrite as _;

use crate::{
    exchange::client::Client,
    http1::{headers, write_buffer::WriteBuffer},
    memory::chunk::BodyChunk,
    net::Stream,
    yield_budget::YieldBudget,
};

/// A request that is being sent to the upstream.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "four independent facts")]
pub struct Upload {
    write_buffer: WriteBuffer,
    /// The client has not sent all of the body.
    has_more: bool,
    /// TLS may hold bytes that were not given to the kernel yet.
    unflushed: bool,
    chunked: bool,
    /// The most bytes that the body may have.
    limit: u64,
    /// Bytes of body that were taken from the client.
    pub taken: u64,
    /// Bytes that were written, with head and framing.
    pub sent: u64,
    /// The body waits for the upstream's `100 Continue`.
    held_back: bool,
    withheld: Vec<HeaderName>,
}

/// The body that a request's head announces.
#[derive(Debug, Default)]
pub struct UploadBody {
    /// It has no Content-Length, and is sent in chunks.
    pub chunked: bool,
    /// The most bytes that it may have; `None` = no limit.
    pub limit: Option<u64>,
    /// It waits for the upstream's `100 Continue` (`Expect: 100-continue`).
    pub held_back: bool,
    /// Names that are not passed on in trailers.
    pub withheld: Vec<HeaderName>,
}

/// Why a request was not sent completely.
#[derive(Debug)]
pub enum UploadError {
    /// The client's body is over the limit.
    TooLarge,
    /// The client's body is malformed or cut short.
    Client,
    /// The upstream accepts no more; it may have answered early.
    Upstream,
}

impl Upload {
    /// A request with this head; `body` is `None` where it has none.
    pub fn new(head: Vec<u8>, body: Option<UploadBody>) -> Upload {
        let has_more = body.is_some();
        let body = body.unwrap_or_default();
        Upload {
            write_buffer: WriteBuffer::new(head),
            has_more,
            unflushed: false,
            chunked: body.chunked,
            limit: body.limit.unwrap_or(u64::MAX),
            taken: 0,
            sent: 0,
            held_back: body.held_back,
            withheld: body.withheld,
        }
    }

    /// Whether no byte of the body was taken, so that the same bytes can be sent once more.
    pub fn can_rewind(&self) -> bool {
        self.taken == 0 && self.write_buffer.can_rewind()
    }

    /// Starts again, for another connection.
    pub fn rewind(&mut self) {
        self.unflushed = false;
        self.write_buffer.rewind();
    }

    /// Lets the body be sent: the upstream has asked for it, or has not answered in time.
    pub fn release(&mut self) {
        self.held_back = false;
    }

    /// Whether the body waits for the upstream's `100 Continue`.
    pub fn is_held_back(&self) -> bool {
        self.held_back && self.is_written()
    }

    /// Whether the upload waits for the client, and not for the upstream.
    pub fn waits_for_client(&self) -> bool {
        self.is_written() && !self.held_back && self.has_more
    }

    /// Whether the kernel has the whole request.
    pub fn is_done(&self) -> bool {
        !self.has_more && self.is_written()
    }

    fn is_written(&self) -> bool {
        self.write_buffer.is_empty() && !self.unflushed
    }

    /// Sends as much as possible; ready when the kernel has the whole request.
    ///
    /// # Errors
    /// [`UploadError`].
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        io: &mut Stream,
        client: &Client<'_>,
    ) -> Poll<Result<(), UploadError>> {
        let mut yield_budget = YieldBudget::new();
        loop {
            if self.has_more && self.write_buffer.is_fresh() && !self.held_back {
                // body bytes that have arrived leave together with the head
                let _ = self.poll_body(context, client)?;
            }
            while !self.write_buffer.is_empty() {
                let slices = self.write_buffer.slices();
                let count = ready!(Pin::new(&mut *io).poll_write_vectored(context, &slices))
                    .map_err(|_| UploadError::Upstream)?;
                if count == 0 {
                    return Poll::Ready(Err(UploadError::Upstream));
                }
                self.sent += count as u64;
                self.write_buffer.wrote(count);
                self.unflushed = matches!(io, Stream::Tls(_));
            }
            if self.unflushed {
                ready!(Pin::new(&mut *io).poll_flush(context))
                    .map_err(|_| UploadError::Upstream)?;
                self.unflushed = false;
            }
            if !self.has_more {
                return Poll::Ready(Ok(()));
            }
            if self.held_back {
                return Poll::Pending;
            }
            ready!(yield_budget.poll_next(context));
            let piece = self.poll_body(context, client)?;
            if piece.is_pending() {
                io.pause();
                return Poll::Pending;
            }
        }
    }

    /// The head, while nothing is written.
    pub fn head(&self) -> &[u8] {
        self.write_buffer.text()
    }

    /// Whether more of the body is to come from the client.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// The next frame of the client's body; of trailers those that may pass. `None` at its end.
    ///
    /// # Errors
    /// Those of the client.
    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
        client: &Client<'_>,
    ) -> Poll<Result<Option<Frame<BodyChunk>>, UploadError>> {
        let frame = ready!(client.poll_body(context)).transpose();
        let frame = frame.map_err(|_| UploadError::Client)?;
        if let Some(piece) = frame.as_ref().and_then(Frame::data_ref) {
            self.taken += piece.len() as u64;
            if self.taken > self.limit {
                return Poll::Ready(Err(UploadError::TooLarge));
            }
            self.has_more = !client.is_end_stream();
            return Poll::Ready(Ok(frame));
        }
        self.has_more = false;
        let trailers = frame.and_then(|frame| frame.into_trailers().ok());
        Poll::Ready(Ok(trailers.map(|trailers| {
            Frame::trailers(headers::passed_trailers(&trailers, &self.withheld))
        })))
    }

    /// Takes the next frame of the client's body, and frames it for the upstream.
    fn poll_body(
        &mut self,
        context: &mut Context<'_>,
        client: &Client<'_>,
    ) -> Poll<Result<(), UploadError>> {
        match ready!(self.poll_frame(context, client)?).map(Frame::into_data) {
            Some(Ok(piece)) => {
                let is_empty = piece.is_empty();
                self.write_buffer.put(piece, self.chunked);
                match (self.chunked && !self.has_more, is_empty) {
                    (false, _) => {}
                    (true, false) => self.write_buffer.end_chunks(),
                    // an HTTP/2 frame that only marks the end
                    (true, true) => self.end(&HeaderMap::new()),
                }
            }
            Some(Err(frame)) => self.end(&frame.into_trailers().unwrap_or_default()),
            None => self.end(&HeaderMap::new()),
        }
        Poll::Ready(Ok(()))
    }

    /// Adds the last chunk with the trailers that are passed on; nothing where the body has a length.
    fn end(&mut self, trailers: &HeaderMap) {
        if self.chunked {
            self.write_buffer.last_chunk(trailers);
        }
    }
}
