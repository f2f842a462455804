//! The connection with an HTTP/1.1 upstream: its answers are read here, with `response_head.rs` for their heads.
//!
//! It is a codec of our own because its memory is the price of an exchange: one buffer, which is taken when bytes have
//! arrived and given back when they are used; no task and no channel.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use http::Method;
use tokio::io::{AsyncRead, ReadBuf};

use crate::{
    http1::response_head::{self, Head, MAX_HEAD},
    memory::{
        buffers::{Buffer, Buffers, ReadSize},
        prices::{LARGE_HEAD, step},
    },
    upstream::pool::Lease,
};

/// An upstream connection with the bytes that were read from it and not used yet.
#[derive(Debug)]
pub struct Upstream {
    /// The connection.
    pub lease: Lease,
    /// A buffer whose bytes `start..end` were not used yet; empty while there are none.
    pub buffer: Buffer,
    /// Where the unused bytes begin.
    pub start: usize,
    /// Where the unused bytes end.
    pub end: usize,
    /// How many of them were searched for the end of a head.
    scanned: usize,
    room: ReadSize,
}

impl Upstream {
    /// A connection from which nothing was read yet.
    pub fn new(lease: Lease, room: ReadSize) -> Upstream {
        Upstream {
            lease,
            buffer: Buffer::default(),
            start: 0,
            end: 0,
            scanned: 0,
            room,
        }
    }

    /// Takes the head of an answer to `method` out of the unused bytes; `None` where it is not complete yet.
    ///
    /// # Errors
    /// Those of [`response_head::read_head`].
    pub fn read_head(&mut self, method: &Method) -> Result<Option<Head>, &'static str> {
        let unread = self.buffer.get(self.start..self.end).unwrap_or_default();
        if !response_head::is_due(unread, &mut self.scanned) {
            return Ok(None);
        }
        let head = response_head::read_head(unread, method)?;
        if let Some(head) = &head {
            self.start += head.len;
            self.scanned = 0;
        }
        Ok(head)
    }

    /// Puts a head of `len` bytes back, which is then read once more.
    pub fn put_back_head(&mut self, len: usize) {
        self.start -= len;
        self.scanned = 0;
    }

    /// Bytes that were read and not used.
    pub fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads once behind the unused bytes, into a buffer that is taken only when bytes have arrived. Returns how many
    /// were read; 0 at the end of the connection.
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
            // only a head fills the buffer; the caller has paid for one beyond `LARGE_HEAD`
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

    /// Whether the part of a head that has arrived is more than the price of an exchange covers.
    pub fn has_large_head(&self) -> bool {
        self.end - self.start >= LARGE_HEAD
    }

    /// Frees a buffer that grew for a head: bytes behind the head move to a buffer of their own. Returns how many they
    /// are; 0 where the buffer had not grown.
    pub fn shrink(&mut self) -> u32 {
        self.release();
        if !self.buffer.has_grown() {
            return 0;
        }
        self.buffer = self.unread().to_vec().into();
        (self.start, self.end) = (0, self.buffer.len());
        u32::try_from(self.end).unwrap_or(u32::MAX)
    }

    /// Gives the buffer back where all of its bytes are used.
    pub fn release(&mut self) {
        if self.start == self.end {
            self.buffer = Buffer::default();
            self.start = 0;
            self.end = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use crate::test_support::Stage;

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
