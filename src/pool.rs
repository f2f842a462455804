//! Upstream connections, idle and leased.
