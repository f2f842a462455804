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

// what the tests stand on
mod h2;
mod json;
mod strict;
mod support;
mod tls_records;

// an exchange
mod connections;
mod fields;
mod forward;
mod grpc;
mod http2;
mod http2_upstream;
mod https;
mod location;
mod names;
mod streaming;
mod tls_listener;
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
mod http2_attacks;
mod http2_conformance;
mod http2_half_records;
mod http2_upstream_attacks;
mod memory;
mod smuggling;
mod tls_attacks;

// the documentation
mod readme;
