//! The upstream half of HTTP/1.1: a request written, an answer read, both at the same time.
//!
//! A codec of our own over httparse, because what it holds is what an exchange costs: one buffer, taken when bytes are
//! there and given back when they are gone; no task, no channel. Requests were checked before they came here; answers
//! come from targets that the operator chose, and are read strictly all the same: what could be read in two ways is an
//! error, never passed on.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    Method, StatusCode,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    body::{Outbox, Piece},
    budget::{Buffer, Buffers, Room},
    chunked,
    dial::{Io, Way},
    gate::Client,
    headers,
    pool::Lease,
    screen,
};

/// Bytes after which a body is long, and is worth system calls for wider buffers.
const LONG: u64 = 32 * 1024;

/// Bytes of a response head; 502 above.
const MAX_HEAD: usize = 96 * 1024;

/// Fields of a response head; 502 above.
const MAX_FIELDS: usize = 256;

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
    /// The client is to be asked for its body first (`Expect: 100-continue`).
    held_back: bool,
}

/// What follows the head of a request.
#[derive(Debug, Clone, Copy)]
pub struct UploadBody {
    /// Its body has no length.
    pub chunked: bool,
    /// Bytes that it may have.
    pub limit: Option<u64>,
    /// The upstream is asked before the client is (`Expect: 100-continue`).
    pub held_back: bool,
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
        Upload {
            outbox: Outbox::new(head),
            has_more: body.is_some(),
            unflushed: false,
            chunked: body.is_some_and(|body| body.chunked),
            limit: body.and_then(|body| body.limit).unwrap_or(u64::MAX),
            taken: 0,
            held_back: body.is_some_and(|body| body.held_back),
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
            let trailers = headers::read_trailers(section).ok_or(UploadError::Client)?;
            for (name, value) in &trailers {
                if !headers::is_twin(name.as_str()) {
                    headers::line(&mut text, name.as_str().as_bytes(), value.as_bytes());
                }
            }
        }
        text.extend_from_slice(b"\r\n");
        self.outbox.frame(&text);
        Ok(())
    }
}

/// The head of an answer, ready to be passed on: hop-by-hop fields are gone.
#[derive(Debug)]
pub struct Head {
    /// Its status.
    pub status: StatusCode,
    /// Its reason, where it is not the usual one.
    pub reason: Option<Bytes>,
    /// Its fields.
    pub headers: HeaderMap,
    /// Where its body ends.
    pub delimiter: Delimiter,
    /// Whether the connection can be used again afterwards.
    pub persistent: bool,
    /// Bytes of it.
    pub len: usize,
    /// Whether it carries an Upgrade to `websocket`.
    pub websocket: bool,
}

/// What ends a response body (RFC 9112 §6.3).
#[derive(Debug)]
pub enum Delimiter {
    /// So many bytes.
    Length(u64),
    /// Its last chunk.
    Chunked(Box<chunked::Body>),
    /// The close of the connection.
    Close,
}

/// Reads the head of an answer to `method`; `None` where it is not complete yet.
///
/// # Errors
/// A word for the log where it cannot be passed on.
pub fn read_head(bytes: &[u8], method: &Method) -> Result<Option<Head>, &'static str> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut fields,
    );
    let len = match parsed {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err("head too large");
        }
        Err(_) => return Err("malformed head"),
    };
    let (Some(code), Some(version)) = (response.code, response.version) else {
        return Err("malformed head");
    };
    let status = StatusCode::from_u16(code).map_err(|_| "malformed status")?;
    let mut reader = HeadReader {
        persistent: version == 1,
        ..HeadReader::default()
    };
    let hops = connection_fields(response.headers)?;
    // one copy for all values: they are slices of it
    let text = Bytes::copy_from_slice(bytes.get(..len).unwrap_or_default());
    let mut headers = HeaderMap::with_capacity(response.headers.len() + 4);
    for field in response.headers.iter() {
        let name =
            HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| "malformed field name")?;
        if !reader.keeps(&name, field.value, &hops)? {
            continue;
        }
        let value = HeaderValue::from_maybe_shared(text.slice_ref_of(bytes, field.value))
            .map_err(|_| "malformed field value")?;
        headers.append(name, value);
    }
    let announced = reader.trailer && reader.chunked;
    if announced && let Some(names) = announced_in(response.headers) {
        headers.insert(header::TRAILER, names);
    }
    let bodiless =
        *method == Method::HEAD || status.is_informational() || matches!(code, 204 | 304);
    if reader.chunked && version == 0 {
        return Err("Transfer-Encoding in HTTP/1.0");
    }
    if status.is_informational() || code == 204 {
        // no such answer may have one, and a reader that believed it would wait (RFC 9110 §8.6)
        headers.remove(header::CONTENT_LENGTH);
    }
    let delimiter = if bodiless {
        Delimiter::Length(0)
    } else if reader.chunked {
        headers.remove(header::CONTENT_LENGTH);
        Delimiter::Chunked(Box::new(chunked::Body::new()))
    } else if let Some(length) = reader.length {
        Delimiter::Length(length)
    } else {
        Delimiter::Close
    };
    // a length beside chunks, or a body where none may be: who knows what comes behind it
    let is_ambiguous = (reader.chunked && reader.length.is_some())
        || (code == 204 && (reader.chunked || reader.length.is_some_and(|length| length > 0)));
    let ends_by_close = reader.close || matches!(delimiter, Delimiter::Close);
    let persistent = reader.persistent && !ends_by_close && !is_ambiguous;
    let usual = status.canonical_reason().map(str::as_bytes);
    let reason = response
        .reason
        .map(str::as_bytes)
        .filter(|reason| !reason.is_empty() && Some(*reason) != usual);
    let reason = reason.map(|reason| text.slice_ref_of(bytes, reason));
    Ok(Some(Head {
        status,
        reason,
        headers,
        delimiter,
        persistent,
        len,
        websocket: reader.websocket,
    }))
}

/// A slice of a copy that stands where `part` stands in the original.
trait SliceRefOf {
    fn slice_ref_of(&self, original: &[u8], part: &[u8]) -> Bytes;
}

impl SliceRefOf for Bytes {
    fn slice_ref_of(&self, original: &[u8], part: &[u8]) -> Bytes {
        if part.is_empty() {
            return Bytes::new();
        }
        let start = (part.as_ptr() as usize).wrapping_sub(original.as_ptr() as usize);
        self.slice(start..start + part.len())
    }
}

/// What the fields of an answer say about its framing.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is what one field said")]
struct HeadReader {
    length: Option<u64>,
    chunked: bool,
    persistent: bool,
    close: bool,
    trailer: bool,
    websocket: bool,
}

impl HeadReader {
    /// Takes note of a field; says whether it is passed on.
    fn keeps(
        &mut self,
        name: &HeaderName,
        value: &[u8],
        hops: &[&str],
    ) -> Result<bool, &'static str> {
        match *name {
            header::CONTENT_LENGTH => {
                let length = screen::decimal(value).ok_or("malformed Content-Length")?;
                if self.length.is_some_and(|before| before != length) {
                    return Err("two lengths");
                }
                Ok(self.length.replace(length).is_none())
            }
            header::TRANSFER_ENCODING => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("unknown transfer coding");
                }
                self.chunked = true;
                Ok(false)
            }
            header::CONNECTION => {
                self.close |= hops
                    .iter()
                    .any(|option| option.eq_ignore_ascii_case("close"));
                self.persistent |= hops
                    .iter()
                    .any(|option| option.eq_ignore_ascii_case("keep-alive"));
                Ok(false)
            }
            header::UPGRADE => {
                self.websocket = value.eq_ignore_ascii_case(b"websocket");
                Ok(false)
            }
            header::TRAILER => {
                self.trailer = true;
                Ok(false)
            }
            // an upstream that asks for a proxy's credentials asks us, not the client
            _ if headers::is_hop_by_hop(name.as_str()) => Ok(false),
            _ => Ok(!hops
                .iter()
                .any(|option| option.eq_ignore_ascii_case(name.as_str()) && is_nominable(name))),
        }
    }
}

fn is_nominable(name: &HeaderName) -> bool {
    let name = name.as_str();
    !name.starts_with("content-")
        && !matches!(
            name,
            "set-cookie" | "date" | "location" | "cache-control" | "vary"
        )
}

/// The options that the Connection fields list.
fn connection_fields<'a>(fields: &[httparse::Header<'a>]) -> Result<Vec<&'a str>, &'static str> {
    let mut options = Vec::new();
    for field in fields
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("connection"))
    {
        let value = std::str::from_utf8(field.value).map_err(|_| "malformed Connection")?;
        options.extend(
            value
                .split(',')
                .map(str::trim)
                .filter(|option| !option.is_empty()),
        );
    }
    Ok(options)
}

fn announced_in(fields: &[httparse::Header<'_>]) -> Option<HeaderValue> {
    let mut map = HeaderMap::new();
    for field in fields
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("trailer"))
    {
        map.append(header::TRAILER, HeaderValue::from_bytes(field.value).ok()?);
    }
    headers::announced_trailers(&map)
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
            room,
        }
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
            let larger = (self.buffer.len() * 2).min(MAX_HEAD.next_power_of_two());
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

    /// Lets the kernel hold more of a body that has proved to be long, in both sockets; `way` is this one's.
    pub fn widen(&mut self, client: &Client<'_>, way: Way) {
        let (passed, theirs) = match way {
            Way::In => (&client.ride.sent, Way::Out),
            Way::Out => (&client.ride.received, Way::In),
        };
        if passed.get() > LONG {
            client.widen(theirs, self.lease.budget());
            self.lease.widen(way);
        }
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
    /// How long the client may give no byte of what it still owes.
    read_timeout: Option<Duration>,
    /// How much of the request's body had come when it was waited for last.
    waits: Option<u64>,
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
    /// The rest of an answer; `upload` is the request where it is not sent to its end yet, `now` the park's time.
    pub fn new(
        upstream: Upstream,
        upload: Option<Upload>,
        head: Head,
        passes_trailers: bool,
        read_timeout: Option<Duration>,
        now: u32,
    ) -> Download {
        let mut download = Download {
            upstream: Some(upstream),
            upload,
            delimiter: head.delimiter,
            persistent: head.persistent,
            trailers: None,
            passes_trailers,
            read_timeout,
            waits: None,
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
                upstream.widen(client, Way::In);
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
    /// A client that breaks off, or gives no byte for `read_timeout`, has no use for an answer.
    pub fn poll_upload(
        &mut self,
        context: &mut Context<'_>,
        client: &Client<'_>,
    ) -> io::Result<()> {
        let (Some(upload), Some(upstream)) = (&mut self.upload, &mut self.upstream) else {
            return Ok(());
        };
        upstream.widen(client, Way::Out);
        let Some(io) = &mut upstream.lease.io else {
            return Ok(());
        };
        let watch = client.ride.watch;
        let ended = match upload.poll(context, io, client) {
            Poll::Pending => {
                let waits = upload.waits_for_client().then_some(upload.taken);
                if self.waits != waits {
                    self.waits = waits;
                    watch.set_deadline(waits.and(self.read_timeout));
                }
                if watch.is_overdue() {
                    return Err(self.abandon(io::ErrorKind::TimedOut.into()));
                }
                return Ok(());
            }
            Poll::Ready(Ok(())) => Ok(()),
            Poll::Ready(Err(UploadError::Upstream)) => {
                self.persistent = false;
                Ok(())
            }
            Poll::Ready(Err(UploadError::Client | UploadError::TooLarge)) => {
                Err(self.abandon(io::ErrorKind::ConnectionAborted.into()))
            }
        };
        self.upload = None;
        watch.set_deadline(None);
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
                    let trailers = headers::read_trailers(&section).ok_or("malformed trailers")?;
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
    use std::{
        cell::{Cell, RefCell},
        future::poll_fn,
        io::Write as _,
        os::unix::net::UnixStream,
        rc::Rc,
        sync::Arc,
    };

    use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

    use super::*;
    use crate::{
        body::Ride,
        budget::{Budget, Plan},
        config::{self, Source},
        gate::Gate,
        metrics::Metrics,
        park::Park,
        pool::{Checkout, Pool},
        route::{Address, Origin},
    };

    /// What an upstream connection needs around it.
    struct World {
        runtime: LocalRuntime,
        park: Rc<Park>,
        pool: Rc<Pool>,
        buffers: Rc<Buffers>,
        metrics: Arc<Metrics>,
    }

    /// What came of an answer: `None` where its head was refused or broke off.
    type Read = Option<Answer>;

    #[derive(Debug, Default, PartialEq)]
    struct Answer {
        status: u16,
        fields: HeaderMap,
        body: String,
        trailers: HeaderMap,
        whole: bool,
        kept: bool,
    }

    impl World {
        fn new() -> World {
            let yaml = "routes: [{path: /, target: 'http://h'}]";
            let config = config::load(Source::Text("test", yaml), &|_| None).unwrap();
            let budget = Budget::new(Plan::new(None, 1, None));
            let metrics = Arc::new(Metrics::new(std::time::UNIX_EPOCH));
            World {
                runtime: Builder::new_current_thread()
                    .enable_all()
                    .build_local(LocalOptions::default())
                    .unwrap(),
                park: Park::new(Duration::from_secs(1), Rc::clone(&budget.room)),
                pool: Pool::new(&config.transport, 1, budget, Arc::clone(&metrics)),
                buffers: Rc::default(),
                metrics,
            }
        }

        /// Lets these pieces arrive one after the other, each when the one before was read, and then the end.
        fn read(&self, pieces: &[&[u8]], size: usize, method: &Method) -> Read {
            let origin = Origin {
                address: Address::Unix("/nobody".into()),
                tls: None,
            };
            let host = self.pool.host(&origin);
            let lease = host.room().unwrap();
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let answer = self
                .runtime
                .block_on(self.exchange(lease, ours, theirs, pieces, size, method));
            let kept = matches!(host.checkout(), Some(Checkout::Reused(_)));
            answer.map(|answer| Answer { kept, ..answer })
        }

        async fn exchange(
            &self,
            mut lease: Lease,
            ours: UnixStream,
            theirs: UnixStream,
            pieces: &[&[u8]],
            size: usize,
            method: &Method,
        ) -> Read {
            lease.io = Some(Io::Unix(tokio::net::UnixStream::from_std(ours).unwrap()));
            let mut upstream = Upstream::new(lease, Room::new(size, true, true));
            let mut pieces = pieces.iter().filter(|piece| !piece.is_empty());
            let mut theirs = Some(theirs);
            let mut feed = || match (pieces.next(), &mut theirs) {
                (Some(piece), Some(theirs)) => theirs.write_all(piece).unwrap(),
                _ => theirs = None,
            };
            let head = poll_fn(|context| {
                loop {
                    match upstream.poll_fill(context, &self.buffers) {
                        Poll::Pending => {
                            feed();
                            return Poll::Pending;
                        }
                        Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                        Poll::Ready(_) => {}
                    }
                    match read_head(upstream.unread(), method) {
                        Ok(None) => {}
                        Ok(Some(head)) => return Poll::Ready(Some(head)),
                        Err(_) => return Poll::Ready(None),
                    }
                }
            })
            .await?;
            upstream.start += head.len;
            let mut answer = Answer {
                status: head.status.as_u16(),
                fields: head.headers.clone(),
                ..Answer::default()
            };
            let seat = self.park.seat(None);
            let (client, _other) = tokio::net::UnixStream::pair().unwrap();
            let gate = RefCell::new(Gate::new(Io::Unix(client)));
            let ride = Ride {
                watch: &seat,
                began: 0,
                place: RefCell::default(),
                record: RefCell::default(),
                received: Cell::new(0),
                sent: Cell::new(0),
                complete: Cell::new(false),
                metrics: &self.metrics,
            };
            let client = Client::new(
                &gate,
                &ride,
                &self.buffers,
                Room::new(4096, true, true),
                None,
            );
            let mut download = Download::new(upstream, None, head, true, None, 0);
            loop {
                let got = poll_fn(|context| {
                    let got = download.poll(context, &client);
                    if got.is_pending() {
                        feed();
                    }
                    got
                });
                match got.await {
                    Some(Ok(Got::Data(piece))) => {
                        answer.body += std::str::from_utf8(piece.bytes()).unwrap();
                    }
                    Some(Ok(Got::Trailers(trailers))) => answer.trailers = trailers,
                    Some(Err(_)) => return Some(answer),
                    None => {
                        answer.whole = true;
                        return Some(answer);
                    }
                }
            }
        }
    }

    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\nA: b\r\n\r\n5;a=b\r\nhello\r\n06\r\n world\r\n0\r\nX: y\r\nZ:\r\n\r\n";
    const LENGTH: &str =
        "HTTP/1.1 200 Fine\r\nContent-Length: 11\r\nA: b\r\nA: c\r\n\r\nhello world";
    const CLOSE: &str = "HTTP/1.1 200 OK\r\nConnection: x\r\nX: y\r\n\r\nhello world";
    const EMPTY: &str = "HTTP/1.1 304 Not Modified\r\nContent-Length: 11\r\nETag: a\r\n\r\n";

    #[test]
    fn an_answer_reads_the_same_however_it_is_split() {
        let world = World::new();
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
            let whole = world.read(&[bytes], 4096, &method).unwrap();
            assert_eq!(
                (whole.body.as_str(), whole.whole, whole.kept),
                (body, true, kept),
                "{text}"
            );
            let trailers = whole.trailers.get("x").map(HeaderValue::as_bytes);
            assert_eq!(trailers, (text == CHUNKED).then_some(b"y".as_slice()));
            for size in [16, 4096] {
                for cut in 1..bytes.len() {
                    let (first, second) = bytes.split_at(cut);
                    let split = world.read(&[first, second], size, &method).unwrap();
                    // what is still on its way when the body has ended is found at the next checkout
                    let split = Answer {
                        kept: whole.kept,
                        ..split
                    };
                    assert_eq!(split, whole, "{text} cut at {cut}, {size} bytes at a time");
                }
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            let slow = world.read(&single, 4096, &method).unwrap();
            assert_eq!((slow.body, slow.trailers), (whole.body, whole.trailers));
        }
    }

    #[test]
    fn an_answer_that_breaks_off_is_never_whole() {
        let world = World::new();
        for text in [CHUNKED, LENGTH] {
            let head = text.find("\r\n\r\n").unwrap() + 4;
            for cut in 0..text.len() {
                let read = world.read(&[&text.as_bytes()[..cut]], 4096, &Method::GET);
                match read {
                    None => assert!(cut < head, "{text} cut at {cut}"),
                    Some(read) => {
                        assert!(cut >= head && !read.whole && !read.kept, "cut at {cut}");
                        assert!("hello world".starts_with(&read.body), "cut at {cut}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_head_is_whole_at_its_last_byte_and_not_before() {
        for text in [CHUNKED, LENGTH, CLOSE, EMPTY] {
            let end = text.find("\r\n\r\n").unwrap() + 4;
            for cut in 0..text.len() {
                let head = read_head(&text.as_bytes()[..cut], &Method::GET).unwrap();
                assert_eq!(
                    head.map(|head| head.len),
                    (cut >= end).then_some(end),
                    "{text} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn a_length_where_no_body_may_be_is_taken_away() {
        for (status, method, passes) in [
            ("103 Early Hints", Method::GET, false),
            ("204 No Content", Method::GET, false),
            ("204 No Content", Method::HEAD, false),
            ("304 Not Modified", Method::GET, true),
            ("200 OK", Method::HEAD, true),
        ] {
            let text = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n");
            let head = read_head(text.as_bytes(), &method).unwrap().unwrap();
            assert!(matches!(head.delimiter, Delimiter::Length(0)), "{status}");
            assert_eq!(
                head.headers.contains_key(header::CONTENT_LENGTH),
                passes,
                "{status}"
            );
        }
    }

    #[test]
    fn no_beginning_of_a_bad_head_is_taken_for_a_head() {
        for bad in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
        ] {
            for cut in 0..bad.len() {
                let head = read_head(&bad.as_bytes()[..cut], &Method::GET);
                assert!(matches!(head, Ok(None) | Err(_)), "{bad} cut at {cut}");
            }
            assert!(read_head(bad.as_bytes(), &Method::GET).is_err(), "{bad}");
        }
    }
}
