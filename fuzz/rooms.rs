//! The rooms of the program that the targets attack, and those that these need. They are the program's own files: what
//! is private there is private here, and a target goes in by the same doors as the program.

#![allow(
    dead_code,
    unfulfilled_lint_expectations,
    reason = "the rest of the program calls the rest, and its lints are checked where it is built"
)]

#[path = "../src/address.rs"]
pub mod address;
#[path = "../src/answer.rs"]
pub mod answer;
#[path = "../src/chunked.rs"]
pub mod chunked;
#[path = "../src/client_address.rs"]
pub mod client_address;
#[path = "../src/client_group.rs"]
pub mod client_group;
#[path = "../src/config.rs"]
pub mod config;
#[path = "../src/cors.rs"]
pub mod cors;
#[path = "../src/date.rs"]
pub mod date;
#[path = "../src/direct.rs"]
pub mod direct;
#[path = "../src/document.rs"]
pub mod document;
#[path = "../src/entry.rs"]
pub mod entry;
#[path = "../src/eviction.rs"]
pub mod eviction;
#[path = "../src/failure.rs"]
pub mod failure;
#[path = "../src/headers.rs"]
pub mod headers;
#[path = "../src/keys.rs"]
pub mod keys;
#[path = "../src/line.rs"]
pub mod line;
#[path = "../src/outcome.rs"]
pub mod outcome;
#[path = "../src/location.rs"]
pub mod location;
#[path = "../src/policy.rs"]
pub mod policy;
#[path = "../src/request.rs"]
pub mod request;
#[path = "../src/roots.rs"]
pub mod roots;
#[path = "../src/route.rs"]
pub mod route;
#[path = "../src/screen.rs"]
pub mod screen;
#[path = "../src/units.rs"]
pub mod units;
#[path = "../src/yaml.rs"]
pub mod yaml;

#[path = "../src/body.rs"]
pub mod body;
#[path = "../src/budget.rs"]
pub mod budget;
#[path = "../src/context.rs"]
pub mod context;
#[path = "../src/deadline.rs"]
pub mod deadline;
#[path = "../src/dial.rs"]
pub mod dial;
#[path = "../src/gate.rs"]
pub mod gate;
#[path = "../src/log.rs"]
pub mod log;
#[path = "../src/metrics.rs"]
pub mod metrics;
#[path = "../src/park.rs"]
pub mod park;
#[path = "../src/pool.rs"]
pub mod pool;
#[path = "../src/queue.rs"]
pub mod queue;
#[path = "../src/sys.rs"]
pub mod sys;
#[path = "../src/tls.rs"]
pub mod tls;
#[path = "../src/wire.rs"]
pub mod wire;

#[path = "../src/stage.rs"]
pub mod stage;

/// The paranoid reader of the end-to-end tests: it was written apart from the program, and so can judge it.
#[path = "../tests/e2e/strict.rs"]
pub mod strict;

pub mod tools;
