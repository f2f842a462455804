//! A stream of bytes: a TCP connection or a unix socket, with or without TLS, and its kernel buffers.
//!
//! Below a limit of 512 MiB its send queue never holds more than is paid for.

pub mod secured;
pub mod session;

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::Shutdown,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

use self::secured::Secured;
use crate::{
    memory::{
        budget::Budget,
        prices::NARROW,
        sockets::{self, KernelBuffers},
    },
    sys::socket,
};

/// A connection with a client or an upstream.
#[derive(Debug)]
pub enum Stream {
    /// `http://`.
    Tcp(TcpStream),
    /// `http://` where memory is limited.
    Bounded(Box<Bounded>),
    /// `unix:`.
    Unix(Box<Unix>),
    /// `https://` to an upstream; boxed, because a session takes a kilobyte.
    Tls(Box<TlsStream<Bounded>>),
    /// A client's connection on a listener with TLS.
    Secured(Box<Secured>),
}

/// A TCP connection that pays for its kernel buffers.
#[derive(Debug)]
pub struct Bounded {
    stream: TcpStream,
    /// `None` = the kernel tunes them, and nothing is paid.
    buffers: Option<KernelBuffers>,
}

/// A unix connection. After a close, the kernel still charges this process for bytes that the other side has not read,
/// for as long as that side is open (measured; a unix socket's `sk_wmem_alloc`). So the budget is charged for as long.
#[derive(Debug)]
pub struct Unix {
    /// `None` while it is dropped.
    stream: Option<UnixStream>,
    budget: Option<Rc<Budget>>,
    buffers: Option<KernelBuffers>,
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

impl Stream {
    /// Ready when there are bytes to read, or the end, or an error. It may be ready without any of these: after a read
    /// that filled its buffer exactly, and with TLS for a record without data.
    pub fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_read_ready(cx),
            Stream::Bounded(bounded) => bounded.stream.poll_read_ready(cx),
            Stream::Unix(unix) => unix.stream().poll_read_ready(cx),
            Stream::Tls(stream) => {
                let (socket, session) = stream.get_mut();
                match io::BufRead::fill_buf(&mut session.reader()) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        socket.stream.poll_read_ready(cx)
                    }
                    _ => Poll::Ready(Ok(())),
                }
            }
            Stream::Secured(secured) => secured.poll_read_ready(cx),
        }
    }

    /// Ready when at least `least` bytes have arrived, or the end, or an error. The bytes are not read. Not for TLS.
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
            // too few: clears the readiness, so that the next byte wakes the task
            let too_little = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            drop(match self {
                Stream::Tcp(stream) => stream.try_io(Interest::READABLE, too_little),
                Stream::Bounded(bounded) => bounded.stream.try_io(Interest::READABLE, too_little),
                Stream::Unix(unix) => unix.stream().try_io(Interest::READABLE, too_little),
                Stream::Tls(_) | Stream::Secured(_) => return Poll::Ready(Ok(())),
            });
        }
    }

    /// After the last answer of a connection with TLS: tells the client that the end is no truncation.
    pub async fn say_goodbye(&mut self) {
        if let Stream::Secured(secured) = self {
            poll_fn(|context| {
                secured.say_goodbye(context);
                Poll::Ready(())
            })
            .await;
        }
    }

    /// The client's TLS session, where there is one.
    pub fn secured(&self) -> Option<&Secured> {
        match self {
            Stream::Secured(secured) => Some(secured),
            _ => None,
        }
    }

    /// The client's TLS session, mutable.
    pub fn secured_mut(&mut self) -> Option<&mut Secured> {
        match self {
            Stream::Secured(secured) => Some(secured),
            _ => None,
        }
    }

    /// Ready when a byte has arrived (1) or the end (0); the byte is not read. With TLS it may be part of a record
    /// without data.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut byte = [MaybeUninit::uninit()];
        match self {
            Stream::Tcp(stream) => stream.poll_peek(cx, &mut ReadBuf::uninit(&mut byte)),
            Stream::Bounded(bounded) => {
                let mut byte = ReadBuf::uninit(&mut byte);
                bounded.stream.poll_peek(cx, &mut byte)
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

    /// Whether an idle connection is open and has received nothing, so that it may be used again. Otherwise it must be
    /// dropped, because a byte of it may have been read. Makes no system call where nothing was received. No waker is woken
    /// when bytes or the end come later.
    pub fn is_quiet(&mut self) -> bool {
        // Only a read tells stale readiness from real, and processes the session tickets that a TLS server may send at
        // any time.
        let mut byte = [0];
        let stream = match self {
            Stream::Tcp(stream) => stream,
            Stream::Bounded(bounded) => &bounded.stream,
            Stream::Unix(_) | Stream::Tls(_) | Stream::Secured(_) => {
                let mut context = Context::from_waker(Waker::noop());
                let mut buffer = ReadBuf::new(&mut byte);
                return Pin::new(self)
                    .poll_read(&mut context, &mut buffer)
                    .is_pending();
            }
        };
        let read = stream.try_read(&mut byte);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// A unix connection. The kernel charges this process for bytes that the other side has not read: `budget` pays for
    /// them, also after a close; `None` = nothing pays.
    pub fn unix(stream: UnixStream, budget: Option<&Rc<Budget>>) -> Stream {
        let bounded = budget.filter(|budget| budget.plan().tight);
        Stream::Unix(Box::new(Unix {
            stream: Some(stream),
            budget: budget.map(Rc::clone),
            buffers: bounded.map(KernelBuffers::unix),
        }))
    }

    /// A client's TCP connection.
    pub fn client(stream: TcpStream, budget: &Rc<Budget>) -> Stream {
        if !budget.plan().tight {
            return Stream::Tcp(stream);
        }
        // the listener's buffer was not locked, because that would bound the window scale
        socket::set_receive_buffer(&SockRef::from(&stream), NARROW, NARROW);
        let buffers = KernelBuffers::tcp(budget, true);
        Stream::Bounded(Box::new(Bounded {
            stream,
            buffers: Some(buffers),
        }))
    }

    /// A TCP connection to an upstream; `budget` pays for its kernel buffers, `None` = nothing pays.
    pub fn upstream(stream: TcpStream, budget: Option<&Rc<Budget>>) -> Stream {
        let bounded = Bounded::upstream(stream, budget);
        if bounded.buffers.is_none() {
            return Stream::Tcp(bounded.stream);
        }
        Stream::Bounded(Box::new(bounded))
    }

    /// Widens the receive buffer, as far as memory allows, for a message of which `passed` bytes were read and `left`
    /// are still to be read; `None` = unknown. Pending for a while where other messages should finish first.
    pub fn poll_expect(
        &mut self,
        cx: &mut Context<'_>,
        left: Option<u64>,
        passed: u64,
    ) -> Poll<()> {
        match self.buffers() {
            Some((socket, buffers)) => buffers.poll_expect(cx, &socket, left, passed),
            None => Poll::Ready(()),
        }
    }

    /// Widens the receive buffer for `bytes` unread bytes, as far as memory allows, for the life of the connection.
    pub fn widen(&mut self, bytes: usize) {
        if let Some((socket, buffers)) = self.buffers() {
            buffers.widen(&socket, sockets::wanted(bytes as u64, 0));
        }
    }

    /// Called when nothing is to be written for a while: gives back what was paid for bytes that the other side has
    /// acknowledged. Returns whether some that are paid for are left.
    pub fn give_back(&mut self) -> bool {
        self.buffers()
            .is_some_and(|(socket, buffers)| buffers.give_back(&socket))
    }

    /// Called when a message that is being written waits for more bytes: gives back what was paid for acknowledged bytes,
    /// where it is worth a system call.
    pub fn pause(&mut self) {
        if let Some((socket, buffers)) = self.buffers() {
            buffers.pause(&socket);
        }
    }

    /// The message that was read is over.
    pub fn end_message(&mut self) {
        if let Some((_, buffers)) = self.buffers() {
            buffers.end_message();
        }
    }

    /// Bytes that were written and not acknowledged by the other side, at most; what is paid for beyond them is given
    /// back.
    pub fn unsent(&mut self) -> usize {
        match self.buffers() {
            Some((socket, buffers)) => buffers.unsent(&socket),
            None => socket::unsent(&self.socket()),
        }
    }

    /// The same, without a system call: bytes that were acknowledged since it was measured last count.
    pub fn sent_at_most(&self) -> usize {
        self.kernel_buffers()
            .map_or(usize::MAX, KernelBuffers::sent_at_most)
    }

    /// The part of [`Stream::sent_at_most`] for which the permit of the send queue does not pay.
    pub fn sent_unpaid(&self) -> usize {
        self.kernel_buffers().map_or(0, KernelBuffers::sent_unpaid)
    }

    /// Whether its receive buffer is so wide that the connection should not be kept.
    pub fn is_too_wide(&self) -> bool {
        self.kernel_buffers()
            .is_some_and(KernelBuffers::is_too_wide)
    }

    /// Whether its receive buffer is wider than an idle connection pays for.
    pub fn receives_wide(&self) -> bool {
        self.kernel_buffers()
            .is_some_and(KernelBuffers::receives_wide)
    }

    fn kernel_buffers(&self) -> Option<&KernelBuffers> {
        match self {
            Stream::Tcp(_) => None,
            Stream::Bounded(bounded) => bounded.buffers.as_ref(),
            Stream::Unix(unix) => unix.buffers.as_ref(),
            Stream::Tls(stream) => stream.get_ref().0.buffers.as_ref(),
            // encrypted bytes are a little more than their data
            Stream::Secured(secured) => secured.io().kernel_buffers(),
        }
    }

    fn buffers(&mut self) -> Option<(SockRef<'_>, &mut KernelBuffers)> {
        let (socket, buffers) = match self {
            Stream::Tcp(_) => return None,
            Stream::Bounded(bounded) => (SockRef::from(&bounded.stream), &mut bounded.buffers),
            Stream::Unix(unix) => {
                let Unix {
                    stream, buffers, ..
                } = &mut **unix;
                (SockRef::from(stream.as_ref()?), buffers)
            }
            Stream::Tls(stream) => {
                let bounded = stream.get_mut().0;
                (SockRef::from(&bounded.stream), &mut bounded.buffers)
            }
            Stream::Secured(secured) => return secured.io_mut().buffers(),
        };
        Some((socket, buffers.as_mut()?))
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
            Stream::Tcp(stream) => SockRef::from(stream),
            Stream::Bounded(bounded) => SockRef::from(&bounded.stream),
            Stream::Unix(unix) => SockRef::from(unix.stream()),
            Stream::Tls(stream) => SockRef::from(&stream.get_ref().0.stream),
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
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Bounded(bounded) => Pin::new(&mut bounded.stream).poll_read(cx, buffer),
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
            Stream::Bounded(bounded) => bounded.poll_send(cx, &[IoSlice::new(bytes)]),
            Stream::Unix(unix) => unix.poll_send(cx, &[IoSlice::new(bytes)]),
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
            Stream::Bounded(bounded) => bounded.poll_send(cx, pieces),
            Stream::Unix(unix) => unix.poll_send(cx, pieces),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Stream::Secured(secured) => secured.poll_write(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Secured(secured) => secured.poll_send(cx),
            // these keep no bytes of their own
            Stream::Tcp(_) | Stream::Bounded(_) | Stream::Unix(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Bounded(bounded) => Pin::new(&mut bounded.stream).poll_shutdown(cx),
            Stream::Unix(unix) => Pin::new(unix.stream_mut()).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Secured(secured) => secured.poll_shutdown(cx),
        }
    }
}

impl Bounded {
    /// A connection to an upstream; `budget` pays for its kernel buffers, `None` = nothing pays.
    pub fn upstream(stream: TcpStream, budget: Option<&Rc<Budget>>) -> Bounded {
        let buffers = budget.filter(|budget| budget.plan().tight).map(|budget| {
            // the buffer was not locked while it connected, because that would bound the window scale
            socket::set_receive_buffer(&SockRef::from(&stream), NARROW, NARROW);
            KernelBuffers::tcp(budget, false)
        });
        Bounded { stream, buffers }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Bounded { stream, buffers } = self;
        let Some(buffers) = buffers else {
            return Pin::new(stream).poll_write_vectored(cx, pieces);
        };
        let (pieces, many) = first(pieces, &SockRef::from(&*stream), buffers);
        let pieces = pieces.get(..many).unwrap_or_default();
        let sent = ready!(if buffers.is_bounded() {
            send_apart(stream, cx, pieces)
        } else {
            Pin::new(stream).poll_write_vectored(cx, pieces)
        })?;
        buffers.wrote(sent);
        Poll::Ready(Ok(sent))
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Unix {
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let (Some(stream), Some(buffers)) = (&mut self.stream, &mut self.buffers) else {
            return Pin::new(self.stream_mut()).poll_write_vectored(cx, pieces);
        };
        let (pieces, many) = first(pieces, &SockRef::from(&*stream), buffers);
        let pieces = pieces.get(..many).unwrap_or_default();
        let sent = ready!(Pin::new(stream).poll_write_vectored(cx, pieces))?;
        buffers.wrote(sent);
        Poll::Ready(Ok(sent))
    }
}

/// Most pieces of one write.
const PIECES: usize = 4;

/// The part of the pieces that may be written now, and how many pieces it has.
fn first<'a>(
    pieces: &'a [IoSlice<'_>],
    socket: &SockRef<'_>,
    buffers: &mut KernelBuffers,
) -> ([IoSlice<'a>; PIECES], usize) {
    let mut taken = [IoSlice::new(&[]); PIECES];
    let pieces = pieces.get(..PIECES).unwrap_or(pieces);
    let len = pieces.iter().map(|piece| piece.len()).sum();
    let mut left = buffers.may_send(socket, len);
    for (taken, piece) in taken.iter_mut().zip(pieces) {
        let count = left.min(piece.len());
        *taken = IoSlice::new(piece.get(..count).unwrap_or_default());
        left -= count;
    }
    (taken, pieces.len())
}

/// Writes in segments of its own (`MSG_EOR`). Otherwise the kernel fills the last segment of the queue, up to 64 kB,
/// without regard to `SO_SNDBUF`: `tcp_sendmsg_locked` checks it only before it begins a new segment.
fn send_apart(
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
    use crate::memory::{plan::Plan, prices::TLS_CLIENT};

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
        drop(Stream::unix(ours, Some(&budget)));
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
            drop(Stream::unix(ours, Some(&budget)));
            peers.push(theirs);
            assert!(peers.len() < 1_000, "nothing was paid for");
        }
        drop(peers);
        assert!(!budget.release_unread() && !budget.is_stuffed());
    }

    /// A client's TCP connection where memory is tight, and its other end.
    fn client(budget: &Rc<Budget>) -> (Stream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = TcpStream::from_std(ours).unwrap();
        (Stream::client(ours, budget), theirs)
    }

    #[test]
    fn a_client_with_tls_pays_for_the_socket_below() {
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let _inside = runtime.enter();
        let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
        let (io, _theirs) = client(&budget);
        assert_eq!(io.socket().recv_buffer_size().unwrap(), 2 * NARROW);
        let mut io = Stream::Secured(Box::new(
            Secured::new(io, session::tests::config(), &budget).unwrap(),
        ));
        let session = budget.spent();
        assert_eq!(session, TLS_CLIENT);
        let mut context = Context::from_waker(Waker::noop());
        assert!(io.poll_expect(&mut context, Some(30_000), 0).is_ready());
        assert_eq!(io.socket().recv_buffer_size().unwrap(), 2 * 64 * 1024);
        assert!(io.receives_wide() && budget.spent() == session + 2 * 60 * 1024);
        let mut others = budget.receiving(true);
        others.resize(budget.plan().pool.unwrap() / 4 - 2 * 60 * 1024);
        assert_eq!(budget.left_for_resting(), 0, "it rests wide as well");
        drop(others);
        drop(io);
        assert_eq!(budget.spent(), 0);
    }

    #[test]
    fn what_a_connection_at_rest_has_sent_is_paid_for_until_it_is_taken() {
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
        runtime.block_on(async {
            let (mut io, mut theirs) = client(&budget);
            let bytes = vec![b'x'; 200_000];
            let sent = poll_fn(|context| Pin::new(&mut io).poll_write(context, &bytes));
            let sent = sent.await.unwrap();
            assert!(budget.spent() > 0, "{sent}");
            theirs.read_exact(&mut vec![0; sent]).unwrap();
            let since = std::time::Instant::now();
            while io.give_back() {
                assert!(since.elapsed().as_secs() < 20);
                std::thread::yield_now();
            }
        });
        assert_eq!(budget.spent(), 0);
    }

    #[test]
    fn an_upstream_that_reads_nothing_is_sent_what_is_paid_for() {
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
        let _all = budget.force(budget.plan().pool.unwrap());
        let unread = |mut io: Stream| {
            let mut context = Context::from_waker(Waker::noop());
            let mut sent = 0;
            while let Poll::Ready(Ok(count)) =
                Pin::new(&mut io).poll_write(&mut context, &[b'x'; 16_384])
            {
                sent += count;
                assert!(sent < 1 << 20, "it takes everything");
            }
            io.unsent()
        };
        runtime.block_on(async {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            assert!(unread(Stream::unix(ours, Some(&budget))) > 0);
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let ours = TcpStream::connect(address).await.unwrap();
            let io = Stream::upstream(ours, Some(&budget));
            assert_eq!(io.socket().recv_buffer_size().unwrap(), 2 * NARROW);
        });
    }
}
