//! One client connection, from accept to close.
//!
//! At rest it is a bare socket and a few hundred bytes in a task of its own. When a whole request head has come, and an
//! exchange's worth of memory is paid for, the exchange gets a future of its own on the heap; when it is over, nothing is
//! left of it.

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Once,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http::{
    Method,
    header::{self, HeaderMap},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    client_group::{self, Group},
    config::Level,
    connection_table::{Directive, Slot, SlotRef, TimerKind, phase::Phase},
    cors::Verdict,
    exchange::{self, End, body::Tunnel, context::ExchangeContext, tunnel, worker::Worker},
    http1::{
        request_head::{self, Arrival, Head, Refusal},
        server::ServerCodec,
    },
    memory::{
        budget::{CONNECTION, NARROW, Permit, SPARED, UNSENT},
        concurrency::ConcurrencyPermit,
        queue::Claim,
    },
    net::Stream,
    observe::{
        log::{self, Record},
        metrics::{self, GaugeGuard},
    },
    outcome::Outcome,
    sys::socket,
    yield_budget::YieldBudget,
};

/// How long a last word may take to be written, and how long is read on behind it (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(5);

/// How much is read on behind a refusal: whoever sends more does not listen.
const REFUSED_REST: usize = 256 * 1024;

/// How an answer that was given without memory of its own may hold the reserve.
const BRIEF: Duration = Duration::from_secs(1);

/// Serves one client until it leaves or is asked to. Written by hand and not as an `async` block, because its size is
/// what an idle connection costs.
pub struct Connection {
    /// Before the seat: an exchange that is dropped with its connection still asks the seat why.
    state: State,
    worker: Rc<Worker>,
    slot: Slot,
    /// What the connection costs, with what the kernel still holds of its last answer.
    permit: Permit,
}

enum State {
    /// Accepted and never polled.
    Fresh(Stream),
    /// A bare socket from which nothing was read.
    Resting(Stream),
    /// Part of a head is here.
    Amid(Box<ServerCodec>),
    /// At work; gives the connection back when it rests.
    Busy(Pin<Box<dyn Future<Output = Option<ServerCodec>>>>),
    Over,
}

impl Connection {
    /// A connection that was just accepted; `permit` is what it costs.
    pub fn new(worker: Rc<Worker>, io: Stream, slot: Slot, permit: Permit) -> Connection {
        metrics::inc(&worker.metrics.connections_open);
        Connection {
            worker,
            slot,
            permit,
            state: State::Fresh(io),
        }
    }

    /// Looks whether a whole head has come.
    fn poll_rest(&mut self, context: &mut Context<'_>, mut codec: ServerCodec) -> Poll<State> {
        let (worker, slot) = (&self.worker, &self.slot);
        let state = worker.state();
        let server = &state.config.server;
        let arrival = codec.poll_head(
            context,
            &mut worker.scratch.borrow_mut(),
            &worker.budget,
            server.max_header_bytes,
        );
        match arrival {
            Poll::Ready(Ok(Arrival::Head(head))) => {
                // from here on the exchange pays
                if self.permit.bytes() > CONNECTION {
                    self.permit.resize(CONNECTION);
                    slot.took(0);
                }
                slot.set_deadline(None);
                let (worker, slot) = (Rc::clone(worker), (*slot).clone());
                let codec = RefCell::new(codec);
                return Poll::Ready(State::Busy(Box::pin(serve(worker, codec, slot, head))));
            }
            Poll::Ready(Ok(Arrival::Refused(refusal))) => {
                return Poll::Ready(self.refused(codec, refusal));
            }
            Poll::Ready(Ok(Arrival::End)) => return Poll::Ready(self.close(codec)),
            Poll::Ready(Err(_)) => return Poll::Ready(State::Over),
            Poll::Pending => {}
        }
        let is_amid = codec.is_amid_head();
        let is_told = match slot.order() {
            Directive::Leave => true,
            Directive::Finish => !is_amid,
            Directive::None => false,
        };
        if is_told {
            return Poll::Ready(self.close(codec));
        }
        match (is_amid, slot.phase()) {
            // the first head has its time since the connection came, a later one since its own first byte
            (true, Phase::Fresh) => slot.enter_on_time(Phase::Head),
            (true, Phase::Head) | (false, Phase::Fresh | Phase::Idle) => {}
            (true, _) => slot.enter(Phase::Head, server.header_timeout),
            (false, _) => slot.enter(Phase::Idle, server.idle_timeout),
        }
        if slot.is_overdue() {
            return Poll::Ready(if is_amid {
                self.refused(codec, Refusal::HeadTimedOut)
            } else {
                self.close(codec)
            });
        }
        if self.owes_too_long(&codec, server.write_timeout) {
            socket::reset_unsent(&codec.io.socket());
            return Poll::Ready(State::Over);
        }
        self.state = if is_amid {
            State::Amid(Box::new(codec))
        } else {
            State::Resting(codec.into_parts().0)
        };
        Poll::Pending
    }

    /// After an answer: until the client has acknowledged its last byte, the connection costs more.
    fn owe(&mut self) {
        if self.worker.budget.plan().tight {
            self.permit.resize(CONNECTION + UNSENT);
        }
    }

    /// Looks at each tick whether the client has acknowledged its last answer, not before the first: it is on its way. Says
    /// whether it has not for `limit`.
    fn owes_too_long(&mut self, codec: &ServerCodec, limit: Option<Duration>) -> bool {
        if self.permit.bytes() == CONNECTION || !self.slot.look_back(true) {
            return false;
        }
        if socket::unsent(&codec.io.socket()) == 0 {
            self.permit.resize(CONNECTION);
            self.slot.look_back(false);
            self.slot.took(0);
            return false;
        }
        let is_stalled = self.slot.is_stalled(TimerKind::Client, limit, || {
            socket::taken(&codec.io.socket())
        });
        self.slot.has_looked();
        is_stalled
    }

    /// The end of a connection between two requests. A client that was told to leave, or has not acknowledged its last
    /// answer for as long as it may be idle, is reset.
    fn close(&self, codec: ServerCodec) -> State {
        if self.permit.bytes() == CONNECTION || socket::unsent(&codec.io.socket()) == 0 {
            return State::Over;
        }
        if self.slot.order() == Directive::Leave || self.slot.is_overdue() {
            socket::reset_unsent(&codec.io.socket());
            return State::Over;
        }
        let (worker, slot) = (Rc::clone(&self.worker), (*self.slot).clone());
        State::Busy(Box::pin(async move {
            depart(&worker, &mut codec.into_parts().0, &slot).await;
            None
        }))
    }

    fn refused(&self, codec: ServerCodec, refusal: Refusal) -> State {
        let (worker, slot) = (Rc::clone(&self.worker), (*self.slot).clone());
        State::Busy(Box::pin(async move {
            refuse(&worker, codec, &slot, refusal).await;
            None
        }))
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            this.state = match std::mem::replace(&mut this.state, State::Over) {
                State::Fresh(io) => {
                    this.slot.settle(context.waker());
                    this.slot.enter(
                        Phase::Fresh,
                        this.worker.state().config.server.header_timeout,
                    );
                    State::Resting(io)
                }
                State::Resting(io) => ready!(this.poll_rest(context, ServerCodec::new(io))),
                State::Amid(codec) => ready!(this.poll_rest(context, *codec)),
                State::Busy(mut work) => match work.as_mut().poll(context) {
                    Poll::Ready(Some(codec)) => {
                        this.owe();
                        ready!(this.poll_rest(context, codec))
                    }
                    Poll::Ready(None) => State::Over,
                    Poll::Pending => {
                        this.state = State::Busy(work);
                        return Poll::Pending;
                    }
                },
                State::Over => return Poll::Ready(()),
            };
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        metrics::dec(&self.worker.metrics.connections_open);
    }
}

/// A client that speaks TLS to a plain listener is most often a mistake in the configuration of one of the two, and so is
/// told once at `warn`; scanners do it too, and are not worth a line each.
fn refusal_level(refusal: Refusal) -> Level {
    static TOLD: Once = Once::new();
    let mut level = Level::Debug;
    if refusal == Refusal::TlsHello {
        TOLD.call_once(|| level = Level::Warn);
    }
    level
}

/// Says why a connection is not served on, and closes it.
async fn refuse(worker: &Worker, mut codec: ServerCodec, slot: &SlotRef, refusal: Refusal) {
    tell_refused(worker, slot, refusal);
    slot.enter(Phase::Lingering, Some(LINGER));
    let answer = refusal.answer(&grant(worker, &codec));
    let mut bytes = answer.as_slice();
    let written = poll_fn(|context| {
        while !bytes.is_empty() {
            match Pin::new(&mut codec.io).poll_write(context, bytes) {
                Poll::Ready(Ok(count)) => bytes = bytes.get(count..).unwrap_or_default(),
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending if slot.is_overdue() || slot.order() == Directive::Leave => {
                    return Poll::Ready(false);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(true)
    })
    .await;
    // where memory is short, what a flood still has in the kernel's queues costs more than its last word is worth
    let is_flood = matches!(
        refusal,
        Refusal::NoMemory | Refusal::HeadTooLarge | Refusal::TargetTooLong
    );
    if written && !(is_flood && worker.budget.plan().tight) {
        linger(worker, codec.into_parts().0, slot, REFUSED_REST).await;
    } else if worker.budget.plan().tight {
        socket::reset_unsent(&codec.io.socket());
    }
}

/// What the global CORS policy grants a head that is refused, so that a browser shows the refusal to the page that asked.
fn grant(worker: &Worker, codec: &ServerCodec) -> HeaderMap {
    let state = worker.state();
    let mut fields = HeaderMap::new();
    if let Some(policy) = &state.config.cors {
        let asked = request_head::origin(codec.unread()).map(|origin| (header::ORIGIN, origin));
        if let Verdict::Grant(grant) = policy.judge(&Method::GET, &asked.into_iter().collect()) {
            policy.stamp(&grant, &mut fields);
        }
    }
    fields
}

/// Counts and tells a refusal; where the memory budget is what was full, as loudly as any other 503.
fn tell_refused(worker: &Worker, slot: &SlotRef, refusal: Refusal) {
    let (status, outcome) = (refusal.status().as_u16(), refusal.outcome());
    worker.metrics.answered(status);
    worker.metrics.failed(outcome);
    let (client, reason) = (log::client(slot.client()), refusal.reason());
    let (bound, value) = worker.memory_bound();
    let fields: [log::Field<'_>; 5] = [
        ("client", &client),
        ("status", &status),
        ("reason", &reason),
        ("bound", &bound),
        ("value", &value),
    ];
    match refusal {
        Refusal::NoMemory if worker.repeats.is_first(outcome.word(), slot.now()) => {
            log::warn("no answer", &fields);
        }
        Refusal::NoMemory => {}
        _ => log::event(
            refusal_level(refusal),
            "refused",
            fields.get(..3).unwrap_or_default(),
        ),
    }
    let record = Record::begin(slot.client(), "-", "", "-", Instant::now());
    if let Some(mut record) = record {
        record.answers(status);
        record.outcome = outcome;
    }
}

/// Counts and tells a request that gets not even the word that there is no room: the reserve was busy, or it is over.
#[cold]
fn tell_unanswered(worker: &Worker, slot: &SlotRef) {
    let outcome = if slot.order() == Directive::Leave {
        slot.leave_outcome()
    } else {
        Outcome::NoMemory
    };
    worker.metrics.failed(outcome);
    let client = log::client(slot.client());
    let (bound, value) = worker.memory_bound();
    if worker.repeats.is_first(outcome.word(), slot.now()) {
        log::warn(
            "no answer",
            &[
                ("client", &client),
                ("reason", &outcome),
                ("bound", &bound),
                ("value", &value),
            ],
        );
    }
    let record = Record::begin(slot.client(), "-", "", "-", Instant::now());
    if let Some(mut record) = record {
        record.outcome = outcome;
    }
}

/// Closes by half and reads on a little, so that the client gets to read the last answer before a reset
/// takes it away (RFC 9112 §9.6). At most `rest` bytes, and not for long.
async fn linger(worker: &Worker, mut io: Stream, slot: &SlotRef, mut rest: usize) {
    slot.enter(Phase::Lingering, Some(LINGER));
    let is_tight = worker.budget.plan().tight;
    poll_fn(|context| {
        if ready!(Pin::new(&mut io).poll_shutdown(context)).is_err() {
            return Poll::Ready(());
        }
        let mut yield_budget = YieldBudget::new();
        loop {
            if slot.is_overdue() || slot.order() == Directive::Leave {
                return Poll::Ready(());
            }
            let mut scratch = worker.scratch.borrow_mut();
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut io).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() && rest > 0 => {
                    rest = rest.saturating_sub(buffer.filled().len());
                }
                // what the client sent is read, but it has not yet acknowledged its answer
                Ok(()) if is_tight && socket::unsent(&io.socket()) > 0 => {
                    slot.look_back(true);
                    return Poll::Pending;
                }
                _ => return Poll::Ready(()),
            }
            ready!(yield_budget.poll_next(context));
        }
    })
    .await;
    leave(worker, &io);
}

/// Serves one request; gives the connection back where it can go on.
#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` keeps room for its arguments twice"
)]
fn serve(
    worker: Rc<Worker>,
    mut codec: RefCell<ServerCodec>,
    slot: SlotRef,
    head: Head,
) -> impl Future<Output = Option<ServerCodec>> {
    async move {
        let (worker, slot) = (&*worker, &slot);
        let brief = is_brief(worker, codec.get_mut(), &head);
        count_by_client(worker, codec.get_mut(), &head, slot);
        let size = codec.get_mut().head_size();
        let Some((permit, full, waited)) =
            admit(worker, codec.get_mut(), slot, (&head, size), brief).await
        else {
            tell_unanswered(worker, slot);
            return None;
        };
        let parts = match codec.get_mut().open(&head) {
            Ok(parts) => parts,
            Err(refusal) => {
                // rare, and large: boxed, these cost the others nothing
                Box::pin(refuse(worker, codec.into_inner(), slot, refusal)).await;
                return None;
            }
        };
        let is_full = full.is_some();
        slot.enter(Phase::Busy, is_full.then_some(BRIEF));
        let end = {
            let mut exchange = pin!(exchange::handle(
                worker, &codec, slot, parts, waited, is_full
            ));
            poll_fn(|context| {
                let end = exchange.as_mut().poll(context);
                let mut codec = codec.borrow_mut();
                let is_cut = matches!(codec.poll_interim(context), Poll::Ready(Err(_)))
                    || slot.order() == Directive::Leave
                    || (is_full && slot.is_overdue());
                let end = match end {
                    Poll::Pending if is_cut => Poll::Ready(End::Broken),
                    Poll::Pending => codec.poll_gone(context, slot).map(|()| End::Broken),
                    end @ Poll::Ready(_) => end,
                };
                slot.has_looked();
                end
            })
            .await
        };
        match end {
            End::Stays => {
                let codec = codec.get_mut();
                if is_unread(worker, &mut codec.io) {
                    Box::pin(settle(worker, &mut codec.io, slot, NARROW))
                        .await
                        .ok()?;
                }
                codec.io.end_message();
            }
            End::Tunnel(tunnel) => {
                drop(full);
                Box::pin(join(worker, codec.into_inner(), slot, *tunnel)).await;
                return None;
            }
            End::Closes if codec.get_mut().is_amid_message() => {
                drop((permit, full));
                let rest = if codec.get_mut().is_broken() {
                    REFUSED_REST
                } else {
                    usize::MAX
                };
                let io = codec.into_inner().into_parts().0;
                Box::pin(linger(worker, io, slot, rest)).await;
                return None;
            }
            End::Closes => {
                drop((permit, full));
                if worker.budget.plan().tight && socket::unsent(&codec.get_mut().io.socket()) > 0 {
                    Box::pin(depart(worker, &mut codec.get_mut().io, slot)).await;
                }
                return None;
            }
            End::Broken => {
                leave(worker, &codec.get_mut().io);
                return None;
            }
        }
        Some(codec.into_inner())
    }
}

/// Whether much of what was sent is still in the kernel, and memory is so tight that it counts.
fn is_unread(worker: &Worker, io: &mut Stream) -> bool {
    worker.budget.plan().tight && io.unsent() > NARROW
}

/// The close that follows will be a reset where a client has not acknowledged all that it was sent, and memory is so tight
/// that it counts: what the kernel still holds would outlive its connection by minutes, and cost memory that no permit
/// stands for.
fn leave(worker: &Worker, io: &Stream) {
    if worker.budget.plan().tight {
        socket::reset_unsent(&io.socket());
    }
}

/// Waits until the client has acknowledged all but `most` bytes of what it was sent: until then the exchange holds its
/// memory, and gives way as a stream does that its client blocks.
///
/// # Errors
/// The client is gone, or has to go: the close will be a reset.
async fn settle(worker: &Worker, io: &mut Stream, slot: &SlotRef, most: usize) -> io::Result<()> {
    let limit = worker.state().config.server.write_timeout;
    let mut left = io.unsent();
    let settled = poll_fn(|context| {
        // its next request is what most often tells that it has read this answer; else the sweep looks back
        let _ = io.poll_read_ready(context)?;
        // a queue does not get shorter any more once its connection is gone
        if socket::is_dead(&io.socket()) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let unsent = io.unsent();
        if unsent < left {
            slot.took(left - unsent);
            left = unsent;
        }
        if left <= most {
            return Poll::Ready(Ok(()));
        }
        let is_stalled = slot.is_stalled(TimerKind::Client, limit, || socket::taken(&io.socket()));
        slot.has_looked();
        if is_stalled || slot.order() == Directive::Leave {
            tell_unread(worker, slot, unsent, is_stalled);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    })
    .await;
    slot.look_back(false);
    slot.took(0);
    if settled.is_err() {
        leave(worker, io);
    }
    settled
}

/// Counts and tells that an answer is cut off that the kernel has whole and the client does not read.
#[cold]
fn tell_unread(worker: &Worker, slot: &SlotRef, unsent: usize, is_stalled: bool) {
    let outcome = if is_stalled {
        Outcome::WriteTimedOut
    } else {
        slot.leave_outcome()
    };
    worker.metrics.failed(outcome);
    log::debug(
        "answer not read",
        &[
            ("client", &log::client(slot.client())),
            ("unread", &unsent),
            ("outcome", &outcome),
        ],
    );
}

/// Behind the last answer of a connection, whose end the client is told at once: the socket is kept, and paid for, until
/// the client has acknowledged all of it. It is one of those that give way first.
async fn depart(worker: &Worker, io: &mut Stream, slot: &SlotRef) {
    let _permit = worker.budget.force(UNSENT);
    slot.enter(Phase::Lingering, None);
    let told = poll_fn(|context| Pin::new(&mut *io).poll_shutdown(context)).await;
    if told.is_ok() {
        drop(settle(worker, io, slot, 0).await);
    } else {
        leave(worker, io);
    }
}

/// Pays for an exchange whose request head stands in a buffer of `size` bytes, or waits for its worth in line. Without
/// memory there is a small reserve from which health, preflights and the word that there is no room are answered; then
/// the second part holds a place of it. The third is how many milliseconds it has waited.
async fn admit(
    worker: &Worker,
    codec: &mut ServerCodec,
    slot: &SlotRef,
    (head, size): (&Head, usize),
    is_brief: bool,
) -> Option<(Option<Permit>, Option<ConcurrencyPermit>, u32)> {
    let budget = &worker.budget;
    if !is_brief && budget.takes_turns() {
        Box::pin(let_others_go_first(worker, slot, head, size)).await;
    }
    if budget.queue.len() == 0
        && let Some(permit) = budget.exchange(size)
    {
        return Some((Some(permit), None, 0));
    }
    // what lies idle gives way at once
    worker.pool.clear();
    // rare, and large: boxed, it costs the others nothing
    Box::pin(async move {
        let since = Instant::now();
        let waited = || u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX);
        // of those that wait already one group may hold the most: it has no more than half of what is left for all, and
        // that for requests that need no more of their client
        let most = budget
            .queue
            .majority()
            .filter(|most| most.count > SPARED / 2);
        let spared = match most {
            Some(most) if most.group != slot.group() => SPARED,
            Some(_) if head.has_body() => 0,
            Some(_) => SPARED / 2,
            None => SPARED,
        };
        if !is_brief && let Some(_waiter) = budget.waiter(size, spared) {
            slot.enter(Phase::Waiting, None);
            let _waiting = GaugeGuard::new(&worker.metrics.waiting);
            let limit = Some(worker.state().config.proxy.queue_timeout);
            let claim = Claim {
                group: slot.group(),
                since: slot.now(),
                is_whole: !head.has_body(),
            };
            let line = budget.queue.until(claim, || budget.exchange(size));
            let mut waits = pin!(slot.within(limit, line));
            let permit = poll_fn(|context| {
                let polled = waits.as_mut().poll(context);
                if polled.is_pending()
                    && codec
                        .poll_gone_before(context, slot, head.has_body())
                        .is_ready()
                {
                    return Poll::Ready(None);
                }
                slot.has_looked();
                polled.map(Some)
            });
            if let Ok(permit) = permit.await? {
                return Some((Some(permit), None, waited()));
            }
        }
        slot.enter(Phase::Busy, None);
        let claim = Claim {
            group: slot.group(),
            since: slot.now(),
            is_whole: true,
        };
        let line = worker.reserve.queue.until(claim, || worker.reserve.take());
        let place = slot.within(Some(2 * BRIEF), line).await.ok()?;
        Some((None, Some(place), waited()))
    })
    .await
}

/// Waits a moment where many requests are at work: few at a time have wide buffers and are soon over, all at once would be
/// narrow and slow. Nothing is wrong where there is no turn in time.
async fn let_others_go_first(worker: &Worker, slot: &SlotRef, head: &Head, size: usize) {
    let budget = &worker.budget;
    let Some(_head) = budget.head(size as u64) else {
        return;
    };
    slot.enter(Phase::Waiting, None);
    let claim = Claim {
        group: slot.group(),
        since: slot.now(),
        is_whole: !head.has_body(),
    };
    let take = || (!budget.is_crowded()).then_some(());
    budget.turns.wait(claim, take).await;
}

/// A request that a trusted proxy brings counts as its client's.
fn count_by_client(worker: &Worker, codec: &ServerCodec, head: &Head, slot: &SlotRef) {
    let state = worker.state();
    let trusted = &state.config.server.trusted_proxies;
    if trusted.is_empty() {
        return;
    }
    let fields = client_group::field_values(codec.head_text(head), b"x-forwarded-for");
    let group = Group::forwarded(slot.client(), trusted, fields);
    slot.set_group(group.unwrap_or_else(|| Group::of(slot.client())));
}

/// Whether an answer needs neither an upstream nor time: health, preflights, and what a route answers by itself.
fn is_brief(worker: &Worker, codec: &ServerCodec, head: &Head) -> bool {
    let path = request_head::path(codec.target(head));
    let state = worker.state();
    path == state.config.health_path.as_bytes()
        || (state.answers_options && codec.has_method(head, b"OPTIONS"))
        || (state.answers_directly && state.answers(codec.host(head), path))
}

/// Carries bytes both ways until the tunnel ends.
async fn join(worker: &Worker, codec: ServerCodec, slot: &SlotRef, tunnel: Tunnel) {
    slot.enter(Phase::Tunnel, None);
    let Tunnel {
        mut upstream,
        subject,
        config,
        counters,
        route,
        waited,
        record,
        place,
    } = tunnel;
    metrics::inc(&worker.metrics.tunnels);
    let exchange_context = ExchangeContext {
        slot,
        waited: Cell::new(waited),
        subject: &subject,
        config: &config,
        counters: &counters,
        route: Cell::new(route),
        place: RefCell::default(),
        record: RefCell::new(record),
        begun: None,
        status: Cell::new(101),
        received: Cell::new(0),
        sent: Cell::new(0),
        head: RefCell::default(),
        budget: &worker.budget,
        rest: Cell::new(0),
        complete: Cell::new(false),
        outcome: Cell::new(None),
        cause: OnceCell::new(),
        told: Cell::new(false),
        is_tunnel: true,
        metrics: &worker.metrics,
    };
    let (mut client, first) = codec.into_parts();
    let (first, unread) = (Vec::from(first), upstream.unread().to_vec());
    upstream.start = upstream.end;
    upstream.release();
    let room = worker.room(config.transport.read_buffer_size);
    let Some(io) = &mut upstream.lease.io else {
        return;
    };
    tunnel::join(
        &mut client,
        io,
        (first, unread),
        room,
        &worker.buffers,
        config.server.write_timeout,
        &exchange_context,
    )
    .await;
    drop((exchange_context, place));
    drop(upstream);
    if worker.budget.plan().tight && socket::unsent(&client.socket()) > 0 {
        drop(Box::pin(settle(worker, &mut client, slot, 0)).await);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use super::*;
    use crate::{
        memory::budget::{Budget, Plan},
        observe::metrics::Metrics,
    };

    fn size_of_output<A, B, C, D, R>(_: impl Fn(A, B, C, D) -> R) -> usize {
        size_of::<R>()
    }

    #[test]
    fn a_connection_at_work_is_bounded() {
        let size = size_of_output(serve);
        // one of the allocator's size classes
        assert!(size <= 2_048, "{size} bytes");
    }

    #[test]
    fn a_connection_at_rest_is_small() {
        // tokio adds about 110 bytes and rounds up to 128: at 144 this would cost 384 bytes instead of 256
        assert!(
            size_of::<Connection>() <= 112,
            "{} bytes",
            size_of::<Connection>()
        );
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
                assert_eq!(is_brief(&worker, &codec, &found), expected, "{head}");
            });
        }
    }
}
