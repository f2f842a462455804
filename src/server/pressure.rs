//! What is checked at every tick besides deadlines: idle upstream connections, memory, and requests that wait too long.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use crate::{
    client_group::Group,
    connection_table::{
        eviction::{Grace, Reason, Scope},
        phase::Phase,
    },
    exchange::worker::Worker,
    memory::{
        prices::{CONNECTION, EXCHANGE},
        queue::Queue,
    },
    observe::{log, metrics, repeats::Kind},
    sys::{
        alloc,
        cgroup::{self, MemoryUse},
        code_pages, stack,
    },
};

/// Connections that are evicted at a time, at least, when the table is full or memory is near its limit; requests that
/// others are evicted for in one tick.
pub const EVICTED_AT_ONCE: usize = 8;

/// Exchanges that are evicted in one tick to pay for large heads.
const HEADS_AT_ONCE: usize = 8;

/// Bytes of page cache that serving needs: with less of it the program's own code is read from disk again and again.
const CODE: u64 = 1_400_000;

/// Bytes in use from which on memory counts as near its limit.
fn near(limit: u64) -> u64 {
    limit - (limit / 12).max(CODE.min(limit / 4))
}

/// How long a request waits, in milliseconds, before others that make little progress are evicted for it.
const PATIENCE: u32 = 1_000;

/// The same where a group of clients holds more than its share of what the request waits for, and the request belongs
/// to another.
const SHARE_PATIENCE: u32 = 400;

/// Looks after one worker's memory and waiting requests.
pub struct Pressure {
    worker: Rc<Worker>,
    limit: Option<u64>,
    usage: Option<Rc<MemoryUse>>,
    /// Since when at least one exchange has waited for memory for a large response head.
    head: Cell<Option<Instant>>,
    /// Most connections and exchanges at a tick since memory was last given back.
    high: Cell<(usize, usize)>,
    /// How many requests had been admitted at the last tick; `None` before the first.
    admitted: Cell<Option<u64>>,
    /// The values that were last written to the gauges: idle connections, bytes held.
    parked: Cell<u64>,
    spent: Cell<u64>,
    /// Nothing has happened since all memory was given back.
    rested: Cell<bool>,
}

impl Pressure {
    /// For one worker; `limit` is the process's memory limit, and whether a cgroup sets it.
    pub fn new(worker: Rc<Worker>, limit: Option<(u64, bool)>) -> Pressure {
        let usage = limit.and_then(|(_, cgroup)| match cgroup::cgroup_limit() {
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
        Pressure {
            worker,
            limit,
            usage,
            head: Cell::new(None),
            high: Cell::default(),
            admitted: Cell::new(None),
            parked: Cell::new(0),
            spent: Cell::new(0),
            rested: Cell::new(false),
        }
    }

    /// Runs at every tick; says whether it wants to be called again soon.
    pub fn look(&self) -> bool {
        let worker = &self.worker;
        let idle = worker.pool.sweep(worker.table.now());
        let unread = worker.budget.release_unread();
        if idle && let Some(limit) = worker.state().config.transport.idle_conn_timeout {
            worker.table.keep_pace(limit);
        }
        self.relieve();
        self.relieve_heads();
        self.relieve_handshakes();
        if self.worker.budget.queue.len() > 0 {
            self.worker.evict_unsent(EVICTED_AT_ONCE);
        }
        let is_near = self.check();
        let tidy = self.tidy(is_near);
        self.tell();
        self.tell_repeats();
        let again = !worker.repeats.is_empty()
            || idle
            || unread
            || tidy
            || worker.budget.is_pressed()
            || worker.table.room.len() > 0;
        // the timer may sleep for long now, and needs no code for it, not even that of its ticks
        if !again && worker.metrics.is_quiet() {
            code_pages::forget_code();
        }
        again
    }

    /// Logs repeated warnings of a kind as one line a second.
    fn tell_repeats(&self) {
        let worker = &self.worker;
        while let Some((Kind(message, outcome), count)) = worker.repeats.is_due(worker.table.now())
        {
            let message = format!("{message}, as before");
            log::warn(&message, &[("outcome", &outcome), ("times", &count)]);
        }
    }

    /// After a reload: the memory that it used is given back once the worker is quiet.
    pub fn trim_again(&self) {
        self.rested.set(false);
        self.worker.table.rouse();
    }

    /// Brings the gauges up to date.
    fn tell(&self) {
        let worker = &self.worker;
        let metrics = &worker.metrics;
        let parked = (worker.table.count(Phase::Idle) + worker.table.count(Phase::Fresh)) as u64;
        metrics::move_to(
            &metrics.connections_parked,
            self.parked.replace(parked),
            parked,
        );
        let spent = worker.budget.spent();
        metrics::move_to(&metrics.memory_used_bytes, self.spent.replace(spent), spent);
        metrics::set(&metrics.memory_limit_bytes, self.limit.unwrap_or(0));
        metrics::set(&metrics.log_lines_dropped, log::dropped());
    }

    /// Evicts for requests that have waited too long: for a place, for memory, and for each upstream.
    fn relieve(&self) {
        let worker = &self.worker;
        self.help(Scope::ConcurrencyLimit, &worker.places.queue);
        self.help(Scope::Memory, &worker.budget.queue);
        worker
            .pool
            .each_waiting(|host| self.help(Scope::Host(host.id), &host.queue));
        if worker.budget.was_refused() {
            self.free_memory(1, Reason::Waited(PATIENCE));
        }
    }

    /// Where large response heads have waited for a second, evicts exchanges that make no progress with theirs.
    fn relieve_heads(&self) {
        let queue = &self.worker.budget.large_heads.queue;
        if queue.len() == 0 {
            return self.head.set(None);
        }
        let since = self.head.get().unwrap_or_else(Instant::now);
        self.head.set(Some(since));
        if since.elapsed() >= Duration::from_millis(PATIENCE.into()) {
            self.worker.evict_heads(queue.len().min(HEADS_AT_ONCE));
        }
    }

    /// Where clients wait for memory for a TLS handshake, evicts handshakes that make no progress.
    fn relieve_handshakes(&self) {
        let worker = &self.worker;
        let waiting = &worker.budget.client_handshakes.queue;
        for queue in [waiting, &worker.handshake_turns.queue] {
            let most = match queue.len() {
                0 => None,
                _ => queue.majority().map(|most| most.group),
            };
            queue.let_others_first(most.into_iter().collect());
        }
        if waiting.len() > 0 {
            worker.evict_handshakes(waiting.len());
        }
    }

    /// Evicts as many as there are requests that have waited too long in this queue.
    fn help(&self, scope: Scope, queue: &Queue) {
        if queue.len() == 0 {
            queue.let_others_first(Vec::new());
            return;
        }
        let worker = &self.worker;
        let above = worker
            .table
            .above_equal_share(scope, queue.groups().into_iter());
        let mut behind: Vec<Group> = above.iter().map(|surplus| surplus.group).collect();
        if behind.is_empty() {
            behind.extend(queue.majority().map(|most| most.group));
        }
        let late = Late::of(queue, worker.table.now(), &behind);
        queue.let_others_first(behind);
        let mut helped = 0;
        if let Some(most) = above.first() {
            let many = late.others.min(most.count).min(EVICTED_AT_ONCE);
            helped = self.free(scope, many, Reason::Share(most.group));
        }
        let many = late.all.min(EVICTED_AT_ONCE).saturating_sub(helped);
        self.free(scope, many, Reason::Waited(late.longest));
    }

    /// Evicts this many; says how many were found.
    fn free(&self, scope: Scope, many: usize, reason: Reason) -> usize {
        if scope == Scope::Memory {
            return self.free_memory(many, reason);
        }
        (0..many)
            .take_while(|_| self.worker.evict_least(scope, reason))
            .count()
    }

    /// The same for memory, which idle connections hold as well.
    fn free_memory(&self, many: usize, reason: Reason) -> usize {
        let worker = &self.worker;
        if many > 0 {
            worker.pool.clear();
        }
        for found in 0..many {
            if worker.evict_least(Scope::Memory, reason) {
                continue;
            }
            if let Reason::Waited(_) = reason {
                // this many connections are worth one exchange
                let idle = usize::try_from(EXCHANGE / CONNECTION).unwrap_or(1) + 1;
                worker.evict_idle(idle * (many - found), Grace::USUAL);
            }
            return found;
        }
        many
    }

    /// Checks how near the limit is, and evicts where it is near; says whether it is.
    fn check(&self) -> bool {
        let (Some(limit), Some(usage)) = (self.limit, &self.usage) else {
            return false;
        };
        let near = near(limit);
        let Some(used) = usage.read() else {
            return false;
        };
        if used > near {
            code_pages::forget_file();
        }
        let full = limit / 4 * 3;
        let needed = if used > full {
            used.saturating_sub(usage.reclaimable())
        } else {
            used
        };
        let excess = needed.saturating_sub(near);
        self.worker.budget.fill(needed > full);
        let pressed = excess > 0;
        if pressed {
            let worker = &self.worker;
            worker.pool.clear();
            worker.buffers.trim();
            let many = usize::try_from(excess / (2 * CONNECTION)).unwrap_or(usize::MAX);
            worker.evict_idle(many.max(EVICTED_AT_ONCE * 2), Grace::NONE);
            for _ in 0..=excess / EXCHANGE {
                if !worker.evict_least(Scope::Memory, Reason::Pressed) {
                    break;
                }
            }
            alloc::collect();
        }
        self.worker.budget.press(pressed);
        used > near
    }

    /// Gives memory back after a burst, and once more when the worker is quiet; says whether there is more to come.
    fn tidy(&self, is_near: bool) -> bool {
        let worker = &self.worker;
        let (exchanges, admitted) = worker.budget.exchanges();
        let open = worker.table.open();
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
            alloc::collect();
            if !more {
                self.high.set((open, exchanges));
            }
        }
        self.rested.set(is_quiet && !more);
        // between two requests, too: at most ten times a second, and the next request takes 50 µs longer for it; not
        // near the limit, where pages of the executable are reclaimed as well and would have to be read from disk
        if worker.metrics.is_quiet() && (self.rested.get() || !is_near) {
            code_pages::forget_code();
            stack::forget_unused();
        }
        !self.rested.get()
    }
}

/// How many requests in a queue have waited too long.
struct Late {
    /// Those whose group has no more than its share.
    others: usize,
    /// All, by the longer patience.
    all: usize,
    /// Milliseconds that the longest of them has waited.
    longest: u32,
}

impl Late {
    fn of(queue: &Queue, now: u32, behind: &[Group]) -> Late {
        let mut late = Late {
            others: 0,
            all: 0,
            longest: 0,
        };
        queue.each(|claim| {
            let waited = now.wrapping_sub(claim.since);
            let is_other = !behind.is_empty() && !behind.contains(&claim.group);
            late.others += usize::from(is_other && waited >= SHARE_PATIENCE);
            late.all += usize::from(waited >= PATIENCE);
            late.longest = late.longest.max(waited);
        });
        late
    }
}
