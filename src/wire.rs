//! The upstream half of HTTP/1.1: a request written, an answer read, both at the same time.
//!
//! A codec of our own over httparse, because what it holds is what an exchange costs: one buffer, taken when bytes are
//! there and given back when they are gone; no task, no channel. Requests were checked before they came here; answers
//! come from targets that the operator chose, and are read strictly all the same: what could be read in two ways is an
//! error, never passed on.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use hyper::{
    Method, StatusCode,
    body::{Body as _, Incoming},
    ext::ReasonPhrase,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    budget::Buffers,
    chunked::{Chunked, Piece},
    dial::Io,
    headers,
    park::Watch,
    pool::Lease,
    screen,
};

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
    /// The head, then the sizes of chunks.
    text: Vec<u8>,
    written: usize,
    /// A piece of the client's body.
    data: Bytes,
    /// What closes a chunk.
    tail: &'static [u8],
    body: Option<Incoming>,
    chunked: bool,
    /// Bytes that the body may have.
    limit: u64,
    /// Bytes of body that were taken from the client.
    pub taken: u64,
    /// Whether any byte of the request was written.
    begun: bool,
    /// Whether the head made room for the framing of chunks.
    cleared: bool,
    /// The client is to be asked for its body first (`Expect: 100-continue`).
    held_back: bool,
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
    /// A request whose head is `head`; `chunked` where its body has no length.
    pub fn new(
        head: Vec<u8>,
        body: Option<Incoming>,
        chunked: bool,
        limit: Option<u64>,
        held_back: bool,
    ) -> Upload {
        Upload {
            text: head,
            written: 0,
            data: Bytes::new(),
            tail: b"",
            body,
            chunked,
            limit: limit.unwrap_or(u64::MAX),
            taken: 0,
            begun: false,
            cleared: false,
            held_back,
        }
    }

    /// Whether nothing of the body was taken: the same bytes can be sent once more.
    pub fn can_rewind(&self) -> bool {
        self.taken == 0 && !self.cleared
    }

    /// Starts again, for another connection.
    pub fn rewind(&mut self) {
        self.written = 0;
        self.begun = false;
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
        self.is_written() && !self.held_back && self.body.is_some()
    }

    /// Whether all of it is with the kernel.
    pub fn is_done(&self) -> bool {
        self.body.is_none() && self.is_written()
    }

    fn is_written(&self) -> bool {
        self.written == self.text.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Sends what can be sent; ready when all of it is with the kernel. `progress` hears of bytes from the client.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        io: &mut Io,
        progress: &mut dyn FnMut(usize),
    ) -> Poll<Result<(), UploadError>> {
        loop {
            if !self.begun && !self.held_back && self.data.is_empty() {
                // what is here of the body leaves together with the head
                let _ = self.poll_body(context, progress)?;
            }
            while !self.is_written() {
                let slices = [
                    IoSlice::new(self.text.get(self.written..).unwrap_or_default()),
                    IoSlice::new(&self.data),
                    IoSlice::new(self.tail),
                ];
                self.begun = true;
                let count = ready!(Pin::new(&mut *io).poll_write_vectored(context, &slices))
                    .map_err(|_| UploadError::Upstream)?;
                if count == 0 {
                    return Poll::Ready(Err(UploadError::Upstream));
                }
                self.wrote(count);
            }
            if matches!(io, Io::Tls(_)) {
                ready!(Pin::new(&mut *io).poll_flush(context))
                    .map_err(|_| UploadError::Upstream)?;
            }
            if self.body.is_none() {
                return Poll::Ready(Ok(()));
            }
            if self.held_back {
                return Poll::Pending;
            }
            ready!(self.poll_body(context, progress)?);
        }
    }

    fn wrote(&mut self, count: usize) {
        let text = count.min(self.text.len() - self.written);
        self.written += text;
        let data = (count - text).min(self.data.len());
        self.data.advance(data);
        self.tail = self.tail.get(count - text - data..).unwrap_or_default();
    }

    /// Takes the next piece of the client's body, framed as the upstream is told.
    fn poll_body(
        &mut self,
        context: &mut Context<'_>,
        progress: &mut dyn FnMut(usize),
    ) -> Poll<Result<(), UploadError>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(Ok(()));
        };
        let frame = match ready!(Pin::new(&mut *body).poll_frame(context)) {
            None => {
                self.body = None;
                if self.chunked {
                    self.frame(b"0\r\n\r\n");
                }
                return Poll::Ready(Ok(()));
            }
            Some(Err(_)) => return Poll::Ready(Err(UploadError::Client)),
            Some(Ok(frame)) => frame,
        };
        match frame.into_data() {
            Ok(data) => {
                self.taken += data.len() as u64;
                progress(data.len());
                if self.taken > self.limit {
                    return Poll::Ready(Err(UploadError::TooLarge));
                }
                let ends = body.is_end_stream();
                if self.chunked && !data.is_empty() {
                    self.frame(format!("{:x}\r\n", data.len()).as_bytes());
                    self.tail = b"\r\n";
                }
                self.data = data;
                if ends && !self.chunked {
                    self.body = None;
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    self.body = None;
                    self.trailers(&trailers);
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Framing goes behind the head where that is still unsent, so that both leave together.
    fn frame(&mut self, text: &[u8]) {
        if self.begun {
            self.text.clear();
            self.written = 0;
            self.cleared = true;
        }
        self.text.extend_from_slice(text);
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        self.frame(b"0\r\n");
        for (name, value) in trailers {
            if headers::may_trail(name) && !headers::is_twin(name.as_str()) {
                headers::line(&mut self.text, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        self.text.extend_from_slice(b"\r\n");
    }
}

/// The head of an answer, ready to be passed on: hop-by-hop fields are gone.
#[derive(Debug)]
pub struct Head {
    /// Its status.
    pub status: StatusCode,
    /// Its reason, where it is not the usual one.
    pub reason: Option<ReasonPhrase>,
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
    Chunked(Chunked),
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
    let delimiter = if bodiless {
        Delimiter::Length(0)
    } else if reader.chunked {
        headers.remove(header::CONTENT_LENGTH);
        Delimiter::Chunked(Chunked::new())
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
    let reason = reason.and_then(|reason| ReasonPhrase::try_from(reason).ok());
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
    pub buffer: Vec<u8>,
    /// Where the bytes of use begin.
    pub start: usize,
    /// Where they end.
    pub end: usize,
    /// Bytes to read at a time.
    pub size: usize,
}

impl Upstream {
    /// A connection from which nothing was read yet.
    pub fn new(lease: Lease, size: usize) -> Upstream {
        Upstream {
            lease,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            size,
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
        buffers: &Buffers,
    ) -> Poll<io::Result<usize>> {
        let Some(io) = &mut self.lease.io else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if self.start == self.end {
            ready!(io.poll_read_ready(context))?;
            self.start = 0;
            self.end = 0;
            if self.buffer.is_empty() {
                self.buffer = buffers.take(self.size);
            }
        } else if self.end == self.buffer.len() && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        } else if self.end == self.buffer.len() {
            let larger = (self.buffer.len() * 2).min(MAX_HEAD.next_power_of_two());
            self.buffer.resize(larger.max(self.end + 1), 0);
        }
        let mut space = ReadBuf::new(self.buffer.get_mut(self.end..).unwrap_or_default());
        let result = Pin::new(io).poll_read(context, &mut space);
        let count = space.filled().len();
        if result.is_pending() && self.start == self.end {
            self.release(buffers);
        }
        ready!(result)?;
        self.end += count;
        Poll::Ready(Ok(count))
    }

    /// Gives the buffer back where nothing of use is in it.
    pub fn release(&mut self, buffers: &Buffers) {
        if self.start == self.end && !self.buffer.is_empty() {
            buffers.put(std::mem::take(&mut self.buffer));
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
    /// The trailer section as it comes in.
    trailers: Vec<u8>,
    /// The same, read, behind the last data.
    ready_trailers: Option<HeaderMap>,
    passes_trailers: bool,
    /// How long the client may give no byte of what it still owes.
    read_timeout: Option<Duration>,
    /// How much of the request's body had come when it was waited for last.
    waits: Option<u64>,
    watch: Watch,
}

/// What a body consists of.
#[derive(Debug)]
pub enum Got {
    /// Bytes `.1` to `.2` of a buffer.
    Data(Vec<u8>, usize, usize),
    /// The fields behind a chunked body.
    Trailers(HeaderMap),
}

impl Download {
    /// The rest of an answer; `upload` is the request where it is not sent to its end yet.
    pub fn new(
        upstream: Upstream,
        upload: Option<Upload>,
        head: Head,
        passes_trailers: bool,
        read_timeout: Option<Duration>,
        watch: Watch,
    ) -> Download {
        let mut download = Download {
            upstream: Some(upstream),
            upload,
            delimiter: head.delimiter,
            persistent: head.persistent,
            trailers: Vec::new(),
            ready_trailers: None,
            passes_trailers,
            read_timeout,
            waits: None,
            watch,
        };
        if matches!(download.delimiter, Delimiter::Length(0)) {
            download.finish();
        }
        download
    }

    /// Whether the client has all of it.
    pub fn is_end(&self) -> bool {
        self.upstream.is_none() && self.ready_trailers.is_none()
    }

    /// How much is left; `None` where nobody knows.
    pub fn remaining(&self) -> Option<u64> {
        match &self.delimiter {
            Delimiter::Length(left) => Some(*left),
            _ => None,
        }
    }

    /// The next part; `None` at the end. A body that breaks off is an error, never an end. `progress` hears of bytes that
    /// the client still sends.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        buffers: &Buffers,
        progress: &mut dyn FnMut(usize),
    ) -> Poll<Option<io::Result<Got>>> {
        if let Err(error) = self.poll_upload(context, progress) {
            return Poll::Ready(Some(Err(self.abandon(error))));
        }
        loop {
            let Some(upstream) = &mut self.upstream else {
                return Poll::Ready(
                    self.ready_trailers
                        .take()
                        .map(|trailers| Ok(Got::Trailers(trailers))),
                );
            };
            if upstream.start == upstream.end {
                match ready!(upstream.poll_fill(context, buffers)) {
                    Err(error) => return Poll::Ready(Some(Err(self.abandon(error)))),
                    Ok(0) => {
                        if matches!(self.delimiter, Delimiter::Close) {
                            self.finish();
                            return Poll::Ready(None);
                        }
                        return Poll::Ready(Some(Err(
                            self.abandon(io::ErrorKind::UnexpectedEof.into())
                        )));
                    }
                    Ok(_) => {}
                }
            }
            match self.take() {
                Ok(Some(got)) => return Poll::Ready(Some(Ok(got))),
                Ok(None) => {
                    if let Some(upstream) = &mut self.upstream {
                        upstream.release(buffers);
                    }
                }
                Err(reason) => {
                    return Poll::Ready(Some(Err(self.abandon(io::Error::other(reason)))));
                }
            }
        }
    }

    /// Sends on what is left of the request. An upstream that takes no more may still answer; a client that breaks off, or
    /// gives no byte for `read_timeout`, has no use for an answer.
    fn poll_upload(
        &mut self,
        context: &mut Context<'_>,
        progress: &mut dyn FnMut(usize),
    ) -> io::Result<()> {
        let (Some(upload), Some(upstream)) = (&mut self.upload, &mut self.upstream) else {
            return Ok(());
        };
        let Some(io) = &mut upstream.lease.io else {
            return Ok(());
        };
        let ended = match upload.poll(context, io, progress) {
            Poll::Pending => {
                let waits = upload.waits_for_client().then_some(upload.taken);
                if self.waits != waits {
                    self.waits = waits;
                    self.watch.set_deadline(waits.and(self.read_timeout));
                }
                if self.watch.is_overdue() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                return Ok(());
            }
            Poll::Ready(Ok(())) => Ok(()),
            Poll::Ready(Err(UploadError::Upstream)) => {
                self.persistent = false;
                Ok(())
            }
            Poll::Ready(Err(UploadError::Client | UploadError::TooLarge)) => {
                Err(io::ErrorKind::ConnectionAborted.into())
            }
        };
        self.upload = None;
        self.watch.set_deadline(None);
        ended
    }

    /// Takes what is of use out of the buffer.
    fn take(&mut self) -> Result<Option<Got>, &'static str> {
        let Some(upstream) = &mut self.upstream else {
            return Ok(None);
        };
        let (start, here) = (upstream.start, upstream.end - upstream.start);
        match &mut self.delimiter {
            Delimiter::Close => {
                upstream.start = upstream.end;
                Ok(Some(hand_over(upstream, start, start + here)))
            }
            Delimiter::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(here);
                *left -= count as u64;
                let (ended, surplus) = (*left == 0, count < here);
                upstream.start = upstream.end;
                let got = hand_over(upstream, start, start + count);
                if ended {
                    self.persistent &= !surplus;
                    self.finish();
                }
                Ok((count > 0).then_some(got))
            }
            Delimiter::Chunked(_) => self.take_chunks(),
        }
    }

    /// Moves the data of all chunks in the buffer together, over their framing.
    fn take_chunks(&mut self) -> Result<Option<Got>, &'static str> {
        let (Some(upstream), Delimiter::Chunked(chunked)) =
            (&mut self.upstream, &mut self.delimiter)
        else {
            return Ok(None);
        };
        let begin = upstream.start;
        let (mut data_end, mut data_start, mut at) = (begin, begin, begin);
        while at < upstream.end && !chunked.is_end() {
            let rest = upstream.buffer.get(at..upstream.end).unwrap_or_default();
            match chunked.next(rest).map_err(|broken| broken.0)? {
                Piece::Framing(count) => at += count,
                Piece::Data(count) => {
                    if data_start == data_end {
                        // the first data of this buffer stays where it is
                        data_start = at;
                        data_end = at;
                    } else if count > 0 {
                        upstream.buffer.copy_within(at..at + count, data_end);
                    }
                    data_end += count;
                    at += count;
                }
                Piece::Trailer(count) => {
                    self.trailers
                        .extend_from_slice(rest.get(..count).unwrap_or_default());
                    at += count;
                }
            }
        }
        let (ended, surplus) = (chunked.is_end(), at < upstream.end);
        upstream.start = upstream.end;
        let data = (data_end > data_start).then(|| hand_over(upstream, data_start, data_end));
        if !ended {
            return Ok(data);
        }
        self.persistent &= !surplus;
        self.ready_trailers = self.read_trailers()?;
        self.finish();
        Ok(data)
    }

    fn read_trailers(&self) -> Result<Option<HeaderMap>, &'static str> {
        if !self.passes_trailers || self.trailers.len() <= 2 {
            return Ok(None);
        }
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let Ok(httparse::Status::Complete((_, fields))) =
            httparse::parse_headers(&self.trailers, &mut fields)
        else {
            return Err("malformed trailers");
        };
        let mut trailers = HeaderMap::new();
        for field in fields {
            if let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(field.name.as_bytes()),
                HeaderValue::from_bytes(field.value),
            ) && headers::may_trail(&name)
            {
                trailers.append(name, value);
            }
        }
        Ok((!trailers.is_empty()).then_some(trailers))
    }

    /// The answer is whole: the connection goes back, if both sides are through with it.
    fn finish(&mut self) {
        let Some(upstream) = self.upstream.take() else {
            return;
        };
        if self.persistent
            && self.upload.as_ref().is_none_or(Upload::is_done)
            && upstream.start == upstream.end
        {
            upstream.lease.give_back(self.watch.now());
        }
    }

    fn abandon(&mut self, error: io::Error) -> io::Error {
        self.upstream = None;
        error
    }
}

/// Takes the buffer out, with the part that is data.
fn hand_over(upstream: &mut Upstream, start: usize, end: usize) -> Got {
    let buffer = std::mem::take(&mut upstream.buffer);
    upstream.start = 0;
    upstream.end = 0;
    Got::Data(buffer, start, end)
}
