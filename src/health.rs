//! The report, and the client that asks for it.
