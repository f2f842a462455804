//! The signals that the controller handles.

use std::task::Poll;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// The action that a signal asks for.
pub enum Call {
    Stop,
    Reload,
}

impl Signals {
    pub fn hear() -> Result<Signals> {
        let hear = |kind| signal(kind).context("listening for signals");
        Ok(Signals {
            terminate: hear(SignalKind::terminate())?,
            interrupt: hear(SignalKind::interrupt())?,
            hangup: hear(SignalKind::hangup())?,
        })
    }

    pub async fn next(&mut self) -> Call {
        std::future::poll_fn(|context| {
            if self.terminate.poll_recv(context).is_ready()
                || self.interrupt.poll_recv(context).is_ready()
            {
                Poll::Ready(Call::Stop)
            } else if self.hangup.poll_recv(context).is_ready() {
                Poll::Ready(Call::Reload)
            } else {
                Poll::Pending
            }
        })
        .await
    }

    pub async fn next_stop(&mut self) {
        while let Call::Reload = self.next().await {}
    }
}
