//! What the client reads: a body of ours or the upstream's, and what an exchange keeps alive until its last byte is gone.
//!
//! Every piece that is handed to hyper holds the exchange's [`Ride`]; so the place, the log line and the buffer are
//! given back when the kernel has taken the last byte, or when everything is dropped, and never before.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Buf;
use hyper::body::{Frame, SizeHint};

use crate::{
    budget::Buffers,
    log::Record,
    metrics::{self, Metrics},
    park::Watch,
    screen::Arrival,
    wire::{Download, Got, Upstream},
};

/// What hyper's socket, the exchange in work and the connection's task tell each other.
#[derive(Debug)]
pub struct Signals {
    /// The connection's seat.
    pub watch: Watch,
    /// A request was handed to hyper, and its exchange is not over.
    pub active: Cell<bool>,
    /// hyper has nothing left to write.
    pub flushed: Cell<bool>,
    /// When the request that is in work was whole, in the park's time.
    pub began: Cell<u32>,
    /// The next head was looked for since the last exchange.
    pub looked: Cell<bool>,
    /// What came between two messages and is not for this hyper to read: the task takes it down.
    pub arrival: Cell<Option<Arrival>>,
    /// The client's body is broken: what follows it is not worth reading.
    pub broken: Cell<bool>,
    /// Only the close will tell the client that it has everything: until then, and if it is cut short, a close must be a
    /// reset.
    pub reset: Cell<bool>,
    /// The socket was told so.
    pub armed: Cell<bool>,
    /// Answer without an upstream: there is no memory for more.
    pub full: Cell<bool>,
    /// Pieces of body that hyper has not written yet.
    pub pieces: Cell<u32>,
    /// The body has more, and waits for the pieces to be gone.
    pub waiting: Cell<bool>,
    /// An interim response (1xx) to be written before anything else.
    pub interim: RefCell<Vec<u8>>,
    /// What is to be joined with the client, once the upstream said 101.
    pub tunnel: RefCell<Option<Box<Tunnel>>>,
}

impl Signals {
    /// For a connection at rest.
    pub fn new(watch: Watch) -> Rc<Signals> {
        Rc::new(Signals {
            watch,
            active: Cell::new(false),
            flushed: Cell::new(true),
            began: Cell::new(0),
            looked: Cell::new(false),
            arrival: Cell::new(None),
            broken: Cell::new(false),
            reset: Cell::new(false),
            armed: Cell::new(false),
            full: Cell::new(false),
            pieces: Cell::new(0),
            waiting: Cell::new(false),
            interim: RefCell::default(),
            tunnel: RefCell::default(),
        })
    }
}

/// The upstream's half of a tunnel, and the line that the log will get of it.
#[derive(Debug)]
pub struct Tunnel {
    /// The connection that was upgraded.
    pub upstream: Upstream,
    /// Written when the tunnel has ended.
    pub record: Option<Box<Record>>,
}

/// What an exchange holds until its last byte is gone.
#[derive(Debug)]
pub struct Ride {
    /// The connection it belongs to.
    pub signals: Rc<Signals>,
    /// Where its buffers go back to.
    pub buffers: Rc<Buffers>,
    /// Its place among `max_concurrent_requests`.
    pub place: RefCell<Option<crate::pool::Place>>,
    /// Its line in the access log.
    pub record: RefCell<Option<Box<Record>>>,
    /// Bytes of request body so far.
    pub received: Cell<u64>,
    /// Bytes of response body so far.
    pub sent: Cell<u64>,
    /// Not all of the answer was taken.
    pub cut: Cell<bool>,
    /// Everybody's counters.
    pub metrics: Arc<Metrics>,
}

impl Drop for Ride {
    fn drop(&mut self) {
        if let Some(record) = self.record.get_mut() {
            record.received = self.received.get();
            record.sent = self.sent.get();
            if self.cut.get() && record.outcome == "ok" {
                record.outcome = "client-gone";
            }
        }
        metrics::add(&self.metrics.client_bytes_in, self.received.get());
        metrics::gone(&self.metrics.exchanges);
        metrics::add(&self.metrics.client_bytes_out, self.sent.get());
        self.signals.active.set(false);
        if !self.cut.get() {
            self.signals.reset.set(false);
        }
    }
}

/// A response body.
#[derive(Debug)]
pub struct Body {
    ride: Rc<Ride>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A sentence of ours; empty where there is none.
    Own(&'static [u8]),
    /// Bytes made for this answer.
    Made(Vec<u8>),
    /// Whatever the upstream sends.
    Upstream(Box<Download>),
}

impl Body {
    /// A body known beforehand.
    pub fn own(ride: Rc<Ride>, text: &'static [u8]) -> Body {
        Body {
            ride,
            kind: Kind::Own(text),
        }
    }

    /// A body made for this answer.
    pub fn made(ride: Rc<Ride>, bytes: Vec<u8>) -> Body {
        Body {
            ride,
            kind: Kind::Made(bytes),
        }
    }

    /// The rest of the upstream's answer.
    pub fn upstream(ride: Rc<Ride>, download: Download) -> Body {
        Body {
            ride,
            kind: Kind::Upstream(Box::new(download)),
        }
    }

    fn piece(&self, bytes: Bytes, start: usize, end: usize) -> Frame<Piece> {
        self.ride
            .sent
            .set(self.ride.sent.get() + (end - start) as u64);
        self.ride
            .signals
            .pieces
            .set(self.ride.signals.pieces.get() + 1);
        Frame::data(Piece {
            bytes,
            start,
            end,
            ride: Rc::clone(&self.ride),
        })
    }
}

impl hyper::body::Body for Body {
    type Data = Piece;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Piece>>>> {
        let this = &mut *self;
        match &mut this.kind {
            Kind::Own(text) => {
                let text = std::mem::take(text);
                Poll::Ready(
                    (!text.is_empty()).then(|| Ok(this.piece(Bytes::Static(text), 0, text.len()))),
                )
            }
            Kind::Made(bytes) => {
                let (bytes, end) = (std::mem::take(bytes), 0);
                let end = end + bytes.len();
                Poll::Ready((end > 0).then(|| Ok(this.piece(Bytes::Owned(bytes), 0, end))))
            }
            Kind::Upstream(download) => {
                // One piece at a time: the next is read when the kernel has taken this one, so that a slow client costs
                // one buffer. The socket's flush wakes the task for it.
                if this.ride.signals.pieces.get() > 0 {
                    this.ride.signals.waiting.set(true);
                    return Poll::Pending;
                }
                let received = &this.ride.received;
                let mut progress = |count| received.set(received.get() + count as u64);
                let got =
                    std::task::ready!(download.poll(context, &this.ride.buffers, &mut progress));
                Poll::Ready(match got {
                    Some(Ok(Got::Data(buffer, start, end))) => {
                        Some(Ok(this.piece(Bytes::Pooled(buffer), start, end)))
                    }
                    Some(Ok(Got::Trailers(trailers))) => Some(Ok(Frame::trailers(trailers))),
                    Some(Err(error)) => {
                        if let Some(record) = &mut *this.ride.record.borrow_mut() {
                            record.outcome = "upstream-cut";
                        }
                        this.ride.cut.set(true);
                        Some(Err(error))
                    }
                    None => None,
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(text) => text.is_empty(),
            Kind::Made(bytes) => bytes.is_empty(),
            Kind::Upstream(download) => download.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(text) => SizeHint::with_exact(text.len() as u64),
            Kind::Made(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Upstream(download) => download
                .remaining()
                .map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Kind::Upstream(download) = &self.kind
            && !download.is_end()
        {
            self.ride.cut.set(true);
        }
    }
}

/// Bytes of body in hyper's hands.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    start: usize,
    end: usize,
    ride: Rc<Ride>,
}

#[derive(Debug)]
enum Bytes {
    Static(&'static [u8]),
    Owned(Vec<u8>),
    /// Goes back to the worker's buffers.
    Pooled(Vec<u8>),
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.end - self.start
    }

    fn chunk(&self) -> &[u8] {
        let bytes = match &self.bytes {
            Bytes::Static(bytes) => bytes,
            Bytes::Owned(bytes) | Bytes::Pooled(bytes) => bytes.as_slice(),
        };
        bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let pieces = &self.ride.signals.pieces;
        pieces.set(pieces.get() - 1);
        if self.start < self.end {
            self.ride.cut.set(true);
        }
        if let Bytes::Pooled(buffer) = &mut self.bytes {
            self.ride.buffers.put(std::mem::take(buffer));
        }
    }
}
