//! What moves through an exchange: pieces of a body, what waits to be written, and what the exchange holds meanwhile.

use std::{
    cell::{Cell, OnceCell, RefCell},
    io::{self, IoSlice},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    budget::{Budget, Buffer, Permit, head_price},
    config::Config,
    context::Subject,
    gate::Client,
    log::Record,
    metrics::{Metrics, RouteCounters},
    outcome::Outcome,
    park::Watch,
    pool::Place,
    wire::{Download, Got, Upstream},
};

/// Bytes of a body in a buffer.
#[derive(Debug, Default)]
pub struct Piece {
    store: Store,
    start: usize,
    end: usize,
}

#[derive(Debug, Default)]
enum Store {
    #[default]
    Nothing,
    Static(&'static [u8]),
    /// Came together with the head.
    Shared(Bytes),
    Pooled(Buffer),
}

impl Piece {
    /// A sentence of ours.
    pub fn fixed(text: &'static [u8]) -> Piece {
        Piece {
            store: Store::Static(text),
            start: 0,
            end: text.len(),
        }
    }

    /// All of these bytes.
    pub fn shared(bytes: Bytes) -> Piece {
        Piece {
            start: 0,
            end: bytes.len(),
            store: Store::Shared(bytes),
        }
    }

    /// Bytes `start..end` of a buffer.
    pub fn pooled(buffer: Buffer, start: usize, end: usize) -> Piece {
        Piece {
            store: Store::Pooled(buffer),
            start,
            end,
        }
    }

    /// What is left of it.
    pub fn bytes(&self) -> &[u8] {
        let bytes = match &self.store {
            Store::Nothing => &[],
            Store::Static(bytes) => *bytes,
            Store::Shared(bytes) => bytes,
            Store::Pooled(buffer) => buffer,
        };
        bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// How much is left of it.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// What one task may move before the others have theirs. tokio's own bound, 128 operations, is half a megabyte and more
/// each time: behind a hundred fast uploads a request for health would wait for seconds.
#[derive(Debug)]
pub struct Turn {
    left: u32,
}

/// Pieces of a [`Turn`].
const PIECES: u32 = 8;

impl Turn {
    /// One that begins.
    pub fn new() -> Turn {
        Turn { left: PIECES }
    }

    /// After a piece: ready while there may be another, else the task is woken again behind the others.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.left -= 1;
        if self.left > 0 {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What waits to be written to a socket, in one call where it takes it: text of ours, a piece of a body, and what closes
/// a chunk.
#[derive(Debug)]
pub struct Outbox {
    text: Vec<u8>,
    written: usize,
    data: Piece,
    tail: &'static [u8],
    /// Whether a byte of the text that it began with was written.
    begun: bool,
    /// Whether that text made room for later framing.
    cleared: bool,
}

impl Outbox {
    /// A message's head, to be written.
    pub fn new(head: Vec<u8>) -> Outbox {
        Outbox {
            text: head,
            written: 0,
            data: Piece::default(),
            tail: b"",
            begun: false,
            cleared: false,
        }
    }

    /// Whether all of it is with the kernel.
    pub fn is_empty(&self) -> bool {
        self.written == self.text.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Whether nothing was written yet, and there is room for a piece that leaves together with the head.
    pub fn is_fresh(&self) -> bool {
        !self.begun && self.data.is_empty()
    }

    /// Whether the head is still here to be sent once more.
    pub fn can_rewind(&self) -> bool {
        !self.cleared
    }

    /// Starts again, for another connection.
    pub fn rewind(&mut self) {
        self.written = 0;
        self.begun = false;
    }

    /// Puts a piece in; `chunked` frames it.
    pub fn put(&mut self, data: Piece, chunked: bool) {
        if chunked && !data.is_empty() {
            let mut size = [0; 18];
            self.frame(hexadecimal_line(data.len(), &mut size));
            self.tail = b"\r\n";
        }
        self.data = data;
    }

    /// Framing goes behind the head where that is still unsent, so that both leave together.
    pub fn frame(&mut self, text: &[u8]) {
        if self.begun {
            self.text.clear();
            self.written = 0;
            self.cleared = true;
        }
        self.text.extend_from_slice(text);
    }

    /// Lets the piece that was put in be the last chunk, without trailers behind it.
    pub fn end_chunks(&mut self) {
        self.tail = b"\r\n0\r\n\r\n";
    }

    /// Lets the head go, which will not be sent again.
    pub fn forget_text(&mut self) {
        if self.written > 0 && self.is_empty() {
            self.text = Vec::new();
            self.written = 0;
            self.cleared = true;
        }
    }

    /// Lets a large head go that is with the kernel, whatever is still to be written behind it. Says whether it is.
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

    /// So many bytes were written; gives how many of them were a body's.
    pub fn wrote(&mut self, count: usize) -> usize {
        self.begun = true;
        let text = count.min(self.text.len() - self.written);
        self.written += text;
        let data = (count - text).min(self.data.len());
        self.data.start += data;
        if self.data.is_empty() {
            // its buffer goes back
            self.data = Piece::default();
        }
        self.tail = self.tail.get(count - text - data..).unwrap_or_default();
        data
    }
}

/// A chunk's size line.
fn hexadecimal_line(size: usize, line: &mut [u8; 18]) -> &[u8] {
    let mut left = size;
    let mut start = line.len() - 2;
    for (at, slot) in line.iter_mut().enumerate().rev() {
        if at >= 16 {
            *slot = if at == 16 { b'\r' } else { b'\n' };
            continue;
        }
        #[expect(clippy::indexing_slicing, reason = "four bits have sixteen values")]
        let digit = b"0123456789abcdef"[left & 15];
        *slot = digit;
        start = at;
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    line.get(start..).unwrap_or_default()
}

/// What an exchange holds until its last byte is gone. Its drop counts and tells how it ended: see `context.rs`.
#[derive(Debug)]
pub struct Ride<'a> {
    /// The connection it belongs to.
    pub watch: &'a Watch,
    /// Milliseconds that it has stood in queues: for memory, a place, an upstream connection.
    pub waited: Cell<u32>,
    /// What was asked for, by whom.
    pub subject: &'a Subject,
    /// The configuration that it began with.
    pub config: &'a Config,
    /// The counters of that configuration's routes; empty where they are not shown.
    pub counters: &'a Rc<[Arc<RouteCounters>]>,
    /// Which route serves it, by its place in the configuration.
    pub route: Cell<Option<u32>>,
    /// Its place among `max_concurrent_requests`.
    pub place: RefCell<Option<Place>>,
    /// Its line in the access log.
    pub record: RefCell<Option<Box<Record>>>,
    /// When its head was whole; `None` where neither the log nor the metrics ask.
    pub begun: Option<Instant>,
    /// The status that the client is answered with; 0 = none yet.
    pub status: Cell<u16>,
    /// Bytes of request body so far.
    pub received: Cell<u64>,
    /// Bytes of response body so far.
    pub sent: Cell<u64>,
    /// What pays for a response head that is larger than the price of an exchange foresees.
    pub head: RefCell<Option<Box<Permit>>>,
    /// Whose bytes it spends.
    pub budget: &'a Rc<Budget>,
    /// Bytes of the response body that came with a large head, in a buffer of their own.
    pub rest: Cell<u32>,
    /// The kernel has the answer's last byte.
    pub complete: Cell<bool>,
    /// How it ends, where that is known before it does.
    pub outcome: Cell<Option<Outcome>>,
    /// What the log says of it besides.
    pub cause: OnceCell<Box<str>>,
    /// A line of the log has told of it already.
    pub told: Cell<bool>,
    /// Whether it is a tunnel behind a 101, and no exchange any more.
    pub is_tunnel: bool,
    /// Everybody's counters.
    pub metrics: &'a Arc<Metrics>,
}

impl Ride<'_> {
    /// Whether a large response head is paid for.
    pub fn holds_head(&self) -> bool {
        self.head.borrow().is_some()
    }

    /// Keeps what pays for a large response head: with it the exchange may be asked to leave for others that wait.
    pub fn hold_head(&self, permit: Permit) {
        self.head.replace(Some(Box::new(permit)));
        self.watch.holds_head(true);
    }

    /// Lets a large response head cost what `bytes` of buffers do from now on.
    pub fn resize_head(&self, bytes: usize) {
        let price = head_price(bytes);
        if price == 0 {
            return self.free_head();
        }
        // what the operator's own fields add to a head cannot be refused any more
        let permit = self.head.take();
        let mut permit = permit.unwrap_or_else(|| Box::new(self.budget.force_large_head(0)));
        permit.resize(price);
        self.head.replace(Some(permit));
        self.watch.holds_head(true);
    }

    /// The large response head is gone.
    pub fn free_head(&self) {
        if self.head.take().is_some() {
            self.watch.holds_head(false);
        }
    }
}

/// A response body.
#[derive(Debug)]
pub enum Body {
    /// A sentence of ours; empty where there is none.
    Own(&'static [u8]),
    /// Bytes that are shared by all such answers.
    Made(Bytes),
    /// Whatever the upstream sends.
    Upstream(Box<Download>),
}

impl Body {
    /// How much there will be; `None` where nobody knows.
    pub fn length(&self) -> Option<u64> {
        match self {
            Body::Own(text) => Some(text.len() as u64),
            Body::Made(bytes) => Some(bytes.len() as u64),
            Body::Upstream(download) => download.remaining(),
        }
    }

    /// How long the client may give no byte of a request that is not complete yet; `None` = no limit.
    pub fn read_timeout(&self) -> Option<Duration> {
        match self {
            Body::Own(_) | Body::Made(_) => None,
            Body::Upstream(download) => download.read_timeout(),
        }
    }

    /// Whether all of it was given out.
    pub fn is_end(&self) -> bool {
        match self {
            Body::Own(text) => text.is_empty(),
            Body::Made(bytes) => bytes.is_empty(),
            Body::Upstream(download) => download.is_end(),
        }
    }

    /// The next part; `None` at the end.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        client: &Client<'_>,
    ) -> Poll<Option<io::Result<Got>>> {
        let piece = match self {
            Body::Own(text) => Piece::fixed(std::mem::take(text)),
            Body::Made(bytes) => Piece::shared(std::mem::take(bytes)),
            Body::Upstream(download) => return download.poll(context, client),
        };
        Poll::Ready((!piece.is_empty()).then_some(Ok(Got::Data(piece))))
    }

    /// Sends on what is left of the request, whether or not the client takes the answer.
    ///
    /// # Errors
    /// The client broke off: there is nobody to answer.
    pub fn poll_upload(
        &mut self,
        context: &mut Context<'_>,
        client: &Client<'_>,
    ) -> io::Result<()> {
        match self {
            Body::Upstream(download) => download.poll_upload(context, client),
            Body::Own(_) | Body::Made(_) => Ok(()),
        }
    }
}

/// The upstream's half of a tunnel, and what is told of it when it has ended.
#[derive(Debug)]
pub struct Tunnel {
    /// The connection that was upgraded.
    pub upstream: Upstream,
    /// What was asked for, by whom.
    pub subject: Subject,
    /// The configuration that the exchange began with.
    pub config: Arc<Config>,
    /// The counters of its routes.
    pub counters: Rc<[Arc<RouteCounters>]>,
    /// Which of its routes serves the tunnel.
    pub route: Option<u32>,
    /// Milliseconds that the request stood in queues.
    pub waited: u32,
    /// Written when the tunnel has ended.
    pub record: Option<Box<Record>>,
    /// Its place among `max_tunnels`.
    pub place: Option<Place>,
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        task::Wake,
    };

    use super::*;

    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_turn_ends_and_asks_for_the_next() {
        let count = Arc::new(Count(AtomicU32::new(0)));
        let waker = Arc::clone(&count).into();
        let mut context = Context::from_waker(&waker);
        let mut turn = Turn::new();
        for _ in 1..PIECES {
            assert!(turn.poll_next(&mut context).is_ready());
            assert_eq!(count.0.load(Ordering::Relaxed), 0);
        }
        assert!(turn.poll_next(&mut context).is_pending());
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

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
            let mut outbox = Outbox::new(b"head\r\n".to_vec());
            outbox.put(Piece::fixed(b"hello"), true);
            let first: Vec<u8> = outbox
                .slices()
                .iter()
                .flat_map(|part| part.to_vec())
                .collect();
            assert_eq!(first, whole);
            outbox.wrote(cut);
            let rest: Vec<u8> = outbox
                .slices()
                .iter()
                .flat_map(|part| part.to_vec())
                .collect();
            assert_eq!(rest, &whole[cut..]);
            assert_eq!(outbox.is_empty(), cut == whole.len());
        }
    }
}
