//! What several targets need.

/// The paranoid reader of the end-to-end tests: it was written apart from the program, and so can judge it.
#[path = "../tests/e2e/strict.rs"]
pub mod strict;

pub mod tools;
