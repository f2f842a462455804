//! The state that all steps of an exchange share.

use std::cell::Cell;

use crate::{
    exchange::{
        client::Client,
        worker::{State, Worker},
    },
    http1::{headers::Sender, request::RequestHead},
    memory::concurrency::ConcurrencyPermit,
};

/// One request with its response, and what every step of it needs. The request's head is not part of it: it is freed as
/// soon as it is written to the upstream.
pub struct Exchange<'a> {
    /// The worker that serves it.
    pub worker: &'a Worker,
    /// The configuration that it began with, with what follows from it.
    pub state: &'a State,
    /// The client.
    pub client: &'a Client<'a>,
    /// Whether the client speaks HTTP/1.0.
    pub is_http10: bool,
    /// The client used https: on its own connection, or according to a trusted proxy.
    pub is_https: Cell<bool>,
    /// It must be answered without an upstream: there is no memory for more.
    pub is_full: bool,
    /// The client accepts trailers.
    pub takes_trailers: Cell<bool>,
    /// The client asked for a WebSocket.
    pub wants_websocket: Cell<bool>,
    /// A permit of `max_tunnels`, where the exchange may become a tunnel.
    pub tunnel: Cell<Option<ConcurrencyPermit>>,
}

impl<'a> Exchange<'a> {
    /// An exchange that has not begun.
    pub fn new(
        worker: &'a Worker,
        state: &'a State,
        client: &'a Client<'a>,
        is_http10: bool,
        is_full: bool,
    ) -> Exchange<'a> {
        Exchange {
            worker,
            state,
            client,
            is_http10,
            is_https: Cell::new(false),
            is_full,
            takes_trailers: Cell::new(false),
            wants_websocket: Cell::new(false),
            tunnel: Cell::new(None),
        }
    }

    /// The host that was asked for, without parsing it again.
    pub fn authority<'p>(&'p self, parts: &'p RequestHead) -> &'p str {
        let known = self.client.exchange_context.subject.whole_host();
        known.unwrap_or_else(|| parts.authority())
    }

    /// The sender of the request, and whether it is trusted. `subject` is that of the client's certificate.
    pub fn sender<'s>(&self, subject: Option<&'s str>) -> Sender<'s> {
        let client = self.client.exchange_context.slot.client();
        let trusted = &self.state.config.server.trusted_proxies;
        let is_trusted =
            client.is_none_or(|client| trusted.iter().any(|network| network.contains(client)));
        Sender {
            client,
            trusted: trusted.is_empty() || is_trusted,
            is_secured: self.client.is_secured(),
            subject,
        }
    }
}
