//! Counters, gauges and a histogram, and their page in Prometheus' text format.
//!
//! All workers write to the same atomic numbers without a lock, so a scrape is not a consistent snapshot. No label comes
//! from a client: the page has the same lines from one reload to the next, with one set for each route.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::outcome::Outcome;

/// A counter for each outcome.
#[derive(Debug)]
struct Failures([AtomicU64; Outcome::ALL.len()]);

impl Default for Failures {
    fn default() -> Failures {
        Failures([const { AtomicU64::new(0) }; Outcome::ALL.len()])
    }
}

/// Declares [`Metrics`] and its page together: a field's name and its doc line become the metric's name and HELP text.
macro_rules! metrics {
    ($(#[doc = $help:literal] $kind:ident $name:ident,)*) => {
        /// All numbers of the process. A counter only grows; a gauge also falls.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $(#[doc = $help] pub $name: AtomicU64,)*
            /// Answers of 1xx to 5xx, in this order; see [`Metrics::answered`].
            answers: [AtomicU64; CLASSES.len()],
            /// Exchanges by outcome, in the order of [`Outcome::ALL`]; see [`Metrics::failed`].
            failures: Failures,
            /// How long exchanges took; see [`Metrics::took`].
            durations: Histogram,
            /// Whether the page is shown at all; see [`Metrics::is_exposed`].
            exposed: bool,
            /// The counters of the current configuration's routes; see [`Metrics::routes`].
            routes: Mutex<Vec<Arc<RouteCounters>>>,
        }

        impl Metrics {
            /// Appends the page except for the routes' part, in Prometheus' text format 0.0.4; see [`CONTENT_TYPE`].
            pub fn render(&self, out: &mut String) {
                head(out, "gauge", "build_info", "The program's version and commit; always 1.");
                let _ = writeln!(out, "{PREFIX}build_info{{version=\"{VERSION}\",commit=\"{COMMIT}\"}} 1");
                $(
                    head(out, stringify!($kind), stringify!($name), $help.trim());
                    sample(out, stringify!($kind), stringify!($name), "", &self.$name);
                )*
                head(out, "counter", "responses", "Answers by the class of their status.");
                for (class, number) in CLASSES.iter().zip(&self.answers) {
                    sample(out, "counter", "responses", &format!("{{class=\"{class}\"}}"), number);
                }
                head(out, "counter", "failures", "Exchanges that did not end well, by outcome.");
                for (outcome, number) in Outcome::ALL.iter().zip(&self.failures.0) {
                    if *outcome != Outcome::Ok {
                        sample(out, "counter", "failures", &format!("{{outcome=\"{outcome}\"}}"), number);
                    }
                }
                self.durations.render(out);
            }
        }
    };
}

metrics! {
    /// Open client connections, idle ones included.
    gauge connections_open,
    /// Client connections that are idle.
    gauge connections_parked,
    /// Client connections accepted.
    counter connections_accepted,
    /// Client connections closed to free memory or places for others.
    counter connections_evicted,
    /// TLS handshakes with clients that succeeded.
    counter tls_handshakes,
    /// Requests in work, those that are answered without an upstream included.
    gauge exchanges,
    /// Open tunnels: upgraded connections.
    gauge tunnels,
    /// Requests received, those answered without an upstream included.
    counter requests,
    /// Requests waiting for memory, a place or an upstream connection.
    gauge waiting,
    /// Open upstream connections, idle ones included.
    gauge upstream_open,
    /// Upstream connections kept for the next request.
    gauge upstream_idle,
    /// Attempts to open an upstream connection.
    counter dials,
    /// Attempts to open an upstream connection that failed.
    counter dial_failures,
    /// Requests sent once more on a fresh upstream connection.
    counter retries,
    /// Body bytes received from clients.
    counter client_bytes_in,
    /// Body bytes sent to clients.
    counter client_bytes_out,
    /// The memory limit in bytes; 0 = none.
    gauge memory_limit_bytes,
    /// Bytes of the memory budget in use.
    gauge memory_used_bytes,
    /// Log lines dropped because stdout was full.
    counter log_lines_dropped,
    /// When the program started, in seconds since 1970.
    gauge start_time_seconds,
}

impl Metrics {
    /// All numbers at zero, except for the start time.
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

    /// Sets whether the page is shown; durations and the counters of routes are kept only then.
    #[must_use]
    pub fn exposed(self, exposed: bool) -> Metrics {
        Metrics { exposed, ..self }
    }

    /// Whether the page is shown.
    pub fn is_exposed(&self) -> bool {
        self.exposed
    }

    /// Whether no worker has an exchange in progress.
    pub fn is_quiet(&self) -> bool {
        self.exchanges.load(Relaxed) == 0
    }

    /// Counts an answer by the class of its status; below 100 and above 599 there is none.
    pub fn answered(&self, status: u16) {
        if let Some(class) = class(status).and_then(|class| self.answers.get(class)) {
            inc(class);
        }
    }

    /// Counts an exchange by its outcome; [`Outcome::Ok`] is counted and never shown.
    pub fn failed(&self, outcome: Outcome) {
        if let Some(failures) = self.failures.0.get(outcome as usize) {
            inc(failures);
        }
    }

    /// How many exchanges had this outcome.
    pub fn ended(&self, outcome: Outcome) -> u64 {
        self.failures.0.get(outcome as usize).map_or(0, value)
    }

    /// Adds the duration of an exchange, from its complete request head to the last byte of its answer.
    pub fn took(&self, duration: Duration) {
        self.durations.observe(duration);
    }

    /// The counters of these routes (path and host as configured, `""` = any host), in their order. A route that existed
    /// before keeps its counters; a removed one is no longer shown. Empty where the page is not shown.
    pub fn routes(
        &self,
        routes: impl Iterator<Item = (String, String)>,
    ) -> Vec<Arc<RouteCounters>> {
        if !self.exposed {
            return Vec::new();
        }
        let mut shown = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before: HashMap<&str, &Arc<RouteCounters>> = HashMap::new();
        for counters in shown.iter() {
            before.insert(&counters.labels, counters);
        }
        let now: Vec<Arc<RouteCounters>> = routes
            .map(|(path, host)| {
                let labels = format!("path=\"{}\",host=\"{}\"", Escaped(&path), Escaped(&host));
                before.get(labels.as_str()).map_or_else(
                    || Arc::new(RouteCounters::new(labels.into_boxed_str())),
                    |counters| Arc::clone(counters),
                )
            })
            .collect();
        drop(before);
        shown.clone_from(&now);
        now
    }

    /// The routes' part of the page, to be rendered in pieces.
    pub fn route_pages(&self) -> RoutePages {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        RoutePages {
            routes: routes.clone(),
            at: 0,
        }
    }
}

/// The counters of one route, shared by all workers.
#[derive(Debug)]
pub struct RouteCounters {
    /// `path="…",host="…"`, escaped.
    labels: Box<str>,
    /// Answers of 1xx to 5xx.
    answers: [AtomicU64; CLASSES.len()],
    failures: AtomicU64,
}

impl RouteCounters {
    fn new(labels: Box<str>) -> RouteCounters {
        RouteCounters {
            labels,
            answers: Default::default(),
            failures: AtomicU64::new(0),
        }
    }

    /// Counts an exchange: the status that was answered (0 = none) and how it ended.
    pub fn ended(&self, status: u16, outcome: Outcome) {
        if let Some(class) = class(status).and_then(|class| self.answers.get(class)) {
            inc(class);
        }
        if outcome != Outcome::Ok {
            inc(&self.failures);
        }
    }
}

/// The counters of all routes as text, in pieces of a few kilobytes, because there may be thousands of routes.
#[derive(Debug)]
pub struct RoutePages {
    routes: Vec<Arc<RouteCounters>>,
    /// The next index: below the number of routes their answers, then their failures.
    at: usize,
}

/// Routes in one piece: five lines each, some 5 kB.
const ROUTES_AT_ONCE: usize = 16;

impl RoutePages {
    /// Appends the next piece; false when there are no more.
    pub fn render(&mut self, out: &mut String) -> bool {
        let count = self.routes.len();
        let (is_second, start) = (self.at >= count, self.at % count.max(1));
        if self.at >= 2 * count {
            return false;
        }
        let name = if is_second {
            "route_failures"
        } else {
            "route_responses"
        };
        if start == 0 {
            let help = if is_second {
                "Exchanges of a route that did not end well."
            } else {
                "Answers of a route by the class of their status."
            };
            head(out, "counter", name, help);
        }
        let end = count.min(start + ROUTES_AT_ONCE);
        for route in self.routes.get(start..end).unwrap_or_default() {
            let labels = &route.labels;
            if is_second {
                sample(
                    out,
                    "counter",
                    name,
                    &format!("{{{labels}}}"),
                    &route.failures,
                );
                continue;
            }
            for (class, number) in CLASSES.iter().zip(&route.answers) {
                sample(
                    out,
                    "counter",
                    name,
                    &format!("{{{labels},class=\"{class}\"}}"),
                    number,
                );
            }
        }
        self.at += end - start;
        true
    }
}

/// How many exchanges took up to how long, and their total time.
#[derive(Debug, Default)]
struct Histogram {
    /// Not cumulative here; the last bucket counts durations above the last bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// The upper bounds of the buckets in microseconds, each with its label: from a cached answer to a stream.
const BOUNDS: [(u64, &str); 14] = [
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
    (60_000_000, "60"),
];

impl Histogram {
    fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|(bound, _)| micros <= *bound);
        if let Some(bucket) = self.buckets.get(bucket.unwrap_or(BOUNDS.len())) {
            inc(bucket);
        }
        add(&self.micros, micros);
    }

    fn render(&self, out: &mut String) {
        const NAME: &str = "exchange_duration_seconds";
        head(
            out,
            "histogram",
            NAME,
            "Time from a request's complete head to the last byte of its answer.",
        );
        let bounds = BOUNDS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
        let mut sum = 0;
        for (bound, bucket) in bounds.zip(&self.buckets) {
            sum += bucket.load(Relaxed);
            let _ = writeln!(out, "{PREFIX}{NAME}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let micros = self.micros.load(Relaxed);
        let _ = writeln!(
            out,
            "{PREFIX}{NAME}_sum {}.{:06}\n{PREFIX}{NAME}_count {sum}",
            micros / 1_000_000,
            micros % 1_000_000
        );
    }
}

/// A label's value, escaped as the format requires.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.chars().try_for_each(|char| match char {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            char => f.write_char(char),
        })
    }
}

/// Which of [`CLASSES`] a status belongs to; below 100 and above 599 there is none.
fn class(status: u16) -> Option<usize> {
    usize::from(status / 100).checked_sub(1)
}

/// Adds one to a counter or a gauge.
pub fn inc(number: &AtomicU64) {
    number.fetch_add(1, Relaxed);
}

/// Adds to a counter or a gauge.
pub fn add(number: &AtomicU64, more: u64) {
    number.fetch_add(more, Relaxed);
}

/// Subtracts one from a gauge; each call follows an [`inc`].
pub fn dec(gauge: &AtomicU64) {
    gauge.fetch_sub(1, Relaxed);
}

/// Adds one to a gauge until it is dropped.
#[derive(Debug)]
pub struct GaugeGuard<'a>(&'a AtomicU64);

impl GaugeGuard<'_> {
    /// Adds one to the gauge.
    pub fn new(gauge: &AtomicU64) -> GaugeGuard<'_> {
        inc(gauge);
        GaugeGuard(gauge)
    }
}

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        dec(self.0);
    }
}

/// Changes one worker's part of a gauge from `before` to `now`.
pub fn move_to(gauge: &AtomicU64, before: u64, now: u64) {
    gauge.fetch_add(now.wrapping_sub(before), Relaxed);
}

/// The value of a counter or a gauge.
pub fn value(number: &AtomicU64) -> u64 {
    number.load(Relaxed)
}

/// Sets a gauge.
pub fn set(gauge: &AtomicU64, now: u64) {
    gauge.store(now, Relaxed);
}

// Every name, help text and label value except those of the routes is a constant that needs no escaping; a test checks it.

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

/// The Content-Type of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const PREFIX: &str = "lean_proxy_";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that the program was built from, if the build set it.
const COMMIT: &str = match option_env!("LEAN_PROXY_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
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
    fn every_number_appears_on_the_page() {
        let metrics = Metrics::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        for status in [101, 200, 204, 302, 404, 499, 503, 599, 0, 99, 600, 999] {
            metrics.answered(status);
        }
        for outcome in [
            Outcome::NoPlace,
            Outcome::NoPlace,
            Outcome::NoRoute,
            Outcome::Ok,
        ] {
            metrics.failed(outcome);
        }
        for micros in [0, 1_000, 1_001, 70_000_000, 200_000] {
            metrics.took(Duration::from_micros(micros));
        }
        inc(&metrics.connections_open);
        inc(&metrics.connections_open);
        dec(&metrics.connections_open);
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
            "exchange_duration_seconds_bucket{le=\"0.001\"} 2",
            "exchange_duration_seconds_bucket{le=\"0.0025\"} 3",
            "exchange_duration_seconds_bucket{le=\"60\"} 4",
            "exchange_duration_seconds_bucket{le=\"+Inf\"} 5",
            "exchange_duration_seconds_sum 70.202001",
            "exchange_duration_seconds_count 5",
        ] {
            assert!(
                page.contains(&format!("\nlean_proxy_{line}\n")),
                "{line}\n{page}"
            );
        }
    }

    fn named(routes: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
        let owned = |(path, host): &(&str, &str)| ((*path).to_owned(), (*host).to_owned());
        routes.iter().map(owned).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn a_route_keeps_its_counters_over_a_reload_and_a_removed_one_is_not_shown() {
        let metrics = Metrics::default().exposed(true);
        let before = metrics.routes(named(&[("/a/", ""), ("/b/", "x.example")]));
        before[0].ended(200, Outcome::Ok);
        before[1].ended(502, Outcome::DialFailed);
        // a second worker shares the counters
        metrics.routes(named(&[("/a/", ""), ("/b/", "x.example")]))[0].ended(200, Outcome::Ok);
        let now = metrics.routes(named(&[("/c\"\\/", "*.y"), ("/a/", "")]));
        now[1].ended(0, Outcome::ClientGone);
        let (mut out, mut pages) = (String::new(), metrics.route_pages());
        while pages.render(&mut out) {}
        for line in [
            "route_responses_total{path=\"/a/\",host=\"\",class=\"2xx\"} 2",
            "route_failures_total{path=\"/a/\",host=\"\"} 1",
            "route_failures_total{path=\"/c\\\"\\\\/\",host=\"*.y\"} 0",
        ] {
            assert!(
                out.contains(&format!("\nlean_proxy_{line}\n")),
                "{line}\n{out}"
            );
        }
        assert!(!out.contains("/b/"), "{out}");
        assert!(Metrics::default().routes(named(&[("/a/", "")])).is_empty());
    }

    #[test]
    fn thousands_of_routes_are_shown_in_small_pieces() {
        let metrics = Metrics::default().exposed(true);
        metrics.routes((0..1000).map(|n| (format!("/{n}/"), String::new())));
        let (mut lines, mut out, mut pages) = (0, String::new(), metrics.route_pages());
        while pages.render(&mut out) {
            assert!(out.len() < 8192, "{} bytes", out.len());
            lines += out.lines().count();
            out.clear();
        }
        assert_eq!(lines, 2 * 2 + 1000 * 6);
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
                let member = name.strip_prefix(family).unwrap_or("none");
                let members: &[&str] = match kind {
                    "histogram" => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                assert!(members.contains(&member), "{line}");
                assert!(samples.insert(sample), "{line}");
                assert!(
                    value.parse::<f64>().is_ok()
                        && matches!(kind, "counter" | "gauge" | "histogram"),
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
            (24, 1 + 20 + 5 + (Outcome::ALL.len() - 1) + BOUNDS.len() + 3)
        );
    }

    #[test]
    fn it_is_quiet_without_an_exchange() {
        let metrics = Metrics::default();
        assert!(metrics.is_quiet());
        inc(&metrics.exchanges);
        assert!(!metrics.is_quiet());
    }
}
