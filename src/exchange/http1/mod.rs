//! HTTP/1.1 towards clients: what this protocol alone has, around an exchange that knows of none.
//!
//! Chunks, Connection and whether it stays, `100 Continue`, close by half, and the tunnel behind a 101.

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
    /// The client can go on.
    Stays,
    /// It has its answer, and must go.
    Closes,
    /// It has gone, or its answer broke off.
    Broken,
    /// It is to be joined with the upstream.
    Tunnel(Box<Tunnel>),
}

/// The upstream's half of a tunnel, and what is told of it when it has ended.
#[derive(Debug)]
pub struct Tunnel {
    /// The connection that was upgraded.
    pub upstream: Upstream,
    /// What was asked for, by whom.
    pub subject: Subject,
    /// The configuration that the exchange began with.
    pub config: Arc<Config>,
    /// The counters of its routes.
    pub counters: Rc<[Arc<RouteCounters>]>,
    /// Which of its routes serves the tunnel.
    pub route: Option<u32>,
    /// Milliseconds that the request stood in queues.
    pub waited: u32,
    /// Written when the tunnel has ended.
    pub record: Option<Box<Record>>,
    /// Its place among `max_tunnels`.
    pub place: Option<ConcurrencyPermit>,
}

/// Answers a request, whatever comes, and sends the answer to its end. `waited` is how many milliseconds it has waited
/// for memory; `is_full` = without an upstream, for there is no memory for more.
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

/// Takes an answer apart. A function of its own, so that the answer is moved and not borrowed: what is borrowed would keep
/// its place in the future while the answer is written.
fn part(mut answer: Answer<'_>) -> (u16, Option<Box<Upstream>>, Answer<'_>) {
    (answer.status.as_u16(), answer.tunnel.take(), answer)
}
