//! The socket under hyper.
