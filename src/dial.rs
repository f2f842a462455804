//! Names resolved, addresses raced, connections made.
