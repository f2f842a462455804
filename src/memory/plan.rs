//! What a memory limit allows each worker, decided once at start.

use crate::memory::prices::{AMPLE, BASE, CONNECTION, EXCHANGE, LOG_QUEUE, SMALL};

/// What the limit allows; fixed at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Bytes that this worker's permits may have in all; `None` = no limit.
    pub pool: Option<u64>,
    /// Maximum of client connections of this worker.
    pub connections: usize,
    /// Whether every byte in a socket has a permit (`memory/sockets.rs`): the limit is below 512 MiB. Otherwise the kernel
    /// tunes socket buffers.
    pub tight: bool,
    /// Whether TLS records and HTTP/2 windows are small: the limit is below 64 MiB.
    pub small: bool,
}

impl Plan {
    /// The plan for one worker of a process with `limit` bytes; `max_connections` is the configured maximum of all workers,
    /// `None` = what memory allows.
    #[cfg(test)]
    pub fn new(limit: Option<u64>, workers: usize, max_connections: Option<usize>) -> Plan {
        Plan::divide(0, limit, workers, max_connections).0
    }

    /// Like [`Plan::new`], where the configuration takes `held` bytes; `None` where it leaves less than two exchanges and eight
    /// connections need.
    pub fn beside(
        held: u64,
        limit: Option<u64>,
        workers: usize,
        max_connections: Option<usize>,
    ) -> Option<Plan> {
        let (plan, is_enough) = Plan::divide(held, limit, workers, max_connections);
        (is_enough || held == 0).then_some(plan)
    }

    /// The plan, and whether the limit allows the smallest one.
    fn divide(
        held: u64,
        limit: Option<u64>,
        workers: usize,
        max_connections: Option<usize>,
    ) -> (Plan, bool) {
        let workers_wide = workers as u64;
        let configured = max_connections.map_or(usize::MAX, |all| all.div_ceil(workers).max(1));
        let Some(limit) = limit else {
            let plan = Plan {
                pool: None,
                connections: configured,
                tight: false,
                small: false,
            };
            return (plan, true);
        };
        // a twelfth stays free for what has no permit: fragmentation, bursts of packets, page tables
        let pool = limit
            .saturating_sub(BASE + held + 100_000 * (workers_wide - 1))
            .saturating_sub(limit / 12)
            / workers_wide;
        let least = CONNECTION * 8 + EXCHANGE * 2;
        let is_enough = pool >= least;
        let pool = pool.max(least);
        let connections = usize::try_from(pool * 3 / 8 / CONNECTION)
            .unwrap_or(usize::MAX)
            .clamp(8, configured.max(8));
        let plan = Plan {
            pool: Some(pool),
            connections: connections.min(configured),
            tight: limit < AMPLE,
            small: limit < SMALL,
        };
        (plan, is_enough)
    }

    /// `SO_SNDBUF` of the log where it is a socket; `None` = the kernel's default.
    pub fn log_queue(&self) -> Option<usize> {
        self.tight.then_some(LOG_QUEUE)
    }

    /// Also bounds connections by the process's descriptors, because each may need a second one for its upstream. Returns the
    /// maximum of this worker's upstream connections, too.
    ///
    /// # Errors
    /// How many descriptors are needed for the process and one connection of each worker with its upstream, where the process
    /// may have fewer.
    pub fn within_descriptors(
        self,
        descriptors: u64,
        workers: usize,
        listeners: usize,
    ) -> Result<(Plan, usize), u64> {
        let workers = workers as u64;
        // for listeners, epoll, timers, the log, look-ups, and files read at a reload
        let own = 16 + (3 + 2 * listeners as u64) * workers;
        let needed = own + 2 * workers;
        if descriptors < needed {
            return Err(needed);
        }
        let share = (descriptors - own).saturating_sub((descriptors / 16).min(64)) / (2 * workers);
        let share = usize::try_from(share).unwrap_or(usize::MAX).max(1);
        let plan = Plan {
            connections: self.connections.min(share),
            ..self
        };
        Ok((plan, share))
    }

    /// How many exchanges fit beside the maximum of connections; `None` = no limit.
    pub fn exchanges(&self) -> Option<u64> {
        let pool = self.pool?;
        Some((pool - (self.connections as u64 * CONNECTION).min(pool)) / EXCHANGE)
    }
}
