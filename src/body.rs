//! What the client reads.
