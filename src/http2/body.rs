//! Bodies as hyper delivers them: a request's, of which [`Frames`] hears what was read, and where a body ends.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::http2::frames::Frames;

/// What the requests of a connection have in common.
#[derive(Debug, Clone, Default)]
pub struct Sender {
    /// Whether they come over TLS.
    pub is_secured: bool,
    /// The subject of the client's certificate, where it was asked for one.
    pub certificate_subject: Option<Rc<str>>,
}

/// The body of a request.
#[derive(Debug)]
pub struct RequestBody {
    /// The sender of the request.
    pub sender: Sender,
    incoming: Incoming,
    frames: Rc<RefCell<Frames>>,
    has_body: bool,
    /// Its stream, where there is a body.
    stream: Option<u32>,
    /// Bytes of it that were read.
    pub read: u64,
}

impl RequestBody {
    /// The body of the request that was opened last.
    pub fn new(incoming: Incoming, frames: &Rc<RefCell<Frames>>, sender: &Sender) -> RequestBody {
        let has_body = !incoming.is_end_stream();
        RequestBody {
            sender: sender.clone(),
            incoming,
            frames: Rc::clone(frames),
            has_body,
            stream: has_body.then(|| frames.borrow_mut().claim()).flatten(),
            read: 0,
        }
    }

    /// Its stream, where there is a body.
    pub fn stream(&self) -> Option<u32> {
        self.stream
    }
}

/// The next frame of a body; `None` only where the other side has ended it (`END_STREAM`, RFC 9113 §5.1).
///
/// hyper also gives `None` where the stream was reset or the connection ended with the code `NO_ERROR`. Such a body is cut
/// short, and must not be passed on as a whole one. `took` is called for a frame that [`Frames`] has counted, and says whether
/// it is DATA; empty DATA is not counted.
pub fn poll_incoming(
    incoming: &mut Incoming,
    context: &mut Context<'_>,
    took: impl FnOnce(bool),
) -> Poll<Option<io::Result<Frame<Bytes>>>> {
    Poll::Ready(match ready!(Pin::new(&mut *incoming).poll_frame(context)) {
        Some(Ok(frame)) => {
            if !frame.data_ref().is_some_and(Bytes::is_empty) {
                took(frame.is_data());
            }
            Some(Ok(frame))
        }
        Some(Err(error)) => Some(Err(io::Error::other(error))),
        None if incoming.is_end_stream() => None,
        None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
    })
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let body = &mut *self;
        let frame = ready!(poll_incoming(&mut body.incoming, context, |is_data| {
            if let Some(stream) = body.stream {
                body.frames.borrow_mut().took(stream, is_data);
            }
        }));
        if let Some(data) = frame.as_ref().and_then(|it| it.as_ref().ok()?.data_ref()) {
            self.read += data.len() as u64;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // the other question takes h2's lock and looks the stream up
        !self.has_body || self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(stream) = self.stream {
            self.frames.borrow_mut().forget(stream);
        }
    }
}
