//! What one connection may make hyper hold.

/// What one connection may keep alive in hyper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Read buffers with DATA that no exchange has read; above it the stream with most DATA frames is reset.
    pub bodies: usize,
    /// DATA frames that no exchange has read, each of which costs hyper 256 bytes; above it the stream with most of them is
    /// reset. h2 counts frames as well, and would end the connection: see [`frames_within`].
    pub pieces: usize,
    /// Read buffers with parts of header blocks, over the life of the connection, because entries of the HPACK table may
    /// keep them; above it the connection takes no further request. The table has at most 110 entries.
    pub heads: usize,
    /// Trailer sections that no exchange has read; above it a stream is reset.
    pub trailers: usize,
}

/// How many small DATA frames h2 lets wait on a connection with a window of so many bytes: it counts what each lacks of
/// 256 bytes, up to half of the window.
pub const fn frames_within(window: u32) -> usize {
    (window / 2 / 256) as usize
}

/// Why a connection is ended with `ENHANCE_YOUR_CALM`, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess(pub &'static str);

/// A quarter more than a bound: where the connection ends, because to reset streams did not help.
pub fn above(bound: usize) -> usize {
    bound + bound / 4
}
