//! Which fields travel on, and which are rewritten.
