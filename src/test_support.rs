//! Reads an upstream's response as the program does, for the tests of `http1/client.rs` and for fuzzing.
//!
//! Never part of the program.

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    io::Write as _,
    os::unix::net::UnixStream,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::UNIX_EPOCH,
};

use http::{HeaderMap, Method};
use http_body::Frame;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use crate::{
    config::{self, Config, Source},
    connection_table::{ConnectionTable, SlotRef},
    exchange::{
        client::Client, context::ExchangeContext, deadline::Limits, download::Download,
        subject::Subject,
    },
    http1::{client::Upstream, response_head::Head, server::ServerCodec},
    memory::{
        budget::Budget,
        buffers::{Buffers, ReadSize},
        plan::Plan,
    },
    net::Stream,
    observe::{
        metrics::{self, Metrics, RouteCounters},
        repeats::Repeats,
    },
    outcome::Outcome,
    route::{Address, Origin},
    upstream::pool::{Checkout, Host, Pool},
};

/// What reading a response needs around it: a runtime, a pool, a budget and a configuration.
pub struct Stage {
    runtime: LocalRuntime,
    table: Rc<ConnectionTable>,
    pool: Rc<Pool>,
    buffers: Rc<Buffers>,
    budget: Rc<Budget>,
    metrics: Arc<Metrics>,
    repeats: Repeats,
    config: Arc<Config>,
}

/// Names and values in their order.
pub type Fields = Vec<(String, Vec<u8>)>;

/// The result of reading a response.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Its status.
    pub status: u16,
    /// Its fields.
    pub fields: Fields,
    /// Its body, as far as it was read.
    pub body: Vec<u8>,
    /// The trailer fields behind it.
    pub trailers: Fields,
    /// Whether its end was reached.
    pub whole: bool,
}

impl Stage {
    /// A stage for any number of responses.
    pub fn new() -> Stage {
        let yaml = "routes: [{path: /, target: 'http://h'}]";
        let config = config::load(Source::Text("stage", yaml), &|_| None).expect("it is sound");
        let budget = Budget::new(Plan::beside(0, None, 1, None).expect("there is no limit"));
        let metrics = Arc::new(Metrics::new(UNIX_EPOCH));
        Stage {
            runtime: Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default())
                .expect("a runtime"),
            table: ConnectionTable::new(Rc::clone(&budget.room)),
            pool: Pool::new(
                &config.transport,
                1,
                usize::MAX,
                Rc::clone(&budget),
                Arc::clone(&metrics),
            ),
            budget,
            buffers: Rc::default(),
            metrics,
            repeats: Repeats::default(),
            config,
        }
    }

    /// Sends these pieces one after the other, each when the one before was read, and then closes. `None`: the head is refused
    /// or incomplete. Also returns whether the connection was kept.
    pub fn read(&self, pieces: &[&[u8]], size: usize, method: &Method) -> (Option<Reading>, bool) {
        let host = self.pool.host(&Origin {
            address: Address::Unix("/nobody".into()),
            tls: None,
            http2: false,
        });
        let reading = self
            .runtime
            .block_on(self.exchange(&host, pieces, size, method));
        let kept = matches!(host.checkout(), Some(Checkout::Reused(_)));
        self.pool.clear();
        (reading, kept)
    }

    async fn exchange(
        &self,
        host: &Rc<Host>,
        pieces: &[&[u8]],
        size: usize,
        method: &Method,
    ) -> Option<Reading> {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("it can be nonblocking");
        let ours = tokio::net::UnixStream::from_std(ours).expect("a runtime");
        let mut lease = host.room().expect("there is room");
        lease.io = Some(Stream::unix(ours, None));
        let mut upstream = Upstream::new(lease, ReadSize::new(size, true));
        let mut pieces = pieces.iter().filter(|piece| !piece.is_empty());
        let mut theirs = Some(theirs);
        let mut feed = || match (pieces.next(), &mut theirs) {
            // a refused response is not read to its end
            (Some(piece), Some(theirs)) => drop(theirs.write_all(piece)),
            _ => theirs = None,
        };
        let head = self.head(&mut upstream, method, &mut feed).await?;
        let reading = Reading {
            status: head.status.as_u16(),
            fields: head
                .headers
                .iter()
                .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec()))
                .collect(),
            ..Reading::default()
        };
        Some(self.body(upstream, head, reading, &mut feed).await)
    }

    /// Runs `work` in the middle of an exchange.
    pub fn amid_exchange(&self, work: impl FnOnce()) {
        let (slot, counters) = (self.table.slot(None), Rc::default());
        let subject = Subject::new(None, Method::GET, "", "/");
        let _exchange_context = self.context(&slot, &subject, &counters);
        work();
    }

    /// How many exchanges had this outcome.
    pub fn ended(&self, outcome: Outcome) -> u64 {
        self.metrics.ended(outcome)
    }

    fn context<'a>(
        &'a self,
        slot: &'a SlotRef,
        subject: &'a Subject,
        counters: &'a Rc<[Arc<RouteCounters>]>,
    ) -> ExchangeContext<'a> {
        metrics::inc(&self.metrics.exchanges);
        ExchangeContext {
            slot,
            waited: Cell::new(0),
            subject,
            config: &self.config,
            counters,
            route: Cell::new(None),
            place: RefCell::default(),
            record: RefCell::default(),
            begun: None,
            status: Cell::new(0),
            received: Cell::new(0),
            sent: Cell::new(0),
            head: RefCell::default(),
            budget: &self.budget,
            rest: Cell::new(0),
            complete: Cell::new(false),
            outcome: Cell::new(None),
            cause: OnceCell::new(),
            asked: Cell::new(false),
            told: Cell::new(false),
            is_tunnel: false,
            metrics: &self.metrics,
            repeats: &self.repeats,
        }
    }

    /// The first head that is not an interim one (RFC 9110 §15.2).
    async fn head(
        &self,
        upstream: &mut Upstream,
        method: &Method,
        feed: &mut impl FnMut(),
    ) -> Option<Head> {
        poll_fn(|context| {
            loop {
                match upstream.poll_fill(context, &self.buffers) {
                    Poll::Pending => {
                        feed();
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                    Poll::Ready(Ok(_)) => {}
                }
                while !upstream.unread().is_empty() {
                    match upstream.read_head(method) {
                        Err(_) => return Poll::Ready(None),
                        Ok(None) => break,
                        Ok(Some(head)) => {
                            if !head.status.is_informational() {
                                return Poll::Ready(Some(head));
                            }
                        }
                    }
                }
            }
        })
        .await
    }

    async fn body(
        &self,
        upstream: Upstream,
        head: Head,
        mut reading: Reading,
        feed: &mut impl FnMut(),
    ) -> Reading {
        let slot = self.table.slot(None);
        let (client, _other) = tokio::net::UnixStream::pair().expect("a pair of sockets");
        let codec = RefCell::new(ServerCodec::new(Stream::unix(client, None)));
        let subject = Subject::new(None, Method::GET, "", "/");
        let counters = Rc::default();
        let exchange_context = self.context(&slot, &subject, &counters);
        exchange_context.complete.set(true);
        let room = ReadSize::new(4096, true);
        let client = Client::http1(&codec, &exchange_context, &self.buffers, room);
        let mut download = Download::new(
            &client,
            Box::new(upstream),
            None,
            head,
            true,
            Limits::default(),
        );
        loop {
            let got = poll_fn(|context| {
                let got = download.poll(context);
                if got.is_pending() {
                    feed();
                }
                got
            });
            match got.await.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(piece))) => {
                    assert!(!piece.is_empty(), "an empty piece");
                    reading.body.extend_from_slice(piece.bytes());
                }
                Some(Ok(Err(frame))) => {
                    reading.trailers = flat(&frame.into_trailers().unwrap_or_default());
                }
                Some(Err(_)) => return reading,
                None => {
                    assert!(
                        download.is_end(),
                        "the download has no more frames but is not at its end"
                    );
                    reading.whole = true;
                    return reading;
                }
            }
        }
    }
}

fn flat(map: &HeaderMap) -> Fields {
    map.iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}
