//! Two upgraded connections joined.
