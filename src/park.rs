//! Client connections at rest, and the one sweep.
