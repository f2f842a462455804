//! The answer to a request, before an adapter writes it as its protocol wants it.

use bytes::Bytes;
use http::{
    StatusCode,
    header::{self, HeaderMap, HeaderValue},
};

use crate::{
    exchange::body::Body,
    failure::METHODS,
    http1::{client::Upstream, request_head::Refusal},
};

/// An answer, ready to be sent.
#[derive(Debug)]
pub struct Answer<'a> {
    /// Its status.
    pub status: StatusCode,
    /// Its reason, where it is not the usual one.
    pub reason: Option<Bytes>,
    /// Its fields; framing and Connection are not among them.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Body<'a>,
    /// Behind a 101: what the client is joined with.
    pub tunnel: Option<Box<Upstream>>,
}

impl<'a> Answer<'a> {
    /// An answer of ours.
    pub fn new(status: StatusCode, headers: HeaderMap, body: Body<'a>) -> Answer<'a> {
        Answer {
            status,
            reason: None,
            headers,
            body,
            tunnel: None,
        }
    }

    /// The answer to a request that is refused before anything of it is looked at.
    pub fn refused(refusal: Refusal) -> Answer<'static> {
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, kind);
        if refusal == Refusal::Connect {
            headers.insert(header::ALLOW, HeaderValue::from_static(METHODS));
        }
        let sentence = refusal.sentence().as_bytes();
        Answer::new(refusal.status(), headers, Body::Own(sentence))
    }
}
