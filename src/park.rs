//! Every client connection has a seat here, and one sweep looks after all of them: every deadline of the program, who
//! is silent longest, who makes least progress.
//!
//! A seat is some fifty bytes in one table. Nothing here owns a socket: the sweep only wakes the task that does, and
//! that task looks at its seat. Time is coarse: it stands still between two ticks, deadlines are rounded up and never
//! early. While only resting connections are open the sweep sleeps until the first of them is due; with none it does
//! not run at all.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::{Future, poll_fn},
    net::IpAddr,
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use crate::{budget::Queue, outcome::Outcome};

/// What a connection is doing, as far as deadlines and eviction care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nobody sits here.
    Empty,
    /// Accepted, and has not spoken.
    Fresh,
    /// Between two requests, a bare socket.
    Idle,
    /// In the middle of a request head.
    Head,
    /// A whole request that waits for memory.
    Waiting,
    /// A request in work.
    Busy,
    /// Two upgraded connections joined.
    Tunnel,
    /// Said its last word, reads on a little.
    Lingering,
}

/// What the sweep wants of a connection's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Carry on.
    None,
    /// Others need the room more.
    Leave,
    /// The program is stopping: close once the exchange is done.
    Finish,
}

/// Milliseconds since the park opened; wraps after 49 days, so it is only ever compared by difference.
type Tick = u32;

/// Time-outs longer than this (12 days) are cut to it, so that differences stay readable.
const LONGEST: u128 = 1 << 30;

/// A connection that has only just come, or just said something, is not evicted for this long, so that two floods do not
/// starve each other and a client in the middle of its work is left alone; in milliseconds.
const SPARED: u32 = 250;

/// How long a connection that has just come may take for its first byte when the program stops, and one that was just
/// answered for its next; in milliseconds, of which up to a tick may be gone already.
const AWAITED: (u32, u32) = (1_000, 500);

/// A stream that moved nothing for this long goes first under pressure; the same span measures the slow ones.
const STALLED: u32 = 5_000;

/// The same for a client that does not read, or send, while memory is nearly spent.
const BLOCKED: u32 = 400;

/// Bytes a second below which a stream counts as slow under pressure.
const SLOW: u32 = 1_000;

#[derive(Debug)]
struct Entry {
    waker: Option<Waker>,
    phase: Cell<Phase>,
    order: Cell<Order>,
    /// Whether the client (and not the upstream) is what this exchange waits for.
    client_blocks: Cell<bool>,
    /// Woken at every tick.
    looks_back: Cell<bool>,
    /// The answer is on its way to the client.
    streams: Cell<bool>,
    /// It holds memory for a large response head.
    holds_head: Cell<bool>,
    /// Which upstream it asks, by its number in the pool; 0 = none.
    host: Cell<u32>,
    has_deadline: Cell<bool>,
    has_write_deadline: Cell<bool>,
    since: Cell<Tick>,
    deadline: Cell<Tick>,
    write_deadline: Cell<Tick>,
    moved_at: Cell<Tick>,
    bytes: Cell<u32>,
    bytes_at_mark: Cell<u32>,
    mark: Cell<Tick>,
}

/// The table of seats and its clock.
#[derive(Debug)]
pub struct Park {
    entries: RefCell<Vec<Entry>>,
    free: RefCell<Vec<u32>>,
    open: Cell<usize>,
    /// The program's time is over: whatever is told to leave is told so for that.
    closing: Cell<bool>,
    origin: Instant,
    now: Cell<Tick>,
    /// The sweep runs at every tick, so that `now` is at most one tick old.
    ticking: Cell<bool>,
    tick: Cell<Duration>,
    /// When a sleeping sweep will wake.
    next: Cell<Option<Tick>>,
    sweep: RefCell<Option<Waker>>,
    /// Wakes whoever waits for a seat.
    pub room: Rc<Queue>,
}

/// One connection's place in the park; given up on drop.
#[derive(Debug)]
pub struct Seat(Watch);

/// A look at a seat, for those who work for the connection that sits there. Must not outlive the [`Seat`].
#[derive(Debug, Clone)]
pub struct Watch {
    park: Rc<Park>,
    index: u32,
    /// Here and not in the table: the task that sits there has room to spare in its allocation.
    client: Option<IpAddr>,
}

/// A wait took longer than it may.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

impl Park {
    /// An empty park with a tick of `tick`.
    pub fn new(tick: Duration, room: Rc<Queue>) -> Rc<Park> {
        Rc::new(Park {
            entries: RefCell::default(),
            free: RefCell::default(),
            open: Cell::new(0),
            closing: Cell::new(false),
            origin: Instant::now(),
            now: Cell::new(0),
            ticking: Cell::new(false),
            tick: Cell::new(tick),
            next: Cell::new(None),
            sweep: RefCell::default(),
            room,
        })
    }

    /// How often the sweep runs while something is going on.
    pub fn set_tick(&self, tick: Duration) {
        self.tick.set(tick);
    }

    /// Connections with a seat.
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// Milliseconds since the start, at most a tick old.
    pub fn now(&self) -> u32 {
        if !self.ticking.get() {
            self.look_at_the_clock();
        }
        self.now.get()
    }

    fn look_at_the_clock(&self) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it wraps, and is only compared by difference"
        )]
        self.now.set(self.origin.elapsed().as_millis() as Tick);
    }

    /// When a time-out that begins now is due: never early, for the clock may be a tick behind.
    fn due(&self, limit: Duration) -> Tick {
        let slack = if self.ticking.get() {
            self.tick.get()
        } else {
            Duration::ZERO
        };
        let span = (limit + slack).as_millis().saturating_add(1).min(LONGEST);
        self.now()
            .wrapping_add(u32::try_from(span).unwrap_or(u32::MAX / 4))
    }

    /// A seat for a connection that was just accepted.
    pub fn seat(self: &Rc<Park>, client: Option<IpAddr>) -> Seat {
        let now = self.now();
        let entry = Entry {
            waker: None,
            phase: Cell::new(Phase::Fresh),
            order: Cell::new(Order::None),
            client_blocks: Cell::new(false),
            looks_back: Cell::new(false),
            streams: Cell::new(false),
            holds_head: Cell::new(false),
            host: Cell::new(0),
            has_deadline: Cell::new(false),
            has_write_deadline: Cell::new(false),
            since: Cell::new(now),
            deadline: Cell::new(0),
            write_deadline: Cell::new(0),
            moved_at: Cell::new(now),
            bytes: Cell::new(0),
            bytes_at_mark: Cell::new(0),
            mark: Cell::new(now),
        };
        let mut entries = self.entries.borrow_mut();
        let index = if let Some(index) = self.free.borrow_mut().pop() {
            if let Some(place) = entries.get_mut(index as usize) {
                *place = entry;
            }
            index
        } else {
            entries.push(entry);
            u32::try_from(entries.len() - 1).unwrap_or(u32::MAX)
        };
        self.open.set(self.open.get() + 1);
        Seat(Watch {
            park: Rc::clone(self),
            index,
            client,
        })
    }

    /// Makes the sweep look soon, whatever it sleeps for.
    pub fn rouse(&self) {
        self.rouse_sweep(None);
    }

    fn rouse_sweep(&self, due: Option<Tick>) {
        let sooner = match (due, self.next.get()) {
            (None, _) | (Some(_), None) => true,
            (Some(due), Some(next)) => is_past(next, due),
        };
        if !self.ticking.get()
            && sooner
            && let Some(waker) = &*self.sweep.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// Asks up to `many` connections to leave that do nothing, or are not done with a request head: those who are at it
    /// longest first. Says how many were asked. `spare` keeps those that have only just come, or just said something.
    pub fn evict_silent(&self, many: usize, spare: bool) -> usize {
        let now = self.now();
        let entries = self.entries.borrow();
        let mut victims: Vec<(u32, &Entry)> = Vec::with_capacity(many + 1);
        for entry in entries.iter() {
            let age = now.wrapping_sub(entry.since.get());
            let is_silent = matches!(
                entry.phase.get(),
                Phase::Fresh | Phase::Idle | Phase::Head | Phase::Lingering
            );
            if !is_silent || entry.order.get() == Order::Leave || (spare && age < SPARED) {
                continue;
            }
            let at = victims.partition_point(|(older, _)| *older >= age);
            if at < many {
                victims.truncate(many - 1);
                victims.insert(at, (age, entry));
            }
        }
        for (_, entry) in &victims {
            entry.tell(Order::Leave);
        }
        victims.len()
    }

    /// Asks the least progressing stream to leave: one whose client blocked it for five seconds, then one without a
    /// byte for as long, then the slowest under 1 kB/s; last, where tunnels count, one that is silent. `host` narrows it
    /// to the exchanges with one upstream. A request that waits for its answer is no stream. Says whether there was one.
    pub fn evict_stream(&self, host: Option<u32>, tunnels: bool) -> bool {
        self.evict_least(host, tunnels, STALLED)
    }

    /// The same where memory itself is nearly spent: then a client that blocks its stream may go after a moment.
    pub fn evict_blocked(&self) -> bool {
        self.evict_least(None, true, BLOCKED)
    }

    fn evict_least(&self, host: Option<u32>, tunnels: bool, blocked_for: u32) -> bool {
        let now = self.now();
        let entries = self.entries.borrow();
        let worst = entries.iter().filter_map(|entry| {
            if entry.order.get() == Order::Leave
                || host.is_some_and(|host| entry.host.get() != host)
            {
                return None;
            }
            let still = now.wrapping_sub(entry.moved_at.get());
            let span = now.wrapping_sub(entry.mark.get());
            let moved = entry.bytes.get().wrapping_sub(entry.bytes_at_mark.get());
            let rate =
                u32::try_from(u64::from(moved) * 1000 / u64::from(span.max(1))).unwrap_or(u32::MAX);
            let (blocked, streams) = (entry.client_blocks.get(), entry.streams.get());
            match entry.phase.get() {
                Phase::Busy if blocked && still >= blocked_for => Some((3_u8, still, entry)),
                Phase::Busy if streams && still >= STALLED => Some((2, still, entry)),
                Phase::Busy if streams && span >= STALLED && rate < SLOW => {
                    Some((1, u32::MAX - rate, entry))
                }
                Phase::Tunnel if tunnels && still >= STALLED => Some((0, still, entry)),
                _ => None,
            }
        });
        let Some((_, _, entry)) = worst.max_by_key(|(class, key, _)| (*class, *key)) else {
            return false;
        };
        entry.tell(Order::Leave);
        true
    }

    /// Asks up to `many` exchanges to leave that hold memory for a large response head while the client has not moved a
    /// byte for a moment, those first that have stood still longest: the client does not read it, or the upstream does not
    /// end it. Says how many were asked.
    pub fn evict_heads(&self, many: usize) -> usize {
        let now = self.now();
        let entries = self.entries.borrow();
        let mut holders: Vec<(u32, &Entry)> = entries
            .iter()
            .filter(|entry| entry.holds_head.get() && entry.order.get() != Order::Leave)
            .map(|entry| (now.wrapping_sub(entry.moved_at.get()), entry))
            .filter(|(still, _)| *still >= BLOCKED)
            .collect();
        holders.sort_by_key(|(still, _)| std::cmp::Reverse(*still));
        holders.truncate(many);
        for (_, entry) in &holders {
            entry.tell(Order::Leave);
        }
        holders.len()
    }

    /// Asks up to `many` connections to leave whose client has for a moment not acknowledged the end of its last answer:
    /// what the kernel keeps of it is paid for. Those first that owe longest. Says how many were asked.
    pub fn evict_unsent(&self, many: usize) -> usize {
        let now = self.now();
        let entries = self.entries.borrow();
        let mut owing: Vec<(u32, &Entry)> = entries
            .iter()
            .filter(|entry| {
                matches!(entry.phase.get(), Phase::Idle | Phase::Lingering)
                    && entry.looks_back.get()
                    && entry.order.get() != Order::Leave
            })
            .map(|entry| (now.wrapping_sub(entry.since.get()), entry))
            .filter(|(age, _)| *age >= BLOCKED)
            .collect();
        owing.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        owing.truncate(many);
        for (_, entry) in &owing {
            entry.tell(Order::Leave);
        }
        owing.len()
    }

    /// Asks up to `many` requests that wait for memory to take their 503 now, those that wait longest first.
    pub fn evict_waiting(&self, many: usize) {
        let now = self.now();
        let entries = self.entries.borrow();
        let is_waiting = |entry: &&Entry| {
            entry.phase.get() == Phase::Waiting && entry.order.get() != Order::Leave
        };
        let mut waiting: Vec<&Entry> = entries.iter().filter(is_waiting).collect();
        waiting.sort_by_key(|entry| std::cmp::Reverse(now.wrapping_sub(entry.since.get())));
        for entry in waiting.into_iter().take(many) {
            entry.tell(Order::Leave);
        }
    }

    /// Tells every connection that the program is stopping; those in the middle of an exchange finish it first. Whoever
    /// has only just come, or just been answered, is on the point of asking and is spared for now, to be told
    /// `connection: close` with the answer instead of losing a request: call it again until nobody is left.
    pub fn finish(&self) {
        let now = self.now();
        for entry in self.entries.borrow().iter() {
            let age = now.wrapping_sub(entry.since.get());
            let is_spared = match entry.phase.get() {
                Phase::Empty => true,
                Phase::Fresh => age < AWAITED.0,
                Phase::Idle => age < AWAITED.1,
                _ => false,
            };
            if !is_spared && !matches!(entry.order.get(), Order::Finish | Order::Leave) {
                entry.tell(Order::Finish);
            }
        }
    }

    /// Tells every connection to leave at once: the program's time is over.
    pub fn close(&self) {
        self.closing.set(true);
        for entry in self.entries.borrow().iter() {
            if entry.phase.get() != Phase::Empty {
                entry.tell(Order::Leave);
            }
        }
    }

    /// Connections that are in this phase.
    pub fn count(&self, phase: Phase) -> usize {
        self.entries
            .borrow()
            .iter()
            .filter(|entry| entry.phase.get() == phase)
            .count()
    }

    /// One look at every seat: wakes whose deadline passed. Gives when the next look is due:
    /// `None` = nobody waits for anything.
    fn look(&self) -> Option<Duration> {
        self.look_at_the_clock();
        let now = self.now.get();
        let tick = self.tick.get();
        let mut next: Option<Tick> = None;
        let mut working = false;
        for entry in self.entries.borrow().iter() {
            let phase = entry.phase.get();
            if phase == Phase::Empty {
                continue;
            }
            if entry.looks_back.get() {
                entry.wake();
                working = true;
            }
            working |= !matches!(phase, Phase::Fresh | Phase::Idle);
            if now.wrapping_sub(entry.mark.get()) >= 2 * STALLED {
                entry.mark.set(now);
                entry.bytes_at_mark.set(entry.bytes.get());
            }
            for (has, due) in [
                (&entry.has_deadline, &entry.deadline),
                (&entry.has_write_deadline, &entry.write_deadline),
            ] {
                if !has.get() {
                    continue;
                }
                if is_past(now, due.get()) {
                    entry.wake();
                    working = true;
                } else if next.is_none_or(|next| is_past(next, due.get())) {
                    next = Some(due.get());
                }
            }
        }
        self.ticking.set(working);
        self.next.set(next);
        if working {
            return Some(tick);
        }
        next.map(|due| Duration::from_millis(u64::from(due.wrapping_sub(now))).max(tick))
    }

    /// The one timer of the program: runs for ever; `each` is called after every look. `longest` is how long it may sleep
    /// where nothing is due; `None` = until something is.
    pub async fn sweep(
        self: Rc<Park>,
        longest: Option<Duration>,
        mut each: impl FnMut() -> bool,
    ) -> Infallible {
        poll_fn(|context| {
            *self.sweep.borrow_mut() = Some(context.waker().clone());
            Poll::Ready(())
        })
        .await;
        loop {
            let pause = self.look();
            // what else wants a tick: idle upstream connections, a budget under pressure
            let pause = if each() && pause.is_none_or(|pause| pause > self.tick.get()) {
                self.ticking.set(true);
                Some(self.tick.get())
            } else {
                pause
            };
            let pause = pause.into_iter().chain(longest).min();
            let mut sleep = pin!(pause.map(tokio::time::sleep));
            let mut slept = false;
            poll_fn(|context| {
                if let Some(sleep) = sleep.as_mut().as_pin_mut()
                    && sleep.poll(context).is_ready()
                {
                    return Poll::Ready(());
                }
                // woken by hand: something is due sooner than the sleep
                if slept && !self.ticking.get() {
                    return Poll::Ready(());
                }
                slept = true;
                Poll::Pending
            })
            .await;
        }
    }
}

/// Whether `due` has come at `now`.
fn is_past(now: Tick, due: Tick) -> bool {
    now.wrapping_sub(due) < u32::MAX / 2
}

impl Entry {
    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    fn tell(&self, order: Order) {
        if self.order.get() != Order::Leave {
            self.order.set(order);
        }
        self.wake();
    }
}

impl std::ops::Deref for Seat {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.0
    }
}

impl Watch {
    fn with<T>(&self, look: impl FnOnce(&Entry) -> T) -> T {
        let entries = self.park.entries.borrow();
        look(
            entries
                .get(self.index as usize)
                .expect("a seat is in the table until it is dropped"),
        )
    }

    /// Registers the task that sits here.
    pub fn settle(&self, waker: &Waker) {
        if let Some(entry) = self.park.entries.borrow_mut().get_mut(self.index as usize) {
            entry.waker = Some(waker.clone());
        }
    }

    /// The park's coarse time, in milliseconds.
    pub fn now(&self) -> u32 {
        self.park.now()
    }

    /// The client's address; `None` on a unix socket.
    pub fn client(&self) -> Option<IpAddr> {
        self.client
    }

    /// Goes over to another phase, which may last for `limit`.
    pub fn enter(&self, phase: Phase, limit: Option<Duration>) {
        self.enter_on_time(phase);
        self.set_deadline(limit);
    }

    /// Goes over to another phase while the deadline stays what it is.
    pub fn enter_on_time(&self, phase: Phase) {
        self.with(|entry| {
            entry.since.set(self.park.now());
            entry.looks_back.set(false);
            entry.streams.set(false);
            entry.holds_head.set(false);
            entry.client_blocks.set(false);
            entry.host.set(0);
            entry.moved_at.set(entry.since.get());
            entry.mark.set(entry.since.get());
            entry.bytes.set(0);
            entry.bytes_at_mark.set(0);
            entry.phase.set(phase);
        });
        if !matches!(phase, Phase::Fresh | Phase::Idle) {
            self.park.rouse_sweep(None);
        }
    }

    /// The phase it is in.
    pub fn phase(&self) -> Phase {
        self.with(|entry| entry.phase.get())
    }

    /// What the task waits for next must come within `limit`; `None` = it may take for ever.
    pub fn set_deadline(&self, limit: Option<Duration>) {
        let due = limit.map(|limit| self.park.due(limit));
        self.with(|entry| {
            entry.has_deadline.set(due.is_some());
            entry.deadline.set(due.unwrap_or(0));
        });
        if due.is_some() {
            self.park.rouse_sweep(due);
        }
    }

    /// Whether the deadline has passed. The sweep wakes the task when it does.
    pub fn is_overdue(&self) -> bool {
        self.with(|entry| {
            entry.has_deadline.get() && is_past(self.park.now(), entry.deadline.get())
        })
    }

    /// The client takes no more bytes at the moment: it has `limit` to go on. A deadline that runs keeps running.
    pub fn write_blocked(&self, limit: Option<Duration>) {
        self.with(|entry| {
            entry.client_blocks.set(true);
            if let Some(limit) = limit
                && !entry.has_write_deadline.replace(true)
            {
                entry.write_deadline.set(self.park.due(limit));
            }
        });
        self.park.rouse_sweep(None);
    }

    /// Whether the client took no byte for too long.
    pub fn is_write_overdue(&self) -> bool {
        self.with(|entry| {
            entry.has_write_deadline.get() && is_past(self.park.now(), entry.write_deadline.get())
        })
    }

    /// The client took bytes: whatever it had to take them in starts anew.
    pub fn took(&self, bytes: usize) {
        self.moved(bytes);
        self.with(|entry| entry.has_write_deadline.set(false));
    }

    /// How many bytes it took and gave in this phase; wraps.
    pub fn bytes(&self) -> u32 {
        self.with(|entry| entry.bytes.get())
    }

    /// The client took or gave bytes.
    pub fn moved(&self, bytes: usize) {
        let now = self.park.now();
        self.with(|entry| {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "it wraps, which neither a rate nor a first look minds"
            )]
            entry
                .bytes
                .set(entry.bytes.get().wrapping_add(bytes as u32));
            entry.moved_at.set(now);
            entry.client_blocks.set(false);
        });
    }

    /// Whether the task is to be woken at every tick, to look for what wakes nobody. Gives what it was before.
    pub fn look_back(&self, on: bool) -> bool {
        let before = self.with(|entry| entry.looks_back.replace(on));
        if on && !before {
            self.park.rouse_sweep(None);
        }
        before
    }

    /// The exchange asks this upstream from now on.
    pub fn asks(&self, host: u32) {
        self.with(|entry| entry.host.set(host));
    }

    /// The answer's head is there, the rest of it streams.
    pub fn streams(&self) {
        let now = self.park.now();
        self.with(|entry| {
            entry.streams.set(true);
            entry.client_blocks.set(false);
            entry.moved_at.set(now);
            entry.mark.set(now);
            entry.bytes_at_mark.set(entry.bytes.get());
        });
    }

    /// The exchange waits for bytes from the client.
    pub fn client_blocks(&self) {
        self.with(|entry| entry.client_blocks.set(true));
    }

    /// Whether the exchange holds memory for a large response head.
    pub fn holds_head(&self, on: bool) {
        self.with(|entry| entry.holds_head.set(on));
    }

    /// What the sweep wants.
    pub fn order(&self) -> Order {
        self.with(|entry| entry.order.get())
    }

    /// How an exchange ends that is told to leave.
    pub fn leave_outcome(&self) -> Outcome {
        if self.park.closing.get() {
            Outcome::Shutdown
        } else {
            Outcome::Evicted
        }
    }

    /// Runs this connection's task again.
    pub fn wake(&self) {
        self.with(Entry::wake);
    }

    /// Waits for `work`, but no longer than `limit` and not once the seat is told to leave.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is over.
    pub async fn within<T>(
        &self,
        limit: Option<Duration>,
        work: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        let mut work = pin!(work);
        let mut armed = false;
        let result = poll_fn(|context| {
            if let Poll::Ready(value) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            if limit == Some(Duration::ZERO) {
                return Poll::Ready(Err(Elapsed));
            }
            if !armed {
                armed = true;
                self.set_deadline(limit);
            }
            if self.is_overdue() || self.order() == Order::Leave {
                Poll::Ready(Err(Elapsed))
            } else {
                Poll::Pending
            }
        })
        .await;
        if armed {
            self.set_deadline(None);
        }
        result
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Watch { park, index, .. } = &self.0;
        let waker = park
            .entries
            .borrow_mut()
            .get_mut(*index as usize)
            .and_then(|entry| {
                entry.phase.set(Phase::Empty);
                entry.has_deadline.set(false);
                entry.has_write_deadline.set(false);
                entry.waker.take()
            });
        drop(waker);
        park.free.borrow_mut().push(*index);
        park.open.set(park.open.get() - 1);
        park.room.wake();
    }
}
