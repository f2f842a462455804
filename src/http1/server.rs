//! The connection with an HTTP/1.1 client: collects request heads, reads bodies and writes interim answers.
//!
//! A head is collected in a buffer of its own, as large as the bytes that arrived, and parsed strictly by
//! `request_head.rs`. Bytes behind it are kept until the body, or the next request, is read. So no byte is read in two
//! ways, and between two messages only the socket is held.

use std::{
    io,
    ops::Range,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    connection_table::SlotRef,
    failure::Failure,
    fields::Place,
    http1::{
        framing::BodyState,
        request::RequestHead,
        request_head::{self, Arrival, Head},
    },
    memory::{
        budget::{Budget, Permit},
        buffers::{Buffer, Buffers, ReadSize},
        chunk::BodyChunk,
    },
    net::{Stream, secured::Secured},
    sys::socket,
};

/// A client's connection with the bytes that were read from it and not used.
#[derive(Debug)]
pub struct ServerCodec {
    /// The connection.
    pub io: Stream,
    /// A head as far as it has arrived, with the bytes behind it.
    held: Vec<u8>,
    /// How many bytes of `held` were searched for the end of a head without finding it.
    scanned: usize,
    /// Pays for `held` while the head is not complete.
    permit: Option<Permit>,
    /// Bytes behind the last head: of its body, then of the next request.
    behind: Bytes,
    /// The rest of the last message's body.
    pub due: BodyState,
    /// The client may wait to be asked for the body (`Expect: 100-continue`).
    pub awaits_word: bool,
    /// Interim answers (1xx) that are written before anything else.
    pub interim: Vec<u8>,
    /// The client was told that the connection stays open.
    pub promised: bool,
    /// Bytes of bodies that were read, with their framing; wraps.
    pub read: u32,
    /// The value of [`ServerCodec::read`] when the body began.
    body_start: u32,
}

/// Most bytes of a read between two messages while requests wait for memory.
const FIRST: usize = 4 * 1024;

/// Capacities of the buffer for a head that arrives in several pieces.
const GROWN: [usize; 3] = [4 * 1024, 16 * 1024, 64 * 1024];

/// Bytes of interim answers that may wait for a client without a permit of their own; further ones are dropped, as a
/// 1xx always may be. They take the place of the read buffer in the price of an exchange, which has none while it waits
/// for its answer.
pub const MAX_INTERIM: usize = 4 * 1024;

/// Most bytes of a socket that are searched for the end of a body after the client has closed its half.
const MAX_LOOK: usize = 256 * 1024;

impl ServerCodec {
    /// A connection before its first request.
    pub fn new(io: Stream) -> ServerCodec {
        ServerCodec {
            io,
            held: Vec::new(),
            scanned: 0,
            permit: None,
            behind: Bytes::new(),
            due: BodyState::Length(0),
            awaits_word: false,
            interim: Vec::new(),
            promised: false,
            read: 0,
            body_start: 0,
        }
    }

    /// The bytes of a head as far as it has arrived.
    pub fn unread(&self) -> &[u8] {
        &self.held
    }

    /// Whether part of a head has arrived.
    pub fn is_amid_head(&self) -> bool {
        let is_amid_record = || self.io.secured().is_some_and(Secured::is_amid_record);
        !self.held.is_empty() || !self.behind.is_empty() || is_amid_record()
    }

    /// Whether the last message was read to its end.
    pub fn is_between(&self) -> bool {
        match &self.due {
            BodyState::Length(left) => *left == 0,
            BodyState::Chunked(body) => body.is_end(),
            BodyState::Close | BodyState::Broken => false,
        }
    }

    /// Whether bytes of the last message, or behind it, may be unread: then the connection needs a lingering close.
    pub fn is_amid_message(&self) -> bool {
        !self.is_between() || !self.behind.is_empty()
    }

    /// Whether the framing of the last body is broken: what follows is not worth reading.
    pub fn is_broken(&self) -> bool {
        matches!(self.due, BodyState::Broken)
    }

    /// Bytes that the complete head holds: its buffer and the list of its fields.
    pub fn head_size(&self, head: &Head) -> usize {
        self.held.capacity() + head.fields.capacity() * size_of::<Place>()
    }

    /// The target of the complete head.
    pub fn target(&self, head: &Head) -> &[u8] {
        self.held
            .get(head.skip + head.target.0..head.skip + head.target.1)
            .unwrap_or_default()
    }

    /// The Host of the complete head, as it was sent; empty where there is none.
    pub fn host(&self, head: &Head) -> &[u8] {
        let bytes = self.held.get(head.skip..head.skip + head.len);
        let lines = bytes.unwrap_or_default().split(|byte| *byte == b'\n');
        let mut fields = lines.skip(1).filter_map(|line| line.split_at_checked(5));
        fields
            .find(|(name, _)| name.eq_ignore_ascii_case(b"host:"))
            .map_or(b"", |(_, value)| value.trim_ascii())
    }

    /// The text of the complete head.
    pub fn head_text(&self, head: &Head) -> &[u8] {
        self.held
            .get(head.skip..head.skip + head.len)
            .unwrap_or_default()
    }

    /// Whether the complete head has this method.
    pub fn has_method(&self, head: &Head, method: &[u8]) -> bool {
        self.held
            .get(head.skip..head.skip + head.target.0)
            .is_some_and(|line| line.trim_ascii_end() == method)
    }

    /// The connection, and the bytes that were read behind the last message: the first ones of a tunnel.
    pub fn into_parts(self) -> (Stream, Bytes) {
        (self.io, self.behind)
    }

    /// The connection alone. What was read and not used is freed now, and not when the caller's statement ends, which may wait.
    pub fn into_stream(self) -> Stream {
        self.io
    }

    /// The connection, and the bytes that were read and are not an HTTP/1.1 head.
    pub fn into_unread(self) -> (Stream, Bytes) {
        (self.io, self.held.into())
    }

    /// Ready when the client has left during an exchange, in which nothing more is read. Where unread bytes stand
    /// before the end of the connection, no event reports that end; so it is looked for at each tick.
    pub fn poll_gone(&mut self, context: &mut Context<'_>, slot: &SlotRef) -> Poll<()> {
        if !self.is_between() {
            slot.look_back(true);
            let is_lost = slot.is_to_look() && self.is_lost();
            return if is_lost {
                Poll::Ready(())
            } else {
                Poll::Pending
            };
        }
        if self.behind.is_empty() {
            match ready!(self.io.poll_peek(context)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        slot.look_back(true);
        if socket::has_hung_up(&self.io.socket()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Ready when the client has left while its complete head waits to be admitted. A client that has only closed its
    /// half may have sent its body before that.
    pub fn poll_gone_before(
        &mut self,
        context: &mut Context<'_>,
        slot: &SlotRef,
        has_body: bool,
    ) -> Poll<()> {
        if !has_body {
            return self.poll_gone(context, slot);
        }
        slot.look_back(true);
        if slot.is_to_look() && socket::is_dead(&self.io.socket()) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Whether the client has left in the middle of its body: its connection is broken, or it has closed its half and
    /// the bytes that have arrived cannot be all of the rest.
    fn is_lost(&self) -> bool {
        let socket = self.io.socket();
        if socket::is_dead(&socket) {
            return true;
        }
        if !socket::has_hung_up(&socket) {
            return false;
        }
        // only the length of encrypted bytes is known, which is more than that of their data
        let secured = self.io.secured().map(|secured| secured.session().held());
        let unread = socket::unread(&socket) + secured.unwrap_or(0);
        match &self.due {
            BodyState::Length(left) => ((self.behind.len() + unread) as u64) < *left,
            BodyState::Chunked(_) if secured.is_some() => self.behind.is_empty() && unread == 0,
            BodyState::Chunked(_) => self.behind.is_empty() && !may_end_within(&socket, unread),
            BodyState::Close | BodyState::Broken => false,
        }
    }

    /// Collects a request head of at most `max` bytes. `scratch` is the worker's buffer for one read.
    pub fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut [u8],
        budget: &Rc<Budget>,
        max: usize,
    ) -> Poll<io::Result<Arrival>> {
        if !self.behind.is_empty() {
            self.held = std::mem::take(&mut self.behind).into();
        }
        loop {
            if self.held.len() > self.scanned {
                match request_head::head(&self.held, &mut self.scanned, max) {
                    Ok(Some(head)) => {
                        self.scanned = 0;
                        self.permit = None;
                        return Poll::Ready(Ok(Arrival::Head(head)));
                    }
                    Ok(None) if !self.pay(budget) => {
                        return Poll::Ready(Ok(Arrival::Refused(Failure::NoMemory)));
                    }
                    Ok(None) => {}
                    Err(failure) => return Poll::Ready(Ok(Arrival::Refused(failure))),
                }
            }
            // while memory is wanted, a read should take little of a body
            let room = if budget.is_wanted() || budget.takes_turns() {
                scratch.get_mut(..FIRST)
            } else {
                Some(&mut *scratch)
            };
            let mut buffer = ReadBuf::new(room.unwrap_or_default());
            ready!(Pin::new(&mut self.io).poll_read(context, &mut buffer))?;
            let bytes = buffer.filled();
            if bytes.is_empty() {
                return Poll::Ready(Ok(Arrival::End));
            }
            self.hold(bytes);
        }
    }

    /// Keeps bytes. The first buffer has exactly their size, because most heads arrive in one piece. A buffer that must
    /// grow does so in few sizes, because a flood of growing heads would leave holes of every size in the heap.
    fn hold(&mut self, bytes: &[u8]) {
        let needed = self.held.len() + bytes.len();
        if needed > self.held.capacity() {
            let target = if self.held.is_empty() {
                needed
            } else {
                GROWN
                    .into_iter()
                    .find(|size| *size >= needed)
                    .unwrap_or(2 * needed)
            };
            self.held.reserve_exact(target - self.held.len());
        }
        self.held.extend_from_slice(bytes);
    }

    /// Pays for an incomplete head: twice its buffer, because a buffer that grows is copied. Returns whether memory was
    /// left.
    fn pay(&mut self, budget: &Rc<Budget>) -> bool {
        let price = 2 * self.held.capacity() as u64;
        if self
            .permit
            .as_ref()
            .is_none_or(|permit| permit.bytes() < price)
        {
            self.permit = None;
            self.permit = budget.head(price);
        }
        self.permit.is_some()
    }

    /// Parses the complete head; the body is read next.
    ///
    /// # Errors
    /// Those of [`request_head::parts`].
    pub fn open(&mut self, head: Head) -> Result<Box<RequestHead>, Failure> {
        let mut text = std::mem::take(&mut self.held);
        // in two buffers, so that neither keeps the other's memory
        self.behind = text.split_off(head.skip + head.len).into();
        text.drain(..head.skip);
        self.due = BodyState::of(head.framing);
        if let Some(secured) = self.io.secured_mut() {
            secured.set_paid(true);
        }
        self.awaits_word = head.expects && self.behind.is_empty() && !self.is_between();
        self.promised = false;
        self.body_start = self.read;
        request_head::parts(text, head)
    }

    /// The next bytes of the body; `None` at its end.
    ///
    /// # Errors
    /// The connection broke or ended early, or the framing is broken.
    pub fn poll_body(
        &mut self,
        context: &mut Context<'_>,
        buffers: &Rc<Buffers>,
        room: ReadSize,
    ) -> Poll<io::Result<Option<BodyChunk>>> {
        if self.is_between() {
            return Poll::Ready(Ok(None));
        }
        if std::mem::take(&mut self.awaits_word) {
            self.interim
                .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        loop {
            if !self.behind.is_empty() {
                if let Some(piece) = self.read_on(context, buffers, room) {
                    return Poll::Ready(Ok(Some(piece)));
                }
                let piece = self.take_behind()?;
                if !piece.is_empty() || self.is_between() {
                    return Poll::Ready(Ok((!piece.is_empty()).then_some(piece)));
                }
                continue;
            }
            let left = match &self.due {
                BodyState::Length(left) => Some(*left),
                _ => None,
            };
            let passed = self.read.wrapping_sub(self.body_start);
            ready!(self.io.poll_expect(context, left, passed.into()));
            let room = left.map_or(room, |left| room.at_most(one_more(left)));
            let (mut buffer, count) = ready!(read(&mut self.io, context, buffers, room))?;
            self.count(count);
            let taken = self.unframe(buffer.get_mut(..count).unwrap_or_default())?;
            if !taken.is_empty() {
                return Poll::Ready(Ok(Some(BodyChunk::pooled(buffer, taken.start, taken.end))));
            }
            if self.is_between() {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Reads what follows the bytes that arrived with the head, so that all of it leaves in one piece. `None` where the
    /// length is not known, nothing more has come, or there is no room for it.
    fn read_on(
        &mut self,
        context: &mut Context<'_>,
        buffers: &Rc<Buffers>,
        room: ReadSize,
    ) -> Option<BodyChunk> {
        let here = self.behind.len();
        let BodyState::Length(left) = self.due else {
            return None;
        };
        let rest = left.checked_sub(here as u64).filter(|rest| *rest > 0)?;
        let passed = self.read.wrapping_sub(self.body_start);
        let expected = u64::from(passed) + here as u64;
        if self
            .io
            .poll_expect(context, Some(rest), expected)
            .is_pending()
            || self.io.poll_read_ready(context).is_pending()
        {
            return None;
        }
        let room = room.at_most(one_more(left));
        let mut buffer = buffers.take(room);
        let len = room.bound(buffer.len());
        let mut space = ReadBuf::new(buffer.get_mut(..len)?);
        if space.remaining() <= here {
            return None;
        }
        space.put_slice(&self.behind);
        // the end and an error are found by the next read
        let _ = Pin::new(&mut self.io).poll_read(context, &mut space);
        let count = space.filled().len();
        if count == here {
            return None;
        }
        self.behind = Bytes::new();
        self.count(count);
        let taken = self.unframe(buffer.get_mut(..count)?).ok()?;
        Some(BodyChunk::pooled(buffer, taken.start, taken.end))
    }

    /// Counts bytes of a body that were read.
    fn count(&mut self, count: usize) {
        #[expect(clippy::cast_possible_truncation, reason = "it wraps")]
        let more = count as u32;
        self.read = self.read.wrapping_add(more);
    }

    /// Finds the data in bytes that were read, and moves it together; keeps what is behind the body.
    #[inline]
    fn unframe(&mut self, bytes: &mut [u8]) -> io::Result<Range<usize>> {
        match &mut self.due {
            BodyState::Length(left) => {
                let data = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= data as u64;
                self.behind = Bytes::copy_from_slice(bytes.get(data..).unwrap_or_default());
                Ok(0..data)
            }
            BodyState::Chunked(body) => match body.take(bytes) {
                Ok(taken) => {
                    let rest = bytes.get(taken.used..).unwrap_or_default();
                    self.behind = Bytes::copy_from_slice(rest);
                    Ok(taken.data)
                }
                Err(broken) => {
                    self.due = BodyState::Broken;
                    Err(io::Error::other(broken.0))
                }
            },
            // no request ends with the close of its connection
            BodyState::Close | BodyState::Broken => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Takes the bytes of the body that arrived with the head.
    fn take_behind(&mut self) -> io::Result<BodyChunk> {
        match &mut self.due {
            BodyState::Length(left) => {
                let here = self.behind.len();
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(here);
                *left -= count as u64;
                let piece = self.behind.split_to(count);
                self.count(count);
                Ok(BodyChunk::shared(piece))
            }
            BodyState::Chunked(body) => {
                let mut buffer = std::mem::take(&mut self.behind).to_vec();
                match body.take(&mut buffer) {
                    Ok(taken) => {
                        let mut bytes = Bytes::from(buffer);
                        self.behind = bytes.split_off(taken.used);
                        Ok(BodyChunk::shared(bytes.slice(taken.data)))
                    }
                    Err(broken) => {
                        self.due = BodyState::Broken;
                        Err(io::Error::other(broken.0))
                    }
                }
            }
            BodyState::Close | BodyState::Broken => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Whether the body has trailers; known at its end.
    pub fn has_trailers(&self) -> bool {
        matches!(&self.due, BodyState::Chunked(body) if body.has_trailers())
    }

    /// The trailer section of a body that was read to its end.
    pub fn trailers(&mut self) -> Vec<u8> {
        match &mut self.due {
            BodyState::Chunked(body) => body.trailers(),
            _ => Vec::new(),
        }
    }

    /// Writes the interim answers.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn poll_interim(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.interim.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(context, &self.interim))?;
            self.interim.drain(..written);
            if self.interim.is_empty() {
                self.interim = Vec::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Whether a chunked body may end within the `unread` bytes of a socket: they have the empty line behind the last
/// chunk, or the rest of that line, or are more than [`MAX_LOOK`].
fn may_end_within(socket: &SockRef<'_>, unread: usize) -> bool {
    if unread > MAX_LOOK {
        return true;
    }
    let bytes = socket::peek(socket, unread);
    let is_rest = bytes
        .first()
        .is_some_and(|byte| matches!(byte, b'\r' | b'\n'));
    is_rest || bytes.windows(4).any(|four| four == b"\r\n\r\n")
}

/// How many bytes to read of a body of which `left` are due: one more, because a read that does not fill its buffer
/// shows that nothing else has come, and saves the call that would find that out.
fn one_more(left: u64) -> u64 {
    left.saturating_add(1)
}

/// Reads once, into a buffer that is taken only when bytes have arrived. The end of the connection is an error.
pub fn read(
    io: &mut Stream,
    context: &mut Context<'_>,
    buffers: &Rc<Buffers>,
    room: ReadSize,
) -> Poll<io::Result<(Buffer, usize)>> {
    ready!(io.poll_read_ready(context))?;
    let mut buffer = buffers.take(room);
    let len = room.bound(buffer.len());
    let mut space = ReadBuf::new(buffer.get_mut(..len).unwrap_or_default());
    let result = Pin::new(io).poll_read(context, &mut space);
    let count = space.filled().len();
    if count > 0 {
        return Poll::Ready(Ok((buffer, count)));
    }
    ready!(result)?;
    Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{io::AsyncWriteExt as _, net::UnixStream, runtime::Builder};

    use super::*;
    use crate::memory::plan::Plan;

    #[test]
    fn a_head_that_waits_costs_its_buffer_and_the_list_of_its_fields() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a:\r\n".repeat(200));
        runtime.block_on(async {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.write_all(text.as_bytes()).await.unwrap();
            let budget = Budget::new(Plan::new(None, 1, None));
            let mut codec = ServerCodec::new(Stream::unix(server, None));
            let mut scratch = [0; 4096];
            let arrival = poll_fn(|context| codec.poll_head(context, &mut scratch, &budget, 4096));
            let Ok(Arrival::Head(head)) = arrival.await else {
                panic!("{text}")
            };
            assert!(codec.head_size(&head) >= text.len() + 201 * 16);
        });
    }

    #[test]
    fn what_arrived_with_the_head_leaves_with_what_follows_and_no_byte_of_the_next_request_is_lost()
    {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let text = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n";
        runtime.block_on(async {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.write_all(text.as_bytes()).await.unwrap();
            client
                .write_all(b"0123456789GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                .await
                .unwrap();
            let budget = Budget::new(Plan::new(None, 1, None));
            let buffers = Rc::new(Buffers::within(&budget));
            let mut codec = ServerCodec::new(Stream::unix(server, None));
            let mut scratch = vec![0; text.len() + 4];
            let arrival = poll_fn(|context| codec.poll_head(context, &mut scratch, &budget, 4096));
            let Ok(Arrival::Head(head)) = arrival.await else {
                panic!("{text}")
            };
            codec.open(head).unwrap();
            assert_eq!(&*codec.behind, b"0123");
            let room = ReadSize::new(4096, false);
            let piece = poll_fn(|context| codec.poll_body(context, &buffers, room));
            assert_eq!(piece.await.unwrap().unwrap().bytes(), b"0123456789");
            assert_eq!(
                &*codec.behind, b"G",
                "one byte more shows whether that was all"
            );
            let end = poll_fn(|context| codec.poll_body(context, &buffers, room)).await;
            assert!(end.unwrap().is_none());
            let arrival = poll_fn(|context| codec.poll_head(context, &mut scratch, &budget, 4096));
            let Ok(Arrival::Head(next)) = arrival.await else {
                panic!("the next request")
            };
            assert!(codec.has_method(&next, b"GET"));
        });
    }
}
