//! The memory that clients and upstreams may use: every use takes a [`Permit`] first, or the request waits for one.
//!
//! The limit comes from the cgroup or the configuration, and each worker has a share. Bytes are given back when the permit
//! is dropped. Without a limit no request waits. The prices include the kernel's part of a connection (socket, buffers,
//! epoll entry), because the cgroup counts it too.

mod permit;

use std::{
    cell::{Cell, RefCell},
    fmt,
    ops::Deref,
    os::fd::OwnedFd,
    rc::Rc,
};

use crate::{
    memory::{
        plan::Plan,
        prices::{
            ACCEPT_RESERVE, CLIENT_HANDSHAKE, EXCHANGE, HANDSHAKE, HTTP2_CONNECTION,
            HTTP2_CONNECTION_WIDE, HTTP2_UPSTREAM, HTTP2_UPSTREAM_WIDE, LARGE_HEAD, LARGEST_HEAD,
            NARROW, RECORD_IN, RECORD_OUT, UNREAD, head_price,
        },
        queue::Queue,
        turns::Turns,
    },
    sys::socket,
};

pub use permit::Permit;
use permit::Purpose;

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
    /// What HTTP/2 connections cost.
    http2: Cell<u64>,
    /// Bytes that client connections may receive beyond their usual buffers.
    resting: Cell<u64>,
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
    /// Memory in use was more than three quarters of the limit at the last measurement: no buffer gets wider.
    full: Cell<bool>,
    /// Measures whether memory in use is near the limit; called between two ticks where much is spent.
    gauge: RefCell<Option<Gauge>>,
    /// Closed unix sockets whose bytes the other side has not read, each with its permit.
    unread: RefCell<Vec<(OwnedFd, Permit)>>,
    /// Requests that wait for an exchange's permit.
    pub queue: Queue,
    /// Requests that let others go first, so that a few at a time are fast and not all of them slow.
    pub turns: Turns,
    /// Messages that wait for a wide buffer, for the same reason.
    pub lanes: Turns,
    /// Ticks for which it is remembered that a message got no wide buffer.
    narrowed: Cell<u8>,
    /// Tasks that wait for a connection's slot; woken whenever bytes are given back.
    pub room: Rc<Queue>,
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
            http2: Cell::new(0),
            resting: Cell::new(0),
            large_heads: Fund::default(),
            handshakes: Fund::default(),
            client_handshakes: Fund::default(),
            spared: Cell::new(0),
            refused: Cell::new(false),
            pressed: Cell::new(false),
            full: Cell::new(false),
            gauge: RefCell::default(),
            unread: RefCell::default(),
            queue: Queue::default(),
            turns: Turns::default(),
            lanes: Turns::default(),
            narrowed: Cell::new(0),
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

    /// Takes the price of a request that waits for its turn: its head, out of the fifth of all heads, and what may follow into
    /// the socket.
    pub fn turn(self: &Rc<Budget>, head: usize) -> Option<(Permit, Permit)> {
        let head = self.head(head as u64)?;
        Some((head, self.take_inside(self.queue_price())?))
    }

    /// What a client may send into its socket while its request waits.
    fn queue_price(&self) -> u64 {
        if self.plan.tight {
            2 * NARROW as u64
        } else {
            0
        }
    }

    /// Takes the price of a request that waits for an exchange's permit: its head, and what may follow into the socket. A few
    /// may wait even if there is no memory for waiting, because relief only begins when a request waits: this one may if fewer
    /// than `spared` do ([`SPARED`] at most).
    pub fn waiter(self: &Rc<Budget>, head: usize, spared: usize) -> Option<Permit> {
        let price = head as u64 + self.queue_price();
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

    /// A permit for what a socket may receive beyond its usual buffer, worth nothing yet ([`Permit::widen`]). `rests`: it is
    /// a client's, and kept between two messages.
    pub fn receiving(self: &Rc<Budget>, rests: bool) -> Permit {
        let mut permit = self.force(0);
        permit.purpose = if rests {
            Purpose::Resting
        } else {
            Purpose::Receiving
        };
        permit
    }

    /// The same for what it has sent.
    pub fn sending(self: &Rc<Budget>) -> Permit {
        let mut permit = self.force(0);
        permit.purpose = Purpose::Sending;
        permit
    }

    /// What clients' connections may still have together for receiving beyond their usual buffers, which they keep between
    /// two messages: a quarter of the budget in all, and nothing while memory is wanted.
    pub fn left_for_resting(&self) -> u64 {
        match self.plan.pool {
            None => u64::MAX,
            Some(_) if self.is_wanted() => 0,
            Some(pool) => (pool / 4).saturating_sub(self.resting.get()),
        }
    }

    /// Whether a request should let others finish before it begins: many are at work, and messages lately got no buffer as
    /// wide as they needed.
    pub fn is_crowded(&self) -> bool {
        self.narrowed.get() > 0
            && self.exchanges.get() >= FEW
            && self.plan.pool.is_some_and(|pool| self.at_work() > pool / 4)
    }

    /// Whether a request should wait for its turn.
    pub fn takes_turns(&self) -> bool {
        self.plan.tight && (self.turns.queue.len() > 0 || self.is_crowded())
    }

    /// A message got no buffer as wide as it needed.
    pub fn was_narrowed(&self) {
        self.narrowed.set(NARROWED);
    }

    /// Whether a receive buffer may cost so many bytes more than a narrow one.
    pub fn may_receive(&self, bytes: u64) -> bool {
        bytes <= self.left_for_width(6) / self.sharers()
    }

    /// Bytes that sockets may still share beyond their usual buffers, for so many eighths of the budget; nothing while
    /// memory is wanted, or three quarters of the limit are in use.
    fn left_for_width(&self, eighths: u64) -> u64 {
        let Some(pool) = self.plan.pool else {
            return u64::MAX;
        };
        if self.is_wanted() || self.full.get() {
            return 0;
        }
        let left = pool.saturating_sub(self.spent.get());
        (pool / 8 * eighths)
            .saturating_sub(self.at_work())
            .min(left)
    }

    /// One socket may have this part of what is left for all: an eighth, and a quarter while less than half is spent.
    fn sharers(&self) -> u64 {
        let half = self.plan.pool.unwrap_or(u64::MAX) / 2;
        if self.spent.get() > half { 8 } else { 4 }
    }

    /// Bytes that are spent, without what may be in the sockets of requests that wait for their turn: they wait so that
    /// others have wide buffers.
    fn at_work(&self) -> u64 {
        let waiting = self.turns.queue.len() as u64 * self.queue_price();
        self.spent.get().saturating_sub(waiting)
    }

    /// Whether memory is wanted now: a request waits for it, or it is near its limit.
    pub fn is_wanted(&self) -> bool {
        self.pressed.get() || (self.plan.pool.is_some() && self.queue.len() > 0)
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
        self.take_inside(if self.plan.small {
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
        if self.plan.small {
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
        let out = if self.plan.small {
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

    /// Whether more than fifteen sixteenths are spent: then nothing is kept for later use.
    pub fn is_scarce(&self) -> bool {
        let pool = self.plan.pool;
        self.pressed.get() || pool.is_some_and(|pool| self.spent.get() > pool / 16 * 15)
    }

    /// Bytes were given back: the first of each queue tries again. The queues of the funds are woken by their own permits, and
    /// by the timer of a wait.
    fn wake(&self) {
        self.queue.wake();
        if self.plan.tight {
            self.turns.queue.wake();
            self.lanes.queue.wake();
        }
        self.room.wake();
    }

    /// Sets whether memory in use is near the limit, as measured at a tick.
    pub fn press(&self, pressed: bool) {
        self.narrowed.set(self.narrowed.get().saturating_sub(1));
        self.pressed.set(pressed);
        if !pressed {
            self.queue.wake();
        }
    }

    /// Sets whether memory in use, as measured at a tick, is so much that no buffer may get wider: what one of them costs the
    /// kernel is an estimate.
    pub fn fill(&self, full: bool) {
        self.full.set(full);
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

/// Ticks for which it is remembered that messages needed wider buffers than they got.
const NARROWED: u8 = 10;

/// Exchanges that never wait for a turn.
const FEW: usize = 16;

/// Admissions between two measurements of memory: one read of a file for sixteen requests.
const LOOK: u64 = 16;

/// Bytes of a socket that the other side has not read.
fn unsent_of(socket: &OwnedFd) -> usize {
    socket::unsent(&socket2::SockRef::from(socket))
}

#[cfg(test)]
mod tests;
