//! What the connections of one thread share, and what follows from the configuration in force.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::SystemTime,
};

use crate::{
    budget::{Budget, Buffers, Room},
    config::Config,
    dial::{Dialer, SocketOptions},
    eviction::{Reason, Scope},
    health::Report,
    metrics::{self, Metrics},
    park::Park,
    pool::{Host, Places, Pool},
    route::Route,
};

/// Bytes of [`Worker::scratch`]. Not the size of a read buffer: it lives as long as the program, and would keep the
/// allocator from giving back the half megabyte in which buffers of the same size lie beside it.
const SCRATCH: usize = 12 * 1024;

/// Everything that the connections of one thread share.
pub struct Worker {
    /// The seats of its connections.
    pub park: Rc<Park>,
    /// What its strangers may cost.
    pub budget: Rc<Budget>,
    /// Its upstream connections.
    pub pool: Rc<Pool>,
    /// Its share of `max_concurrent_requests`.
    pub places: Rc<Places>,
    /// Its share of `max_tunnels`.
    pub tunnels: Rc<Places>,
    /// Places for answers that need no upstream when memory is spent.
    pub reserve: Rc<Places>,
    /// Read buffers.
    pub buffers: Rc<Buffers>,
    /// What one read of a request head may bring.
    pub scratch: Rc<RefCell<Box<[u8]>>>,
    /// Everybody's counters.
    pub metrics: Arc<Metrics>,
    /// Health says 503, and clients are told to leave.
    pub draining: Cell<bool>,
    state: RefCell<Rc<State>>,
    workers: usize,
    start: SystemTime,
}

/// What follows from one configuration; an exchange keeps the one it began with.
pub struct State {
    /// The configuration.
    pub config: Arc<Config>,
    /// Some policy answers preflights, so an OPTIONS mostly needs no upstream.
    pub answers_options: bool,
    /// The health report.
    pub report: Report,
    /// Whose connections each route uses, in the order of the routes.
    hosts: Vec<Rc<Host>>,
    /// Makes upstream connections.
    pub dialer: Dialer,
}
impl Worker {
    /// One of `config.threads` workers; it has descriptors for so many connections to `upstreams`.
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
        let state = State::new(config, &pool, &budget, start);
        Rc::new(Worker {
            park: Park::new(Rc::clone(&budget.room)),
            places: Places::new(state.config.proxy.max_concurrent_requests, workers),
            tunnels: Places::new(state.config.proxy.max_tunnels, workers),
            reserve: Places::new(Some(2), 1),
            buffers: Rc::default(),
            scratch: Rc::new(RefCell::new(vec![0; SCRATCH].into_boxed_slice())),
            draining: Cell::new(false),
            state: RefCell::new(Rc::new(state)),
            budget,
            pool,
            metrics,
            workers,
            start,
        })
    }

    /// What is in force now.
    pub fn state(&self) -> Rc<State> {
        Rc::clone(&self.state.borrow())
    }

    /// Takes over another configuration; exchanges in work keep theirs.
    pub fn reload(&self, config: Arc<Config>) {
        self.pool.set_limits(&config.transport, self.workers);
        self.places
            .set_limit(config.proxy.max_concurrent_requests, self.workers);
        self.tunnels
            .set_limit(config.proxy.max_tunnels, self.workers);
        self.park.reset_pace();
        let state = State::new(config, &self.pool, &self.budget, self.start);
        *self.state.borrow_mut() = Rc::new(state);
    }

    /// Asks connections that do nothing to give way; see [`Park::evict_silent`].
    pub fn evict_silent(&self, many: usize, spare: bool) -> usize {
        let evicted = self.park.evict_silent(many, spare);
        metrics::add(&self.metrics.connections_evicted, evicted as u64);
        evicted
    }

    /// Asks the least progressing to give way; see [`Park::evict_least`].
    pub fn evict_least(&self, scope: Scope, reason: Reason) -> bool {
        let evicted = self.park.evict_least(scope, reason);
        metrics::add(&self.metrics.connections_evicted, u64::from(evicted));
        evicted
    }

    /// How many bytes to read at a time, where the configuration says `least`.
    pub fn room(&self, least: usize) -> Room {
        Room::new(least, self.budget.is_short(), self.budget.plan().tight)
    }
}

impl State {
    fn new(config: Arc<Config>, pool: &Rc<Pool>, budget: &Budget, start: SystemTime) -> State {
        let plan = budget.plan();
        let dialer = Dialer::new(SocketOptions {
            keep_alive: config.transport.dial_keep_alive,
            receive_buffer: plan.socket_buffer,
            send_buffer: plan.socket_buffer,
            bounded: plan.tight,
            notsent_lowat: Some(plan.unsent),
        });
        let hosts = config
            .routes
            .iter()
            .map(|route| pool.host(&route.target.origin))
            .collect();
        let report = Report::new(&config.version, start, config.routes.len());
        let answers_options =
            config.cors.is_some() || config.routes.iter().any(|route| route.cors.is_some());
        State {
            config,
            answers_options,
            report,
            hosts,
            dialer,
        }
    }

    /// Whose connections a route of this configuration uses.
    pub fn host(&self, route: &Route) -> &Rc<Host> {
        let index = self
            .config
            .routes
            .iter()
            .position(|other| std::ptr::eq(other, route));
        index
            .and_then(|index| self.hosts.get(index))
            .expect("every route of this configuration has its host")
    }
}
