//! A stream of bytes: a TCP connection, a unix socket, either with TLS, and its kernel buffers.

pub mod secured;
pub mod session;

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::Shutdown,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

use self::secured::Secured;
use crate::{
    memory::budget::{Budget, NARROW, Permit},
    sys::socket,
};

/// A connection with a client or an upstream.
#[derive(Debug)]
pub enum Stream {
    /// `http://`.
    Tcp(TcpStream),
    /// TCP where memory is tight: the unsent bytes are bounded by `SO_SNDBUF` and one write.
    Bounded(TcpStream),
    /// `unix:`.
    Unix(Box<Unix>),
    /// `https://`; boxed, because a session has a kilobyte.
    Tls(Box<TlsStream<TcpStream>>),
    /// A client's, on a listener with TLS.
    Secured(Box<Secured>),
}

/// A unix connection. After a close, the kernel still charges this process for bytes that the other side has not read, for
/// as long as that side is open (measured; a unix socket's `sk_wmem_alloc`). So the budget is charged for as long.
#[derive(Debug)]
pub struct Unix {
    /// `None` while it is dropped.
    stream: Option<UnixStream>,
    budget: Option<Rc<Budget>>,
}

impl Unix {
    fn stream(&self) -> &UnixStream {
        self.stream.as_ref().expect("it is there until the drop")
    }

    fn stream_mut(&mut self) -> &mut UnixStream {
        self.stream.as_mut().expect("it is there until the drop")
    }
}

impl Drop for Unix {
    fn drop(&mut self) {
        let (Some(stream), Some(budget)) = (self.stream.take(), self.budget.take()) else {
            return;
        };
        let socket = SockRef::from(&stream);
        if socket::unsent(&socket) == 0 {
            return;
        }
        drop(socket.shutdown(Shutdown::Both));
        if let Ok(stream) = stream.into_std() {
            budget.keep_unread(stream.into());
        }
    }
}

/// The direction of bytes through a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Read from it.
    In,
    /// Written to it.
    Out,
}

/// A larger kernel buffer in one direction, for a long body where memory is tight; its price is held until it is dropped.
#[derive(Debug)]
pub struct WideBuffer {
    /// The direction.
    pub direction: Direction,
    _permit: Permit,
}

impl Stream {
    /// Ready when there are bytes to read, or the end, or an error. It may be ready without any of these: after a read that
    /// filled its buffer exactly, and with TLS for a record without data.
    pub fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) | Stream::Bounded(stream) => stream.poll_read_ready(cx),
            Stream::Unix(unix) => unix.stream().poll_read_ready(cx),
            Stream::Tls(stream) => {
                let (socket, session) = stream.get_mut();
                match io::BufRead::fill_buf(&mut session.reader()) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        socket.poll_read_ready(cx)
                    }
                    _ => Poll::Ready(Ok(())),
                }
            }
            Stream::Secured(secured) => secured.poll_read_ready(cx),
        }
    }

    /// Ready when at least so many bytes have come, or the end, or an error. They stay where they are. Not for TLS.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn poll_unread(&mut self, cx: &mut Context<'_>, least: usize) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            let socket = self.socket();
            if socket::unread(&socket) >= least || socket::has_hung_up(&socket) {
                return Poll::Ready(Ok(()));
            }
            // too little: from here on the next byte wakes
            let too_little = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            drop(match self {
                Stream::Tcp(stream) | Stream::Bounded(stream) => {
                    stream.try_io(Interest::READABLE, too_little)
                }
                Stream::Unix(unix) => unix.stream().try_io(Interest::READABLE, too_little),
                Stream::Tls(_) | Stream::Secured(_) => return Poll::Ready(Ok(())),
            });
        }
    }

    /// Behind the last answer of a connection: with TLS, lets the client know that its end is no truncation.
    pub async fn say_goodbye(&mut self) {
        if let Stream::Secured(secured) = self {
            poll_fn(|context| {
                secured.say_goodbye(context);
                Poll::Ready(())
            })
            .await;
        }
    }

    /// What TLS with the client holds, where there is any.
    pub fn secured(&self) -> Option<&Secured> {
        match self {
            Stream::Secured(secured) => Some(secured),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub fn secured_mut(&mut self) -> Option<&mut Secured> {
        match self {
            Stream::Secured(secured) => Some(secured),
            _ => None,
        }
    }

    /// Looks whether a byte has come, and leaves it where it is: 0 = the end, 1 = there is one. With TLS it may be one that
    /// carries no data.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut byte = [MaybeUninit::uninit()];
        match self {
            Stream::Tcp(stream) | Stream::Bounded(stream) => {
                stream.poll_peek(cx, &mut ReadBuf::uninit(&mut byte))
            }
            Stream::Unix(unix) => loop {
                let stream = unix.stream();
                ready!(stream.poll_read_ready(cx))?;
                match stream.try_io(Interest::READABLE, || {
                    SockRef::from(&*stream).peek(&mut byte)
                }) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return Poll::Ready(result),
                }
            },
            Stream::Tls(_) => self.poll_read_ready(cx).map_ok(|()| 1),
            Stream::Secured(secured) => secured.poll_peek(cx),
        }
    }

    /// Whether an idle connection is open and has received nothing, so that it may be used again. Otherwise it must be dropped,
    /// because a byte of it may have been read. Makes no system call where nothing was received. The context's waker is woken
    /// when bytes or the end come later.
    pub fn is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        // Only a read tells stale readiness from real, and processes the session tickets that a TLS server may send at any
        // time.
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        Pin::new(self).poll_read(cx, &mut buffer).is_pending()
    }

    /// A unix connection. `send_buffer` is its `SO_SNDBUF`, which bounds the bytes that the other side has not read; it is not
    /// inherited from the listener; `None` = the kernel's default. `budget` is charged for bytes that are unread when it is
    /// closed; `None` = they are not charged.
    pub fn unix(
        stream: UnixStream,
        send_buffer: Option<usize>,
        budget: Option<&Rc<Budget>>,
    ) -> Stream {
        let io = Stream::Unix(Box::new(Unix {
            stream: Some(stream),
            budget: budget.map(Rc::clone),
        }));
        if let Some(size) = send_buffer {
            io.set_buffer(Direction::Out, size);
        }
        io
    }

    /// A TCP connection; `bounded` selects [`Stream::Bounded`].
    pub fn tcp(stream: TcpStream, bounded: bool) -> Stream {
        if bounded {
            Stream::Bounded(stream)
        } else {
            Stream::Tcp(stream)
        }
    }

    /// Enlarges a kernel buffer, where the budget allows it ([`Budget::width`]).
    pub fn widen(&self, direction: Direction, budget: &Rc<Budget>) -> Option<Box<WideBuffer>> {
        let below = self.secured().map_or(self, Secured::io);
        if matches!((below, direction), (Stream::Unix(_), Direction::In)) {
            // what a unix socket receives stands in the sender's buffer
            return None;
        }
        let (size, permit) = budget.width()?;
        self.set_buffer(direction, size);
        Some(Box::new(WideBuffer {
            direction,
            _permit: permit,
        }))
    }

    /// Reduces a send buffer again, before the next message. A receive buffer is never reduced: the kernel would go on dropping
    /// segments that the other side may still send in the window it was offered.
    pub fn narrow(&self, wide: &WideBuffer) {
        if wide.direction == Direction::Out {
            self.set_buffer(Direction::Out, NARROW);
        }
    }

    fn set_buffer(&self, direction: Direction, size: usize) {
        let socket = self.socket();
        match direction {
            Direction::Out => drop(socket.set_send_buffer_size(size)),
            Direction::In => socket::set_receive_buffer(&socket, size),
        }
    }

    /// Whether HTTP/2 was agreed on by ALPN; without TLS there is no other agreement than the configuration.
    pub fn speaks_http2(&self) -> bool {
        match self {
            Stream::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            Stream::Tcp(_) | Stream::Bounded(_) | Stream::Unix(_) | Stream::Secured(_) => true,
        }
    }

    /// The socket, for its options.
    pub fn socket(&self) -> SockRef<'_> {
        match self {
            Stream::Tcp(stream) | Stream::Bounded(stream) => SockRef::from(stream),
            Stream::Unix(unix) => SockRef::from(unix.stream()),
            Stream::Tls(stream) => SockRef::from(stream.get_ref().0),
            Stream::Secured(secured) => secured.io().socket(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) | Stream::Bounded(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Unix(unix) => Pin::new(unix.stream_mut()).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Secured(secured) => secured.poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Bounded(stream) => send_apart(stream, cx, &[IoSlice::new(bytes)]),
            Stream::Unix(unix) => Pin::new(unix.stream_mut()).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Secured(secured) => secured.poll_write(cx, &[IoSlice::new(bytes)]),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Stream::Bounded(stream) => send_apart(stream, cx, pieces),
            Stream::Unix(unix) => Pin::new(unix.stream_mut()).poll_write_vectored(cx, pieces),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Stream::Secured(secured) => secured.poll_write(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) | Stream::Bounded(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(unix) => Pin::new(unix.stream_mut()).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Secured(secured) => secured.poll_send(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) | Stream::Bounded(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(unix) => Pin::new(unix.stream_mut()).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Secured(secured) => secured.poll_shutdown(cx),
        }
    }
}

/// Writes with `MSG_EOR`, so that nothing is appended to the last segment. Otherwise the kernel would fill that segment up
/// to 64 kB regardless of `SO_SNDBUF`, which `tcp_sendmsg_locked` checks only before it begins another.
pub fn send_apart(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        let sent = stream.try_io(Interest::WRITABLE, || {
            SockRef::from(stream).send_vectored_with_flags(pieces, libc::MSG_EOR)
        });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            sent => return Poll::Ready(sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream as Peer,
    };

    use tokio::runtime::Builder;

    use super::*;
    use crate::memory::budget::Plan;

    /// Writes as much as the socket takes; returns how much.
    fn fill(mut socket: &Peer) -> usize {
        socket.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(count) = socket.write(&[b'x'; 1024]) {
            sent += count;
        }
        sent
    }

    #[test]
    fn unread_bytes_of_a_closed_unix_connection_are_charged_until_they_are_read() {
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let _inside = runtime.enter();
        let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
        let (ours, mut theirs) = Peer::pair().unwrap();
        let sent = fill(&ours);
        let ours = UnixStream::from_std(ours).unwrap();
        drop(Stream::unix(ours, None, Some(&budget)));
        assert!(budget.spent() > sent as u64, "{} of {sent}", budget.spent());
        assert!(budget.release_unread(), "nothing was read");
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), sent, "it gets all of it, and the end");
        assert!(!budget.release_unread());
        assert_eq!(budget.spent(), 0);
    }

    #[test]
    fn no_unix_connection_is_opened_while_unread_bytes_hold_a_quarter_of_the_budget() {
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let _inside = runtime.enter();
        let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
        let mut peers = Vec::new();
        while !budget.is_stuffed() {
            let (ours, theirs) = Peer::pair().unwrap();
            fill(&ours);
            let ours = UnixStream::from_std(ours).unwrap();
            drop(Stream::unix(ours, None, Some(&budget)));
            peers.push(theirs);
            assert!(peers.len() < 1_000, "nothing was paid for");
        }
        drop(peers);
        assert!(!budget.release_unread() && !budget.is_stuffed());
    }
}
