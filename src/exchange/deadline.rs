//! The time-outs of an exchange; each starts again with progress.
//!
//! A [`Wait`] cannot be made without its progress, and [`Wait::limit`] must name its time-out: so no time-out can be
//! added that runs while bytes move. The table's tick follows from the time-outs that are started
//! (`ConnectionTable::keep_pace`).

use std::time::Duration;

use crate::{
    config::Server,
    connection_table::{SlotRef, TimerKind},
    failure::Failure,
    net::Stream,
    sys::socket,
};

/// How long an upstream has to answer `Expect: 100-continue` before the body is sent all the same (as Go does).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// What an exchange waits for, and its progress so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// More of the client's body: this many bytes of it were read, framing included.
    Client(u64),
    /// The upstream takes more of the request: this many bytes were passed on.
    Upstream(u64),
    /// The upstream asks for the body.
    Continue,
    /// The head of the answer, after the end of the request.
    Answer,
}

/// The time-outs of an exchange in milliseconds (as small as they are, because every exchange holds them); [`NONE`] =
/// none.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `read_timeout`.
    read: u32,
    /// `write_timeout`.
    write: u32,
    /// `response_header_timeout`.
    answer: u32,
}

const NONE: u32 = u32::MAX;

/// The time-out of what an exchange currently waits for.
#[derive(Debug, Default)]
pub struct Deadline {
    wait: Option<Wait>,
}

impl Limits {
    /// The time-outs of the configuration; `answer` is the route's own.
    pub fn of(server: &Server, answer: Option<Duration>) -> Limits {
        let millis = |limit: Option<Duration>| {
            limit.map_or(NONE, |limit| {
                // not `as_millis`, which counts in 128 bits
                let millis = limit.as_secs().saturating_mul(1_000);
                let millis = millis.saturating_add(limit.subsec_millis().into());
                u32::try_from(millis).unwrap_or(NONE - 1)
            })
        };
        Limits {
            read: millis(server.read_timeout),
            write: millis(server.write_timeout),
            answer: millis(answer),
        }
    }

    /// `read_timeout`; `None` = no limit.
    pub fn read(&self) -> Option<Duration> {
        (self.read != NONE).then(|| Duration::from_millis(self.read.into()))
    }
}

impl Default for Limits {
    /// No time-outs.
    fn default() -> Limits {
        Limits {
            read: NONE,
            write: NONE,
            answer: NONE,
        }
    }
}

impl Wait {
    /// What a wait that took too long is called: who did not go on.
    pub fn failure(self) -> Failure {
        match self {
            Wait::Client(_) => Failure::BodyTimedOut,
            Wait::Upstream(_) => Failure::RequestStalled,
            Wait::Continue | Wait::Answer => Failure::ResponseTimedOut,
        }
    }

    fn limit(self, limits: &Limits) -> Option<Duration> {
        let millis = match self {
            Wait::Client(_) => limits.read,
            Wait::Upstream(_) => limits.write,
            Wait::Continue => return Some(CONTINUE_WAIT),
            Wait::Answer => limits.answer,
        };
        (millis != NONE).then(|| Duration::from_millis(millis.into()))
    }
}

impl Deadline {
    /// Sets what is waited for; says whether that has taken too long. `upstream` is the connection that bytes are sent
    /// to.
    pub fn is_past(
        &mut self,
        slot: &SlotRef,
        wait: Wait,
        limits: &Limits,
        upstream: Option<&Stream>,
    ) -> bool {
        let is_new = self.wait != Some(wait);
        if let Wait::Upstream(_) = wait {
            if is_new {
                self.wait = Some(wait);
                slot.goes_on(TimerKind::Work);
            }
            let sign = || upstream.map_or(0, |io| socket::taken(&io.socket()));
            return slot.is_stalled(TimerKind::Work, wait.limit(limits), sign);
        }
        if is_new && let Wait::Client(_) = wait {
            slot.client_blocks();
        }
        slot.is_late(&mut self.wait, wait, wait.limit(limits))
    }

    /// Ends the wait.
    pub fn end(&mut self, slot: &SlotRef) {
        if self.wait.take().is_some() {
            slot.clear_deadline();
        }
    }
}
