//! The answer to a request, before a protocol's adapter writes it.

use http::StatusCode;

use crate::{exchange::body::Body, fields::Fields, http1::client::Upstream};

/// An answer, ready to be sent.
#[derive(Debug)]
pub struct Answer<'a> {
    /// Its status.
    pub status: StatusCode,
    /// Its reason phrase, where it is not the usual one.
    pub reason: Option<Box<[u8]>>,
    /// Its fields, without framing and Connection.
    pub headers: Fields,
    /// Its body.
    pub body: Body<'a>,
    /// After a 101: the upstream connection of the tunnel.
    pub tunnel: Option<Box<Upstream>>,
}

impl<'a> Answer<'a> {
    /// An answer that the proxy makes itself.
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
