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
    connection_table::{Order, Phase, Seat, Slot, Watch},
    cors::Verdict,
    exchange::{self, End, body::Tunnel, context::Ride, tunnel, worker::Worker},
    http1::{
        request_head::{self, Arrival, Head, Refusal},
        server::Gate,
    },
    memory::{
        budget::{CONNECTION, NARROW, Permit, SPARED, UNSENT},
        concurrency::Place,
        queue::Claim,
    },
    net::Io,
    observe::{
        log::{self, Record},
        metrics::{self, Held},
    },
    outcome::Outcome,
    sys::socket,
    yield_budget::Turn,
};

/// How long a last word may take to be written, and how long is read on behind it (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(5);

/// How much is read on behind a refusal: whoever sends more does not listen.
const REFUSED_REST: usize = 256 * 1024;

/// How an answer that was given without memory of its own may hold the reserve.
const BRIEF: Duration = Duration::from_secs(1);

/// Serves one client until it leaves or is asked to. Written by hand and not as an `async` block, because its size is
/// what an idle connection costs.
pub struct Attend {
    /// Before the seat: an exchange that is dropped with its connection still asks the seat why.
    state: State,
    worker: Rc<Worker>,
    seat: Seat,
    /// What the connection costs, with what the kernel still holds of its last answer.
    permit: Permit,
}

enum State {
    /// Accepted and never polled.
    Fresh(Io),
    /// A bare socket from which nothing was read.
    Resting(Io),
    /// Part of a head is here.
    Amid(Box<Gate>),
    /// At work; gives the connection back when it rests.
    Busy(Pin<Box<dyn Future<Output = Option<Gate>>>>),
    Over,
}

impl Attend {
    /// A connection that was just accepted; `permit` is what it costs.
    pub fn new(worker: Rc<Worker>, io: Io, seat: Seat, permit: Permit) -> Attend {
        metrics::count(&worker.metrics.connections_open);
        Attend {
            worker,
            seat,
            permit,
            state: State::Fresh(io),
        }
    }

    /// Looks whether a whole head has come.
    fn poll_rest(&mut self, context: &mut Context<'_>, mut gate: Gate) -> Poll<State> {
        let (worker, seat) = (&self.worker, &self.seat);
        let state = worker.state();
        let server = &state.config.server;
        let arrival = gate.poll_head(
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
                    seat.took(0);
                }
                seat.set_deadline(None);
                let (worker, watch) = (Rc::clone(worker), (*seat).clone());
                let gate = RefCell::new(gate);
                return Poll::Ready(State::Busy(Box::pin(serve(worker, gate, watch, head))));
            }
            Poll::Ready(Ok(Arrival::Refused(refusal))) => {
                return Poll::Ready(self.refused(gate, refusal));
            }
            Poll::Ready(Ok(Arrival::End)) => return Poll::Ready(self.close(gate)),
            Poll::Ready(Err(_)) => return Poll::Ready(State::Over),
            Poll::Pending => {}
        }
        let is_amid = gate.is_amid_head();
        let is_told = match seat.order() {
            Order::Leave => true,
            Order::Finish => !is_amid,
            Order::None => false,
        };
        if is_told {
            return Poll::Ready(self.close(gate));
        }
        match (is_amid, seat.phase()) {
            // the first head has its time since the connection came, a later one since its own first byte
            (true, Phase::Fresh) => seat.enter_on_time(Phase::Head),
            (true, Phase::Head) | (false, Phase::Fresh | Phase::Idle) => {}
            (true, _) => seat.enter(Phase::Head, server.header_timeout),
            (false, _) => seat.enter(Phase::Idle, server.idle_timeout),
        }
        if seat.is_overdue() {
            return Poll::Ready(if is_amid {
                self.refused(gate, Refusal::HeadTimedOut)
            } else {
                self.close(gate)
            });
        }
        if self.owes_too_long(&gate, server.write_timeout) {
            socket::reset_unsent(&gate.io.socket());
            return Poll::Ready(State::Over);
        }
        self.state = if is_amid {
            State::Amid(Box::new(gate))
        } else {
            State::Resting(gate.into_parts().0)
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
    fn owes_too_long(&mut self, gate: &Gate, limit: Option<Duration>) -> bool {
        if self.permit.bytes() == CONNECTION || !self.seat.look_back(true) {
            return false;
        }
        if socket::unsent(&gate.io.socket()) == 0 {
            self.permit.resize(CONNECTION);
            self.seat.look_back(false);
            self.seat.took(0);
            return false;
        }
        let is_stalled = self
            .seat
            .is_stalled(Slot::Client, limit, || socket::taken(&gate.io.socket()));
        self.seat.has_looked();
        is_stalled
    }

    /// The end of a connection between two requests. A client that was told to leave, or has not acknowledged its last
    /// answer for as long as it may be idle, is reset.
    fn close(&self, gate: Gate) -> State {
        if self.permit.bytes() == CONNECTION || socket::unsent(&gate.io.socket()) == 0 {
            return State::Over;
        }
        if self.seat.order() == Order::Leave || self.seat.is_overdue() {
            socket::reset_unsent(&gate.io.socket());
            return State::Over;
        }
        let (worker, watch) = (Rc::clone(&self.worker), (*self.seat).clone());
        State::Busy(Box::pin(async move {
            depart(&worker, &mut gate.into_parts().0, &watch).await;
            None
        }))
    }

    fn refused(&self, gate: Gate, refusal: Refusal) -> State {
        let (worker, watch) = (Rc::clone(&self.worker), (*self.seat).clone());
        State::Busy(Box::pin(async move {
            refuse(&worker, gate, &watch, refusal).await;
            None
        }))
    }
}

impl Future for Attend {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            this.state = match std::mem::replace(&mut this.state, State::Over) {
                State::Fresh(io) => {
                    this.seat.settle(context.waker());
                    this.seat.enter(
                        Phase::Fresh,
                        this.worker.state().config.server.header_timeout,
                    );
                    State::Resting(io)
                }
                State::Resting(io) => ready!(this.poll_rest(context, Gate::new(io))),
                State::Amid(gate) => ready!(this.poll_rest(context, *gate)),
                State::Busy(mut work) => match work.as_mut().poll(context) {
                    Poll::Ready(Some(gate)) => {
                        this.owe();
                        ready!(this.poll_rest(context, gate))
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

impl Drop for Attend {
    fn drop(&mut self) {
        metrics::gone(&self.worker.metrics.connections_open);
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
async fn refuse(worker: &Worker, mut gate: Gate, seat: &Watch, refusal: Refusal) {
    tell_refused(worker, seat, refusal);
    seat.enter(Phase::Lingering, Some(LINGER));
    let answer = refusal.answer(&grant(worker, &gate));
    let mut bytes = answer.as_slice();
    let written = poll_fn(|context| {
        while !bytes.is_empty() {
            match Pin::new(&mut gate.io).poll_write(context, bytes) {
                Poll::Ready(Ok(count)) => bytes = bytes.get(count..).unwrap_or_default(),
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending if seat.is_overdue() || seat.order() == Order::Leave => {
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
        linger(worker, gate.into_parts().0, seat, REFUSED_REST).await;
    } else if worker.budget.plan().tight {
        socket::reset_unsent(&gate.io.socket());
    }
}

/// What the global CORS policy grants a head that is refused, so that a browser shows the refusal to the page that asked.
fn grant(worker: &Worker, gate: &Gate) -> HeaderMap {
    let state = worker.state();
    let mut fields = HeaderMap::new();
    if let Some(policy) = &state.config.cors {
        let asked = request_head::origin(gate.unread()).map(|origin| (header::ORIGIN, origin));
        if let Verdict::Grant(grant) = policy.judge(&Method::GET, &asked.into_iter().collect()) {
            policy.stamp(&grant, &mut fields);
        }
    }
    fields
}

/// Counts and tells a refusal; where the memory budget is what was full, as loudly as any other 503.
fn tell_refused(worker: &Worker, seat: &Watch, refusal: Refusal) {
    let (status, outcome) = (refusal.status().as_u16(), refusal.outcome());
    worker.metrics.answered(status);
    worker.metrics.failed(outcome);
    let (client, reason) = (log::client(seat.client()), refusal.reason());
    let (bound, value) = worker.memory_bound();
    let fields: [log::Field<'_>; 5] = [
        ("client", &client),
        ("status", &status),
        ("reason", &reason),
        ("bound", &bound),
        ("value", &value),
    ];
    match refusal {
        Refusal::NoMemory if worker.repeats.is_first(outcome.word(), seat.now()) => {
            log::warn("no answer", &fields);
        }
        Refusal::NoMemory => {}
        _ => log::event(
            refusal_level(refusal),
            "refused",
            fields.get(..3).unwrap_or_default(),
        ),
    }
    let record = Record::begin(seat.client(), "-", "", "-", Instant::now());
    if let Some(mut record) = record {
        record.answers(status);
        record.outcome = outcome;
    }
}

/// Counts and tells a request that gets not even the word that there is no room: the reserve was busy, or it is over.
#[cold]
fn tell_unanswered(worker: &Worker, seat: &Watch) {
    let outcome = if seat.order() == Order::Leave {
        seat.leave_outcome()
    } else {
        Outcome::NoMemory
    };
    worker.metrics.failed(outcome);
    let client = log::client(seat.client());
    let (bound, value) = worker.memory_bound();
    if worker.repeats.is_first(outcome.word(), seat.now()) {
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
    let record = Record::begin(seat.client(), "-", "", "-", Instant::now());
    if let Some(mut record) = record {
        record.outcome = outcome;
    }
}

/// Closes by half and reads on a little, so that the client gets to read the last answer before a reset
/// takes it away (RFC 9112 §9.6). At most `rest` bytes, and not for long.
async fn linger(worker: &Worker, mut io: Io, seat: &Watch, mut rest: usize) {
    seat.enter(Phase::Lingering, Some(LINGER));
    let is_tight = worker.budget.plan().tight;
    poll_fn(|context| {
        if ready!(Pin::new(&mut io).poll_shutdown(context)).is_err() {
            return Poll::Ready(());
        }
        let mut turn = Turn::new();
        loop {
            if seat.is_overdue() || seat.order() == Order::Leave {
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
                    seat.look_back(true);
                    return Poll::Pending;
                }
                _ => return Poll::Ready(()),
            }
            ready!(turn.poll_next(context));
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
    mut gate: RefCell<Gate>,
    seat: Watch,
    head: Head,
) -> impl Future<Output = Option<Gate>> {
    async move {
        let (worker, seat) = (&*worker, &seat);
        let brief = is_brief(worker, gate.get_mut(), &head);
        count_by_client(worker, gate.get_mut(), &head, seat);
        let size = gate.get_mut().head_size();
        let Some((permit, full, waited)) =
            admit(worker, gate.get_mut(), seat, (&head, size), brief).await
        else {
            tell_unanswered(worker, seat);
            return None;
        };
        let parts = match gate.get_mut().open(&head) {
            Ok(parts) => parts,
            Err(refusal) => {
                // rare, and large: boxed, these cost the others nothing
                Box::pin(refuse(worker, gate.into_inner(), seat, refusal)).await;
                return None;
            }
        };
        let is_full = full.is_some();
        seat.enter(Phase::Busy, is_full.then_some(BRIEF));
        let end = {
            let mut exchange = pin!(exchange::handle(
                worker, &gate, seat, parts, waited, is_full
            ));
            poll_fn(|context| {
                let end = exchange.as_mut().poll(context);
                let mut gate = gate.borrow_mut();
                let is_cut = matches!(gate.poll_interim(context), Poll::Ready(Err(_)))
                    || seat.order() == Order::Leave
                    || (is_full && seat.is_overdue());
                let end = match end {
                    Poll::Pending if is_cut => Poll::Ready(End::Broken),
                    Poll::Pending => gate.poll_gone(context, seat).map(|()| End::Broken),
                    end @ Poll::Ready(_) => end,
                };
                seat.has_looked();
                end
            })
            .await
        };
        let has_sent_much = seat.bytes() as usize > NARROW;
        match end {
            End::Stays => {
                let gate = gate.get_mut();
                if has_sent_much && is_unread(worker, &gate.io) {
                    Box::pin(settle(worker, &mut gate.io, seat, NARROW))
                        .await
                        .ok()?;
                }
                if gate.receives_wide() {
                    return None;
                }
                gate.narrow();
            }
            End::Tunnel(tunnel) => {
                drop(full);
                Box::pin(join(worker, gate.into_inner(), seat, *tunnel)).await;
                return None;
            }
            End::Closes if gate.get_mut().is_amid_message() => {
                drop((permit, full));
                let rest = if gate.get_mut().is_broken() {
                    REFUSED_REST
                } else {
                    usize::MAX
                };
                let io = gate.into_inner().into_parts().0;
                Box::pin(linger(worker, io, seat, rest)).await;
                return None;
            }
            End::Closes => {
                drop((permit, full));
                if worker.budget.plan().tight && socket::unsent(&gate.get_mut().io.socket()) > 0 {
                    Box::pin(depart(worker, &mut gate.get_mut().io, seat)).await;
                }
                return None;
            }
            End::Broken => {
                leave(worker, &gate.get_mut().io);
                return None;
            }
        }
        Some(gate.into_inner())
    }
}

/// Whether much of what was sent is still in the kernel, and memory is so tight that it counts.
fn is_unread(worker: &Worker, io: &Io) -> bool {
    worker.budget.plan().tight && socket::unsent(&io.socket()) > NARROW
}

/// The close that follows will be a reset where a client has not acknowledged all that it was sent, and memory is so tight
/// that it counts: what the kernel still holds would outlive its connection by minutes, and cost memory that no permit
/// stands for.
fn leave(worker: &Worker, io: &Io) {
    if worker.budget.plan().tight {
        socket::reset_unsent(&io.socket());
    }
}

/// Waits until the client has acknowledged all but `most` bytes of what it was sent: until then the exchange holds its
/// memory, and gives way as a stream does that its client blocks.
///
/// # Errors
/// The client is gone, or has to go: the close will be a reset.
async fn settle(worker: &Worker, io: &mut Io, seat: &Watch, most: usize) -> io::Result<()> {
    let limit = worker.state().config.server.write_timeout;
    let mut left = socket::unsent(&io.socket());
    let settled = poll_fn(|context| {
        // its next request is what most often tells that it has read this answer; else the sweep looks back
        let _ = io.poll_read_ready(context)?;
        // a queue does not get shorter any more once its connection is gone
        if socket::is_dead(&io.socket()) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let unsent = socket::unsent(&io.socket());
        if unsent < left {
            seat.took(left - unsent);
            left = unsent;
        }
        if left <= most {
            return Poll::Ready(Ok(()));
        }
        let is_stalled = seat.is_stalled(Slot::Client, limit, || socket::taken(&io.socket()));
        seat.has_looked();
        if is_stalled || seat.order() == Order::Leave {
            tell_unread(worker, seat, unsent, is_stalled);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    })
    .await;
    seat.look_back(false);
    seat.took(0);
    if settled.is_err() {
        leave(worker, io);
    }
    settled
}

/// Counts and tells that an answer is cut off that the kernel has whole and the client does not read.
#[cold]
fn tell_unread(worker: &Worker, seat: &Watch, unsent: usize, is_stalled: bool) {
    let outcome = if is_stalled {
        Outcome::WriteTimedOut
    } else {
        seat.leave_outcome()
    };
    worker.metrics.failed(outcome);
    log::debug(
        "answer not read",
        &[
            ("client", &log::client(seat.client())),
            ("unread", &unsent),
            ("outcome", &outcome),
        ],
    );
}

/// Behind the last answer of a connection, whose end the client is told at once: the socket is kept, and paid for, until
/// the client has acknowledged all of it. It is one of those that give way first.
async fn depart(worker: &Worker, io: &mut Io, seat: &Watch) {
    let _permit = worker.budget.force(UNSENT);
    seat.enter(Phase::Lingering, None);
    let told = poll_fn(|context| Pin::new(&mut *io).poll_shutdown(context)).await;
    if told.is_ok() {
        drop(settle(worker, io, seat, 0).await);
    } else {
        leave(worker, io);
    }
}

/// Pays for an exchange whose request head stands in a buffer of `size` bytes, or waits for its worth in line. Without
/// memory there is a small reserve from which health, preflights and the word that there is no room are answered; then
/// the second part holds a place of it. The third is how many milliseconds it has waited.
async fn admit(
    worker: &Worker,
    gate: &mut Gate,
    seat: &Watch,
    (head, size): (&Head, usize),
    is_brief: bool,
) -> Option<(Option<Permit>, Option<Place>, u32)> {
    let budget = &worker.budget;
    if budget.queue.len() == 0
        && let Some(permit) = budget.exchange(size)
    {
        return Some((Some(permit), None, 0));
    }
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
            Some(most) if most.group != seat.group() => SPARED,
            Some(_) if head.has_body() => 0,
            Some(_) => SPARED / 2,
            None => SPARED,
        };
        if !is_brief && let Some(_waiter) = budget.waiter(size, spared) {
            seat.enter(Phase::Waiting, None);
            let _waiting = Held::new(&worker.metrics.waiting);
            let limit = Some(worker.state().config.proxy.queue_timeout);
            let claim = Claim {
                group: seat.group(),
                since: seat.now(),
                is_whole: !head.has_body(),
            };
            let line = budget.queue.until(claim, || budget.exchange(size));
            let mut waits = pin!(seat.within(limit, line));
            let permit = poll_fn(|context| {
                let polled = waits.as_mut().poll(context);
                if polled.is_pending()
                    && gate
                        .poll_gone_before(context, seat, head.has_body())
                        .is_ready()
                {
                    return Poll::Ready(None);
                }
                seat.has_looked();
                polled.map(Some)
            });
            if let Ok(permit) = permit.await? {
                return Some((Some(permit), None, waited()));
            }
        }
        seat.enter(Phase::Busy, None);
        let claim = Claim {
            group: seat.group(),
            since: seat.now(),
            is_whole: true,
        };
        let line = worker.reserve.queue.until(claim, || worker.reserve.take());
        let place = seat.within(Some(2 * BRIEF), line).await.ok()?;
        Some((None, Some(place), waited()))
    })
    .await
}

/// A request that a trusted proxy brings counts as its client's.
fn count_by_client(worker: &Worker, gate: &Gate, head: &Head, seat: &Watch) {
    let state = worker.state();
    let trusted = &state.config.server.trusted_proxies;
    if trusted.is_empty() {
        return;
    }
    let fields = client_group::field_values(gate.head_text(head), b"x-forwarded-for");
    let group = Group::forwarded(seat.client(), trusted, fields);
    seat.set_group(group.unwrap_or_else(|| Group::of(seat.client())));
}

/// Whether an answer needs neither an upstream nor time: health, preflights, and what a route answers by itself.
fn is_brief(worker: &Worker, gate: &Gate, head: &Head) -> bool {
    let path = request_head::path(gate.target(head));
    let state = worker.state();
    path == state.config.health_path.as_bytes()
        || (state.answers_options && gate.has_method(head, b"OPTIONS"))
        || (state.answers_directly && state.answers(gate.host(head), path))
}

/// Carries bytes both ways until the tunnel ends.
async fn join(worker: &Worker, gate: Gate, seat: &Watch, tunnel: Tunnel) {
    seat.enter(Phase::Tunnel, None);
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
    metrics::count(&worker.metrics.tunnels);
    let ride = Ride {
        watch: seat,
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
    let (mut client, first) = gate.into_parts();
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
        &ride,
    )
    .await;
    drop((ride, place));
    drop(upstream);
    if worker.budget.plan().tight && socket::unsent(&client.socket()) > 0 {
        drop(Box::pin(settle(worker, &mut client, seat, 0)).await);
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
        assert!(size_of::<Attend>() <= 112, "{} bytes", size_of::<Attend>());
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
                let mut gate = Gate::new(Io::Unix(server));
                let mut scratch = [0; 1024];
                let arrival =
                    poll_fn(|context| gate.poll_head(context, &mut scratch, &budget, 1024));
                let Ok(Arrival::Head(found)) = arrival.await else {
                    panic!("{head}")
                };
                assert_eq!(is_brief(&worker, &gate, &found), expected, "{head}");
            });
        }
    }
}
