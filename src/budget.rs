//! The bytes that strangers may cost: who asks for memory pays here first, or waits in line.
//!
//! The limit comes from the cgroup or the configuration; each worker has its share. What is taken is given back when
//! the [`Permit`] is dropped. Without a limit nobody waits and nothing is counted twice. The kernel's share of a
//! connection (socket, buffers, epoll entry) is in the prices, because the cgroup counts it too.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

/// An open client connection at rest: 0.6 kB of ours, 3.8 kB of the kernel's.
pub const CONNECTION: u64 = 4_400;

/// A connection with a request in work: hyper's two buffers and its state (19 kB at most), one of ours, the upstream's
/// socket, and what usually stands in the queues of both.
pub const EXCHANGE: u64 = 42_000;

/// What exchanges leave for connections, however many there are.
const DOOR: u64 = 32 * CONNECTION;

/// Bytes of a request head that are in the price of an exchange.
const LARGE_HEAD: usize = 4 * 1024;

/// An idle upstream connection.
pub const IDLE_UPSTREAM: u64 = 4_400;

/// What a TLS session adds to an upstream connection: 24 kB were measured, at rest and while bytes flow.
pub const TLS_SESSION: u64 = 24_000;

/// What the program needs for itself: the code that serves requests (1.5 MB of page cache, or it is read again and
/// again), the allocator, the runtime.
const BASE: u64 = 2_000_000;

/// The shape of a budget, fixed at start: what the limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Bytes for strangers in this worker; `None` = no limit.
    pub pool: Option<u64>,
    /// Client connections of this worker.
    pub connections: usize,
    /// `SO_SNDBUF` and `SO_RCVBUF` of every socket; `None` = the kernel tunes them.
    pub socket_buffer: Option<usize>,
    /// `TCP_NOTSENT_LOWAT`: bytes that wait unsent in the kernel.
    pub unsent: u32,
    /// Whether memory is so short that buffers stay at their least.
    pub tight: bool,
}

impl Plan {
    /// Divides `limit` bytes of the whole process by its workers; `max_connections` is the configured bound (of all
    /// workers), `None` = what memory allows.
    pub fn new(limit: Option<u64>, workers: usize, max_connections: Option<usize>) -> Plan {
        let workers_wide = workers as u64;
        let configured = max_connections.map_or(usize::MAX, |all| all.div_ceil(workers).max(1));
        let Some(limit) = limit else {
            return Plan {
                pool: None,
                connections: configured,
                socket_buffer: None,
                unsent: 128 * 1024,
                tight: false,
            };
        };
        // a twelfth stays free for what no permit foresees: fragmentation, bursts of packets, page tables
        let pool = limit
            .saturating_sub(BASE + 100_000 * (workers_wide - 1))
            .saturating_sub(limit / 12)
            / workers_wide;
        let pool = pool.max(CONNECTION * 8 + EXCHANGE * 2);
        let connections = usize::try_from(pool * 3 / 8 / CONNECTION)
            .unwrap_or(usize::MAX)
            .clamp(8, configured.max(8));
        let socket_buffer = usize::try_from(limit / 640).unwrap_or(usize::MAX);
        Plan {
            pool: Some(pool),
            connections: connections.min(configured),
            socket_buffer: (limit < 512 << 20)
                .then_some(socket_buffer.clamp(16 * 1024, 256 * 1024)),
            unsent: if limit < 64 << 20 {
                16 * 1024
            } else {
                128 * 1024
            },
            tight: limit < 64 << 20,
        }
    }

    /// How many exchanges fit beside a full house of connections.
    pub fn exchanges(&self) -> Option<u64> {
        let pool = self.pool?;
        Some((pool - (self.connections as u64 * CONNECTION).min(pool)) / EXCHANGE)
    }
}

/// One worker's purse.
#[derive(Debug)]
pub struct Budget {
    plan: Plan,
    spent: Cell<u64>,
    /// Exchanges that hold a permit, and how many ever did.
    exchanges: Cell<usize>,
    admitted: Cell<u64>,
    /// What unfinished request heads cost.
    heads: Cell<u64>,
    /// Memory was seen near the limit: nothing new is let in until it is not.
    pressed: Cell<bool>,
    /// Who waits for an exchange's worth.
    pub queue: Queue,
    /// Who waits for a seat; woken by whatever comes free.
    pub room: Rc<Queue>,
}

/// Bytes taken from a [`Budget`]; given back on drop.
#[derive(Debug)]
pub struct Permit {
    budget: Rc<Budget>,
    bytes: u64,
    purpose: Purpose,
}

/// What a permit is for, where that is counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Head,
    Exchange,
    Other,
}

impl Budget {
    /// A purse with nothing spent.
    pub fn new(plan: Plan) -> Rc<Budget> {
        Rc::new(Budget {
            plan,
            spent: Cell::new(0),
            exchanges: Cell::new(0),
            admitted: Cell::new(0),
            heads: Cell::new(0),
            pressed: Cell::new(false),
            queue: Queue::default(),
            room: Rc::default(),
        })
    }

    /// What it was made from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes taken now.
    pub fn spent(&self) -> u64 {
        self.spent.get()
    }

    /// Takes bytes if they are there.
    pub fn take(self: &Rc<Budget>, bytes: u64) -> Option<Permit> {
        let spent = self.spent.get() + bytes;
        if self.plan.pool.is_some_and(|pool| spent > pool) {
            return None;
        }
        Some(self.force(bytes))
    }

    /// Takes bytes whether they are there or not: for what cannot be refused any more.
    pub fn force(self: &Rc<Budget>, bytes: u64) -> Permit {
        self.spent.set(self.spent.get() + bytes);
        Permit {
            budget: Rc::clone(self),
            bytes,
            purpose: Purpose::Other,
        }
    }

    /// Takes bytes for a request head that is still coming in. All of them together get a fifth of the budget: whoever
    /// sends large heads slowly takes nothing from those who send small ones.
    pub fn head(self: &Rc<Budget>, bytes: u64) -> Option<Permit> {
        let heads = self.heads.get() + bytes;
        if self.plan.pool.is_some_and(|pool| heads > pool / 5) {
            return None;
        }
        let mut permit = self.take(bytes)?;
        self.heads.set(heads);
        permit.purpose = Purpose::Head;
        Some(permit)
    }

    /// Takes an exchange's worth for a request with a head of so many bytes, unless memory is pressed. A large head is
    /// held three times: as it came, as hyper reads it, as the upstream gets it.
    pub fn exchange(self: &Rc<Budget>, head: usize) -> Option<Permit> {
        if self.pressed.get() && self.exchanges.get() > 0 {
            return None;
        }
        let large = if head > LARGE_HEAD {
            3 * head as u64
        } else {
            0
        };
        let price = EXCHANGE + large;
        // the last bytes are for those at the door: health, and the word that there is no room
        if self
            .plan
            .pool
            .is_some_and(|pool| self.spent.get() + price + DOOR > pool)
        {
            return None;
        }
        let mut permit = self.take(price)?;
        permit.purpose = Purpose::Exchange;
        self.exchanges.set(self.exchanges.get() + 1);
        self.admitted.set(self.admitted.get() + 1);
        Some(permit)
    }

    /// How many exchanges are paid for now, and how many ever were.
    pub fn exchanges(&self) -> (usize, u64) {
        (self.exchanges.get(), self.admitted.get())
    }

    /// Whether less than half is left: then buffers are small and nothing lies about.
    pub fn is_short(&self) -> bool {
        self.pressed.get()
            || self
                .plan
                .pool
                .is_some_and(|pool| self.spent.get() > pool / 2)
    }

    /// Told by the sweep: whether memory is near its limit.
    pub fn press(&self, pressed: bool) {
        self.pressed.set(pressed);
        if !pressed {
            self.queue.wake();
        }
    }

    /// Whether memory was last seen near its limit.
    pub fn is_pressed(&self) -> bool {
        self.pressed.get()
    }
}

impl Permit {
    /// What it is worth.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.spent.set(self.budget.spent.get() - self.bytes);
        match self.purpose {
            Purpose::Head => self.budget.heads.set(self.budget.heads.get() - self.bytes),
            Purpose::Exchange => self.budget.exchanges.set(self.budget.exchanges.get() - 1),
            Purpose::Other => {}
        }
        self.budget.queue.wake();
        self.budget.room.wake();
    }
}

/// A line of waiting tasks, served in their order.
#[derive(Debug, Default)]
pub struct Queue {
    line: RefCell<VecDeque<(u64, Waker)>>,
    next: Cell<u64>,
}

/// A place in a [`Queue`]; leaving it lets the next one try.
struct Turn<'a> {
    queue: &'a Queue,
    ticket: u64,
}

impl Queue {
    /// Waits in line until `take` gives something; asks it once at the start, and whenever [`Queue::wake`] is called
    /// while at the front. Dropping the future leaves the line.
    pub async fn until<T>(&self, mut take: impl FnMut() -> Option<T>) -> T {
        let mut turn: Option<Turn<'_>> = None;
        poll_fn(move |context| {
            let my_turn = match &turn {
                Some(turn) => self.front() == Some(turn.ticket),
                None => self.line.borrow().is_empty(),
            };
            if my_turn && let Some(value) = take() {
                turn = None;
                return Poll::Ready(value);
            }
            match &turn {
                Some(turn) => self.renew(turn.ticket, context.waker()),
                None => turn = Some(self.join(context.waker().clone())),
            }
            Poll::Pending
        })
        .await
    }

    /// Something came free: the first in line tries again.
    pub fn wake(&self) {
        if let Some((_, waker)) = self.line.borrow().front() {
            waker.wake_by_ref();
        }
    }

    /// The ticket of whoever waits longest; it stays the same as long as that one waits.
    pub fn front(&self) -> Option<u64> {
        self.line.borrow().front().map(|(ticket, _)| *ticket)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.line.borrow().len()
    }

    fn join(&self, waker: Waker) -> Turn<'_> {
        let ticket = self.next.get();
        self.next.set(ticket + 1);
        self.line.borrow_mut().push_back((ticket, waker));
        Turn {
            queue: self,
            ticket,
        }
    }

    fn renew(&self, ticket: u64, waker: &Waker) {
        let mut line = self.line.borrow_mut();
        if let Some((_, mine)) = line.iter_mut().find(|(other, _)| *other == ticket) {
            mine.clone_from(waker);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut line = self.queue.line.borrow_mut();
        if let Ok(at) = line.binary_search_by_key(&self.ticket, |(ticket, _)| *ticket) {
            line.remove(at);
        }
        drop(line);
        self.queue.wake();
    }
}

/// Read buffers that are used again: one is taken when bytes are there, and comes back when they are gone.
#[derive(Debug, Default)]
pub struct Buffers {
    free: RefCell<Vec<Vec<u8>>>,
}

/// Bytes of a buffer while memory is ample; bulk traffic gains little beyond.
pub const BUFFER: usize = 16 * 1024;

impl Buffers {
    /// A buffer of at least `size` bytes, its length that of its capacity; what it holds is of no meaning.
    pub fn take(&self, size: usize) -> Vec<u8> {
        let mut free = self.free.borrow_mut();
        while let Some(buffer) = free.pop() {
            if buffer.len() >= size {
                return buffer;
            }
        }
        vec![0; size]
    }

    /// Brings a buffer back; large ones are let go.
    pub fn put(&self, buffer: Vec<u8>) {
        let mut free = self.free.borrow_mut();
        if buffer.len() <= BUFFER && free.len() < 64 {
            free.push(buffer);
        }
    }

    /// Lets half of the free ones go, and says whether any are left; called when fewer are needed, so that a quiet proxy
    /// keeps none.
    pub fn trim(&self) -> bool {
        let mut free = self.free.borrow_mut();
        let keep = free.len() / 2;
        free.truncate(keep);
        if keep == 0 {
            free.shrink_to_fit();
        }
        keep > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::Future, pin::pin, task::Context};

    #[test]
    fn ten_megabytes_hold_what_is_promised() {
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
        assert!(budget.exchange(300).is_some());
        drop(heads);
        assert!(budget.head(60_000).is_some());
        assert_eq!((budget.spent(), budget.exchanges()), (0, (0, 1)));
    }

    #[test]
    fn what_is_dropped_is_given_back_and_the_next_in_line_gets_it() {
        let budget = Budget::new(Plan {
            pool: Some(100),
            ..Plan::new(Some(10 << 20), 1, None)
        });
        let first = budget.take(80).unwrap();
        assert!(budget.take(21).is_none());
        let mut context = Context::from_waker(Waker::noop());
        let mut second = pin!(budget.queue.until(|| budget.take(60)));
        let mut third = pin!(budget.queue.until(|| budget.take(20)));
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
    fn who_leaves_the_line_does_not_block_it() {
        let budget = Budget::new(Plan {
            pool: Some(100),
            ..Plan::new(Some(10 << 20), 1, None)
        });
        let _held = budget.take(80).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let mut second = Box::pin(budget.queue.until(|| budget.take(60)));
        let mut third = pin!(budget.queue.until(|| budget.take(20)));
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(third.as_mut().poll(&mut context).is_pending());
        drop(second);
        assert!(third.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn buffers_come_back_and_are_let_go() {
        let buffers = Buffers::default();
        let buffer = buffers.take(4096);
        let place = buffer.as_ptr();
        buffers.put(buffer);
        let again = buffers.take(4000);
        assert_eq!(again.as_ptr(), place, "the same one again");
        drop(again);
        buffers.put(vec![0; 4096]);
        buffers.put(vec![0; BUFFER + 1]);
        assert_eq!(buffers.free.borrow().len(), 1, "large ones are not kept");
        buffers.trim();
        assert!(buffers.free.borrow().is_empty());
    }
}
