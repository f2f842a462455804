//! The state of a slot: its phase, its two deadlines, and its progress.

use std::{cell::Cell, task::Waker};

use crate::{
    client_group::Group,
    connection_table::{
        eviction::{self, Holder, Scope},
        phase::Phase,
    },
};

/// The order that a connection's task has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directive {
    /// Carry on.
    None,
    /// Others need its memory, slot, place or upstream connection.
    Leave,
    /// The program is stopping: close once the exchange is done.
    Finish,
}

/// Milliseconds since the table was made; wraps after 49 days, so it is compared by difference alone.
pub(super) type Tick = u32;

/// Milliseconds between two wake-ups of a blocked task, after the first second.
pub(super) const LOOKS: u32 = 1_000;

/// A sign of progress that is not known yet.
pub(super) const UNKNOWN: u32 = 0;

/// Facts about a connection, as bits of [`SlotState::flags`].
pub(super) mod flag {
    /// Woken at every tick for a second, then once a second, to check its sockets.
    pub const LOOKS_BACK: u8 = 1;
    /// Was woken to check, and has not checked yet.
    pub const LOOK_DUE: u8 = 1 << 1;
    /// The exchange waits for the client, and not for the upstream.
    pub const CLIENT_BLOCKS: u8 = 1 << 2;
    /// The request's body is being sent to the upstream.
    pub const UPLOADS: u8 = 1 << 3;
    /// The answer is being sent to the client.
    pub const STREAMS: u8 = 1 << 4;
    /// Waits in a queue for a place or an upstream connection.
    pub const QUEUED: u8 = 1 << 5;
    /// Holds one of `max_concurrent_requests`.
    pub const PLACE: u8 = 1 << 6;
    /// Holds memory for a large response head.
    pub const HOLDS_HEAD: u8 = 1 << 7;
}

/// A time-out, and the progress of what it is for.
#[derive(Debug, Default)]
pub(super) struct Timer {
    pub(super) runs: Cell<bool>,
    pub(super) due: Cell<Tick>,
    /// The progress of the other side's kernel at the last check; see [`SlotRef::is_stalled`].
    pub(super) sign: Cell<u32>,
}

#[derive(Debug)]
pub(super) struct SlotState {
    pub(super) waker: Option<Waker>,
    pub(super) phase: Cell<Phase>,
    pub(super) order: Cell<Directive>,
    pub(super) flags: Cell<u8>,
    /// The upstream that it holds a connection of, by its number in the pool; 0 = none.
    pub(super) host: Cell<u32>,
    /// The group of clients that it counts towards.
    pub(super) group: Cell<Group>,
    pub(super) since: Cell<Tick>,
    /// The two time-outs, in the order of [`TimerKind`].
    pub(super) timers: [Timer; 2],
    pub(super) moved_at: Cell<Tick>,
    pub(super) bytes: Cell<u32>,
    /// When the rate was last measured, and the time before; and the bytes by then.
    pub(super) mark: Cell<Tick>,
    pub(super) bytes_at_mark: Cell<u32>,
    pub(super) older_mark: Cell<Tick>,
    pub(super) bytes_at_older: Cell<u32>,
}

/// The two time-outs that may run for a connection at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerKind {
    /// For what its task waits for next.
    Work,
    /// For the client to take what is sent to it.
    Client,
}

/// Whether `due` has come at `now`.
pub(super) fn is_past(now: Tick, due: Tick) -> bool {
    now.wrapping_sub(due) < u32::MAX / 2
}

impl Timer {
    /// Sets the end of the time-out; `None` = it does not run.
    pub(super) fn set(&self, due: Option<Tick>) {
        self.runs.set(due.is_some());
        self.due.set(due.unwrap_or(0));
        self.sign.set(UNKNOWN);
    }

    pub(super) fn is_past(&self, now: Tick) -> bool {
        self.runs.get() && is_past(now, self.due.get())
    }
}

impl SlotState {
    pub(super) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags.get() & flag != 0
    }

    /// Begins a phase.
    pub(super) fn begin(&self, phase: Phase, now: Tick) {
        self.since.set(now);
        self.flags.set(0);
        self.host.set(0);
        self.bytes.set(0);
        self.measure_anew(now);
        self.phase.set(phase);
    }

    pub(super) fn set(&self, flag: u8, on: bool) {
        let flags = self.flags.get();
        self.flags
            .set(if on { flags | flag } else { flags & !flag });
    }

    /// Wakes a task that asked to check its sockets: at every tick for the first second, then when `is_its_turn`.
    pub(super) fn look_back(&self, now: Tick, is_its_turn: bool) {
        let is_recent = now.wrapping_sub(self.moved_at.get()) < LOOKS;
        if self.has(flag::LOOKS_BACK) && (is_recent || is_its_turn) {
            self.set(flag::LOOK_DUE, true);
            self.wake();
        }
    }

    /// Records the bytes so far, so that a rate is always known over the last five to ten seconds.
    pub(super) fn measure(&self, now: Tick) {
        if now.wrapping_sub(self.mark.get()) >= eviction::STALLED {
            self.older_mark.set(self.mark.get());
            self.bytes_at_older.set(self.bytes_at_mark.get());
            self.mark.set(now);
            self.bytes_at_mark.set(self.bytes.get());
        }
    }

    /// Starts a new measurement of the rate.
    pub(super) fn measure_anew(&self, now: Tick) {
        self.moved_at.set(now);
        for mark in [&self.mark, &self.older_mark] {
            mark.set(now);
        }
        for bytes in [&self.bytes_at_mark, &self.bytes_at_older] {
            bytes.set(self.bytes.get());
        }
    }

    /// Whether it holds what `scope` names.
    pub(super) fn holds(&self, scope: Scope) -> bool {
        let phase = self.phase.get();
        match scope {
            Scope::Host(host) => self.host.get() == host,
            Scope::ConcurrencyLimit => self.has(flag::PLACE),
            Scope::Memory => matches!(phase, Phase::Busy | Phase::Tunnel),
        }
    }

    /// Its state, for the choice of the connection that is ended.
    pub(super) fn holder(&self, now: Tick) -> Holder {
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

    pub(super) fn timer(&self, kind: TimerKind) -> &Timer {
        let [work, client] = &self.timers;
        match kind {
            TimerKind::Work => work,
            TimerKind::Client => client,
        }
    }

    pub(super) fn tell(&self, order: Directive) {
        self.order.set(order);
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_88_bytes() {
        assert_eq!(size_of::<SlotState>(), 88);
    }
}
