//! The phases of a client connection.

/// What a connection is doing, as far as deadlines and eviction depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The slot is free.
    Empty,
    /// Accepted, and has not sent a byte.
    Fresh,
    /// In the middle of a TLS handshake.
    Handshake,
    /// Between two requests: a bare socket.
    Idle,
    /// Has sent part of a request head.
    Head,
    /// Has sent a whole request head that waits for memory.
    Waiting,
    /// Has an exchange.
    Busy,
    /// An HTTP/2 connection with exchanges; each has a slot of its own.
    Multiplexed,
    /// Two upgraded connections joined.
    Tunnel,
    /// Had its last answer, and is read for a short time.
    Lingering,
}
