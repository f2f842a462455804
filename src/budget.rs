//! The bytes a stranger may cost.
