//! Every client connection has a seat here, and one sweep looks after all of them: every deadline of the program, who
//! is silent longest, who makes least progress.
//!
//! A seat is some fifty bytes in one table. Nothing here owns a socket: the sweep only wakes the task that does, and
//! that task looks at its seat. Time is coarse: it stands still between two ticks, deadlines are rounded up and never
//! early. While only resting connections are open the sweep sleeps until the first of them is due; with none it does
//! not run at all.

pub mod eviction;
pub mod phase;

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

use crate::{
    client_group::{Group, Majority, majority},
    connection_table::{
        eviction::{BLOCKED, Holder, Reason, Scope},
        phase::Phase,
    },
    memory::queue::Queue,
    outcome::Outcome,
};

/// What the sweep wants of a connection's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directive {
    /// Carry on.
    None,
    /// Others need the room more.
    Leave,
    /// The program is stopping: close once the exchange is done.
    Finish,
}

/// Milliseconds since the park opened; wraps after 49 days, so it is only ever compared by difference.
type Tick = u32;

/// How often the sweep runs while something is going on: five times a second, and more often where a time-out is short.
const SLOWEST: Duration = Duration::from_millis(200);
const FASTEST: Duration = Duration::from_millis(10);

/// Time-outs longer than this (12 days) are cut to it, so that differences stay readable.
const LONGEST: u128 = 1 << 30;

/// A connection that has only just come, or just said something, is not evicted for this long, so that two floods do not
/// starve each other and a client in the middle of its work is left alone; in milliseconds.
const SPARED: u32 = 250;

/// How long a connection that has just come may take for its first byte when the program stops, and one that was just
/// answered for its next; in milliseconds, of which up to a tick may be gone already.
const AWAITED: (u32, u32) = (1_000, 500);

/// The same for a connection that has said nothing yet, in milliseconds: a request mostly comes with the connection, and
/// some thousand that stay mute must not keep the others out for seconds.
const SILENT: u32 = 50;

/// The same for a connection that had its last answer and only reads on, in milliseconds: enough for an answer to arrive.
const LINGERED: u32 = 50;

/// How often a task that is blocked is woken to look at its sockets after the first second, in milliseconds.
const LOOKS: u32 = 1_000;

/// A sign of progress that is not known yet.
const UNKNOWN: u32 = 0;

/// What is true of an entry, as bits of [`SlotState::flags`].
mod flag {
    /// Woken at every tick for a second, then once a second.
    pub const LOOKS_BACK: u8 = 1;
    /// Was woken to look, and has not looked yet.
    pub const LOOK_DUE: u8 = 1 << 1;
    /// The client, and not the upstream, is what the exchange waits for.
    pub const CLIENT_BLOCKS: u8 = 1 << 2;
    /// The request's body is on its way to the upstream.
    pub const UPLOADS: u8 = 1 << 3;
    /// The answer is on its way to the client.
    pub const STREAMS: u8 = 1 << 4;
    /// Waits in line for a place or an upstream connection.
    pub const QUEUED: u8 = 1 << 5;
    /// Holds one of `max_concurrent_requests`.
    pub const PLACE: u8 = 1 << 6;
    /// Holds memory for a large response head.
    pub const HOLDS_HEAD: u8 = 1 << 7;
}

/// A time-out that runs, and the progress of what it is for.
#[derive(Debug, Default)]
struct Timer {
    runs: Cell<bool>,
    due: Cell<Tick>,
    /// How far the other side's kernel had come at the last look; see [`SlotRef::is_stalled`].
    sign: Cell<u32>,
}

#[derive(Debug)]
struct SlotState {
    waker: Option<Waker>,
    phase: Cell<Phase>,
    order: Cell<Directive>,
    flags: Cell<u8>,
    /// Which upstream it holds a connection of, by its number in the pool; 0 = none.
    host: Cell<u32>,
    /// Whom it counts as.
    group: Cell<Group>,
    since: Cell<Tick>,
    /// What the task waits for, and what the client takes: in the order of [`TimerKind`].
    timers: [Timer; 2],
    moved_at: Cell<Tick>,
    bytes: Cell<u32>,
    /// When the rate was measured last and before that, and the bytes by then.
    mark: Cell<Tick>,
    bytes_at_mark: Cell<u32>,
    older_mark: Cell<Tick>,
    bytes_at_older: Cell<u32>,
}

/// The two time-outs that a connection may stand under at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerKind {
    /// What its task waits for next.
    Work,
    /// That the client takes what waits for it.
    Client,
}

/// The table of seats and its clock.
#[derive(Debug)]
pub struct ConnectionTable {
    entries: RefCell<Vec<SlotState>>,
    free: RefCell<Vec<u32>>,
    open: Cell<usize>,
    /// The program's time is over: whatever is told to leave is told so for that.
    closing: Cell<bool>,
    origin: Instant,
    now: Cell<Tick>,
    /// The sweep runs at every tick, so that `now` is at most one tick old.
    ticking: Cell<bool>,
    tick: Cell<Duration>,
    /// Looks so far; wraps.
    looks: Cell<u32>,
    /// When a sleeping sweep will wake.
    next: Cell<Option<Tick>>,
    sweep: RefCell<Option<Waker>>,
    /// Wakes whoever waits for a seat.
    pub room: Rc<Queue>,
}

/// One connection's place in the park; given up on drop.
#[derive(Debug)]
pub struct Slot(SlotRef);

/// A look at a seat, for those who work for the connection that sits there. Must not outlive the [`Slot`].
#[derive(Debug, Clone)]
pub struct SlotRef {
    table: Rc<ConnectionTable>,
    index: u32,
    /// Here and not in the table: the task that sits there has room to spare in its allocation.
    client: Option<IpAddr>,
}

/// A wait took longer than it may.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

impl ConnectionTable {
    /// An empty park.
    pub fn new(room: Rc<Queue>) -> Rc<ConnectionTable> {
        Rc::new(ConnectionTable {
            entries: RefCell::default(),
            free: RefCell::default(),
            open: Cell::new(0),
            closing: Cell::new(false),
            origin: Instant::now(),
            now: Cell::new(0),
            ticking: Cell::new(false),
            tick: Cell::new(SLOWEST),
            looks: Cell::new(0),
            next: Cell::new(None),
            sweep: RefCell::default(),
            room,
        })
    }

    /// After a reload: the time-outs that are in force now set the pace again.
    pub fn reset_pace(&self) {
        self.tick.set(SLOWEST);
    }

    /// Lets the sweep run so often that a time-out of `limit` is late by a tenth of it at most. Every time-out that is
    /// started passes here, so none can be forgotten.
    pub fn keep_pace(&self, limit: Duration) {
        let tick = (limit / 10).clamp(FASTEST, SLOWEST);
        if tick < self.tick.get() && !limit.is_zero() {
            self.tick.set(tick);
            // it may be in the middle of a longer sleep
            self.ticking.set(false);
            self.rouse_sweep(None);
        }
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
    pub fn slot(self: &Rc<ConnectionTable>, client: Option<IpAddr>) -> Slot {
        let now = self.now();
        let entry = SlotState {
            waker: None,
            phase: Cell::new(Phase::Fresh),
            order: Cell::new(Directive::None),
            flags: Cell::new(0),
            host: Cell::new(0),
            group: Cell::new(Group::of(client)),
            since: Cell::new(now),
            timers: Default::default(),
            moved_at: Cell::new(now),
            bytes: Cell::new(0),
            mark: Cell::new(now),
            bytes_at_mark: Cell::new(0),
            older_mark: Cell::new(now),
            bytes_at_older: Cell::new(0),
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
        Slot(SlotRef {
            table: Rc::clone(self),
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
    pub fn evict_idle(&self, many: usize, spare: bool) -> usize {
        let now = self.now();
        let entries = self.entries.borrow();
        let mut victims: Vec<(u32, &SlotState)> = Vec::with_capacity(many + 1);
        for entry in entries.iter() {
            let age = now.wrapping_sub(entry.since.get());
            let is_silent = matches!(
                entry.phase.get(),
                Phase::Fresh | Phase::Idle | Phase::Head | Phase::Lingering
            );
            let spared = match entry.phase.get() {
                Phase::Fresh => SILENT,
                Phase::Lingering => LINGERED,
                _ => SPARED,
            };
            if !is_silent || entry.order.get() == Directive::Leave || (spare && age < spared) {
                continue;
            }
            let at = victims.partition_point(|(older, _)| *older >= age);
            if at < many {
                victims.truncate(many - 1);
                victims.insert(at, (age, entry));
            }
        }
        for (_, entry) in &victims {
            entry.tell(Directive::Leave);
        }
        victims.len()
    }

    /// Asks the one to leave that [`eviction::rank`] puts first, of those that hold what `scope` says. Says whether there
    /// was one.
    pub fn evict_least(&self, scope: Scope, reason: Reason) -> bool {
        let now = self.now();
        let entries = self.entries.borrow();
        let worst = entries
            .iter()
            .filter(|entry| entry.order.get() != Directive::Leave && entry.holds(scope))
            .filter_map(|entry| Some((eviction::rank(&entry.holder(now), scope, reason)?, entry)))
            .max_by_key(|(rank, _)| *rank);
        let Some((_, entry)) = worst else {
            return false;
        };
        entry.tell(Directive::Leave);
        true
    }

    /// Asks up to `many` exchanges to leave that hold memory for a large response head while the client has not moved a
    /// byte for a moment, those first that have stood still longest: the client does not read it, or the upstream does not
    /// end it. Says how many were asked.
    pub fn evict_heads(&self, many: usize) -> usize {
        let now = self.now();
        let entries = self.entries.borrow();
        let mut holders: Vec<(u32, &SlotState)> = entries
            .iter()
            .filter(|entry| entry.has(flag::HOLDS_HEAD) && entry.order.get() != Directive::Leave)
            .map(|entry| (now.wrapping_sub(entry.moved_at.get()), entry))
            .filter(|(still, _)| *still >= BLOCKED)
            .collect();
        holders.sort_by_key(|(still, _)| std::cmp::Reverse(*still));
        holders.truncate(many);
        for (_, entry) in &holders {
            entry.tell(Directive::Leave);
        }
        holders.len()
    }

    /// Asks up to `many` connections to leave whose client has for a moment not acknowledged the end of its last answer:
    /// what the kernel keeps of it is paid for. Those first that owe longest. Says how many were asked.
    pub fn evict_unsent(&self, many: usize) -> usize {
        let now = self.now();
        let entries = self.entries.borrow();
        let mut owing: Vec<(u32, &SlotState)> = entries
            .iter()
            .filter(|entry| {
                matches!(entry.phase.get(), Phase::Idle | Phase::Lingering)
                    && entry.has(flag::LOOKS_BACK)
                    && entry.order.get() != Directive::Leave
            })
            .map(|entry| (now.wrapping_sub(entry.since.get()), entry))
            .filter(|(age, _)| *age >= BLOCKED)
            .collect();
        owing.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        owing.truncate(many);
        for (_, entry) in &owing {
            entry.tell(Directive::Leave);
        }
        owing.len()
    }

    /// The group that holds more than half of this.
    pub fn majority(&self, scope: Scope) -> Option<Majority> {
        let entries = self.entries.borrow();
        let holders = entries
            .iter()
            .filter(|entry| entry.order.get() != Directive::Leave && entry.holds(scope));
        majority(holders.map(|entry| entry.group.get()))
    }

    /// Asks up to `many` requests that wait for memory to take their 503 now, those that wait longest first; `only` those of
    /// one group. Says how many.
    pub fn evict_waiting(&self, many: usize, only: Option<Group>) -> usize {
        let now = self.now();
        let entries = self.entries.borrow();
        let is_waiting = |entry: &&SlotState| {
            entry.phase.get() == Phase::Waiting
                && entry.order.get() != Directive::Leave
                && only.is_none_or(|group| entry.group.get() == group)
        };
        let mut waiting: Vec<&SlotState> = entries.iter().filter(is_waiting).collect();
        waiting.sort_by_key(|entry| std::cmp::Reverse(now.wrapping_sub(entry.since.get())));
        waiting.truncate(many);
        for entry in &waiting {
            entry.tell(Directive::Leave);
        }
        waiting.len()
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
            if !is_spared && !matches!(entry.order.get(), Directive::Finish | Directive::Leave) {
                entry.tell(Directive::Finish);
            }
        }
    }

    /// Tells every connection to leave at once: the program's time is over.
    pub fn close(&self) {
        self.closing.set(true);
        for entry in self.entries.borrow().iter() {
            if entry.phase.get() != Phase::Empty {
                entry.tell(Directive::Leave);
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
        let looks = self.looks.get().wrapping_add(1);
        self.looks.set(looks);
        let millis = u32::try_from(tick.as_millis()).unwrap_or(u32::MAX).max(1);
        let every = (LOOKS / millis).max(1);
        for (index, entry) in (0_u32..).zip(self.entries.borrow().iter()) {
            let phase = entry.phase.get();
            if phase == Phase::Empty {
                continue;
            }
            entry.look_back(now, looks.wrapping_add(index) % every == 0);
            working |= !matches!(phase, Phase::Fresh | Phase::Idle);
            entry.measure(now);
            for timer in &entry.timers {
                if !timer.runs.get() {
                    continue;
                }
                if is_past(now, timer.due.get()) {
                    entry.wake();
                    working = true;
                } else if next.is_none_or(|next| is_past(next, timer.due.get())) {
                    next = Some(timer.due.get());
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
        self: Rc<ConnectionTable>,
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
                // woken by hand: something is due sooner than the sleep, or the pace is quicker now
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

impl Timer {
    /// Runs until `due`, or not at all.
    fn set(&self, due: Option<Tick>) {
        self.runs.set(due.is_some());
        self.due.set(due.unwrap_or(0));
        self.sign.set(UNKNOWN);
    }

    fn is_past(&self, now: Tick) -> bool {
        self.runs.get() && is_past(now, self.due.get())
    }
}

impl SlotState {
    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.get() & flag != 0
    }

    fn set(&self, flag: u8, on: bool) {
        let flags = self.flags.get();
        self.flags
            .set(if on { flags | flag } else { flags & !flag });
    }

    /// Wakes a task that asked for it: at every tick for the first second, then in its turn.
    fn look_back(&self, now: Tick, is_its_turn: bool) {
        let is_recent = now.wrapping_sub(self.moved_at.get()) < LOOKS;
        if self.has(flag::LOOKS_BACK) && (is_recent || is_its_turn) {
            self.set(flag::LOOK_DUE, true);
            self.wake();
        }
    }

    /// Notes the bytes so far, so that a rate is always known over the last five to ten seconds.
    fn measure(&self, now: Tick) {
        if now.wrapping_sub(self.mark.get()) >= eviction::STALLED {
            self.older_mark.set(self.mark.get());
            self.bytes_at_older.set(self.bytes_at_mark.get());
            self.mark.set(now);
            self.bytes_at_mark.set(self.bytes.get());
        }
    }

    /// The rate is measured from now on.
    fn measure_anew(&self, now: Tick) {
        self.moved_at.set(now);
        for mark in [&self.mark, &self.older_mark] {
            mark.set(now);
        }
        for bytes in [&self.bytes_at_mark, &self.bytes_at_older] {
            bytes.set(self.bytes.get());
        }
    }

    /// Whether it holds some of this.
    fn holds(&self, scope: Scope) -> bool {
        let phase = self.phase.get();
        match scope {
            Scope::Host(host) => self.host.get() == host,
            Scope::ConcurrencyLimit => self.has(flag::PLACE),
            Scope::Memory => matches!(phase, Phase::Busy | Phase::Tunnel),
        }
    }

    /// How it does, for those who choose whom to evict.
    fn holder(&self, now: Tick) -> Holder {
        let span = now.wrapping_sub(self.older_mark.get());
        let moved = self.bytes.get().wrapping_sub(self.bytes_at_older.get());
        let rate = u64::from(moved) * 1000 / u64::from(span.max(1));
        Holder {
            phase: self.phase.get(),
            group: self.group.get(),
            is_queued: self.has(flag::QUEUED),
            moves: self.has(flag::STREAMS) || self.has(flag::UPLOADS),
            client_blocks: self.has(flag::CLIENT_BLOCKS),
            still: now.wrapping_sub(self.moved_at.get()),
            rate: (span >= eviction::STALLED).then(|| u32::try_from(rate).unwrap_or(u32::MAX)),
        }
    }

    fn timer(&self, kind: TimerKind) -> &Timer {
        let [work, client] = &self.timers;
        match kind {
            TimerKind::Work => work,
            TimerKind::Client => client,
        }
    }

    fn tell(&self, order: Directive) {
        if self.order.get() != Directive::Leave {
            self.order.set(order);
        }
        self.wake();
    }
}

impl std::ops::Deref for Slot {
    type Target = SlotRef;

    fn deref(&self) -> &SlotRef {
        &self.0
    }
}

impl SlotRef {
    fn with<T>(&self, look: impl FnOnce(&SlotState) -> T) -> T {
        let entries = self.table.entries.borrow();
        look(
            entries
                .get(self.index as usize)
                .expect("a seat is in the table until it is dropped"),
        )
    }

    /// Registers the task that sits here.
    pub fn settle(&self, waker: &Waker) {
        if let Some(entry) = self.table.entries.borrow_mut().get_mut(self.index as usize) {
            entry.waker = Some(waker.clone());
        }
    }

    /// The park's coarse time, in milliseconds.
    pub fn now(&self) -> u32 {
        self.table.now()
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
            let now = self.table.now();
            entry.since.set(now);
            entry.flags.set(0);
            entry.host.set(0);
            entry.bytes.set(0);
            entry.measure_anew(now);
            entry.phase.set(phase);
        });
        if !matches!(phase, Phase::Fresh | Phase::Idle) {
            self.table.rouse_sweep(None);
        }
    }

    /// The phase it is in.
    pub fn phase(&self) -> Phase {
        self.with(|entry| entry.phase.get())
    }

    /// What the task waits for next must come within `limit`; `None` = it may take for ever.
    pub fn set_deadline(&self, limit: Option<Duration>) {
        self.start(limit, limit);
    }

    /// The same for the `rest` of a time-out of `limit`.
    fn start(&self, rest: Option<Duration>, limit: Option<Duration>) {
        if let Some(limit) = limit
            && limit < 10 * self.table.tick.get()
        {
            self.table.keep_pace(limit);
        }
        let due = rest.map(|rest| self.table.due(rest));
        self.with(|entry| entry.timer(TimerKind::Work).set(due));
        if due.is_some() {
            self.table.rouse_sweep(due);
        }
    }

    /// Whether the deadline has passed. The sweep wakes the task when it does.
    pub fn is_overdue(&self) -> bool {
        self.with(|entry| entry.timer(TimerKind::Work).is_past(self.table.now()))
    }

    /// The other side of a socket takes no bytes at the moment; says whether it has taken none for `limit`. `sign` is a
    /// number that changes whenever it takes some ([`crate::sys::taken`]): a kernel that drains a large buffer slowly says
    /// nothing for long, and yet gets on. It is asked once a tick at most.
    pub fn is_stalled(
        &self,
        kind: TimerKind,
        limit: Option<Duration>,
        sign: impl FnOnce() -> u32,
    ) -> bool {
        let now = self.table.now();
        let (starts, is_past) = self.with(|entry| {
            let timer = entry.timer(kind);
            entry.set(flag::LOOKS_BACK, true);
            if kind == TimerKind::Client {
                entry.set(flag::CLIENT_BLOCKS, true);
            }
            if entry.has(flag::LOOK_DUE) || timer.is_past(now) {
                let (sign, before) = (sign().max(UNKNOWN + 1), timer.sign.get());
                timer.sign.set(sign);
                if before != UNKNOWN && before != sign {
                    entry.moved_at.set(now);
                    timer.runs.set(false);
                }
            }
            (!timer.runs.get(), timer.is_past(now))
        });
        if starts && let Some(limit) = limit {
            self.table.keep_pace(limit);
            let due = self.table.due(limit);
            self.with(|entry| {
                let timer = entry.timer(kind);
                timer.runs.set(true);
                timer.due.set(due);
            });
            self.table.rouse_sweep(Some(due));
        }
        self.table.rouse_sweep(None);
        is_past
    }

    /// Whether the client has taken no byte for too long.
    pub fn is_write_overdue(&self) -> bool {
        self.with(|entry| entry.timer(TimerKind::Client).is_past(self.table.now()))
    }

    /// It takes bytes again, or nothing is to be taken.
    pub fn goes_on(&self, kind: TimerKind) {
        self.with(|entry| entry.timer(kind).set(None));
    }

    /// The client took bytes: whatever it had to take them in starts anew.
    pub fn took(&self, bytes: usize) {
        self.moved(bytes);
        self.goes_on(TimerKind::Client);
    }

    /// The client took or gave bytes.
    pub fn moved(&self, bytes: usize) {
        let now = self.table.now();
        self.with(|entry| {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "it wraps, which neither a rate nor a first look minds"
            )]
            entry
                .bytes
                .set(entry.bytes.get().wrapping_add(bytes as u32));
            entry.moved_at.set(now);
            entry.set(flag::CLIENT_BLOCKS, false);
        });
    }

    /// Whether the task is to be woken to look for what wakes nobody: at every tick at first, then once a second.
    /// Gives what it was before.
    pub fn look_back(&self, on: bool) -> bool {
        let before = self.with(|entry| {
            let before = entry.has(flag::LOOKS_BACK);
            entry.set(flag::LOOKS_BACK, on);
            before
        });
        if on && !before {
            self.table.rouse_sweep(None);
        }
        before
    }

    /// Whether it was woken for that, and has not called [`has_looked`](Self::has_looked) since.
    pub fn is_to_look(&self) -> bool {
        self.with(|entry| entry.has(flag::LOOK_DUE))
    }

    /// It has.
    pub fn has_looked(&self) {
        self.with(|entry| entry.set(flag::LOOK_DUE, false));
    }

    /// Whom the client counts as.
    pub fn group(&self) -> Group {
        self.with(|entry| entry.group.get())
    }

    /// It counts as somebody else from now on: proxies bring the requests of many.
    pub fn set_group(&self, group: Group) {
        self.with(|entry| entry.group.set(group));
    }

    /// Waits in line for a place or a connection, or no longer does.
    pub fn queues(&self, on: bool) {
        self.with(|entry| entry.set(flag::QUEUED, on));
    }

    /// Has one of `max_concurrent_requests` from now on.
    pub fn has_place(&self) {
        self.with(|entry| entry.set(flag::PLACE, true));
    }

    /// The exchange has a connection of this upstream from now on, or the room for one.
    pub fn asks(&self, host: u32) {
        let now = self.table.now();
        self.with(|entry| {
            entry.host.set(host);
            entry.measure_anew(now);
        });
    }

    /// The request's body is on its way to the upstream, or has arrived there.
    pub fn uploads(&self, on: bool) {
        self.with(|entry| entry.set(flag::UPLOADS, on));
    }

    /// The answer's head is there, the rest of it streams.
    pub fn streams(&self) {
        let now = self.table.now();
        self.with(|entry| {
            if !entry.has(flag::UPLOADS) {
                // what the body's rate was says nothing of the answer's
                entry.measure_anew(now);
            }
            entry.set(flag::STREAMS, true);
            entry.set(flag::CLIENT_BLOCKS, false);
        });
    }

    /// The exchange waits for bytes from the client.
    pub fn client_blocks(&self) {
        self.with(|entry| entry.set(flag::CLIENT_BLOCKS, true));
    }

    /// Whether the exchange holds memory for a large response head.
    pub fn holds_head(&self, on: bool) {
        self.with(|entry| entry.set(flag::HOLDS_HEAD, on));
    }

    /// What the sweep wants.
    pub fn order(&self) -> Directive {
        self.with(|entry| entry.order.get())
    }

    /// How an exchange ends that is told to leave.
    pub fn leave_outcome(&self) -> Outcome {
        if self.table.closing.get() {
            Outcome::Shutdown
        } else {
            Outcome::Evicted
        }
    }

    /// Runs this connection's task again.
    pub fn wake(&self) {
        self.with(SlotState::wake);
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
        self.within_rest(limit, limit, work).await
    }

    /// The same where only the `rest` of a time-out is left.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is over.
    pub async fn within_rest<T>(
        &self,
        rest: Option<Duration>,
        limit: Option<Duration>,
        work: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        let mut work = pin!(work);
        let mut armed = false;
        let result = poll_fn(|context| {
            if let Poll::Ready(value) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            if rest == Some(Duration::ZERO) {
                return Poll::Ready(Err(Elapsed));
            }
            if !armed {
                armed = true;
                self.start(rest, limit);
            }
            if self.is_overdue() || self.order() == Directive::Leave {
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

impl Drop for Slot {
    fn drop(&mut self) {
        let SlotRef { table, index, .. } = &self.0;
        let waker = table
            .entries
            .borrow_mut()
            .get_mut(*index as usize)
            .and_then(|entry| {
                entry.phase.set(Phase::Empty);
                entry.flags.set(0);
                entry.host.set(0);
                for timer in &entry.timers {
                    timer.set(None);
                }
                entry.waker.take()
            });
        drop(waker);
        table.free.borrow_mut().push(*index);
        table.open.set(table.open.get() - 1);
        table.room.wake();
    }
}
