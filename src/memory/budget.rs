//! The memory that clients and upstreams may use: every use takes a [`Permit`] first, or the request waits for one.
//!
//! The limit comes from the cgroup or the configuration, and each worker has a share. Bytes are given back when the permit
//! is dropped. Without a limit no request waits. The prices include the kernel's part of a connection (socket, buffers,
//! epoll entry), because the cgroup counts it too.

use std::{
    cell::{Cell, RefCell},
    fmt,
    ops::Deref,
    os::fd::OwnedFd,
    rc::Rc,
};

use crate::{memory::queue::Queue, sys::socket};

/// The price of an idle client connection: 0.6 kB in the process, 3.8 kB in the kernel.
pub const CONNECTION: u64 = 4_400;

/// The price of a request in progress: its state and one small buffer (9 kB), the upstream's socket, and the usual content
/// of the queues of both sockets.
pub const EXCHANGE: u64 = 42_000;

/// `SO_SNDBUF` and `SO_RCVBUF` where memory is tight; the kernel doubles it. It is small because bytes that a client sends
/// before its exchange, or does not read, have no permit, and all clients may do this at the same time.
pub const NARROW: usize = 4 * 1024;

/// Bytes that exchanges, heads and waiting requests must leave free, so that new connections can always be accepted.
const ACCEPT_RESERVE: u64 = 32 * CONNECTION;

/// Bytes of a head, of a request or a response, that the price of an exchange includes.
pub const LARGE_HEAD: usize = 4 * 1024;

/// Capacities of buffers for larger heads. They are few because the allocator keeps pages for each size that was used: heads
/// of every length between 4 and 96 kB would keep pages of ten sizes.
const STEPS: [usize; 5] = [16 * 1024, 32 * 1024, 64 * 1024, 96 * 1024, 128 * 1024];

/// `SO_SNDBUF` of the log where it is a socket and memory is tight: some hundred lines that the journal has not read. The
/// kernel doubles it.
const LOG_QUEUE: usize = 64 * 1024;

/// Bytes of the largest response head: `MAX_HEAD` in `http1/response_head.rs`, which is above this module.
const LARGEST_HEAD: usize = 96 * 1024;

/// The price of up to [`NARROW`] bytes that were sent to a client and not acknowledged: the kernel keeps them in buffers of
/// up to twice their size, and keeps the socket of a closed connection until then.
pub const UNSENT: u64 = 12_000;

/// The price of a TLS handshake besides its session: a certificate message of 64 kB in records, and once more when it is
/// parsed.
const HANDSHAKE: u64 = 160_000;

/// What a TLS session adds to a client's connection at rest: 4.4 kB were measured. The certificate of a client, where it is
/// asked for one, is not in it.
pub const TLS_CLIENT: u64 = 4_500;

/// What a handshake with a client may hold: 18 kB of what the client sends, once as it comes; what it is answered; and the
/// keys as they are agreed on. 11 to 13 kB were measured with usual clients.
const CLIENT_HANDSHAKE: u64 = 34_000;

/// What TLS adds to an exchange: a record for the client where sockets are narrow and where they are not.
const RECORD_OUT: (u64, u64) = (5_000, 17_000);

/// The same for a request with a body: a record of the client, encrypted as it comes and decrypted as it is read.
const RECORD_IN: u64 = 20_000;

/// What a unix socket costs that is over but not read: itself and its queue's own.
const UNREAD: u64 = 2_000;

/// Bounds the requests that may wait for memory although there is none for waiting: 200 kB where sockets are narrow.
pub const SPARED: usize = 16;

/// The price of an idle upstream connection.
pub const IDLE_UPSTREAM: u64 = 4_400;

/// The price of a TLS session of an upstream connection: 24 kB were measured, idle and busy.
pub const TLS_SESSION: u64 = 24_000;

/// What a hostile HTTP/2 connection can make the process hold beside its streams, which pay for themselves, where memory is
/// tight; and where it is not. Measured: see docs/memory.md.
pub const HTTP2_CONNECTION: u64 = 1_000_000;
pub const HTTP2_CONNECTION_WIDE: u64 = 2_500_000;

/// The price of an HTTP/2 connection to an upstream where memory is tight, and where it is not: 50 kB that hyper holds at
/// rest, the windows of all its streams twice, because what comes pins the buffers that it was read into, and the rest for
/// heads and for what small frames cost besides. Its streams pay for themselves.
pub const HTTP2_UPSTREAM: u64 = 600_000;
pub const HTTP2_UPSTREAM_WIDE: u64 = 2_000_000;

/// What the program needs for itself: the code that serves requests (1.5 MB of page cache, or it is read again and
/// again), the allocator, the runtime.
const BASE: u64 = 2_000_000;

/// Moves a head into a buffer of the size of [`step`], because it may have grown to a larger one.
pub fn in_step(head: Vec<u8>) -> Vec<u8> {
    if head.capacity() <= LARGE_HEAD {
        return head;
    }
    let mut text = Vec::with_capacity(step(head.len()));
    text.extend_from_slice(&head);
    text
}

/// What the limit allows; fixed at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Bytes that this worker's permits may have in all; `None` = no limit.
    pub pool: Option<u64>,
    /// Maximum of client connections of this worker.
    pub connections: usize,
    /// `SO_SNDBUF` and `SO_RCVBUF` of every socket; `None` = the kernel tunes them.
    pub socket_buffer: Option<usize>,
    /// The larger size for a long body with a permit ([`Budget::width`]); `None` = buffers are not enlarged.
    pub wide_buffer: Option<usize>,
    /// `TCP_NOTSENT_LOWAT`: bytes that may wait in the kernel without having been sent.
    pub unsent: u32,
    /// Whether the limit is below 64 MiB, so that buffers are as small as possible.
    pub tight: bool,
}

impl Plan {
    /// The plan for one worker of a process with `limit` bytes; `max_connections` is the configured maximum of all workers,
    /// `None` = what memory allows.
    #[cfg(test)]
    pub fn new(limit: Option<u64>, workers: usize, max_connections: Option<usize>) -> Plan {
        Plan::divide(0, limit, workers, max_connections).0
    }

    /// Like [`Plan::new`], where the configuration takes `held` bytes; `None` where it leaves less than two exchanges and eight
    /// connections need.
    pub fn beside(
        held: u64,
        limit: Option<u64>,
        workers: usize,
        max_connections: Option<usize>,
    ) -> Option<Plan> {
        let (plan, is_enough) = Plan::divide(held, limit, workers, max_connections);
        (is_enough || held == 0).then_some(plan)
    }

    /// The plan, and whether the limit allows the smallest one.
    fn divide(
        held: u64,
        limit: Option<u64>,
        workers: usize,
        max_connections: Option<usize>,
    ) -> (Plan, bool) {
        let workers_wide = workers as u64;
        let configured = max_connections.map_or(usize::MAX, |all| all.div_ceil(workers).max(1));
        let Some(limit) = limit else {
            let plan = Plan {
                pool: None,
                connections: configured,
                socket_buffer: None,
                wide_buffer: None,
                unsent: 128 * 1024,
                tight: false,
            };
            return (plan, true);
        };
        // a twelfth stays free for what has no permit: fragmentation, bursts of packets, page tables
        let pool = limit
            .saturating_sub(BASE + held + 100_000 * (workers_wide - 1))
            .saturating_sub(limit / 12)
            / workers_wide;
        let least = CONNECTION * 8 + EXCHANGE * 2;
        let is_enough = pool >= least;
        let pool = pool.max(least);
        let connections = usize::try_from(pool * 3 / 8 / CONNECTION)
            .unwrap_or(usize::MAX)
            .clamp(8, configured.max(8));
        let share = usize::try_from(limit / 640).unwrap_or(usize::MAX);
        let share = share.clamp(16 * 1024, 256 * 1024);
        let tight = limit < 64 << 20;
        let plan = Plan {
            pool: Some(pool),
            connections: connections.min(configured),
            socket_buffer: (limit < 512 << 20).then_some(if tight { NARROW } else { share }),
            wide_buffer: tight.then_some(share),
            unsent: if tight { 16 * 1024 } else { 128 * 1024 },
            tight,
        };
        (plan, is_enough)
    }

    /// `SO_SNDBUF` of the log where it is a socket; `None` = the kernel's default.
    pub fn log_queue(&self) -> Option<usize> {
        self.tight.then_some(LOG_QUEUE)
    }

    /// Also bounds connections by the process's descriptors, because each may need a second one for its upstream. Returns the
    /// maximum of this worker's upstream connections, too.
    pub fn within_descriptors(self, descriptors: u64, workers: usize) -> (Plan, usize) {
        // for listeners, epoll, the log, look-ups, and files read at a reload
        let own = 16 + 4 * workers as u64 + (descriptors / 16).min(64);
        let share = descriptors.saturating_sub(own) / (2 * workers as u64);
        let share = usize::try_from(share).unwrap_or(usize::MAX).max(2);
        let plan = Plan {
            connections: self.connections.min(share),
            ..self
        };
        (plan, share)
    }

    /// How many exchanges fit beside the maximum of connections; `None` = no limit.
    pub fn exchanges(&self) -> Option<u64> {
        let pool = self.pool?;
        Some((pool - (self.connections as u64 * CONNECTION).min(pool)) / EXCHANGE)
    }
}

/// The budget of one worker.
#[derive(Debug)]
pub struct Budget {
    plan: Plan,
    spent: Cell<u64>,
    /// Exchanges that hold a permit, and how many have been admitted since the start.
    exchanges: Cell<usize>,
    admitted: Cell<u64>,
    /// Bytes held by unfinished request heads.
    heads: Cell<u64>,
    /// Bytes held by wide buffers.
    widths: Cell<u64>,
    /// What HTTP/2 connections cost.
    http2: Cell<u64>,
    /// Heads of responses that are larger than the price of an exchange foresees.
    pub large_heads: Fund,
    /// TLS handshakes with upstreams in progress.
    pub handshakes: Fund,
    /// TLS handshakes with clients in progress.
    pub client_handshakes: Fund,
    /// Waiters that hold more than was left.
    spared: Cell<usize>,
    /// Memory was refused since [`Budget::was_refused`] was called last.
    refused: Cell<bool>,
    /// Memory in use was near the limit: no new exchange is admitted until it is lower.
    pressed: Cell<bool>,
    /// Measures whether memory in use is near the limit; called between two ticks where much is spent.
    gauge: RefCell<Option<Gauge>>,
    /// Closed unix sockets whose bytes the other side has not read, each with its permit.
    unread: RefCell<Vec<(OwnedFd, Permit)>>,
    /// Requests that wait for an exchange's permit.
    pub queue: Queue,
    /// Tasks that wait for a connection's slot; woken whenever bytes are given back.
    pub room: Rc<Queue>,
}

/// Bytes taken from a [`Budget`]; given back on drop.
#[derive(Debug)]
pub struct Permit {
    budget: Rc<Budget>,
    bytes: u64,
    purpose: Purpose,
}

/// The purpose of a permit, where it is counted separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Head,
    Spared,
    Exchange,
    Width,
    Http2,
    LargeHead,
    Handshake,
    ClientHandshake,
    Other,
}

/// A part of a budget for one purpose, and the requests that wait for it.
#[derive(Debug, Default)]
pub struct Fund {
    spent: Cell<u64>,
    /// Requests that wait for a permit of this fund.
    pub queue: Queue,
}

impl Budget {
    /// A budget with nothing spent.
    pub fn new(plan: Plan) -> Rc<Budget> {
        Rc::new(Budget {
            plan,
            spent: Cell::new(0),
            exchanges: Cell::new(0),
            admitted: Cell::new(0),
            heads: Cell::new(0),
            widths: Cell::new(0),
            http2: Cell::new(0),
            large_heads: Fund::default(),
            handshakes: Fund::default(),
            client_handshakes: Fund::default(),
            spared: Cell::new(0),
            refused: Cell::new(false),
            pressed: Cell::new(false),
            gauge: RefCell::default(),
            unread: RefCell::default(),
            queue: Queue::default(),
            room: Rc::default(),
        })
    }

    /// Keeps a closed unix socket with a permit for the bytes that the other side has not read: the kernel charges them to this
    /// process until they are read or the other side closes. Without a limit nothing is kept.
    pub fn keep_unread(self: &Rc<Budget>, socket: OwnedFd) {
        if self.plan.pool.is_some() {
            let price = UNREAD + unsent_of(&socket) as u64;
            self.unread.borrow_mut().push((socket, self.force(price)));
        }
    }

    /// Drops the sockets whose bytes were read meanwhile; returns whether any are left. Called at each tick.
    pub fn release_unread(&self) -> bool {
        // dropped after the borrow: a permit wakes waiting tasks when it is dropped
        let over: Vec<(OwnedFd, Permit)> = {
            let mut unread = self.unread.borrow_mut();
            let over = unread
                .extract_if(.., |(socket, _)| unsent_of(socket) == 0)
                .collect();
            if unread.is_empty() {
                unread.shrink_to_fit();
            }
            over
        };
        drop(over);
        !self.unread.borrow().is_empty()
    }

    /// Whether closed unix sockets hold more than a quarter of the budget, because the upstream has stopped reading: then no
    /// new unix connection is made.
    pub fn is_stuffed(&self) -> bool {
        let paid = |(_, permit): &(OwnedFd, Permit)| permit.bytes;
        let held: u64 = self.unread.borrow().iter().map(paid).sum();
        self.plan.pool.is_some_and(|pool| held > pool / 4)
    }

    /// Whether they do, and the process at the other side of this unix socket has left some of them: with another client
    /// of it there would be more.
    pub fn is_stuffed_by(&self, client: &socket2::Socket) -> bool {
        self.is_stuffed() && {
            let process = socket::peer_process(client);
            let of = |socket: &OwnedFd| socket::peer_process(&socket2::SockRef::from(socket));
            let unread = self.unread.borrow();
            unread.iter().any(|(socket, _)| of(socket) == process)
        }
    }

    /// What it was made from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes in use.
    pub fn spent(&self) -> u64 {
        self.spent.get()
    }

    /// Takes bytes; `None` where they are not available.
    pub fn take(self: &Rc<Budget>, bytes: u64) -> Option<Permit> {
        let spent = self.spent.get() + bytes;
        if self.plan.pool.is_some_and(|pool| spent > pool) {
            return None;
        }
        Some(self.force(bytes))
    }

    /// Like [`Budget::take`], but leaves the last bytes for new connections, which may ask for health.
    pub fn take_inside(self: &Rc<Budget>, bytes: u64) -> Option<Permit> {
        let spent = self.spent.get() + bytes + ACCEPT_RESERVE;
        if self.plan.pool.is_some_and(|pool| spent > pool) {
            return None;
        }
        Some(self.force(bytes))
    }

    /// Takes bytes even if they are not available, for what cannot be refused any more.
    pub fn force(self: &Rc<Budget>, bytes: u64) -> Permit {
        self.spent.set(self.spent.get() + bytes);
        Permit {
            budget: Rc::clone(self),
            bytes,
            purpose: Purpose::Other,
        }
    }

    /// Takes bytes for an unfinished request head. All unfinished heads together get a fifth of the budget, so that slow
    /// clients with large heads do not use it up.
    pub fn head(self: &Rc<Budget>, bytes: u64) -> Option<Permit> {
        let heads = self.heads.get() + bytes;
        if self.plan.pool.is_some_and(|pool| heads > pool / 5) {
            return None;
        }
        let Some(mut permit) = self.take_inside(bytes) else {
            self.refused.set(true);
            return None;
        };
        self.heads.set(heads);
        permit.purpose = Purpose::Head;
        Some(permit)
    }

    /// Takes the price of a request that waits for an exchange's permit: its head, and what may follow into the socket. A few
    /// may wait even if there is no memory for waiting, because relief only begins when a request waits: this one may if fewer
    /// than `spared` do ([`SPARED`] at most).
    pub fn waiter(self: &Rc<Budget>, head: usize, spared: usize) -> Option<Permit> {
        let queue = self.plan.socket_buffer.unwrap_or(0);
        let price = (head + 2 * queue) as u64;
        if let Some(permit) = self.head(price) {
            return Some(permit);
        }
        if head > LARGE_HEAD || self.spared.get() >= spared {
            self.refused.set(true);
            return None;
        }
        self.spared.set(self.spared.get() + 1);
        let mut permit = self.force(price);
        permit.purpose = Purpose::Spared;
        Some(permit)
    }

    /// Whether memory was refused since the last call.
    pub fn was_refused(&self) -> bool {
        self.refused.replace(false)
    }

    /// Takes the price of a wide buffer of one socket for a long body, if the plan has wide buffers. All of them together get a
    /// quarter of the budget, and nothing of the last quarter. Returns the buffer's size, too.
    pub fn width(self: &Rc<Budget>) -> Option<(usize, Permit)> {
        let size = self.plan.wide_buffer?;
        let price = 2 * size as u64;
        let widths = self.widths.get() + price;
        if self.plan.pool.is_some_and(|pool| widths > pool / 4) || self.is_scarce_with(price) {
            return None;
        }
        self.widths.set(widths);
        let mut permit = self.force(price);
        permit.purpose = Purpose::Width;
        Some((size, permit))
    }

    /// Takes what an HTTP/2 connection costs, with so many bytes more for its TLS. All of them together get half of the
    /// budget.
    pub fn http2(self: &Rc<Budget>, records: u64) -> Option<Permit> {
        let bytes = self.http2_price() + records;
        let all = self.http2.get() + bytes;
        if self.plan.pool.is_some_and(|pool| all > pool / 2) {
            return None;
        }
        let mut permit = self.take_inside(bytes)?;
        self.http2.set(all);
        permit.purpose = Purpose::Http2;
        Some(permit)
    }

    /// Takes what an HTTP/2 connection to an upstream costs.
    pub fn http2_upstream(self: &Rc<Budget>) -> Option<Permit> {
        self.take_inside(if self.plan.tight {
            HTTP2_UPSTREAM
        } else {
            HTTP2_UPSTREAM_WIDE
        })
    }

    /// Whether another HTTP/2 connection would fit now.
    pub fn has_room_for_http2(&self) -> bool {
        let price = self.http2_price();
        self.plan.pool.is_none_or(|pool| {
            self.http2.get() + price <= pool / 2
                && self.spent.get() + price + ACCEPT_RESERVE <= pool
        })
    }

    fn http2_price(&self) -> u64 {
        if self.plan.tight {
            HTTP2_CONNECTION
        } else {
            HTTP2_CONNECTION_WIDE
        }
    }

    /// Takes what the largest response head costs while it is read; [`Permit::resize`] gives back what a smaller one does
    /// not need, once its size is known. All of it is taken before the first byte beyond [`LARGE_HEAD`], because heads
    /// that grow step by step would end up waiting for each other.
    pub fn large_head(self: &Rc<Budget>) -> Option<Permit> {
        self.take_from(
            &self.large_heads,
            Purpose::LargeHead,
            head_price(LARGEST_HEAD),
        )
    }

    /// Takes bytes for a response head that cannot be refused any more.
    pub fn force_large_head(self: &Rc<Budget>, bytes: u64) -> Permit {
        let mut permit = self.force(bytes);
        permit.purpose = Purpose::LargeHead;
        self.large_heads
            .spent
            .set(self.large_heads.spent.get() + bytes);
        permit
    }

    /// Takes what a TLS handshake with a client holds until it is over.
    pub fn client_handshake(self: &Rc<Budget>) -> Option<Permit> {
        let fund = &self.client_handshakes;
        self.take_from(fund, Purpose::ClientHandshake, CLIENT_HANDSHAKE)
    }

    /// What the records of an exchange cost where its client comes by TLS.
    pub fn records(&self, has_body: bool) -> u64 {
        let out = if self.plan.tight {
            RECORD_OUT.0
        } else {
            RECORD_OUT.1
        };
        out + if has_body { RECORD_IN } else { 0 }
    }

    /// Takes what the records of a tunnel cost where its client comes by TLS; it is let in already.
    pub fn force_records(self: &Rc<Budget>) -> Permit {
        self.force(self.records(true))
    }

    /// Takes what a TLS handshake with an upstream holds until it is over.
    pub fn handshake(self: &Rc<Budget>) -> Option<Permit> {
        self.take_from(&self.handshakes, Purpose::Handshake, HANDSHAKE)
    }

    /// Takes bytes from a fund, which has a fifth of the budget. One permit of each fund is always given, even if nothing is
    /// left: a large head or a handshake may have to wait, but never for ever.
    fn take_from(self: &Rc<Budget>, fund: &Fund, purpose: Purpose, bytes: u64) -> Option<Permit> {
        let spent = fund.spent.get();
        let is_over = self.plan.pool.is_some_and(|pool| spent + bytes > pool / 5);
        let mut permit = match spent {
            0 => self.force(bytes),
            _ if is_over => return None,
            _ => self.take_inside(bytes)?,
        };
        fund.spent.set(spent + bytes);
        permit.purpose = purpose;
        Some(permit)
    }

    fn fund(&self, purpose: Purpose) -> Option<&Fund> {
        match purpose {
            Purpose::LargeHead => Some(&self.large_heads),
            Purpose::Handshake => Some(&self.handshakes),
            Purpose::ClientHandshake => Some(&self.client_handshakes),
            _ => None,
        }
    }

    /// Takes an exchange's worth for a request with a head of so many bytes, unless memory is pressed. A large head is
    /// held twice, as it came and as the upstream gets it, and its fields have their table. `records` is what TLS adds.
    pub fn exchange(self: &Rc<Budget>, head: usize, records: u64) -> Option<Permit> {
        if self.is_short() && self.exchanges.get() > 0 && self.is_near_limit() {
            return None;
        }
        let large = if head > LARGE_HEAD {
            3 * head as u64
        } else {
            0
        };
        let price = EXCHANGE + large + records;
        let mut permit = self.take_inside(price)?;
        permit.purpose = Purpose::Exchange;
        self.exchanges.set(self.exchanges.get() + 1);
        self.admitted.set(self.admitted.get() + 1);
        Some(permit)
    }

    /// Whether memory in use was near the limit at the last measurement. The kernel counts more than permits do, and much can
    /// happen between two ticks, so every [`LOOK`]th admission measures again, which costs one read of a file.
    fn is_near_limit(&self) -> bool {
        if !self.pressed.get()
            && self.admitted.get().is_multiple_of(LOOK)
            && let Some(gauge) = &*self.gauge.borrow()
        {
            self.pressed.set(gauge());
        }
        self.pressed.get()
    }

    /// Sets the function that measures memory between two ticks.
    pub fn set_gauge(&self, gauge: impl Fn() -> bool + 'static) {
        *self.gauge.borrow_mut() = Some(Gauge(Box::new(gauge)));
    }

    /// How many exchanges hold a permit now, and how many have been admitted since the start.
    pub fn exchanges(&self) -> (usize, u64) {
        (self.exchanges.get(), self.admitted.get())
    }

    /// Whether more than a quarter is spent: then buffers are small and freed early.
    pub fn is_short(&self) -> bool {
        let pool = self.plan.pool;
        self.pressed.get() || pool.is_some_and(|pool| self.spent.get() > pool / 4)
    }

    /// Whether more than three quarters are spent: then nothing is kept for later use.
    pub fn is_scarce(&self) -> bool {
        self.is_scarce_with(0)
    }

    fn is_scarce_with(&self, bytes: u64) -> bool {
        let pool = self.plan.pool;
        self.pressed.get() || pool.is_some_and(|pool| self.spent.get() + bytes > pool / 4 * 3)
    }

    /// Bytes were given back: the first of each queue tries again. The queues of the funds are woken by their own permits, and
    /// by the timer of a wait.
    fn wake(&self) {
        self.queue.wake();
        self.room.wake();
    }

    /// Sets whether memory in use is near the limit, as measured at a tick.
    pub fn press(&self, pressed: bool) {
        self.pressed.set(pressed);
        if !pressed {
            self.queue.wake();
        }
    }

    /// Whether memory in use was near the limit at the last measurement.
    pub fn is_pressed(&self) -> bool {
        self.pressed.get()
    }
}

/// Measures whether memory in use is near the limit.
struct Gauge(Box<dyn Fn() -> bool>);

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauge")
    }
}

impl Deref for Gauge {
    type Target = dyn Fn() -> bool;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// Admissions between two measurements of memory: one read of a file for sixteen requests.
const LOOK: u64 = 16;

impl Permit {
    /// The bytes of this permit.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Changes the permit to `bytes`: more is taken even if it is not available, the difference is given back. Not for permits
    /// of exchanges, unfinished heads and wide buffers, which are summed up separately.
    pub fn resize(&mut self, bytes: u64) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        let moved = |sum: &Cell<u64>| sum.set(sum.get() - before + bytes);
        moved(&self.budget.spent);
        if let Some(fund) = self.budget.fund(self.purpose) {
            moved(&fund.spent);
            fund.queue.wake();
        }
        if bytes < before {
            self.budget.wake();
        }
    }
}

/// Bytes of a socket that the other side has not read.
fn unsent_of(socket: &OwnedFd) -> usize {
    socket::unsent(&socket2::SockRef::from(socket))
}

/// The price of a response head of `bytes` bytes: its buffer, and a quarter more, which the allocator leaves between such
/// buffers.
pub fn head_price(bytes: usize) -> u64 {
    if bytes <= LARGE_HEAD {
        return 0;
    }
    let capacity = step(bytes) as u64;
    capacity + capacity / 4
}

/// The capacity of a buffer for a head of `bytes` bytes: exact where it is small.
pub fn step(bytes: usize) -> usize {
    if bytes <= LARGE_HEAD {
        return bytes;
    }
    STEPS
        .into_iter()
        .find(|step| *step >= bytes)
        .unwrap_or(bytes)
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.spent.set(self.budget.spent.get() - self.bytes);
        match self.purpose {
            Purpose::Head => self.budget.heads.set(self.budget.heads.get() - self.bytes),
            Purpose::Width => self
                .budget
                .widths
                .set(self.budget.widths.get() - self.bytes),
            Purpose::Http2 => self.budget.http2.set(self.budget.http2.get() - self.bytes),
            Purpose::Spared => self.budget.spared.set(self.budget.spared.get() - 1),
            Purpose::Exchange => self.budget.exchanges.set(self.budget.exchanges.get() - 1),
            Purpose::LargeHead | Purpose::Handshake | Purpose::ClientHandshake => {
                if let Some(fund) = self.budget.fund(self.purpose) {
                    fund.spent.set(fund.spent.get() - self.bytes);
                    fund.queue.wake();
                }
            }
            Purpose::Other => {}
        }
        self.budget.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::buffers::{BULK, Buffer, Buffers, KEPT, ReadSize, USUAL};
    use crate::{client_group::Group, memory::queue::Claim};
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    const CLAIM: Claim = Claim {
        group: Group::UNIX,
        since: 0,
        is_whole: true,
    };

    #[test]
    fn ten_megabytes_allow_what_is_promised() {
        let plan = Plan::new(Some(10 << 20), 1, None);
        assert!(plan.connections >= 500, "{plan:?}");
        assert!(plan.exchanges().unwrap() >= 100, "{plan:?}");
        let idle_beside_128 = (plan.pool.unwrap() - 128 * EXCHANGE) / CONNECTION;
        assert!(
            idle_beside_128 >= 500,
            "{idle_beside_128} idle connections beside 128 exchanges"
        );
    }

    #[test]
    fn workers_share_and_small_limits_still_work() {
        for (limit, workers) in [(6 << 20, 1), (10 << 20, 4), (1 << 20, 1), (4096, 64)] {
            let plan = Plan::new(Some(limit), workers, None);
            assert!(
                plan.connections >= 8 && plan.pool.unwrap() >= EXCHANGE * 2,
                "{limit} by {workers}: {plan:?}"
            );
        }
        assert_eq!(Plan::new(None, 2, Some(3)).connections, 2);
        assert_eq!(Plan::new(Some(10 << 20), 1, Some(3)).connections, 3);
    }

    #[test]
    fn large_heads_get_a_fifth_and_leave_the_rest() {
        let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
        let heads: Vec<Permit> = std::iter::from_fn(|| budget.head(60_000)).collect();
        assert!((10..40).contains(&heads.len()), "{}", heads.len());
        assert!(budget.exchange(300, 0).is_some());
        drop(heads);
        assert!(budget.head(60_000).is_some());
        assert_eq!((budget.spent(), budget.exchanges()), (0, (0, 1)));
    }

    #[test]
    fn the_last_bytes_are_for_new_connections() {
        for missing in [0, 1] {
            let budget = Budget::new(Plan {
                pool: Some(4 * EXCHANGE + ACCEPT_RESERVE - missing),
                ..Plan::new(None, 1, None)
            });
            let mut admitted = Vec::new();
            while let Some(permit) = budget.exchange(300, 0) {
                admitted.push(permit);
            }
            assert_eq!(admitted.len() as u64, 4 - missing);
            let head = budget.head(EXCHANGE);
            assert!(head.is_none(), "nor are they for heads");
            assert!(budget.take(ACCEPT_RESERVE).is_some());
        }
    }

    #[test]
    fn a_waiting_request_is_charged_and_the_first_long_bodies_get_wide_buffers() {
        let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
        let waiter = budget.waiter(300, 0).unwrap();
        assert_eq!(waiter.bytes(), 300 + 2 * NARROW as u64);
        let wide: Vec<_> = std::iter::from_fn(|| budget.width()).collect();
        let pool = budget.plan().pool.unwrap();
        let paid: u64 = wide.iter().map(|(_, permit)| permit.bytes()).sum();
        assert!(wide.iter().all(|(size, _)| *size == 16 * 1024));
        assert!(
            (pool / 4 - 50_000..=pool / 4).contains(&paid),
            "{paid} of {pool}"
        );
        drop(wide);
        let others = budget.take(pool / 4 * 3 - 40_000).unwrap();
        let last = budget.width();
        assert!(
            last.is_none(),
            "none of the last quarter, with the waiter's"
        );
        drop(others);
        budget.press(true);
        assert!(budget.width().is_none(), "not while memory is pressed");
        let ample = Budget::new(Plan::new(Some(64 << 20), 1, None));
        assert!(ample.width().is_none(), "all are wide there");
        assert!(ample.plan().socket_buffer > Some(NARROW));
    }

    #[test]
    fn buffers_are_freed_by_halves_until_none_is_left() {
        let buffers: Rc<Buffers> = Rc::default();
        let room = ReadSize::new(4096, true, true);
        drop([(); 5].map(|()| buffers.take(room)));
        for left in [2, 1] {
            assert!(buffers.trim(), "{left} are left");
            assert_eq!(buffers.free.borrow().len(), left);
        }
        assert!(!buffers.trim(), "none is left");
        assert_eq!(buffers.free.borrow().capacity(), 0);
    }

    #[test]
    fn memory_is_short_above_a_quarter_and_where_it_is_pressed() {
        let budget = Budget::new(Plan {
            pool: Some(12 * EXCHANGE),
            ..Plan::new(None, 1, None)
        });
        let quarter = budget.take(3 * EXCHANGE);
        assert!(!budget.is_short(), "three quarters are left");
        let more = budget.take(1);
        assert!(budget.is_short(), "less is left");
        drop((quarter, more));
        budget.press(true);
        let first = budget.exchange(300, 0);
        assert!(budget.is_short() && first.is_some(), "one goes on always");
        assert!(budget.exchange(300, 0).is_none());
        budget.press(false);
        assert!(!budget.is_short() && budget.exchange(300, 0).is_some());
    }

    #[test]
    fn dropped_permits_are_given_to_the_next_in_the_queue() {
        let budget = Budget::new(Plan {
            pool: Some(100),
            ..Plan::new(Some(10 << 20), 1, None)
        });
        let first = budget.take(80).unwrap();
        assert!(budget.take(21).is_none());
        let mut context = Context::from_waker(Waker::noop());
        let mut second = pin!(budget.queue.until(CLAIM, || budget.take(60)));
        let mut third = pin!(budget.queue.until(CLAIM, || budget.take(20)));
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(
            third.as_mut().poll(&mut context).is_pending(),
            "20 are free, but it is not its turn"
        );
        assert_eq!(budget.queue.len(), 2);
        drop(first);
        let Poll::Ready(second) = second.as_mut().poll(&mut context) else {
            panic!("80 came free")
        };
        let Poll::Ready(third) = third.as_mut().poll(&mut context) else {
            panic!("it is its turn now")
        };
        assert_eq!((budget.spent(), budget.queue.len()), (80, 0));
        drop((second, third));
        assert_eq!(budget.spent(), 0);
    }

    #[test]
    fn a_waiter_that_leaves_does_not_block_the_queue() {
        let budget = Budget::new(Plan {
            pool: Some(100),
            ..Plan::new(Some(10 << 20), 1, None)
        });
        let _held = budget.take(80).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let mut second = Box::pin(budget.queue.until(CLAIM, || budget.take(60)));
        let mut third = pin!(budget.queue.until(CLAIM, || budget.take(20)));
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(third.as_mut().poll(&mut context).is_pending());
        drop(second);
        assert!(third.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn buffers_are_reused_and_freed() {
        let buffers: Rc<Buffers> = Rc::default();
        let room = ReadSize::new(4096, true, true);
        let buffer = buffers.take(room);
        let place = buffer.as_ptr();
        drop(buffer);
        assert_eq!(
            buffers.take(room.at_most(4000)).as_ptr(),
            place,
            "the same one again"
        );
        assert_eq!(
            buffers.take(room.at_most(100)).len(),
            100,
            "a large one is not wasted"
        );
        assert_eq!(buffers.free.borrow().len(), 1, "a small one is not kept");
        drop((0..1000).map(|_| buffers.take(room)).collect::<Vec<_>>());
        let kept: usize = buffers.free.borrow().iter().map(Vec::len).sum();
        assert_eq!((kept, 0), (buffers.kept.get(), buffers.lent.get()));
        assert!(kept <= KEPT, "{kept} bytes");
        while buffers.trim() {}
        assert_eq!(buffers.kept.get(), 0);
    }

    #[test]
    fn buffers_are_smaller_the_more_are_lent() {
        let buffers: Rc<Buffers> = Rc::default();
        let room = ReadSize::new(4096, false, false);
        let held: Vec<Buffer> = (0..100).map(|_| buffers.take(room)).collect();
        let sizes: Vec<usize> = held.iter().map(|buffer| buffer.len()).collect();
        assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
        assert_eq!((sizes[0], sizes[99]), (BULK, 4096));
        assert!(buffers.lent.get() < 1_000_000);
        drop(held);
        assert_eq!(buffers.take(room).len(), BULK);
    }

    #[test]
    fn read_sizes_follow_memory_and_the_configured_size() {
        let sizes = |least| {
            [(true, true), (false, true), (false, false)]
                .map(|(short, tight)| ReadSize::new(least, short, tight).most)
        };
        assert_eq!(sizes(512), [512, USUAL, BULK]);
        assert_eq!(sizes(32_768), [32_768, 32_768, BULK]);
        assert_eq!(sizes(100_000), [100_000; 3]);
    }

    #[test]
    fn a_buffer_that_grew_is_never_lent_again() {
        let buffers: Rc<Buffers> = Rc::default();
        let mut buffer = buffers.take(ReadSize::new(4096, true, true));
        buffer[0] = 7;
        assert!(!buffer.has_grown());
        buffer.grow(16 * 1024);
        assert_eq!((buffer.len(), buffer[0]), (16 * 1024, 7));
        assert_eq!(buffer.bytes.capacity(), 16 * 1024);
        assert!(buffer.has_grown());
        drop(buffer);
        assert_eq!((buffers.lent.get(), buffers.kept.get()), (0, 0));
    }

    #[test]
    fn large_heads_have_a_fifth_of_the_budget_and_one_always_passes() {
        for limit in [1 << 20, 6 << 20, 10 << 20, 32 << 20] {
            let budget = Budget::new(Plan::new(Some(limit), 1, None));
            let pool = budget.plan().pool.unwrap();
            let all = budget.force(pool);
            let mut first = budget.large_head().expect("one can always be had");
            assert!(budget.large_head().is_none() && budget.handshake().is_some());
            drop(all);
            let more: Vec<Permit> = std::iter::from_fn(|| budget.large_head()).collect();
            assert!(budget.large_heads.spent.get() <= (pool / 5).max(first.bytes()));
            // a head of 5 kB gives back most, and lets others pass
            first.resize(head_price(5000));
            assert_eq!(first.bytes(), 20 * 1024);
            drop(more);
            drop(first);
            assert_eq!((budget.spent(), budget.large_heads.spent.get()), (0, 0));
        }
    }

    #[test]
    fn a_permit_that_shrinks_lets_the_next_one_in() {
        let budget = Budget::new(Plan {
            pool: Some(100),
            ..Plan::new(Some(10 << 20), 1, None)
        });
        let mut permit = budget.take(80).unwrap();
        permit.resize(120);
        assert_eq!(budget.spent(), 120, "what cannot be refused is taken");
        let mut context = Context::from_waker(Waker::noop());
        let mut next = pin!(budget.queue.until(Claim::plain(), || budget.take(60)));
        assert!(next.as_mut().poll(&mut context).is_pending());
        permit.resize(40);
        assert!(next.as_mut().poll(&mut context).is_ready());
        drop(permit);
        assert_eq!(budget.spent(), 0);
    }

    #[test]
    fn memory_of_the_configuration_is_not_given_to_clients() {
        let plan = |held| Plan::beside(held, Some(10 << 20), 1, None);
        let (small, large) = (plan(0).unwrap(), plan(3_000_000).unwrap());
        assert_eq!(large.pool.unwrap() + 3_000_000, small.pool.unwrap());
        assert!(large.connections < small.connections && large.exchanges() < small.exchanges());
        assert_eq!(plan(9_000_000), None, "nothing is left");
        assert!(Plan::beside(0, Some(4096), 1, None).is_some());
        assert!(Plan::beside(1 << 30, None, 1, None).is_some());
    }

    #[test]
    fn memory_is_measured_between_two_ticks_where_much_is_spent() {
        let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
        let looks = Rc::new(Cell::new(0));
        let (counted, near) = (Rc::clone(&looks), Rc::new(Cell::new(false)));
        let is_near = Rc::clone(&near);
        budget.set_gauge(move || {
            counted.set(counted.get() + 1);
            is_near.get()
        });
        let first = budget.exchange(300, 0);
        assert_eq!(looks.get(), 0, "little is spent");
        let pool = budget.plan().pool.unwrap();
        let _much = budget.take(pool / 4);
        let admitted: Vec<_> = (0..32).map_while(|_| budget.exchange(300, 0)).collect();
        assert_eq!((admitted.len(), looks.get()), (32, 2));
        near.set(true);
        let more: Vec<_> = (0..32).map_while(|_| budget.exchange(300, 0)).collect();
        assert!((more.len() as u64) < LOOK, "{}", more.len());
        assert!(budget.is_pressed());
        drop((first, admitted, more));
    }

    #[test]
    fn buffers_of_large_heads_have_few_sizes() {
        assert_eq!([0, 300, LARGE_HEAD].map(head_price), [0; 3]);
        let mut sizes: Vec<usize> = (LARGE_HEAD + 1..=LARGEST_HEAD).map(step).collect();
        sizes.dedup();
        assert_eq!(sizes, STEPS[..4]);
        assert_eq!(step(1 << 20), 1 << 20);
    }
}
