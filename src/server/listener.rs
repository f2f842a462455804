//! Listeners: binds addresses, accepts connections and gives each a slot in the connection table.
//!
//! A connection is paid for before it is served; while there is no slot, further ones wait in the kernel's backlog.

use std::{
    cell::{Cell, RefCell},
    fs::Permissions,
    future::{Future, poll_fn},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustls::ServerConfig;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    net::{TcpListener, UnixListener},
    task::{JoinHandle, coop::has_budget_remaining},
};

use crate::{
    client_group::Group,
    clock::{sleep, timeout},
    config::Listen,
    connection_table::eviction::{Grace, Reason, Scope},
    exchange::worker::Worker,
    memory::{
        budget::{Budget, Permit},
        plan::Plan,
        prices::{CONNECTION, NARROW, UNSENT_IN_KERNEL},
        queue::Claim,
    },
    net::Stream,
    observe::{log, metrics, repeats::Kind},
    outcome::Outcome,
    server::{connection::Connection, pressure::EVICTED_AT_ONCE, supervisor::Reporter},
    sys::socket::unlock_receive_buffer,
};

/// Most connections in the kernel's backlog, which `net.core.somaxconn` may bound further.
const BACKLOG: i32 = 4096;

/// Idle time before the kernel asks whether a client is still there: a tunnel or a stream may be silent for hours.
const CLIENT_KEEP_ALIVE: Duration = Duration::from_mins(1);

/// Milliseconds between two evictions while a connection waits for its slot; fewer where the grace of lingering
/// connections is less.
const STEP: u32 = 20;

/// Milliseconds after which requests that wait for memory are evicted for it, and after which streams are.
const WAITERS_LEAVE: u32 = 100;
const STREAMS_LEAVE: u32 = 250;

/// How long accepting pauses when descriptors have run out and no connection ends.
const PAUSE: Duration = Duration::from_millis(100);

/// How long after the last failure an accepted connection ends a shortage: near the limit every other accept fails.
const RECOVERED: Duration = Duration::from_secs(1);

/// What the listeners of one configuration have in common.
pub struct Frame<'a> {
    /// The plan, which says whether socket buffers are small.
    pub plan: &'a Plan,
    /// The sockets that systemd handed over, by name.
    pub inherited: &'a [(String, OwnedFd)],
    /// Permissions of the file of a unix socket.
    pub unix_socket_mode: u32,
}

/// One bound address: a socket for each worker. Dropping it closes them, and removes the file of a unix socket.
pub struct Listener {
    /// The address in the configuration.
    pub listen: Listen,
    /// The address as the log shows it, with the port that the kernel chose.
    pub name: String,
    sockets: Vec<OwnedFd>,
    file: Option<PathBuf>,
}

impl Listener {
    /// Binds an address for `workers` workers.
    ///
    /// # Errors
    /// The address cannot be bound; the error names it.
    pub fn open(listen: &Listen, workers: usize, frame: &Frame<'_>) -> Result<Listener> {
        let plan = frame.plan;
        let mut listener = Listener {
            listen: listen.clone(),
            name: String::new(),
            sockets: Vec::new(),
            file: None,
        };
        match listen {
            Listen::Everywhere(port) => {
                let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port));
                if listener.bind(everywhere, workers, plan).is_err() {
                    // IPv6 is off, or the port is taken: the second attempt shows which
                    listener.sockets.clear();
                    listener.bind(
                        SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port)),
                        workers,
                        plan,
                    )?;
                }
            }
            Listen::Address(address) => listener.bind(*address, workers, plan)?,
            Listen::Unix(path) => listener.bind_unix(path, workers, frame.unix_socket_mode)?,
            Listen::Inherited(name) => listener.inherit(name, workers, frame)?,
        }
        Ok(listener)
    }

    /// A handle of the socket for one worker.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn socket(&self, worker: usize) -> Result<OwnedFd> {
        let socket = self
            .sockets
            .get(worker)
            .ok_or_else(|| anyhow!("no socket for worker {worker}"))?;
        socket.try_clone().context("duplicating a listener")
    }

    /// Changes the permissions of a unix socket's file; does nothing for other listeners.
    ///
    /// # Errors
    /// The file is gone, or belongs to another user.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        std::fs::set_permissions(file, Permissions::from_mode(mode))
            .with_context(|| format!("changing the mode of {}", self.name))
    }

    fn bind(&mut self, address: SocketAddr, workers: usize, plan: &Plan) -> Result<()> {
        let mut address = address;
        for _ in 0..workers {
            let socket = tcp(address, workers > 1, plan)
                .with_context(|| format!("listening on {address}"))?;
            if let Some(bound) = socket.local_addr().ok().and_then(|bound| bound.as_socket()) {
                address = bound;
            }
            self.sockets.push(socket.into());
        }
        self.name = address.to_string();
        Ok(())
    }

    /// Binds a unix socket. The file of a process that has ended is removed; one on which a process listens is an
    /// error.
    fn bind_unix(&mut self, path: &Path, workers: usize, mode: u32) -> Result<()> {
        self.name = format!("unix:{}", path.display());
        if path
            .symlink_metadata()
            .is_ok_and(|file| file.file_type().is_socket())
        {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                bail!("listening on {}: the address is in use", self.name);
            }
            std::fs::remove_file(path)
                .with_context(|| format!("removing the stale {}", self.name))?;
        }
        let bind = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&SockAddr::unix(path)?)?;
            // before it listens, so that no client connects with the permissions of the umask
            std::fs::set_permissions(path, Permissions::from_mode(mode))?;
            socket.listen(BACKLOG)?;
            Ok(socket)
        };
        let socket = bind().with_context(|| format!("listening on {}", self.name))?;
        self.file = Some(path.to_owned());
        self.share(&socket.into(), workers)
    }

    fn inherit(&mut self, name: &str, workers: usize, frame: &Frame<'_>) -> Result<()> {
        let inherited = frame.inherited;
        // a number is the descriptor itself, counted from 3 as systemd does
        let number = name
            .parse::<usize>()
            .ok()
            .and_then(|number| number.checked_sub(3));
        let found = inherited
            .iter()
            .find(|(other, _)| other == name)
            .or_else(|| inherited.get(number?));
        let (_, socket) = found.ok_or_else(|| {
            anyhow!("no socket named {name} was handed over (LISTEN_FDS, LISTEN_FDNAMES)")
        })?;
        let address = SockRef::from(socket).local_addr().ok();
        if address
            .as_ref()
            .is_some_and(|address| address.as_socket().is_some())
        {
            // best effort: the program that made the socket may have left options that cannot be changed
            drop(set_options(&SockRef::from(socket), frame.plan));
        }
        let address = address
            .and_then(|address| address.as_socket())
            .map(|address| address.to_string());
        self.name = address.unwrap_or_else(|| format!("fd:{name}"));
        self.share(socket, workers)
    }

    fn share(&mut self, socket: &OwnedFd, workers: usize) -> Result<()> {
        for _ in 0..workers {
            self.sockets
                .push(socket.try_clone().context("duplicating a listener")?);
        }
        Ok(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            drop(std::fs::remove_file(file));
        }
    }
}

/// A listening TCP socket. Accepted connections inherit its options, so that accepting costs one system call.
fn tcp(address: SocketAddr, shared: bool, plan: &Plan) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    set_options(&SockRef::from(&socket), plan)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn set_options(socket: &SockRef<'_>, plan: &Plan) -> io::Result<()> {
    if plan.tight {
        socket.set_recv_buffer_size(NARROW)?;
        unlock_receive_buffer(socket);
    }
    socket.set_tcp_nodelay(true)?;
    // not essential: some kernels and sandboxes lack these
    drop(socket.set_tcp_notsent_lowat(UNSENT_IN_KERNEL));
    drop(
        socket.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(CLIENT_KEEP_ALIVE)
                .with_interval(CLIENT_KEEP_ALIVE),
        ),
    );
    Ok(())
}

/// A listening socket, registered with the runtime.
pub enum ListeningSocket {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

impl ListeningSocket {
    /// Registers a listening socket.
    ///
    /// # Errors
    /// Not a socket, or one that does not listen.
    pub fn new(socket: OwnedFd) -> Result<ListeningSocket> {
        let domain = SockRef::from(&socket)
            .domain()
            .context("reading the address family of a listener")?;
        SockRef::from(&socket)
            .set_nonblocking(true)
            .context("preparing a listener")?;
        if domain == Domain::UNIX {
            UnixListener::from_std(socket.into()).map(ListeningSocket::Unix)
        } else {
            TcpListener::from_std(socket.into()).map(ListeningSocket::Tcp)
        }
        .context("preparing a listener")
    }

    /// The next connection, and its address where it has one.
    ///
    /// # Errors
    /// Out of descriptors or memory, or the client has left already.
    pub async fn accept(&self, budget: &Rc<Budget>) -> io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            ListeningSocket::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Stream::client(stream, budget), Some(address)))
            }
            ListeningSocket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::unix(stream, Some(budget)), None))
            }
        }
    }
}

/// A task that accepts on a socket.
pub struct Acceptor {
    task: JoinHandle<()>,
    state: Rc<AcceptState>,
}

/// The state of an acceptor.
struct AcceptState {
    /// The address in the configuration.
    address: Listen,
    /// The socket; `None` after [`Acceptor::end`].
    listener: RefCell<Option<Rc<ListeningSocket>>>,
    /// The TLS configuration; `None` = plain HTTP.
    tls: RefCell<Option<Arc<ServerConfig>>>,
    /// A connection was accepted and has no slot yet.
    is_admitting: Cell<bool>,
    /// Since when connections have waited for a slot without a break, by the table's clock; `None` = none waits in the
    /// backlog.
    crowded_since: Cell<Option<u32>>,
}

impl Acceptor {
    /// Accepts on a socket until [`end`](Self::end).
    ///
    /// # Errors
    /// Not a socket, or one that does not listen.
    pub fn new(
        worker: &Rc<Worker>,
        address: &Listen,
        socket: OwnedFd,
        tls: Option<Arc<ServerConfig>>,
        reporter: &Reporter,
    ) -> Result<Acceptor> {
        let state = Rc::new(AcceptState {
            address: address.clone(),
            tls: RefCell::new(tls),
            listener: RefCell::new(Some(Rc::new(ListeningSocket::new(socket)?))),
            is_admitting: Cell::new(false),
            crowded_since: Cell::new(None),
        });
        let (worker, ours) = (Rc::clone(worker), Rc::clone(&state));
        let task = reporter.spawn("acceptor", async move { accept(&worker, &ours).await });
        Ok(Acceptor { task, state })
    }

    /// Connections that are accepted from now on use this TLS configuration.
    pub fn set_tls(&self, tls: Option<Arc<ServerConfig>>) {
        *self.state.tls.borrow_mut() = tls;
    }

    /// Stops accepting; a connection that was accepted and waits for a slot still gets one.
    pub fn end(self) {
        drop(self.state.listener.take());
        if !self.state.is_admitting.get() {
            self.task.abort();
        }
    }
}

impl AcceptState {
    fn listener(&self) -> Option<Rc<ListeningSocket>> {
        self.listener.borrow().clone()
    }
}

/// Serves a connection as soon as it has a slot. While it waits for one, further connections stay in the kernel's
/// backlog, and served ones that have been silent longest are evicted.
async fn admit(worker: &Rc<Worker>, state: &AcceptState, io: Stream, address: Option<SocketAddr>) {
    metrics::inc(&worker.metrics.connections_accepted);
    if matches!(io, Stream::Unix(_)) && worker.budget.is_stuffed_by(&io.socket()) {
        return tell_stuffed(worker);
    }
    let take = || {
        let limit = worker.budget.plan().connections;
        (worker.table.open() < limit)
            .then(|| worker.budget.take(CONNECTION))
            .flatten()
    };
    let client = address.map(|address| address.ip());
    let permit = match take() {
        Some(permit) => permit,
        None => Box::pin(await_slot(worker, state, client, take)).await,
    };
    let offers_http2 = worker.state().config.offers_http2(&state.address);
    let slot = worker.table.slot(client).offering_http2(offers_http2);
    let tls = state.tls.borrow().clone();
    tokio::task::spawn_local(Connection::new(Rc::clone(worker), io, tls, slot, permit));
}

/// Logs that a client of a unix socket is closed because its process has left too many bytes unread.
#[cold]
fn tell_stuffed(worker: &Worker) {
    metrics::inc(&worker.metrics.connections_evicted);
    let kind = Kind("connection refused", Outcome::NoMemory);
    if worker.repeats.is_first(kind, worker.table.now()) {
        let reason = "its process leaves too many answers unread";
        log::warn(kind.0, &[("client", &"unix"), ("reason", &reason)]);
    }
}

/// Waits for a slot, and evicts other connections until there is one.
async fn await_slot(
    worker: &Worker,
    state: &AcceptState,
    client: Option<IpAddr>,
    take: impl FnMut() -> Option<Permit>,
) -> Permit {
    let since = worker.table.refresh_clock();
    let crowded_since = state.crowded_since.get().unwrap_or(since);
    state.crowded_since.set(Some(crowded_since));
    let claim = Claim {
        group: Group::of(client),
        since,
        is_whole: true,
    };
    let mut slot = pin!(worker.table.room.until(claim, take));
    loop {
        let now = worker.table.refresh_clock();
        let grace = Grace::beside_crowd(now.wrapping_sub(crowded_since));
        make_room(worker, now.wrapping_sub(since), grace);
        let step = Duration::from_millis(grace.lingering.min(STEP).into());
        if let Ok(permit) = timeout(step, &mut slot).await {
            return permit;
        }
    }
}

/// Evicts connections for one that has waited for `waited` milliseconds: first those that have been silent longest,
/// then requests that wait for memory, then the stream with the least progress. An eighth of the allowed connections at
/// a time, so that a full backlog is served within a second, and among it a health check.
fn make_room(worker: &Worker, waited: u32, grace: Grace) {
    let many = (worker.budget.plan().connections / 8).clamp(EVICTED_AT_ONCE, 1024);
    if worker.evict_idle(many, grace) > 0 || waited < WAITERS_LEAVE {
        return;
    }
    let table = &worker.table;
    if table.evict_waiting(many, None) == 0 && waited >= STREAMS_LEAVE {
        worker.evict_least(Scope::Memory, Reason::Waited(1_000));
    }
}

/// The next connection. When none waits in the kernel's backlog, the crowd is over.
async fn next_connection(
    listener: &ListeningSocket,
    budget: &Rc<Budget>,
    state: &AcceptState,
) -> io::Result<(Stream, Option<SocketAddr>)> {
    let mut accept = pin!(listener.accept(budget));
    poll_fn(|context| {
        let accepted = accept.as_mut().poll(context);
        // without a budget the runtime reports pending in any case
        if accepted.is_pending() && has_budget_remaining() {
            state.crowded_since.set(None);
        }
        accepted
    })
    .await
}

/// Accepts until [`Acceptor::end`].
///
/// # Errors
/// The listener is broken.
async fn accept(worker: &Rc<Worker>, state: &AcceptState) -> Result<()> {
    let mut shortage = None;
    while let Some(listener) = state.listener() {
        let accepted = next_connection(&listener, &worker.budget, state).await;
        drop(listener);
        match accepted {
            Ok((io, address)) => {
                state.is_admitting.set(true);
                admit(worker, state, io, address).await;
                state.is_admitting.set(false);
                if shortage
                    .take_if(|since: &mut Instant| since.elapsed() >= RECOVERED)
                    .is_some()
                {
                    log::info("accepting again", &[]);
                }
            }
            Err(error) => match Trouble::of(&error) {
                Trouble::Client => {}
                Trouble::Shortage => {
                    if shortage.replace(Instant::now()).is_none() {
                        log::warn("accept", &[("error", &error)]);
                    }
                    pause(worker).await;
                }
                Trouble::ListeningSocket => return Err(error).context("accept"),
            },
        }
    }
    Ok(())
}

/// What a failed accept means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The connection is gone, or was refused by a firewall; the next one may be accepted.
    Client,
    /// Descriptors or memory have run out for now.
    Shortage,
    /// The listener itself is broken for good.
    ListeningSocket,
}

impl Trouble {
    /// The meaning of an error's number, as in accept(2); an unknown one counts as a shortage.
    pub fn of(error: &io::Error) -> Trouble {
        match error.raw_os_error() {
            Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EFAULT) => {
                Trouble::ListeningSocket
            }
            Some(
                libc::ECONNABORTED
                | libc::EINTR
                | libc::EPERM
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET,
            ) => Trouble::Client,
            _ => Trouble::Shortage,
        }
    }
}

/// After a shortage: closes connections that do nothing, and pauses, because accepting again at once would spin.
async fn pause(worker: &Worker) {
    worker.evict_idle(EVICTED_AT_ONCE, Grace::USUAL);
    worker.pool.clear();
    sleep(PAUSE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_accept_is_the_clients_a_shortage_or_the_end_of_the_listener() {
        for (trouble, numbers) in [
            (
                Trouble::Client,
                &[libc::ECONNABORTED, libc::EPERM, libc::EHOSTUNREACH][..],
            ),
            (
                Trouble::Shortage,
                &[
                    libc::EMFILE,
                    libc::ENFILE,
                    libc::ENOBUFS,
                    libc::ENOMEM,
                    libc::EAGAIN,
                ],
            ),
            (
                Trouble::ListeningSocket,
                &[libc::EBADF, libc::EINVAL, libc::ENOTSOCK],
            ),
        ] {
            for number in numbers {
                let error = io::Error::from_raw_os_error(*number);
                assert_eq!(Trouble::of(&error), trouble, "{error}");
            }
        }
    }
}
