//! Where the body of a message ends (RFC 9112 §6.3), for requests and responses.
//!
//! Pure values.

use crate::http1::chunked;

/// Where the body ends, according to the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body, whatever the fields say: the message answers HEAD, or its status has none.
    Nothing,
    /// After this many bytes; 0 for a request without a field for its body.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// At the close of the connection.
    Close,
}

/// The rest of a body.
#[derive(Debug)]
pub enum BodyState {
    /// This many bytes; 0 = the next head follows.
    Length(u64),
    /// Chunks.
    Chunked(Box<chunked::Body>),
    /// All bytes before the close of the connection.
    Close,
    /// Unknown, because the framing is malformed.
    Broken,
}

impl BodyState {
    /// A body of which nothing was read.
    pub fn of(framing: Framing) -> BodyState {
        match framing {
            Framing::Nothing => BodyState::Length(0),
            Framing::Length(length) => BodyState::Length(length),
            Framing::Chunked => BodyState::Chunked(Box::new(chunked::Body::new())),
            Framing::Close => BodyState::Close,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_begins_as_its_head_says() {
        let is_empty = |framing| matches!(BodyState::of(framing), BodyState::Length(0));
        assert!(is_empty(Framing::Nothing) && is_empty(Framing::Length(0)));
        assert!(matches!(
            BodyState::of(Framing::Length(7)),
            BodyState::Length(7)
        ));
        assert!(
            matches!(BodyState::of(Framing::Chunked), BodyState::Chunked(body) if !body.is_end())
        );
        assert!(matches!(BodyState::of(Framing::Close), BodyState::Close));
    }
}
