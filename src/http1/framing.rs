//! Where the body of a message ends (RFC 9112 §6.3), of requests and responses, read and written.
//!
//! Pure.

use crate::http1::chunked;

/// What a head says of where its body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none, whatever the fields say: it answers HEAD, or its status has none.
    Nothing,
    /// So many bytes; 0 for a request that says nothing of a body.
    Length(u64),
    /// The last chunk.
    Chunked,
    /// The close of the connection.
    Close,
}

/// What is still to come of a body.
#[derive(Debug)]
pub enum BodyState {
    /// So many bytes; 0 = the next head.
    Length(u64),
    /// Chunks.
    Chunked(Box<chunked::Body>),
    /// All that comes before the close of the connection.
    Close,
    /// Nobody knows: its framing is broken.
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
