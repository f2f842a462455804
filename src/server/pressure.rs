//! What is looked after at every tick besides deadlines: idle upstreams, memory, and those who wait too long.

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
        budget::{CONNECTION, EXCHANGE},
        queue::Queue,
    },
    observe::{log, metrics, repeats::Kind},
    sys::{
        alloc,
        cgroup::{self, MemoryUse},
        code_pages,
    },
};

/// Connections that are asked to leave at a time, at least, when the table is full or memory is near its limit; requests
/// for which others are asked to leave at a look.
pub const EVICTED_AT_ONCE: usize = 8;

/// Exchanges that are asked to leave at a tick for the large heads of others.
const HEADS_AT_ONCE: usize = 8;

/// Bytes of the page cache that serving needs: with less of it the program's own code is read again and again.
const CODE: u64 = 1_400_000;

/// Bytes in use from which on memory counts as near its limit.
fn near(limit: u64) -> u64 {
    limit - (limit / 12).max(CODE.min(limit / 4))
}

/// How long a request waits, in milliseconds, before others are asked to leave for it that make little progress.
const PATIENCE: u32 = 1_000;

/// The same where some group of clients holds more than its share of what it waits for, and it belongs to another.
const SHARE_PATIENCE: u32 = 400;

/// What looks after one worker's memory and waiting requests.
pub struct Pressure {
    worker: Rc<Worker>,
    limit: Option<u64>,
    usage: Option<Rc<MemoryUse>>,
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

impl Pressure {
    /// One for a worker; `limit` is the process's, and whether a cgroup sets it.
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

    /// Says whether it wants to be called again soon.
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
        !worker.repeats.is_empty()
            || idle
            || unread
            || tidy
            || worker.budget.is_pressed()
            || worker.table.room.len() > 0
    }

    /// One line a second for all warnings of a kind beyond the first.
    fn tell_repeats(&self) {
        let worker = &self.worker;
        while let Some((Kind(message, outcome), count)) = worker.repeats.is_due(worker.table.now())
        {
            let message = format!("{message}, as before");
            log::warn(&message, &[("outcome", &outcome), ("times", &count)]);
        }
    }

    /// After a reload: what it took is given back once all is quiet, as after any other work.
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

    /// Makes room for requests that have waited for long: for a place, for memory, and for each upstream.
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

    /// Where large response heads have waited for a second they get the memory of those that stand still.
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

    /// Where clients wait for memory to shake hands in, those give way whose handshakes do not get on; and clients of a
    /// group that holds the most of the line go last.
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

    /// Asks as many to leave as have waited too long in this line, as far as there are some that have to.
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

    /// Asks so many to leave; says how many were found.
    fn free(&self, scope: Scope, many: usize, reason: Reason) -> usize {
        if scope == Scope::Memory {
            return self.free_memory(many, reason);
        }
        (0..many)
            .take_while(|_| self.worker.evict_least(scope, reason))
            .count()
    }

    /// The same for memory, which connections hold as well that do nothing.
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
                // that many are worth an exchange
                let idle = usize::try_from(EXCHANGE / CONNECTION).unwrap_or(1) + 1;
                worker.evict_idle(idle * (many - found), Grace::USUAL);
            }
            return found;
        }
        many
    }

    /// Looks how near the limit is, and makes room where it is near; says whether it is.
    fn check(&self) -> bool {
        let (Some(limit), Some(usage)) = (self.limit, &self.usage) else {
            return false;
        };
        let near = near(limit);
        let Some(used) = usage.read() else {
            return false;
        };
        let excess = if used > near {
            code_pages::forget_file();
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

    /// Gives memory back after a burst, and once more when all is quiet; says whether there is more to come.
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
        // between two requests, too: at most ten times a second, and the next takes 50 µs longer for it; not near the
        // limit, where the file's pages go as well and would have to be read from the disk
        if worker.metrics.is_quiet() && (self.rested.get() || !is_near) {
            code_pages::forget_code();
        }
        !self.rested.get()
    }
}

/// How many in a line have waited too long.
struct Late {
    /// Those of groups that have no more than their share.
    others: usize,
    /// All of them, by the longer patience.
    all: usize,
    /// Milliseconds that the first of them has waited.
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
