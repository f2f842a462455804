//! One client connection, from accept to close.
//!
//! An idle connection is a socket and a few hundred bytes in a task of its own. When a request head is complete, the
//! exchange gets a future on the heap, which waits for the exchange's permit and is freed when the exchange is over.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustls::ServerConfig;

use crate::{
    client_group,
    connection_table::{Directive, Slot, SlotRef, TimerKind, phase::Phase},
    exchange::{
        context::ExchangeContext,
        http1::{self, End, Tunnel},
        tunnel,
        worker::Worker,
    },
    failure::Failure,
    http1::{
        request_head::{Arrival, Head},
        server::ServerCodec,
    },
    http2,
    memory::{
        budget::Permit,
        prices::{CONNECTION, NARROW, UNSENT},
    },
    net::Stream,
    observe::metrics,
    server::{
        admission::{Ask, BRIEF, admit, count_by_client, is_brief_head, records},
        closing::{Next, await_sign, depart, is_unread, leave, linger, settle},
        refusal::{REFUSED_REST, refuse, tell_unanswered},
        tls::handshake,
    },
    sys::socket,
};

/// Serves one client until it leaves or is told to. It is written by hand and not as an `async` block, because its size
/// is the memory of an idle connection.
pub struct Connection {
    /// Declared before the slot: an exchange that is dropped with its connection still asks the slot for the reason.
    state: State,
    worker: Rc<Worker>,
    slot: Slot,
    /// Pays for the connection, and for the bytes of its last answer that the kernel still holds.
    permit: Permit,
}

enum State {
    /// Accepted and never polled, with the TLS configuration of its listener.
    Fresh(Stream, Option<Arc<ServerConfig>>),
    /// In its TLS handshake; the future returns the connection.
    Handshake(Pin<Box<dyn Future<Output = Option<Stream>>>>),
    /// A socket of which nothing was read.
    Resting(Stream),
    /// Part of a head was read.
    Amid(Box<ServerCodec>),
    /// In an exchange, or ending.
    Busy(Pin<Box<dyn Future<Output = Next>>>),
    Over,
}

impl Connection {
    /// A connection that was just accepted; `permit` pays for it. `tls` is the configuration of its listener, `None` =
    /// plain HTTP.
    pub fn new(
        worker: Rc<Worker>,
        io: Stream,
        tls: Option<Arc<ServerConfig>>,
        slot: Slot,
        permit: Permit,
    ) -> Connection {
        metrics::inc(&worker.metrics.connections_open);
        Connection {
            worker,
            slot,
            permit,
            state: State::Fresh(io, tls),
        }
    }

    /// Reads until a request head is complete; pending while the connection is idle.
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
                return Poll::Ready(self.begin(codec, head));
            }
            Poll::Ready(Ok(Arrival::Refused(Failure::Preface))) if slot.offers_http2() => {
                let (worker, slot) = (Rc::clone(worker), (*slot).clone());
                let (io, first) = codec.into_unread();
                return Poll::Ready(State::Busy(Box::pin(async move {
                    http2::server::serve(worker, io, first, slot).await;
                    Next::Over
                })));
            }
            Poll::Ready(Ok(Arrival::Refused(failure))) => {
                return Poll::Ready(self.refused(codec, failure));
            }
            Poll::Ready(Ok(Arrival::End)) => return Poll::Ready(self.close(context, codec)),
            Poll::Ready(Err(_)) => return Poll::Ready(State::Over),
            Poll::Pending => {}
        }
        let is_amid = codec.is_amid_head();
        if is_told_to_end(slot, is_amid) {
            return Poll::Ready(self.close(context, codec));
        }
        match (is_amid, slot.phase()) {
            // the time of the first head began with the connection, that of a later one begins with its first byte
            (true, Phase::Fresh) => slot.enter_on_time(Phase::Head),
            (true, Phase::Head) | (false, Phase::Fresh | Phase::Idle) => {}
            (true, _) => slot.enter(Phase::Head, server.header_timeout),
            (false, _) => slot.enter(Phase::Idle, server.idle_timeout),
        }
        if slot.is_overdue() {
            return Poll::Ready(if is_amid {
                self.refused(codec, Failure::HeadTimedOut)
            } else {
                self.close(context, codec)
            });
        }
        if self.owes_too_long(&codec, server.write_timeout) {
            socket::reset_unsent(&codec.io.socket());
            return Poll::Ready(State::Over);
        }
        self.state = if is_amid {
            State::Amid(Box::new(codec))
        } else {
            State::Resting(codec.into_stream())
        };
        Poll::Pending
    }

    /// Begins the exchange of a request whose head is complete: from here on the exchange pays. Its first phase ends the
    /// deadline of the head.
    #[inline]
    fn begin(&mut self, codec: ServerCodec, head: Head) -> State {
        if self.permit.bytes() > CONNECTION {
            self.permit.resize(CONNECTION);
            self.slot.took(0);
        }
        let (worker, slot) = (Rc::clone(&self.worker), (*self.slot).clone());
        // allocated first, so that the future is made where it stays, and not copied there
        let place = Box::new_uninit();
        let work = Box::write(place, serve(worker, RefCell::new(codec), slot, head));
        State::Busy(Box::into_pin(work))
    }

    /// After an answer: the connection pays for its last bytes until the client has acknowledged them.
    fn owe(&mut self, io: &Stream) {
        if self.worker.budget.plan().tight {
            let more = 2 * io.sent_unpaid().saturating_sub(NARROW) as u64;
            self.permit.resize(CONNECTION + UNSENT + more);
        }
    }

    /// Checks at each tick whether the client has acknowledged its last answer, but not before the first tick. Returns
    /// whether it has acknowledged nothing for `limit`.
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

    /// Ends a connection between two requests. It is reset if it has to leave at once, or if the client has not
    /// acknowledged its last answer for as long as it may be idle.
    fn close(&self, context: &mut Context<'_>, mut codec: ServerCodec) -> State {
        if let Some(secured) = codec.io.secured_mut() {
            secured.say_goodbye(context);
        }
        if self.permit.bytes() == CONNECTION || socket::unsent(&codec.io.socket()) == 0 {
            return State::Over;
        }
        if self.slot.order() == Directive::Leave || self.slot.is_overdue() {
            socket::reset_unsent(&codec.io.socket());
            return State::Over;
        }
        self.departing(codec.into_stream())
    }

    /// Answers a head that is refused, and ends the connection.
    fn refused(&self, codec: ServerCodec, failure: Failure) -> State {
        let (worker, slot) = (Rc::clone(&self.worker), (*self.slot).clone());
        State::Busy(Box::pin(async move {
            refuse(&worker, codec, &slot, &failure).await
        }))
    }

    /// Reads for a short time what the client still sends: a small future, which takes the place of the exchange's.
    fn lingering(&self, io: Stream, rest: usize) -> State {
        let (worker, slot) = (Rc::clone(&self.worker), (*self.slot).clone());
        State::Busy(Box::pin(async move {
            linger(&worker, io, &slot, rest).await;
            Next::Over
        }))
    }

    /// Waits until the client has acknowledged its answer.
    fn departing(&self, io: Stream) -> State {
        let (worker, slot) = (Rc::clone(&self.worker), (*self.slot).clone());
        State::Busy(Box::pin(async move {
            depart(&worker, io, &slot).await;
            Next::Over
        }))
    }
}

/// Whether a connection without an exchange has to end. While the program stops, a client in the middle of a head may
/// finish its request.
fn is_told_to_end(slot: &SlotRef, is_amid: bool) -> bool {
    match slot.order() {
        Directive::Leave => true,
        Directive::Finish => !is_amid,
        Directive::None => false,
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            this.state = match std::mem::replace(&mut this.state, State::Over) {
                State::Fresh(io, tls) => {
                    this.slot.settle(context.waker());
                    this.slot.enter(
                        Phase::Fresh,
                        this.worker.state().config.server.header_timeout,
                    );
                    match tls {
                        None => State::Resting(io),
                        Some(tls) => {
                            let (worker, slot) = (Rc::clone(&this.worker), (*this.slot).clone());
                            let work = handshake::accept(worker, slot, io, tls);
                            State::Handshake(Box::pin(work))
                        }
                    }
                }
                State::Handshake(mut work) => match work.as_mut().poll(context) {
                    Poll::Ready(Some(io)) => State::Resting(io),
                    Poll::Ready(None) => State::Over,
                    Poll::Pending => {
                        this.state = State::Handshake(work);
                        return Poll::Pending;
                    }
                },
                State::Resting(io) => ready!(this.poll_rest(context, ServerCodec::new(io))),
                State::Amid(codec) => ready!(this.poll_rest(context, *codec)),
                State::Busy(mut work) => match work.as_mut().poll(context) {
                    Poll::Ready(next) => {
                        drop(work);
                        match next {
                            Next::Rests(io) => {
                                this.owe(&io);
                                State::Resting(io)
                            }
                            Next::Reads(codec) => {
                                this.owe(&codec.io);
                                State::Amid(codec)
                            }
                            Next::Lingers(io, rest) => this.lingering(io, rest),
                            Next::Departs(io) => this.departing(io),
                            Next::Over => State::Over,
                        }
                    }
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

/// Serves one request.
#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` stores its arguments twice"
)]
fn serve(
    worker: Rc<Worker>,
    mut codec: RefCell<ServerCodec>,
    slot: SlotRef,
    head: Head,
) -> impl Future<Output = Next> {
    async move {
        let (worker, slot) = (&*worker, &slot);
        count_by_client(&worker.state(), slot, || {
            client_group::field_values(codec.get_mut().head_text(&head), b"x-forwarded-for")
        });
        let ask = Ask {
            size: codec.get_mut().head_size(&head),
            has_body: head.has_body(),
            records: records(&worker.budget, &codec.get_mut().io, head.has_body()),
            is_brief: is_brief_head(worker, codec.get_mut(), &head),
        };
        let gone = |context: &mut Context<'_>| {
            codec
                .get_mut()
                .poll_gone_before(context, slot, ask.has_body)
        };
        let (_permit, full, waited) = match admit(worker, slot, ask, gone).await {
            Ok(admitted) => admitted,
            Err(outcome) => {
                tell_unanswered(worker, slot, outcome);
                return Next::Over;
            }
        };
        let parts = match codec.get_mut().open(head) {
            Ok(parts) => parts,
            Err(failure) => {
                // rare and large: boxed, so that it does not enlarge this future
                return Box::pin(refuse(worker, codec.into_inner(), slot, &failure)).await;
            }
        };
        let is_full = full.is_some();
        slot.enter(Phase::Busy, is_full.then_some(BRIEF));
        let end = {
            let mut exchange = pin!(http1::handle(worker, &codec, slot, parts, waited, is_full));
            poll_fn(|context| {
                let end = exchange.as_mut().poll(context);
                poll_client(context, &mut codec.borrow_mut(), slot, end, is_full)
            })
            .await
        };
        match end {
            End::Stays => {
                if stay(worker, codec.get_mut(), slot).await.is_some() {
                    let codec = codec.into_inner();
                    return if codec.is_amid_head() {
                        Next::Reads(Box::new(codec))
                    } else {
                        Next::Rests(codec.into_stream())
                    };
                }
            }
            End::Tunnel(tunnel) => {
                drop(full);
                Box::pin(join(worker, codec.into_inner(), slot, *tunnel)).await;
            }
            End::Closes => return finish(worker, codec.into_inner()).await,
            End::Broken => leave(worker, &codec.get_mut().io),
        }
        Next::Over
    }
}

/// Polled with the exchange: writes interim answers, and ends the exchange if its client has left, has to leave, or
/// uses the reserve for too long.
fn poll_client(
    context: &mut Context<'_>,
    codec: &mut ServerCodec,
    slot: &SlotRef,
    end: Poll<End>,
    is_full: bool,
) -> Poll<End> {
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
}

/// Before the next request: waits, where memory is tight, until most of a long answer is acknowledged. Not where that
/// request is here already and memory is left: it pays for the answer's rest as well. `None` = the connection is over.
async fn stay(worker: &Worker, codec: &mut ServerCodec, slot: &SlotRef) -> Option<()> {
    let waits = worker.budget.is_short() || !codec.is_amid_head();
    if waits && is_unread(worker, &mut codec.io) {
        if !worker.budget.is_short() {
            await_sign(&mut codec.io, slot).await;
        }
        Box::pin(settle(worker, &mut codec.io, slot, NARROW))
            .await
            .ok()?;
    }
    codec.io.end_message();
    if let Some(secured) = codec.io.secured_mut() {
        secured.set_paid(false);
    }
    Some(())
}

/// What follows the last answer of a connection.
async fn finish(worker: &Worker, mut codec: ServerCodec) -> Next {
    codec.io.say_goodbye().await;
    if codec.is_amid_message() {
        let rest = if codec.is_broken() {
            REFUSED_REST
        } else {
            usize::MAX
        };
        Next::Lingers(codec.into_stream(), rest)
    } else if worker.budget.plan().tight && socket::unsent(&codec.io.socket()) > 0 {
        Next::Departs(codec.into_stream())
    } else {
        Next::Over
    }
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
    let exchange_context = ExchangeContext::of_tunnel(worker, slot, &subject, &config, &counters);
    exchange_context.waited.set(waited);
    exchange_context.route.set(route);
    exchange_context.record.replace(record);
    let (mut client, first) = codec.into_parts();
    let _records = client.secured().map(|_| worker.budget.force_records());
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
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream},
        time::SystemTime,
    };

    use socket2::{Domain, Socket, Type};
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::{
        clock::timeout,
        memory::{budget::Budget, plan::Plan},
        server::worker::runtime,
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
    fn a_request_that_is_here_already_is_not_waited_for() {
        let config = crate::config::tests::good("routes: [{path: /, target: \"http://h\"}]");
        let budget = Budget::new(Plan::new(Some(10 << 20), 1, None));
        let start = SystemTime::now();
        let worker = Worker::new(config, budget, usize::MAX, Arc::default(), start);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // takes only a part of the answer
        client.set_recv_buffer_size(2_048).unwrap();
        let address = listener.local_addr().unwrap();
        client.connect(&address.into()).unwrap();
        let mut client = TcpStream::from(client);
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET")
            .unwrap();
        let accepted = listener.accept().unwrap().0;
        accepted.set_nonblocking(true).unwrap();
        runtime().unwrap().block_on(async {
            let stream = tokio::net::TcpStream::from_std(accepted).unwrap();
            let mut codec = ServerCodec::new(Stream::client(stream, &worker.budget));
            let arrival =
                poll_fn(|context| codec.poll_head(context, &mut [0; 1024], &worker.budget, 1024));
            let Ok(Arrival::Head(head)) = arrival.await else {
                panic!("no head")
            };
            codec.open(head).unwrap();
            codec.io.write_all(&[b'x'; 12_000]).await.unwrap();
            assert!(codec.io.unsent() > NARROW);
            let slot = worker.table.slot(None);
            // no tick comes here
            let stays = timeout(Duration::from_secs(20), stay(&worker, &mut codec, &slot));
            assert_eq!(stays.await, Ok(Some(())));
            assert!(
                codec.io.sent_unpaid() > NARROW,
                "the connection pays for it"
            );
        });
    }
}
