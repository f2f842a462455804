//! Upstream connections: idle ones are kept, busy ones are lent, never more than the configuration allows.
//!
//! A host's connections, except for tunnels, count against `max_conns_per_host` from the start of the dial to the close;
//! requests beyond it wait in the host's queue. Idle connections are reused last-in first-out, and closed when the upstream
//! closes them, at `idle_conn_timeout`, when more are idle than allowed, or when memory is short.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    sync::Arc,
};

use crate::{
    config::Transport,
    connection_table::ConnectionTable,
    http2::client::{self, Connection},
    memory::{
        budget::{Budget, Permit},
        prices::{IDLE_UPSTREAM, NARROW, TLS_SESSION},
        queue::Queue,
    },
    net::Stream,
    observe::metrics::{self, Metrics},
    route::{Address, Origin},
    sys::socket,
    upstream::{limits::Limits, sharing::Sharing},
};

/// All upstream connections of a worker.
#[derive(Debug)]
pub struct Pool {
    limits: RefCell<Limits>,
    hosts: RefCell<Vec<Weak<Host>>>,
    idle: Cell<usize>,
    /// Connections to all upstreams, idle ones included, and their maximum, which follows from the process's descriptors.
    open: Cell<usize>,
    most: usize,
    next: Cell<u32>,
    /// The number of the current configuration: connections verified under an earlier one are not reused.
    trust: Cell<u32>,
    budget: Rc<Budget>,
    metrics: Arc<Metrics>,
}

/// The connections to one origin.
#[derive(Debug)]
pub struct Host {
    /// What it connects to.
    pub origin: Origin,
    /// Its number, from 1.
    pub id: u32,
    /// The requests that wait for one of its connections.
    pub queue: Queue,
    pool: Rc<Pool>,
    /// [`Pool::trust`] when the host was created.
    trust: u32,
    idle: RefCell<Vec<Idle>>,
    /// Its HTTP/2 connections.
    shared: Sharing,
    open: Cell<usize>,
    /// Whether requests waited when [`Pool::each_waiting`] was called last.
    waited: Cell<bool>,
}

#[derive(Debug)]
struct Idle {
    io: Stream,
    since: u32,
    _permit: Permit,
}

/// The result of a checkout.
#[derive(Debug)]
pub enum Checkout {
    /// An idle connection: the upstream may have closed it by the time the request arrives.
    Reused(Lease),
    /// The right to open a new connection, which the caller dials.
    Room(Lease),
    /// A stream of an HTTP/2 connection.
    Stream(StreamLease),
}

/// A request's part of an HTTP/2 connection; on drop it is another's.
#[derive(Debug)]
pub struct StreamLease {
    /// The connection.
    pub connection: Rc<Connection>,
    host: Rc<Host>,
}

/// What an HTTP/2 connection counts and costs as long as it is open.
struct Place {
    host: Weak<Host>,
    pool: Rc<Pool>,
    _permits: [Option<Permit>; 2],
}

/// A borrowed connection, or the right to open one. On drop the connection is closed, and its place is free again.
#[derive(Debug)]
pub struct Lease {
    /// The connection; `None` until it is dialled.
    pub io: Option<Stream>,
    host: Rc<Host>,
    /// The connection is idle in the pool now, and still counts as open.
    kept: bool,
    /// The connection is a tunnel's, and no longer counts against `max_conns_per_host`.
    detached: bool,
    tls: Option<Permit>,
    /// What pays for HTTP/2, until it is known that the upstream speaks HTTP/1.1.
    http2: Option<Permit>,
    /// It counts among [`Sharing::dialled`].
    is_dialled: bool,
}

impl Pool {
    /// An empty pool for at most `most` connections; the limits of `transport` are divided by `workers`.
    pub fn new(
        transport: &Transport,
        workers: usize,
        most: usize,
        budget: Rc<Budget>,
        metrics: Arc<Metrics>,
    ) -> Rc<Pool> {
        let limits = RefCell::new(Limits::of(transport, workers));
        Rc::new(Pool {
            limits,
            hosts: RefCell::default(),
            idle: Cell::new(0),
            open: Cell::new(0),
            most,
            next: Cell::new(1),
            trust: Cell::new(0),
            budget,
            metrics,
        })
    }

    /// Retires TLS connections that were verified under an earlier configuration, because its files may have changed: idle ones
    /// are closed, busy ones at the end of their exchange. Called at each reload, before [`Pool::host`]. Other connections stay.
    pub fn renew_trust(&self) {
        self.trust.set(self.trust.get().wrapping_add(1));
        for host in self.hosts.borrow().iter().filter_map(Weak::upgrade) {
            if !host.is_trusted() {
                host.retain(|_| false);
                host.retire(|_| true);
            }
        }
    }

    /// Replaces the limits; connections above them are closed as they are given back.
    pub fn set_limits(&self, transport: &Transport, workers: usize) {
        *self.limits.borrow_mut() = Limits::of(transport, workers);
    }

    /// The connections to an origin, shared by all routes with this target.
    pub fn host(self: &Rc<Pool>, origin: &Origin) -> Rc<Host> {
        let mut hosts = self.hosts.borrow_mut();
        hosts.retain(|host| host.strong_count() > 0);
        if let Some(host) = hosts
            .iter()
            .filter_map(Weak::upgrade)
            .find(|host| host.origin == *origin && host.is_trusted())
        {
            return host;
        }
        let host = Rc::new(Host {
            origin: origin.clone(),
            id: self.next.replace(self.next.get().wrapping_add(1).max(1)),
            queue: Queue::default(),
            pool: Rc::clone(self),
            trust: self.trust.get(),
            idle: RefCell::default(),
            shared: Sharing::default(),
            open: Cell::new(0),
            waited: Cell::new(false),
        });
        hosts.push(Rc::downgrade(&host));
        host
    }

    /// Closes idle connections that the upstream has closed or that have reached `idle_conn_timeout`, and, where memory is
    /// short, those with a wide buffer. Returns whether any are left. `now` is in milliseconds and may wrap.
    pub fn sweep(&self, now: u32) -> bool {
        let limit = self.limits.borrow().idle_millis;
        let is_scarce = self.budget.is_scarce();
        for host in self.hosts.borrow().iter().filter_map(Weak::upgrade) {
            // memory held by closed unix connections may be free again
            host.queue.wake();
            host.retain(|idle| {
                !(is_scarce && idle.io.receives_wide())
                    && limit.is_none_or(|limit| now.wrapping_sub(idle.since) < limit)
                    && idle.io.is_quiet()
            });
            host.retire(|connection| {
                connection.is_over()
                    || connection.is_idle()
                        && (is_scarce || limit.is_some_and(|limit| connection.idles(now) >= limit))
            });
        }
        self.idle.get() > 0
    }

    /// Closes every idle connection, to free memory.
    pub fn clear(&self) {
        for host in self.hosts.borrow().iter().filter_map(Weak::upgrade) {
            host.retain(|_| false);
            host.retire(Connection::is_idle);
        }
    }

    /// Calls `show` for every host with waiting requests, or that had some at the last call.
    pub fn each_waiting(&self, mut show: impl FnMut(&Host)) {
        for host in self.hosts.borrow().iter().filter_map(Weak::upgrade) {
            let waits = host.queue.len() > 0;
            if host.waited.replace(waits) || waits {
                show(&host);
            }
        }
    }

    /// What an HTTP/2 connection costs. Where there is no room for it, those of any host that have no request are closed:
    /// what they cost is free when hyper has let go of them, and waiting requests are woken then.
    fn http2_permit(&self) -> Option<Permit> {
        let permit = self.budget.http2_upstream();
        if permit.is_none() {
            for host in self.hosts.borrow().iter().filter_map(Weak::upgrade) {
                host.retire(Connection::is_idle);
            }
        }
        permit
    }

    /// Closes the connection that has been idle longest.
    fn evict_oldest(&self, now: u32) {
        let hosts = self.hosts.borrow();
        let age = |host: &Rc<Host>| {
            host.idle
                .borrow()
                .first()
                .map(|idle| now.wrapping_sub(idle.since))
                // the others first: an HTTP/2 connection serves many
                .or_else(|| (host.shared.idle() > 0).then_some(0))
        };
        if let Some(host) = hosts.iter().filter_map(Weak::upgrade).max_by_key(age) {
            let mut first = true;
            if host.idle.borrow().is_empty() {
                host.retire(|connection| connection.is_idle() && std::mem::take(&mut first));
            } else {
                host.retain(|_| !std::mem::take(&mut first));
            }
        }
    }

    fn count_idle(&self, more: bool) {
        let idle = if more {
            self.idle.get() + 1
        } else {
            self.idle.get() - 1
        };
        self.idle.set(idle);
        let gauge = &self.metrics.upstream_idle;
        if more {
            metrics::inc(gauge);
        } else {
            metrics::dec(gauge);
        }
    }
}

impl Host {
    /// Takes an idle connection, or the right to open a new one; `None` where neither is available: wait in `queue`.
    pub fn checkout(self: &Rc<Host>) -> Option<Checkout> {
        if self.origin.http2 {
            if let Some(stream) = self.stream() {
                return Some(Checkout::Stream(stream));
            }
            if self.shared.is_expected(self.queue.len()) {
                return None;
            }
        }
        while let Some(mut idle) = self.pop() {
            if idle.io.is_quiet() {
                let mut lease = self.lease();
                lease.io = Some(idle.io);
                return Some(Checkout::Reused(lease));
            }
            self.close();
        }
        self.room().map(Checkout::Room)
    }

    /// Takes the right to open a new connection, for a retry: an idle connection has just turned out to be closed.
    pub fn room(self: &Rc<Host>) -> Option<Lease> {
        if self.open.get() >= self.pool.limits.borrow().per_host {
            return None;
        }
        if matches!(self.origin.address, Address::Unix(_)) && self.pool.budget.is_stuffed() {
            return None;
        }
        let http2 = if self.origin.http2 {
            Some(self.pool.http2_permit()?)
        } else {
            None
        };
        if self.pool.open.get() >= self.pool.most {
            // no descriptor is left: close the oldest idle connection of any host
            self.pool.evict_oldest(0);
        }
        self.open.set(self.open.get() + 1);
        self.pool.open.set(self.pool.open.get() + 1);
        metrics::inc(&self.pool.metrics.upstream_open);
        let mut lease = self.lease();
        if http2.is_some() {
            self.shared.dials(true);
            lease.http2 = http2;
            lease.is_dialled = true;
        }
        Some(lease)
    }

    /// Takes a stream of an HTTP/2 connection that has one to spare.
    fn stream(self: &Rc<Host>) -> Option<StreamLease> {
        let connection = self.shared.find()?;
        if connection.is_idle() {
            self.pool.count_idle(false);
        }
        Some(self.stream_of(connection))
    }

    fn stream_of(self: &Rc<Host>, connection: Rc<Connection>) -> StreamLease {
        connection.begins();
        StreamLease {
            connection,
            host: Rc::clone(self),
        }
    }

    /// Lets go of HTTP/2 connections: each is closed when the last of its requests is over.
    fn retire(&self, goes: impl FnMut(&Connection) -> bool) {
        // dropped behind the borrow, for their tasks are woken
        let gone = self.shared.retire(goes);
        for connection in &gone {
            if connection.is_idle() {
                self.pool.count_idle(false);
            }
        }
    }

    /// Whether an HTTP/2 connection that has no request any more is kept.
    fn keeps(&self, connection: &Connection) -> bool {
        let limits = *self.pool.limits.borrow();
        let waited_for = self.queue.len() > 0;
        !connection.is_over()
            && self.is_trusted()
            && limits.idle_millis != Some(0)
            && (waited_for || !self.pool.budget.is_scarce())
            && (waited_for || self.shared.idle() <= limits.idle_per_host)
            && self.pool.idle.get() < limits.idle.max(usize::from(waited_for))
    }

    fn lease(self: &Rc<Host>) -> Lease {
        let tls = self
            .origin
            .tls
            .as_ref()
            .map(|_| self.pool.budget.force(TLS_SESSION));
        Lease {
            io: None,
            host: Rc::clone(self),
            kept: false,
            detached: false,
            tls,
            http2: None,
            is_dialled: false,
        }
    }

    /// Whether its connections are plain, or were verified under the current configuration.
    fn is_trusted(&self) -> bool {
        self.origin.tls.is_none() || self.trust == self.pool.trust.get()
    }

    fn pop(&self) -> Option<Idle> {
        let idle = self.idle.borrow_mut().pop()?;
        self.pool.count_idle(false);
        Some(idle)
    }

    fn put(&self, io: Stream, now: u32) -> Result<(), Stream> {
        let limits = *self.pool.limits.borrow();
        let waited_for = self.queue.len() > 0;
        let is_scarce = self.pool.budget.is_scarce();
        let is_dear = is_scarce && (io.receives_wide() || !waited_for);
        let is_of_use = !is_dear && self.is_trusted();
        if self.open.get() > limits.per_host || limits.idle_millis == Some(0) || !is_of_use {
            return Err(io);
        }
        if !waited_for && (self.idle.borrow().len() >= limits.idle_per_host || limits.idle == 0) {
            return Err(io);
        }
        if self.pool.idle.get() >= limits.idle {
            self.pool.evict_oldest(now);
        }
        let tls = if self.origin.tls.is_some() {
            TLS_SESSION
        } else {
            0
        };
        let price = IDLE_UPSTREAM + tls;
        let Some(permit) = self.pool.budget.take_inside(price) else {
            return Err(io);
        };
        self.idle.borrow_mut().push(Idle {
            io,
            since: now,
            _permit: permit,
        });
        self.pool.count_idle(true);
        self.queue.wake();
        Ok(())
    }

    fn close(&self) {
        self.vanish();
        self.make_room();
    }

    /// Counts a connection as closed.
    fn vanish(&self) {
        self.pool.open.set(self.pool.open.get() - 1);
        metrics::dec(&self.pool.metrics.upstream_open);
    }

    /// Counts one connection less against `max_conns_per_host`, and wakes a waiting request.
    fn make_room(&self) {
        self.open.set(self.open.get() - 1);
        self.queue.wake();
    }

    fn retain(&self, mut keep: impl FnMut(&mut Idle) -> bool) {
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        idle.retain_mut(&mut keep);
        let gone = before - idle.len();
        if idle.is_empty() {
            idle.shrink_to_fit();
        }
        drop(idle);
        for _ in 0..gone {
            self.pool.count_idle(false);
            self.close();
        }
    }
}

impl StreamLease {
    /// The connection takes no further requests.
    pub fn retire(&self) {
        self.connection.wear();
        self.host.retire(Connection::is_worn);
    }
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        self.connection.ends();
        if self.connection.is_idle() && self.host.shared.has(&self.connection) {
            let is_kept = self.host.keeps(&self.connection);
            self.host.pool.count_idle(true);
            if !is_kept {
                self.retire();
            }
        }
        self.host.queue.wake();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.open.set(self.pool.open.get() - 1);
        metrics::dec(&self.pool.metrics.upstream_open);
        if let Some(host) = self.host.upgrade() {
            host.make_room();
        }
        // requests to other hosts may wait for what it cost
        for host in self.pool.hosts.borrow().iter().filter_map(Weak::upgrade) {
            host.queue.wake();
        }
    }
}

impl Lease {
    /// Begins HTTP/2 on the connection that was dialled, and takes its first stream; `scratch` is the worker's.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn share(
        mut self,
        io: Stream,
        scratch: &Rc<RefCell<Box<[u8]>>>,
        table: &Rc<ConnectionTable>,
    ) -> hyper::Result<StreamLease> {
        let host = Rc::clone(&self.host);
        let place = Place {
            host: Rc::downgrade(&host),
            pool: Rc::clone(&host.pool),
            _permits: [self.http2.take(), self.tls.take()],
        };
        // what counts it from here on is its place
        self.kept = true;
        let limits = client::Limits::new(host.pool.budget.plan().small);
        let connection = Connection::begin(io, Box::new(place), limits, scratch, table).await?;
        host.shared.add(Rc::clone(&connection));
        let stream = host.stream_of(connection);
        self.ends_dial(false);
        Ok(stream)
    }

    /// Keeps the connection that was dialled for HTTP/1.1.
    pub fn keep(&mut self, io: Stream) {
        self.io = Some(io);
        self.http2 = None;
        self.ends_dial(true);
    }

    fn ends_dial(&mut self, speaks_http1: bool) {
        if std::mem::take(&mut self.is_dialled) {
            self.host.shared.dials(false);
            self.host.shared.speaks_http1.set(speaks_http1);
            self.host.queue.wake();
        }
    }

    /// Returns the connection to the pool; only if request and response were transferred completely.
    pub fn give_back(mut self, now: u32) {
        let budget = &self.host.pool.budget;
        if let Some(io) = &mut self.io
            && budget.plan().tight
        {
            io.end_message();
            // one that has answered without having read the request holds what nothing pays for from now on
            if io.unsent() > NARROW || io.is_too_wide() {
                return;
            }
        }
        if let Some(io) = self.io.take() {
            self.kept = self.host.put(io, now).is_ok();
        }
    }

    /// Makes the connection a tunnel's, which does not count against `max_conns_per_host`.
    pub fn detach(&mut self) {
        if !std::mem::replace(&mut self.detached, true) {
            self.host.make_room();
        }
    }

    /// The budget that pays for it.
    pub fn budget(&self) -> &Rc<Budget> {
        &self.host.pool.budget
    }

    /// The host that it connects to.
    pub fn host(&self) -> &Rc<Host> {
        &self.host
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_dialled {
            self.host.shared.dials(false);
        }
        // the unsent rest of an abandoned request must not stay in the kernel
        if let Some(io) = &self.io
            && self.host.pool.budget.plan().tight
        {
            socket::reset_unsent(&io.socket());
        }
        match (self.kept, self.detached) {
            (true, _) => {}
            (false, true) => self.host.vanish(),
            (false, false) => self.host.close(),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.retain(|_| false);
        self.retire(|_| true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::concurrency::{ConcurrencyLimit, ConcurrencyPermit};
    use std::{
        future::Future,
        os::fd::AsRawFd,
        pin::pin,
        task::{Context, Poll, Waker},
        time::SystemTime,
    };

    use tokio::{net::UnixStream, runtime};

    use crate::{
        client_group::Group,
        memory::{plan::Plan, queue::Claim},
        route::{Address, Tls},
        yield_budget::tests::Count,
    };

    const CLAIM: Claim = Claim {
        group: Group::UNIX,
        since: 0,
        is_whole: true,
    };

    const WIDE: Limits = Limits {
        idle: usize::MAX,
        idle_per_host: usize::MAX,
        per_host: usize::MAX,
        idle_millis: None,
    };

    fn pool(limits: Limits) -> Rc<Pool> {
        Rc::new(Pool {
            limits: RefCell::new(limits),
            hosts: RefCell::default(),
            idle: Cell::new(0),
            open: Cell::new(0),
            most: usize::MAX,
            next: Cell::new(1),
            trust: Cell::new(0),
            budget: Budget::new(Plan::new(None, 1, None)),
            metrics: Arc::new(Metrics::new(SystemTime::UNIX_EPOCH)),
        })
    }

    fn origin(name: &str) -> Origin {
        Origin {
            address: Address::Tcp(name.to_owned(), 80),
            tls: None,
            http2: false,
        }
    }

    /// Runs a test in a tokio runtime, which sockets need.
    fn with_sockets(test: impl FnOnce()) {
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        runtime.block_on(async { test() });
    }

    /// A lease with a connection, as if dialled, and the other end of it.
    fn dialled(host: &Rc<Host>) -> (Lease, UnixStream) {
        let mut lease = host.room().expect("the host is below its limit");
        let (ours, theirs) = UnixStream::pair().unwrap();
        lease.io = Some(Stream::unix(ours, None));
        (lease, theirs)
    }

    fn descriptor(lease: &Lease) -> i32 {
        lease.io.as_ref().unwrap().socket().as_raw_fd()
    }

    #[test]
    fn a_connection_holds_its_price_and_a_session_its_own() {
        with_sockets(|| {
            let tls = Tls {
                server_name: "a".to_owned(),
                ca_file: None,
                insecure_skip_verify: false,
            };
            for (tls, session) in [(None, 0), (Some(tls), TLS_SESSION)] {
                let pool = pool(WIDE);
                let host = pool.host(&Origin { tls, ..origin("a") });
                let (lease, _theirs) = dialled(&host);
                assert_eq!(pool.budget.spent(), session, "busy");
                lease.give_back(0);
                assert_eq!(pool.budget.spent(), IDLE_UPSTREAM + session, "idle");
                let reused = host.checkout();
                assert!(matches!(reused, Some(Checkout::Reused(_))));
                assert_eq!(pool.budget.spent(), session, "busy again");
                drop(reused);
                assert_eq!((pool.budget.spent(), host.open.get()), (0, 0), "closed");
            }
        });
    }

    #[test]
    fn no_more_are_kept_than_allowed() {
        with_sockets(|| {
            for (name, kept, limits) in [
                ("no limits", 3, WIDE),
                (
                    "of a host",
                    2,
                    Limits {
                        idle_per_host: 2,
                        ..WIDE
                    },
                ),
                ("over all", 2, Limits { idle: 2, ..WIDE }),
                ("none idle", 0, Limits { idle: 0, ..WIDE }),
                (
                    "no time",
                    0,
                    Limits {
                        idle_millis: Some(0),
                        ..WIDE
                    },
                ),
                (
                    "open, as many as are allowed",
                    3,
                    Limits {
                        per_host: 3,
                        ..WIDE
                    },
                ),
                (
                    "open, more than are allowed now",
                    2,
                    Limits {
                        per_host: 2,
                        ..WIDE
                    },
                ),
            ] {
                let pool = pool(WIDE);
                let host = pool.host(&origin("a"));
                let lent: Vec<_> = (0..3).map(|_| dialled(&host)).collect();
                *pool.limits.borrow_mut() = limits;
                let last = descriptor(&lent[2].0);
                let mut theirs = Vec::new();
                for (now, (lease, other)) in (1..).zip(lent) {
                    lease.give_back(now);
                    theirs.push(other);
                }
                assert_eq!((pool.idle.get(), host.open.get()), (kept, kept), "{name}");
                if name == "of a host" || kept == 0 {
                    continue;
                }
                let Some(Checkout::Reused(lease)) = host.checkout() else {
                    panic!("{name}: none is idle")
                };
                assert_eq!(descriptor(&lease), last, "{name}: the last one first");
            }
        });
    }

    #[test]
    fn the_oldest_idle_connection_of_any_host_is_closed_for_a_newer_one() {
        with_sockets(|| {
            let pool = pool(Limits { idle: 2, ..WIDE });
            let (one, other) = (pool.host(&origin("a")), pool.host(&origin("b")));
            assert!(Rc::ptr_eq(&one, &pool.host(&origin("a"))) && one.id != other.id);
            let lent = [dialled(&one), dialled(&other), dialled(&one)];
            let [(first, _a), (second, _b), (third, _c)] = lent;
            first.give_back(10);
            second.give_back(5);
            third.give_back(20);
            assert_eq!((one.idle.borrow().len(), other.open.get()), (2, 0));
        });
    }

    #[test]
    fn an_idle_connection_is_closed_at_its_time_out_also_where_the_clock_wraps() {
        with_sockets(|| {
            for since in [0, 50, u32::MAX - 10] {
                let pool = pool(Limits {
                    idle_millis: Some(100),
                    ..WIDE
                });
                let host = pool.host(&origin("a"));
                let (lease, _theirs) = dialled(&host);
                lease.give_back(since);
                assert!(pool.sweep(since.wrapping_add(99)), "since {since}");
                assert!(!pool.sweep(since.wrapping_add(100)), "since {since}");
                assert_eq!(host.open.get(), 0);
            }
        });
    }

    #[test]
    fn a_waiting_request_gets_a_returned_connection_even_where_none_may_be_idle() {
        with_sockets(|| {
            let pool = pool(Limits {
                idle: 0,
                per_host: 1,
                ..WIDE
            });
            let host = pool.host(&origin("a"));
            let (lease, _theirs) = dialled(&host);
            let waiting = || {
                let mut found = Vec::new();
                pool.each_waiting(|host| found.push(host.id));
                found
            };
            assert!(host.room().is_none() && waiting().is_empty());
            let mut context = Context::from_waker(Waker::noop());
            let mut next = pin!(host.queue.until(CLAIM, || host.checkout()));
            assert!(next.as_mut().poll(&mut context).is_pending());
            assert_eq!(waiting(), [host.id]);
            let same = descriptor(&lease);
            lease.give_back(0);
            let Poll::Ready(Checkout::Reused(lease)) = next.as_mut().poll(&mut context) else {
                panic!("the connection should be reused")
            };
            assert_eq!(descriptor(&lease), same);
        });
    }

    #[test]
    fn connections_verified_before_a_reload_are_not_used_after_it() {
        with_sockets(|| {
            for is_tls in [true, false] {
                let pool = pool(WIDE);
                let tls = is_tls.then(Tls::default);
                let origin = Origin { tls, ..origin("a") };
                let before = pool.host(&origin);
                assert!(Rc::ptr_eq(&before, &pool.host(&origin)), "shared by routes");
                let (idle, _one) = dialled(&before);
                let (busy, _other) = dialled(&before);
                idle.give_back(0);
                pool.renew_trust();
                let after = pool.host(&origin);
                assert_eq!(Rc::ptr_eq(&before, &after), !is_tls);
                assert_eq!(pool.idle.get(), usize::from(!is_tls), "idle ones");
                // an exchange that began before the reload continues with its own configuration
                busy.give_back(1);
                let (late, _third) = dialled(&before);
                late.give_back(2);
                let kept = if is_tls { 0 } else { 3 };
                assert_eq!((pool.idle.get(), before.open.get()), (kept, kept));
            }
        });
    }

    #[test]
    fn the_limit_of_connections_is_kept() {
        let places = ConcurrencyLimit::new(Some(3), 2);
        let taken: Vec<ConcurrencyPermit> = std::iter::from_fn(|| places.take()).collect();
        assert_eq!(taken.len(), 2, "a worker's share, rounded up");
        places.set_limit(Some(3), 1);
        assert!(places.take().is_some(), "one more, and it is free again");
        drop(taken);
        assert_eq!(std::iter::from_fn(|| places.take()).take(9).count(), 9);
    }

    #[test]
    fn gauges_say_how_many_connections_are_open_and_idle() {
        with_sockets(|| {
            let pool = pool(WIDE);
            let host = pool.host(&origin("a"));
            let gauges = || {
                let gauges = [&pool.metrics.upstream_open, &pool.metrics.upstream_idle];
                gauges.map(|gauge| gauge.load(std::sync::atomic::Ordering::Relaxed))
            };
            let ((first, _one), (second, _two)) = (dialled(&host), dialled(&host));
            assert_eq!(gauges(), [2, 0]);
            first.give_back(0);
            assert_eq!(gauges(), [2, 1]);
            let again = host.checkout();
            assert_eq!(gauges(), [2, 0]);
            drop(again);
            assert_eq!(gauges(), [1, 0]);
            second.give_back(0);
            pool.clear();
            assert_eq!(gauges(), [0, 0]);
        });
    }

    #[test]
    fn an_idle_connection_of_another_host_gives_its_descriptor() {
        with_sockets(|| {
            let mut pool = pool(WIDE);
            Rc::get_mut(&mut pool).unwrap().most = 1;
            let (one, other) = (pool.host(&origin("a")), pool.host(&origin("b")));
            let (lease, _theirs) = dialled(&one);
            lease.give_back(0);
            let _lease = other.room().expect("a descriptor is free");
            assert_eq!((pool.open.get(), pool.idle.get()), (1, 0));
        });
    }

    #[test]
    fn a_request_that_waits_is_woken_when_a_connection_or_its_place_is_free() {
        with_sockets(|| {
            let pool = pool(Limits {
                per_host: 1,
                ..WIDE
            });
            let host = pool.host(&origin("a"));
            for is_given_back in [true, false] {
                let (mut lease, _theirs) = dialled(&host);
                let count = Arc::new(Count::default());
                let waker = Waker::from(Arc::clone(&count));
                let mut wait = pin!(host.queue.until(CLAIM, || host.checkout()));
                let mut context = Context::from_waker(&waker);
                assert!(wait.as_mut().poll(&mut context).is_pending());
                if is_given_back {
                    lease.give_back(0);
                } else {
                    lease.detach();
                }
                assert_eq!(count.take(), 1);
                assert!(wait.as_mut().poll(&mut context).is_ready());
            }
        });
    }
}
