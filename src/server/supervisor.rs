//! Supervises the workers, and the vital tasks of each.
//!
//! A vital task that ends by an error or a panic is reported here, and the program then ends with exit code 3: a proxy
//! without its timer or its acceptors must not look alive. A task that hangs ends nothing; that is what systemd's
//! watchdog is for, which is fed only while the timer of every worker runs ([`Pulse`]).

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind, set_hook},
    pin::pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::Poll,
    time::{Duration, Instant},
};

use anyhow::{Error, Result, anyhow};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::cli;

/// An event of a worker.
enum Report {
    /// It accepts on each of its listeners.
    Accepting,
    /// It has lost a vital task, or has ended itself.
    Lost(Error),
}

/// Reports the events of one worker.
#[derive(Clone)]
pub struct Reporter {
    worker: usize,
    reports: mpsc::UnboundedSender<Report>,
}

/// Receives the reports of all workers.
pub struct Supervisor {
    reports: mpsc::UnboundedReceiver<Report>,
    /// Cloned by [`Supervisor::reporter`]; kept so that the channel is never closed.
    sender: mpsc::UnboundedSender<Report>,
}

impl Supervisor {
    /// Without reports yet.
    pub fn new() -> Supervisor {
        // unbounded: a report is a worker's start or end, so there are few, and no client causes any
        let (sender, reports) = mpsc::unbounded_channel();
        Supervisor { reports, sender }
    }

    /// The reporter of a worker.
    pub fn reporter(&self, worker: usize) -> Reporter {
        Reporter {
            worker,
            reports: self.sender.clone(),
        }
    }

    /// Waits until this many workers accept.
    ///
    /// # Errors
    /// A vital task or a worker has ended before.
    pub async fn all_accept(&mut self, workers: usize) -> Result<()> {
        let mut accepting = 0;
        while accepting < workers {
            match self.reports.recv().await {
                Some(Report::Accepting) => accepting += 1,
                Some(Report::Lost(error)) => return Err(error),
                None => break,
            }
        }
        Ok(())
    }

    /// Waits for the first loss of a vital task or worker.
    pub async fn loss(&mut self) -> Error {
        loop {
            match self.reports.recv().await {
                Some(Report::Lost(error)) => return error,
                Some(Report::Accepting) => {}
                None => return anyhow!("the supervisor has lost its workers"),
            }
        }
    }
}

impl Reporter {
    /// The worker's number, from 0; the first runs on the main thread.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// Reports that this worker accepts on each of its listeners.
    pub fn accepts(&self) {
        drop(self.reports.send(Report::Accepting));
    }

    /// Starts a vital task on this thread. An end by an error or a panic is reported; a task that returns `Ok` has done
    /// its work.
    pub fn spawn(
        &self,
        task: &'static str,
        work: impl Future<Output = Result<()>> + 'static,
    ) -> JoinHandle<()> {
        let reporter = self.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = guard(work).await {
                reporter.lost(task, error);
            }
        })
    }

    /// Runs a worker on this thread, and reports its end unless the worker was told to end.
    pub fn run(&self, work: impl FnOnce() -> Result<()>) {
        if let Err(error) = caught(work) {
            self.lost("thread", error);
        }
    }

    fn lost(&self, what: &'static str, error: Error) {
        let worker = self.worker;
        let error = error.context(format!("worker {worker} has lost its {what}"));
        drop(self.reports.send(Report::Lost(error)));
    }
}

/// Runs `work`; a panic in it becomes an error.
///
/// # Errors
/// Those of `work`, and its panic.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// Like [`caught`], for a future.
///
/// # Errors
/// Those of `work`, and its panic.
async fn guard<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = pin!(work);
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        polled.unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))))
    })
    .await
}

/// The result of the future that ends first.
pub async fn first<T>(one: impl Future<Output = T>, other: impl Future<Output = T>) -> T {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|context| match one.as_mut().poll(context) {
        Poll::Pending => other.as_mut().poll(context),
        ready @ Poll::Ready(_) => ready,
    })
    .await
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    anyhow!("it panicked: {}", message.unwrap_or("without a message"))
}

/// Makes a panic one line on stderr, without a backtrace.
pub fn report_panics_in_one_line() {
    set_hook(Box::new(|panic| {
        let message = panicked(panic.payload()).to_string();
        let place = panic.location().map(ToString::to_string);
        let place = place.unwrap_or_default();
        let line = format!("panicked at {place}: {message}").replace(['\n', '\r'], " ");
        cli::complain(0, [line.as_str()]);
    }));
}

/// The heartbeat of all workers' timers, for systemd's watchdog.
#[derive(Debug)]
pub struct Pulse {
    base: Instant,
    interval: Duration,
    /// When each timer ran last, in milliseconds since `base`.
    beats: Box<[AtomicU64]>,
    /// When systemd was last notified.
    told: AtomicU64,
}

impl Pulse {
    /// `interval` is how often systemd wants a notification: half of its time-out.
    pub fn new(workers: usize, interval: Duration) -> Pulse {
        Pulse {
            base: Instant::now(),
            interval,
            beats: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            told: AtomicU64::new(0),
        }
    }

    /// The longest that a timer may sleep.
    pub fn longest_sleep(&self) -> Duration {
        self.interval / 3
    }

    /// Records that this worker's timer runs. Says whether to notify systemd now: only the first worker does, and only
    /// if the timer of every other has run within the interval.
    pub fn beat(&self, worker: usize, now: Instant) -> bool {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let (now, interval) = (millis(now - self.base), millis(self.interval));
        if let Some(beat) = self.beats.get(worker) {
            beat.store(now, Relaxed);
        }
        let is_recent = |beat: &AtomicU64, span| now.saturating_sub(beat.load(Relaxed)) <= span;
        let is_due = worker == 0 && !is_recent(&self.told, interval / 4);
        let is_told = is_due && self.beats.iter().all(|beat| is_recent(beat, interval));
        if is_told {
            self.told.store(now, Relaxed);
        }
        is_told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build_local(tokio::runtime::LocalOptions::default())
            .unwrap()
            .block_on(async { tokio::time::timeout(Duration::from_secs(20), work).await })
            .expect("it is heard at once")
    }

    /// The error that a vital task's end leads to.
    fn loss(work: impl Future<Output = Result<()>> + 'static) -> String {
        on_a_runtime(async {
            let mut supervisor = Supervisor::new();
            let reporter = supervisor.reporter(3);
            reporter.spawn("timer", async { Ok(()) });
            reporter.accepts();
            reporter.spawn("acceptor", work);
            format!("{:#}", supervisor.loss().await)
        })
    }

    #[test]
    fn a_vital_task_that_fails_or_panics_is_a_loss_and_one_that_is_done_is_none() {
        assert_eq!(
            loss(async { Err(anyhow!("no listener")) }),
            "worker 3 has lost its acceptor: no listener"
        );
        for message in ["as text", "as a string"] {
            let panics = async move {
                tokio::task::yield_now().await;
                match message {
                    "as text" => panic!("as text"),
                    other => panic!("{other}"),
                }
            };
            assert_eq!(
                loss(panics),
                format!("worker 3 has lost its acceptor: it panicked: {message}")
            );
        }
    }

    #[test]
    fn a_worker_that_fails_or_panics_is_a_loss_before_all_accept() {
        for fails in [true, false] {
            let error = on_a_runtime(async {
                let mut supervisor = Supervisor::new();
                supervisor.reporter(0).accepts();
                let reporter = supervisor.reporter(1);
                std::thread::spawn(move || {
                    reporter.run(|| {
                        if fails {
                            Err(anyhow!("no room"))
                        } else {
                            panic!("oh")
                        }
                    });
                });
                supervisor
                    .all_accept(2)
                    .await
                    .map_err(|error| format!("{error:#}"))
            });
            let cause = if fails { "no room" } else { "it panicked: oh" };
            assert_eq!(error, Err(format!("worker 1 has lost its thread: {cause}")));
        }
    }

    #[test]
    fn all_are_awaited_and_a_worker_that_was_told_to_end_is_no_loss() {
        on_a_runtime(async {
            let mut supervisor = Supervisor::new();
            for worker in 0..3 {
                let reporter = supervisor.reporter(worker);
                std::thread::spawn(move || {
                    reporter.accepts();
                    reporter.run(|| Ok(()));
                });
            }
            supervisor.all_accept(3).await.unwrap();
            let quiet = async {
                tokio::task::yield_now().await;
                None
            };
            assert!(
                first(async { Some(supervisor.loss().await) }, quiet)
                    .await
                    .is_none()
            );
        });
    }

    #[test]
    fn systemd_is_told_only_while_every_timer_runs() {
        let pulse = Pulse::new(2, Duration::from_secs(10));
        let at = |seconds| pulse.base + Duration::from_secs(seconds);
        assert!(pulse.beat(0, at(3)), "both have only just begun");
        assert!(!pulse.beat(0, at(4)), "systemd was notified a second ago");
        assert!(pulse.beat(0, at(7)));
        assert!(!pulse.beat(1, at(9)), "only the first worker notifies");
        assert!(pulse.beat(0, at(19)));
        assert!(!pulse.beat(0, at(23)), "the second worker hangs");
        assert!(!pulse.beat(0, at(60)));
        pulse.beat(1, at(61));
        assert!(pulse.beat(0, at(62)), "it goes on");
    }
}
