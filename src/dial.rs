//! From an origin to a connection: look the name up, try every address, shake hands where it is https.
//!
//! A dial has no time-out of its own: whoever asks drops the future at `dial_timeout`, and all it held is gone with it.
//! Concurrent dials to one name share one look-up; nothing here is kept longer than a few seconds but the sessions of
//! `tls.rs`.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt::{self, Write},
    future::{Future, poll_fn},
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    thread,
    time::{Duration, Instant},
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpSocket, TcpStream, UnixStream},
    sync::{Semaphore, oneshot},
    task::spawn_local,
    time::sleep,
};
use tokio_rustls::client::TlsStream;

use crate::{
    budget::{Budget, NARROW, Permit},
    failure::Failure,
    queue::Claim,
    route::{Address, Origin},
    sys,
    tls::Connectors,
};

/// A connection to an upstream.
#[derive(Debug)]
pub enum Io {
    /// `http://`.
    Tcp(TcpStream),
    /// The same where memory is tight: what waits to be sent is bounded by `SO_SNDBUF` and one write.
    Bounded(TcpStream),
    /// `unix:`.
    Unix(UnixStream),
    /// `https://`; boxed, for it is a kilobyte and most are not.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Which way bytes go through a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// They are read from it.
    In,
    /// They are written to it.
    Out,
}

/// A wider buffer of a socket, one way, for a long body where memory is tight; paid for until it is dropped.
#[derive(Debug)]
pub struct Wide {
    /// Which way.
    pub way: Way,
    _permit: Permit,
}

impl Io {
    /// Ready when there is something to read, or the end, or an error. It may be ready though nothing is there: after a
    /// read that filled its buffer exactly, and with TLS for a record that carries no data.
    pub fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Tcp(stream) | Io::Bounded(stream) => stream.poll_read_ready(cx),
            Io::Unix(stream) => stream.poll_read_ready(cx),
            Io::Tls(stream) => {
                let (socket, session) = stream.get_mut();
                match io::BufRead::fill_buf(&mut session.reader()) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        socket.poll_read_ready(cx)
                    }
                    _ => Poll::Ready(Ok(())),
                }
            }
        }
    }

    /// Looks whether a byte has come, and leaves it where it is: 0 = the end, 1 = there is one. For a client's socket,
    /// which is never TLS.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut byte = [MaybeUninit::uninit()];
        match self {
            Io::Tcp(stream) | Io::Bounded(stream) => {
                stream.poll_peek(cx, &mut ReadBuf::uninit(&mut byte))
            }
            Io::Unix(stream) => loop {
                ready!(stream.poll_read_ready(cx))?;
                match stream.try_io(Interest::READABLE, || {
                    SockRef::from(&*stream).peek(&mut byte)
                }) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return Poll::Ready(result),
                }
            },
            Io::Tls(_) => self.poll_read_ready(cx).map_ok(|()| 1),
        }
    }

    /// Whether an idle connection is alive and silent, and so may be used again. What is not quiet must be dropped: a
    /// byte of what it said may be gone. Costs no system call where nothing came. The context's waker is woken when it
    /// speaks or ends later.
    pub fn is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        // Reading is the one way that tells stale readiness from real, and that takes in the session tickets that a TLS
        // server sends when it likes.
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        Pin::new(self).poll_read(cx, &mut buffer).is_pending()
    }

    /// A unix connection. What is written to it and not read by the other side is charged to us, and its buffer is not
    /// that of the listener: `send_buffer` is its `SO_SNDBUF`, `None` = the kernel's default.
    pub fn unix(stream: UnixStream, send_buffer: Option<usize>) -> Io {
        let io = Io::Unix(stream);
        if let Some(size) = send_buffer {
            io.set_buffer(Way::Out, size);
        }
        io
    }

    /// A TCP connection, whose queue is to be `bounded` or is the kernel's affair.
    pub fn tcp(stream: TcpStream, bounded: bool) -> Io {
        if bounded {
            Io::Bounded(stream)
        } else {
            Io::Tcp(stream)
        }
    }

    /// Lets the kernel hold more of what goes one way, where memory allows it ([`Budget::width`]).
    pub fn widen(&self, way: Way, budget: &Rc<Budget>) -> Option<Box<Wide>> {
        if matches!((self, way), (Io::Unix(_), Way::In)) {
            // what a unix socket receives stands in the sender's buffer
            return None;
        }
        let (size, permit) = budget.width()?;
        self.set_buffer(way, size);
        Some(Box::new(Wide {
            way,
            _permit: permit,
        }))
    }

    /// Takes that back, before the next message. What is received never gets narrower: of what was offered to the other
    /// side already the kernel would drop segments for ever that are larger than the buffer.
    pub fn narrow(&self, wide: &Wide) {
        if wide.way == Way::Out {
            self.set_buffer(Way::Out, NARROW);
        }
    }

    fn set_buffer(&self, way: Way, size: usize) {
        let socket = self.socket();
        match way {
            Way::Out => drop(socket.set_send_buffer_size(size)),
            Way::In => sys::set_receive_buffer(&socket, size),
        }
    }

    /// The socket, for its options.
    pub fn socket(&self) -> SockRef<'_> {
        match self {
            Io::Tcp(stream) | Io::Bounded(stream) => SockRef::from(stream),
            Io::Unix(stream) => SockRef::from(stream),
            Io::Tls(stream) => SockRef::from(stream.get_ref().0),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Tcp(stream) | Io::Bounded(stream) => Pin::new(stream).poll_read(cx, buffer),
            Io::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Bounded(stream) => send_apart(stream, cx, &[IoSlice::new(bytes)]),
            Io::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Io::Bounded(stream) => send_apart(stream, cx, pieces),
            Io::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Tcp(stream) | Io::Bounded(stream) => Pin::new(stream).poll_flush(cx),
            Io::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Tcp(stream) | Io::Bounded(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Writes, and lets nothing be added to it. Else the kernel goes on filling the last segment of the queue, up to 64 kB,
/// without a look at `SO_SNDBUF`: `tcp_sendmsg_locked` asks only before it begins another.
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

/// What a TCP connection is given before it connects. `None` leaves the kernel's own. A kernel that lacks an option
/// still connects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// Idle time before the first probe and between probes; whole seconds, at least one. `None` = off.
    pub keep_alive: Option<Duration>,
    /// `SO_RCVBUF` in bytes; the kernel doubles it.
    pub receive_buffer: Option<usize>,
    /// `SO_SNDBUF` in bytes; the kernel doubles it.
    pub send_buffer: Option<usize>,
    /// Whether that is to be a bound ([`Io::Bounded`]).
    pub bounded: bool,
    /// `TCP_NOTSENT_LOWAT` in bytes: how much may wait in the kernel that is not on its way.
    pub notsent_lowat: Option<u32>,
}

impl SocketOptions {
    fn apply(&self, socket: &TcpSocket) {
        let socket = SockRef::from(socket);
        let size = |size: Option<usize>, set: fn(&SockRef<'_>, usize) -> io::Result<()>| {
            size.map(|size| set(&socket, size));
        };
        size(self.receive_buffer, |socket, size| {
            socket.set_recv_buffer_size(size)
        });
        size(self.send_buffer, |socket, size| {
            socket.set_send_buffer_size(size)
        });
        self.notsent_lowat
            .map(|bytes| socket.set_tcp_notsent_lowat(bytes));
        self.keep_alive.map(|time| {
            // Beyond these the kernel says EINVAL.
            let time = time.clamp(Duration::from_secs(1), Duration::from_secs(32_767));
            let probes = TcpKeepalive::new().with_time(time).with_interval(time);
            socket.set_tcp_keepalive(&probes)
        });
        // A head and its body are written in one go, and a frame of a tunnel must not wait for the next.
        drop(socket.set_tcp_nodelay(true));
    }
}

/// Makes connections; belongs to one worker and one configuration. Must be used inside tokio's `LocalRuntime`.
pub struct Dialer {
    options: SocketOptions,
    names: Names,
    connectors: Connectors,
    stagger: Duration,
    /// What pays for handshakes; `None` = they cost nothing.
    budget: Option<Rc<Budget>>,
}

impl Dialer {
    /// Asks nobody and builds nothing yet.
    pub fn new(options: SocketOptions) -> Dialer {
        Dialer {
            options,
            names: Names::new(|name| Box::pin(resolve(name, LOOK_UP_STACK))),
            connectors: Connectors::default(),
            stagger: STAGGER,
            budget: None,
        }
    }

    /// The same, where handshakes are paid for.
    pub fn paid_by(self, budget: &Rc<Budget>) -> Dialer {
        Dialer {
            budget: Some(Rc::clone(budget)),
            ..self
        }
    }

    /// A fresh connection, ready for a request. Dropping the future ends the attempt.
    pub async fn dial(&self, origin: &Origin) -> Result<Io, Failure> {
        let stream = match &origin.address {
            Address::Tcp(host, port) => self.connect(host, *port).await?,
            Address::Unix(path) => {
                let connected = UnixStream::connect(path).await;
                let connected = connected.map_err(|error| {
                    Failure::DialFailed(format!("unix:{}: {error}", path.display()))
                });
                return connected.map(|stream| Io::unix(stream, self.options.send_buffer));
            }
        };
        match &origin.tls {
            None => Ok(Io::tcp(stream, self.options.bounded)),
            Some(tls) => {
                let _permit = match &self.budget {
                    Some(budget) => {
                        let fund = &budget.handshakes;
                        Some(
                            fund.queue
                                .until(Claim::plain(), || budget.handshake())
                                .await,
                        )
                    }
                    None => None,
                };
                let stream = self.connectors.connect(tls, stream).await?;
                Ok(Io::Tls(Box::new(stream)))
            }
        }
    }

    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, Failure> {
        if let Ok(address) = host.parse::<IpAddr>() {
            let raced = self.race(&[SocketAddr::new(address, port)]).await;
            return raced.map_err(Failure::from);
        }
        let (known, fresh) = self.names.find(host).await?;
        let failed = match self.try_all(host, &known, port).await {
            Ok(stream) => return Ok(stream),
            Err(failed) => failed,
        };
        if fresh || failed.ours {
            return Err(failed.into());
        }
        // What was known may be out of date: a container comes back with another address.
        let (now, _) = self.names.find(host).await?;
        if now.iter().all(|address| known.contains(address)) {
            return Err(failed.into());
        }
        Ok(self.try_all(host, &now, port).await?)
    }

    /// Tries the addresses of a name, and forgets them if none answers, also if nobody waits any longer: the next dial
    /// asks again.
    async fn try_all(
        &self,
        host: &str,
        known: &Rc<[SocketAddr]>,
        port: u16,
    ) -> Result<TcpStream, Failed> {
        let doubt = Doubt {
            names: &self.names,
            host,
            known,
            cleared: Cell::new(false),
        };
        let mut addresses = interleave(known);
        for address in &mut addresses {
            address.set_port(port);
        }
        let raced = self.race(&addresses).await;
        doubt
            .cleared
            .set(raced.as_ref().map_or_else(|failed| failed.ours, |_| true));
        raced
    }

    /// RFC 8305 §5: each address gets a start of its own, the next at once when one fails, and the first that connects
    /// wins. The others are closed by being dropped. No more than [`MAX_RACING`] run at the same time: then the next
    /// address takes the place of the one that has been silent longest.
    async fn race(&self, addresses: &[SocketAddr]) -> Result<TcpStream, Failed> {
        let mut waiting = addresses.iter();
        let mut running: Vec<(SocketAddr, Pin<Box<dyn Future<Output = _> + '_>>)> = Vec::new();
        let mut failed = Failed::default();
        let mut pause = pin!(sleep(self.stagger));
        poll_fn(|cx| {
            loop {
                let before = running.len();
                let mut connected = None;
                running.retain_mut(|(address, attempt)| match attempt.as_mut().poll(cx) {
                    Poll::Pending => true,
                    Poll::Ready(Ok(stream)) => {
                        connected = Some(stream);
                        false
                    }
                    Poll::Ready(Err(error)) => {
                        failed.add(*address, &error);
                        false
                    }
                });
                if let Some(stream) = connected {
                    return Poll::Ready(Ok(stream));
                }
                let due = before == 0
                    || running.len() < before
                    || (waiting.len() > 0 && pause.as_mut().poll(cx).is_ready());
                // Where we lack descriptors or memory, the next address would fail alike.
                let next = if due && !failed.ours {
                    waiting.next()
                } else {
                    None
                };
                match next {
                    Some(address) => {
                        if running.len() == MAX_RACING {
                            let (silent, _attempt) = running.remove(0);
                            failed.add(silent, &io::ErrorKind::TimedOut.into());
                        }
                        running.push((*address, Box::pin(self.attempt(*address))));
                        pause.set(sleep(self.stagger));
                    }
                    None if running.is_empty() => {
                        return Poll::Ready(Err(std::mem::take(&mut failed)));
                    }
                    None => return Poll::Pending,
                }
            }
        })
        .await
    }

    async fn attempt(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = socket?;
        self.options.apply(&socket);
        socket.connect(address).await
    }
}

/// Families by turns, beginning with the one that the resolver put first (RFC 8305 §4).
fn interleave(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let mut one = addresses
        .iter()
        .filter(|address| address.is_ipv6() == first);
    let mut other = addresses
        .iter()
        .filter(|address| address.is_ipv6() != first);
    let mut mixed = Vec::with_capacity(addresses.len());
    for _ in addresses {
        mixed.extend(one.next());
        mixed.extend(other.next());
    }
    mixed
}

/// Why no address answered.
#[derive(Debug, Default)]
struct Failed {
    reason: String,
    /// We lack descriptors or memory: no address is to blame, and no other would do better.
    ours: bool,
}

impl Failed {
    fn add(&mut self, address: SocketAddr, error: &io::Error) {
        let lacking = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
        self.ours |= error
            .raw_os_error()
            .is_some_and(|code| lacking.contains(&code));
        let comma = if self.reason.is_empty() { "" } else { "; " };
        write!(self.reason, "{comma}{address}: {error}").expect("a String takes everything");
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Failure {
        Failure::DialFailed(failed.reason)
    }
}

/// Takes a name's addresses out of the cache when it is dropped, unless they proved good.
struct Doubt<'a> {
    names: &'a Names,
    host: &'a str,
    known: &'a Rc<[SocketAddr]>,
    cleared: Cell<bool>,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if !self.cleared.get() {
            self.names.forget(self.host, self.known);
        }
    }
}

type Answer = Result<Rc<[SocketAddr]>, Rc<str>>;
type LookUp = Pin<Box<dyn Future<Output = Result<Vec<SocketAddr>, Unresolved>>>>;

/// Why a look-up has no answer.
#[derive(Debug)]
struct Unresolved {
    reason: String,
    /// There was no thread for it: it says nothing of the name, and the next dial asks again at once.
    ours: bool,
}

/// What is known of names: one entry for each name of the configuration.
struct Names {
    entries: RefCell<HashMap<String, Rc<RefCell<Entry>>>>,
    look_up: fn(String) -> LookUp,
}

enum Entry {
    Asking(Vec<Waker>),
    /// An answer, and how long it is good.
    Known(Answer, Instant),
}

/// A look-up at work: its entry gets an answer whatever becomes of it, else the name would be asked for for ever.
struct Asked(Rc<RefCell<Entry>>);

impl Asked {
    fn answer(&self, answer: Answer, good_for: Duration) {
        let asking = self
            .0
            .replace(Entry::Known(answer, Instant::now() + good_for));
        if let Entry::Asking(wakers) = asking {
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let is_asking = matches!(*self.0.borrow(), Entry::Asking(_));
        if is_asking {
            self.answer(Err(ENDED.into()), Duration::ZERO);
        }
    }
}

impl Names {
    fn new(look_up: fn(String) -> LookUp) -> Names {
        Names {
            entries: RefCell::default(),
            look_up,
        }
    }

    /// The addresses of a name, with port 0, and whether they were asked for just now.
    async fn find(&self, name: &str) -> Result<(Rc<[SocketAddr]>, bool), Failure> {
        let known = self.entries.borrow().get(name).map(Rc::clone);
        let known = known.filter(|entry| entry.borrow().is_valid());
        let fresh = known
            .as_ref()
            .is_none_or(|entry| matches!(*entry.borrow(), Entry::Asking(_)));
        let entry = known.unwrap_or_else(|| self.ask(name));
        let answer = poll_fn(|cx| entry.borrow_mut().poll(cx)).await;
        answer
            .map(|addresses| (addresses, fresh))
            .map_err(|reason| Failure::NameUnresolved(format!("{name}: {reason}")))
    }

    /// Starts a look-up in a task of its own, so that it outlives whoever waits for it.
    fn ask(&self, name: &str) -> Rc<RefCell<Entry>> {
        let entry = Rc::new(RefCell::new(Entry::Asking(Vec::new())));
        self.entries
            .borrow_mut()
            .insert(name.to_owned(), Rc::clone(&entry));
        let (look_up, asked) = ((self.look_up)(name.to_owned()), Asked(Rc::clone(&entry)));
        spawn_local(async move {
            match look_up.await {
                Ok(addresses) if addresses.is_empty() => {
                    asked.answer(Err("no address".into()), BAD_FOR);
                }
                Ok(addresses) => asked.answer(Ok(addresses.into()), GOOD_FOR),
                Err(error) if error.ours => asked.answer(Err(error.reason.into()), Duration::ZERO),
                Err(error) => asked.answer(Err(error.reason.into()), BAD_FOR),
            }
        });
        entry
    }

    /// Forgets these addresses, but not newer ones that somebody else has asked for meanwhile.
    fn forget(&self, name: &str, addresses: &Rc<[SocketAddr]>) {
        let mut entries = self.entries.borrow_mut();
        let theirs = entries
            .get(name)
            .is_some_and(|entry| match &*entry.borrow() {
                Entry::Known(Ok(known), _) => Rc::ptr_eq(known, addresses),
                _ => false,
            });
        if theirs {
            entries.remove(name);
        }
    }
}

impl Entry {
    fn is_valid(&self) -> bool {
        match self {
            Entry::Asking(_) => true,
            Entry::Known(_, until) => Instant::now() < *until,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        match self {
            Entry::Known(answer, _) => Poll::Ready(answer.clone()),
            Entry::Asking(wakers) => {
                if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    wakers.push(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

/// getaddrinfo, in a thread of its own. Not by tokio's blocking pool, which panics where the system has no thread.
async fn resolve(name: String, stack: usize) -> Result<Vec<SocketAddr>, Unresolved> {
    let ours = |reason: String| Unresolved { reason, ours: true };
    let permit = LOOK_UPS.with(Arc::clone).acquire_owned().await;
    let permit = permit.map_err(|error| ours(error.to_string()))?;
    let (answer, answered) = oneshot::channel();
    let look_up = move || {
        let addresses = (name.as_str(), 0).to_socket_addrs().map(Vec::from_iter);
        drop(permit);
        drop(answer.send(addresses));
    };
    thread::Builder::new()
        .name("look-up".to_owned())
        .stack_size(stack)
        .spawn(look_up)
        .map_err(|error| ours(format!("no thread for the look-up: {error}")))?;
    let addresses = answered.await.map_err(|_| ours(ENDED.to_owned()))?;
    addresses.map_err(|error| Unresolved {
        reason: error.to_string(),
        ours: false,
    })
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

thread_local! {
    /// Look-ups of a worker at the same time, whatever was reloaded: a resolver that hangs would hold a thread, of some
    /// 30 kB, for each name.
    static LOOK_UPS: Arc<Semaphore> = Arc::new(Semaphore::new(4));
}
/// Bytes of stack of a look-up; musl's resolver takes a few kB, glibc's with its modules more.
const LOOK_UP_STACK: usize = 128 * 1024;
/// What is said of a look-up that ended without an answer.
const ENDED: &str = "the look-up broke off";
/// Between the starts of two attempts.
const STAGGER: Duration = Duration::from_millis(300);
/// Attempts at the same time. Each is a socket of some 3 kB, and they are in the price of the exchange that dials, which
/// holds neither an answer nor queues yet. An address that stays silent has 1.2 s, which sees one lost SYN sent again.
const MAX_RACING: usize = 4;
/// A burst of dials asks once; a container that moved is followed soon, and at once where its old address is dead.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// Keeps a name that does not exist from being asked for with each request.
const BAD_FOR: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::{
        env, fs,
        io::Read,
        net::{Ipv4Addr, Ipv6Addr},
        sync::mpsc,
    };

    use rcgen::{CertificateParams, KeyPair};
    use rustls::{
        ServerConfig, ServerConnection, StreamOwned, crypto::ring, pki_types::PrivateKeyDer,
    };
    use socket2::{Domain, Socket, Type};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, UnixListener},
        runtime::{Builder, LocalOptions},
        task::yield_now,
    };

    use super::*;
    use crate::{budget::Plan, route::Tls};

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .unwrap();
        runtime.block_on(test)
    }

    fn origin(host: &str, port: u16) -> Origin {
        Origin {
            address: Address::Tcp(host.to_owned(), port),
            tls: None,
        }
    }

    fn at(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 0)
    }

    /// A dialer whose resolver is this one, and that never starts a second attempt for the clock's sake.
    fn dialer(look_up: fn(String) -> LookUp) -> Dialer {
        Dialer {
            names: Names::new(look_up),
            stagger: Duration::from_hours(1),
            ..Dialer::new(SocketOptions::default())
        }
    }

    /// An address that neither answers nor refuses: its backlog is full.
    fn silent() -> (SocketAddr, Vec<Socket>) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut sockets = vec![listener];
        for _ in 0..3 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            drop(socket.connect(&address.into()));
            sockets.push(socket);
        }
        (address, sockets)
    }

    #[test]
    fn families_take_turns() {
        for (given, mixed) in [
            ("", ""),
            (
                "::1 ::2 ::3 127.0.0.1 127.0.0.2",
                "::1 127.0.0.1 ::2 127.0.0.2 ::3",
            ),
            ("127.0.0.1 127.0.0.2 ::1", "127.0.0.1 ::1 127.0.0.2"),
            ("127.0.0.1 127.0.0.2", "127.0.0.1 127.0.0.2"),
            ("::1 127.0.0.1 ::2", "::1 127.0.0.1 ::2"),
        ] {
            let list = |text: &str| text.split_whitespace().map(at).collect::<Vec<_>>();
            assert_eq!(interleave(&list(given)), list(mixed), "{given:?}");
        }
    }

    #[test]
    fn literals_names_and_paths_are_dialled() {
        run(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let dialer = Dialer::new(SocketOptions {
                keep_alive: Some(Duration::from_secs(30)),
                receive_buffer: Some(32 * 1024),
                send_buffer: Some(16 * 1024),
                bounded: false,
                notsent_lowat: Some(16 * 1024),
            });
            for host in ["127.0.0.1", "localhost"] {
                let io = dialer.dial(&origin(host, port)).await.unwrap();
                let socket = io.socket();
                assert!(
                    socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap(),
                    "{host}"
                );
                assert_eq!(
                    socket.tcp_keepalive_time().unwrap(),
                    Duration::from_secs(30)
                );
                assert_eq!(
                    socket.tcp_keepalive_interval().unwrap(),
                    Duration::from_secs(30)
                );
                assert_eq!(socket.recv_buffer_size().unwrap(), 64 * 1024);
                assert_eq!(socket.send_buffer_size().unwrap(), 32 * 1024);
                assert_eq!(socket.tcp_notsent_lowat().unwrap(), 16 * 1024);
            }

            let tight = Budget::new(Plan::new(Some(10 << 20), 1, None));
            for way in [Way::In, Way::Out] {
                let io = dialer.dial(&origin("127.0.0.1", port)).await.unwrap();
                let size = |io: &Io| match way {
                    Way::In => io.socket().recv_buffer_size().unwrap(),
                    Way::Out => io.socket().send_buffer_size().unwrap(),
                };
                let wide = io.widen(way, &tight).unwrap();
                assert_eq!((size(&io), tight.spent()), (32 * 1024, 32 * 1024));
                io.narrow(&wide);
                let after = if way == Way::In {
                    32 * 1024
                } else {
                    2 * NARROW
                };
                assert_eq!(size(&io), after);
                drop(wide);
                assert_eq!(tight.spent(), 0);
            }

            let path = env::temp_dir().join(format!("lean-proxy-dial-{}", std::process::id()));
            let target = Origin {
                address: Address::Unix(path.clone()),
                tls: None,
            };
            let Failure::DialFailed(reason) = dialer.dial(&target).await.unwrap_err() else {
                panic!("another failure");
            };
            assert!(reason.starts_with(&format!("unix:{}: No such file", path.display())));
            let listener = UnixListener::bind(&path).unwrap();
            let mut io = dialer.dial(&target).await.unwrap();
            let (mut accepted, _) = listener.accept().await.unwrap();
            io.write_all(b"hello").await.unwrap();
            let mut buffer = [0; 5];
            accepted.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, b"hello");
            fs::remove_file(path).unwrap();
        });
    }

    #[test]
    fn every_address_is_tried_and_failures_name_theirs() {
        run(async {
            let listener = TcpListener::bind("127.0.0.9:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let dialer = dialer(|name| {
                let last = if name == "some" {
                    "127.0.0.9"
                } else {
                    "127.0.0.4"
                };
                Box::pin(async move { Ok(["127.0.0.2", "127.0.0.3", last].map(at).to_vec()) })
            });
            let io = dialer.dial(&origin("some", port)).await.unwrap();
            assert!(matches!(io, Io::Tcp(_)));
            let Failure::DialFailed(reason) = dialer.dial(&origin("none", port)).await.unwrap_err()
            else {
                panic!("another failure");
            };
            for address in ["127.0.0.2", "127.0.0.3", "127.0.0.4"] {
                assert!(
                    reason.contains(&format!("{address}:{port}: Connection refused")),
                    "{reason}"
                );
            }
        });
    }

    #[test]
    fn a_silent_address_does_not_hold_the_next() {
        run(async {
            let (silent, _sockets) = silent();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let good = listener.local_addr().unwrap();
            let mut dialer = dialer(|_| Box::pin(async { Ok(vec![]) }));
            dialer.stagger = Duration::from_millis(1);
            let stream = dialer.race(&[silent, good]).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), good);
            let stream = dialer.race(&[good, silent]).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), good);
        });
    }

    /// How many sockets of this machine wait for one of these ports to answer (`SYN_SENT`).
    fn connecting(ports: &[u16]) -> usize {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let is_one = |line: &&str| {
            let mut words = line.split_whitespace().skip(2);
            let port = words.next().and_then(|remote| remote.split(':').nth(1));
            let port = port.and_then(|port| u16::from_str_radix(port, 16).ok());
            port.is_some_and(|port| ports.contains(&port)) && words.next() == Some("02")
        };
        table.lines().filter(is_one).count()
    }

    #[test]
    fn few_attempts_run_at_the_same_time_and_the_last_address_has_its_turn() {
        run(async {
            let (dead, _sockets): (Vec<_>, Vec<_>) = (0..MAX_RACING + 5).map(|_| silent()).unzip();
            let ports: Vec<u16> = dead.iter().map(SocketAddr::port).collect();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let good = listener.local_addr().unwrap();
            let mut dialer = dialer(|_| Box::pin(async { Ok(vec![]) }));
            dialer.stagger = Duration::from_millis(1);
            let addresses = [&*dead, &[good]].concat();
            let before = connecting(&ports);
            let mut most = 0;
            let mut race = pin!(dialer.race(&addresses));
            let raced = poll_fn(|cx| {
                let raced = race.as_mut().poll(cx);
                most = most.max(connecting(&ports).saturating_sub(before));
                raced
            });
            assert_eq!(raced.await.unwrap().peer_addr().unwrap(), good);
            assert!((2..=MAX_RACING).contains(&most), "{most} at the same time");
        });
    }

    thread_local! {
        /// What the resolvers of these tests count and answer.
        static ASKED: Cell<u32> = const { Cell::new(0) };
        static NOW_AT: Cell<u8> = const { Cell::new(0) };
    }

    fn moving(_name: String) -> LookUp {
        ASKED.set(ASKED.get() + 1);
        Box::pin(async {
            yield_now().await;
            Ok(vec![SocketAddr::new(
                Ipv4Addr::new(127, 0, 0, NOW_AT.get()).into(),
                0,
            )])
        })
    }

    #[test]
    fn an_upstream_that_moved_is_followed() {
        run(async {
            NOW_AT.set(11);
            let listener = TcpListener::bind("127.0.0.11:0").await.unwrap();
            let target = origin("moving", listener.local_addr().unwrap().port());
            let dialer = dialer(moving);
            for _ in 0..3 {
                dialer.dial(&target).await.unwrap();
            }
            assert_eq!(ASKED.get(), 1);

            NOW_AT.set(12);
            let Address::Tcp(_, port) = target.address else {
                unreachable!()
            };
            drop(listener);
            let listener = TcpListener::bind(("127.0.0.12", port)).await.unwrap();
            dialer.dial(&target).await.unwrap();
            assert_eq!(ASKED.get(), 2, "within the same dial");
            dialer.dial(&target).await.unwrap();
            assert_eq!(ASKED.get(), 2);

            drop(listener);
            dialer.dial(&target).await.unwrap_err();
            assert_eq!(ASKED.get(), 3);
            dialer.dial(&target).await.unwrap_err();
            assert_eq!(ASKED.get(), 4, "what did not answer is not kept");
        });
    }

    #[test]
    fn a_dial_given_up_makes_the_next_ask_again() {
        run(async {
            let (silent, _sockets) = silent();
            let dialer = dialer(moving);
            NOW_AT.set(1);
            let target = origin("silent", silent.port());
            {
                let mut dial = pin!(dialer.dial(&target));
                poll_fn(|cx| {
                    assert!(dial.as_mut().poll(cx).is_pending());
                    let names = dialer.names.entries.borrow();
                    let known = names
                        .get("silent")
                        .is_some_and(|entry| matches!(*entry.borrow(), Entry::Known(..)));
                    cx.waker().wake_by_ref();
                    if known {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })
                .await;
                // Connecting now, or about to.
                assert!(
                    poll_fn(|cx| Poll::Ready(dial.as_mut().poll(cx)))
                        .await
                        .is_pending()
                );
            }
            assert!(dialer.names.entries.borrow().is_empty());
        });
    }

    #[test]
    fn concurrent_dials_share_a_look_up_that_outlives_them() {
        run(async {
            let names = Rc::new(Names::new(moving));
            NOW_AT.set(7);
            let first = Rc::clone(&names);
            let first = spawn_local(async move { first.find("a").await.map(drop) });
            let second = Rc::clone(&names);
            let second = spawn_local(async move { second.find("a").await.map(|(found, _)| found) });
            yield_now().await;
            first.abort();
            let (found, fresh) = names.find("a").await.unwrap();
            assert_eq!((&*found, fresh), (&[at("127.0.0.7")][..], true));
            assert_eq!(*second.await.unwrap().unwrap(), [at("127.0.0.7")]);
            assert_eq!(ASKED.get(), 1);
            let (_, fresh) = names.find("a").await.unwrap();
            assert!(!fresh && ASKED.get() == 1);
            names.forget("a", &Vec::new().into());
            assert!(
                !names.find("a").await.unwrap().1,
                "only the addresses that failed are forgotten"
            );
        });
    }

    #[test]
    fn a_name_that_is_not_there_is_asked_for_once_a_second() {
        run(async {
            let dialer = dialer(|_| {
                ASKED.set(ASKED.get() + 1);
                Box::pin(async {
                    Err(Unresolved {
                        reason: "no such name".to_owned(),
                        ours: false,
                    })
                })
            });
            for _ in 0..3 {
                match dialer.dial(&origin("nobody", 80)).await.unwrap_err() {
                    Failure::NameUnresolved(reason) => assert_eq!(reason, "nobody: no such name"),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(ASKED.get(), 1);
        });
    }

    #[test]
    fn a_look_up_without_a_thread_strikes_its_own_request_and_no_later_one() {
        run(async {
            // no thread has so large a stack, and the system says what it says where there is no thread
            let failed = resolve("localhost".to_owned(), 1 << 46).await.unwrap_err();
            assert!(failed.ours, "{failed:?}");
            let reason = "no thread for the look-up: ";
            assert!(failed.reason.starts_with(reason), "{failed:?}");
            assert_eq!(LOOK_UPS.with(|it| it.available_permits()), 4);
            assert!(
                !resolve("localhost".to_owned(), LOOK_UP_STACK)
                    .await
                    .unwrap()
                    .is_empty()
            );

            let broken: [fn(String) -> LookUp; 2] = [
                |name| {
                    ASKED.set(ASKED.get() + 1);
                    let stack = if ASKED.get() == 1 {
                        1 << 46
                    } else {
                        LOOK_UP_STACK
                    };
                    Box::pin(resolve(name, stack))
                },
                |name| {
                    ASKED.set(ASKED.get() + 1);
                    let first = ASKED.get() == 1;
                    Box::pin(async move {
                        assert!(!first, "a look-up that panics");
                        resolve(name, LOOK_UP_STACK).await
                    })
                },
            ];
            for (case, look_up) in broken.into_iter().enumerate() {
                ASKED.set(0);
                let names = Rc::new(Names::new(look_up));
                // all that wait for it are told
                let other = Rc::clone(&names);
                let other = spawn_local(async move { other.find("localhost").await.map(drop) });
                let first = names.find("localhost").await;
                assert!(matches!(first, Err(Failure::NameUnresolved(_))), "{case}");
                assert!(other.await.unwrap().is_err() && ASKED.get() == 1, "{case}");
                assert!(names.find("localhost").await.is_ok(), "{case}");
            }
        });
    }

    #[test]
    fn a_lack_of_descriptors_blames_no_address() {
        let mut failed = Failed::default();
        failed.add(
            at("127.0.0.1"),
            &io::Error::from_raw_os_error(libc::ECONNREFUSED),
        );
        assert!(!failed.ours);
        failed.add(at("::1"), &io::Error::from_raw_os_error(libc::EMFILE));
        assert!(failed.ours);
        assert!(
            failed.reason.contains("; [::1]:0: Too many open files"),
            "{}",
            failed.reason
        );
    }

    #[test]
    fn an_idle_connection_is_quiet_until_it_speaks_or_ends() {
        run(async {
            let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await;
            let listener = match listener {
                Ok(listener) => listener,
                Err(_) => TcpListener::bind("127.0.0.1:0").await.unwrap(),
            };
            let address = listener.local_addr().unwrap();
            let target = origin(&address.ip().to_string(), address.port());
            let dialer = Dialer::new(SocketOptions::default());
            let mut io = dialer.dial(&target).await.unwrap();
            let (mut accepted, _) = listener.accept().await.unwrap();
            assert!(poll_fn(|cx| Poll::Ready(io.is_quiet(cx))).await);
            // A read that fills its buffer leaves the readiness behind.
            accepted.write_all(b"hello").await.unwrap();
            io.read_exact(&mut [0; 5]).await.unwrap();
            assert!(poll_fn(|cx| Poll::Ready(io.is_quiet(cx))).await);
            assert!(
                poll_fn(|cx| Poll::Ready(io.poll_read_ready(cx)))
                    .await
                    .is_pending()
            );
            accepted.write_all(b"!").await.unwrap();
            poll_fn(|cx| io.poll_read_ready(cx)).await.unwrap();
            assert!(!poll_fn(|cx| Poll::Ready(io.is_quiet(cx))).await);

            let mut io = dialer.dial(&target).await.unwrap();
            drop(listener.accept().await.unwrap());
            poll_fn(|cx| io.poll_read_ready(cx)).await.unwrap();
            assert!(!poll_fn(|cx| Poll::Ready(io.is_quiet(cx))).await);
        });
    }

    #[test]
    fn session_tickets_do_not_end_the_quiet_of_an_https_connection() {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["a.example".to_owned()])
            .and_then(|params| params.self_signed(&key))
            .unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (say, said) = mpsc::channel();
        let (speak, told) = mpsc::channel();
        let server = thread::spawn(move || {
            let connection = ServerConnection::new(Arc::new(config)).unwrap();
            let mut stream = StreamOwned::new(connection, listener.accept().unwrap().0);
            // When this byte is read, the tickets are written.
            stream.read_exact(&mut [0]).unwrap();
            say.send(()).unwrap();
            told.recv().unwrap();
            io::Write::write_all(&mut stream, b"!").unwrap();
            stream
        });
        let target = Origin {
            address: Address::Tcp(address.ip().to_string(), address.port()),
            tls: Some(Tls {
                server_name: "a.example".to_owned(),
                ca_file: None,
                insecure_skip_verify: true,
            }),
        };
        run(async {
            let mut io = Dialer::new(SocketOptions::default())
                .dial(&target)
                .await
                .unwrap();
            assert!(matches!(io, Io::Tls(_)) && io.socket().tcp_nodelay().unwrap());
            io.write_all(b"?").await.unwrap();
            io.flush().await.unwrap();
            said.recv().unwrap();
            poll_fn(|cx| io.poll_read_ready(cx)).await.unwrap();
            assert!(poll_fn(|cx| Poll::Ready(io.is_quiet(cx))).await);
            assert!(
                poll_fn(|cx| Poll::Ready(io.poll_read_ready(cx)))
                    .await
                    .is_pending()
            );
            speak.send(()).unwrap();
            poll_fn(|cx| io.poll_read_ready(cx)).await.unwrap();
            assert!(!poll_fn(|cx| Poll::Ready(io.is_quiet(cx))).await);
        });
        drop(server.join().unwrap());
    }

    #[test]
    fn sizes_stay_small() {
        assert!(size_of::<Io>() <= 40, "{}", size_of::<Io>());
    }
}
