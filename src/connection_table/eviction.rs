//! Which connection is ended when requests wait: a decision over values, without a table and without a clock.
//!
//! Two rules. Who makes the least progress goes first, and the longer others have waited, the more progress a client
//! must make that is itself what holds the exchange up. And a group of clients that holds more than an equal share
//! of something gives way to others, whatever progress it makes.

use crate::{client_group::Group, connection_table::phase::Phase};

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A connection to this upstream, by its number in the pool.
    Host(u32),
    /// One of `max_concurrent_requests`.
    ConcurrencyLimit,
    /// The memory of an exchange, or of a tunnel.
    Memory,
}

/// Why a connection may be ended for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Others have waited for so many milliseconds.
    Waited(u32),
    /// Memory itself is nearly spent.
    Pressed,
    /// This group holds more than an equal share, and others wait.
    Share(Group),
}

/// How one who holds something does.
#[derive(Debug, Clone, Copy)]
pub struct Holder {
    /// What its connection is doing.
    pub phase: Phase,
    /// The group of clients that it counts for.
    pub group: Group,
    /// It waits in line itself, for something else.
    pub is_queued: bool,
    /// Its request's body or its answer is on its way; else it waits for the upstream's answer.
    pub moves: bool,
    /// Its client does not read, or send, what comes next.
    pub client_blocks: bool,
    /// Milliseconds since its last byte.
    pub still: u32,
    /// Bytes a second over the last five seconds and more; `None` = not measured for so long yet.
    pub rate: Option<u32>,
}

/// A stream that moved nothing for this long goes first under pressure; the same span measures the slow ones; in
/// milliseconds.
pub const STALLED: u32 = 5_000;

/// The same for a client that does not read, or send, while memory is nearly spent.
pub const BLOCKED: u32 = 400;

/// A request that waits for its answer goes last, and only for others' share, when it has waited so long.
const UNANSWERED: u32 = 2_000;

/// Bytes a second below which a stream counts as slow under pressure, when others have waited for a second. Where the
/// client is what holds it up it doubles with each second more.
const SLOW: u32 = 1_000;

/// How long a connection that does nothing is left alone, in milliseconds, by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace {
    /// One that has not sent its first byte: a request mostly comes with its connection.
    pub silent: u32,
    /// One that had its last answer and only reads on: enough for an answer to arrive.
    pub lingering: u32,
    /// One between two requests, or in the middle of a head.
    pub others: u32,
}

/// A grace halves each time that newcomers have waited for this long without a break, in milliseconds: 4,096 of them, as
/// many as the kernel keeps, have had their turn within half a second though only thirty places change hands.
const HALVES: u32 = 64;

impl Grace {
    /// Without a crowd. Two floods do not starve each other, and a client in the middle of its work is left alone.
    pub const USUAL: Grace = Grace {
        silent: 50,
        lingering: 50,
        others: 250,
    };

    /// Where memory itself is nearly spent.
    pub const NONE: Grace = Grace {
        silent: 0,
        lingering: 0,
        others: 0,
    };

    /// The least that is left of it: a client on a busy machine gets to send its request, and a last answer to arrive.
    const LEAST: Grace = Grace {
        silent: 10,
        lingering: 2,
        others: 10,
    };

    /// Where newcomers have waited for so many milliseconds without a break.
    pub fn beside_crowd(waited: u32) -> Grace {
        let (usual, least) = (Self::USUAL, Self::LEAST);
        let shrink = |usual: u32, least| (usual >> (waited / HALVES).min(16)).max(least);
        Grace {
            silent: shrink(usual.silent, least.silent),
            lingering: shrink(usual.lingering, least.lingering),
            others: shrink(usual.others, least.others),
        }
    }

    /// What a TLS handshake has; four times as much beside another address that has most of the handshakes (`is_other`).
    pub fn of_handshake(self, is_other: bool) -> u32 {
        if is_other {
            4 * self.others
        } else {
            self.others
        }
    }

    /// What a connection in this phase has; `None` = it does something, and is not one of these.
    pub fn of(self, phase: Phase) -> Option<u32> {
        match phase {
            Phase::Fresh => Some(self.silent),
            Phase::Lingering => Some(self.lingering),
            Phase::Handshake | Phase::Idle | Phase::Head => Some(self.others),
            Phase::Empty | Phase::Waiting | Phase::Busy | Phase::Multiplexed | Phase::Tunnel => {
                None
            }
        }
    }
}

/// Where a holder stands among those who may be evicted, the highest first; `None` = it stays.
pub fn rank(holder: &Holder, scope: Scope, reason: Reason) -> Option<(u8, u32)> {
    let (waited, blocked_for) = match reason {
        Reason::Waited(waited) => (waited, STALLED),
        Reason::Pressed => (1_000, BLOCKED),
        Reason::Share(group) if group == holder.group => return by_share(holder, scope),
        Reason::Share(_) => return None,
    };
    by_progress(holder, scope, waited, blocked_for)
}

fn by_progress(holder: &Holder, scope: Scope, waited: u32, blocked_for: u32) -> Option<(u8, u32)> {
    let is_below = |least: u32| holder.rate.filter(|rate| *rate < least);
    let still = holder.still;
    match holder.phase {
        Phase::Busy if holder.client_blocks && still >= blocked_for => Some((5, still)),
        Phase::Busy if holder.moves && still >= STALLED => Some((4, still)),
        Phase::Busy if holder.moves => match (is_below(SLOW), is_below(slow_client(waited))) {
            (Some(rate), _) => Some((3, u32::MAX - rate)),
            (None, Some(rate)) if holder.client_blocks => Some((2, u32::MAX - rate)),
            _ => None,
        },
        Phase::Tunnel if scope != Scope::Memory => None,
        Phase::Tunnel if still >= STALLED => Some((1, still)),
        Phase::Tunnel => is_below(SLOW).map(|rate| (0, u32::MAX - rate)),
        _ => None,
    }
}

/// Bytes a second that a client must take or give when others have waited for so many milliseconds.
fn slow_client(waited: u32) -> u32 {
    SLOW << (waited / 1_000).saturating_sub(1).min(16)
}

/// Of a group that holds too much: those without progress, then the slowest stream, then who waits for something else,
/// then tunnels, and last who waits for an answer.
fn by_share(holder: &Holder, scope: Scope) -> Option<(u8, u32)> {
    if let Some((class, key)) = by_progress(holder, scope, 1_000, BLOCKED) {
        return Some((class + 10, key));
    }
    let slowness = u32::MAX - holder.rate.unwrap_or(u32::MAX);
    match holder.phase {
        Phase::Busy if holder.is_queued => Some((9, holder.still)),
        Phase::Busy if holder.moves => Some((8, slowness)),
        Phase::Tunnel if scope == Scope::Memory => Some((7, slowness)),
        Phase::Busy if holder.still >= UNANSWERED => Some((6, holder.still)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Scope = Scope::Host(1);

    fn group(last: u8) -> Group {
        Group::of(Some(std::net::Ipv4Addr::new(10, 0, 0, last).into()))
    }

    fn stream(client_blocks: bool, still: u32, rate: u32) -> Holder {
        Holder {
            phase: Phase::Busy,
            group: group(1),
            is_queued: false,
            moves: true,
            client_blocks,
            still,
            rate: Some(rate),
        }
    }

    #[test]
    fn who_makes_progress_stays_and_who_makes_none_goes() {
        let unanswered = Holder {
            moves: false,
            ..stream(false, 60_000, 0)
        };
        let tunnel = Holder {
            phase: Phase::Tunnel,
            ..stream(false, 60_000, 0)
        };
        let young = Holder {
            rate: None,
            ..stream(true, 100, 0)
        };
        for (name, holder, scope, waited, goes) in [
            ("blocked", stream(true, 5_000, 0), HOST, 1_000, true),
            ("not for long", stream(true, 300, 9_000), HOST, 1_000, false),
            ("silent", stream(false, 5_000, 0), HOST, 1_000, true),
            (
                "a byte each four seconds",
                stream(true, 3_900, 0),
                HOST,
                1_000,
                true,
            ),
            (
                "a slow upstream",
                stream(false, 100, 900),
                HOST,
                1_000,
                true,
            ),
            (
                "an upstream at 4 kB/s",
                stream(false, 100, 4_000),
                HOST,
                9_900,
                false,
            ),
            (
                "a client at 4 kB/s, at first",
                stream(true, 100, 4_000),
                HOST,
                2_000,
                false,
            ),
            (
                "a client at 4 kB/s, later",
                stream(true, 100, 4_000),
                HOST,
                4_000,
                true,
            ),
            (
                "a fast client",
                stream(true, 10, 1_000_000),
                HOST,
                9_900,
                false,
            ),
            ("who has just begun", young, HOST, 9_900, false),
            ("who waits for an answer", unanswered, HOST, 9_900, false),
            ("a tunnel, for memory", tunnel, Scope::Memory, 1_000, true),
            (
                "a tunnel, for a place",
                tunnel,
                Scope::ConcurrencyLimit,
                9_900,
                false,
            ),
        ] {
            let rank = rank(&holder, scope, Reason::Waited(waited));
            assert_eq!(rank.is_some(), goes, "{name}");
        }
    }

    #[test]
    fn a_full_backlog_of_newcomers_has_its_turn_within_a_second() {
        assert_eq!(Grace::beside_crowd(0), Grace::USUAL);
        // thirty connections change hands each time that their grace is over
        let (mut waited, mut served) = (0, 0);
        while served < 4096 {
            let grace = Grace::beside_crowd(waited);
            assert!(grace.silent >= 10 && grace.lingering >= 2);
            waited += grace.lingering;
            served += 30;
        }
        assert!(waited < 700, "{waited} ms");
    }

    #[test]
    fn the_least_progressing_goes_first() {
        let waited = Reason::Waited(9_000);
        let order = [
            stream(true, 9_000, 0),
            stream(true, 6_000, 0),
            stream(false, 6_000, 0),
            stream(true, 100, 100),
            stream(true, 100, 900),
            stream(true, 100, 2_000),
        ];
        let ranks = order.map(|holder| rank(&holder, HOST, waited));
        assert!(ranks.is_sorted_by(|a, b| a > b), "{ranks:?}");
    }

    #[test]
    fn a_share_is_taken_from_its_group_alone() {
        let fast = stream(false, 0, 1_000_000);
        let unanswered = Holder {
            moves: false,
            ..stream(false, 1_000, 0)
        };
        let waits = Holder {
            is_queued: true,
            ..unanswered
        };
        let late = Holder {
            still: 2_000,
            ..unanswered
        };
        let share = |holder: &Holder, group| rank(holder, HOST, Reason::Share(group));
        assert!(share(&fast, group(1)).is_some());
        assert_eq!(share(&fast, group(2)), None);
        assert_eq!(
            share(&unanswered, group(1)),
            None,
            "it may be on the point of its answer"
        );
        let order =
            [&stream(true, 400, 5_000), &waits, &fast, &late].map(|one| share(one, group(1)));
        assert!(order.is_sorted_by(|a, b| a > b), "{order:?}");
    }
}
