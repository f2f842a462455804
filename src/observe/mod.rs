//! What an operator sees: log lines, metrics and health. None of them shows header values or bodies.

pub mod date;
pub mod health;
pub mod log;
pub mod log_line;
pub mod metrics;
pub mod repeats;
