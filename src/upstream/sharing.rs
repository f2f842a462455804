//! The HTTP/2 connections to one host, each shared by a few requests.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use crate::http2::client::{Connection, STREAMS};

/// The HTTP/2 connections to one host.
#[derive(Debug, Default)]
pub struct Sharing {
    connections: RefCell<Vec<Rc<Connection>>>,
    /// Connections that are being dialled.
    dialled: Cell<usize>,
    /// By ALPN the upstream chose HTTP/1.1, when it was dialled last.
    pub speaks_http1: Cell<bool>,
}

impl Sharing {
    /// A connection with a stream to spare: the oldest, so that the others come to rest when there are few requests.
    pub fn find(&self) -> Option<Rc<Connection>> {
        let connections = self.connections.borrow();
        connections.iter().find(|it| it.has_room()).map(Rc::clone)
    }

    /// A new connection.
    pub fn add(&self, connection: Rc<Connection>) {
        self.connections.borrow_mut().push(connection);
    }

    /// Whether it is one of these.
    pub fn has(&self, connection: &Rc<Connection>) -> bool {
        let connections = self.connections.borrow();
        connections
            .iter()
            .any(|other| Rc::ptr_eq(other, connection))
    }

    /// How many of them have no request.
    pub fn idle(&self) -> usize {
        let connections = self.connections.borrow();
        connections.iter().filter(|it| it.is_idle()).count()
    }

    /// Takes out those that are to go.
    pub fn retire(&self, mut goes: impl FnMut(&Connection) -> bool) -> Vec<Rc<Connection>> {
        let mut connections = self.connections.borrow_mut();
        connections.extract_if(.., |it| goes(it)).collect()
    }

    /// A dial begins, or is over.
    pub fn dials(&self, begins: bool) {
        let dialled = self.dialled.get();
        self.dialled
            .set(if begins { dialled + 1 } else { dialled - 1 });
    }

    /// Whether what is being dialled will have a stream for one more than `waiting` requests.
    pub fn is_expected(&self, waiting: usize) -> bool {
        !self.speaks_http1.get() && waiting < self.dialled.get() * STREAMS
    }
}
