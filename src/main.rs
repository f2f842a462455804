//! lean-proxy: an HTTP/1.1 reverse proxy that stays inside a few megabytes whatever its clients do.

mod cli;

// values and decisions: no tokio, no sockets, no clock
mod address;
mod chunked;
mod config;
mod cors;
mod document;
mod failure;
mod headers;
mod route;
mod screen;
mod yaml;

// the world
mod body;
mod budget;
mod dial;
mod log;
mod park;
mod pool;
mod sys;
mod tls;
mod tunnel;
mod wire;

// the life of a request
mod attend;
mod gate;
mod health;
mod metrics;
mod proxy;
mod serve;

fn main() {}
