//! What systemd hands over and wants to be told.

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

/// Tells systemd (`READY=1`, `STOPPING=1`, `WATCHDOG=1`, …; several lines in one call). False where nobody listens.
/// Never blocks.
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

/// How often `WATCHDOG=1` is due: half of what systemd waits; `None` where it does not watch this process.
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

/// The monotonic clock in microseconds, as `MONOTONIC_USEC=` beside `RELOADING=1` wants it.
pub fn monotonic_usec() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live timespec; the clock always exists, and zero is what a failure leaves.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let whole = u64::try_from(now.tv_sec).unwrap_or(0);
    whole * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// The sockets that systemd handed over, with their names (`""` where none was given), in the order of their numbers.
/// Their numbers begin at 3. They are marked close-on-exec. A second call gives none: a descriptor has one owner.
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
        // SAFETY: fcntl with F_SETFD looks at the number only; it fails if that is not open.
        let open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        // SAFETY: it is open, was handed over to us by LISTEN_PID, and the flag above keeps us from taking it twice.
        open.then(|| (name, unsafe { OwnedFd::from_raw_fd(number) }))
    });
    taken.collect()
}

/// `sd_listen_fds(3)` on its three variables.
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
