//! The bytes that wait to be written to a socket, so that head, body and framing leave in one call.

use std::io::IoSlice;

use http::HeaderMap;

use crate::{fields::line, memory::chunk::BodyChunk};

/// The bytes that wait to be written to a socket, in one call where possible: text (head or framing), a piece of a
/// body, and the text that ends a chunk.
#[derive(Debug)]
pub struct WriteBuffer {
    text: Vec<u8>,
    written: usize,
    data: BodyChunk,
    tail: &'static [u8],
    /// Whether a byte of the first text was written.
    begun: bool,
    /// Whether the first text was dropped to make room for later framing.
    cleared: bool,
}

impl WriteBuffer {
    /// For the head of a message.
    pub fn new(head: Vec<u8>) -> WriteBuffer {
        WriteBuffer {
            text: head,
            written: 0,
            data: BodyChunk::default(),
            tail: b"",
            begun: false,
            cleared: false,
        }
    }

    /// Whether the kernel has all of it.
    pub fn is_empty(&self) -> bool {
        self.written == self.text.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// The message's head with the framing behind it.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Whether nothing was written yet, and there is room for a piece that leaves together with the head.
    pub fn is_fresh(&self) -> bool {
        !self.begun && self.data.is_empty()
    }

    /// Whether the head is still here to be sent again.
    pub fn can_rewind(&self) -> bool {
        !self.cleared
    }

    /// Starts again, for another connection.
    pub fn rewind(&mut self) {
        self.written = 0;
        self.begun = false;
    }

    /// Adds a piece; `chunked` frames it as a chunk.
    pub fn put(&mut self, data: BodyChunk, chunked: bool) {
        if chunked && !data.is_empty() {
            let mut size = [0; 18];
            self.frame(hexadecimal_line(data.len(), &mut size));
            self.tail = b"\r\n";
        }
        self.data = data;
    }

    /// Adds framing, after the head where that is still unsent, so that both leave together.
    pub fn frame(&mut self, text: &[u8]) {
        if self.begun {
            self.text.clear();
            self.written = 0;
            self.cleared = true;
        }
        self.text.extend_from_slice(text);
    }

    /// Makes the piece that was added the last chunk, without trailers after it.
    pub fn end_chunks(&mut self) {
        self.tail = b"\r\n0\r\n\r\n";
    }

    /// Adds the last chunk, with the trailers after it (RFC 9112 §7.1.2).
    pub fn last_chunk(&mut self, trailers: &HeaderMap) {
        let mut text = b"0\r\n".to_vec();
        for (name, value) in trailers {
            line(&mut text, name.as_str().as_bytes(), value.as_bytes());
        }
        text.extend_from_slice(b"\r\n");
        self.frame(&text);
    }

    /// Drops the head, which will not be sent again.
    pub fn forget_text(&mut self) {
        if self.written > 0 && self.is_empty() {
            self.text = Vec::new();
            self.written = 0;
            self.cleared = true;
        }
    }

    /// Drops a large head that the kernel has, whatever is still to be written after it. Says whether the kernel has
    /// it.
    pub fn forget_head(&mut self) -> bool {
        let is_written = self.written == self.text.len();
        if is_written {
            self.text = Vec::new();
            self.written = 0;
            self.cleared = true;
        }
        is_written
    }

    /// Whether a piece of a body is still to be written.
    pub fn has_data(&self) -> bool {
        !self.data.is_empty()
    }

    /// What is to be written.
    pub fn slices(&self) -> [IoSlice<'_>; 3] {
        [
            IoSlice::new(self.text.get(self.written..).unwrap_or_default()),
            IoSlice::new(self.data.bytes()),
            IoSlice::new(self.tail),
        ]
    }

    /// Records that this many bytes were written; gives how many of them belonged to a body.
    pub fn wrote(&mut self, count: usize) -> usize {
        self.begun = true;
        let text = count.min(self.text.len() - self.written);
        self.written += text;
        let data = (count - text).min(self.data.len());
        self.data.start += data;
        if self.data.is_empty() {
            // its buffer is returned to the pool
            self.data = BodyChunk::default();
        }
        self.tail = self.tail.get(count - text - data..).unwrap_or_default();
        data
    }
}

/// A chunk's size line.
pub fn hexadecimal_line(size: usize, line: &mut [u8; 18]) -> &[u8] {
    let mut left = size;
    let mut start = line.len() - 2;
    for (at, kind) in line.iter_mut().enumerate().rev() {
        if at >= 16 {
            *kind = if at == 16 { b'\r' } else { b'\n' };
            continue;
        }
        #[expect(clippy::indexing_slicing, reason = "four bits have sixteen values")]
        let digit = b"0123456789abcdef"[left & 15];
        *kind = digit;
        start = at;
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    line.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        for (size, line) in [
            (1, "1\r\n"),
            (0x10, "10\r\n"),
            (0xabcd, "abcd\r\n"),
            (usize::MAX, "ffffffffffffffff\r\n"),
        ] {
            assert_eq!(hexadecimal_line(size, &mut [0; 18]), line.as_bytes());
        }
    }

    #[test]
    fn an_outbox_is_written_from_any_place() {
        let whole = b"head\r\n5\r\nhello\r\n";
        for cut in 0..=whole.len() {
            let mut write_buffer = WriteBuffer::new(b"head\r\n".to_vec());
            write_buffer.put(BodyChunk::fixed(b"hello"), true);
            let first: Vec<u8> = write_buffer
                .slices()
                .iter()
                .flat_map(|part| part.to_vec())
                .collect();
            assert_eq!(first, whole);
            write_buffer.wrote(cut);
            let rest: Vec<u8> = write_buffer
                .slices()
                .iter()
                .flat_map(|part| part.to_vec())
                .collect();
            assert_eq!(rest, &whole[cut..]);
            assert_eq!(write_buffer.is_empty(), cut == whole.len());
        }
    }
}
