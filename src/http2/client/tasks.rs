//! The tasks that hyper needs for a connection, ended when their request or their connection is over.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt::Executor;

use crate::{
    clock::{Sleep, sleep},
    http2::client::outgoing::{Outgoing, Shared},
};

/// How long hyper may take to say goodbye to an upstream.
pub const LINGER: Duration = Duration::from_secs(1);

/// Runs hyper's futures.
#[derive(Debug, Clone)]
pub struct Tasks(pub Rc<Shared>);

struct Task<F> {
    future: Pin<Box<F>>,
    /// The request that it is for.
    outgoing: Option<Rc<Outgoing>>,
    /// It reads the connection.
    drives: bool,
    shared: Rc<Shared>,
    goodbye: Option<Pin<Box<Sleep>>>,
}

impl Tasks {
    /// Runs a future of the connection's own.
    pub fn run(&self, future: impl Future<Output = ()> + 'static) {
        self.start(future, None, false);
    }

    fn start<F: Future<Output = ()> + 'static>(
        &self,
        future: F,
        outgoing: Option<Rc<Outgoing>>,
        drives: bool,
    ) {
        tokio::task::spawn_local(Task {
            future: Box::pin(future),
            outgoing,
            drives,
            shared: Rc::clone(&self.0),
            goodbye: None,
        });
    }
}

impl<F: Future<Output = ()> + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        let outgoing = self.0.taken.take();
        // the first one, which hyper hands over in the handshake, reads the connection
        let drives = !self.0.is_driven.replace(true);
        self.start(future, outgoing, drives);
    }
}

impl<F: Future<Output = ()>> Future for Task<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let task = &mut *self;
        if let Some(outgoing) = &task.outgoing {
            // dropped and not ended: then h2 resets the stream with CANCEL
            if outgoing.is_given_up(context) {
                return Poll::Ready(());
            }
            return task.future.as_mut().poll(context);
        }
        if task.drives {
            task.shared.frames.borrow_mut().resume();
        }
        if task.future.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        task.shared.relieve();
        if task.shared.is_over() {
            let goodbye = task.goodbye.get_or_insert_with(|| Box::pin(sleep(LINGER)));
            return goodbye.as_mut().poll(context);
        }
        task.shared.wakes_at_end(context);
        Poll::Pending
    }
}
