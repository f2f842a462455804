//! observe.

pub mod date;
pub mod health;
pub mod log;
pub mod log_line;
pub mod metrics;
pub mod repeats;
