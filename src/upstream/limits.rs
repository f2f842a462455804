//! How many upstream connections a worker may have.

use crate::config::Transport;

/// A worker's share of the limits in `transport:`; `usize::MAX` = none.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Idle connections over all hosts.
    pub idle: usize,
    /// Idle connections to one host.
    pub idle_per_host: usize,
    /// Connections to one host.
    pub per_host: usize,
    /// How long one may be idle; `None` = for ever.
    pub idle_millis: Option<u32>,
}

impl Limits {
    /// Those of a configuration, divided by the workers.
    pub fn of(transport: &Transport, workers: usize) -> Limits {
        let share =
            |limit: Option<usize>| limit.map_or(usize::MAX, |limit| limit.div_ceil(workers));
        Limits {
            idle: share(transport.max_idle_conns),
            idle_per_host: share(transport.max_idle_conns_per_host),
            per_host: share(transport.max_conns_per_host),
            idle_millis: transport
                .idle_conn_timeout
                .map(|limit| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX / 2)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_a_limit_and_each_has_one_at_least() {
        let config = crate::config::tests::good(
            "routes: [{path: /, target: \"http://h\"}]\ntransport: {max_conns_per_host: 3, max_idle_conns: 1}\n",
        );
        let limits = Limits::of(&config.transport, 2);
        assert_eq!((limits.per_host, limits.idle), (2, 1));
        assert_eq!(limits.idle_per_host, usize::MAX);
    }
}
