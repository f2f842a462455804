//! What is looked after at every tick besides deadlines: idle upstreams, memory, and those who wait too long.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use crate::{
    budget::{CONNECTION, EXCHANGE},
    log, metrics,
    park::Phase,
    sys::{self, MemoryUse},
    worker::Worker,
};

/// Connections that are asked to leave at a time when the door is full or memory is near its limit.
pub const EVICTED_AT_ONCE: usize = 8;

/// Exchanges that are asked to leave at a tick for the large heads of others.
const HEADS_AT_ONCE: usize = 8;

/// Bytes of the page cache that serving needs: with less of it the program's own code is read again and again.
const CODE: u64 = 1_400_000;

/// Bytes in use from which on memory counts as near its limit.
fn near(limit: u64) -> u64 {
    limit - (limit / 12).max(CODE.min(limit / 4))
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy)]
enum Need {
    Seat,
    Place,
    Memory,
    Upstream,
}

impl Need {
    /// How long somebody waits before others are asked to leave for it. Whoever waits at the door may only want to know
    /// whether we are well, and is to hear it within a second.
    fn patience(self) -> Duration {
        match self {
            Need::Seat => Duration::from_millis(250),
            Need::Place | Need::Memory | Need::Upstream => Duration::from_secs(1),
        }
    }
}

/// One worker's keeper.
pub struct Keeper {
    worker: Rc<Worker>,
    limit: Option<u64>,
    usage: Option<Rc<MemoryUse>>,
    /// Who waited at the last look: for seats, places, memory, upstream connections.
    waiting: RefCell<[Option<(u64, Instant)>; 4]>,
    /// Since when there was always one that waited for memory for a large response head.
    head: Cell<Option<Instant>>,
    /// Most connections and exchanges at a look since memory was last given back.
    high: Cell<(usize, usize)>,
    /// How many had been admitted at the last look; at the first there is more to forget than to see.
    admitted: Cell<Option<u64>>,
    /// What the gauges were told last: connections at rest, bytes held.
    parked: Cell<u64>,
    spent: Cell<u64>,
    /// Nothing has happened since everything was given back.
    rested: Cell<bool>,
}

impl Keeper {
    /// A keeper for one worker; `limit` is the process's, and whether a cgroup sets it.
    pub fn new(worker: Rc<Worker>, limit: Option<(u64, bool)>) -> Keeper {
        let usage = limit.and_then(|(_, cgroup)| match sys::cgroup_limit() {
            Some(limit) if cgroup => MemoryUse::of_cgroup(&limit),
            _ => MemoryUse::of_process(),
        });
        let (limit, usage) = (limit.map(|limit| limit.0), usage.map(Rc::new));
        if let (Some(limit), Some(usage)) = (limit, &usage) {
            let usage = Rc::clone(usage);
            worker.budget.set_gauge(move || {
                let used = usage.read().unwrap_or(0);
                used > near(limit) && used.saturating_sub(usage.reclaimable()) > near(limit)
            });
        }
        Keeper {
            worker,
            limit,
            usage,
            waiting: RefCell::default(),
            head: Cell::new(None),
            high: Cell::default(),
            admitted: Cell::new(None),
            parked: Cell::new(0),
            spent: Cell::new(0),
            rested: Cell::new(false),
        }
    }

    /// Says whether it wants to be called again soon.
    pub fn look(&self) -> bool {
        let worker = &self.worker;
        let idle = worker.pool.sweep(worker.park.now());
        self.relieve();
        self.relieve_heads();
        if self.worker.budget.queue.front().is_some() {
            self.worker.evict_unsent(EVICTED_AT_ONCE);
        }
        let is_near = self.weigh();
        let tidy = self.tidy(is_near);
        self.tell();
        self.tell_repeats();
        !worker.repeats.is_empty()
            || idle
            || tidy
            || worker.budget.is_pressed()
            || worker.park.room.len() > 0
    }

    /// One line a second for all refusals of a kind beyond the first.
    fn tell_repeats(&self) {
        let worker = &self.worker;
        while let Some((reason, count)) = worker.repeats.is_due(worker.park.now()) {
            log::warn(
                "no answer, as before",
                &[("status", &503), ("reason", &reason), ("times", &count)],
            );
        }
    }

    /// After a reload: what it took is given back once all is quiet, as after any other work.
    pub fn tidy_again(&self) {
        self.rested.set(false);
        self.worker.park.rouse();
    }

    /// Brings the gauges up to date.
    fn tell(&self) {
        let worker = &self.worker;
        let metrics = &worker.metrics;
        let parked = (worker.park.count(Phase::Idle) + worker.park.count(Phase::Fresh)) as u64;
        metrics::shift(
            &metrics.connections_parked,
            self.parked.replace(parked),
            parked,
        );
        let spent = worker.budget.spent();
        metrics::shift(&metrics.memory_used_bytes, self.spent.replace(spent), spent);
        metrics::set(&metrics.memory_limit_bytes, self.limit.unwrap_or(0));
        metrics::set(&metrics.log_lines_dropped, log::dropped());
    }

    /// Whoever has waited for a second is helped: the least progressing go.
    fn relieve(&self) {
        let worker = &self.worker;
        let asked = worker.pool.waiting();
        let fronts = [
            worker.park.room.front(),
            worker.places.queue.front(),
            worker.budget.queue.front(),
            asked.map(|(host, ticket)| ticket << 32 | u64::from(host)),
        ];
        let mut waiting = self.waiting.borrow_mut();
        for (need, (front, seen)) in [Need::Seat, Need::Place, Need::Memory, Need::Upstream]
            .into_iter()
            .zip(fronts.into_iter().zip(waiting.iter_mut()))
        {
            let Some(ticket) = front else {
                *seen = None;
                continue;
            };
            match seen {
                Some((before, since)) if *before == ticket => {
                    if since.elapsed() >= need.patience() {
                        self.help(need, asked.map(|(host, _)| host));
                    }
                }
                _ => *seen = Some((ticket, Instant::now())),
            }
        }
        if worker.park.room.front().is_some() {
            worker.evict_silent(EVICTED_AT_ONCE, true);
        }
    }

    /// Where large response heads have waited for a second they get the memory of those that stand still.
    fn relieve_heads(&self) {
        let queue = &self.worker.budget.large_heads.queue;
        if queue.len() == 0 {
            return self.head.set(None);
        }
        let since = self.head.get().unwrap_or_else(Instant::now);
        self.head.set(Some(since));
        if since.elapsed() >= Need::Memory.patience() {
            self.worker.evict_heads(queue.len().min(HEADS_AT_ONCE));
        }
    }

    fn help(&self, need: Need, host: Option<u32>) {
        let worker = &self.worker;
        match need {
            Need::Upstream => drop(worker.evict_stream(host, false)),
            Need::Place => drop(worker.evict_stream(None, false)),
            Need::Memory => drop(worker.evict_stream(None, true)),
            Need::Seat => {
                if !worker.evict_stream(None, true) {
                    worker.park.evict_waiting(EVICTED_AT_ONCE * 8);
                }
            }
        }
    }

    /// Looks how near the limit is, and makes room where it is near; says whether it is.
    fn weigh(&self) -> bool {
        let (Some(limit), Some(usage)) = (self.limit, &self.usage) else {
            return false;
        };
        let near = near(limit);
        let Some(used) = usage.read() else {
            return false;
        };
        let excess = if used > near {
            sys::forget_file();
            used.saturating_sub(usage.reclaimable())
                .saturating_sub(near)
        } else {
            0
        };
        let pressed = excess > 0;
        if pressed {
            let worker = &self.worker;
            worker.pool.clear();
            worker.buffers.trim();
            let many = usize::try_from(excess / (2 * CONNECTION)).unwrap_or(usize::MAX);
            worker.evict_silent(many.max(EVICTED_AT_ONCE * 2), false);
            for _ in 0..=excess / EXCHANGE {
                if !worker.evict_blocked() {
                    break;
                }
            }
            sys::collect();
        }
        self.worker.budget.press(pressed);
        used > near
    }

    /// Gives memory back after a burst, and once more when all is quiet; says whether there is more to come.
    fn tidy(&self, is_near: bool) -> bool {
        let worker = &self.worker;
        let (exchanges, admitted) = worker.budget.exchanges();
        let open = worker.park.open();
        let is_quiet = exchanges == 0 && self.admitted.replace(Some(admitted)) == Some(admitted);
        let (most_open, most) = self.high.get();
        let (most_open, most) = (most_open.max(open), most.max(exchanges));
        self.high.set((most_open, most));
        let is_over =
            exchanges * 4 <= most * 3 && most > 0 || open * 4 <= most_open * 3 && most_open > 0;
        if is_quiet && self.rested.get() && !is_over {
            return false;
        }
        let mut more = false;
        if is_quiet || is_over {
            more = worker.buffers.trim();
            sys::collect();
            if !more {
                self.high.set((open, exchanges));
            }
        }
        self.rested.set(is_quiet && !more);
        // between two requests, too: at most ten times a second, and the next takes 50 µs longer for it; not near the
        // limit, where the file's pages go as well and would have to be read from the disk
        if worker.metrics.is_quiet() && (self.rested.get() || !is_near) {
            sys::forget_code();
        }
        !self.rested.get()
    }
}
