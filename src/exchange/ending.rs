//! Counts and logs an exchange when it ends, however it ended.
//!
//! [`ExchangeContext`] is dropped exactly once for each exchange. Its drop is the one place where an outcome becomes a
//! metric, an access line and, where something broke off, a log line of its own. Header values, queries and bodies are
//! never logged.

use std::{io, sync::atomic::AtomicU64, thread, time::Duration};

use crate::{
    config::Level,
    connection_table::Directive,
    exchange::context::ExchangeContext,
    observe::{log::Field, metrics, repeats::Kind},
    outcome::Outcome,
    route::Route,
};

impl ExchangeContext<'_> {
    /// The route that serves it; `None` while none was found.
    pub fn route(&self) -> Option<&Route> {
        self.config.routes.iter().nth(self.route.get()? as usize)
    }

    /// Records how it ends; the first call counts, because later ones are its consequences.
    pub fn note(&self, outcome: Outcome) {
        if self.outcome.get().is_none() {
            self.outcome.set(Some(outcome));
        }
    }

    /// Records that the upstream broke off.
    pub fn note_cut(&self, error: &io::Error) {
        self.note(Outcome::UpstreamCut);
        drop(self.cause.set(error.to_string().into()));
    }

    /// Adds a wait in a queue.
    pub fn note_wait(&self, wait: Duration) {
        let millis = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        self.waited.set(self.waited.get().saturating_add(millis));
    }

    /// Counts bytes of the request's body that have arrived.
    pub fn took_in(&self, count: usize) {
        self.received.set(self.received.get() + count as u64);
        metrics::add(&self.metrics.client_bytes_in, count as u64);
    }

    /// Counts bytes of the answer's body that the client's kernel buffer has taken.
    pub fn gave_out(&self, count: usize) {
        self.sent.set(self.sent.get() + count as u64);
        metrics::add(&self.metrics.client_bytes_out, count as u64);
    }

    /// Records that the answer begins, with this status.
    pub fn answers(&self, status: u16) {
        self.status.set(status);
        self.metrics.answered(status);
        if let Some(record) = &mut *self.record.borrow_mut() {
            record.answers(status);
        }
    }

    /// The gauge that counts it; incremented when the context is made, decremented when it is dropped.
    pub fn gauge(&self) -> &AtomicU64 {
        if self.is_tunnel {
            &self.metrics.tunnels
        } else {
            &self.metrics.exchanges
        }
    }

    /// The outcome, as far as it is known when the context is dropped.
    fn ended(&self) -> Outcome {
        if let Some(outcome) = self.outcome.get() {
            return outcome;
        }
        if self.complete.get() {
            return Outcome::Ok;
        }
        match self.slot.order() {
            _ if thread::panicking() => Outcome::Panicked,
            Directive::Leave => self.slot.leave_outcome(),
            _ if self.slot.is_write_overdue() => Outcome::WriteTimedOut,
            _ => Outcome::ClientGone,
        }
    }

    /// Counts and logs a failure.
    #[cold]
    fn failed(&self, outcome: Outcome) {
        self.metrics.failed(outcome);
        if self.told.get() {
            return;
        }
        let level = outcome.blame().level();
        let message = if self.is_tunnel {
            "tunnel ended"
        } else {
            "cut short"
        };
        let kind = Kind(message, outcome);
        if level == Level::Warn && !self.repeats.is_first(kind, self.slot.now()) {
            return;
        }
        let cause = self.cause.get().map_or("", |cause| cause);
        let (status, received, sent) = (self.status.get(), self.received.get(), self.sent.get());
        let fields: [Field<'_>; 5] = [
            ("status", &status),
            ("received", &received),
            ("sent", &sent),
            ("outcome", &outcome),
            ("reason", &cause),
        ];
        let count = if cause.is_empty() { 4 } else { 5 };
        let told = fields.get(..count).unwrap_or_default();
        self.subject.tell(level, message, self.route(), told);
    }
}

impl Drop for ExchangeContext<'_> {
    fn drop(&mut self) {
        let outcome = self.ended();
        metrics::dec(self.gauge());
        let index = self.route.get();
        let counters = index.and_then(|index| self.counters.get(index as usize));
        if let Some(counters) = counters {
            counters.ended(if self.is_tunnel { 0 } else { self.status.get() }, outcome);
        }
        if outcome != Outcome::Ok {
            self.failed(outcome);
        }
        if let Some(begun) = self.begun {
            self.metrics.took(begun.elapsed());
        }
        if let Some(record) = self.record.get_mut() {
            record.received = self.received.get();
            record.sent = self.sent.get();
            record.waited = Duration::from_millis(self.waited.get().into());
            record.outcome = outcome;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use http::Method;

    use crate::{exchange::subject::Subject, outcome::Outcome, test_support::Stage};

    #[test]
    fn an_exchange_that_a_panic_ends_is_counted_as_that() {
        let stage = Stage::new();
        stage.amid_exchange(|| {});
        let outcomes = || [Outcome::Panicked, Outcome::ClientGone].map(|it| stage.ended(it));
        assert_eq!(outcomes(), [0, 1]);
        let bug = AssertUnwindSafe(|| stage.amid_exchange(|| panic!("a bug")));
        assert!(catch_unwind(bug).is_err());
        assert_eq!(outcomes(), [1, 1]);
        stage.amid_exchange(|| {});
        assert_eq!(outcomes(), [1, 2], "the next one is none of its");
    }

    #[test]
    fn a_subject_keeps_what_a_line_shows() {
        let subject = Subject::new(None, Method::GET, "a.example", "/x");
        assert_eq!((subject.host(), subject.path()), ("a.example", "/x"));
        assert_eq!(subject.whole_host(), Some("a.example"));
        let long = "ü".repeat(2_000);
        let subject = Subject::new(None, Method::GET, &long, &long);
        assert_eq!((subject.host().len(), subject.path().len()), (259, 259));
        assert_eq!(subject.whole_host(), None);
    }
}
