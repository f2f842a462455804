//! An HTTP/2 connection to an upstream, driven by hyper on the worker's own thread, and shared by a few requests at a time.
//!
//! Its window is wider than those of all its streams together, so that a client that reads nothing stops its own stream and no other.
//! What a hostile upstream can make hyper hold is bounded by [`Frames`].
//! hyper's tasks end when the last handle is dropped: at once, or a second later where the upstream takes no bytes.

pub mod asking;
pub mod outgoing;
pub mod tasks;

use std::{
    any::Any,
    cell::{Cell, RefCell},
    error::Error,
    rc::Rc,
};

use http::Request;
use hyper::client::conn::http2::{Builder, SendRequest};

use crate::{
    connection_table::{ConnectionTable, SlotRef},
    http2::{
        client::{
            asking::{Asking, Unanswered},
            outgoing::{Outgoing, RequestBody, Shared},
            tasks::Tasks,
        },
        frames::{
            Frames,
            bounds::{Bounds, frames_within},
        },
        io::{Handle, Io},
    },
    net::Stream,
};

/// Streams that a connection has at a time: with more of them one loss in TCP would delay more requests, and a connection
/// would cost more memory; with eight, a hundred calls at a time did not fit into 64 MiB.
pub const STREAMS: usize = 10;

/// The least that hyper takes, and the largest frame that is received.
const FRAME: u32 = 16 * 1024;

/// How often the windows of all streams fit into that of the connection. Once would do for bytes; but by this window h2
/// decides how many small frames may wait to be read (`frames_within`), which are usual in gRPC.
const SPARE: u32 = 4;

/// What one connection may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    stream_window: u32,
    head: u32,
    bounds: Bounds,
}

const SMALL: Limits = Limits {
    stream_window: 16 * 1024,
    head: 16 * 1024,
    bounds: Bounds {
        bodies: 32,
        pieces: 800,
        heads: 32,
        trailers: 1,
    },
};

const WIDE: Limits = Limits {
    stream_window: 64 * 1024,
    head: 32 * 1024,
    bounds: Bounds {
        bodies: 96,
        pieces: 2_000,
        // more than the HPACK table can keep
        heads: usize::MAX,
        trailers: 2,
    },
};

const _: () = {
    assert!(SMALL.bounds.pieces <= frames_within(SMALL.window()));
    assert!(WIDE.bounds.pieces <= frames_within(WIDE.window()));
};

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

impl Limits {
    /// Those where memory is small, or where it is not.
    pub fn new(is_small: bool) -> Limits {
        if is_small { SMALL } else { WIDE }
    }

    /// That of the connection.
    const fn window(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "it is ten")]
        let streams = STREAMS as u32;
        SPARE * streams * self.stream_window
    }
}

impl Connection {
    /// Begins HTTP/2 on a connection to an upstream. `place` is dropped when hyper has let go of it; `scratch` is the
    /// worker's, for one read.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn begin(
        mut stream: Stream,
        place: Box<dyn Any>,
        limits: Limits,
        scratch: &Rc<RefCell<Box<[u8]>>>,
        table: &Rc<ConnectionTable>,
    ) -> hyper::Result<Rc<Connection>> {
        if limits.stream_window > FRAME {
            stream.widen(limits.stream_window as usize);
        }
        let frames = Frames::of_upstream(limits.bounds, table.now());
        let shared = Shared::new(frames);
        let tasks = Tasks(Rc::clone(&shared));
        let mut builder = Builder::new(tasks.clone());
        builder
            .initial_stream_window_size(limits.stream_window)
            .initial_connection_window_size(limits.window())
            .initial_max_send_streams(STREAMS)
            .max_frame_size(FRAME)
            .max_header_list_size(limits.head)
            .max_send_buf_size(FRAME as usize);
        let io = Io::of_upstream(stream, &shared.frames, scratch, table, place);
        let (sender, connection) = builder.handshake(Handle(io)).await?;
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

    /// Whether it takes no further requests: it was told so, or has brought many heads.
    pub fn is_worn(&self) -> bool {
        self.is_worn.get() || self.shared.frames.borrow().is_worn()
    }

    /// Whether no further request will be sent.
    pub fn is_over(&self) -> bool {
        self.is_worn() || self.sender.borrow().is_closed()
    }

    /// Sends a request whose body is put into `outgoing`, for the exchange with this slot.
    pub fn ask(&self, request: Request<()>, outgoing: &Rc<Outgoing>, slot: &SlotRef) -> Asking {
        let body = RequestBody::new(outgoing, &self.shared);
        let asked = self
            .sender
            .borrow_mut()
            .try_send_request(request.map(|()| body));
        let answer = Box::pin(async {
            asked.await.map_err(|mut failed| {
                let is_unsent = failed.take_message().is_some();
                unanswered(failed.error(), is_unsent)
            })
        });
        Asking::new(answer, outgoing, slot, &self.shared)
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
        reason: innermost(error).to_string(),
    }
}

fn innermost<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error
}
