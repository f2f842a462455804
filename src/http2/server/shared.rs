//! What the streams of one connection share.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use crate::{
    connection_table::SlotRef,
    exchange::worker::Worker,
    http2::{body::Sender, io::Io, server::outlet::Outlet},
};

/// What the streams of a connection share.
pub struct Shared {
    /// The worker.
    pub worker: Rc<Worker>,
    /// The connection.
    pub io: Rc<Io>,
    /// The connection's own slot.
    pub slot: SlotRef,
    /// What the requests of the connection have in common.
    pub sender: Sender,
    /// Streams in work.
    pub active: Cell<usize>,
    /// A stream was opened.
    pub has_begun: Cell<bool>,
    /// The connection is to be closed.
    pub is_over: Cell<bool>,
    /// The stream that hyper has just accepted.
    pub accepted: Cell<Option<Rc<Outlet>>>,
    /// Streams with a body to come.
    uploads: RefCell<Vec<(u32, SlotRef)>>,
}

/// A stream that is in work until it is dropped.
pub struct Active<'a>(&'a Shared);

/// A stream with a body to come, until it is dropped.
pub struct Uploading<'a>(&'a Shared, Option<u32>);

impl Shared {
    /// A connection without streams.
    pub fn new(worker: Rc<Worker>, io: Rc<Io>, slot: SlotRef, sender: Sender) -> Rc<Shared> {
        Rc::new(Shared {
            worker,
            io,
            slot,
            sender,
            active: Cell::new(0),
            has_begun: Cell::new(false),
            is_over: Cell::new(false),
            accepted: Cell::new(None),
            uploads: RefCell::default(),
        })
    }

    /// A stream begins.
    pub fn begin(&self) -> Active<'_> {
        self.active.set(self.active.get() + 1);
        self.has_begun.set(true);
        Active(self)
    }

    /// A stream has a body to come, where it has a number here.
    pub fn uploads(&self, stream: Option<u32>, slot: &SlotRef) -> Uploading<'_> {
        let mut uploads = self.uploads.borrow_mut();
        uploads.extend(stream.map(|stream| (stream, slot.clone())));
        Uploading(self, stream)
    }

    /// Closes the connection.
    pub fn end(&self) {
        self.is_over.set(true);
        self.slot.wake();
    }

    /// Ends the stream whose body keeps too many buffers, if there is one.
    pub fn relieve(&self) {
        let Some(worst) = self.io.frames.borrow_mut().worst() else {
            return;
        };
        let uploads = self.uploads.borrow();
        if let Some((_, slot)) = uploads.iter().find(|(stream, _)| *stream == worst) {
            slot.evict();
        }
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        if self.0.active.get() == 0 {
            self.0.slot.wake();
        }
    }
}

impl Drop for Uploading<'_> {
    fn drop(&mut self) {
        if let Some(ours) = self.1 {
            self.0
                .uploads
                .borrow_mut()
                .retain(|(stream, _)| *stream != ours);
        }
    }
}
