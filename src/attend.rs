//! One client connection, from accept to close.
//!
//! At rest it is a bare socket and a few hundred bytes in a task of its own. When a whole request head has come, and an
//! exchange's worth of memory is paid for, the exchange gets a future of its own on the heap; when it is over, nothing is
//! left of it.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    body::{Tunnel, Turn},
    budget::{NARROW, Permit, SPARED},
    client_group::{self, Group},
    dial::Io,
    gate::Gate,
    log::{self, Record},
    metrics,
    park::{Order, Phase, Seat, Slot, Watch},
    pool::Place,
    proxy::{self, End},
    queue::Claim,
    screen::{Arrival, Head, Refusal},
    sys, tunnel,
    worker::Worker,
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
    worker: Rc<Worker>,
    seat: Seat,
    _permit: Permit,
    state: State,
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
            _permit: permit,
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
                seat.set_deadline(None);
                let (worker, watch) = (Rc::clone(worker), (*seat).clone());
                let gate = RefCell::new(gate);
                return Poll::Ready(State::Busy(Box::pin(serve(worker, gate, watch, head))));
            }
            Poll::Ready(Ok(Arrival::Refused(refusal))) => {
                return Poll::Ready(self.refused(gate, refusal));
            }
            Poll::Ready(Ok(Arrival::End) | Err(_)) => return Poll::Ready(State::Over),
            Poll::Pending => {}
        }
        let is_amid = gate.is_amid_head();
        let is_told = match seat.order() {
            Order::Leave => true,
            Order::Finish => !is_amid,
            Order::None => false,
        };
        if is_told {
            return Poll::Ready(State::Over);
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
                State::Over
            });
        }
        self.state = if is_amid {
            State::Amid(Box::new(gate))
        } else {
            State::Resting(gate.into_parts().0)
        };
        Poll::Pending
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
                    Poll::Ready(Some(gate)) => ready!(this.poll_rest(context, gate)),
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

/// Says why a connection is not served on, and closes it.
async fn refuse(worker: &Worker, mut gate: Gate, seat: &Watch, refusal: Refusal) {
    worker.metrics.answered(refusal.status().as_u16());
    log::debug(
        "refused",
        &[
            ("status", &refusal.status().as_u16()),
            ("reason", &refusal.reason()),
        ],
    );
    if log::access_enabled() {
        let mut record = Record::begin(seat.client(), "-", b"", "-");
        if let Some(record) = &mut record {
            record.status = refusal.status().as_u16();
            record.outcome = "refused";
        }
    }
    seat.enter(Phase::Lingering, Some(LINGER));
    let answer = refusal.answer();
    let mut bytes = answer.as_bytes();
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
    }
}

/// Closes by half and reads on a little, so that the client gets to read the last answer before a reset
/// takes it away (RFC 9112 §9.6). At most `rest` bytes, and not for long.
async fn linger(worker: &Worker, mut io: Io, seat: &Watch, mut rest: usize) {
    seat.enter(Phase::Lingering, Some(LINGER));
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
        let began = seat.now();
        let brief = is_brief(worker, gate.get_mut(), &head);
        count_by_client(worker, gate.get_mut(), &head, seat);
        let (permit, full) = admit(worker, gate.get_mut(), seat, &head, brief).await?;
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
            let mut exchange = pin!(proxy::handle(worker, &gate, seat, parts, began, is_full));
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
                    Box::pin(settle(worker, &mut gate.io, seat)).await.ok()?;
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
            End::Closes | End::Broken if !has_sent_much => return None,
            End::Closes => {
                Box::pin(depart(worker, &mut gate.get_mut().io, seat)).await;
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
    worker.budget.plan().tight && sys::unsent(&io.socket()) > NARROW
}

/// The close that follows will be a reset where a client has not read what it was sent: a queue that nobody reads would
/// outlive its connection by minutes.
fn leave(worker: &Worker, io: &Io) {
    if is_unread(worker, io) {
        drop(io.socket().set_linger(Some(Duration::ZERO)));
    }
}

/// Waits until the client has read the most of what it was sent: until then the exchange holds its memory, and gives way
/// as a stream does that its client blocks.
///
/// # Errors
/// The client is gone, or has to go: the close will be a reset.
async fn settle(worker: &Worker, io: &mut Io, seat: &Watch) -> io::Result<()> {
    let limit = worker.state().config.server.write_timeout;
    let mut left = sys::unsent(&io.socket());
    let settled = poll_fn(|context| {
        // its next request is what most often tells that it has read this answer; else the sweep looks back
        let _ = io.poll_read_ready(context)?;
        // a queue does not get shorter any more once its connection is gone
        if sys::is_dead(&io.socket()) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let unsent = sys::unsent(&io.socket());
        if unsent < left {
            seat.took(left - unsent);
            left = unsent;
        }
        if left <= NARROW {
            return Poll::Ready(Ok(()));
        }
        let is_stalled = seat.is_stalled(Slot::Client, limit, || sys::taken(&io.socket()));
        seat.has_looked();
        if is_stalled || seat.order() == Order::Leave {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    })
    .await;
    seat.look_back(false);
    seat.took(0);
    leave(worker, io);
    settled
}

/// The same behind the last answer of a connection, whose end the client is told at once.
async fn depart(worker: &Worker, io: &mut Io, seat: &Watch) {
    if !is_unread(worker, io) {
        return;
    }
    let told = poll_fn(|context| Pin::new(&mut *io).poll_shutdown(context)).await;
    if told.is_ok() {
        drop(settle(worker, io, seat).await);
    }
}

/// Pays for an exchange, or waits for its worth in line. Without memory there is a small reserve from which health,
/// preflights and the word that there is no room are answered; then the second part holds a place of it.
async fn admit(
    worker: &Worker,
    gate: &mut Gate,
    seat: &Watch,
    head: &Head,
    is_brief: bool,
) -> Option<(Option<Permit>, Option<Place>)> {
    let budget = &worker.budget;
    if budget.queue.len() == 0
        && let Some(permit) = budget.exchange(head.len)
    {
        return Some((Some(permit), None));
    }
    // rare, and large: boxed, it costs the others nothing
    Box::pin(async move {
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
        if !is_brief && let Some(_waiter) = budget.waiter(head.len, spared) {
            seat.enter(Phase::Waiting, None);
            let _waiting = metrics::Held::new(&worker.metrics.waiting);
            let limit = Some(worker.state().config.proxy.queue_timeout);
            let claim = Claim {
                group: seat.group(),
                since: seat.now(),
                is_whole: !head.has_body(),
            };
            let line = budget.queue.until(claim, || budget.exchange(head.len));
            let mut waits = pin!(seat.within(limit, line));
            let waited = poll_fn(|context| {
                let waited = waits.as_mut().poll(context);
                if waited.is_pending()
                    && gate
                        .poll_gone_before(context, seat, head.has_body())
                        .is_ready()
                {
                    return Poll::Ready(None);
                }
                seat.has_looked();
                waited.map(Some)
            });
            if let Ok(permit) = waited.await? {
                return Some((Some(permit), None));
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
        Some((None, Some(place)))
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

/// Whether an answer needs neither an upstream nor time: health, and preflights.
fn is_brief(worker: &Worker, gate: &Gate, head: &Head) -> bool {
    let path = gate
        .target(head)
        .split(|byte| *byte == b'?')
        .next()
        .unwrap_or_default();
    let state = worker.state();
    path == state.config.health_path.as_bytes()
        || (state.answers_options && gate.has_method(head, b"OPTIONS"))
}

/// Carries bytes both ways until the tunnel ends.
async fn join(worker: &Worker, gate: Gate, seat: &Watch, tunnel: Tunnel) {
    seat.enter(Phase::Tunnel, None);
    let Tunnel {
        mut upstream,
        record,
        place,
    } = tunnel;
    let (mut client, first) = gate.into_parts();
    let unread = upstream.unread().to_vec();
    let room = worker.room(worker.state().config.transport.read_buffer_size);
    let Some(io) = &mut upstream.lease.io else {
        return;
    };
    let carried = tunnel::join(
        &mut client,
        io,
        (&first, &unread),
        room,
        &worker.buffers,
        worker.state().config.server.write_timeout,
        seat,
    )
    .await;
    drop(place);
    if let Some(mut record) = record {
        (record.status, record.outcome) = (101, "ok");
        (record.received, record.sent) = (carried.received, carried.sent);
    }
    metrics::add(&worker.metrics.client_bytes_in, carried.received);
    metrics::add(&worker.metrics.client_bytes_out, carried.sent);
    drop(upstream);
    if is_unread(worker, &client) {
        drop(Box::pin(settle(worker, &mut client, seat)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_output<A, B, C, D, R>(_: impl Fn(A, B, C, D) -> R) -> usize {
        size_of::<R>()
    }

    #[test]
    fn a_connection_at_work_is_bounded() {
        let size = size_of_output(serve);
        // one of the allocator's size classes
        assert!(size <= 1_792, "{size} bytes");
    }

    #[test]
    fn a_connection_at_rest_is_small() {
        // tokio adds about 110 bytes and rounds up to 128: at 144 this would cost 384 bytes instead of 256
        assert!(size_of::<Attend>() <= 112, "{} bytes", size_of::<Attend>());
    }
}
