//! Reads the headers of a client's frames before hyper does (RFC 9113 §4.1), and bounds what one connection can make
//! hyper hold.
//!
//! hyper takes frames out of read buffers of 8 kB without copying them. It bounds neither the number of control frames nor
//! the number of buffers that small DATA frames keep alive. Pure: bytes and a time in, the number of bytes that may be read
//! out. The bytes themselves are never changed.

use std::collections::VecDeque;

/// The connection preface of a client (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of hyper's read buffer. A DATA frame or an entry of the HPACK table keeps a whole one alive.
const BUFFER: u64 = 8 * 1024;

/// Control frames that a client may send at once, and how many more each second. Control frames are all but DATA,
/// HEADERS and CONTINUATION, those of unknown types included.
const BURST: u32 = 1_000;
const PER_SECOND: u32 = 200;

/// How many more for each DATA or HEADERS frame that was sent to the client: it answers with `WINDOW_UPDATE`, and gRPC with
/// PING.
const PER_SENT: u32 = 4;

/// Payload bytes of a control frame that count as one frame more.
const CONTROL: u32 = 256;

/// Bytes of header blocks that hyper may read before their requests are handed to exchanges, which pay for them. One byte
/// can become a field.
const UNTAKEN_HEADS: u32 = 512;

/// Bytes of a trailer section that is not counted.
const SMALL_TRAILERS: u32 = 64;

/// What one connection may keep alive in hyper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Read buffers with DATA that no exchange has read; above it the stream with most DATA frames is reset.
    pub bodies: usize,
    /// Read buffers with parts of header blocks, over the life of the connection, because entries of the HPACK table may
    /// keep them; above it the client gets a GOAWAY. The table has at most 107 entries.
    pub heads: usize,
    /// Trailer sections that no exchange has read; above it a stream is reset.
    pub trailers: usize,
}

/// Why a connection is ended with `ENHANCE_YOUR_CALM`, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess(pub &'static str);

/// The result of [`Frames::pass`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// How many of the bytes may be read now.
    pub count: usize,
    /// hyper must hand over the requests that it has read before it reads on.
    pub pauses: bool,
}

/// The state of one connection's frames.
#[derive(Debug)]
pub struct Frames {
    bounds: Bounds,
    preface: usize,
    reader: Reader,
    /// Bytes that were read.
    position: u64,
    allowance: Allowance,
    /// The highest stream that a client has opened.
    highest: u32,
    /// Bytes of the head, or of the trailers, that are coming in.
    block: u32,
    is_trailers: bool,
    untaken_heads: u32,
    /// Buffers with parts of heads in them.
    heads: usize,
    last_head: Option<u64>,
    /// Requests whose body is still to come.
    uploads: Vec<Upload>,
    /// A request with a body to come whose exchange has not begun.
    opened: Option<Upload>,
    /// Buffers with DATA that no exchange has read, and how many frames of it.
    pins: Vec<(u64, u32)>,
    worst: Option<u32>,
    sent: Reader,
}

/// The body of a request as far as it is known here.
#[derive(Debug)]
struct Upload {
    stream: u32,
    /// The buffers of its DATA frames that the exchange has not read.
    pieces: VecDeque<u64>,
    has_trailers: bool,
}

/// Reads frame headers out of a stream of bytes.
#[derive(Debug, Default)]
struct Reader {
    header: [u8; 9],
    have: usize,
    /// Bytes of the payload that are to come.
    left: u32,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy)]
struct Header {
    len: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const CONTINUATION: u8 = 9;
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// How many control frames the client may send now.
#[derive(Debug)]
struct Allowance {
    left: u32,
    at: u32,
}

impl Allowance {
    fn spend(&mut self, count: u32, now: u32) -> Result<(), Excess> {
        let more = u64::from(now.wrapping_sub(self.at)) * u64::from(PER_SECOND) / 1_000;
        if more > 0 {
            self.add(u32::try_from(more).unwrap_or(BURST));
            self.at = now;
        }
        self.left = self
            .left
            .checked_sub(count)
            .ok_or(Excess("too many frames of control"))?;
        Ok(())
    }

    fn add(&mut self, count: u32) {
        self.left = self.left.saturating_add(count).min(BURST);
    }
}

impl Reader {
    /// Takes the next part of one frame off `bytes`: how many bytes it is, its header where that has just become whole,
    /// and whether the frame ends there.
    fn step(&mut self, bytes: &[u8]) -> (usize, Option<Header>, bool) {
        if self.left > 0 {
            let count = bytes.len().min(self.left as usize);
            self.left -= u32::try_from(count).unwrap_or(self.left);
            return (count, None, self.left == 0);
        }
        let count = bytes.len().min(self.header.len() - self.have);
        if let (0, Some(header)) = (self.have, bytes.first_chunk()) {
            self.header = *header;
        } else {
            for (to, from) in self.header.iter_mut().skip(self.have).zip(bytes) {
                *to = *from;
            }
        }
        self.have += count;
        if self.have < self.header.len() {
            return (count, None, false);
        }
        self.have = 0;
        let [high, middle, low, kind, flags, stream @ ..] = self.header;
        let header = Header {
            len: u32::from_be_bytes([0, high, middle, low]),
            kind,
            flags,
            // the highest bit has no meaning
            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
        };
        self.left = header.len;
        (count, Some(header), header.len == 0)
    }

    fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}

impl Frames {
    /// The state of a new connection; `now` is in milliseconds and may wrap.
    pub fn new(bounds: Bounds, now: u32) -> Frames {
        Frames {
            bounds,
            preface: PREFACE.len(),
            reader: Reader::default(),
            position: 0,
            allowance: Allowance {
                left: BURST,
                at: now,
            },
            highest: 0,
            block: 0,
            is_trailers: false,
            untaken_heads: 0,
            heads: 0,
            last_head: None,
            uploads: Vec::new(),
            opened: None,
            pins: Vec::new(),
            worst: None,
            sent: Reader::default(),
        }
    }

    /// Takes bytes from the client; says how many of them hyper may read now.
    ///
    /// # Errors
    /// The connection is over a bound and must be closed.
    pub fn pass(&mut self, bytes: &[u8], now: u32) -> Result<Passed, Excess> {
        let mut at = self.preface.min(bytes.len());
        self.preface -= at;
        self.position += at as u64;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let (count, header, ends) = self.reader.step(rest);
            at += count;
            self.position += count as u64;
            if let Some(header) = header {
                self.begin(header, now)?;
            }
            if ends && self.end() {
                return Ok(Passed {
                    count: at,
                    pauses: true,
                });
            }
        }
        Ok(Passed {
            count: at,
            pauses: false,
        })
    }

    /// hyper has handed over the requests that it has read.
    pub fn resume(&mut self) {
        self.untaken_heads = 0;
    }

    /// Takes bytes that were sent to the client.
    pub fn sent(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let (count, header, _) = self.sent.step(rest);
            at += count;
            if header.is_some_and(|header| matches!(header.kind, kind::DATA | kind::HEADERS)) {
                self.allowance.add(PER_SENT);
            }
        }
    }

    /// Whether the last frame that was sent is whole, so that another may follow.
    pub fn is_sent_whole(&self) -> bool {
        self.sent.is_between()
    }

    /// The highest stream that the client has opened.
    pub fn highest(&self) -> u32 {
        self.highest
    }

    /// Whether the HPACK table may keep so many buffers that the client should open another connection.
    pub fn is_worn(&self) -> bool {
        self.heads > self.bounds.heads
    }

    /// The stream of the request that was opened last, if it has a body: its exchange begins.
    pub fn claim(&mut self) -> Option<u32> {
        let upload = self.opened.take()?;
        let stream = upload.stream;
        self.uploads.push(upload);
        Some(stream)
    }

    /// The exchange has read a DATA frame of this stream, or its trailers.
    pub fn took(&mut self, stream: u32, is_data: bool) {
        let upload = self
            .uploads
            .iter_mut()
            .find(|upload| upload.stream == stream);
        let Some(upload) = upload else { return };
        if !is_data {
            upload.has_trailers = false;
        } else if let Some(pin) = upload.pieces.pop_front() {
            self.unpin(pin);
        }
    }

    /// The body of this stream is not read any more.
    pub fn forget(&mut self, stream: u32) {
        let Some(at) = self
            .uploads
            .iter()
            .position(|upload| upload.stream == stream)
        else {
            return;
        };
        let upload = self.uploads.swap_remove(at);
        for pin in upload.pieces {
            self.unpin(pin);
        }
    }

    /// The stream to reset because its body keeps too many buffers; given once.
    pub fn worst(&mut self) -> Option<u32> {
        self.worst.take()
    }

    fn unpin(&mut self, pin: u64) {
        if let Some(at) = self.pins.iter().position(|(buffer, _)| *buffer == pin)
            && let Some((_, pieces)) = self.pins.get_mut(at)
        {
            *pieces -= 1;
            if *pieces == 0 {
                self.pins.swap_remove(at);
            }
        }
    }

    /// A frame begins.
    fn begin(&mut self, header: Header, now: u32) -> Result<(), Excess> {
        match header.kind {
            kind::DATA => self.data(header),
            kind::HEADERS => {
                self.block = 0;
                self.is_trailers = header.stream <= self.highest;
                if !self.is_trailers {
                    self.highest = header.stream;
                    let has_body = header.flags & END_STREAM == 0;
                    self.opened = has_body.then(|| Upload {
                        stream: header.stream,
                        pieces: VecDeque::new(),
                        has_trailers: false,
                    });
                }
                self.head(header)
            }
            kind::CONTINUATION => self.head(header),
            _ => self.allowance.spend(1 + header.len / CONTROL, now),
        }
    }

    /// A frame has ended; says whether a request is to be taken over before more is read.
    fn end(&mut self) -> bool {
        let [_, _, _, kind, flags, ..] = self.reader.header;
        if !matches!(kind, kind::HEADERS | kind::CONTINUATION) || flags & END_HEADERS == 0 {
            return false;
        }
        self.untaken_heads += self.block;
        self.opened.is_some() || self.untaken_heads > UNTAKEN_HEADS
    }

    fn buffer(&self) -> u64 {
        self.position / BUFFER
    }

    fn head(&mut self, header: Header) -> Result<(), Excess> {
        self.block = self.block.saturating_add(header.len);
        let buffer = self.buffer();
        if self.last_head.replace(buffer) != Some(buffer) {
            self.heads += 1;
        }
        // the client goes on after its GOAWAY
        if self.heads > self.bounds.heads + self.bounds.heads / 4 {
            return Err(Excess("requests after the connection was ended"));
        }
        if self.is_trailers && self.block > SMALL_TRAILERS {
            return self.trailers(header.stream);
        }
        Ok(())
    }

    fn data(&mut self, header: Header) -> Result<(), Excess> {
        let buffer = self.buffer();
        let all = self.uploads.iter_mut().chain(&mut self.opened);
        let Some(upload) = all.into_iter().find(|it| it.stream == header.stream) else {
            return Ok(());
        };
        if header.len == 0 {
            return Ok(());
        }
        upload.pieces.push_back(buffer);
        match self.pins.iter_mut().find(|(pin, _)| *pin == buffer) {
            Some((_, pieces)) => *pieces += 1,
            None => self.pins.push((buffer, 1)),
        }
        if self.pins.len() > self.bounds.bodies + self.bounds.bodies / 4 {
            return Err(Excess("small pieces of bodies far apart"));
        }
        if self.pins.len() > self.bounds.bodies {
            let most = self.uploads.iter().max_by_key(|it| it.pieces.len());
            self.worst = most.map(|it| it.stream);
        }
        Ok(())
    }

    fn trailers(&mut self, stream: u32) -> Result<(), Excess> {
        let Some(upload) = self.uploads.iter_mut().find(|it| it.stream == stream) else {
            return Ok(());
        };
        upload.has_trailers = true;
        let waiting = self.uploads.iter().filter(|it| it.has_trailers).count();
        if waiting > 2 * self.bounds.trailers {
            return Err(Excess("too many trailers"));
        }
        if waiting > self.bounds.trailers {
            self.worst = Some(stream);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
