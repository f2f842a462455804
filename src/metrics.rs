//! Counters and their text form.
