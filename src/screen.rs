//! The strict reading of raw request bytes.
