//! The answers that the proxy makes itself: failures, redirects, health, and what a route answers without an upstream.

use http::{
    Method, StatusCode,
    header::{self, HeaderValue},
};
use http_body::Body as _;

use crate::{
    config::Level,
    cors::Cors,
    direct::{Redirect, Response},
    exchange::{answer::Answer, body::Body, scope::Exchange},
    failure::Failure,
    fields::Fields,
    http1::request::RequestHead,
    observe::{health, log, repeats::Kind},
    outcome::Blame,
    route::Route,
};

impl<'a> Exchange<'a> {
    /// Refuses a preflight; the log says which origin asked and which ones are allowed, because a wrong CORS policy is
    /// hard to see elsewhere.
    #[cold]
    pub fn refuse_preflight(
        &self,
        policy: Option<&Cors>,
        parts: &RequestHead,
        headers: &Fields,
    ) -> Answer<'a> {
        let is_told = log::enabled(Level::Debug);
        let reason = policy
            .filter(|_| is_told)
            .map(|it| it.explain(&parts.headers));
        let mut answer = self.fail(&Failure::PreflightRefused(reason.unwrap_or_default()));
        answer.headers.extend(headers.iter());
        answer
    }

    /// Redirects the client.
    pub fn redirect(&self, route: &Route, redirect: &Redirect, parts: &RequestHead) -> Answer<'a> {
        let to = &redirect.to;
        let location = to.location(self.authority(parts), |base, out| {
            route.push_joined(base, parts.uri.path(), parts.uri.query(), out);
        });
        let Some(location) = location else {
            return self.fail(&Failure::HostUnusable);
        };
        let mut headers = Fields::new();
        headers.append(header::LOCATION, location);
        route.response_headers.apply(&mut headers);
        empty(redirect.status, headers)
    }

    /// The health report.
    pub fn health(&self, parts: &RequestHead) -> Answer<'a> {
        if !matches!(
            self.client.exchange_context.subject.method,
            Method::GET | Method::HEAD
        ) {
            let mut answer = self.fail(&Failure::MethodNotAllowed);
            answer.headers.set(header::ALLOW, "GET, HEAD");
            return answer;
        }
        let accept = parts.headers.get(header::ACCEPT);
        let (status, kind, text) =
            self.state
                .report
                .answer(accept, parts.uri.query(), self.worker.draining.get());
        let headers = Fields::from_iter([
            (header::CONTENT_TYPE, kind),
            (header::CACHE_CONTROL, health::CACHE_CONTROL),
        ]);
        Answer::new(status, headers, Body::Made(text))
    }

    /// Turns a failure into an answer and a log line; no other function does.
    pub fn fail(&self, failure: &Failure) -> Answer<'a> {
        let exchange_context = self.client.exchange_context;
        exchange_context.note(failure.outcome());
        exchange_context.told.set(true);
        self.tell(failure);
        let text = failure.sentence().as_bytes();
        Answer::new(failure.status(), failure.fields(), Body::Own(text))
    }

    /// Logs why there is no answer; where a bound was full, which one, and how long the request waited for it.
    #[cold]
    fn tell(&self, failure: &Failure) {
        let exchange_context = self.client.exchange_context;
        let repeats = &self.worker.repeats;
        if failure.blame() == Blame::Proxy
            && !repeats.is_first(
                Kind("no answer", failure.outcome()),
                self.worker.table.now(),
            )
        {
            return;
        }
        let level = failure.blame().level();
        let status = failure.status().as_u16();
        let mut fields: Vec<log::Field<'_>> = vec![("status", &status), ("reason", failure)];
        let bound = self.bound(failure);
        if let Some((bound, value)) = &bound {
            fields.extend([("bound", bound as &_), ("value", value as &_)]);
        }
        let waited = exchange_context.waited.get();
        if failure.blame() == Blame::Proxy {
            fields.push(("waited_ms", &waited));
        }
        let subject = exchange_context.subject;
        subject.tell(level, "no answer", exchange_context.route(), &fields);
    }

    /// The bound that was full, and its value.
    fn bound(&self, failure: &Failure) -> Option<(&'static str, u64)> {
        let config = &self.state.config;
        let places = config.proxy.max_concurrent_requests;
        let connections = config.transport.max_conns_per_host;
        let tunnels = config.proxy.max_tunnels;
        Some(match failure {
            Failure::NoPlace => ("proxy.max_concurrent_requests", places? as u64),
            Failure::NoConnection => ("transport.max_conns_per_host", connections? as u64),
            Failure::NoTunnel => ("proxy.max_tunnels", tunnels? as u64),
            Failure::NoMemory => self.worker.memory_bound(),
            _ => return None,
        })
    }
}

/// A fixed response, whatever the method and the rest of the path.
pub fn respond_directly(route: &Route, response: &Response) -> Answer<'static> {
    let mut headers = Fields::new();
    if let Some(kind) = &response.content_type {
        headers.append(header::CONTENT_TYPE, kind);
    }
    route.response_headers.apply(&mut headers);
    Answer::new(response.status, headers, Body::Made(response.body.clone()))
}

/// Redirects to the path with a slash at its end.
pub fn add_slash(route: &Route, query: Option<&str>) -> Answer<'static> {
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    let mut headers = Fields::new();
    if let Ok(location) = HeaderValue::try_from(format!("{}{query}", route.path)) {
        headers.append(header::LOCATION, location);
    }
    empty(StatusCode::TEMPORARY_REDIRECT, headers)
}

/// An answer without a body.
pub fn empty(status: StatusCode, headers: Fields) -> Answer<'static> {
    Answer::new(status, headers, Body::Own(b""))
}

/// For a HEAD: the length of the body that a GET would have brought (RFC 9110 §8.6).
pub fn own_length(status: StatusCode, headers: &mut Fields, body: &Body<'_>) {
    if let Body::Own(_) | Body::Made(_) = body
        && status != StatusCode::NO_CONTENT
        && !headers.contains(header::CONTENT_LENGTH)
    {
        let length = body.size_hint().lower();
        headers.append(header::CONTENT_LENGTH, length.to_string());
    }
}
