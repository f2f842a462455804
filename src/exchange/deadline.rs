//! Every wait of an exchange that stands under a time-out, each with the progress that starts the time anew.
//!
//! A [`Wait`] cannot be made without its progress, and [`Wait::limit`] must know its time-out: so none can be added that
//! counts time while bytes move. The sweep's pace follows from whatever is started (`ConnectionTable::keep_pace`).

use std::time::Duration;

use crate::{
    config::Server,
    connection_table::{SlotRef, TimerKind},
    net::Stream,
    sys::socket,
};

/// How long an upstream may think about `Expect: 100-continue` before the body is sent all the same (as Go does).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// What an exchange waits for, and how far that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// For more of the client's body: so many bytes of it were read, framing included.
    Client(u64),
    /// For the upstream to take more of the request: so many bytes have passed between us.
    Upstream(u64),
    /// For the upstream to ask for the body.
    Continue,
    /// For the answer's head, since the request was sent to its end.
    Answer,
}

/// The time-outs of an exchange in milliseconds, for it keeps them all the time; [`NONE`] = none.
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

/// The time-out of whatever an exchange waits for at the moment.
#[derive(Debug, Default)]
pub struct Deadline {
    wait: Option<Wait>,
}

impl Limits {
    /// Those of the configuration; `answer` is the route's own.
    pub fn of(server: &Server, answer: Option<Duration>) -> Limits {
        let millis = |limit: Option<Duration>| {
            limit.map_or(NONE, |limit| {
                u32::try_from(limit.as_millis()).unwrap_or(NONE - 1)
            })
        };
        Limits {
            read: millis(server.read_timeout),
            write: millis(server.write_timeout),
            answer: millis(answer),
        }
    }
}

impl Limits {
    /// `read_timeout`; `None` = no limit.
    pub fn read(&self) -> Option<Duration> {
        (self.read != NONE).then(|| Duration::from_millis(self.read.into()))
    }
}

impl Default for Limits {
    /// None at all.
    fn default() -> Limits {
        Limits {
            read: NONE,
            write: NONE,
            answer: NONE,
        }
    }
}

impl Wait {
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
    /// This is waited for now; says whether that has taken too long. `upstream` is the connection that bytes go to.
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

    /// Nothing is waited for any more.
    pub fn end(&mut self, slot: &SlotRef) {
        if self.wait.take().is_some() {
            slot.clear_deadline();
        }
    }
}
