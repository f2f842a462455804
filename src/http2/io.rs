//! The stream that hyper reads and writes: a connection of a client or to an upstream, whose frames [`Frames`] bounds.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    future::Future as _,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    clock::{Sleep, sleep},
    connection_table::ConnectionTable,
    http2::frames::{Frames, bounds::Excess},
    net::Stream,
    sys::socket,
};

/// Bytes that one read may bring where memory is small.
const NARROW_READ: usize = 4 * 1024;

/// How long a client's connection is not read while the stream with the most unread frames is reset. Frames that came
/// meanwhile could end the connection, and with it requests that did nothing wrong.
const REST: Duration = Duration::from_millis(100);

/// A connection.
pub struct Io {
    /// The connection itself; `None` once hyper is done with it.
    stream: RefCell<Option<Stream>>,
    /// The state of its frames.
    pub frames: Rc<RefCell<Frames>>,
    /// Bytes that were read and that hyper may not have yet.
    unread: RefCell<Bytes>,
    /// The bound that was exceeded.
    excess: Cell<Option<Excess>>,
    /// The connection is not read until then, or until frames are taken or given up.
    rest: RefCell<Option<Pin<Box<Sleep>>>>,
    scratch: Rc<RefCell<Box<[u8]>>>,
    table: Rc<ConnectionTable>,
    is_small: bool,
    /// What a connection to an upstream holds as long as it is open; dropped behind it.
    place: Option<Box<dyn Any>>,
}

impl Io {
    /// A client's connection of which `first` was read already. `scratch` is the worker's, for one read.
    pub fn of_client(
        stream: Stream,
        first: Bytes,
        frames: Frames,
        scratch: &Rc<RefCell<Box<[u8]>>>,
        table: &Rc<ConnectionTable>,
        is_small: bool,
    ) -> Rc<Io> {
        let mut io = Io::new(stream, Rc::new(RefCell::new(frames)), scratch, table);
        io.unread = RefCell::new(first);
        io.is_small = is_small;
        Rc::new(io)
    }

    /// A connection to an upstream, and what it holds as long as it is open.
    pub fn of_upstream(
        stream: Stream,
        frames: &Rc<RefCell<Frames>>,
        scratch: &Rc<RefCell<Box<[u8]>>>,
        table: &Rc<ConnectionTable>,
        place: Box<dyn Any>,
    ) -> Rc<Io> {
        let mut io = Io::new(stream, Rc::clone(frames), scratch, table);
        io.place = Some(place);
        Rc::new(io)
    }

    fn new(
        stream: Stream,
        frames: Rc<RefCell<Frames>>,
        scratch: &Rc<RefCell<Box<[u8]>>>,
        table: &Rc<ConnectionTable>,
    ) -> Io {
        Io {
            stream: RefCell::new(Some(stream)),
            frames,
            unread: RefCell::default(),
            excess: Cell::new(None),
            rest: RefCell::default(),
            scratch: Rc::clone(scratch),
            table: Rc::clone(table),
            is_small: false,
            place: None,
        }
    }

    /// The bound that the client has exceeded, if any.
    pub fn excess(&self) -> Option<Excess> {
        self.excess.get()
    }

    /// Gives back what was paid for bytes that the other side has acknowledged; returns whether some are left that are paid for.
    pub fn give_back(&self) -> bool {
        let mut stream = self.stream.borrow_mut();
        stream.as_mut().is_some_and(Stream::give_back)
    }

    /// Takes the connection from hyper.
    pub fn take(&self) -> Option<Stream> {
        self.stream.take()
    }

    /// Calls `work` with the connection, unless it was taken from hyper.
    fn with<T>(
        &self,
        work: impl FnOnce(Pin<&mut Stream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut *self.stream.borrow_mut() {
            Some(stream) => work(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// hyper may not read now: its task is woken when it is to look again.
    fn pause(&self, context: &mut Context<'_>) {
        let mut frames = self.frames.borrow_mut();
        if frames.rests() {
            let mut rest = self.rest.borrow_mut();
            let sleep = rest.get_or_insert_with(|| Box::pin(sleep(REST)));
            if sleep.as_mut().poll(context).is_pending() && !self.has_hung_up() {
                return frames.wakes(context.waker());
            }
            *rest = None;
            frames.rested();
        }
        // its next turn is behind those of the exchanges, and begins with `Frames::resume`
        context.waker().wake_by_ref();
    }

    fn has_hung_up(&self) -> bool {
        let stream = self.stream.borrow();
        stream
            .as_ref()
            .is_none_or(|stream| socket::has_hung_up(&stream.socket()))
    }

    /// How many of these bytes hyper may read now.
    fn pass(&self, bytes: &[u8]) -> io::Result<usize> {
        let passed = self.frames.borrow_mut().pass(bytes, self.table.now());
        passed.map_err(|excess| {
            self.excess.set(Some(excess));
            io::Error::other(excess.0)
        })
    }
}

/// hyper's handle to the connection, which it takes by value.
pub struct Handle(pub Rc<Io>);

impl Read for Handle {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let io = &*self.0;
        let is_paused = io.frames.borrow().is_paused();
        if is_paused {
            io.pause(context);
            return Poll::Pending;
        }
        io.rest.take();
        let mut unread = io.unread.borrow_mut();
        if unread.is_empty() {
            let mut scratch = io.scratch.borrow_mut();
            let most = if io.is_small { NARROW_READ } else { usize::MAX };
            let len = scratch.len().min(buffer.remaining()).min(most);
            let mut space = ReadBuf::new(scratch.get_mut(..len).unwrap_or_default());
            let read = io.with(|stream| stream.poll_read(context, &mut space));
            if read.is_pending() && io.place.is_some() {
                // what was paid for bytes that the upstream has taken meanwhile
                io.give_back();
            }
            ready!(read)?;
            let bytes = space.filled();
            let count = io.pass(bytes)?;
            let (now, later) = bytes.split_at(count.min(bytes.len()));
            buffer.put_slice(now);
            *unread = Bytes::copy_from_slice(later);
        } else {
            let len = unread.len().min(buffer.remaining());
            let count = io.pass(unread.get(..len).unwrap_or_default())?;
            buffer.put_slice(unread.get(..count).unwrap_or_default());
            unread.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Handle {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self
            .0
            .with(|stream| stream.poll_write_vectored(context, pieces));
        let count = ready!(written)?;
        let (mut left, mut frames) = (count, self.0.frames.borrow_mut());
        for piece in pieces {
            let sent = piece.get(..left.min(piece.len())).unwrap_or_default();
            frames.sent(sent);
            left -= sent.len();
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.with(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.with(|stream| stream.poll_shutdown(context))
    }
}
