//! Passes the parts of a response from an exchange to hyper.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Buf;
use h2::Reason;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::memory::chunk::BodyChunk;

/// Pieces of a response that hyper may hold.
const AHEAD: usize = 2;

/// What hyper and the exchange of a stream give each other: the request, and the part of the response that is sent next.
#[derive(Default)]
pub struct Outlet {
    /// The request, until its exchange begins: passed on here, and not in futures, each of which would keep room for it.
    pub request: Cell<Option<Request<Incoming>>>,
    /// The head, and the body behind it.
    pub head: RefCell<Option<Response<ResponseBody>>>,
    /// The frame that is next.
    pub frame: RefCell<Option<Frame<Piece>>>,
    /// The request was not processed, and may be sent again (RFC 9113 §8.7).
    pub is_refused: Cell<bool>,
    /// The response broke off: hyper resets the stream when it asks for the next part.
    pub is_broken: Cell<bool>,
    /// No more parts follow.
    pub has_ended: Cell<bool>,
    /// Something was put in or taken out since the task last checked.
    pub has_moved: Cell<bool>,
    /// Pieces that hyper holds.
    pub held: Cell<usize>,
    /// hyper has dropped a piece unsent.
    pub is_cut: Cell<bool>,
    /// Bytes that were sent and not counted yet.
    pub sent: Cell<usize>,
    /// All bytes that were sent; wraps.
    pub sign: Cell<u32>,
    /// Wakes the task when hyper has sent a piece.
    pub waker: RefCell<Option<Waker>>,
}

/// The body that hyper sends.
pub struct ResponseBody {
    outlet: Rc<Outlet>,
    length: Option<u64>,
}

/// A piece of it, until hyper has sent it.
pub struct Piece {
    chunk: BodyChunk,
    outlet: Rc<Outlet>,
}

/// Empties the outlet when its stream is over. A part that hyper has not taken refers to the outlet that it is in, and
/// both would never be freed.
pub struct Emptied<'a>(pub &'a Outlet);

/// The head that hyper waits for.
pub struct Answering(pub Rc<Outlet>);

impl Outlet {
    /// Puts the head in; `is_empty`: nothing comes behind it, else `length` bytes where that is known.
    pub fn put_head(self: &Rc<Outlet>, head: Response<()>, is_empty: bool, length: Option<u64>) {
        self.has_ended.set(is_empty);
        let outlet = Rc::clone(self);
        *self.head.borrow_mut() = Some(head.map(|()| ResponseBody { outlet, length }));
        self.has_moved.set(true);
    }

    /// Whether another piece may be put in.
    pub fn has_room(&self) -> bool {
        self.frame.borrow().is_none() && !self.has_ended.get() && self.held.get() < AHEAD
    }

    /// Adds a frame; `is_last`: none follows.
    pub fn put(self: &Rc<Outlet>, frame: Frame<BodyChunk>, is_last: bool) {
        let piece = |chunk| {
            self.held.set(self.held.get() + 1);
            Piece {
                chunk,
                outlet: Rc::clone(self),
            }
        };
        self.has_ended.set(is_last || frame.is_trailers());
        *self.frame.borrow_mut() = Some(frame.map_data(piece));
        self.has_moved.set(true);
    }

    /// Ends the response.
    pub fn end(&self) {
        self.has_ended.set(true);
        self.has_moved.set(true);
    }

    /// Whether hyper has taken all of it and sent it.
    pub fn is_done(&self) -> bool {
        self.has_ended.get() && self.is_empty()
    }

    /// Whether hyper has taken and sent what was put in.
    pub fn is_empty(&self) -> bool {
        self.held.get() == 0 && self.frame.borrow().is_none() && self.head.borrow().is_none()
    }
}

impl Drop for Emptied<'_> {
    fn drop(&mut self) {
        *self.0.head.borrow_mut() = None;
        *self.0.frame.borrow_mut() = None;
    }
}

impl Future for Answering {
    type Output = Result<Response<ResponseBody>, h2::Error>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0.head.take() {
            Some(head) => {
                self.0.has_moved.set(true);
                Poll::Ready(Ok(head))
            }
            None if self.0.is_refused.get() => Poll::Ready(Err(Reason::REFUSED_STREAM.into())),
            None => Poll::Pending,
        }
    }
}

impl Body for ResponseBody {
    type Data = Piece;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, h2::Error>>> {
        if let Some(frame) = self.outlet.frame.take() {
            self.outlet.has_moved.set(true);
            return Poll::Ready(Some(Ok(frame)));
        }
        if self.outlet.has_ended.get() {
            return Poll::Ready(None);
        }
        if self.outlet.is_broken.get() {
            // CANCEL, which hyper would send where the stream is dropped, is the client's own word in gRPC
            return Poll::Ready(Some(Err(Reason::INTERNAL_ERROR.into())));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.outlet.has_ended.get() && self.outlet.frame.borrow().is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.chunk.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.chunk.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.chunk.advance(count);
        let outlet = &self.outlet;
        outlet.sent.set(outlet.sent.get() + count);
        #[expect(clippy::cast_possible_truncation, reason = "it wraps")]
        outlet
            .sign
            .set(outlet.sign.get().wrapping_add(count as u32));
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let outlet = &self.outlet;
        outlet.held.set(outlet.held.get() - 1);
        outlet
            .is_cut
            .set(outlet.is_cut.get() || self.chunk.has_remaining());
        if let Some(waker) = &*outlet.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use http::Response;

    use super::*;

    #[test]
    fn what_hyper_does_not_take_is_freed_with_its_stream() {
        let outlet: Rc<Outlet> = Rc::default();
        let left = Rc::downgrade(&outlet);
        outlet.put_head(Response::new(()), false, None);
        outlet.put(Frame::data(BodyChunk::fixed(b"hi")), true);
        drop(Emptied(&outlet));
        assert_eq!(outlet.held.get(), 0);
        drop(outlet);
        assert!(left.upgrade().is_none());
    }
}
