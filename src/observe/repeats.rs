//! Warnings that repeat: the first of a kind is logged at once, the others of the same second are counted and logged
//! together.
//!
//! Pure. A proxy whose budget is spent answers thousands of requests a second with 503; a line for each would fill the
//! log's queue and displace other lines.

use std::cell::RefCell;

use crate::outcome::Outcome;

/// How long repetitions are counted before they are logged, in milliseconds.
const SPAN: u32 = 1_000;

/// The kinds of warnings that were logged recently. There are few kinds, so a list is searched.
#[derive(Debug, Default)]
pub struct Repeats(RefCell<Vec<Repeat>>);

/// A kind of warning: its message and its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind(pub &'static str, pub Outcome);

#[derive(Debug)]
struct Repeat {
    kind: Kind,
    /// When counting began, in milliseconds; wraps.
    since: u32,
    /// How many came since.
    count: u64,
}

impl Repeats {
    /// Whether a warning of this kind is to be logged now; if not, it is counted. `now` is in milliseconds and may wrap.
    pub fn is_first(&self, kind: Kind, now: u32) -> bool {
        let mut repeats = self.0.borrow_mut();
        if let Some(repeat) = repeats.iter_mut().find(|repeat| repeat.kind == kind) {
            repeat.count += 1;
            return false;
        }
        repeats.push(Repeat {
            kind,
            since: now,
            count: 0,
        });
        true
    }

    /// Whether nothing is counted, so that [`is_due`](Self::is_due) need not be called.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// A kind whose second is over, and how many of it were counted (at least one). Call until it returns `None`. A kind that
    /// was counted begins another second; one that did not come again is forgotten.
    pub fn is_due(&self, now: u32) -> Option<(Kind, u64)> {
        let mut repeats = self.0.borrow_mut();
        let is_over = |repeat: &Repeat| now.wrapping_sub(repeat.since) >= SPAN;
        repeats.retain(|repeat| repeat.count > 0 || !is_over(repeat));
        let repeat = repeats.iter_mut().find(|repeat| is_over(repeat))?;
        repeat.since = now;
        Some((repeat.kind, std::mem::take(&mut repeat.count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Kind = Kind("no answer", Outcome::NoMemory);
    const B: Kind = Kind("cut short", Outcome::NoMemory);

    #[test]
    fn the_first_is_logged_at_once_and_the_others_together() {
        let repeats = Repeats::default();
        let start = u32::MAX - 10;
        assert!(repeats.is_empty() && repeats.is_first(A, start));
        for _ in 0..1000 {
            assert!(!repeats.is_first(A, start));
        }
        assert!(repeats.is_first(B, start), "kinds are independent");
        let other = Kind(B.0, Outcome::ClientGone);
        assert!(repeats.is_first(other, start), "and so are outcomes");
        assert_eq!(repeats.is_due(start.wrapping_add(SPAN - 1)), None);
        let later = start.wrapping_add(SPAN);
        assert_eq!(repeats.is_due(later), Some((A, 1000)));
        assert_eq!(repeats.is_due(later), None, "b came once");
        assert!(
            !repeats.is_first(A, later),
            "a kind that was counted goes on being counted"
        );
        let end = later.wrapping_add(SPAN);
        assert_eq!(repeats.is_due(end), Some((A, 1)));
        assert_eq!(repeats.is_due(end.wrapping_add(SPAN)), None);
        assert!(repeats.is_empty() && repeats.is_first(A, end));
    }
}
