//! Bodies as far as they came and no exchange has read them: which read buffers of hyper's they keep, and which stream is to
//! be reset where they keep too many.

use std::collections::VecDeque;

use crate::http2::frames::bounds::{Bounds, Excess, above};

/// The bodies of a connection.
#[derive(Debug)]
pub struct Unread {
    bounds: Bounds,
    /// Streams with a body to come.
    streams: Vec<Stream>,
    /// Buffers with DATA that no exchange has read, and how many frames of it.
    pins: Vec<(u64, u32)>,
    /// DATA frames that no exchange has read.
    pub pieces: usize,
    /// The stream to reset.
    pub worst: Option<u32>,
}

/// A body as far as it is known here.
#[derive(Debug)]
struct Stream {
    number: u32,
    /// The buffers of its DATA frames that the exchange has not read.
    pieces: VecDeque<u64>,
    has_begun: bool,
    has_trailers: bool,
}

impl Unread {
    /// A connection without streams.
    pub fn new(bounds: Bounds) -> Unread {
        Unread {
            bounds,
            streams: Vec::new(),
            pins: Vec::new(),
            pieces: 0,
            worst: None,
        }
    }

    fn find(&mut self, number: u32) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|it| it.number == number)
    }

    /// A stream with a body to come.
    pub fn open(&mut self, number: u32) {
        self.streams.push(Stream {
            number,
            pieces: VecDeque::new(),
            has_begun: false,
            has_trailers: false,
        });
    }

    /// A head comes; says whether there was one before.
    pub fn begins(&mut self, number: u32) -> bool {
        self.find(number)
            .is_some_and(|stream| std::mem::replace(&mut stream.has_begun, true))
    }

    /// The exchange has read a DATA frame, or the trailers.
    pub fn took(&mut self, number: u32, is_data: bool) {
        let Some(stream) = self.find(number) else {
            return;
        };
        if !is_data {
            stream.has_trailers = false;
        } else if let Some(pin) = stream.pieces.pop_front() {
            self.unpin(pin);
        }
    }

    /// The body of a stream is not read any more.
    pub fn forget(&mut self, number: u32) {
        let mut streams = self.streams.iter();
        let Some(at) = streams.position(|it| it.number == number) else {
            return;
        };
        for pin in self.streams.swap_remove(at).pieces {
            self.unpin(pin);
        }
    }

    fn unpin(&mut self, pin: u64) {
        self.pieces -= 1;
        if let Some(at) = self.pins.iter().position(|(buffer, _)| *buffer == pin)
            && let Some((_, pieces)) = self.pins.get_mut(at)
        {
            *pieces -= 1;
            if *pieces == 0 {
                self.pins.swap_remove(at);
            }
        }
    }

    /// DATA of `len` bytes begins in this buffer.
    ///
    /// # Errors
    /// The connection is over a bound.
    pub fn data(&mut self, number: u32, len: u32, buffer: u64) -> Result<(), Excess> {
        let bounds = self.bounds;
        let Some(stream) = self.find(number).filter(|_| len > 0) else {
            return Ok(());
        };
        stream.pieces.push_back(buffer);
        self.pieces += 1;
        match self.pins.iter_mut().rev().find(|(pin, _)| *pin == buffer) {
            Some((_, pieces)) => *pieces += 1,
            None => self.pins.push((buffer, 1)),
        }
        if self.pins.len() > above(bounds.bodies) || self.pieces > above(bounds.pieces) {
            return Err(Excess("too many small pieces of bodies"));
        }
        if self.is_over() {
            let most = self.streams.iter().max_by_key(|it| it.pieces.len());
            self.worst = most.map(|it| it.number);
        }
        Ok(())
    }

    /// Whether so much waits that a stream is to be reset.
    pub fn is_over(&self) -> bool {
        self.pins.len() > self.bounds.bodies || self.pieces > self.bounds.pieces
    }

    /// DATA frames and trailers that no exchange has read.
    pub fn held(&self) -> usize {
        self.pieces + self.trailers_waiting()
    }

    /// Trailers that no exchange has read.
    pub fn trailers_waiting(&self) -> usize {
        self.streams.iter().filter(|it| it.has_trailers).count()
    }

    /// Trailers of more than a few bytes come.
    ///
    /// # Errors
    /// The connection is over a bound.
    pub fn trailers(&mut self, number: u32) -> Result<(), Excess> {
        let Some(stream) = self.find(number) else {
            return Ok(());
        };
        stream.has_trailers = true;
        let waiting = self.trailers_waiting();
        if waiting > 2 * self.bounds.trailers {
            return Err(Excess("too many trailers"));
        }
        if waiting > self.bounds.trailers {
            self.worst = Some(number);
        }
        Ok(())
    }
}
