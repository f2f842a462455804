//! End-to-end tests: the real binary, real sockets, raw bytes.
//!
//! `LEAN_PROXY_BIN=/path/to/lean-proxy` tests another build, the static one for example.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stderr,
    clippy::too_many_lines,
    reason = "in a test a panic is the message, and a table of cases is as long as it is"
)]

// support
mod json;
mod strict;
mod support;

// an exchange
mod connections;
mod fields;
mod forward;
mod https;
mod location;
mod names;
mod streaming;
mod upgrade;

// what the proxy answers itself
mod cors;
mod direct;
mod health;
mod metrics;

// logs and metrics
mod outcomes;

// bounds
mod fairness;
mod limits;
mod queues;
mod timeouts;

// the program
mod cli;
mod lifecycle;
mod logs;
mod vital;

// attacks, and memory
mod abort;
mod attacks;
mod hardening;
mod memory;
mod smuggling;

// the documentation
mod readme;
