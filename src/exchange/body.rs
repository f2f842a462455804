//! What moves through an exchange: pieces of a body, what waits to be written, and what the exchange holds meanwhile.

use std::{
    io::{self},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    config::Config,
    exchange::{
        client::Client,
        download::{BodyFrame, Download},
        subject::Subject,
    },
    http1::client::Upstream,
    memory::{chunk::BodyChunk, concurrency::ConcurrencyPermit},
    observe::{log::Record, metrics::RouteCounters},
};

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
    ) -> Poll<Option<io::Result<BodyFrame>>> {
        let piece = match self {
            Body::Own(text) => BodyChunk::fixed(std::mem::take(text)),
            Body::Made(bytes) => BodyChunk::shared(std::mem::take(bytes)),
            Body::Upstream(download) => return download.poll(context, client),
        };
        Poll::Ready((!piece.is_empty()).then_some(Ok(BodyFrame::Data(piece))))
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
    pub place: Option<ConcurrencyPermit>,
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        task::Wake,
    };

    use super::*;
    use crate::{
        http1::write_buffer::{WriteBuffer, hexadecimal_line},
        yield_budget::{PIECES, YieldBudget},
    };

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
        let mut yield_budget = YieldBudget::new();
        for _ in 1..PIECES {
            assert!(yield_budget.poll_next(&mut context).is_ready());
            assert_eq!(count.0.load(Ordering::Relaxed), 0);
        }
        assert!(yield_budget.poll_next(&mut context).is_pending());
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
