//! The signals that the controller handles.
//!
//! They are read from a descriptor. tokio's own signals would keep a channel for each of the 65 numbers: 28 kB.

use std::{fs::File, mem::size_of};

use anyhow::{Context as _, Result};
use tokio::net::unix::pipe;

use crate::sys;

/// Signals that wait to be read. None of them ends the process.
pub struct SignalQueue(File);

/// Reads the signals of a [`SignalQueue`] on the runtime.
///
/// The descriptor is no pipe, but is read like one.
pub struct Signals(pipe::Receiver);

/// The action that a signal asks for.
pub enum Call {
    Stop,
    Reload,
}

impl SignalQueue {
    /// To be called before other threads start: a thread that does not block the signals would take them.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn new() -> Result<SignalQueue> {
        let file = sys::signal_file(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]);
        file.map(SignalQueue).context("listening for signals")
    }
}

impl Signals {
    /// # Errors
    /// The runtime cannot wait for the descriptor.
    pub fn hear(queue: SignalQueue) -> Result<Signals> {
        let file = pipe::Receiver::from_file_unchecked(queue.0);
        file.map(Signals).context("listening for signals")
    }

    pub async fn next(&mut self) -> Call {
        let mut signal = [0; size_of::<libc::signalfd_siginfo>()];
        loop {
            // an error says that there is no signal yet, after all
            if self.0.readable().await.is_ok() && self.0.try_read(&mut signal).is_ok() {
                // the first field is the signal's number
                let number = signal.first_chunk().copied().map(i32::from_ne_bytes);
                return match number {
                    Some(libc::SIGHUP) => Call::Reload,
                    _ => Call::Stop,
                };
            }
        }
    }

    pub async fn next_stop(&mut self) {
        while let Call::Reload = self.next().await {}
    }
}
