//! A request on a connection to an upstream: its answer to come, and then the body of it, of which [`Frames`] hears what was
//! read.
//!
//! [`Frames`]: crate::http2::frames::Frames

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::{
    connection_table::SlotRef,
    http2::{
        body::poll_incoming,
        client::outgoing::{Outgoing, Shared},
    },
};

/// What hyper gives for a request.
type Answer = Pin<Box<dyn Future<Output = Result<Response<Incoming>, Unanswered>>>>;

/// An answer's head with its body to come, or why there is none.
pub struct Asking {
    answer: Answer,
    /// Given to the body of the answer.
    stream: Option<Stream>,
}

/// Why a request has no answer.
#[derive(Debug)]
pub struct Unanswered {
    /// The upstream has not processed it (RFC 9113 §8.7), or never got it.
    pub is_unprocessed: bool,
    /// The connection broke.
    pub is_broken: bool,
    /// For the log.
    pub reason: String,
}

/// The body of an answer.
#[derive(Debug)]
pub struct ResponseBody {
    incoming: Incoming,
    stream: Stream,
}

/// An exchange's part of a connection, until it is dropped.
struct Stream {
    outgoing: Rc<Outgoing>,
    shared: Rc<Shared>,
}

impl Asking {
    /// The request whose body is `outgoing`, for the exchange with this slot.
    pub fn new(
        answer: Answer,
        outgoing: &Rc<Outgoing>,
        slot: &SlotRef,
        shared: &Rc<Shared>,
    ) -> Asking {
        shared.enter(outgoing, slot);
        Asking {
            answer,
            stream: Some(Stream {
                outgoing: Rc::clone(outgoing),
                shared: Rc::clone(shared),
            }),
        }
    }
}

impl Future for Asking {
    type Output = Result<Response<ResponseBody>, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(self.answer.as_mut().poll(context));
        let stream = self.stream.take().expect("there is one answer");
        Poll::Ready(
            answer.map(|response| response.map(|incoming| ResponseBody { incoming, stream })),
        )
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let ResponseBody { incoming, stream } = &mut *self;
        poll_incoming(incoming, context, |is_data| {
            stream.shared.took(&stream.outgoing, is_data);
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.outgoing.stream().fmt(formatter)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.leave(&self.outgoing);
    }
}
