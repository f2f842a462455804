//! One client connection, from accept to close.
//!
//! At rest it is a bare socket and a few hundred bytes in a task of its own. When a whole request head has come, and
//! an exchange's worth of memory is paid for, hyper is built around the socket; when nothing more comes it is taken
//! down again: at the sweep's next tick, or at once where memory is short.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    body::{Signals, Tunnel},
    budget::Permit,
    dial::Io,
    gate::{Gate, Limits, Socket},
    log::{self, Record},
    metrics,
    park::{Order, Phase, Seat, Watch},
    pool::Place,
    proxy::handle,
    screen::{Arrival, Framing, Head, Refusal},
    tunnel,
    worker::Worker,
};

/// hyper's least read buffer, and the most that it gets while memory is short.
const SMALL: usize = 8 * 1024;

/// hyper's read buffer for uploads while memory is ample; it grows there by steps, as far as the reads fill it.
const LARGE: usize = 64 * 1024;

/// Fields of a head that hyper reads without an allocation.
const USUAL_FIELDS: usize = 100;

/// Connections that keep their hyper between two requests, while memory is ample.
const LULLS: usize = 64;

/// How long a last word may take to be written, and how long is read on behind it (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(5);

/// How much is read on behind a refusal: whoever sends more does not listen.
const REFUSED_REST: usize = 256 * 1024;

/// How an answer that was given without memory of its own may hold the reserve.
const BRIEF: Duration = Duration::from_secs(1);

/// How a stretch of requests on a connection ended.
enum End {
    /// Nothing more for now: hyper is taken down, the socket kept.
    Rest,
    /// The next head is here, and not for this hyper.
    Arrival(Arrival),
    /// hyper is through with it.
    Over,
    /// Others need the room, or its time is over.
    Leave,
}

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
    fn poll_rest(&mut self, context: &mut Context<'_>, mut gate: Box<Gate>) -> Poll<State> {
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
                return Poll::Ready(State::Busy(Box::pin(serve(worker, *gate, watch, head))));
            }
            Poll::Ready(Ok(Arrival::Refused(refusal))) => {
                return Poll::Ready(self.refused(*gate, refusal));
            }
            Poll::Ready(Ok(Arrival::End) | Err(_)) => return Poll::Ready(State::Over),
            Poll::Pending => {}
        }
        let is_amid = gate.is_amid_head();
        let is_told = match seat.order() {
            Order::Leave => true,
            Order::Finish => !is_amid,
            Order::None | Order::Rest => false,
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
                self.refused(*gate, Refusal::HeadTimedOut)
            } else {
                State::Over
            });
        }
        self.state = if is_amid {
            State::Amid(gate)
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
                State::Resting(io) => ready!(this.poll_rest(context, Box::new(Gate::new(io)))),
                State::Amid(gate) => ready!(this.poll_rest(context, gate)),
                State::Busy(mut work) => match work.as_mut().poll(context) {
                    Poll::Ready(Some(gate)) => State::Amid(Box::new(gate)),
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
        }
    })
    .await;
}

/// Serves requests until the connection rests (then it is given back), or ends.
async fn serve(worker: Rc<Worker>, gate: Gate, seat: Watch, mut head: Head) -> Option<Gate> {
    let (worker, seat) = (&worker, &seat);
    let signals = Signals::new(seat.clone());
    signals.began.set(seat.now());
    let brief = is_brief(worker, &gate, &head);
    let (mut permit, mut full) = admit(worker, seat, &head, brief).await?;
    let gate = Rc::new(RefCell::new(gate));
    let arrival = loop {
        signals.full.set(full.is_some());
        match drive(worker, &gate, &signals, seat, &head, full.is_some()).await {
            End::Arrival(Arrival::Head(next)) => head = next,
            End::Arrival(arrival) => break Some(arrival),
            End::Rest => return take_back(gate),
            End::Leave => return None,
            End::Over => break None,
        }
        if full.take().is_some() {
            drop(permit);
            signals.began.set(seat.now());
            let brief = is_brief(worker, &gate.borrow(), &head);
            (permit, full) = admit(worker, seat, &head, brief).await?;
        }
    };
    let gate = take_back(gate)?;
    match arrival {
        Some(Arrival::Refused(refusal)) => refuse(worker, gate, seat, refusal).await,
        Some(_) => {}
        None => {
            if let Some(tunnel) = signals.tunnel.take() {
                drop(full);
                join(worker, gate, seat, *tunnel).await;
            } else if gate.is_amid_message() && !signals.reset.get() {
                drop((permit, full));
                let rest = if signals.broken.get() {
                    REFUSED_REST
                } else {
                    usize::MAX
                };
                linger(worker, gate.into_parts().0, seat, rest).await;
            }
        }
    }
    None
}

fn take_back(gate: Rc<RefCell<Gate>>) -> Option<Gate> {
    Rc::into_inner(gate).map(RefCell::into_inner)
}

/// Pays for an exchange, or waits for its worth in line. Without memory there is a small reserve from which health,
/// preflights and the word that there is no room are answered; then the second part holds a place of it.
async fn admit(
    worker: &Worker,
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
    if !is_brief {
        seat.enter(Phase::Waiting, None);
        metrics::count(&worker.metrics.waiting);
        let permit = seat
            .within(
                Some(worker.state().config.proxy.queue_timeout),
                budget.queue.until(|| budget.exchange(head.len)),
            )
            .await;
        metrics::gone(&worker.metrics.waiting);
        if let Ok(permit) = permit {
            return Some((Some(permit), None));
        }
    }
    seat.enter(Phase::Busy, None);
    let place = seat
        .within(
            Some(2 * BRIEF),
            worker.reserve.queue.until(|| worker.reserve.take()),
        )
        .await
        .ok()?;
    Some((None, Some(place)))
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

/// Builds hyper around the socket and runs it until something else has to be done with the connection.
async fn drive(
    worker: &Rc<Worker>,
    gate: &Rc<RefCell<Gate>>,
    signals: &Rc<Signals>,
    seat: &Watch,
    head: &Head,
    brief: bool,
) -> End {
    let is_short = worker.budget.is_short() || worker.budget.plan().tight;
    let has_body = head.framing != Framing::Length(0);
    let limits = Limits {
        head: (head.len + 1).max(if has_body && !is_short { LARGE } else { SMALL }),
        fields: head.fields.max(USUAL_FIELDS),
    };
    let mut builder = http1::Builder::new();
    // half-close: hyper leaves it to us to notice that a client has left, and needs no buffer for it
    builder
        .max_buf_size(limits.head)
        .auto_date_header(false)
        .header_read_timeout(None)
        .half_close(true);
    if limits.fields > USUAL_FIELDS {
        builder.max_headers(limits.fields);
    }
    let idle_timeout = worker.state().config.server.idle_timeout;
    let service = {
        let (worker, signals) = (Rc::clone(worker), Rc::clone(signals));
        service_fn(move |request| handle(Rc::clone(&worker), Rc::clone(&signals), request))
    };
    let socket = Socket::new(Rc::clone(gate), Rc::clone(signals), limits, worker);
    let mut connection = builder.serve_connection(socket, service);
    if brief {
        seat.enter(Phase::Busy, Some(BRIEF));
    }
    let end = poll_fn(|context| {
        let polled = Pin::new(&mut connection).poll(context);
        arm(signals, &gate.borrow());
        if let Poll::Ready(result) = polled {
            return Poll::Ready(if result.is_ok() {
                End::Over
            } else {
                End::Leave
            });
        }
        let order = seat.order();
        if order == Order::Leave || (brief && seat.is_overdue()) {
            return Poll::Ready(End::Leave);
        }
        if signals.active.get() || !signals.flushed.get() {
            return gate
                .borrow_mut()
                .poll_gone(context, seat)
                .map(|()| End::Leave);
        }
        if !signals.looked.replace(true) {
            // the exchange ended in this very poll, after hyper had asked for more: let it ask again
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(arrival) = signals.arrival.take() {
            return Poll::Ready(End::Arrival(arrival));
        }
        if brief
            || order != Order::None
            || worker.budget.queue.len() > 0
            || gate.borrow().is_amid_head()
        {
            return Poll::Ready(End::Rest);
        }
        if seat.phase() != Phase::Lull {
            if worker.park.lulls() >= LULLS || is_short {
                return Poll::Ready(End::Rest);
            }
            seat.enter(Phase::Lull, idle_timeout);
        }
        if seat.is_overdue() {
            Poll::Ready(End::Leave)
        } else {
            Poll::Pending
        }
    })
    .await;
    // the gate gives hyper whole messages only, so there is nothing left in it where the connection goes on
    if connection.into_parts().read_buf.is_empty() || matches!(end, End::Over) {
        end
    } else {
        End::Leave
    }
}

/// While only the close can tell the client that it has everything, the socket's close is a reset, whatever the reason.
fn arm(signals: &Signals, gate: &Gate) {
    let reset = signals.reset.get();
    if signals.armed.replace(reset) != reset {
        drop(gate.io.socket().set_linger(reset.then_some(Duration::ZERO)));
    }
}

/// Carries bytes both ways until the tunnel ends.
async fn join(worker: &Worker, gate: Gate, seat: &Watch, tunnel: Tunnel) {
    seat.enter(Phase::Tunnel, None);
    let Tunnel {
        mut upstream,
        record,
    } = tunnel;
    let (mut client, first) = gate.into_parts();
    let unread = upstream.unread().to_vec();
    let size = worker.buffer_size(worker.state().config.transport.read_buffer_size);
    let Some(io) = &mut upstream.lease.io else {
        return;
    };
    let carried = tunnel::join(
        &mut client,
        io,
        (&first, &unread),
        size,
        &worker.buffers,
        seat,
    )
    .await;
    if let Some(mut record) = record {
        (record.status, record.outcome) = (101, "ok");
        (record.received, record.sent) = (carried.received, carried.sent);
    }
    metrics::add(&worker.metrics.client_bytes_in, carried.received);
    metrics::add(&worker.metrics.client_bytes_out, carried.sent);
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
        assert!(size <= 2_048, "{size} bytes");
    }

    #[test]
    fn a_connection_at_rest_is_small() {
        // tokio adds about 110 bytes and rounds up to 128: at 144 this would cost 384 bytes instead of 256
        assert!(size_of::<Attend>() <= 96, "{} bytes", size_of::<Attend>());
    }
}
