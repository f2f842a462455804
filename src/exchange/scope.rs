//! What every step of an exchange needs, and what its steps tell each other.

use std::cell::Cell;

use crate::{
    exchange::{
        client::Client,
        worker::{State, Worker},
    },
    http1::{headers::Sender, request::RequestHead},
    memory::concurrency::ConcurrencyPermit,
};

/// One request with its response, and what every step of it needs. The request's own head is not among it: it is let
/// go as soon as it is written to the upstream.
pub struct Exchange<'a> {
    /// What its thread shares.
    pub worker: &'a Worker,
    /// What follows from the configuration that it began with.
    pub state: &'a State,
    /// Who asks.
    pub client: &'a Client<'a>,
    /// Whether the client speaks HTTP/1.0.
    pub is_http10: bool,
    /// The client came by https: to its own connection, or to a trusted sender that says so.
    pub is_https: Cell<bool>,
    /// Answer without an upstream: there is no memory for more.
    pub is_full: bool,
    /// The client takes trailers.
    pub takes_trailers: Cell<bool>,
    /// The client asked for a WebSocket.
    pub wants_websocket: Cell<bool>,
    /// A place among `max_tunnels`, where it may become one.
    pub tunnel: Cell<Option<ConcurrencyPermit>>,
}

impl<'a> Exchange<'a> {
    /// One that has not begun.
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

    /// The host that was asked for, without looking for it again.
    pub fn authority<'p>(&'p self, parts: &'p RequestHead) -> &'p str {
        let known = self.client.exchange_context.subject.whole_host();
        known.unwrap_or_else(|| parts.authority())
    }

    /// Who asks, and whether it is believed. `subject` is whom the client's certificate names.
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
