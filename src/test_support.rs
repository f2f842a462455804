//! A stage on which an answer is read as the program reads it, for the tests of `http1/client.rs` and for fuzzing.
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
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use crate::{
    config::{self, Config, Source},
    connection_table::ConnectionTable,
    exchange::{
        client::Client,
        context::ExchangeContext,
        deadline::Limits,
        download::{BodyFrame, Download},
        subject::Subject,
    },
    http1::{client::Upstream, response_head::Head, server::ServerCodec},
    memory::{
        budget::{Budget, Plan},
        buffers::{Buffers, ReadSize},
    },
    net::Stream,
    observe::metrics::{self, Metrics},
    route::{Address, Origin},
    upstream::pool::{Checkout, Host, Pool},
};

/// What an upstream connection needs around it.
pub struct Stage {
    runtime: LocalRuntime,
    table: Rc<ConnectionTable>,
    pool: Rc<Pool>,
    buffers: Rc<Buffers>,
    budget: Rc<Budget>,
    metrics: Arc<Metrics>,
    config: Arc<Config>,
}

/// Names and values in their order.
pub type Fields = Vec<(String, Vec<u8>)>;

/// What came of an answer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Its status.
    pub status: u16,
    /// Its fields.
    pub fields: Fields,
    /// Its body as far as it came.
    pub body: Vec<u8>,
    /// What stood behind it.
    pub trailers: Fields,
    /// Whether it came to its end.
    pub whole: bool,
}

impl Stage {
    /// One for any number of answers.
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
            config,
        }
    }

    /// Lets these pieces arrive one after the other, each when the one before was read, and then the end. `None`: the
    /// head is refused, or not whole. Also says whether the connection was kept.
    pub fn read(&self, pieces: &[&[u8]], size: usize, method: &Method) -> (Option<Reading>, bool) {
        let host = self.pool.host(&Origin {
            address: Address::Unix("/nobody".into()),
            tls: None,
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
            // an answer that was refused is read no further
            (Some(piece), Some(theirs)) => drop(theirs.write_all(piece)),
            _ => theirs = None,
        };
        let head = self.head(&mut upstream, method, &mut feed).await?;
        let reading = Reading {
            status: head.status.as_u16(),
            fields: flat(&head.headers),
            ..Reading::default()
        };
        let download = Download::new(upstream, None, head, true, Limits::default(), 0);
        Some(self.body(download, reading, &mut feed).await)
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
        mut download: Download,
        mut reading: Reading,
        feed: &mut impl FnMut(),
    ) -> Reading {
        let slot = self.table.slot(None);
        let (client, _other) = tokio::net::UnixStream::pair().expect("a pair of sockets");
        let codec = RefCell::new(ServerCodec::new(Stream::unix(client, None)));
        let subject = Subject::new(None, Method::GET, "", "/");
        let counters = Rc::default();
        metrics::inc(&self.metrics.exchanges);
        let exchange_context = ExchangeContext {
            slot: &slot,
            waited: Cell::new(0),
            subject: &subject,
            config: &self.config,
            counters: &counters,
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
            complete: Cell::new(true),
            outcome: Cell::new(None),
            cause: OnceCell::new(),
            told: Cell::new(false),
            is_tunnel: false,
            metrics: &self.metrics,
        };
        let room = ReadSize::new(4096, true);
        let client = Client::new(&codec, &exchange_context, &self.buffers, room, None);
        loop {
            let got = poll_fn(|context| {
                let got = download.poll(context, &client);
                if got.is_pending() {
                    feed();
                }
                got
            });
            match got.await {
                Some(Ok(BodyFrame::Data(piece))) => {
                    assert!(!piece.is_empty(), "an empty piece");
                    reading.body.extend_from_slice(piece.bytes());
                }
                Some(Ok(BodyFrame::Trailers(trailers))) => reading.trailers = flat(&trailers),
                Some(Err(_)) => return reading,
                None => {
                    assert!(download.is_end(), "it ends and has not ended");
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
