//! A queue of waiting tasks that is fair between clients.
//!
//! Within a class those that came first go first. A request that is whole and one whose body is still to come take
//! turns, so that a crowd of unfinished uploads does not stand before every other request. The clients of some groups
//! ([`Queue::let_others_first`]) go behind all others: of those that hold more than their share while others wait.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    task::{Poll, Waker},
};

use crate::client_group::{Group, Majority, majority};

/// What is known about a waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The group of its client.
    pub group: Group,
    /// When the request came, in milliseconds of the connection table's clock.
    pub since: u32,
    /// The request has been received completely.
    pub is_whole: bool,
}

impl Claim {
    /// A claim of no particular client: first come, first served.
    pub fn plain() -> Claim {
        Claim {
            group: Group::of(None),
            since: 0,
            is_whole: true,
        }
    }
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    claim: Claim,
    waker: Waker,
}

/// A queue of waiting tasks.
#[derive(Debug, Default)]
pub struct Queue {
    /// Complete requests, and unfinished ones; each line in the order of tickets.
    lines: RefCell<[VecDeque<Waiter>; 2]>,
    next: Cell<u64>,
    /// The line that was served last.
    served: Cell<usize>,
    /// The groups that go last.
    behind: RefCell<Vec<Group>>,
    /// Waiters of other groups, in each line.
    others: Cell<[usize; 2]>,
}

/// A place in a [`Queue`]; dropping it lets the next one try.
struct Ticket<'a> {
    queue: &'a Queue,
    line: usize,
    number: u64,
}

impl Queue {
    /// Waits until `take` returns a value; calls it at once if the queue is empty, and whenever [`Queue::wake`] is called while
    /// this task is next. Dropping the future leaves the queue.
    pub async fn until<T>(&self, claim: Claim, mut take: impl FnMut() -> Option<T>) -> T {
        let mut turn: Option<Ticket<'_>> = None;
        poll_fn(move |context| {
            if turn.is_none() {
                if self.len() == 0
                    && let Some(value) = take()
                {
                    return Poll::Ready(value);
                }
                turn = Some(self.join(claim, context.waker().clone()));
            }
            let (line, ticket) = turn
                .as_ref()
                .map_or((0, 0), |turn| (turn.line, turn.number));
            if self.chosen() == Some((line, ticket))
                && let Some(value) = take()
            {
                self.served.set(line);
                turn = None;
                return Poll::Ready(value);
            }
            self.renew(line, ticket, context.waker());
            Poll::Pending
        })
        .await
    }

    /// Wakes the next task, because something was given back.
    pub fn wake(&self) {
        if self.len() == 0 {
            return;
        }
        if let Some((line, ticket)) = self.chosen() {
            self.with(line, ticket, |waiter| waiter.waker.wake_by_ref());
        }
    }

    /// The number of waiting tasks.
    pub fn len(&self) -> usize {
        self.lines.borrow().iter().map(VecDeque::len).sum()
    }

    /// Calls `show` for every claim.
    pub fn each(&self, show: impl FnMut(&Claim)) {
        let lines = self.lines.borrow();
        lines
            .iter()
            .flatten()
            .map(|waiter| &waiter.claim)
            .for_each(show);
    }

    /// The group to which more than half of the waiting requests belong.
    pub fn majority(&self) -> Option<Majority> {
        let lines = self.lines.borrow();
        majority(lines.iter().flatten().map(|waiter| waiter.claim.group))
    }

    /// From now on clients of these groups go behind all others.
    pub fn let_others_first(&self, groups: Vec<Group>) {
        if *self.behind.borrow() == groups {
            return;
        }
        let others = {
            let lines = self.lines.borrow();
            let count = |line: &VecDeque<Waiter>| {
                let is_other = |waiter: &&Waiter| !groups.contains(&waiter.claim.group);
                line.iter().filter(is_other).count()
            };
            let [whole, unfinished] = &*lines;
            [whole, unfinished].map(count)
        };
        self.others.set(others);
        self.behind.replace(groups);
        self.wake();
    }

    /// The groups of those who wait, one for each.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups = Vec::with_capacity(self.len());
        self.each(|claim| groups.push(claim.group));
        groups
    }

    /// Whose turn it is: the line and the ticket.
    fn chosen(&self) -> Option<(usize, u64)> {
        let lines = self.lines.borrow();
        let others = self.others.get();
        let behind = self.behind.borrow();
        let are_others = others != [0, 0];
        let turns = [1 - self.served.get(), self.served.get()];
        turns.into_iter().find_map(|index| {
            let line = lines.get(index)?;
            let waiter = if !are_others {
                line.front()
            } else if others.get(index) == Some(&0) {
                None
            } else if behind.is_empty() {
                line.front()
            } else {
                line.iter()
                    .find(|waiter| !behind.contains(&waiter.claim.group))
            };
            Some((index, waiter?.ticket))
        })
    }

    fn count(&self, line: usize, group: Group, more: bool) {
        let mut others = self.others.get();
        if !self.behind.borrow().contains(&group)
            && let Some(count) = others.get_mut(line)
        {
            *count = if more {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
            self.others.set(others);
        }
    }

    fn join(&self, claim: Claim, waker: Waker) -> Ticket<'_> {
        let ticket = self.next.get();
        self.next.set(ticket + 1);
        let line = usize::from(!claim.is_whole);
        if let Some(waiters) = self.lines.borrow_mut().get_mut(line) {
            waiters.push_back(Waiter {
                ticket,
                claim,
                waker,
            });
        }
        self.count(line, claim.group, true);
        Ticket {
            queue: self,
            line,
            number: ticket,
        }
    }

    fn renew(&self, line: usize, ticket: u64, waker: &Waker) {
        self.with(line, ticket, |waiter| {
            if !waiter.waker.will_wake(waker) {
                waiter.waker.clone_from(waker);
            }
        });
    }

    fn with(&self, line: usize, ticket: u64, work: impl FnOnce(&mut Waiter)) {
        let mut lines = self.lines.borrow_mut();
        let Some(waiters) = lines.get_mut(line) else {
            return;
        };
        if let Ok(at) = waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket)
            && let Some(waiter) = waiters.get_mut(at)
        {
            work(waiter);
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut lines = self.queue.lines.borrow_mut();
        let left = lines.get_mut(self.line).and_then(|waiters| {
            let at = waiters
                .binary_search_by_key(&self.number, |waiter| waiter.ticket)
                .ok()?;
            let left = waiters.remove(at);
            if waiters.is_empty() {
                waiters.shrink_to(64);
            }
            left
        });
        drop(lines);
        if let Some(waiter) = left {
            self.queue.count(self.line, waiter.claim.group, false);
        }
        self.queue.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        net::{IpAddr, Ipv4Addr},
        pin::Pin,
        rc::Rc,
        sync::Arc,
        task::Context,
    };

    use super::*;
    use crate::yield_budget::tests::Count;

    fn claim(address: u8, is_whole: bool) -> Claim {
        Claim {
            group: Group::of(Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, address)))),
            since: 0,
            is_whole,
        }
    }

    type Wait<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

    /// Lets them all join, then gives out one place after another, and says in which order they were served.
    fn order(claims: &[Claim], behind: &[Group]) -> Vec<usize> {
        let (queue, free) = (Queue::default(), Cell::new(0));
        let mut context = Context::from_waker(Waker::noop());
        let take = || (free.get() > 0).then(|| free.set(free.get() - 1));
        let mut waits: Vec<(usize, Wait<'_>)> = Vec::new();
        for (index, claim) in claims.iter().enumerate() {
            let mut wait: Wait<'_> = Box::pin(queue.until(*claim, take));
            assert!(wait.as_mut().poll(&mut context).is_pending());
            waits.push((index, wait));
        }
        queue.let_others_first(behind.to_vec());
        let mut served = Vec::new();
        while !waits.is_empty() {
            free.set(1);
            let done = waits
                .iter_mut()
                .position(|(_, wait)| wait.as_mut().poll(&mut context).is_ready());
            served.push(waits.remove(done.expect("one has its turn")).0);
            assert_eq!(free.get(), 0);
        }
        assert_eq!((queue.len(), queue.others.get()), (0, [0, 0]));
        served
    }

    #[test]
    fn whole_requests_and_unfinished_ones_take_turns() {
        let (whole, rest) = (claim(1, true), claim(1, false));
        assert_eq!(order(&[whole; 3], &[]), [0, 1, 2]);
        assert_eq!(order(&[rest; 3], &[]), [0, 1, 2]);
        let mixed = [rest, rest, rest, whole, whole];
        assert_eq!(order(&mixed, &[]), [0, 3, 1, 4, 2]);
    }

    #[test]
    fn the_group_that_holds_the_most_goes_behind_the_others() {
        let (much, other, third) = (claim(1, true), claim(2, true), claim(3, true));
        let line = [much, much, other, much, third];
        assert_eq!(order(&line, &[much.group]), [2, 4, 0, 1, 3]);
        assert_eq!(order(&line, &[]), [0, 1, 2, 3, 4]);
        let both = [much.group, other.group];
        assert_eq!(order(&line, &both), [4, 0, 1, 2, 3]);
        let upload = claim(2, false);
        let line = [much, much, upload, other];
        assert_eq!(order(&line, &[much.group]), [2, 3, 0, 1]);
    }

    #[test]
    fn a_waiter_that_left_is_not_counted() {
        let queue = Rc::new(Queue::default());
        let mut context = Context::from_waker(Waker::noop());
        let much = claim(1, true);
        queue.let_others_first(vec![much.group]);
        let mut first = Box::pin(queue.until(much, || Some(())));
        let mut blocked = Box::pin(queue.until(claim(2, true), || None::<()>));
        assert!(blocked.as_mut().poll(&mut context).is_pending());
        assert!(
            first.as_mut().poll(&mut context).is_pending(),
            "it is not its turn"
        );
        assert_eq!(queue.majority(), None);
        drop(blocked);
        assert_eq!(queue.majority().map(|found| found.group), Some(much.group));
        assert!(first.as_mut().poll(&mut context).is_ready());
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn the_next_is_woken_when_the_one_before_leaves_or_goes_behind() {
        let queue = Queue::default();
        let waits = |claim: Claim| Box::pin(queue.until(claim, || None::<()>));
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let (much, other) = (claim(1, true), claim(2, true));
        let mut first = waits(much);
        let mut second = waits(other);
        let mut quiet = Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(&mut quiet).is_pending());
        let mut context = Context::from_waker(&waker);
        assert!(second.as_mut().poll(&mut context).is_pending());
        queue.let_others_first(vec![much.group]);
        assert_eq!(count.take(), 1, "it is its turn now");
        queue.let_others_first(Vec::new());
        assert_eq!(count.take(), 0);
        drop(first);
        assert_eq!(count.take(), 1);
    }
}
