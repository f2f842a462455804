//! Tells connections to leave because others need what they hold, or to finish because the program stops.

use crate::{
    client_group::{Group, majority},
    connection_table::{
        eviction::{self, BLOCKED, Grace, Reason, Scope},
        phase::Phase,
        slot_state::{Directive, SlotState, flag},
        table::ConnectionTable,
    },
};

/// Milliseconds that a new connection has for its first byte when the program stops, and one that was just answered for
/// its next request; up to a tick of them may have passed already.
const AWAITED: (u32, u32) = (1_000, 500);

impl ConnectionTable {
    /// Tells up to `many` connections to leave that do nothing, or have an incomplete request head, for longer than
    /// their `grace`. The group that has more than half of such connections goes first, and in it the oldest. A
    /// connection whose task has not run yet may have a request in its socket, and stays. Says how many were told.
    pub fn evict_idle(&self, many: usize, grace: Grace) -> usize {
        let now = self.now();
        let entries = self.entries.borrow();
        let idle = entries.iter().filter_map(|entry| {
            let age = now.wrapping_sub(entry.since.get());
            let is_over = age >= grace.of(entry.phase.get())?;
            let has_run = entry.waker.is_some();
            (is_over && has_run && entry.order.get() != Directive::Leave).then_some((age, entry))
        });
        let most = majority(idle.clone().map(|(_, entry)| entry.group.get()));
        let mut victims: Vec<((bool, u32), &SlotState)> = Vec::with_capacity(many + 1);
        for (age, entry) in idle {
            let rank = (
                most.is_some_and(|most| most.group == entry.group.get()),
                age,
            );
            let at = victims.partition_point(|(other, _)| *other >= rank);
            if at < many {
                victims.truncate(many - 1);
                victims.insert(at, (rank, entry));
            }
        }
        for (_, entry) in &victims {
            entry.tell(Directive::Leave);
        }
        victims.len()
    }

    /// Tells the connection to leave that [`eviction::rank`] puts first, of those that hold what `scope` names. Says
    /// whether there was one.
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

    /// Tells up to `many` exchanges to leave that hold memory for a large response head while the client has not moved
    /// a byte for a moment, because it does not read the head or the upstream does not end it. The longest without
    /// progress go first. Says how many were told.
    pub fn evict_heads(&self, many: usize) -> usize {
        let now = self.now();
        let entries = self.entries.borrow();
        let holders: Vec<(u32, &SlotState)> = entries
            .iter()
            .filter(|entry| entry.has(flag::HOLDS_HEAD) && entry.order.get() != Directive::Leave)
            .map(|entry| (now.wrapping_sub(entry.moved_at.get()), entry))
            .filter(|(still, _)| *still >= BLOCKED)
            .collect();
        dismiss(holders, many)
    }

    /// Tells up to `many` connections to leave whose client has not acknowledged the end of its last answer for a
    /// moment, the oldest first: their permits pay for the kernel's queue. Says how many were told.
    pub fn evict_unsent(&self, many: usize) -> usize {
        let now = self.now();
        let entries = self.entries.borrow();
        let owing: Vec<(u32, &SlotState)> = entries
            .iter()
            .filter(|entry| {
                matches!(entry.phase.get(), Phase::Idle | Phase::Lingering)
                    && entry.has(flag::LOOKS_BACK)
                    && entry.order.get() != Directive::Leave
            })
            .map(|entry| (now.wrapping_sub(entry.since.get()), entry))
            .filter(|(age, _)| *age >= BLOCKED)
            .collect();
        dismiss(owing, many)
    }

    /// Tells up to `many` connections to leave whose TLS handshake has made no progress for longer than their `grace`,
    /// the longest without progress first. Where one group has more than half of the handshakes, the clients of others
    /// have four times as long. Says how many were told.
    pub fn evict_handshakes(&self, many: usize, grace: Grace) -> usize {
        let now = self.now();
        let entries = self.entries.borrow();
        let handshakes = entries.iter().filter(|entry| {
            entry.phase.get() == Phase::Handshake && entry.order.get() != Directive::Leave
        });
        let most = majority(handshakes.clone().map(|entry| entry.group.get()));
        let slow: Vec<(u32, &SlotState)> = handshakes
            .filter_map(|entry| {
                let is_other = most.is_some_and(|most| most.group != entry.group.get());
                let still = now.wrapping_sub(entry.since.get());
                (still >= grace.of_handshake(is_other)).then_some((still, entry))
            })
            .collect();
        dismiss(slow, many)
    }

    /// Tells up to `many` requests that wait for memory to take their 503 now, the longest waits first; `only` those of
    /// one group. Says how many were told.
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

    /// Tells every connection that the program is stopping. A connection with an exchange finishes it first. One that
    /// has just been accepted, or just been answered, is about to send a request and is spared for now, so that it gets
    /// `connection: close` with the answer. To be called again until none is left.
    pub fn finish(&self) {
        let now = self.now();
        for entry in self.entries.borrow().iter() {
            let age = now.wrapping_sub(entry.since.get());
            let is_spared = match entry.phase.get() {
                Phase::Empty => true,
                Phase::Fresh | Phase::Handshake => age < AWAITED.0,
                Phase::Idle => age < AWAITED.1,
                _ => false,
            };
            if !is_spared && !matches!(entry.order.get(), Directive::Finish | Directive::Leave) {
                entry.tell(Directive::Finish);
            }
        }
    }

    /// Tells every connection to leave at once: the time for the stop is over.
    pub fn close(&self) {
        self.closing.set(true);
        for entry in self.entries.borrow().iter() {
            if entry.phase.get() != Phase::Empty {
                entry.tell(Directive::Leave);
            }
        }
    }
}

/// Tells up to `many` of these to leave, those first whose figure is the largest. Says how many were told.
fn dismiss(mut found: Vec<(u32, &SlotState)>, many: usize) -> usize {
    found.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
    found.truncate(many);
    for (_, entry) in &found {
        entry.tell(Directive::Leave);
    }
    found.len()
}

#[cfg(test)]
mod tests {
    use std::{rc::Rc, task::Waker};

    use super::*;
    use crate::connection_table::slot::Slot;

    /// Idle connections of one address each, whose tasks have run.
    fn slots(table: &Rc<ConnectionTable>, last_bytes: &[u8]) -> Vec<Slot> {
        let slot = |last: &u8| {
            let address = std::net::Ipv4Addr::new(10, 0, 0, *last);
            let slot = table.slot(Some(address.into()));
            slot.settle(Waker::noop());
            slot.enter(Phase::Idle, None);
            slot
        };
        last_bytes.iter().map(slot).collect()
    }

    fn told(slots: &[Slot]) -> Vec<bool> {
        let is_told = |slot: &Slot| slot.order() == Directive::Leave;
        slots.iter().map(is_told).collect()
    }

    #[test]
    fn the_address_with_most_idle_connections_gives_way_first() {
        let table = ConnectionTable::new(Rc::default());
        let all = slots(&table, &[1, 2, 2, 3, 2, 2]);
        assert_eq!(table.evict_idle(2, Grace::NONE), 2);
        let own = [1, 2, 4, 5].map(|index| told(&all)[index]);
        assert_eq!(own.iter().filter(|told| **told).count(), 2);
        assert_eq!(table.evict_idle(9, Grace::NONE), 4, "then all others");
        assert_eq!(told(&all), [true; 6]);
    }

    #[test]
    fn a_connection_that_has_not_run_yet_or_still_has_its_grace_stays() {
        let table = ConnectionTable::new(Rc::default());
        let fresh = table.slot(None);
        assert_eq!(table.evict_idle(9, Grace::NONE), 0, "it may have a request");
        fresh.settle(Waker::noop());
        let far = Grace {
            silent: 60_000,
            ..Grace::NONE
        };
        assert_eq!(table.evict_idle(9, far), 0);
        assert_eq!(table.evict_idle(9, Grace::NONE), 1);
        assert_eq!(fresh.order(), Directive::Leave);
    }

    #[test]
    fn handshakes_of_the_address_with_most_give_way_and_those_of_others_have_longer() {
        let table = ConnectionTable::new(Rc::default());
        let all = slots(&table, &[1, 2, 2, 2]);
        for slot in &all {
            slot.enter(Phase::Handshake, None);
        }
        let grace = |others| Grace {
            others,
            ..Grace::NONE
        };
        assert_eq!(
            table.evict_handshakes(9, grace(60_000)),
            0,
            "they make progress"
        );
        assert_eq!(grace(250).of_handshake(false), 250);
        assert_eq!(grace(250).of_handshake(true), 1_000);
        assert_eq!(
            table.evict_handshakes(3, Grace::NONE),
            3,
            "no more than wanted"
        );
        assert_eq!(table.evict_handshakes(9, Grace::NONE), 1);
        assert_eq!(told(&all), [true; 4]);
    }
}
