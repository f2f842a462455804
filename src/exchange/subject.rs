//! The request as log lines name it: client, method, host and path.

use std::net::IpAddr;

use http::Method;

use crate::{
    client_address::real_client,
    config::Level,
    connection_table::SlotRef,
    exchange::worker::State,
    http1::request::RequestHead,
    observe::{
        log::{self, Field},
        log_line::{KEPT, beginning},
    },
    route::Route,
};

/// The parts of a request that log lines show.
#[derive(Debug)]
pub struct Subject {
    /// The client, behind the proxies that are trusted; `None` on a unix socket.
    pub client: Option<IpAddr>,
    /// The request's method.
    pub method: Method,
    /// Host and path in one allocation, each cut to what a log line shows.
    text: Box<str>,
    host: u16,
    /// The host was not cut.
    is_whole: bool,
}

impl Subject {
    /// For a request; its client is the one behind the trusted proxies.
    pub fn of(state: &State, slot: &SlotRef, head: &RequestHead) -> Subject {
        let trusted = &state.config.server.trusted_proxies;
        let client: Option<IpAddr> = if trusted.is_empty() {
            slot.client()
        } else {
            real_client(slot.client(), trusted, &head.headers)
        };
        let method = head.method.clone();
        Subject::new(client, method, head.authority(), head.uri.path())
    }

    /// `path` is without its query; `host` is empty where the request names none.
    pub fn new(client: Option<IpAddr>, method: Method, host: &str, path: &str) -> Subject {
        let is_whole = host.len() <= KEPT;
        let (host, path) = (beginning(host), beginning(path));
        // by its exact size, so that the box needs no copy
        let mut text = String::with_capacity(host.len() + path.len());
        text.push_str(&host);
        text.push_str(&path);
        Subject {
            client,
            method,
            text: text.into_boxed_str(),
            host: u16::try_from(host.len()).unwrap_or(0),
            is_whole,
        }
    }

    /// The host that was asked for.
    pub fn host(&self) -> &str {
        self.text.get(..self.host.into()).unwrap_or_default()
    }

    /// The host that was asked for; `None` where it was cut, and so must not decide anything.
    pub fn whole_host(&self) -> Option<&str> {
        self.is_whole.then(|| self.host())
    }

    /// The path that was asked for.
    pub fn path(&self) -> &str {
        self.text.get(self.host.into()..).unwrap_or_default()
    }

    /// Writes a log line about the request; `route` is the one that serves it.
    #[cold]
    pub fn tell(&self, level: Level, message: &str, route: Option<&Route>, more: &[Field<'_>]) {
        if !log::enabled(level) {
            return;
        }
        let client = log::client(self.client);
        let (host, path) = (self.host(), self.path());
        let mut fields: Vec<Field<'_>> = vec![
            ("client", &client),
            ("method", &self.method),
            ("host", &host),
            ("path", &path),
        ];
        let name = route.map(Route::name);
        let upstream = route
            .and_then(Route::target)
            .map(|it| it.origin.to_string());
        fields.extend(name.iter().map(|name| ("route", name as &_)));
        fields.extend(upstream.iter().map(|upstream| ("upstream", upstream as &_)));
        fields.extend_from_slice(more);
        log::event(level, message, &fields);
    }
}
