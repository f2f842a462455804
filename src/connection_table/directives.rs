//! Which connections are told to leave because others need what they hold, or to finish because the program stops.

use crate::{
    client_group::Group,
    connection_table::{
        eviction::{self, BLOCKED, Reason, Scope},
        phase::Phase,
        slot_state::{Directive, SlotState, flag},
        table::ConnectionTable,
    },
};

/// A connection that has only just come, or just said something, is not evicted for this long, so that two floods do not
/// starve each other and a client in the middle of its work is left alone; in milliseconds.
const SPARED: u32 = 250;

/// The same for a connection that has said nothing yet, in milliseconds: a request mostly comes with the connection, and
/// some thousand that stay mute must not keep the others out for seconds.
const SILENT: u32 = 50;

/// The same for a connection that had its last answer and only reads on, in milliseconds: enough for an answer to arrive.
const LINGERED: u32 = 50;

/// How long a connection that has just come may take for its first byte when the program stops, and one that was just
/// answered for its next; in milliseconds, of which up to a tick may be gone already.
const AWAITED: (u32, u32) = (1_000, 500);

impl ConnectionTable {
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
}
