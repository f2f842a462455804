//! HTTP/1.1 towards clients: the adapter around an exchange, which is independent of the protocol.
//!
//! It writes chunks and Connection, decides whether the connection stays, sends `100 Continue`, closes by half, and
//! joins the tunnel after a 101.

pub mod connection;
pub mod mode;
pub mod respond;

use std::{cell::RefCell, rc::Rc, sync::Arc};

use crate::{
    config::Config,
    connection_table::SlotRef,
    exchange::{
        answer::Answer,
        client::Client,
        context::ExchangeContext,
        http1::{connection::Connection, mode::ConnectionMode},
        scope::Exchange,
        subject::Subject,
        worker::Worker,
    },
    http1::{client::Upstream, request::RequestHead, server::ServerCodec},
    memory::concurrency::ConcurrencyPermit,
    observe::{log::Record, metrics::RouteCounters},
};

/// How an exchange ended.
pub enum End {
    /// The client may send another request.
    Stays,
    /// The client has its answer, and the connection must close.
    Closes,
    /// The client has left, or its answer broke off.
    Broken,
    /// The client is to be joined with the upstream.
    Tunnel(Box<Tunnel>),
}

/// The upstream's half of a tunnel, and what is logged and counted when it has ended.
#[derive(Debug)]
pub struct Tunnel {
    /// The connection that was upgraded.
    pub upstream: Upstream,
    /// The request as log lines name it.
    pub subject: Subject,
    /// The configuration that the exchange began with.
    pub config: Arc<Config>,
    /// The counters of its routes.
    pub counters: Rc<[Arc<RouteCounters>]>,
    /// The route that serves the tunnel, by its index in the configuration.
    pub route: Option<u32>,
    /// Milliseconds that the request spent in queues.
    pub waited: u32,
    /// The access log entry, written when the tunnel has ended.
    pub record: Option<Box<Record>>,
    /// Its permit of `max_tunnels`.
    pub place: Option<ConcurrencyPermit>,
}

/// Answers a request, and sends the answer to its end. `waited` is how many milliseconds it has waited for memory;
/// `is_full` = it is answered without an upstream, because there is no memory for more.
pub async fn handle(
    worker: &Worker,
    codec: &RefCell<ServerCodec>,
    slot: &SlotRef,
    parts: Box<RequestHead>,
    waited: u32,
    is_full: bool,
) -> End {
    let state = worker.state();
    let subject = Subject::of(&state, slot, &parts);
    let exchange_context = ExchangeContext::begin(worker, &state, slot, &subject, waited);
    let room = worker.room(state.config.transport.write_buffer_size);
    let client = Client::http1(codec, &exchange_context, &worker.buffers, room);
    let mut mode = ConnectionMode::of(&parts);
    let exchange = Exchange::new(worker, &state, &client, mode.is_http10, is_full);
    let (status, tunnel, answer) = part(exchange.respond(parts).await);
    mode.stays &= !worker.draining.get() && !is_full && !codec.borrow().io.is_too_wide();
    exchange_context.answers(status);
    let connection = Connection {
        codec,
        client: &client,
        write_timeout: state.config.server.write_timeout,
    };
    match respond::send(connection, answer, mode).await {
        Err(_) => End::Broken,
        Ok(stays) => match tunnel {
            Some(upstream) => {
                let (record, route, waited) = (
                    exchange_context.record.take(),
                    exchange_context.route.get(),
                    exchange_context.waited.get(),
                );
                let place = exchange.tunnel.take();
                drop(exchange_context);
                End::Tunnel(Box::new(Tunnel {
                    upstream: *upstream,
                    subject,
                    config: Arc::clone(&state.config),
                    counters: Rc::clone(&state.counters),
                    route,
                    waited,
                    record,
                    place,
                }))
            }
            None if stays => End::Stays,
            None => End::Closes,
        },
    }
}

/// Takes an answer apart. A function of its own, so that the answer is moved and not borrowed: a borrowed one would
/// keep its space in the future while the answer is written.
fn part(mut answer: Answer<'_>) -> (u16, Option<Box<Upstream>>, Answer<'_>) {
    (answer.status.as_u16(), answer.tunnel.take(), answer)
}
