//! Listeners, the accept loop, drain and reload.
