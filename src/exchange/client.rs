//! The client as an exchange sees it, independent of its protocol: the frames of its body, and the interim responses to
//! it.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};

use crate::{
    exchange::context::ExchangeContext,
    http1::{
        framing::BodyState,
        headers,
        server::{MAX_INTERIM, ServerCodec},
    },
    http2::body::RequestBody,
    memory::{
        buffers::{Buffers, ReadSize},
        chunk::BodyChunk,
    },
};

/// The client as an exchange sees it: the body of its request is read from it.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    engine: Engine<'a>,
    /// The context of the exchange.
    pub exchange_context: &'a ExchangeContext<'a>,
    /// The pool of buffers.
    pub buffers: &'a Rc<Buffers>,
    /// Bytes of a body that may be on their way to the upstream at a time.
    pub room: ReadSize,
}

/// The reader of its body, by protocol.
#[derive(Debug, Clone, Copy)]
enum Engine<'a> {
    Http1(&'a RefCell<ServerCodec>),
    Http2(&'a RefCell<RequestBody>),
}

impl<'a> Client<'a> {
    /// A client of HTTP/1.1, behind its codec. `room` is for one read of its body.
    pub fn http1(
        codec: &'a RefCell<ServerCodec>,
        exchange_context: &'a ExchangeContext<'a>,
        buffers: &'a Rc<Buffers>,
        room: ReadSize,
    ) -> Client<'a> {
        Client {
            engine: Engine::Http1(codec),
            exchange_context,
            buffers,
            room,
        }
    }

    /// A client of HTTP/2, whose request has this body.
    pub fn http2(
        body: &'a RefCell<RequestBody>,
        exchange_context: &'a ExchangeContext<'a>,
        buffers: &'a Rc<Buffers>,
        room: ReadSize,
    ) -> Client<'a> {
        Client {
            engine: Engine::Http2(body),
            exchange_context,
            buffers,
            room,
        }
    }

    /// Whether it uses TLS.
    pub fn is_secured(&self) -> bool {
        match self.engine {
            Engine::Http1(codec) => codec.borrow().io.secured().is_some(),
            Engine::Http2(body) => body.borrow().sender.is_secured,
        }
    }

    /// The subject of its certificate, where it was asked for one.
    pub fn certificate_subject(&self) -> Option<Rc<str>> {
        match self.engine {
            Engine::Http1(codec) => codec.borrow().io.secured()?.subject().map(Rc::clone),
            Engine::Http2(body) => body.borrow().sender.certificate_subject.clone(),
        }
    }

    /// Bytes of its body that were read, framing included; wraps.
    pub fn bytes_read(&self) -> u64 {
        match self.engine {
            Engine::Http1(codec) => codec.borrow().read.into(),
            Engine::Http2(body) => body.borrow().read,
        }
    }

    /// Whether it may still wait for `100 Continue`.
    pub fn awaits_word(&self) -> bool {
        match self.engine {
            Engine::Http1(codec) => codec.borrow().awaits_word,
            // hyper sends no 1xx: the client sends its body after a wait of its own
            Engine::Http2(_) => false,
        }
    }

    /// The next frame of its body; `None` at the end.
    ///
    /// # Errors
    /// The connection failed or ended early, or the framing is malformed.
    pub fn poll_body(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<BodyChunk>>>> {
        let frame = match self.engine {
            Engine::Http1(codec) => {
                ready!(poll_http1(&mut codec.borrow_mut(), context, self))
            }
            Engine::Http2(body) => ready!(poll_http2(&mut body.borrow_mut(), context)),
        };
        if let Some(Ok(frame)) = &frame
            && let Some(piece) = frame.data_ref()
        {
            self.exchange_context.took_in(piece.len());
            self.exchange_context.slot.moved(piece.len());
        }
        Poll::Ready(frame)
    }

    /// Sends an interim response, to clients whose protocol allows it. It is dropped where too many bytes wait for the
    /// client already; a large one waits only while the exchange pays for a large head.
    pub fn say(&self, interim: Vec<u8>) {
        let Engine::Http1(codec) = self.engine else {
            return;
        };
        let mut codec = codec.borrow_mut();
        let is_paid = self.exchange_context.holds_head();
        if codec.interim.len() + interim.len() > MAX_INTERIM && !is_paid {
            return;
        }
        if codec.interim.is_empty() {
            codec.interim = interim;
        } else {
            codec.interim.extend_from_slice(&interim);
        }
    }

    /// Bytes of interim responses that wait for the client.
    pub fn interim_len(&self) -> usize {
        match self.engine {
            Engine::Http1(codec) => codec.borrow().interim.len(),
            Engine::Http2(_) => 0,
        }
    }

    /// Whether more bytes of interim responses wait for the client than an exchange pays for.
    pub fn has_large_interim(&self) -> bool {
        self.interim_len() > MAX_INTERIM
    }

    /// Whether no interim response waits for the client, or none can be written any more.
    pub fn has_told(&self, context: &mut Context<'_>) -> bool {
        match self.engine {
            Engine::Http1(codec) => codec.borrow_mut().poll_interim(context).is_ready(),
            Engine::Http2(_) => true,
        }
    }

    /// Called when nothing is written to the client for a while: gives back what was paid for acknowledged bytes.
    pub fn rests(&self) {
        if let Engine::Http1(codec) = self.engine {
            codec.borrow_mut().io.give_back();
        }
    }
}

/// The body of its request.
impl Body for Client<'_> {
    type Data = BodyChunk;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<BodyChunk>>>> {
        self.poll_body(context)
    }

    fn is_end_stream(&self) -> bool {
        match self.engine {
            Engine::Http1(codec) => {
                let codec = codec.borrow();
                codec.is_between() && !codec.has_trailers()
            }
            Engine::Http2(body) => body.borrow().is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.engine {
            Engine::Http1(codec) => match codec.borrow().due {
                BodyState::Length(left) => SizeHint::with_exact(left),
                BodyState::Chunked(_) | BodyState::Close | BodyState::Broken => SizeHint::default(),
            },
            Engine::Http2(body) => body.borrow().size_hint(),
        }
    }
}

fn poll_http1(
    codec: &mut ServerCodec,
    context: &mut Context<'_>,
    client: &Client<'_>,
) -> Poll<Option<io::Result<Frame<BodyChunk>>>> {
    match ready!(codec.poll_body(context, client.buffers, client.room)) {
        Ok(Some(piece)) => Poll::Ready(Some(Ok(Frame::data(piece)))),
        Ok(None) if codec.has_trailers() => {
            let trailers = headers::read_trailers(&codec.trailers(), &[]);
            let trailers = trailers.ok_or_else(|| io::ErrorKind::InvalidData.into());
            Poll::Ready(Some(trailers.map(Frame::trailers)))
        }
        Ok(None) => Poll::Ready(None),
        Err(error) => Poll::Ready(Some(Err(error))),
    }
}

fn poll_http2(
    body: &mut RequestBody,
    context: &mut Context<'_>,
) -> Poll<Option<io::Result<Frame<BodyChunk>>>> {
    let frame = ready!(Pin::new(body).poll_frame(context));
    Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(BodyChunk::shared))))
}
