//! Counters and their text form.
//!
//! Every worker writes to the same numbers through an `Arc`, without a lock and without an order between them: a scrape
//! is a glance and not a snapshot. Nothing here is named by a stranger, so the page has the same lines for ever.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::failure::OUTCOMES;

/// Declares [`Metrics`] and its page together: a field's name and its line of documentation are what Prometheus reads.
macro_rules! metrics {
    ($(#[doc = $help:literal] $kind:ident $name:ident,)*) => {
        /// What an operator needs to see why a 503 happened. A counter only grows; a gauge falls too.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $(#[doc = $help] pub $name: AtomicU64,)*
            /// Answers of 1xx to 5xx, in this order; see [`Metrics::answered`].
            answers: [AtomicU64; CLASSES.len()],
            /// Failures in the order of [`OUTCOMES`]; see [`Metrics::failed`].
            failures: [AtomicU64; OUTCOMES.len()],
        }

        impl Metrics {
            /// Appends the page in Prometheus' text format 0.0.4; see [`CONTENT_TYPE`].
            pub fn render(&self, out: &mut String) {
                $(
                    head(out, stringify!($kind), stringify!($name), $help.trim());
                    sample(out, stringify!($kind), stringify!($name), "", &self.$name);
                )*
                head(out, "counter", "responses", "Answers by the class of their status.");
                for (class, number) in CLASSES.iter().zip(&self.answers) {
                    sample(out, "counter", "responses", &format!("{{class=\"{class}\"}}"), number);
                }
                head(out, "counter", "failures", "Exchanges that failed, by outcome.");
                for (outcome, number) in OUTCOMES.iter().zip(&self.failures) {
                    sample(out, "counter", "failures", &format!("{{outcome=\"{outcome}\"}}"), number);
                }
            }
        }
    };
}

metrics! {
    /// Client connections, parked ones included.
    gauge connections_open,
    /// Client connections that rest as bare sockets.
    gauge connections_parked,
    /// Client connections taken from the backlog.
    counter connections_accepted,
    /// Client connections closed under pressure.
    counter connections_evicted,
    /// Requests in work, those that are answered without an upstream included.
    gauge exchanges,
    /// Requests that wait for memory, a place or an upstream connection.
    gauge waiting,
    /// Upstream connections, idle ones included.
    gauge upstream_open,
    /// Upstream connections kept for the next request.
    gauge upstream_idle,
    /// Upstream connections begun.
    counter dials,
    /// Upstream connections that came to nothing.
    counter dial_failures,
    /// Requests sent once more after a stale connection.
    counter retries,
    /// Body bytes from clients.
    counter client_bytes_in,
    /// Body bytes to clients.
    counter client_bytes_out,
    /// The memory budget; 0 = none.
    gauge memory_limit_bytes,
    /// Bytes of the memory budget that are held.
    gauge memory_used_bytes,
    /// Log lines that nobody took in time.
    counter log_lines_dropped,
    /// When the program began, in seconds since 1970.
    gauge start_time_seconds,
}

impl Metrics {
    /// All at zero, but for the start.
    pub fn new(start: SystemTime) -> Metrics {
        let metrics = Metrics::default();
        set(
            &metrics.start_time_seconds,
            start
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        );
        metrics
    }

    /// Whether no worker has an exchange in work.
    pub fn is_quiet(&self) -> bool {
        self.exchanges.load(Relaxed) == 0
    }

    /// Counts an answer by the class of its status; below 100 and above 599 there is none.
    pub fn answered(&self, status: u16) {
        if let Some(class) = usize::from(status / 100)
            .checked_sub(1)
            .and_then(|class| self.answers.get(class))
        {
            count(class);
        }
    }

    /// Counts a failure by its outcome; a word that is none of [`OUTCOMES`] is not counted.
    pub fn failed(&self, outcome: &str) {
        if let Some((_, failures)) = OUTCOMES
            .iter()
            .zip(&self.failures)
            .find(|(word, _)| **word == outcome)
        {
            count(failures);
        }
    }
}

/// One more: of a counter, or of a gauge.
pub fn count(number: &AtomicU64) {
    number.fetch_add(1, Relaxed);
}

/// Several more, such as bytes.
pub fn add(number: &AtomicU64, more: u64) {
    number.fetch_add(more, Relaxed);
}

/// One less of a gauge; each follows a [`count`].
pub fn gone(gauge: &AtomicU64) {
    gauge.fetch_sub(1, Relaxed);
}

/// One more of a gauge, until it is dropped.
#[derive(Debug)]
pub struct Held<'a>(&'a AtomicU64);

impl Held<'_> {
    /// Counts itself.
    pub fn new(gauge: &AtomicU64) -> Held<'_> {
        count(gauge);
        Held(gauge)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        gone(self.0);
    }
}

/// What one worker's part of a gauge is from now on, and was before.
pub fn shift(gauge: &AtomicU64, before: u64, now: u64) {
    gauge.fetch_add(now.wrapping_sub(before), Relaxed);
}

/// What a gauge says from now on.
pub fn set(gauge: &AtomicU64, now: u64) {
    gauge.store(now, Relaxed);
}

// Every name, help and label value is a word of ours that needs no escaping; a test holds us to it.

fn head(out: &mut String, kind: &str, name: &str, help: &str) {
    let total = total(kind);
    let _ = writeln!(
        out,
        "# HELP {PREFIX}{name}{total} {help}\n# TYPE {PREFIX}{name}{total} {kind}"
    );
}

fn sample(out: &mut String, kind: &str, name: &str, labels: &str, number: &AtomicU64) {
    let _ = writeln!(
        out,
        "{PREFIX}{name}{}{labels} {}",
        total(kind),
        number.load(Relaxed)
    );
}

fn total(kind: &str) -> &'static str {
    if kind == "counter" { "_total" } else { "" }
}

/// What [`Metrics::render`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const PREFIX: &str = "lean_proxy_";
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::*;

    fn page(metrics: &Metrics) -> String {
        let mut out = String::new();
        metrics.render(&mut out);
        out
    }

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        for status in [101, 200, 204, 302, 404, 499, 503, 599, 0, 99, 600, 999] {
            metrics.answered(status);
        }
        for outcome in ["no-place", "no-place", "no-route", "no such word"] {
            metrics.failed(outcome);
        }
        count(&metrics.connections_open);
        count(&metrics.connections_open);
        gone(&metrics.connections_open);
        add(&metrics.client_bytes_out, 4096);
        add(&metrics.client_bytes_in, 5);
        set(&metrics.memory_limit_bytes, 10 << 20);
        let page = page(&metrics);
        for line in [
            "connections_open 1",
            "connections_parked 0",
            "responses_total{class=\"1xx\"} 1",
            "responses_total{class=\"2xx\"} 2",
            "responses_total{class=\"3xx\"} 1",
            "responses_total{class=\"4xx\"} 2",
            "responses_total{class=\"5xx\"} 2",
            "failures_total{outcome=\"no-place\"} 2",
            "failures_total{outcome=\"no-route\"} 1",
            "failures_total{outcome=\"no-memory\"} 0",
            "client_bytes_out_total 4096",
            "client_bytes_in_total 5",
            "memory_limit_bytes 10485760",
            "start_time_seconds 1700000000",
        ] {
            assert!(
                page.contains(&format!("\nlean_proxy_{line}\n")),
                "{line}\n{page}"
            );
        }
    }

    #[test]
    fn the_page_is_well_formed() {
        let page = page(&Metrics::default());
        assert!(page.ends_with('\n'));
        let (mut families, mut samples) = (HashSet::new(), HashSet::new());
        let (mut family, mut kind) = ("", "");
        for line in page.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = help.split_once(' ').unwrap().0;
                assert!(families.insert(family), "{line}");
                assert!(!help.contains('\\'), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, word) = rest.split_once(' ').unwrap();
                assert_eq!(name, family);
                kind = word;
                assert_eq!(kind == "counter", family.ends_with("_total"), "{line}");
            } else {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
                assert_eq!(name, family, "{line}");
                assert!(samples.insert(sample), "{line}");
                assert!(
                    value.parse::<u64>().is_ok() && matches!(kind, "counter" | "gauge"),
                    "{line}"
                );
                assert!(
                    labels.ends_with('}')
                        && !labels.contains('\\')
                        && labels.matches('"').count() % 2 == 0,
                    "{line}"
                );
            }
        }
        assert_eq!(
            (families.len(), samples.len()),
            (19, 17 + 5 + OUTCOMES.len())
        );
    }
}
