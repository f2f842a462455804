//! What an exchange holds until its last byte is sent.

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
        budget::{Budget, Permit},
        concurrency::ConcurrencyPermit,
        prices::head_price,
    },
    observe::{
        log::{self, Record},
        metrics::{self, Metrics, RouteCounters},
        repeats::Repeats,
    },
    outcome::Outcome,
};

/// What an exchange holds until its last byte is sent. Its drop counts and logs how it ended: see `ending.rs`.
#[derive(Debug)]
pub struct ExchangeContext<'a> {
    /// The connection it belongs to.
    pub slot: &'a SlotRef,
    /// Milliseconds that it has spent in queues: for memory, a place, an upstream connection.
    pub waited: Cell<u32>,
    /// The request as log lines name it.
    pub subject: &'a Subject,
    /// The configuration that it began with.
    pub config: &'a Config,
    /// The counters of that configuration's routes; empty where they are not shown.
    pub counters: &'a Rc<[Arc<RouteCounters>]>,
    /// The route that serves it, by its index in the configuration.
    pub route: Cell<Option<u32>>,
    /// Its permit of `max_concurrent_requests`.
    pub place: RefCell<Option<ConcurrencyPermit>>,
    /// Its access log entry; `None` = there is none.
    pub record: RefCell<Option<Box<Record>>>,
    /// When its head was complete; `None` for a tunnel, and where neither the log nor the metrics need it.
    pub begun: Option<Instant>,
    /// The status of the answer; 0 = none yet.
    pub status: Cell<u16>,
    /// Bytes of request body so far.
    pub received: Cell<u64>,
    /// Bytes of response body so far.
    pub sent: Cell<u64>,
    /// Pays for a response head that is larger than the price of an exchange covers.
    pub head: RefCell<Option<Box<Permit>>>,
    /// The budget that pays for it.
    pub budget: &'a Rc<Budget>,
    /// Bytes of the response body that arrived with a large head, in a buffer of their own.
    pub rest: Cell<u32>,
    /// The kernel has the last byte of the answer.
    pub complete: Cell<bool>,
    /// The outcome, where it is known before the end.
    pub outcome: Cell<Option<Outcome>>,
    /// The cause, for the log.
    pub cause: OnceCell<Box<str>>,
    /// An upstream may have been asked.
    pub asked: Cell<bool>,
    /// The failure was logged already.
    pub told: Cell<bool>,
    /// Whether it is a tunnel after a 101, and no longer an exchange.
    pub is_tunnel: bool,
    /// The process's counters.
    pub metrics: &'a Arc<Metrics>,
    /// Repeated warnings, which are logged as one line a second.
    pub repeats: &'a Repeats,
}

impl<'a> ExchangeContext<'a> {
    /// Begins an exchange, which is counted from here on. `waited` is the request's wait so far, in milliseconds.
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
        let mut exchange = Self::new(worker, slot, subject, &state.config, &state.counters);
        exchange.waited = Cell::new(waited);
        exchange.record = RefCell::new(record);
        exchange.begun = begun;
        exchange
    }

    /// A tunnel after a 101, whose request was counted before; the caller hands over its access log entry, route and wait.
    pub fn of_tunnel(
        worker: &'a Worker,
        slot: &'a SlotRef,
        subject: &'a Subject,
        config: &'a Config,
        counters: &'a Rc<[Arc<RouteCounters>]>,
    ) -> ExchangeContext<'a> {
        let mut tunnel = Self::new(worker, slot, subject, config, counters);
        tunnel.status = Cell::new(101);
        tunnel.is_tunnel = true;
        tunnel
    }

    #[inline]
    fn new(
        worker: &'a Worker,
        slot: &'a SlotRef,
        subject: &'a Subject,
        config: &'a Config,
        counters: &'a Rc<[Arc<RouteCounters>]>,
    ) -> ExchangeContext<'a> {
        ExchangeContext {
            slot,
            waited: Cell::new(0),
            subject,
            config,
            counters,
            route: Cell::new(None),
            place: RefCell::default(),
            record: RefCell::default(),
            begun: None,
            status: Cell::new(0),
            received: Cell::new(0),
            sent: Cell::new(0),
            head: RefCell::default(),
            budget: &worker.budget,
            rest: Cell::new(0),
            complete: Cell::new(false),
            outcome: Cell::new(None),
            cause: OnceCell::new(),
            asked: Cell::new(false),
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

    /// Keeps the permit of a large response head: from now on the exchange may be evicted for others that wait for such
    /// memory.
    pub fn hold_head(&self, permit: Permit) {
        self.head.replace(Some(Box::new(permit)));
        self.slot.holds_head(true);
    }

    /// Changes the price of the large response head to `bytes` of buffers.
    pub fn resize_head(&self, bytes: usize) {
        let price = head_price(bytes);
        if price == 0 {
            return self.free_head();
        }
        // what the operator's edits add to a head cannot be refused any more
        let permit = self.head.take();
        let mut permit = permit.unwrap_or_else(|| Box::new(self.budget.force_large_head(0)));
        permit.resize(price);
        self.head.replace(Some(permit));
        self.slot.holds_head(true);
    }

    /// Frees the permit of the large response head.
    pub fn free_head(&self) {
        if self.head.take().is_some() {
            self.slot.holds_head(false);
        }
    }
}
