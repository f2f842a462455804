//! What hyper reads and writes: a connection to an upstream.

use std::{
    any::Any,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use crate::net::Stream;

/// Bytes of one read.
const READ: usize = 8 * 1024;

/// A connection to an upstream.
pub struct Io {
    stream: Stream,
    /// What it holds as long as it is open; dropped behind it.
    _place: Box<dyn Any>,
}

impl Io {
    /// A connection, and what it holds as long as it is open.
    pub fn new(stream: Stream, place: Box<dyn Any>) -> Io {
        Io {
            stream,
            _place: place,
        }
    }
}

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ];
        let len = buffer.remaining().min(READ);
        let mut space = ReadBuf::new(bytes.get_mut(..len).unwrap_or_default());
        let read = Pin::new(&mut self.stream).poll_read(context, &mut space);
        if read.is_pending() {
            // what was paid for bytes that the upstream has taken meanwhile
            self.stream.give_back();
        }
        ready!(read)?;
        buffer.put_slice(space.filled());
        Poll::Ready(Ok(()))
    }
}

impl Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
