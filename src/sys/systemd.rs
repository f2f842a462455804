//! The protocols of systemd: readiness and watchdog notices (`sd_notify(3)`), and inherited sockets (`sd_listen_fds(3)`).
//! Without systemd they do nothing.

use std::{
    env,
    io::{self},
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Sends systemd a notice (`READY=1`, `STOPPING=1`, `WATCHDOG=1`, …; several lines in one call). False where it was not
/// sent. Never blocks.
pub fn notify(state: &str) -> bool {
    env::var_os("NOTIFY_SOCKET")
        .is_some_and(|socket| send_notice(socket.as_encoded_bytes(), state).is_ok())
}

pub fn send_notice(address: &[u8], state: &str) -> io::Result<()> {
    let address = match address.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::str::from_utf8(address).map_err(io::Error::other)?)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(|_| ())
}

/// How often to send `WATCHDOG=1`: half of the time that systemd waits for it; `None` where it does not watch this process.
pub fn watchdog_interval() -> Option<Duration> {
    let pid = env::var("WATCHDOG_PID").ok();
    let usec = env::var("WATCHDOG_USEC").ok()?;
    parse_watchdog(pid.as_deref(), &usec, std::process::id())
}

pub fn parse_watchdog(pid: Option<&str>, usec: &str, own: u32) -> Option<Duration> {
    let ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    let usec: u64 = usec.parse().ok()?;
    (ours && usec > 1).then(|| Duration::from_micros(usec / 2))
}

/// The monotonic clock in microseconds, for `MONOTONIC_USEC=`, which must accompany `RELOADING=1`.
pub fn monotonic_usec() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live timespec, which stays zero if the call fails.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let whole = u64::try_from(now.tv_sec).unwrap_or(0);
    whole * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// The sockets inherited from systemd, with their names (`""` where none was given), in the order of their descriptors,
/// from 3. They are marked close-on-exec. A second call returns none, because a descriptor has one owner.
pub fn inherited_sockets() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let variable = |name| env::var(name).unwrap_or_default();
    let inherited = parse_inherited(
        &variable("LISTEN_PID"),
        &variable("LISTEN_FDS"),
        &variable("LISTEN_FDNAMES"),
        std::process::id(),
    );
    let taken = inherited.into_iter().filter_map(|(name, number)| {
        // SAFETY: F_SETFD takes two numbers; it fails if the descriptor is not open.
        let open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        // SAFETY: it is open, LISTEN_PID gives it to this process, and `TAKEN` keeps it from being taken twice.
        open.then(|| (name, unsafe { OwnedFd::from_raw_fd(number) }))
    });
    taken.collect()
}

/// Names and descriptors from the three variables of `sd_listen_fds(3)`.
pub fn parse_inherited(pid: &str, count: &str, names: &str, own: u32) -> Vec<(String, RawFd)> {
    if pid.parse() != Ok(own) {
        return Vec::new();
    }
    let count: RawFd = count.parse().unwrap_or(0);
    let mut names = names.split(':');
    (3..3 + count.clamp(0, 1024))
        .map(|number| (names.next().unwrap_or("").to_owned(), number))
        .collect()
}
