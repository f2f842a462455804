//! A piece of a body in the buffer into which it was read, so that it is not copied.

use bytes::{Buf, Bytes};

use crate::memory::buffers::Buffer;

/// A piece of a body.
#[derive(Debug, Default)]
pub struct BodyChunk {
    store: Store,
    pub start: usize,
    end: usize,
}

#[derive(Debug, Default)]
pub enum Store {
    #[default]
    Nothing,
    Static(&'static [u8]),
    /// Received together with the head.
    Shared(Bytes),
    Pooled(Buffer),
}

impl BodyChunk {
    /// A constant text, such as the sentence of an error.
    pub fn fixed(text: &'static [u8]) -> BodyChunk {
        BodyChunk {
            store: Store::Static(text),
            start: 0,
            end: text.len(),
        }
    }

    /// Bytes that were received together with a head.
    pub fn shared(bytes: Bytes) -> BodyChunk {
        BodyChunk {
            start: 0,
            end: bytes.len(),
            store: Store::Shared(bytes),
        }
    }

    /// Bytes `start..end` of a buffer.
    pub fn pooled(buffer: Buffer, start: usize, end: usize) -> BodyChunk {
        BodyChunk {
            store: Store::Pooled(buffer),
            start,
            end,
        }
    }

    /// The bytes that are left.
    pub fn bytes(&self) -> &[u8] {
        let bytes = match &self.store {
            Store::Nothing => &[],
            Store::Static(bytes) => *bytes,
            Store::Shared(bytes) => bytes,
            Store::Pooled(buffer) => buffer,
        };
        bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// The bytes that are left, to be kept apart from the buffer that they were read into.
    pub fn into_bytes(self) -> Bytes {
        match self.store {
            Store::Shared(bytes) => bytes.slice(self.start..self.end),
            _ => Bytes::copy_from_slice(self.bytes()),
        }
    }

    /// How many bytes are left.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl Buf for BodyChunk {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes()
    }

    fn advance(&mut self, count: usize) {
        self.start += count.min(self.len());
    }
}
