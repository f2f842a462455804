//! The memory of the configuration: while it is read, and while it is in use.
//!
//! Five thousand routes take several megabytes. Where memory is limited they are subtracted from the budget, and a file
//! that could not be read inside the limit is refused with a message; otherwise the kernel would kill the process.

use crate::sys::{
    alloc,
    cgroup::{self, MemoryUse},
};

/// Peak of bytes for each byte of the file while it is read: 24 to 38 were measured (text, events, tree, and routes).
const READING: u64 = 40;

/// Bytes that the process holds for a route of a plain configuration, its workers' entries included (1,530 were measured).
const HELD_BY_ROUTE: u64 = 1_600;

/// Bytes of its own that a process with a small configuration holds when it has read it.
const USUAL: u64 = 700_000;

/// Bytes of a route in each worker: its upstream's entry in the pool.
const ROUTE: u64 = 320;

/// Checks that a configuration of `len` bytes can be read inside the cgroup's limit, beside what is in use now.
///
/// # Errors
/// A message with the figures.
pub fn check(len: u64) -> Result<(), String> {
    let Some(limit) = cgroup::cgroup_limit() else {
        return Ok(());
    };
    let used = MemoryUse::of_cgroup(&limit).map_or(0, |usage| {
        let used = usage.read().unwrap_or(0);
        used.saturating_sub(usage.reclaimable())
    });
    fits(len, limit.bytes, used)
}

fn fits(len: u64, limit: u64, used: u64) -> Result<(), String> {
    let free = limit.saturating_sub(used);
    let needed = len.saturating_mul(READING);
    if needed <= free {
        return Ok(());
    }
    Err(format!(
        "{} kB of configuration take about {} to be read, and {} of the memory limit of {} are free: \
         raise the limit or have fewer routes",
        len / 1000,
        mebibytes(needed),
        mebibytes(free),
        mebibytes(limit),
    ))
}

/// Bytes of the configuration beyond those of a small one, for this number of routes and workers. Call it when the
/// configuration has just been read and nothing else was done.
pub fn held(routes: usize, workers: usize) -> u64 {
    alloc::collect();
    let own = MemoryUse::of_process().map_or(0, |usage| {
        let used = usage.read().unwrap_or(0);
        used.saturating_sub(usage.reclaimable())
    });
    own.saturating_sub(USUAL) + ROUTE * routes as u64 * workers as u64
}

/// What so many routes more than at the start cost each of the workers, about.
pub fn growth(routes: usize, workers: usize) -> u64 {
    (routes as u64 * HELD_BY_ROUTE).div_ceil(workers.max(1) as u64)
}

/// A figure for people, with one decimal.
pub fn mebibytes(bytes: u64) -> String {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a figure for people, with one decimal"
    )]
    let figure = bytes as f64 / 1_048_576.0;
    format!("{figure:.1} MiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_fit_is_refused_with_figures() {
        assert_eq!(fits(20_000, 10 << 20, 2 << 20), Ok(()));
        let refused = fits(348_000, 10 << 20, 1 << 20).unwrap_err();
        assert_eq!(
            refused,
            "348 kB of configuration take about 13.3 MiB to be read, and 9.0 MiB of the memory limit of 10.0 MiB are \
             free: raise the limit or have fewer routes"
        );
        assert!(fits(1, 1 << 20, 2 << 20).is_err());
    }

    #[test]
    fn a_configuration_of_many_routes_counts() {
        assert!(held(10_000, 2) >= 6_400_000);
        assert_eq!(growth(10, 4), 10 * HELD_BY_ROUTE / 4);
    }
}
