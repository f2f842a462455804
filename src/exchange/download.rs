//! Reads the body of a response from the upstream, to be passed on to the client.
//!
//! A body that breaks off is an error and never an end. The upstream connection goes back to the pool only after a
//! complete answer to a complete request.

use std::{
    io,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, HeaderName};
use http_body::Frame;

use crate::{
    exchange::{
        client::Client,
        deadline::{Deadline, Limits, Wait},
        upload::{Upload, UploadError},
    },
    http1::{client::Upstream, framing::BodyState, headers, response_head::Head},
    memory::chunk::BodyChunk,
    outcome::Outcome,
};

/// The body of an answer that arrives from the upstream.
#[derive(Debug)]
pub struct Download<'a> {
    client: &'a Client<'a>,
    /// `None` after the connection was given back or closed.
    upstream: Option<Box<Upstream>>,
    /// Boxed, because most requests are sent completely before their answer begins.
    upload: Option<Box<Upload>>,
    /// The rest of the body.
    state: BodyState,
    persistent: bool,
    /// The trailers of a chunked body, after its end.
    trailers: Option<Box<HeaderMap>>,
    passes_trailers: bool,
    /// Names that are not passed on in trailers.
    withheld: Vec<HeaderName>,
    /// The time-outs for the rest of the request.
    limits: Limits,
    deadline: Deadline,
}

impl<'a> Download<'a> {
    /// How long the client may send no byte of the rest of its request; `None` = no limit.
    pub fn read_timeout(&self) -> Option<Duration> {
        self.limits.read()
    }

    /// The body of an answer; `upload` is the request, where it was not sent completely.
    #[expect(
        clippy::unnecessary_box_returns,
        reason = "it is made where it stays, and not copied there"
    )]
    pub fn new(
        client: &'a Client<'a>,
        upstream: Box<Upstream>,
        upload: Option<Box<Upload>>,
        head: Head,
        passes_trailers: bool,
        limits: Limits,
    ) -> Box<Download<'a>> {
        let place = Box::new_uninit();
        let mut download = Box::write(
            place,
            Download {
                client,
                upstream: Some(upstream),
                upload,
                state: BodyState::of(head.framing),
                persistent: head.persistent,
                trailers: None,
                passes_trailers,
                withheld: head.withheld,
                limits,
                deadline: Deadline::default(),
            },
        );
        if matches!(download.state, BodyState::Length(0)) {
            download.finish();
        }
        download
    }

    /// Whether all of it was taken.
    pub fn is_end(&self) -> bool {
        self.upstream.is_none() && self.trailers.is_none()
    }

    /// How many bytes are left; `None` = unknown.
    pub fn remaining(&self) -> Option<u64> {
        match &self.state {
            BodyState::Length(left) => Some(*left),
            _ => None,
        }
    }

    /// The next frame; `None` at the end.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<BodyChunk>>>> {
        let client = self.client;
        loop {
            let Some(upstream) = &mut self.upstream else {
                let trailers = self.trailers.take();
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(*trailers))));
            };
            if upstream.start == upstream.end {
                let left = match &self.state {
                    BodyState::Length(left) => Some(*left),
                    _ => None,
                };
                let passed = client.exchange_context.sent.get();
                if let Some(io) = &mut upstream.lease.io {
                    ready!(io.poll_expect(context, left, passed));
                }
                match ready!(upstream.poll_fill(context, client.buffers)) {
                    Err(error) => return Poll::Ready(Some(Err(self.abandon(error)))),
                    Ok(0) => {
                        if matches!(self.state, BodyState::Close) {
                            self.finish();
                            return Poll::Ready(None);
                        }
                        return Poll::Ready(Some(Err(
                            self.abandon(io::ErrorKind::UnexpectedEof.into())
                        )));
                    }
                    Ok(_) => {}
                }
            }
            match self.take() {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                Ok(None) => {}
                Err(reason) => {
                    return Poll::Ready(Some(Err(self.abandon(io::Error::other(reason)))));
                }
            }
        }
    }

    /// Sends the rest of the request. An upstream that accepts no more of it may still answer.
    ///
    /// # Errors
    /// The client broke off or sent no byte for `read_timeout`, or the upstream accepted no byte of the request and
    /// sent none for `write_timeout`.
    pub fn poll_upload(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let client = self.client;
        let (Some(upload), Some(upstream)) = (&mut self.upload, &mut self.upstream) else {
            return Ok(());
        };
        let Some(io) = &mut upstream.lease.io else {
            return Ok(());
        };
        let slot = client.exchange_context.slot;
        let ended = match upload.poll(context, io, client) {
            Poll::Pending => {
                let wait = if upload.waits_for_client() {
                    Wait::Client(client.bytes_read())
                } else {
                    Wait::Upstream(upload.sent.wrapping_add(client.exchange_context.sent.get()))
                };
                if self.deadline.is_past(slot, wait, &self.limits, Some(io)) {
                    client.exchange_context.note(wait.failure().outcome());
                    return Err(self.abandon(io::ErrorKind::TimedOut.into()));
                }
                return Ok(());
            }
            Poll::Ready(Ok(())) => Ok(()),
            Poll::Ready(Err(UploadError::Upstream)) => {
                self.persistent = false;
                Ok(())
            }
            Poll::Ready(Err(error @ (UploadError::Client | UploadError::TooLarge))) => {
                client.exchange_context.note(match error {
                    UploadError::TooLarge => Outcome::BodyTooLarge,
                    _ => Outcome::BodyBroken,
                });
                Err(self.abandon(io::ErrorKind::ConnectionAborted.into()))
            }
        };
        self.upload = None;
        slot.uploads(false);
        self.deadline.end(slot);
        ended
    }

    /// Takes body bytes out of the buffer.
    fn take(&mut self) -> Result<Option<BodyChunk>, &'static str> {
        let Some(upstream) = &mut self.upstream else {
            return Ok(None);
        };
        let (start, end) = (upstream.start, upstream.end);
        let (data, used) = match &mut self.state {
            BodyState::Close | BodyState::Broken => (start..end, end),
            BodyState::Length(left) => {
                let count = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(end - start);
                *left -= count as u64;
                (start..start + count, start + count)
            }
            BodyState::Chunked(body) => {
                let bytes = upstream.buffer.get_mut(start..end).unwrap_or_default();
                let taken = body.take(bytes).map_err(|broken| broken.0)?;
                let data = start + taken.data.start..start + taken.data.end;
                (data, start + taken.used)
            }
        };
        let piece = BodyChunk::pooled(std::mem::take(&mut upstream.buffer), data.start, data.end);
        (upstream.start, upstream.end) = (0, 0);
        let ended = match &mut self.state {
            BodyState::Length(left) => *left == 0,
            BodyState::Chunked(body) if body.is_end() => {
                let section = body.trailers();
                if self.passes_trailers && section.len() > 2 {
                    let trailers = headers::read_trailers(&section, &self.withheld)
                        .ok_or("malformed trailers")?;
                    self.trailers = (!trailers.is_empty()).then(|| Box::new(trailers));
                }
                true
            }
            BodyState::Close | BodyState::Broken | BodyState::Chunked(_) => false,
        };
        if ended {
            // a connection with bytes behind its answer is not used again
            self.persistent &= used == end;
            self.finish();
        }
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// The answer is complete: the connection returns to the pool if it can be used again.
    fn finish(&mut self) {
        let Some(upstream) = self.upstream.take() else {
            return;
        };
        if self.persistent
            && self.upload.as_ref().is_none_or(|upload| upload.is_done())
            && upstream.start == upstream.end
        {
            upstream
                .lease
                .give_back(self.client.exchange_context.slot.now());
        }
    }

    /// Closes the upstream connection; returns the error.
    fn abandon(&mut self, error: io::Error) -> io::Error {
        self.upstream = None;
        error
    }
}
