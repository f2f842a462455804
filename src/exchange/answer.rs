//! The answer to a request, before an adapter writes it as its protocol wants it.

use http::StatusCode;

use crate::{exchange::body::Body, fields::Fields, http1::client::Upstream};

/// An answer, ready to be sent.
#[derive(Debug)]
pub struct Answer<'a> {
    /// Its status.
    pub status: StatusCode,
    /// Its reason, where it is not the usual one.
    pub reason: Option<Box<[u8]>>,
    /// Its fields; framing and Connection are not among them.
    pub headers: Fields,
    /// Its body.
    pub body: Body<'a>,
    /// Behind a 101: what the client is joined with.
    pub tunnel: Option<Box<Upstream>>,
}

impl<'a> Answer<'a> {
    /// An answer of ours.
    pub fn new(status: StatusCode, headers: Fields, body: Body<'a>) -> Answer<'a> {
        Answer {
            status,
            reason: None,
            headers,
            body,
            tunnel: None,
        }
    }
}
