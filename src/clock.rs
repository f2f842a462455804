//! Waits for a time: [`sleep`] and [`timeout`], by one timer of the kernel for each thread.
//!
//! tokio's own timers would read the clock twice and search their wheel each time the thread wakes, whatever for: 900
//! instructions of each request. This timer is a descriptor like a socket, and costs nothing until it runs out.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::net::unix::pipe;

use crate::sys::timer::{set, timer};

thread_local! {
    static SLEEPERS: RefCell<Sleepers> = const { RefCell::new(Sleepers::new()) };
}

/// The tasks of one thread that wait for a time. They are few: what waits for a client has its deadline in the connection
/// table, which sleeps for all of them.
struct Sleepers {
    /// The timer, which runs out at the earliest time; `None` while no task watches it.
    timer: Option<Rc<pipe::Receiver>>,
    waiting: Vec<Waiting>,
    /// The number of the next sleeper.
    next: u64,
}

struct Waiting {
    number: u64,
    end: Instant,
    waker: Waker,
}

/// Waits until a time; see [`sleep`].
#[derive(Debug)]
pub struct Sleep {
    end: Instant,
    /// The sleeper's number, once it waits.
    number: Option<u64>,
}

/// The time was over before the work was done.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

/// Stops to use the timer when its task ends, which is with its runtime.
struct Watch;

/// Starts the timer of this thread, so that later waits cannot fail.
///
/// # Errors
/// There is no descriptor or no memory left.
pub fn start() -> io::Result<()> {
    SLEEPERS.with_borrow_mut(Sleepers::start)
}

/// Ready after `span`. Must be polled on a `LocalRuntime`.
pub fn sleep(span: Duration) -> Sleep {
    // as far away as tokio's timers reach, if it is beyond what a clock can show
    const FAR: Duration = Duration::from_hours(30 * 365 * 24);
    let now = Instant::now();
    Sleep {
        end: now.checked_add(span).unwrap_or_else(|| now + FAR),
        number: None,
    }
}

/// What `work` returns, if it does within `limit`.
///
/// # Errors
/// [`Elapsed`] otherwise; `work` is dropped.
pub async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    let (mut work, mut end) = (pin!(work), pin!(sleep(limit)));
    poll_fn(|context| {
        if let Poll::Ready(value) = work.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        end.as_mut().poll(context).map(|()| Err(Elapsed))
    })
    .await
}

impl Sleepers {
    const fn new() -> Sleepers {
        Sleepers {
            timer: None,
            waiting: Vec::new(),
            next: 0,
        }
    }

    fn start(&mut self) -> io::Result<()> {
        if self.timer.is_none() {
            // read like a pipe
            let timer = Rc::new(pipe::Receiver::from_owned_fd_unchecked(timer()?)?);
            self.timer = Some(Rc::clone(&timer));
            tokio::task::spawn_local(watch(timer, Watch));
            self.set();
        }
        Ok(())
    }

    /// Sets the timer to the earliest end.
    fn set(&self) {
        let first = self.waiting.iter().map(|waiting| waiting.end).min();
        if let (Some(timer), Some(first)) = (&self.timer, first) {
            let span = first.saturating_duration_since(Instant::now());
            set(&**timer, span);
        }
    }

    /// Lets a sleeper wait; gives its number.
    fn add(&mut self, end: Instant, waker: Waker) -> u64 {
        self.start().expect("the worker has started its clock");
        let number = self.next;
        self.next += 1;
        let is_first = self.waiting.iter().all(|waiting| end < waiting.end);
        self.waiting.push(Waiting { number, end, waker });
        if is_first {
            self.set();
        }
        number
    }

    /// Gives a sleeper another waker; says whether it still waits.
    fn replace(&mut self, number: u64, waker: &mut Waker) -> bool {
        let mut waiting = self.waiting.iter_mut();
        let found = waiting.find(|waiting| waiting.number == number);
        found
            .map(|waiting| std::mem::swap(&mut waiting.waker, waker))
            .is_some()
    }

    /// Removes a sleeper, if it still waits. The timer may now run out too early, which wakes nothing.
    fn remove(&mut self, number: u64) -> Option<Waiting> {
        let mut waiting = self.waiting.iter();
        let at = waiting.position(|waiting| waiting.number == number)?;
        Some(self.waiting.swap_remove(at))
    }

    /// Removes those whose time has come, and sets the timer for the others.
    fn take_due(&mut self) -> Vec<Waiting> {
        let now = Instant::now();
        let due = self.waiting.extract_if(.., |waiting| waiting.end <= now);
        let due = due.collect();
        self.set();
        due
    }
}

/// Wakes sleepers whenever the timer runs out.
async fn watch(timer: Rc<pipe::Receiver>, _watch: Watch) {
    while timer.readable().await.is_ok() {
        // the count of how often it has run out
        if timer.try_read(&mut [0; 8]).is_err() {
            continue;
        }
        // woken outside of the list, to which a task that ends may come back
        for due in SLEEPERS.with_borrow_mut(Sleepers::take_due) {
            due.waker.wake();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // the list is borrowed where a runtime that ends drops the task at once
        SLEEPERS.with(|sleepers| {
            if let Ok(mut sleepers) = sleepers.try_borrow_mut() {
                sleepers.timer = None;
            }
        });
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.end <= Instant::now() {
            self.stop();
            return Poll::Ready(());
        }
        // cloned before, and the old one dropped after, the list is borrowed
        let (end, mut waker) = (self.end, context.waker().clone());
        let number = self.number;
        let waits = SLEEPERS.with_borrow_mut(|sleepers| match number {
            Some(number) => sleepers.replace(number, &mut waker),
            None => false,
        });
        if !waits {
            self.number = Some(SLEEPERS.with_borrow_mut(|sleepers| sleepers.add(end, waker)));
        }
        Poll::Pending
    }
}

impl Sleep {
    fn stop(&mut self) {
        if let Some(number) = self.number.take() {
            // dropped outside of the list
            drop(SLEEPERS.with_borrow_mut(|sleepers| sleepers.remove(number)));
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        runtime::{Builder, LocalOptions},
        task::yield_now,
    };

    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .build_local(LocalOptions::default())
            .unwrap();
        runtime.block_on(test)
    }

    const SHORT: Duration = Duration::from_millis(5);
    const LONG: Duration = Duration::from_mins(10);

    #[test]
    fn every_sleeper_ends_and_none_early() {
        run(async {
            let sleeper = |factor: u32| {
                tokio::task::spawn_local(async move {
                    let begun = Instant::now();
                    sleep(SHORT * factor).await;
                    assert!(begun.elapsed() >= SHORT * factor);
                })
            };
            for task in [3, 1, 2].map(sleeper) {
                task.await.unwrap();
            }
        });
    }

    #[test]
    fn a_sleeper_that_is_dropped_waits_no_more_and_delays_no_other() {
        run(async {
            let gone = tokio::task::spawn_local(sleep(SHORT));
            let other = tokio::task::spawn_local(sleep(2 * SHORT));
            yield_now().await;
            gone.abort();
            other.await.unwrap();
            assert!(SLEEPERS.with_borrow(|sleepers| sleepers.waiting.is_empty()));
        });
    }

    #[test]
    fn a_sleeper_that_is_polled_again_keeps_its_place_and_wakes_its_last_task() {
        run(async {
            let mut sleeper = Box::pin(sleep(SHORT));
            let next = SLEEPERS.with_borrow(|sleepers| sleepers.next) + 1;
            for _ in 0..3 {
                let mut context = Context::from_waker(Waker::noop());
                assert!(sleeper.as_mut().poll(&mut context).is_pending());
                assert_eq!(SLEEPERS.with_borrow(|sleepers| sleepers.next), next);
            }
            sleeper.await;
        });
    }

    #[test]
    fn a_timeout_ends_what_takes_longer_and_nothing_else() {
        run(async {
            assert_eq!(timeout(LONG, async { 7 }).await, Ok(7));
            assert_eq!(timeout(Duration::ZERO, async { 7 }).await, Ok(7));
            let never = std::future::pending::<()>();
            assert_eq!(timeout(SHORT, never).await, Err(Elapsed));
            assert_eq!(timeout(LONG, sleep(SHORT)).await, Ok(()));
            assert!(SLEEPERS.with_borrow(|sleepers| sleepers.waiting.is_empty()));
        });
    }

    #[test]
    fn a_thread_may_have_one_runtime_after_another() {
        for _ in 0..2 {
            run(async {
                start().unwrap();
                sleep(SHORT).await;
            });
        }
    }
}
