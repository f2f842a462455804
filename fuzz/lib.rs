//! Code that several targets share.

/// The strict reader of the end-to-end tests, which shares no code with the program.
#[path = "../tests/e2e/strict.rs"]
pub mod strict;

pub mod tools;
