//! The body of a request on its way to hyper, frame by frame: the exchange puts a frame in, hyper takes it out when the
//! upstream has room for it.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame};

use crate::{connection_table::SlotRef, http2::frames::Frames};

/// The frame that is next, and what is known of those before.
#[derive(Debug, Default)]
pub struct Outgoing {
    frame: RefCell<Option<Frame<Bytes>>>,
    /// Nothing comes behind what is there.
    has_ended: Cell<bool>,
    /// The request was given up.
    is_dropped: Cell<bool>,
    /// The stream that hyper sends it on; zero before that.
    stream: Cell<u32>,
    /// Frames that hyper has taken.
    taken: Cell<u64>,
    /// Wakes the exchange.
    exchange: RefCell<Option<Waker>>,
    /// Wakes hyper's task.
    hyper: RefCell<Option<Waker>>,
}

/// What the tasks and the requests of a connection have in common.
#[derive(Debug)]
pub struct Shared {
    /// The request that hyper has just taken over: the next task is its.
    pub taken: RefCell<Option<Rc<Outgoing>>>,
    /// The state of the frames that come.
    pub frames: Rc<RefCell<Frames>>,
    /// The task that reads the connection was started.
    pub is_driven: Cell<bool>,
    /// The next stream that hyper opens.
    next: Cell<u32>,
    /// Requests, and the slots of their exchanges.
    exchanges: RefCell<Vec<(Rc<Outgoing>, SlotRef)>>,
    is_over: Cell<bool>,
    /// Of the tasks that belong to no request.
    wakers: RefCell<Vec<Waker>>,
}

/// The body as hyper has it.
#[derive(Debug)]
pub struct RequestBody {
    outgoing: Rc<Outgoing>,
    shared: Rc<Shared>,
}

impl Outgoing {
    /// A body that ends at once, or one that is to come.
    pub fn new(is_empty: bool) -> Rc<Outgoing> {
        let outgoing: Rc<Outgoing> = Rc::default();
        outgoing.has_ended.set(is_empty);
        outgoing
    }

    /// The stream that hyper sends it on, once it has begun.
    pub fn stream(&self) -> Option<u32> {
        Some(self.stream.get()).filter(|stream| *stream != 0)
    }

    /// Whether a frame may be put in; the task is woken when one may.
    pub fn has_room(&self, context: &Context<'_>) -> bool {
        let mut waker = self.exchange.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()))
        {
            *waker = Some(context.waker().clone());
        }
        self.frame.borrow().is_none()
    }

    /// Puts a frame in; `is_last`: nothing comes behind it.
    pub fn put(&self, frame: Frame<Bytes>, is_last: bool) {
        *self.frame.borrow_mut() = Some(frame);
        self.has_ended.set(is_last);
        wake(&self.hyper);
    }

    /// Nothing more comes.
    pub fn end(&self) {
        self.has_ended.set(true);
        wake(&self.hyper);
    }

    /// Whether hyper has taken all that was put in.
    pub fn is_empty(&self) -> bool {
        self.frame.borrow().is_none()
    }

    /// Whether hyper has all of it.
    pub fn is_done(&self) -> bool {
        self.has_ended.get() && self.frame.borrow().is_none()
    }

    /// How many frames hyper has taken.
    pub fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// The exchange is over: what is left is not sent.
    pub fn give_up(&self) {
        self.is_dropped.set(true);
        self.frame.take();
        wake(&self.hyper);
    }

    /// Whether the request was given up; hyper's task is woken when it is.
    pub fn is_given_up(&self, context: &Context<'_>) -> bool {
        let mut waker = self.hyper.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()))
        {
            *waker = Some(context.waker().clone());
        }
        self.is_dropped.get()
    }
}

impl Shared {
    /// A connection without requests.
    pub fn new(frames: Frames) -> Rc<Shared> {
        Rc::new(Shared {
            taken: RefCell::default(),
            frames: Rc::new(RefCell::new(frames)),
            is_driven: Cell::new(false),
            next: Cell::new(1),
            exchanges: RefCell::default(),
            is_over: Cell::new(false),
            wakers: RefCell::default(),
        })
    }

    /// An exchange has a request on the connection.
    pub fn enter(&self, outgoing: &Rc<Outgoing>, slot: &SlotRef) {
        let mut exchanges = self.exchanges.borrow_mut();
        exchanges.push((Rc::clone(outgoing), slot.clone()));
    }

    /// The exchange has read a DATA frame of the answer, or its trailers.
    pub fn took(&self, outgoing: &Outgoing, is_data: bool) {
        if let Some(stream) = outgoing.stream() {
            self.frames.borrow_mut().took(stream, is_data);
        }
    }

    /// The exchange reads nothing more.
    pub fn leave(&self, outgoing: &Rc<Outgoing>) {
        let mut exchanges = self.exchanges.borrow_mut();
        exchanges.retain(|(other, _)| !Rc::ptr_eq(other, outgoing));
        if let Some(stream) = outgoing.stream() {
            self.frames.borrow_mut().forget(stream);
        }
    }

    /// Ends the exchange of which too much waits to be read, if there is one.
    pub fn relieve(&self) {
        let worst = self.frames.borrow_mut().worst();
        let exchanges = self.exchanges.borrow();
        let mut exchanges = exchanges.iter();
        if worst.is_some()
            && let Some((_, slot)) = exchanges.find(|(outgoing, _)| outgoing.stream() == worst)
        {
            slot.evict();
        }
    }

    /// hyper opens a stream: they are numbered in the order of their requests.
    fn opens(&self, outgoing: &Rc<Outgoing>) {
        let stream = self.next.replace(self.next.get() + 2);
        outgoing.stream.set(stream);
        self.frames.borrow_mut().open(stream);
        *self.taken.borrow_mut() = Some(Rc::clone(outgoing));
    }

    /// The connection is not used any more.
    pub fn end(&self) {
        self.is_over.set(true);
        for waker in self.wakers.take() {
            waker.wake();
        }
    }

    /// Whether the connection is not used any more.
    pub fn is_over(&self) -> bool {
        self.is_over.get()
    }

    /// Wakes this task when the connection is not used any more.
    pub fn wakes_at_end(&self, context: &Context<'_>) {
        let mut wakers = self.wakers.borrow_mut();
        if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            wakers.push(context.waker().clone());
        }
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = &*waker.borrow() {
        waker.wake_by_ref();
    }
}

impl RequestBody {
    /// The body of a request that is sent on the connection with these tasks.
    pub fn new(outgoing: &Rc<Outgoing>, shared: &Rc<Shared>) -> RequestBody {
        RequestBody {
            outgoing: Rc::clone(outgoing),
            shared: Rc::clone(shared),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let outgoing = &self.outgoing;
        if let Some(frame) = outgoing.frame.take() {
            outgoing.taken.set(outgoing.taken.get() + 1);
            wake(&outgoing.exchange);
            return Poll::Ready(Some(Ok(frame)));
        }
        if outgoing.has_ended.get() && !outgoing.is_dropped.get() {
            return Poll::Ready(None);
        }
        *outgoing.hyper.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }

    /// hyper asks this first when it takes the request over, before it starts the request's tasks.
    fn is_end_stream(&self) -> bool {
        if self.outgoing.stream().is_none() {
            self.shared.opens(&self.outgoing);
        }
        self.outgoing.is_done()
    }
}
