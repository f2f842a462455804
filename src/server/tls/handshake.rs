//! The TLS handshake with one client.
//!
//! While a client has sent less than its hello, nothing is read: it costs what a plain connection does. With the hello
//! a permit is taken, worth the most that a handshake may hold, and kept until the handshake is over. While others wait
//! for one, handshakes without progress are ended. A step of a handshake occupies the thread for a third of a
//! millisecond and more, so one step is done at a time, and the runtime polls everything else between two.

use std::{
    future::poll_fn,
    io,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::ServerConfig;
use tokio::{io::AsyncWrite as _, task::yield_now};

use crate::{
    config::x509,
    connection_table::{Directive, SlotRef, phase::Phase},
    exchange::worker::Worker,
    memory::budget::Budget,
    net::{Stream, secured::Secured},
    observe::{log, metrics},
    outcome::Outcome,
    server::tls::contexts::without_http2,
    sys::socket,
};

/// Bytes of an incomplete hello from which on it is read: most hellos have 0.3 to 2 kB, and small socket buffers hold
/// little more.
const HELLO: usize = 2_048;

/// Bytes of a record's header.
const HEADER: usize = 5;

/// Type of a record of the handshake protocol (RFC 8446 §5.1).
const HANDSHAKE: u8 = 0x16;

/// The answer to a client that speaks plain HTTP.
const PLAIN: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 38\r\n\r\nThis port speaks TLS, not plain HTTP.\n";

/// Why a handshake failed.
#[derive(Debug)]
enum Failure {
    /// The client has left, before or after its hello.
    Gone,
    /// It did not end within `header_timeout`, or was evicted.
    TimedOut,
    /// The first byte does not begin a TLS handshake.
    NoHello,
    /// The two sides have nothing in common, or the client violates the protocol.
    Refused(io::Error),
    /// The subject of the client's certificate cannot be passed on.
    Subject,
}

/// Does the handshake; gives the connection with TLS. A failure is counted and logged at level `debug`, because
/// scanners cause many.
pub async fn accept(
    worker: Rc<Worker>,
    slot: SlotRef,
    mut io: Stream,
    config: Arc<ServerConfig>,
) -> Option<Stream> {
    let result = match hello(&slot, &mut io).await {
        Ok(()) => shake_hands(&worker, &slot, io, config).await,
        Err(Failure::NoHello) => {
            // as much of it as the kernel takes at once, which is usually all
            let _ = poll_fn(|context| {
                Poll::Ready(std::pin::Pin::new(&mut io).poll_write(context, PLAIN.as_bytes()))
            })
            .await;
            Err(Failure::NoHello)
        }
        Err(failure) => Err(failure),
    };
    match result {
        Ok(secured) => {
            metrics::inc(&worker.metrics.tls_handshakes);
            slot.enter_on_time(Phase::Fresh);
            let protocol = secured.session().alpn().unwrap_or(b"none");
            let protocol = String::from_utf8_lossy(protocol);
            log::debug(
                "handshake",
                &[("client", &log::client(slot.client())), ("alpn", &protocol)],
            );
            Some(Stream::Secured(Box::new(secured)))
        }
        Err(failure) => {
            tell(&worker, &slot, &failure);
            None
        }
    }
}

/// Waits until enough of the hello has arrived to be worth reading. Nothing is read.
async fn hello(slot: &SlotRef, io: &mut Stream) -> Result<(), Failure> {
    let mut least = 1;
    loop {
        poll_fn(|context| match io.poll_unread(context, least) {
            Poll::Ready(result) => Poll::Ready(result.map_err(|_| Failure::Gone)),
            Poll::Pending => give_up(slot),
        })
        .await?;
        let bytes = socket::peek(&io.socket(), HEADER);
        match bytes.as_slice() {
            [] => return Err(Failure::Gone),
            [first, ..] if *first != HANDSHAKE => return Err(Failure::NoHello),
            _ if least > HEADER => return Ok(()),
            [_, _, _, high, low] => {
                let record = HEADER + usize::from(u16::from_be_bytes([*high, *low]));
                least = record.clamp(HEADER + 1, HELLO);
            }
            _ if socket::has_hung_up(&io.socket()) => return Err(Failure::Gone),
            _ => least = HEADER,
        }
    }
}

/// Does the handshake of a client whose hello has arrived, one step at a time.
async fn shake_hands(
    worker: &Rc<Worker>,
    slot: &SlotRef,
    io: Stream,
    config: Arc<ServerConfig>,
) -> Result<Secured, Failure> {
    let budget = &worker.budget;
    let fund = &budget.client_handshakes.queue;
    let _permit = waiting(
        slot,
        fund.until(slot.claim(true), || budget.client_handshake()),
    )
    .await?;
    if socket::has_hung_up(&io.socket()) {
        // it left while it waited: a step would be wasted
        return Err(Failure::Gone);
    }
    slot.enter_on_time(Phase::Handshake);
    let mut secured = begin(io, config, budget)?;
    let turns = &worker.handshake_turns;
    while secured.session().is_handshaking() {
        poll_fn(|context| poll_ready(context, &mut secured, slot)).await?;
        let turn = waiting(slot, turns.queue.until(slot.claim(true), || turns.take())).await?;
        let step = poll_fn(|context| Poll::Ready(secured.poll_step(context))).await;
        // the runtime polls everything else
        yield_now().await;
        drop(turn);
        match step {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(Failure::Refused(error));
            }
            Poll::Ready(Err(_)) => return Err(Failure::Gone),
            // it makes progress: handshakes without any are evicted first
            Poll::Ready(Ok(())) => slot.enter_on_time(Phase::Handshake),
            Poll::Pending => {}
        }
    }
    poll_fn(|context| match secured.poll_send(context) {
        Poll::Ready(result) => Poll::Ready(result.map_err(|_| Failure::Gone)),
        Poll::Pending => give_up(slot),
    })
    .await?;
    note_subject(&mut secured)?;
    secured.set_paid(false);
    Ok(secured)
}

/// A session that has read nothing yet. It offers HTTP/2 only where the budget has room for such a connection.
fn begin(io: Stream, config: Arc<ServerConfig>, budget: &Rc<Budget>) -> Result<Secured, Failure> {
    let has_room = config.alpn_protocols.len() < 2 || budget.has_room_for_http2();
    let config = if has_room {
        config
    } else {
        without_http2(&config)
    };
    Secured::new(io, config, budget).map_err(|error| Failure::Refused(io::Error::other(error)))
}

/// Sends what is pending, then waits for bytes to read.
fn poll_ready(
    context: &mut Context<'_>,
    secured: &mut Secured,
    slot: &SlotRef,
) -> Poll<Result<(), Failure>> {
    let ready = match secured.poll_send(context) {
        Poll::Ready(Ok(())) => secured.poll_read_ready(context),
        other => other,
    };
    match ready {
        Poll::Ready(result) => Poll::Ready(result.map_err(|_| Failure::Gone)),
        Poll::Pending => give_up(slot),
    }
}

/// Keeps the subject of the client's certificate, which was verified.
fn note_subject(secured: &mut Secured) -> Result<(), Failure> {
    let Some(certificate) = secured.session().client_certificate() else {
        return Ok(());
    };
    let subject = x509::Certificate::parse(certificate).and_then(|it| it.subject());
    secured.set_subject(&subject.ok_or(Failure::Subject)?);
    Ok(())
}

/// Ready where the connection was told to leave.
fn give_up<T>(slot: &SlotRef) -> Poll<Result<T, Failure>> {
    if slot.is_overdue() || slot.order() != Directive::None {
        return Poll::Ready(Err(Failure::TimedOut));
    }
    Poll::Pending
}

/// Waits in a queue, unless the connection is told to leave.
async fn waiting<T>(slot: &SlotRef, line: impl Future<Output = T>) -> Result<T, Failure> {
    let mut line = std::pin::pin!(line);
    poll_fn(|context| match line.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Ok(value)),
        Poll::Pending => give_up(slot),
    })
    .await
}

fn tell(worker: &Worker, slot: &SlotRef, failure: &Failure) {
    let reason: &dyn std::fmt::Display = match failure {
        // no handshake began: as on a plain listener, where a client connects and leaves
        Failure::Gone if slot.phase() == Phase::Fresh => return,
        Failure::Gone => &"the client left",
        Failure::TimedOut if slot.order() == Directive::Leave => &"gave way to others",
        Failure::TimedOut => &"not done in time",
        Failure::NoHello => &"plain HTTP on a TLS listener, or no TLS",
        Failure::Refused(error) => error,
        Failure::Subject => &"the subject of its certificate cannot be passed on",
    };
    worker.metrics.failed(Outcome::HandshakeFailed);
    let client = log::client(slot.client());
    log::debug("no handshake", &[("client", &client), ("reason", reason)]);
}
