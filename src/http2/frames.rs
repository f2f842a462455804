//! Reads the headers of frames before hyper does (RFC 9113 §4.1), those of a client or of an upstream, and bounds what one
//! connection can make hyper hold.
//!
//! hyper takes frames out of read buffers of 8 kB without copying them. It bounds neither the number of control frames nor
//! the number of buffers that small DATA frames keep alive. Pure: bytes and a time in, the number of bytes that may be read
//! out. The bytes themselves are never changed.

pub mod bounds;
pub mod unread;

use std::task::Waker;

use crate::http2::frames::{
    bounds::{Bounds, Excess},
    unread::Unread,
};

/// The connection preface of a client (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of hyper's read buffer. A DATA frame or an entry of the HPACK table keeps a whole one alive.
const BUFFER: u64 = 8 * 1024;

/// Control frames that the other side may send at once, and how many more each second. Control frames are all but DATA,
/// HEADERS and CONTINUATION, those of unknown types included.
const BURST: u32 = 1_000;
const PER_SECOND: u32 = 200;

/// How many more for each DATA or HEADERS frame that was sent to the other side: it answers with `WINDOW_UPDATE`, and gRPC with
/// PING.
const PER_SENT: u32 = 4;

/// And one more for so many bytes of it: some receivers report every 4 kB, for the stream and for the connection.
const PER_BYTES: u32 = 2 * 1024;

/// Payload bytes of a control frame that count as one frame more.
const CONTROL: u32 = 256;

/// Bytes of header blocks that hyper may read before their messages are handed to exchanges, which pay for them. One byte
/// can become a field.
const UNTAKEN_HEADS: u32 = 512;

/// DATA frames that hyper may read before exchanges have had their turn to take them.
const UNTAKEN_DATA: u32 = 32;

/// Turns that exchanges have to take a frame, before another is read, where half of the frames wait that may wait: one that
/// passes them on takes one every few turns.
const TURNS: u8 = 8;

/// Stands for all turns and a rest behind them.
const RESTED: u8 = u8::MAX;

/// Bytes of a trailer section that is not counted.
const SMALL_TRAILERS: u32 = 64;

/// The state of one connection's frames.
#[derive(Debug)]
pub struct Frames {
    bounds: Bounds,
    /// A client opens the streams itself, and sends a preface.
    is_client: bool,
    preface: usize,
    reader: Reader,
    /// Bytes that were read.
    position: u64,
    allowance: Allowance,
    /// The highest stream that a client has opened.
    highest: u32,
    /// A request with a body to come whose exchange has not begun.
    opened: Option<u32>,
    /// Bytes of the head, or of the trailers, that are coming in.
    block: u32,
    is_trailers: bool,
    untaken_heads: u32,
    untaken_data: u32,
    is_paused: bool,
    /// Turns since the pause in which exchanges took nothing, and how many frames waited before.
    turns: u8,
    waiting: usize,
    /// Woken when frames are taken or given up in the rest.
    resting: Option<Waker>,
    /// Buffers with parts of heads in them.
    heads: usize,
    last_head: Option<u64>,
    unread: Unread,
    /// Bytes of our own preface that are still to be sent.
    sent_preface: usize,
    sent: Reader,
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

/// How many control frames the other side may send now.
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
    /// The state of a client's new connection; `now` is in milliseconds and may wrap.
    pub fn of_client(bounds: Bounds, now: u32) -> Frames {
        Frames {
            bounds,
            is_client: true,
            preface: PREFACE.len(),
            reader: Reader::default(),
            position: 0,
            allowance: Allowance {
                left: BURST,
                at: now,
            },
            highest: 0,
            opened: None,
            block: 0,
            is_trailers: false,
            untaken_heads: 0,
            untaken_data: 0,
            is_paused: false,
            turns: 0,
            waiting: 0,
            resting: None,
            heads: 0,
            last_head: None,
            unread: Unread::new(bounds),
            sent_preface: 0,
            sent: Reader::default(),
        }
    }

    /// The same of a connection to an upstream. What is sent there begins with the preface.
    pub fn of_upstream(bounds: Bounds, now: u32) -> Frames {
        let mut frames = Frames::of_client(bounds, now);
        frames.is_client = false;
        frames.preface = 0;
        frames.sent_preface = PREFACE.len();
        frames
    }

    /// Takes bytes from the other side; says how many of them hyper may read now.
    ///
    /// # Errors
    /// The connection is over a bound and must be closed.
    pub fn pass(&mut self, bytes: &[u8], now: u32) -> Result<usize, Excess> {
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
                self.is_paused = true;
                self.turns = 0;
                self.waiting = self.unread.held();
                break;
            }
        }
        Ok(at)
    }

    /// Whether hyper must hand over what it has read before it reads on.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether a client's stream is to be reset that is still there after some turns: the connection is read on when its
    /// frames are given up, or after a rest ([`Frames::rested`]). Other clients wait for none of this.
    pub fn rests(&self) -> bool {
        self.is_paused && self.is_client && self.turns == TURNS && self.unread.is_over()
    }

    /// Names whom to wake when frames are taken or given up in the rest.
    pub fn wakes(&mut self, waker: &Waker) {
        self.resting = Some(waker.clone());
    }

    /// The rest is over.
    pub fn rested(&mut self) {
        self.turns = RESTED;
    }

    /// hyper has handed over what it has read, and exchanges have had a turn to take it.
    pub fn resume(&mut self) {
        if self.turns != RESTED {
            self.turns = (self.turns + 1).min(TURNS);
        }
        let is_full = self.is_crowded() || self.unread.trailers_waiting() >= self.bounds.trailers;
        if is_full && self.unread.held() >= self.waiting && (self.turns < TURNS || self.rests()) {
            return;
        }
        self.turns = 0;
        self.is_paused = false;
        self.untaken_heads = 0;
        self.untaken_data = 0;
    }

    /// Takes bytes that were sent to the other side.
    pub fn sent(&mut self, bytes: &[u8]) {
        let mut at = self.sent_preface.min(bytes.len());
        self.sent_preface -= at;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let (count, header, _) = self.sent.step(rest);
            at += count;
            if let Some(header) = header
                && matches!(header.kind, kind::DATA | kind::HEADERS)
            {
                self.allowance.add(PER_SENT + header.len / PER_BYTES);
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

    /// Whether the HPACK table may keep so many buffers that further requests need another connection.
    pub fn is_worn(&self) -> bool {
        self.heads > self.bounds.heads
    }

    /// The stream of the request that was opened last by the client, if it has a body: its exchange begins.
    pub fn claim(&mut self) -> Option<u32> {
        self.opened.take()
    }

    /// A request to the upstream is sent on this stream.
    pub fn open(&mut self, stream: u32) {
        self.unread.open(stream);
    }

    /// The exchange has read a DATA frame of this stream, or its trailers.
    pub fn took(&mut self, stream: u32, is_data: bool) {
        self.unread.took(stream, is_data);
        self.wake();
    }

    /// The body of this stream is not read any more.
    pub fn forget(&mut self, stream: u32) {
        self.unread.forget(stream);
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.resting.take() {
            waker.wake();
        }
    }

    /// The stream to reset because its body keeps too much; given once.
    pub fn worst(&mut self) -> Option<u32> {
        self.unread.worst.take()
    }

    /// A frame begins.
    fn begin(&mut self, header: Header, now: u32) -> Result<(), Excess> {
        match header.kind {
            kind::DATA => {
                self.untaken_data += 1;
                let buffer = self.buffer();
                self.unread.data(header.stream, header.len, buffer)
            }
            kind::HEADERS => {
                self.block = 0;
                self.is_trailers = if self.is_client {
                    !self.opens(header)
                } else {
                    // an interim head does not end the stream
                    self.unread.begins(header.stream) && header.flags & END_STREAM != 0
                };
                self.head(header)
            }
            kind::CONTINUATION => self.head(header),
            _ => self.allowance.spend(1 + header.len / CONTROL, now),
        }
    }

    /// Whether these HEADERS of a client open a stream.
    fn opens(&mut self, header: Header) -> bool {
        if header.stream <= self.highest {
            return false;
        }
        self.highest = header.stream;
        // one that has no exchange was refused by h2
        if let Some(refused) = self.opened.take() {
            self.unread.forget(refused);
        }
        if header.flags & END_STREAM == 0 {
            self.unread.open(header.stream);
            self.opened = Some(header.stream);
        }
        true
    }

    /// A frame has ended; says whether what was read is to be taken over before more is read.
    fn end(&mut self) -> bool {
        let [_, _, _, kind, flags, ..] = self.reader.header;
        match kind {
            kind::DATA => {
                let is_full = self.untaken_data >= UNTAKEN_DATA || self.is_crowded();
                is_full || self.unread.worst.is_some()
            }
            kind::HEADERS | kind::CONTINUATION if flags & END_HEADERS != 0 => {
                self.untaken_heads += self.block;
                let are_large = self.is_trailers && self.block > SMALL_TRAILERS;
                are_large || self.opened.is_some() || self.untaken_heads > UNTAKEN_HEADS
            }
            _ => false,
        }
    }

    /// Whether half of the frames wait that may.
    fn is_crowded(&self) -> bool {
        2 * self.unread.pieces > self.bounds.pieces
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
        // half as many more for the messages that are under way; the other side goes on behind them
        if self.heads > self.bounds.heads.saturating_add(self.bounds.heads / 2) {
            return Err(Excess("heads in too many buffers"));
        }
        if self.is_trailers && self.block > SMALL_TRAILERS {
            return self.unread.trailers(header.stream);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
