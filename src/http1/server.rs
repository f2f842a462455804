//! The client's side of HTTP/1.1: request heads collected, bodies read, answers written.
//!
//! A head is collected in a buffer of its own, as large as the bytes that came, and read strictly by `request_head.rs`; what
//! came behind it waits there until the body, or the next request, is asked for. So no byte is read in two ways, and
//! between two messages nothing is held but the socket.

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

/// A client's socket with the bytes that were read from it and not used.
#[derive(Debug)]
pub struct ServerCodec {
    /// The socket.
    pub io: Stream,
    /// A head as far as it came, with what came behind it.
    held: Vec<u8>,
    /// How much of `held` was searched in vain for the end of a head.
    scanned: usize,
    /// What `held` costs while the head is not complete.
    permit: Option<Permit>,
    /// What came behind the last head: of its body, then of the next request.
    behind: Bytes,
    /// What is still to come of the last message.
    pub due: BodyState,
    /// The client may wait to be asked for the body (`Expect: 100-continue`).
    pub awaits_word: bool,
    /// Interim answers (1xx), to be written before anything else.
    pub interim: Vec<u8>,
    /// The client was told that the connection stays.
    pub promised: bool,
    /// Bytes of bodies that were read, framing included; wraps.
    pub read: u32,
    /// [`ServerCodec::read`] where the body began.
    body_start: u32,
}

/// Bytes that one read may bring between two messages, while requests wait.
const FIRST: usize = 4 * 1024;

/// Bytes of a buffer for a head that comes in several pieces.
const GROWN: [usize; 3] = [4 * 1024, 16 * 1024, 64 * 1024];

/// Bytes of interim answers that wait for a client to take them without a permit of their own; what does not fit is
/// dropped, which a 1xx always may be. They take the place of the read buffer in the price of an exchange: it has none while
/// it waits for its answer.
pub const MAX_INTERIM: usize = 4 * 1024;

/// Bytes that are looked at for the end of a body whose client has closed its half.
const MAX_LOOK: usize = 256 * 1024;

impl ServerCodec {
    /// A gate before the first request.
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

    /// The bytes of a head as far as it came.
    pub fn unread(&self) -> &[u8] {
        &self.held
    }

    /// Whether bytes of a head are held.
    pub fn is_amid_head(&self) -> bool {
        let is_amid_record = || self.io.secured().is_some_and(Secured::is_amid_record);
        !self.held.is_empty() || !self.behind.is_empty() || is_amid_record()
    }

    /// Whether all of the last message was read.
    pub fn is_between(&self) -> bool {
        match &self.due {
            BodyState::Length(left) => *left == 0,
            BodyState::Chunked(body) => body.is_end(),
            BodyState::Close | BodyState::Broken => false,
        }
    }

    /// Whether bytes of the last message, or behind it, may be unread: then the close has to be a lingering one.
    pub fn is_amid_message(&self) -> bool {
        !self.is_between() || !self.behind.is_empty()
    }

    /// Whether the framing of the last body is broken: what follows is not worth reading.
    pub fn is_broken(&self) -> bool {
        matches!(self.due, BodyState::Broken)
    }

    /// What the head that is ready costs: the buffer that it stands in, and the list of its fields.
    pub fn head_size(&self, head: &Head) -> usize {
        self.held.capacity() + head.fields.capacity() * size_of::<Place>()
    }

    /// The target of the head that is ready.
    pub fn target(&self, head: &Head) -> &[u8] {
        self.held
            .get(head.skip + head.target.0..head.skip + head.target.1)
            .unwrap_or_default()
    }

    /// The Host of the head that is ready, as it is written; empty where there is none.
    pub fn host(&self, head: &Head) -> &[u8] {
        let bytes = self.held.get(head.skip..head.skip + head.len);
        let lines = bytes.unwrap_or_default().split(|byte| *byte == b'\n');
        let mut fields = lines.skip(1).filter_map(|line| line.split_at_checked(5));
        fields
            .find(|(name, _)| name.eq_ignore_ascii_case(b"host:"))
            .map_or(b"", |(_, value)| value.trim_ascii())
    }

    /// The text of the head that is ready.
    pub fn head_text(&self, head: &Head) -> &[u8] {
        self.held
            .get(head.skip..head.skip + head.len)
            .unwrap_or_default()
    }

    /// Whether the head that is ready begins with this method.
    pub fn has_method(&self, head: &Head, method: &[u8]) -> bool {
        self.held
            .get(head.skip..head.skip + head.target.0)
            .is_some_and(|line| line.trim_ascii_end() == method)
    }

    /// The socket, and what was read behind the last message: the first bytes of a tunnel.
    pub fn into_parts(self) -> (Stream, Bytes) {
        (self.io, self.behind)
    }

    /// The socket, and what was read of it that is no head of HTTP/1.1.
    pub fn into_unread(self) -> (Stream, Bytes) {
        (self.io, self.held.into())
    }

    /// While an exchange is in work nothing more is read, but a client that leaves is noticed: ready where it did. Behind
    /// bytes that must wait the end shows only when asked for, at every tick; so it does while the rest of a body must.
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

    /// While a whole head waits that is not opened yet: ready where the client has left. One that has only closed its half
    /// may have sent its body before.
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

    /// Whether the client has left in the middle of its body: its connection is broken, or it has closed its half and what
    /// is here cannot be the whole rest.
    fn is_lost(&self) -> bool {
        let socket = self.io.socket();
        if socket::is_dead(&socket) {
            return true;
        }
        if !socket::has_hung_up(&socket) {
            return false;
        }
        // of what is encrypted only the length is known, which is more than that of the data in it
        let secured = self.io.secured().map(|secured| secured.session().held());
        let unread = socket::unread(&socket) + secured.unwrap_or(0);
        match &self.due {
            BodyState::Length(left) => ((self.behind.len() + unread) as u64) < *left,
            BodyState::Chunked(_) if secured.is_some() => self.behind.is_empty() && unread == 0,
            BodyState::Chunked(_) => self.behind.is_empty() && !may_end_within(&socket, unread),
            BodyState::Close | BodyState::Broken => false,
        }
    }

    /// Collects a request head. `scratch` is the worker's, for one read; `max` the bytes that a head may have.
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
            // where memory is short a read brings little that belongs to a body
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

    /// Keeps bytes: exactly what came at first, for most heads come in one piece. A buffer that must grow does so in few
    /// sizes, for a flood of growing heads would leave holes of every size behind.
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

    /// Pays for a head that is not complete: twice its buffer, for it moves when it grows. Says whether there was enough.
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

    /// Reads the head that is ready; its body is what comes next.
    ///
    /// # Errors
    /// Those of [`request_head::parts`].
    pub fn open(&mut self, head: Head) -> Result<Box<RequestHead>, Failure> {
        let mut text = std::mem::take(&mut self.held);
        // apart, so that neither keeps the other's memory
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
            let room = left.map_or(room, |left| room.at_most(left));
            let (mut buffer, count) = ready!(read(&mut self.io, context, buffers, room))?;
            #[expect(clippy::cast_possible_truncation, reason = "it wraps")]
            let more = count as u32;
            self.read = self.read.wrapping_add(more);
            let taken = self.unframe(buffer.get_mut(..count).unwrap_or_default())?;
            if !taken.is_empty() {
                return Poll::Ready(Ok(Some(BodyChunk::pooled(buffer, taken.start, taken.end))));
            }
            if self.is_between() {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Finds the data in bytes that were read, and moves it together; keeps what is behind the body.
    #[inline]
    fn unframe(&mut self, bytes: &mut [u8]) -> io::Result<Range<usize>> {
        match &mut self.due {
            BodyState::Length(left) => {
                *left -= bytes.len() as u64;
                Ok(0..bytes.len())
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

    /// Takes what came of the body together with the head.
    fn take_behind(&mut self) -> io::Result<BodyChunk> {
        match &mut self.due {
            BodyState::Length(left) => {
                let here = self.behind.len();
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(here);
                *left -= count as u64;
                Ok(BodyChunk::shared(self.behind.split_to(count)))
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

    /// Whether fields stand behind the body; known at the end of it.
    pub fn has_trailers(&self) -> bool {
        matches!(&self.due, BodyState::Chunked(body) if body.has_trailers())
    }

    /// The trailer section of the body that was just read to its end.
    pub fn trailers(&mut self) -> Vec<u8> {
        match &mut self.due {
            BodyState::Chunked(body) => body.trailers(),
            _ => Vec::new(),
        }
    }

    /// Writes the interim answers that wait.
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

/// Whether a chunked body may end within the bytes that a socket holds: there it has the empty line behind its last
/// chunk, or the rest of it. Where they are too many for a look it may.
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

/// Reads once into a buffer that is taken only when bytes have come. The end is an error.
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
    use crate::memory::budget::Plan;

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
}
