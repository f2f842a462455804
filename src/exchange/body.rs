//! The body of a response, from any source.
//!
//! It is an [`http_body::Body`], and also sends the rest of a request that its upstream answered early.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::{
    exchange::{download::Download, stream_download::StreamDownload},
    memory::chunk::BodyChunk,
};

/// A response body.
#[derive(Debug)]
pub enum Body<'a> {
    /// A fixed text; empty = no body.
    Own(&'static [u8]),
    /// Bytes on the heap, which several answers may share.
    Made(Bytes),
    /// The body of the upstream's answer.
    Upstream(Box<Download<'a>>),
    /// Whatever the upstream sends in HTTP/2.
    Stream(Box<StreamDownload<'a>>),
}

impl Body<'_> {
    /// How long the client may send no byte of the rest of its request; `None` = no limit.
    pub fn read_timeout(&self) -> Option<Duration> {
        match self {
            Body::Own(_) | Body::Made(_) => None,
            Body::Upstream(download) => download.read_timeout(),
            Body::Stream(download) => download.read_timeout(),
        }
    }

    /// Sends the rest of the request, whether or not the client reads the answer.
    ///
    /// # Errors
    /// Those of [`Download::poll_upload`].
    pub fn poll_upload(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self {
            Body::Upstream(download) => download.poll_upload(context),
            Body::Stream(download) => download.poll_upload(context),
            Body::Own(_) | Body::Made(_) => Ok(()),
        }
    }
}

impl http_body::Body for Body<'_> {
    type Data = BodyChunk;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<BodyChunk>>>> {
        let piece = match &mut *self {
            Body::Own(text) => BodyChunk::fixed(std::mem::take(text)),
            Body::Made(bytes) => BodyChunk::shared(std::mem::take(bytes)),
            Body::Upstream(download) => return download.poll(context),
            Body::Stream(download) => return download.poll(context),
        };
        Poll::Ready((!piece.is_empty()).then_some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Own(text) => text.is_empty(),
            Body::Made(bytes) => bytes.is_empty(),
            Body::Upstream(download) => download.is_end(),
            Body::Stream(download) => download.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let length = match self {
            Body::Own(text) => Some(text.len() as u64),
            Body::Made(bytes) => Some(bytes.len() as u64),
            Body::Upstream(download) => download.remaining(),
            Body::Stream(download) => download.remaining(),
        };
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
