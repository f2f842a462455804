//! The state that the connections of one thread share, and the state that follows from the configuration in force.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::SystemTime,
};

use crate::{
    config::Config,
    connection_table::{
        ConnectionTable,
        eviction::{Grace, Reason, Scope},
    },
    memory::{
        budget::{Budget, Permit},
        buffers::{Buffers, ReadSize},
        concurrency::ConcurrencyLimit,
        footprint,
        prices::{NARROW, UNSENT_IN_KERNEL},
    },
    observe::{
        health::Report,
        metrics::{self, Metrics, RouteCounters},
        repeats::Repeats,
    },
    route::{Found, Scheme},
    upstream::{
        dial::{Dialer, SocketOptions},
        pool::{Host, Pool},
    },
};

/// Bytes of [`Worker::scratch`]. Not the size of a read buffer: it lives as long as the program, and the allocator
/// could not give back the half megabyte of read buffers around it.
const SCRATCH: usize = 12 * 1024;

/// The state that the connections of one thread share.
pub struct Worker {
    /// The slots of its connections.
    pub table: Rc<ConnectionTable>,
    /// The memory that clients and upstreams may use.
    pub budget: Rc<Budget>,
    /// Its upstream connections.
    pub pool: Rc<Pool>,
    /// Its share of `max_concurrent_requests`.
    pub places: Rc<ConcurrencyLimit>,
    /// Its share of `max_tunnels`.
    pub tunnels: Rc<ConcurrencyLimit>,
    /// The few places for answers that need no upstream when memory is exhausted.
    pub reserve: Rc<ConcurrencyLimit>,
    /// Allows one step of a TLS handshake with a client at a time.
    pub handshake_turns: Rc<ConcurrencyLimit>,
    /// The pool of read buffers.
    pub buffers: Rc<Buffers>,
    /// The buffer for one read of a request head.
    pub scratch: Rc<RefCell<Box<[u8]>>>,
    /// The process's counters.
    pub metrics: Arc<Metrics>,
    /// Repeated warnings, which are logged as one line a second.
    pub repeats: Repeats,
    /// Health answers 503, and answers say `connection: close`.
    pub draining: Cell<bool>,
    state: RefCell<Rc<State>>,
    /// The number of routes whose memory the plan has subtracted.
    planned_routes: usize,
    /// The price of routes that a reload has added, taken from the budget.
    growth: Cell<Option<Permit>>,
    workers: usize,
    start: SystemTime,
}

/// The state that follows from one configuration; an exchange keeps the one that it began with.
pub struct State {
    /// The configuration.
    pub config: Arc<Config>,
    /// Whether a policy answers preflights, so that an OPTIONS rarely needs an upstream.
    pub answers_options: bool,
    /// Whether a route answers without an upstream.
    pub answers_directly: bool,
    /// The health report.
    pub report: Report,
    /// The upstream of each route, in the order of the routes; `None` where the route answers by itself.
    hosts: Vec<Option<Rc<Host>>>,
    /// The counters of each route, in the same order; empty where they are not shown.
    pub counters: Rc<[Arc<RouteCounters>]>,
    /// Makes upstream connections.
    pub dialer: Dialer,
}
impl Worker {
    /// One of `config.threads` workers; `upstreams` is how many upstream connections it has file descriptors for.
    pub fn new(
        config: Arc<Config>,
        budget: Rc<Budget>,
        upstreams: usize,
        metrics: Arc<Metrics>,
        start: SystemTime,
    ) -> Rc<Worker> {
        let workers = config.threads;
        let pool = Pool::new(
            &config.transport,
            workers,
            upstreams,
            Rc::clone(&budget),
            Arc::clone(&metrics),
        );
        let planned_routes = config.routes.len();
        let state = State::new(config, &pool, &budget, &metrics, start);
        Rc::new(Worker {
            planned_routes,
            growth: Cell::new(None),
            table: ConnectionTable::new(Rc::clone(&budget.room)),
            places: ConcurrencyLimit::new(state.config.proxy.max_concurrent_requests, workers),
            tunnels: ConcurrencyLimit::new(state.config.proxy.max_tunnels, workers),
            reserve: ConcurrencyLimit::new(Some(2), 1),
            handshake_turns: ConcurrencyLimit::new(Some(1), 1),
            buffers: Rc::new(Buffers::within(&budget)),
            scratch: Rc::new(RefCell::new(vec![0; SCRATCH].into_boxed_slice())),
            repeats: Repeats::default(),
            draining: Cell::new(false),
            state: RefCell::new(Rc::new(state)),
            budget,
            pool,
            metrics,
            workers,
            start,
        })
    }

    /// The state in force.
    pub fn state(&self) -> Rc<State> {
        Rc::clone(&self.state.borrow())
    }

    /// Takes over another configuration; exchanges in progress keep theirs.
    pub fn reload(&self, config: Arc<Config>) {
        self.pool.set_limits(&config.transport, self.workers);
        self.pool.renew_trust();
        self.places
            .set_limit(config.proxy.max_concurrent_requests, self.workers);
        self.tunnels
            .set_limit(config.proxy.max_tunnels, self.workers);
        self.table.reset_pace();
        let more = config.routes.len().saturating_sub(self.planned_routes);
        let price = footprint::growth(more, self.workers);
        self.growth.set(Some(self.budget.force(price)));
        let state = State::new(config, &self.pool, &self.budget, &self.metrics, self.start);
        *self.state.borrow_mut() = Rc::new(state);
    }

    /// Evicts connections that do nothing; see [`ConnectionTable::evict_idle`].
    pub fn evict_idle(&self, many: usize, grace: Grace) -> usize {
        let evicted = self.table.evict_idle(many, grace);
        metrics::add(&self.metrics.connections_evicted, evicted as u64);
        evicted
    }

    /// Evicts the connection with the least progress; see [`ConnectionTable::evict_least`].
    pub fn evict_least(&self, scope: Scope, reason: Reason) -> bool {
        let evicted = self.table.evict_least(scope, reason);
        metrics::add(&self.metrics.connections_evicted, u64::from(evicted));
        evicted
    }

    /// The bound of memory for a log line: the key that sets it, and the bytes that the process may use.
    pub fn memory_bound(&self) -> (&'static str, u64) {
        (
            "limits.memory",
            metrics::value(&self.metrics.memory_limit_bytes),
        )
    }

    /// Evicts clients whose handshake makes no progress; see [`ConnectionTable::evict_handshakes`].
    pub fn evict_handshakes(&self, many: usize) {
        let evicted = self.table.evict_handshakes(many, Grace::USUAL);
        metrics::add(&self.metrics.connections_evicted, evicted as u64);
    }

    /// Evicts exchanges that hold memory for large response heads; see [`ConnectionTable::evict_heads`].
    pub fn evict_heads(&self, many: usize) {
        let evicted = self.table.evict_heads(many);
        metrics::add(&self.metrics.connections_evicted, evicted as u64);
    }

    /// Evicts clients that do not acknowledge the end of their answer; see [`ConnectionTable::evict_unsent`].
    pub fn evict_unsent(&self, many: usize) {
        let evicted = self.table.evict_unsent(many);
        metrics::add(&self.metrics.connections_evicted, evicted as u64);
    }

    /// How many bytes to read at a time, at least `least`.
    pub fn room(&self, least: usize) -> ReadSize {
        ReadSize::new(least, self.budget.is_wanted())
    }
}

impl State {
    fn new(
        config: Arc<Config>,
        pool: &Rc<Pool>,
        budget: &Rc<Budget>,
        metrics: &Metrics,
        start: SystemTime,
    ) -> State {
        let plan = budget.plan();
        let dialer = Dialer::new(SocketOptions {
            keep_alive: config.transport.dial_keep_alive,
            receive_buffer: plan.tight.then_some(NARROW),
            notsent_lowat: Some(UNSENT_IN_KERNEL),
        })
        .paid_by(budget);
        let hosts = config
            .routes
            .iter()
            .map(|route| route.target().map(|target| pool.host(&target.origin)))
            .collect();
        let named = config.routes.iter();
        let counters = metrics.routes(named.map(|route| (route.path.clone(), route.condition())));
        let answers_directly = config.routes.iter().any(|route| route.target().is_none());
        let report = Report::new(&config.version, start, config.routes.len());
        let answers_options =
            config.cors.is_some() || config.routes.iter().any(|route| route.cors.is_some());
        State {
            config,
            answers_options,
            answers_directly,
            report,
            hosts,
            counters: counters.into(),
            dialer,
        }
    }

    /// Whether a route answers a request for this Host and path by itself.
    pub fn answers(&self, host: &[u8], path: &[u8]) -> bool {
        let (Ok(host), Ok(path)) = (str::from_utf8(host), str::from_utf8(path)) else {
            return false;
        };
        // for both schemes: the fields that decide about the scheme were not read yet
        [Scheme::Http, Scheme::Https].into_iter().all(|scheme| {
            match self.config.routes.find(host, path, || scheme) {
                Found::Route(route) => route.target().is_none(),
                Found::AddSlash(_) | Found::Nothing => false,
            }
        })
    }

    /// The upstream of a route of this configuration.
    pub fn host(&self, route: Option<u32>) -> &Rc<Host> {
        route
            .and_then(|index| self.hosts.get(index as usize)?.as_ref())
            .expect("every route of this configuration that has a target has its host")
    }
}
