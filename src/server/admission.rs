//! What a request pays before its exchange begins: memory at once, memory after a wait, or a place in the small
//! reserve.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use crate::{
    client_group::Group,
    connection_table::{SlotRef, phase::Phase},
    exchange::worker::{State, Worker},
    http1::{
        request_head::{self, Head},
        server::ServerCodec,
    },
    memory::{
        budget::{Budget, Permit},
        concurrency::ConcurrencyPermit,
        prices::SPARED,
    },
    net::Stream,
    observe::metrics::GaugeGuard,
    outcome::Outcome,
};

/// How long an answer that was given without memory of its own may hold the reserve.
pub const BRIEF: Duration = Duration::from_secs(1);

/// A request that asks to be admitted.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// Bytes of its head.
    pub size: usize,
    /// Whether it has a body.
    pub has_body: bool,
    /// What TLS with the client adds to its price, in bytes.
    pub records: u64,
    /// Whether its answer needs neither an upstream nor a wait.
    pub is_brief: bool,
}

/// Pays for an exchange whose request head is in a buffer of `size` bytes, or waits in the queue for that much memory.
/// Without memory there is a small reserve for health, preflights and the 503; then the second part holds a place of
/// it. The third part is the wait in milliseconds.
///
/// `poll_gone` is ready when the client has left.
///
/// # Errors
/// The outcome of a request that does not even get the 503: there was no memory for it, or its client has left.
pub async fn admit(
    worker: &Worker,
    slot: &SlotRef,
    ask: Ask,
    poll_gone: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Result<(Option<Permit>, Option<ConcurrencyPermit>, u32), Outcome> {
    let budget = &worker.budget;
    if !ask.is_brief && budget.takes_turns() {
        Box::pin(let_others_go_first(worker, slot, ask)).await;
    }
    if budget.queue.len() == 0
        && let Some(permit) = budget.exchange(ask.size, ask.records)
    {
        return Ok((Some(permit), None, 0));
    }
    // idle upstream connections give way at once
    worker.pool.clear();
    // rare, and large: boxed, it does not enlarge the future of other requests
    Box::pin(async move {
        let since = Instant::now();
        let waited = || u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX);
        if !ask.is_brief
            && let Some(permit) = wait_for_memory(worker, slot, ask, poll_gone)
                .await
                .ok_or(Outcome::ClientGone)?
        {
            return Ok((Some(permit), None, waited()));
        }
        // what has come of a body stands in the socket and behind the head, and no permit pays for it here
        let holds_much = ask.has_body && !ask.is_brief && worker.budget.plan().tight;
        if holds_much && worker.reserve.queue.len() >= SPARED {
            return Err(Outcome::NoMemory);
        }
        slot.enter(Phase::Busy, None);
        let line = worker
            .reserve
            .queue
            .until(slot.claim(true), || worker.reserve.take());
        let place = slot.within(Some(2 * BRIEF), line).await;
        Ok((None, Some(place.map_err(|_| Outcome::NoMemory)?), waited()))
    })
    .await
}

/// Waits a moment while many requests are in progress: a few at a time have wide buffers and are soon done, all at once would
/// be narrow and slow. A request that gets no turn in time goes on all the same, and so does one for whose wait there is no
/// memory.
async fn let_others_go_first(worker: &Worker, slot: &SlotRef, ask: Ask) {
    let budget = &worker.budget;
    let Some(_waits) = budget.turn(ask.size) else {
        return;
    };
    slot.enter(Phase::Waiting, None);
    let take = || (!budget.is_crowded()).then_some(());
    budget.turns.wait(slot.claim(!ask.has_body), take).await;
}

/// What TLS with the client adds to the price of an exchange, in bytes.
pub fn records(budget: &Budget, io: &Stream, has_body: bool) -> u64 {
    match io.secured() {
        Some(_) => budget.records(has_body),
        None => 0,
    }
}

/// Waits in the queue for the price of an exchange, up to `queue_timeout`. `None` = the client has left meanwhile;
/// `Some(None)` = there was no memory for the wait itself, or none in time.
async fn wait_for_memory(
    worker: &Worker,
    slot: &SlotRef,
    ask: Ask,
    mut poll_gone: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Option<Option<Permit>> {
    let budget = &worker.budget;
    let Some(_waiter) = budget.waiter(ask.size, spared(budget, slot, ask)) else {
        return Some(None);
    };
    slot.enter(Phase::Waiting, None);
    let _waiting = GaugeGuard::new(&worker.metrics.waiting);
    let limit = Some(worker.state().config.proxy.queue_timeout);
    let take = || budget.exchange(ask.size, ask.records);
    let line = budget.queue.until(slot.claim(!ask.has_body), take);
    let mut waits = pin!(slot.within(limit, line));
    let permit = poll_fn(|context| {
        let polled = waits.as_mut().poll(context);
        if polled.is_pending() && poll_gone(context).is_ready() {
            return Poll::Ready(None);
        }
        slot.has_looked();
        polled.map(Some)
    });
    Some(permit.await?.ok())
}

/// Most requests that may be waiting when this one joins them. Where one group has most of the waiting requests, its share
/// is half of [`SPARED`], for requests without a body alone.
fn spared(budget: &Budget, slot: &SlotRef, ask: Ask) -> usize {
    let most = budget
        .queue
        .majority()
        .filter(|most| most.count > SPARED / 2);
    match most {
        Some(most) if most.group != slot.group() => SPARED,
        Some(_) if ask.has_body => 0,
        Some(_) => SPARED / 2,
        None => SPARED,
    }
}

/// Counts a request that comes through a trusted proxy towards its client's group. `fields` gives the values of its
/// X-Forwarded-For.
pub fn count_by_client<'f, F>(state: &State, slot: &SlotRef, fields: impl FnOnce() -> F)
where
    F: DoubleEndedIterator<Item = &'f [u8]>,
{
    let trusted = &state.config.server.trusted_proxies;
    if trusted.is_empty() {
        return;
    }
    let group = Group::forwarded(slot.client(), trusted, fields());
    slot.set_group(group.unwrap_or_else(|| Group::of(slot.client())));
}

/// Whether an answer needs neither an upstream nor a wait: health, preflights, and what a route answers by itself.
pub fn is_brief<'a>(
    state: &State,
    path: &[u8],
    is_options: impl FnOnce() -> bool,
    host: impl FnOnce() -> &'a [u8],
) -> bool {
    path == state.config.health_path.as_bytes()
        || (state.answers_options && is_options())
        || (state.answers_directly && state.answers(host(), path))
}

/// Like [`is_brief`], for a head that is complete and not parsed yet.
pub fn is_brief_head(worker: &Worker, codec: &ServerCodec, head: &Head) -> bool {
    is_brief(
        &worker.state(),
        request_head::path(codec.target(head)),
        || codec.has_method(head, b"OPTIONS"),
        || codec.host(head),
    )
}

#[cfg(test)]
mod tests {
    use std::{future::Future as _, rc::Rc, sync::Arc, task::Waker, time::SystemTime};

    use super::*;
    use crate::{
        http1::request_head::Arrival,
        memory::{plan::Plan, prices::NARROW},
        net::Stream,
        observe::metrics::Metrics,
    };

    #[test]
    fn requests_that_wait_for_their_turn_have_paid_for_what_they_hold() {
        let config = crate::config::tests::good("routes: [{path: /, target: \"http://h\"}]");
        let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
        let pool = budget.plan().pool.unwrap();
        let metrics = Arc::new(Metrics::default());
        let start = SystemTime::now();
        let worker = Worker::new(config, Rc::clone(&budget), usize::MAX, metrics, start);
        let _much = budget.take(pool / 4);
        let _others: Vec<_> = (0..16).map(|_| budget.exchange(300, 0)).collect();
        budget.was_narrowed();
        let ask = Ask {
            size: 300,
            has_body: true,
            records: 0,
            is_brief: false,
        };
        let before = budget.spent();
        let mut context = Context::from_waker(Waker::noop());
        let slots: Vec<_> = (0..1_000).map(|_| worker.table.slot(None)).collect();
        let mut asking: Vec<_> = slots
            .iter()
            .map(|slot| Box::pin(admit(&worker, slot, ask, |_| Poll::Pending)))
            .collect();
        crate::server::worker::runtime().unwrap().block_on(async {
            for (index, one) in asking.iter_mut().enumerate() {
                let _admitted = one.as_mut().poll(&mut context);
                if index == 49 {
                    // a socket's receive queue has twice the size that was asked for
                    assert_eq!(budget.spent() - before, 50 * (300 + 2 * NARROW as u64));
                }
            }
        });
        let waiting = budget.turns.queue.len();
        assert!((200..1_000).contains(&waiting), "{waiting}");
        assert!(budget.spent() <= pool, "{} of {pool}", budget.spent());
    }

    #[test]
    fn what_a_route_answers_by_itself_waits_for_no_memory() {
        use tokio::io::AsyncWriteExt as _;

        let config = crate::config::tests::good(
            "routes: [{path: /, target: \"http://h\"}, {path: /fixed/, host: [a.example, b.example], respond: {}}]",
        );
        let budget = Budget::new(Plan::new(None, 1, None));
        let metrics = Arc::new(Metrics::default());
        let worker = Worker::new(
            config,
            Rc::clone(&budget),
            usize::MAX,
            metrics,
            SystemTime::now(),
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for (head, expected) in [
            (
                "GET /fixed/x?q HTTP/1.1\r\nX-A: 1\r\nHOST:  B.example:80 \r\n\r\n",
                true,
            ),
            ("GET /fixed/ HTTP/1.1\r\nHost: a.example\r\n\r\n", true),
            (
                "GET /fixed/ HTTP/1.1\r\nHost: c.example\r\nX-Host: a.example\r\n\r\n",
                false,
            ),
            ("GET /fixed HTTP/1.1\r\nHost: a.example\r\n\r\n", false),
            ("GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n", false),
            ("GET /fixed/ HTTP/1.0\r\n\r\n", false),
            ("GET /health HTTP/1.1\r\nHost: c.example\r\n\r\n", true),
        ] {
            runtime.block_on(async {
                let (mut client, server) = tokio::net::UnixStream::pair().unwrap();
                client.write_all(head.as_bytes()).await.unwrap();
                let mut codec = ServerCodec::new(Stream::unix(server, None));
                let mut scratch = [0; 1024];
                let arrival =
                    poll_fn(|context| codec.poll_head(context, &mut scratch, &budget, 1024));
                let Ok(Arrival::Head(found)) = arrival.await else {
                    panic!("{head}")
                };
                assert_eq!(is_brief_head(&worker, &codec, &found), expected, "{head}");
            });
        }
    }
}
