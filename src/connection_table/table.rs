//! The table and its clock: one timer checks every slot and wakes the tasks whose deadline has passed.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use crate::{
    client_group::{Group, Surplus, above_equal_share},
    clock::sleep,
    connection_table::{
        eviction::Scope,
        phase::Phase,
        slot_state::{Directive, LOOKS, SlotState, Tick, is_past},
    },
    memory::queue::Queue,
};

/// The longest tick while there are deadlines; ticks are shorter where a time-out is short.
const SLOWEST: Duration = Duration::from_millis(200);

const FASTEST: Duration = Duration::from_millis(10);

/// The part of a time-out by which it may be late.
const LATE: u32 = 10;

/// Longer time-outs (in milliseconds; 12 days) are cut to this, so that differences of ticks stay unambiguous.
const LONGEST: u64 = 1 << 30;

/// The slots of one thread's connections, and their clock.
#[derive(Debug)]
pub struct ConnectionTable {
    pub(super) entries: RefCell<Vec<SlotState>>,
    pub(super) free: RefCell<Vec<u32>>,
    pub(super) open: Cell<usize>,
    /// How many of them are streams of a connection that has a slot of its own.
    pub(super) streams: Cell<usize>,
    /// The time for the stop is over: connections that are told to leave end with that outcome.
    pub(super) closing: Cell<bool>,
    pub(super) origin: Instant,
    pub(super) now: Cell<Tick>,
    /// The timer runs at every tick, so that `now` is at most one tick old.
    pub(super) ticking: Cell<bool>,
    pub(super) tick: Cell<Duration>,
    /// The shortest time-out that the tick suits.
    shortest: Cell<Duration>,
    /// Ticks so far; wraps.
    pub(super) looks: Cell<u32>,
    /// When a sleeping timer will wake.
    pub(super) next: Cell<Option<Tick>>,
    pub(super) sweep: RefCell<Option<Waker>>,
    /// Accepted connections that wait for a slot.
    pub room: Rc<Queue>,
}

impl ConnectionTable {
    /// An empty table.
    pub fn new(room: Rc<Queue>) -> Rc<ConnectionTable> {
        Rc::new(ConnectionTable {
            entries: RefCell::default(),
            free: RefCell::default(),
            open: Cell::new(0),
            streams: Cell::new(0),
            closing: Cell::new(false),
            origin: Instant::now(),
            now: Cell::new(0),
            ticking: Cell::new(false),
            tick: Cell::new(SLOWEST),
            shortest: Cell::new(SLOWEST * LATE),
            looks: Cell::new(0),
            next: Cell::new(None),
            sweep: RefCell::default(),
            room,
        })
    }

    /// After a reload: the tick follows from the time-outs that are in force now.
    pub fn reset_pace(&self) {
        self.tick.set(SLOWEST);
        self.shortest.set(SLOWEST * LATE);
    }

    /// Shortens the tick so that a time-out of `limit` is late by a tenth of it at most. Every time-out that is started
    /// passes here.
    pub fn keep_pace(&self, limit: Duration) {
        if limit >= self.shortest.get() || limit.is_zero() {
            return;
        }
        let tick = (limit / LATE).clamp(FASTEST, SLOWEST);
        if tick < self.tick.get() {
            self.tick.set(tick);
            self.shortest.set(tick * LATE);
            // the timer may be in a longer sleep
            self.ticking.set(false);
            self.rouse_sweep(None);
        }
    }

    /// How many connections have a slot.
    pub fn open(&self) -> usize {
        self.open.get() - self.streams.get()
    }

    /// Milliseconds since the start, at most a tick old.
    pub fn now(&self) -> u32 {
        if !self.ticking.get() {
            self.look_at_the_clock();
        }
        self.now.get()
    }

    /// Reads the clock where a tick is too coarse; gives the time in milliseconds.
    pub fn refresh_clock(&self) -> u32 {
        self.look_at_the_clock();
        self.now.get()
    }

    pub(super) fn look_at_the_clock(&self) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it wraps, and is only compared by difference"
        )]
        self.now.set(self.origin.elapsed().as_millis() as Tick);
    }

    /// The time at which a time-out that begins now ends: never early, because the clock may be a tick behind.
    pub(super) fn due(&self, limit: Duration) -> Tick {
        let slack = if self.ticking.get() {
            self.tick.get()
        } else {
            Duration::ZERO
        };
        let span = limit + slack;
        // not `as_millis`, which counts in 128 bits
        let millis = span.as_secs().saturating_mul(1_000) + u64::from(span.subsec_millis());
        let span = millis.saturating_add(1).min(LONGEST);
        self.now()
            .wrapping_add(u32::try_from(span).unwrap_or(u32::MAX / 4))
    }

    /// Wakes the timer, whatever it sleeps for.
    pub fn rouse(&self) {
        self.rouse_sweep(None);
    }

    pub(super) fn rouse_sweep(&self, due: Option<Tick>) {
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

    /// The groups that hold more than an equal share of `scope`, the largest first; `waiting` groups count as sharers.
    pub fn above_equal_share(
        &self,
        scope: Scope,
        waiting: impl Iterator<Item = Group>,
    ) -> Vec<Surplus> {
        let entries = self.entries.borrow();
        let holders = entries
            .iter()
            .filter(|entry| entry.order.get() != Directive::Leave && entry.holds(scope));
        above_equal_share(holders.map(|entry| entry.group.get()), waiting)
    }

    /// How many connections are in this phase.
    pub fn count(&self, phase: Phase) -> usize {
        self.entries
            .borrow()
            .iter()
            .filter(|entry| entry.phase.get() == phase)
            .count()
    }

    /// One check of every slot: wakes the tasks whose deadline has passed. Gives the time until the next check; `None`
    /// = there is no deadline.
    pub(super) fn look(&self) -> Option<Duration> {
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

    /// Runs the timer for ever; `each` is called after every check. `longest` is the longest sleep where there is no
    /// deadline; `None` = until there is one.
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
            // others that want a tick: idle upstream connections, a budget under pressure
            let pause = if each() && pause.is_none_or(|pause| pause > self.tick.get()) {
                self.ticking.set(true);
                Some(self.tick.get())
            } else {
                pause
            };
            let pause = pause.into_iter().chain(longest).min();
            let mut sleep = pin!(pause.map(sleep));
            let mut slept = false;
            poll_fn(|context| {
                if let Some(sleep) = sleep.as_mut().as_pin_mut()
                    && sleep.poll(context).is_ready()
                {
                    return Poll::Ready(());
                }
                // woken early: a deadline is sooner than the end of the sleep, or the tick is shorter now
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
