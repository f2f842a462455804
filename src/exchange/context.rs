//! What an exchange holds until its last byte is gone.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    config::Config,
    connection_table::SlotRef,
    exchange::{
        subject::Subject,
        worker::{State, Worker},
    },
    memory::{
        budget::{Budget, Permit, head_price},
        concurrency::ConcurrencyPermit,
    },
    observe::{
        log::{self, Record},
        metrics::{self, Metrics, RouteCounters},
        repeats::Repeats,
    },
    outcome::Outcome,
};

/// What an exchange holds until its last byte is gone. Its drop counts and tells how it ended: see `context.rs`.
#[derive(Debug)]
pub struct ExchangeContext<'a> {
    /// The connection it belongs to.
    pub slot: &'a SlotRef,
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
    pub place: RefCell<Option<ConcurrencyPermit>>,
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
    /// Warnings that the log gets as one line a second.
    pub repeats: &'a Repeats,
}

impl<'a> ExchangeContext<'a> {
    /// An exchange that begins: it is counted from here on. `waited` is how many milliseconds its request has waited.
    pub fn begin(
        worker: &'a Worker,
        state: &'a State,
        slot: &'a SlotRef,
        subject: &'a Subject,
        waited: u32,
    ) -> ExchangeContext<'a> {
        metrics::inc(&worker.metrics.requests);
        metrics::inc(&worker.metrics.exchanges);
        let begun = (worker.metrics.is_exposed() || log::access_enabled()).then(|| {
            let now = Instant::now();
            now.checked_sub(Duration::from_millis(waited.into()))
                .unwrap_or(now)
        });
        let record = begun.and_then(|begun| {
            let (method, host) = (subject.method.as_str(), subject.host());
            Record::begin(subject.client, method, host, subject.path(), begun)
        });
        ExchangeContext {
            slot,
            waited: Cell::new(waited),
            subject,
            config: &state.config,
            counters: &state.counters,
            route: Cell::new(None),
            place: RefCell::default(),
            record: RefCell::new(record),
            begun,
            status: Cell::new(0),
            received: Cell::new(0),
            sent: Cell::new(0),
            head: RefCell::default(),
            budget: &worker.budget,
            rest: Cell::new(0),
            complete: Cell::new(false),
            outcome: Cell::new(None),
            cause: OnceCell::new(),
            told: Cell::new(false),
            is_tunnel: false,
            metrics: &worker.metrics,
            repeats: &worker.repeats,
        }
    }

    /// Whether a large response head is paid for.
    pub fn holds_head(&self) -> bool {
        self.head.borrow().is_some()
    }

    /// Keeps what pays for a large response head: with it the exchange may be asked to leave for others that wait.
    pub fn hold_head(&self, permit: Permit) {
        self.head.replace(Some(Box::new(permit)));
        self.slot.holds_head(true);
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
        self.slot.holds_head(true);
    }

    /// The large response head is gone.
    pub fn free_head(&self) {
        if self.head.take().is_some() {
            self.slot.holds_head(false);
        }
    }
}
