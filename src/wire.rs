//! The upstream half of HTTP/1.1: a request written, an answer read, both at the same time.
//!
//! A codec of our own, because what it holds is what an exchange costs: one buffer, taken when bytes are there and given
//! back when they are gone; no task, no channel. Requests were checked before they came here; `answer.rs` reads the head
//! of an answer.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, HeaderName, Method};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    answer::{self, Delimiter, Head, MAX_HEAD},
    body::{Outbox, Piece, Turn},
    budget::{Buffer, Buffers, LARGE_HEAD, NARROW, Room, step},
    deadline::{Deadline, Limits, Wait},
    dial::{Io, Way},
    gate::Client,
    headers,
    outcome::Outcome,
    pool::Lease,
};

/// Bytes above which a body is long: an answer that a narrow buffer does not take in, and what is worth wider buffers
/// on both sides; a client's connection ends after such a request.
const LONG: (u64, u64) = (2 * NARROW as u64, 32 * 1024);

/// A request on its way to the upstream.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four facts that are true or not, in any mix"
)]
pub struct Upload {
    outbox: Outbox,
    /// More of the body is to come from the client.
    has_more: bool,
    /// TLS may hold bytes that the kernel does not have yet.
    unflushed: bool,
    chunked: bool,
    /// Bytes that the body may have.
    limit: u64,
    /// Bytes of body that were taken from the client.
    pub taken: u64,
    /// Bytes that were written, head and framing included.
    pub sent: u64,
    /// The client is to be asked for its body first (`Expect: 100-continue`).
    held_back: bool,
    withheld: Vec<HeaderName>,
}

/// What follows the head of a request.
#[derive(Debug, Default)]
pub struct UploadBody {
    /// Its body has no length.
    pub chunked: bool,
    /// Bytes that it may have.
    pub limit: Option<u64>,
    /// The upstream is asked before the client is (`Expect: 100-continue`).
    pub held_back: bool,
    /// Fields that do not pass behind it.
    pub withheld: Vec<HeaderName>,
}

/// Why a request does not get through to its end.
#[derive(Debug)]
pub enum UploadError {
    /// The client's body is over the limit.
    TooLarge,
    /// The client's body is broken or cut short.
    Client,
    /// The upstream takes no more; it may have answered early.
    Upstream,
}

impl Upload {
    /// A request whose head is `head`; without a body where that is `None`.
    pub fn new(head: Vec<u8>, body: Option<UploadBody>) -> Upload {
        let has_more = body.is_some();
        let body = body.unwrap_or_default();
        Upload {
            outbox: Outbox::new(head),
            has_more,
            unflushed: false,
            chunked: body.chunked,
            limit: body.limit.unwrap_or(u64::MAX),
            taken: 0,
            sent: 0,
            held_back: body.held_back,
            withheld: body.withheld,
        }
    }

    /// Whether nothing of the body was taken: the same bytes can be sent once more.
    pub fn can_rewind(&self) -> bool {
        self.taken == 0 && self.outbox.can_rewind()
    }

    /// Starts again, for another connection.
    pub fn rewind(&mut self) {
        self.unflushed = false;
        self.outbox.rewind();
    }

    /// Lets the body go: the upstream wants it, or was asked long enough.
    pub fn release(&mut self) {
        self.held_back = false;
    }

    /// Whether the body waits for the upstream's word.
    pub fn is_held_back(&self) -> bool {
        self.held_back && self.is_written()
    }

    /// Whether it waits for the client, and not for the upstream.
    pub fn waits_for_client(&self) -> bool {
        self.is_written() && !self.held_back && self.has_more
    }

    /// Whether all of it is with the kernel.
    pub fn is_done(&self) -> bool {
        !self.has_more && self.is_written()
    }

    fn is_written(&self) -> bool {
        self.outbox.is_empty() && !self.unflushed
    }

    /// Sends what can be sent; ready when all of it is with the kernel.
    ///
    /// # Errors
    /// [`UploadError`].
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        io: &mut Io,
        client: &Client<'_>,
    ) -> Poll<Result<(), UploadError>> {
        let mut turn = Turn::new();
        loop {
            if self.has_more && self.outbox.is_fresh() && !self.held_back {
                // what is here of the body leaves together with the head
                let _ = self.poll_body(context, client)?;
            }
            while !self.outbox.is_empty() {
                let slices = self.outbox.slices();
                let count = ready!(Pin::new(&mut *io).poll_write_vectored(context, &slices))
                    .map_err(|_| UploadError::Upstream)?;
                if count == 0 {
                    return Poll::Ready(Err(UploadError::Upstream));
                }
                self.sent += count as u64;
                self.outbox.wrote(count);
                self.unflushed = matches!(io, Io::Tls(_));
            }
            if self.unflushed {
                ready!(Pin::new(&mut *io).poll_flush(context))
                    .map_err(|_| UploadError::Upstream)?;
                self.unflushed = false;
            }
            if !self.has_more {
                return Poll::Ready(Ok(()));
            }
            if self.held_back {
                return Poll::Pending;
            }
            ready!(turn.poll_next(context));
            ready!(self.poll_body(context, client)?);
        }
    }

    /// Takes the next piece of the client's body, framed as the upstream is told.
    fn poll_body(
        &mut self,
        context: &mut Context<'_>,
        client: &Client<'_>,
    ) -> Poll<Result<(), UploadError>> {
        match ready!(client.poll_body(context)) {
            Err(_) => return Poll::Ready(Err(UploadError::Client)),
            Ok(Some(piece)) => {
                self.taken += piece.len() as u64;
                if self.taken > self.limit {
                    return Poll::Ready(Err(UploadError::TooLarge));
                }
                self.outbox.put(piece, self.chunked);
                self.has_more = !client.is_between();
                if self.chunked && !self.has_more {
                    if client.has_trailers() {
                        self.has_more = true;
                    } else {
                        self.outbox.end_chunks();
                    }
                }
            }
            Ok(None) => {
                self.has_more = false;
                if self.chunked {
                    self.end(&client.trailers())?;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The last chunk, and those trailers that may pass.
    fn end(&mut self, section: &[u8]) -> Result<(), UploadError> {
        let mut text = b"0\r\n".to_vec();
        if section.len() > 2 {
            let trailers =
                headers::read_trailers(section, &self.withheld).ok_or(UploadError::Client)?;
            for (name, value) in &trailers {
                headers::line(&mut text, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        text.extend_from_slice(b"\r\n");
        self.outbox.frame(&text);
        Ok(())
    }
}

/// An upstream connection with the bytes that were read from it and not used yet.
#[derive(Debug)]
pub struct Upstream {
    /// The connection.
    pub lease: Lease,
    /// A buffer with bytes `start..end` of use; empty while nothing is there.
    pub buffer: Buffer,
    /// Where the bytes of use begin.
    pub start: usize,
    /// Where they end.
    pub end: usize,
    /// How many of them were looked at for a head.
    scanned: usize,
    room: Room,
}

impl Upstream {
    /// A connection from which nothing was read yet.
    pub fn new(lease: Lease, room: Room) -> Upstream {
        Upstream {
            lease,
            buffer: Buffer::default(),
            start: 0,
            end: 0,
            scanned: 0,
            room,
        }
    }

    /// Takes the head of an answer to `method` out of the unread bytes; `None` where it is not whole yet.
    ///
    /// # Errors
    /// Those of [`answer::read_head`].
    pub fn read_head(&mut self, method: &Method) -> Result<Option<Head>, &'static str> {
        let unread = self.buffer.get(self.start..self.end).unwrap_or_default();
        if !answer::is_due(unread, &mut self.scanned) {
            return Ok(None);
        }
        let head = answer::read_head(unread, method)?;
        if let Some(head) = &head {
            self.start += head.len;
            self.scanned = 0;
        }
        Ok(head)
    }

    /// Lets a head of `len` bytes that was taken out be read once more.
    pub fn put_back_head(&mut self, len: usize) {
        self.start -= len;
        self.scanned = 0;
    }

    /// Bytes that were read and not used.
    pub fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads once behind what is there, into a buffer that is taken only when bytes have come. Gives how many came; 0 at the end.
    pub fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        buffers: &Rc<Buffers>,
    ) -> Poll<io::Result<usize>> {
        let Some(io) = &mut self.lease.io else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if self.start == self.end {
            if self.buffer.has_grown() {
                self.buffer = Buffer::default();
            }
            ready!(io.poll_read_ready(context))?;
            self.start = 0;
            self.end = 0;
            if self.buffer.is_empty() {
                self.buffer = buffers.take(self.room);
            }
        } else if self.end == self.buffer.len() && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        } else if self.end == self.buffer.len() {
            // a head; the caller has paid for one beyond `LARGE_HEAD`
            let larger = if self.end < LARGE_HEAD {
                (2 * self.end).min(LARGE_HEAD)
            } else {
                step(self.end + 1).min(MAX_HEAD)
            };
            self.buffer.grow(larger.max(self.end + 1));
        }
        let mut space = ReadBuf::new(self.buffer.get_mut(self.end..).unwrap_or_default());
        let result = Pin::new(io).poll_read(context, &mut space);
        let count = space.filled().len();
        if result.is_pending() && self.start == self.end {
            self.release();
        }
        ready!(result)?;
        self.end += count;
        Poll::Ready(Ok(count))
    }

    /// Lets the kernel hold more of a long body, in both sockets: `len` bytes of it have passed, or are known to come;
    /// `way` is this socket's.
    pub fn widen(&mut self, client: &Client<'_>, way: Way, len: u64) {
        if way == Way::In && len > LONG.0 {
            self.lease.widen(Way::In);
        }
        if len > LONG.1 {
            let theirs = if way == Way::In { Way::Out } else { Way::In };
            client.widen(theirs, self.lease.budget());
            self.lease.widen(way);
        }
    }

    /// Whether what is here of a head is more than the price of an exchange covers.
    pub fn has_large_head(&self) -> bool {
        self.end - self.start >= LARGE_HEAD
    }

    /// Behind a head: bytes that came with it do not keep the buffer that grew for it. Gives how many there are, in a
    /// buffer of their own.
    pub fn shrink(&mut self) -> u32 {
        self.release();
        if !self.buffer.has_grown() {
            return 0;
        }
        self.buffer = self.unread().to_vec().into();
        (self.start, self.end) = (0, self.buffer.len());
        u32::try_from(self.end).unwrap_or(u32::MAX)
    }

    /// Gives the buffer back where nothing of use is in it.
    pub fn release(&mut self) {
        if self.start == self.end {
            self.buffer = Buffer::default();
            self.start = 0;
            self.end = 0;
        }
    }
}

/// The body of an answer on its way to the client.
#[derive(Debug)]
pub struct Download {
    /// `None` once the connection was given back or closed.
    upstream: Option<Upstream>,
    upload: Option<Upload>,
    delimiter: Delimiter,
    persistent: bool,
    /// The trailers behind a chunked body, once it has ended.
    trailers: Option<HeaderMap>,
    passes_trailers: bool,
    /// Fields that do not pass behind it.
    withheld: Vec<HeaderName>,
    /// The time-outs of what is left of the request.
    limits: Limits,
    deadline: Deadline,
}

/// What a body consists of.
#[derive(Debug)]
pub enum Got {
    /// Some of its bytes.
    Data(Piece),
    /// The fields behind a chunked body.
    Trailers(HeaderMap),
}

impl Download {
    /// How long the client may give no byte of what it still owes; `None` = no limit.
    pub fn read_timeout(&self) -> Option<Duration> {
        self.limits.read()
    }

    /// The rest of an answer; `upload` is the request where it is not sent to its end yet, `now` the park's time.
    pub fn new(
        upstream: Upstream,
        upload: Option<Upload>,
        head: Head,
        passes_trailers: bool,
        limits: Limits,
        now: u32,
    ) -> Download {
        let mut download = Download {
            upstream: Some(upstream),
            upload,
            delimiter: head.delimiter,
            persistent: head.persistent,
            trailers: None,
            passes_trailers,
            withheld: head.withheld,
            limits,
            deadline: Deadline::default(),
        };
        if matches!(download.delimiter, Delimiter::Length(0)) {
            download.finish(now);
        }
        download
    }

    /// Whether the client has all of it.
    pub fn is_end(&self) -> bool {
        self.upstream.is_none() && self.trailers.is_none()
    }

    /// How much is left; `None` where nobody knows.
    pub fn remaining(&self) -> Option<u64> {
        match &self.delimiter {
            Delimiter::Length(left) => Some(*left),
            _ => None,
        }
    }

    /// The next part; `None` at the end. A body that breaks off is an error, never an end.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        client: &Client<'_>,
    ) -> Poll<Option<io::Result<Got>>> {
        loop {
            let Some(upstream) = &mut self.upstream else {
                return Poll::Ready(
                    self.trailers
                        .take()
                        .map(|trailers| Ok(Got::Trailers(trailers))),
                );
            };
            if upstream.start == upstream.end {
                let left = match &self.delimiter {
                    Delimiter::Length(left) => *left,
                    _ => 0,
                };
                let len = client.ride.sent.get().saturating_add(left);
                upstream.widen(client, Way::In, len);
                match ready!(upstream.poll_fill(context, client.buffers)) {
                    Err(error) => return Poll::Ready(Some(Err(self.abandon(error)))),
                    Ok(0) => {
                        if matches!(self.delimiter, Delimiter::Close) {
                            self.finish(client.ride.watch.now());
                            return Poll::Ready(None);
                        }
                        return Poll::Ready(Some(Err(
                            self.abandon(io::ErrorKind::UnexpectedEof.into())
                        )));
                    }
                    Ok(_) => {}
                }
            }
            match self.take(client) {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(Got::Data(piece)))),
                Ok(None) => {}
                Err(reason) => {
                    return Poll::Ready(Some(Err(self.abandon(io::Error::other(reason)))));
                }
            }
        }
    }

    /// Sends on what is left of the request. An upstream that takes no more may still answer.
    ///
    /// # Errors
    /// A client that breaks off, or gives no byte for `read_timeout`, has no use for an answer. Nor goes it on where the
    /// upstream takes no byte of the request, and gives none, for `write_timeout`.
    pub fn poll_upload(
        &mut self,
        context: &mut Context<'_>,
        client: &Client<'_>,
    ) -> io::Result<()> {
        let (Some(upload), Some(upstream)) = (&mut self.upload, &mut self.upstream) else {
            return Ok(());
        };
        upstream.widen(client, Way::Out, client.expects());
        let Some(io) = &mut upstream.lease.io else {
            return Ok(());
        };
        let watch = client.ride.watch;
        let ended = match upload.poll(context, io, client) {
            Poll::Pending => {
                let wait = if upload.waits_for_client() {
                    Wait::Client(client.bytes_read())
                } else {
                    Wait::Upstream(upload.sent.wrapping_add(client.ride.sent.get()))
                };
                if self.deadline.is_past(watch, wait, &self.limits, Some(io)) {
                    client.ride.note(Outcome::BodyTimedOut);
                    return Err(self.abandon(io::ErrorKind::TimedOut.into()));
                }
                return Ok(());
            }
            Poll::Ready(Ok(())) => Ok(()),
            Poll::Ready(Err(UploadError::Upstream)) => {
                self.persistent = false;
                Ok(())
            }
            Poll::Ready(Err(error @ (UploadError::Client | UploadError::TooLarge))) => {
                client.ride.note(match error {
                    UploadError::TooLarge => Outcome::BodyTooLarge,
                    _ => Outcome::BodyBroken,
                });
                Err(self.abandon(io::ErrorKind::ConnectionAborted.into()))
            }
        };
        self.upload = None;
        watch.uploads(false);
        self.deadline.end(watch);
        ended
    }

    /// Takes what is of use out of the buffer.
    fn take(&mut self, client: &Client<'_>) -> Result<Option<Piece>, &'static str> {
        let Some(upstream) = &mut self.upstream else {
            return Ok(None);
        };
        let (start, end) = (upstream.start, upstream.end);
        let (data, used) = match &mut self.delimiter {
            Delimiter::Close => (start..end, end),
            Delimiter::Length(left) => {
                let count = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(end - start);
                *left -= count as u64;
                (start..start + count, start + count)
            }
            Delimiter::Chunked(body) => {
                let bytes = upstream.buffer.get_mut(start..end).unwrap_or_default();
                let taken = body.take(bytes).map_err(|broken| broken.0)?;
                let data = start + taken.data.start..start + taken.data.end;
                (data, start + taken.used)
            }
        };
        let piece = Piece::pooled(std::mem::take(&mut upstream.buffer), data.start, data.end);
        (upstream.start, upstream.end) = (0, 0);
        let ended = match &mut self.delimiter {
            Delimiter::Length(left) => *left == 0,
            Delimiter::Chunked(body) if body.is_end() => {
                let section = body.trailers();
                if self.passes_trailers && section.len() > 2 {
                    let trailers = headers::read_trailers(&section, &self.withheld)
                        .ok_or("malformed trailers")?;
                    self.trailers = (!trailers.is_empty()).then_some(trailers);
                }
                true
            }
            Delimiter::Close | Delimiter::Chunked(_) => false,
        };
        if ended {
            // what stands behind an answer belongs to nobody
            self.persistent &= used == end;
            self.finish(client.ride.watch.now());
        }
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// The answer is whole: the connection goes back, if both sides are through with it.
    fn finish(&mut self, now: u32) {
        let Some(upstream) = self.upstream.take() else {
            return;
        };
        if self.persistent
            && self.upload.as_ref().is_none_or(Upload::is_done)
            && upstream.start == upstream.end
        {
            upstream.lease.give_back(now);
        }
    }

    fn abandon(&mut self, error: io::Error) -> io::Error {
        self.upstream = None;
        error
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use crate::stage::Stage;

    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\nA: b\r\n\r\n5;a=b\r\nhello\r\n06\r\n world\r\n0\r\nX: y\r\nZ:\r\n\r\n";
    const LENGTH: &str =
        "HTTP/1.1 200 Fine\r\nContent-Length: 11\r\nA: b\r\nA: c\r\n\r\nhello world";
    const CLOSE: &str = "HTTP/1.1 200 OK\r\nConnection: x\r\nX: y\r\n\r\nhello world";
    const EMPTY: &str = "HTTP/1.1 304 Not Modified\r\nContent-Length: 11\r\nETag: a\r\n\r\n";

    #[test]
    fn an_answer_reads_the_same_however_it_is_split() {
        let stage = Stage::new();
        for (text, method, body, kept) in [
            (CHUNKED, Method::GET, "hello world", true),
            (LENGTH, Method::GET, "hello world", true),
            (CLOSE, Method::GET, "hello world", false),
            (EMPTY, Method::GET, "", true),
            ("HTTP/1.1 204 None\r\n\r\n", Method::PUT, "", true),
            (
                LENGTH.strip_suffix("hello world").unwrap(),
                Method::HEAD,
                "",
                true,
            ),
            (&format!("{LENGTH}!"), Method::GET, "hello world", false),
        ] {
            let bytes = text.as_bytes();
            let (whole, is_kept) = stage.read(&[bytes], 4096, &method);
            let whole = whole.unwrap();
            assert_eq!(
                (whole.body.as_slice(), whole.whole, is_kept),
                (body.as_bytes(), true, kept),
                "{text}"
            );
            let has_trailer = whole.trailers.contains(&("x".to_owned(), b"y".to_vec()));
            assert_eq!(has_trailer, text == CHUNKED);
            for size in [16, 4096] {
                for cut in 1..bytes.len() {
                    let (first, second) = bytes.split_at(cut);
                    // what is still on its way when the body has ended is found at the next checkout
                    let (split, _) = stage.read(&[first, second], size, &method);
                    let split = split.unwrap();
                    assert_eq!(split, whole, "{text} cut at {cut}, {size} bytes at a time");
                }
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            let slow = stage.read(&single, 4096, &method).0.unwrap();
            assert_eq!((slow.body, slow.trailers), (whole.body, whole.trailers));
        }
    }

    #[test]
    fn an_answer_that_breaks_off_is_never_whole() {
        let stage = Stage::new();
        for text in [CHUNKED, LENGTH] {
            let head = text.find("\r\n\r\n").unwrap() + 4;
            for cut in 0..text.len() {
                let (reading, kept) = stage.read(&[&text.as_bytes()[..cut]], 4096, &Method::GET);
                match reading {
                    None => assert!(cut < head, "{text} cut at {cut}"),
                    Some(reading) => {
                        assert!(cut >= head && !reading.whole && !kept, "cut at {cut}");
                        assert!(b"hello world".starts_with(&reading.body), "cut at {cut}");
                    }
                }
            }
        }
    }
}
