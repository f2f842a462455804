//! An HTTP/2 connection to an upstream, driven by hyper on the worker's own thread, and shared by a few requests at a time.
//!
//! Its window is wider than those of all its streams together, so that a client that reads nothing stops its own stream and no other.
//! hyper's tasks end when the last handle is dropped: at once, or a second later where the upstream takes no bytes.

pub mod io;
pub mod outgoing;
pub mod tasks;

use std::{
    any::Any,
    cell::{Cell, RefCell},
    error::Error as _,
    future::Future,
    pin::Pin,
    rc::Rc,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};

use crate::{
    http2::client::{
        io::Io,
        outgoing::{Outgoing, RequestBody, Shared},
        tasks::Tasks,
    },
    net::Stream,
};

/// Streams that a connection has at a time: with more of them one loss in TCP would delay more requests, and a connection
/// would cost more memory.
pub const STREAMS: usize = 8;

/// The least that hyper takes, and the largest frame that is received.
const FRAME: u32 = 16 * 1024;

/// How often the windows of all streams fit into that of the connection. Once would do for bytes; but h2 closes a connection
/// where many small frames wait to be read, by a measure that is half of this window, and small frames are usual in gRPC.
const SPARE: u32 = 8;

/// What one connection may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    stream_window: u32,
    head: u32,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    sender: RefCell<SendRequest<RequestBody>>,
    shared: Rc<Shared>,
    /// Requests that it has now.
    streams: Cell<usize>,
    /// Whether it has brought an answer before.
    pub is_proven: Cell<bool>,
    /// When it was first seen without one, in milliseconds; may wrap.
    idle_since: Cell<Option<u32>>,
    is_worn: Cell<bool>,
}

/// An answer's head with its body, or why there is none.
pub type Asked = Pin<Box<dyn Future<Output = Result<Response<Incoming>, Unanswered>>>>;

/// Why a request has no answer.
#[derive(Debug)]
pub struct Unanswered {
    /// The upstream has not processed it (RFC 9113 §8.7), or never got it.
    pub is_unprocessed: bool,
    /// The connection broke.
    pub is_broken: bool,
    /// For the log.
    pub reason: String,
}

impl Limits {
    /// Those where memory is small, or where it is not.
    pub fn new(is_small: bool) -> Limits {
        if is_small {
            Limits {
                stream_window: 16 * 1024,
                head: 16 * 1024,
            }
        } else {
            Limits {
                stream_window: 64 * 1024,
                head: 32 * 1024,
            }
        }
    }
}

impl Connection {
    /// Begins HTTP/2 on a connection to an upstream. `place` is dropped when hyper has let go of it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn begin(
        mut stream: Stream,
        place: Box<dyn Any>,
        limits: Limits,
    ) -> hyper::Result<Rc<Connection>> {
        if limits.stream_window > FRAME {
            stream.widen(limits.stream_window as usize);
        }
        let shared: Rc<Shared> = Rc::default();
        let tasks = Tasks(Rc::clone(&shared));
        let streams = u32::try_from(STREAMS).unwrap_or(1);
        let mut builder = Builder::new(tasks.clone());
        builder
            .initial_stream_window_size(limits.stream_window)
            .initial_connection_window_size(SPARE * streams * limits.stream_window)
            .initial_max_send_streams(STREAMS)
            .max_frame_size(FRAME)
            .max_header_list_size(limits.head)
            .max_send_buf_size(FRAME as usize);
        let (sender, connection) = builder.handshake(Io::new(stream, place)).await?;
        tasks.run(async {
            // its error reaches every request that it had
            drop(connection.await);
        });
        Ok(Rc::new(Connection {
            sender: RefCell::new(sender),
            shared,
            streams: Cell::new(0),
            is_proven: Cell::new(false),
            idle_since: Cell::new(None),
            is_worn: Cell::new(false),
        }))
    }

    /// A request begins.
    pub fn begins(&self) {
        self.streams.set(self.streams.get() + 1);
        self.idle_since.set(None);
    }

    /// A request is over.
    pub fn ends(&self) {
        self.streams.set(self.streams.get() - 1);
    }

    /// Whether it has no request.
    pub fn is_idle(&self) -> bool {
        self.streams.get() == 0
    }

    /// For how many milliseconds it has had none, counted from the first call without.
    pub fn idles(&self, now: u32) -> u32 {
        let since = self.idle_since.get().unwrap_or(now);
        self.idle_since.set(Some(since));
        now.wrapping_sub(since)
    }

    /// Whether another request may be sent now.
    pub fn has_room(&self) -> bool {
        self.streams.get() < STREAMS && !self.is_over()
    }

    /// Lets it take no further requests.
    pub fn wear(&self) {
        self.is_worn.set(true);
    }

    /// Whether it was told to take no further requests.
    pub fn is_worn(&self) -> bool {
        self.is_worn.get()
    }

    /// Whether no further request will be sent.
    pub fn is_over(&self) -> bool {
        self.is_worn.get() || self.sender.borrow().is_closed()
    }

    /// Sends a request whose body is put into `outgoing`.
    pub fn ask(&self, request: Request<()>, outgoing: &Rc<Outgoing>) -> Asked {
        let body = RequestBody::new(outgoing, &self.shared);
        let asked = self
            .sender
            .borrow_mut()
            .try_send_request(request.map(|()| body));
        Box::pin(async {
            asked.await.map_err(|mut failed| {
                let is_unsent = failed.take_message().is_some();
                unanswered(failed.error(), is_unsent)
            })
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.end();
    }
}

fn unanswered(error: &hyper::Error, is_unsent: bool) -> Unanswered {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<h2::Error>());
    let is_refused = cause.is_some_and(|cause| {
        // a GOAWAY reaches those streams alone that it says were not processed
        let is_said = cause.is_go_away() || cause.reason() == Some(h2::Reason::REFUSED_STREAM);
        is_said && cause.is_remote()
    });
    Unanswered {
        is_unprocessed: is_unsent || is_refused,
        is_broken: cause.is_none_or(h2::Error::is_io),
        reason: cause.map_or_else(|| error.to_string(), ToString::to_string),
    }
}
