//! What is counted and told of an exchange when it ends, whatever ended it.
//!
//! [`Ride`] is dropped exactly once for each exchange, and its drop is the one place where an outcome becomes a metric,
//! an access line and, where something broke off, a log line of its own. Never here: header values, queries, bodies.

use std::{io, net::IpAddr, sync::atomic::AtomicU64, thread, time::Duration};

use http::Method;

use crate::{
    body::Ride,
    config::Level,
    line::{MARK, beginning},
    log::{self, Field},
    metrics,
    outcome::{Blame, Outcome},
    park::Order,
    route::Route,
};

/// What log lines call a request: who asked, and for what.
#[derive(Debug)]
pub struct Subject {
    /// The client, behind the proxies that are trusted; `None` on a unix socket.
    pub client: Option<IpAddr>,
    /// The request's method.
    pub method: Method,
    /// Host and path in one allocation, each cut to what a log line shows.
    text: Box<str>,
    host: u16,
}

impl Subject {
    /// `path` is without its query; `host` is empty where the request names none.
    pub fn new(client: Option<IpAddr>, method: Method, host: &str, path: &str) -> Subject {
        let (host, path) = (beginning(host), beginning(path));
        let text = [host.as_str(), path.as_str()].concat();
        Subject {
            client,
            method,
            text: text.into_boxed_str(),
            host: u16::try_from(host.len()).unwrap_or(0),
        }
    }

    /// The host that was asked for.
    pub fn host(&self) -> &str {
        self.text.get(..self.host.into()).unwrap_or_default()
    }

    /// The host that was asked for, unless it may have been cut: then it must not decide anything.
    pub fn whole_host(&self) -> Option<&str> {
        Some(self.host()).filter(|host| !host.ends_with(MARK))
    }

    /// The path that was asked for.
    pub fn path(&self) -> &str {
        self.text.get(self.host.into()..).unwrap_or_default()
    }

    /// Writes a log line about the request; `route` is the one it was given to.
    #[cold]
    pub fn tell(&self, level: Level, message: &str, route: Option<&Route>, more: &[Field<'_>]) {
        if !log::enabled(level) {
            return;
        }
        let client = log::client(self.client);
        let (host, path) = (self.host(), self.path());
        let mut fields: Vec<Field<'_>> = vec![
            ("client", &client),
            ("method", &self.method),
            ("host", &host),
            ("path", &path),
        ];
        let name = route.map(Route::name);
        let upstream = route
            .and_then(Route::target)
            .map(|it| it.origin.to_string());
        fields.extend(name.iter().map(|name| ("route", name as &_)));
        fields.extend(upstream.iter().map(|upstream| ("upstream", upstream as &_)));
        fields.extend_from_slice(more);
        log::event(level, message, &fields);
    }
}

impl Ride<'_> {
    /// The route that serves it; `None` before one was found.
    pub fn route(&self) -> Option<&Route> {
        self.config.routes.iter().nth(self.route.get()? as usize)
    }

    /// Notes how it ends; the first word counts, for what follows is its consequence.
    pub fn note(&self, outcome: Outcome) {
        if self.outcome.get().is_none() {
            self.outcome.set(Some(outcome));
        }
    }

    /// The upstream broke off.
    pub fn note_cut(&self, error: &io::Error) {
        self.note(Outcome::UpstreamCut);
        drop(self.cause.set(error.to_string().into()));
    }

    /// It stood in a queue for so long.
    pub fn note_wait(&self, wait: Duration) {
        let millis = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        self.waited.set(self.waited.get().saturating_add(millis));
    }

    /// Bytes of the request's body have come.
    pub fn took_in(&self, count: usize) {
        self.received.set(self.received.get() + count as u64);
        metrics::add(&self.metrics.client_bytes_in, count as u64);
    }

    /// Bytes of the answer's body are with the client's kernel.
    pub fn gave_out(&self, count: usize) {
        self.sent.set(self.sent.get() + count as u64);
        metrics::add(&self.metrics.client_bytes_out, count as u64);
    }

    /// The answer begins, with this status.
    pub fn answers(&self, status: u16) {
        self.status.set(status);
        self.metrics.answered(status);
        if let Some(record) = &mut *self.record.borrow_mut() {
            record.answers(status);
        }
    }

    /// Which gauge it is one of while it lasts; counted where it is made, and when it is dropped.
    pub fn gauge(&self) -> &AtomicU64 {
        if self.is_tunnel {
            &self.metrics.tunnels
        } else {
            &self.metrics.exchanges
        }
    }

    /// How it ended, as far as that shows when it is dropped.
    fn ended(&self) -> Outcome {
        if let Some(outcome) = self.outcome.get() {
            return outcome;
        }
        if self.complete.get() {
            return Outcome::Ok;
        }
        match self.watch.order() {
            _ if thread::panicking() => Outcome::Panicked,
            Order::Leave => self.watch.leave_outcome(),
            _ if self.watch.is_write_overdue() => Outcome::WriteTimedOut,
            _ => Outcome::ClientGone,
        }
    }

    /// Counts and tells what did not end well.
    #[cold]
    fn failed(&self, outcome: Outcome) {
        self.metrics.failed(outcome);
        if self.told.get() {
            return;
        }
        let level = if outcome.blame() == Blame::Client {
            Level::Debug
        } else {
            Level::Warn
        };
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
        let message = if self.is_tunnel {
            "tunnel ended"
        } else {
            "cut short"
        };
        let told = fields.get(..count).unwrap_or_default();
        self.subject.tell(level, message, self.route(), told);
    }
}

impl Drop for Ride<'_> {
    fn drop(&mut self) {
        let outcome = self.ended();
        metrics::gone(self.gauge());
        let index = self.route.get();
        let counters = index.and_then(|index| self.counters.get(index as usize));
        if let Some(counters) = counters {
            counters.ended(if self.is_tunnel { 0 } else { self.status.get() }, outcome);
        }
        if outcome != Outcome::Ok {
            self.failed(outcome);
        }
        if let Some(begun) = self.begun.filter(|_| !self.is_tunnel) {
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
    use super::*;

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
