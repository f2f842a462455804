//! What a client connection is doing.

/// What a connection is doing, as far as deadlines and eviction care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The slot is free.
    Empty,
    /// Accepted, and has not spoken.
    Fresh,
    /// In the middle of a TLS handshake.
    Handshake,
    /// Between two requests, a bare socket.
    Idle,
    /// In the middle of a request head.
    Head,
    /// A whole request that waits for memory.
    Waiting,
    /// A request in work.
    Busy,
    /// An HTTP/2 connection with requests in work; each has a slot of its own.
    Multiplexed,
    /// Two upgraded connections joined.
    Tunnel,
    /// `FramingFields` its last word, reads on a little.
    Lingering,
}
