//! The operating system behind safe functions: allocator, cgroup limits, inherited sockets, notification, stdout.
//!
//! The only room with `unsafe`. It decides nothing: it reads what the kernel says and hands it on as values. The parsers
//! are pure and tested on texts; nothing here allocates on behalf of a client.
#![expect(
    unsafe_code,
    reason = "the allocator and a few calls of libc have no safe form"
)]

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::RefCell,
    env,
    ffi::{c_int, c_long, c_void},
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::{FileExt, OpenOptionsExt as _},
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::{Path, PathBuf},
    ptr, slice,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// [`MiMalloc`], but for small alignments, where it always takes mimalloc's aligned path. The plain path saves 2.4 % of a
/// request's instructions (22.0 against 22.6 thousand).
struct Allocator;

impl Allocator {
    /// Whether `mi_malloc` alone honours a layout: it aligns to 16, but blocks under 16 bytes only to 8.
    const fn aligns_anyway(size: usize, align: usize) -> bool {
        align <= 8 || (align == 16 && size >= 16)
    }
}

// SAFETY: each method hands its arguments to `MiMalloc`, or to the function of mimalloc with the same contract where
// `aligns_anyway` says that the unaligned form gives the alignment; blocks of both forms are freed and resized by both.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Allocator::aligns_anyway(layout.size(), layout.align()) {
            // SAFETY: no precondition.
            unsafe { libmimalloc_sys::mi_malloc(layout.size()).cast() }
        } else {
            // SAFETY: the caller keeps the contract.
            unsafe { MiMalloc.alloc(layout) }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Allocator::aligns_anyway(layout.size(), layout.align()) {
            // SAFETY: no precondition.
            unsafe { libmimalloc_sys::mi_zalloc(layout.size()).cast() }
        } else {
            // SAFETY: the caller keeps the contract.
            unsafe { MiMalloc.alloc_zeroed(layout) }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { MiMalloc.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if Allocator::aligns_anyway(size, layout.align()) {
            // SAFETY: the caller promises that the block came from this allocator.
            unsafe { libmimalloc_sys::mi_realloc(block.cast(), size).cast() }
        } else {
            // SAFETY: the caller keeps the contract.
            unsafe { MiMalloc.realloc(block, layout, size) }
        }
    }
}

/// Runs before mimalloc's own constructor and thus before the first allocation: entries with a number come first.
#[used]
#[unsafe(link_section = ".init_array.00001")]
static BEFORE_FIRST_ALLOCATION: extern "C" fn() = tune_allocator;

extern "C" fn tune_allocator() {
    for (option, value) in OPTIONS {
        // SAFETY: writes to mimalloc's static table while there is one thread. As a default it yields to the
        // environment's MIMALLOC_*, which is read after this.
        unsafe { libmimalloc_sys::mi_option_set_default(option, value) }
    }
}

/// Positions in the enum of mimalloc 3.3; a test holds each against the name that the C side prints.
const ARENA_RESERVE: c_int = 23;
const ALLOW_THP: c_int = 43;

const OPTIONS: [(c_int, c_long); 2] = [
    // KiB. The usual arena of 1 GiB costs 150 kB of bitmaps before anything is stored in it.
    (ARENA_RESERVE, 1024),
    // mimalloc then calls prctl(PR_SET_THP_DISABLE): with huge pages an idle process holds 8 MB instead of 2.
    (ALLOW_THP, 0),
];

/// Gives the calling thread's free memory back to the system. Worth calling after a burst, for it
/// comes back by itself only with more work; takes a millisecond for 6 MB, microseconds where there is nothing.
pub fn collect() {
    // SAFETY: touches only the allocator's own state of this thread.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// Sets how much a TCP connection may receive that is not read: `SO_RCVBUF`, and the clamp of the window that was taken
/// from it when the connection came (tcp(7)). What cannot be set stays as it is.
pub fn set_receive_buffer(socket: &socket2::Socket, size: usize) {
    let clamp = c_int::try_from(size).unwrap_or(c_int::MAX);
    drop(socket.set_recv_buffer_size(size));
    // SAFETY: the value is a `c_int` that lives through the call, and its size is given.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_WINDOW_CLAMP,
            (&raw const clamp).cast(),
            libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or_default(),
        );
    }
}

/// Bytes that were written to a socket and that the other side has not taken (`SIOCOUTQ`, tcp(7)); none where the
/// connection is over, though the kernel goes on counting those that a reset has thrown away. One system call, two where
/// there are some.
pub fn unsent(socket: &socket2::Socket) -> usize {
    let mut bytes: c_int = 0;
    // SAFETY: the request writes one `c_int`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 || (bytes > 0 && socket.peer_addr().is_err()) {
        return 0;
    }
    usize::try_from(bytes).unwrap_or(0)
}

/// Lets the close of a connection be a reset where bytes are left that the other side has not taken: the kernel would keep
/// them, and the socket, for minutes. A unix socket knows no reset.
pub fn reset_unsent(socket: &socket2::Socket) {
    if unsent(socket) > 0 {
        drop(socket.set_linger(Some(Duration::ZERO)));
    }
}

/// Whether the other side has closed, seen past bytes that wait to be read. One system call.
pub fn has_hung_up(socket: &socket2::Socket) -> bool {
    poll_now(socket, libc::POLLRDHUP) & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}

/// What poll(2) says of a socket now.
fn poll_now(socket: &socket2::Socket, events: libc::c_short) -> libc::c_short {
    let mut asked = libc::pollfd {
        fd: socket.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one `pollfd`, and no time to wait.
    let count = unsafe { libc::poll(&raw mut asked, 1, 0) };
    if count > 0 { asked.revents } else { 0 }
}

/// Whether the connection is over in both directions, or broken: nothing that waits in it will ever be taken. One system
/// call.
pub fn is_dead(socket: &socket2::Socket) -> bool {
    poll_now(socket, 0) & (libc::POLLHUP | libc::POLLERR) != 0
}

/// Bytes that have come and were not read (`FIONREAD`). One system call.
pub fn unread(socket: &socket2::Socket) -> usize {
    let mut bytes: c_int = 0;
    // SAFETY: the request writes one `c_int`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result < 0 {
        return 0;
    }
    usize::try_from(bytes).unwrap_or(0)
}

/// The next bytes of a socket, at most so many, which stay where they are. One system call.
pub fn peek(socket: &socket2::Socket, most: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; most];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes at most `most` bytes to a live buffer of that size.
    let count = unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), most, flags) };
    bytes.truncate(usize::try_from(count).unwrap_or(0));
    bytes
}

/// A number that changes whenever the other side's kernel takes bytes: of TCP all that it ever acknowledged
/// (`tcpi_bytes_acked`, Linux 4.1), else what it has not taken yet. It wraps. One or two system calls.
pub fn taken(socket: &socket2::Socket) -> u32 {
    /// Where `tcpi_bytes_acked` stands in `struct tcp_info`, as eight bytes.
    const ACKED: usize = 120;
    let mut info = [0_u64; ACKED / 8 + 1];
    let mut len = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or_default();
    // SAFETY: the kernel writes at most `len` bytes to a live array of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    let acked = info.last().copied().unwrap_or(0);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it is only asked whether it changes"
    )]
    if result == 0 && len as usize == size_of_val(&info) && acked > 0 {
        acked as u32
    } else {
        unsent(socket) as u32
    }
}

/// Takes the program's code and constants out of our address space; what is used again comes back from the page cache,
/// sixteen pages at a time. Worth it when nobody is at work: most of what is mapped by then is not needed to wait.
pub fn forget_code() {
    // SAFETY: the callback keeps nothing of what it is shown.
    unsafe { libc::dl_iterate_phdr(Some(forget_segments), ptr::null_mut()) };
}

/// Is shown each object in memory, the program itself first, and asks for no more than that.
unsafe extern "C" fn forget_segments(
    object: *mut libc::dl_phdr_info,
    _: usize,
    _: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr(3) hands us a valid object with so many headers.
    let (base, headers) = unsafe {
        let object = &*object;
        let headers = slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into());
        (object.dlpi_addr, headers)
    };
    // the first segment has these headers, and goes last
    for header in headers.iter().rev() {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = (base + header.p_vaddr).next_multiple_of(PAGE);
        let end = (base + header.p_vaddr + header.p_memsz) & !(PAGE - 1);
        let (Ok(start), Ok(length)) = (start.try_into(), end.saturating_sub(start).try_into())
        else {
            continue;
        };
        // SAFETY: these are private mappings of the file that nobody may write to, so dropping their pages loses nothing:
        // the next touch reads the file again (madvise(2)).
        unsafe {
            libc::madvise(
                ptr::without_provenance_mut(start),
                length,
                libc::MADV_DONTNEED,
            )
        };
    }
    1
}

/// Lets the page cache forget what it holds of the program's file and nobody has mapped: some two megabytes that the
/// start read, and that a cgroup counts. Sockets cannot wait until the kernel takes them back by itself: what comes while a
/// cgroup is at its limit is dropped (`posix_fadvise(2)`, the kernel's cgroup-v2.rst on `sock`).
pub fn forget_file() {
    if let Ok(file) = File::open("/proc/self/exe") {
        // SAFETY: an advice about a file that is open; nothing is written or freed.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
}

/// Bytes that the kernel maps at a time, on every platform we build for; where pages are larger, `madvise` refuses.
const PAGE: libc::Elf64_Addr = 4096;

/// The memory limit that binds this process, and the file that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes; at 2^60 and above a limit counts as none.
    pub bytes: u64,
    /// Path of the file, such as `/sys/fs/cgroup/memory.max`.
    pub source: String,
}

/// The smallest limit of our cgroup and its parents, of both versions; `None` where nothing limits us.
pub fn cgroup_limit() -> Option<MemoryLimit> {
    let cgroup = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    smallest_limit(&limit_files(&cgroup, &mounts), |path| {
        fs::read_to_string(path).ok()
    })
}

fn smallest_limit(
    files: &[PathBuf],
    read: impl Fn(&Path) -> Option<String>,
) -> Option<MemoryLimit> {
    let limits = files.iter().filter_map(|path| {
        Some(MemoryLimit {
            bytes: parse_limit(&read(path)?)?,
            source: path.display().to_string(),
        })
    });
    limits.min_by_key(|limit| limit.bytes)
}

/// The content of a limit file: `max` and numbers that mean "none" (v1 writes 2^63 rounded to a page) give `None`.
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 60)
}

/// Every file that may limit us, our own cgroup's first, its parents' after it.
fn limit_files(cgroup: &str, mounts: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for (root, mount_point, version) in mounts.lines().filter_map(parse_mount) {
        let Some(path) = own_path(cgroup, version) else {
            continue;
        };
        for directory in directories(path, &root, &mount_point) {
            files.extend(version.limits().iter().map(|name| directory.join(name)));
        }
    }
    if files.is_empty() {
        // A container may hide mountinfo's truth: the usual places are worth a look.
        files.extend(
            ["memory.max", "memory.high", "memory/memory.limit_in_bytes"]
                .map(|name| Path::new("/sys/fs/cgroup").join(name)),
        );
    }
    files
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn limits(self) -> &'static [&'static str] {
        match self {
            Version::One => &["memory.limit_in_bytes"],
            Version::Two => &["memory.max", "memory.high"],
        }
    }
}

/// Root inside the file system, mount point and version, if the line of mountinfo is a cgroup with memory (proc(5)).
fn parse_mount(line: &str) -> Option<(String, String, Version)> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, mount_point) = (unescape(fields.next()?), unescape(fields.next()?));
    let mut kind = kind.split(' ');
    let version = match kind.next()? {
        "cgroup2" => Version::Two,
        "cgroup" if kind.nth(1)?.split(',').any(|name| name == "memory") => Version::One,
        _ => return None,
    };
    Some((root, mount_point, version))
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Our path in the hierarchy that counts memory, from /proc/self/cgroup (cgroups(7)).
fn own_path(cgroup: &str, version: Version) -> Option<&str> {
    cgroup.lines().find_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let ours = match version {
            Version::One => controllers.split(',').any(|name| name == "memory"),
            Version::Two => number == "0" && controllers.is_empty(),
        };
        ours.then_some(path)
    })
}

/// Our cgroup's directory and its parents up to the mount point. A path outside of what is mounted (a container that
/// sees the host's path, or `/../…`) leaves the mount point itself, which then is the container's own group.
fn directories(path: &str, root: &str, mount_point: &str) -> Vec<PathBuf> {
    let below = Path::new(path)
        .strip_prefix(root)
        .ok()
        .filter(|below| !below.components().any(|part| part.as_os_str() == ".."))
        .unwrap_or(Path::new(""));
    below
        .ancestors()
        .map(|below| Path::new(mount_point).join(below))
        .collect()
}

/// What counts against a memory limit, read again and again without an allocation.
#[derive(Debug)]
pub struct MemoryUse {
    use_file: File,
    stat_file: Option<File>,
    page: u64,
}

impl MemoryUse {
    /// Everything in the cgroup whose file gave the limit: ours, or the parent's that binds. `None` where it cannot be read.
    pub fn of_cgroup(limit: &MemoryLimit) -> Option<MemoryUse> {
        let source = Path::new(&limit.source);
        let name = match source.file_name()?.to_str()? {
            "memory.limit_in_bytes" => "memory.usage_in_bytes",
            _ => "memory.current",
        };
        let used = MemoryUse {
            use_file: File::open(source.with_file_name(name)).ok()?,
            stat_file: File::open(source.with_file_name("memory.stat")).ok(),
            page: 1,
        };
        used.read().map(|_| used)
    }

    /// The resident pages of this process: what is left to count where no cgroup has a limit. It knows no kernel memory.
    pub fn of_process() -> Option<MemoryUse> {
        // SAFETY: no precondition.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let used = MemoryUse {
            use_file: File::open("/proc/self/statm").ok()?,
            stat_file: None,
            page: u64::try_from(page).ok()?,
        };
        used.read().map(|_| used)
    }

    /// Bytes in use now; `None` if the file is gone (the process was moved).
    pub fn read(&self) -> Option<u64> {
        let mut buffer = [0; 128];
        let mut words = self.words(&mut buffer)?;
        // statm: total, resident, of which backed by files, …
        words
            .nth(usize::from(self.page > 1))?
            .checked_mul(self.page)
    }

    /// Bytes of [`read`](Self::read) that the kernel takes back by itself when it must: the page cache, or the
    /// process's pages that files back.
    pub fn reclaimable(&self) -> u64 {
        let Some(stat) = &self.stat_file else {
            let mut buffer = [0; 128];
            let shared = self.words(&mut buffer).and_then(|mut words| words.nth(2));
            return shared.filter(|_| self.page > 1).unwrap_or(0) * self.page;
        };
        // v2 has some sixty lines, 2 kB.
        let mut buffer = [0; 8192];
        read_at_start(stat, &mut buffer).map_or(0, file_cache)
    }

    fn words<'a>(&self, buffer: &'a mut [u8]) -> Option<impl Iterator<Item = u64> + 'a> {
        let text = read_at_start(&self.use_file, buffer)?;
        Some(
            text.split_ascii_whitespace()
                .filter_map(|word| word.parse().ok()),
        )
    }
}

fn read_at_start<'a>(file: &File, buffer: &'a mut [u8]) -> Option<&'a str> {
    let length = file.read_at(buffer, 0).ok()?;
    std::str::from_utf8(buffer.get(..length)?).ok()
}

/// The page cache in the text of memory.stat. v1 also has the lines without `total_`, which leave children out.
fn file_cache(stat: &str) -> u64 {
    let sum = |names: [&str; 2]| -> Option<u64> {
        let values = stat.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            names.contains(&name).then(|| value.parse::<u64>().ok())?
        });
        values.reduce(u64::saturating_add)
    };
    sum(["total_inactive_file", "total_active_file"])
        .or_else(|| sum(["inactive_file", "active_file"]))
        .unwrap_or(0)
}

/// Tells systemd (`READY=1`, `STOPPING=1`, `WATCHDOG=1`, …; several lines in one call). False where nobody listens.
/// Never blocks.
pub fn notify(state: &str) -> bool {
    env::var_os("NOTIFY_SOCKET")
        .is_some_and(|socket| send_notice(socket.as_encoded_bytes(), state).is_ok())
}

fn send_notice(address: &[u8], state: &str) -> io::Result<()> {
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

fn parse_watchdog(pid: Option<&str>, usec: &str, own: u32) -> Option<Duration> {
    let ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    let usec: u64 = usec.parse().ok()?;
    (ours && usec > 1).then(|| Duration::from_micros(usec / 2))
}

/// Sends SIGHUP to a process.
///
/// # Errors
/// It is gone, or belongs to another user.
pub fn hang_up(pid: i32) -> io::Result<()> {
    // SAFETY: takes two numbers and touches no memory
    match unsafe { libc::kill(pid, libc::SIGHUP) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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
fn parse_inherited(pid: &str, count: &str, names: &str, own: u32) -> Vec<(String, RawFd)> {
    if pid.parse() != Ok(own) {
        return Vec::new();
    }
    let count: RawFd = count.parse().unwrap_or(0);
    let mut names = names.split(':');
    (3..3 + count.clamp(0, 1024))
        .map(|number| (names.next().unwrap_or("").to_owned(), number))
        .collect()
}

/// Raises the soft limit of open files to the hard one where that is allowed; says what the soft limit is now.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live rlimit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 1024;
    }
    let raised = libc::rlimit {
        rlim_cur: limit.rlim_max,
        ..limit
    };
    // SAFETY: the pointer is to a live rlimit, which is only read.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } {
        0 => raised.rlim_cur,
        _ => limit.rlim_cur,
    }
}

/// Leaves the signals alone that would end the program and mean nothing to it: a stray SIGUSR1 of a log rotation, the
/// SIGPIPE of a closed stdout.
pub fn ignore_signals() {
    for number in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGPIPE] {
        // SAFETY: SIG_IGN is no function of ours that could run at a bad moment.
        unsafe { libc::signal(number, libc::SIG_IGN) };
    }
}

/// What a descriptor of output is, as far as not blocking on it matters.
#[derive(Debug)]
pub enum Output {
    /// A pipe: asked for room first, then written at once.
    Pipe,
    /// A socket (the journal's): written without waiting.
    Socket,
    /// A terminal, which may be stopped: opened once more for us alone, so that not waiting is not forced on others who
    /// have it open.
    Terminal(Terminal),
    /// A file, `/dev/null`: just written.
    Other,
}

/// A terminal that is written to without waiting.
#[derive(Debug)]
pub struct Terminal {
    file: File,
    /// What it has not taken of the last line yet: lines are not torn.
    rest: RefCell<Vec<u8>>,
}

impl Terminal {
    /// The same terminal behind a descriptor of its own; `None` where that is not allowed.
    fn open(fd: RawFd) -> Option<Terminal> {
        let file = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{fd}"))
            .ok()?;
        Some(Terminal {
            file,
            rest: RefCell::default(),
        })
    }

    fn write(&self, line: &[u8]) -> io::Result<()> {
        let mut rest = self.rest.borrow_mut();
        while !rest.is_empty() {
            let count = (&self.file).write(&rest)?;
            rest.drain(..count);
        }
        let count = (&self.file).write(line)?;
        rest.extend_from_slice(line.get(count..).unwrap_or_default());
        Ok(())
    }
}

impl Output {
    /// What `descriptor` is.
    pub fn of(descriptor: &impl AsRawFd) -> Output {
        // SAFETY: a stat of zeroes is a valid value for the kernel to fill.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live stat.
        let known = unsafe { libc::fstat(descriptor.as_raw_fd(), &raw mut stat) } == 0;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFIFO if known => Output::Pipe,
            libc::S_IFSOCK if known => Output::Socket,
            libc::S_IFCHR if known && is_terminal(descriptor.as_raw_fd()) => {
                Terminal::open(descriptor.as_raw_fd()).map_or(Output::Other, Output::Terminal)
            }
            _ => Output::Other,
        }
    }

    /// Bounds what may wait in a socket for its reader: systemd gives the journal's 8 MB, which a cgroup counts as ours.
    pub fn bound(&self, descriptor: &impl AsFd, bytes: usize) {
        if matches!(self, Output::Socket) {
            drop(socket2::SockRef::from(descriptor).set_send_buffer_size(bytes));
        }
    }

    /// Takes all of `line` (at most 4096 bytes = `PIPE_BUF`), or nothing and an error. Pipes, sockets and terminals never
    /// block, as long as writers of this process come one at a time.
    pub fn write(&self, descriptor: &impl AsRawFd, line: &[u8]) -> io::Result<()> {
        let fd = descriptor.as_raw_fd();
        let (start, length) = (line.as_ptr().cast(), line.len());
        if matches!(self, Output::Pipe) && !has_room(fd) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let written = match self {
            // SAFETY: start and length are those of a live slice.
            Output::Socket => unsafe {
                libc::send(fd, start, length, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            },
            // SAFETY: as above.
            Output::Pipe | Output::Other => unsafe { libc::write(fd, start, length) },
            Output::Terminal(terminal) => return terminal.write(line),
        };
        match usize::try_from(written) {
            Ok(written) if written == length => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

fn is_terminal(fd: RawFd) -> bool {
    // SAFETY: looks at the number only; a bad one is no terminal.
    unsafe { libc::isatty(fd) == 1 }
}

/// POLLOUT of a pipe means a free page, which is what a write of `PIPE_BUF` bytes needs.
fn has_room(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: the pointer is to one live pollfd, and one is the count.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLOUT != 0
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::{CStr, c_char, c_void},
        io::Read,
        os::unix::net::UnixStream,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn the_allocator_honours_every_alignment() {
        for align in (0..13).map(|power| 1_usize << power) {
            for size in [1, 7, 8, 9, 15, 16, 17, 24, 100, 4096, 70_000] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the layout is not empty, each block is freed once with the layout it has then.
                unsafe {
                    let block = ALLOCATOR.alloc(layout);
                    assert_eq!(block.addr() % align, 0, "alloc {layout:?}");
                    block.write(7);
                    let block = ALLOCATOR.realloc(block, layout, size * 3);
                    assert_eq!(block.addr() % align, 0, "realloc {layout:?}");
                    assert_eq!(block.read(), 7);
                    ALLOCATOR.dealloc(block, Layout::from_size_align(size * 3, align).unwrap());
                    let block = ALLOCATOR.alloc_zeroed(layout);
                    assert_eq!(block.addr() % align, 0, "zeroed {layout:?}");
                    assert!((0..size).all(|at| block.add(at).read() == 0));
                    ALLOCATOR.dealloc(block, layout);
                }
            }
        }
    }

    unsafe extern "C" {
        fn mi_options_print_out(
            out: unsafe extern "C" fn(*const c_char, *mut c_void),
            to: *mut c_void,
        );
    }

    unsafe extern "C" fn append(text: *const c_char, to: *mut c_void) {
        // SAFETY: mimalloc gives a C string and the pointer that it was given, a live String.
        unsafe { (*to.cast::<String>()).push_str(&CStr::from_ptr(text).to_string_lossy()) }
    }

    #[test]
    fn the_options_bear_the_names_that_are_meant() {
        let mut text = String::new();
        // SAFETY: the callback has the C side's signature, and the String outlives the call.
        unsafe { mi_options_print_out(append, (&raw mut text).cast()) }
        let names: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("option '")?.split('\'').next())
            .collect();
        assert_eq!(names[ARENA_RESERVE as usize], "arena_reserve");
        assert_eq!(names[ALLOW_THP as usize], "allow_thp");
    }

    #[test]
    fn the_options_are_set_before_main_and_yield_to_the_environment() {
        if env::var_os("LEAN_PROXY_TEST_CHILD").is_some() {
            // SAFETY: reads mimalloc's static table.
            let option = |at| unsafe { libmimalloc_sys::mi_option_get(at) };
            println!("values {} {}", option(ARENA_RESERVE), option(ALLOW_THP));
            return;
        }
        let values = |reserve: Option<&str>| {
            let mut child = Command::new(env::current_exe().unwrap());
            child.args(["--exact", "--nocapture"]);
            child.arg("sys::tests::the_options_are_set_before_main_and_yield_to_the_environment");
            child.env("LEAN_PROXY_TEST_CHILD", "1");
            if let Some(reserve) = reserve {
                child.env("MIMALLOC_ARENA_RESERVE", reserve);
            }
            String::from_utf8(child.output().unwrap().stdout).unwrap()
        };
        assert!(values(None).contains("values 1024 0"));
        assert!(values(Some("2048KiB")).contains("values 2048 0"));
    }

    #[test]
    fn huge_pages_are_off() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        // Kernels since 5.0 say it.
        if let Some(line) = status.lines().find(|line| line.starts_with("THP_enabled")) {
            assert!(line.ends_with('0'), "{line}");
        }
    }

    #[test]
    fn limits_are_parsed() {
        for (text, limit) in [
            ("max\n", None),
            ("9223372036854771712\n", None),
            ("18446744073709551615\n", None),
            ("-1\n", None),
            ("", None),
            ("10485760\n", Some(10_485_760)),
            ("0\n", Some(0)),
        ] {
            assert_eq!(parse_limit(text), limit, "{text:?}");
        }
    }

    fn files(cgroup: &str, mounts: &str) -> Vec<String> {
        let files = limit_files(cgroup, mounts);
        files
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn limits_are_sought_in_our_cgroup_and_its_parents() {
        let unified =
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(
            files("0::/system.slice/lean.service\n", unified),
            [
                "/sys/fs/cgroup/system.slice/lean.service/memory.max",
                "/sys/fs/cgroup/system.slice/lean.service/memory.high",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/system.slice/memory.high",
                "/sys/fs/cgroup/memory.max",
                "/sys/fs/cgroup/memory.high",
            ],
            "a unit on a v2 host"
        );
        let own = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.high"];
        for (cgroup, mounts) in [
            ("0::/\n", unified),
            ("0::/../other\n", unified),
            (
                "0::/docker/abc\n",
                "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw",
            ),
            (
                "0::/docker/abc/inner/../../..\n",
                "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw",
            ),
            (
                "0::/../..\n",
                "30 23 0:26 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw",
            ),
        ] {
            assert_eq!(files(cgroup, mounts), own, "{cgroup:?} {mounts}");
        }
    }

    #[test]
    fn limits_are_sought_on_v1_and_hybrid_hosts() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            files("8:pids:/\n4:memory:/jobs/a:b\n1:cpu:/\n0::/\n", hybrid),
            [
                "/sys/fs/cgroup/memory/jobs/a:b/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/unified/memory.max",
                "/sys/fs/cgroup/unified/memory.high",
            ]
        );
        let container = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        for path in ["/docker/abc", "/somewhere/else", "/"] {
            assert_eq!(
                files(&format!("4:memory:{path}\n"), container),
                ["/sys/fs/cgroup/memory/memory.limit_in_bytes"],
                "{path}"
            );
        }
        assert_eq!(
            files("", ""),
            [
                "/sys/fs/cgroup/memory.max",
                "/sys/fs/cgroup/memory.high",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes"
            ]
        );
        assert_eq!(
            files("0::/x\n", "30 23 0:26 / /mnt/a\\040b rw - cgroup2 none rw")[0],
            "/mnt/a b/x/memory.max"
        );
    }

    #[test]
    fn the_smallest_limit_wins() {
        let files = ["/a/b/memory.max", "/a/memory.max", "/memory.max", "/gone"].map(PathBuf::from);
        let read = |path: &Path| match path.to_str()? {
            "/a/b/memory.max" => Some("30000000\n".to_owned()),
            "/a/memory.max" => Some("20000000\n".to_owned()),
            "/memory.max" => Some("max\n".to_owned()),
            _ => None,
        };
        let limit = smallest_limit(&files, read).unwrap();
        assert_eq!(
            (limit.bytes, limit.source.as_str()),
            (20_000_000, "/a/memory.max")
        );
        assert_eq!(smallest_limit(&files, |_| None), None);
    }

    #[test]
    fn any_text_is_survived() {
        let words = [
            "0::/", "-", " - ", "cgroup2 ", "cgroup ", ":", "memory", "/..", "\\040", "\n",
        ];
        let mut seed = 7_usize;
        for _ in 0..2000 {
            let mut text = String::new();
            for _ in 0..12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                text.push_str(words[(seed >> 33) % words.len()]);
            }
            limit_files(&text, &text);
            file_cache(&text);
            parse_limit(&text);
        }
    }

    #[test]
    fn the_page_cache_is_found_in_both_versions() {
        let v2 = "anon 4096\nfile 70000\ninactive_file 500\nactive_file 24\nshmem 9\n";
        let v1 = "inactive_file 1\nactive_file 2\ntotal_inactive_file 300\ntotal_active_file 40\n";
        assert_eq!(file_cache(v2), 524);
        assert_eq!(file_cache(v1), 340);
        assert_eq!(file_cache(""), 0);
    }

    /// Anonymous memory that is resident from the beginning and given back to the kernel on drop.
    struct PopulatedPages(*mut libc::c_void, usize);

    impl PopulatedPages {
        fn map(bytes: usize) -> PopulatedPages {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
            // SAFETY: a new mapping, at an address of the kernel's choice.
            let address = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
            assert_ne!(address, libc::MAP_FAILED);
            PopulatedPages(address, bytes)
        }
    }

    impl Drop for PopulatedPages {
        fn drop(&mut self) {
            // SAFETY: the mapping made above, to which nothing refers.
            unsafe { libc::munmap(self.0, self.1) };
        }
    }

    #[test]
    fn memory_in_use_is_read_again_and_again() {
        let used = MemoryUse::of_process().unwrap();
        let before = used.read().unwrap();
        assert!(before > 500_000 && used.reclaimable() < before);
        // Pages of the kernel's own and not of the allocator, which would hand out what earlier tests gave back to it;
        // so many that what tests on other threads take and give back meanwhile makes no difference.
        let mapped = PopulatedPages::map(64 << 20);
        let during = used.read().unwrap();
        assert!(during > before + (32 << 20), "{before} {during}");
        drop(mapped);
        let after = used.read().unwrap();
        assert!(after + (32 << 20) < during, "{during} {after}");
        let directory = env::temp_dir().join(format!("lean-proxy-sys-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("memory.current"), "5000\n").unwrap();
        fs::write(directory.join("memory.stat"), "inactive_file 70\n").unwrap();
        let limit = MemoryLimit {
            bytes: 1,
            source: directory.join("memory.high").display().to_string(),
        };
        let used = MemoryUse::of_cgroup(&limit).unwrap();
        assert_eq!((used.read(), used.reclaimable()), (Some(5000), 70));
        fs::write(directory.join("memory.current"), "6000\n").unwrap();
        assert_eq!(used.read(), Some(6000));
        fs::remove_dir_all(&directory).unwrap();
        assert!(MemoryUse::of_cgroup(&limit).is_none());
    }

    #[test]
    fn notices_reach_a_socket_of_either_kind() {
        let name = format!("lean-proxy-notify-{}", std::process::id());
        let path = env::temp_dir().join(&name);
        let mut buffer = [0; 64];
        for (address, socket) in [
            (
                format!("@{name}"),
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
            ),
            (
                path.display().to_string(),
                UnixDatagram::bind(&path).unwrap(),
            ),
        ] {
            send_notice(address.as_bytes(), "READY=1").unwrap();
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1", "{address}");
        }
        fs::remove_file(&path).unwrap();
        assert!(send_notice(path.as_os_str().as_encoded_bytes(), "READY=1").is_err());
    }

    #[test]
    fn the_watchdog_is_ours_or_nobodys() {
        let half = Some(Duration::from_secs(1));
        assert_eq!(parse_watchdog(None, "2000000", 7), half);
        assert_eq!(parse_watchdog(Some("7"), "2000000", 7), half);
        assert_eq!(parse_watchdog(Some("8"), "2000000", 7), None);
        assert_eq!(parse_watchdog(None, "0", 7), None);
        assert_eq!(parse_watchdog(None, "soon", 7), None);
        assert!(monotonic_usec() > 0);
    }

    #[test]
    fn inherited_sockets_are_numbered_and_named() {
        let named = |names: [&str; 2]| vec![(names[0].to_owned(), 3), (names[1].to_owned(), 4)];
        assert_eq!(
            parse_inherited("7", "2", "web:api", 7),
            named(["web", "api"])
        );
        assert_eq!(parse_inherited("7", "2", "web", 7), named(["web", ""]));
        assert_eq!(parse_inherited("7", "2", "", 7), named(["", ""]));
        assert_eq!(parse_inherited("8", "2", "", 7), []);
        assert_eq!(parse_inherited("7", "-4", "", 7), []);
        assert_eq!(parse_inherited("", "", "", 7), []);
    }

    #[test]
    fn the_descriptor_limit_ends_at_the_hard_one() {
        let soft = raise_descriptor_limit();
        assert!(soft >= 256);
        assert_eq!(raise_descriptor_limit(), soft);
    }

    #[test]
    fn a_socket_of_the_log_holds_no_more_than_it_may() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        Output::Socket.bound(&ours, 4096);
        let line = [b'x'; 256];
        let held = (0..10_000).take_while(|_| Output::Socket.write(&ours, &line).is_ok());
        assert!((1..64).contains(&held.count()));
        drop(theirs);
        let (pipe, _other) = io::pipe().unwrap();
        Output::Pipe.bound(&pipe, 4096);
    }

    #[test]
    fn bytes_that_a_reset_threw_away_count_no_more() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        while io::Write::write(&mut server, &[0; 4096]).is_ok() {}
        let socket = socket2::Socket::from(server);
        assert!(unsent(&socket) > 0, "the client does not read");
        // bytes are left unread: its close is a reset
        drop(client);
        let since = std::time::Instant::now();
        while unsent(&socket) > 0 && since.elapsed() < Duration::from_secs(20) {
            std::thread::yield_now();
        }
        assert_eq!(unsent(&socket), 0);
    }

    #[test]
    fn a_full_pipe_or_socket_refuses_a_line_at_once() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (pipe, drain) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        assert!(matches!(Output::of(&pipe), Output::Pipe));
        // Nobody reads what cat copies, so in the end both pipes are full; the line after that must not wait.
        let line = [b'x'; 4096];
        let full = (0..10_000).find(|_| {
            Output::Pipe.write(&pipe, &line).is_err() && {
                // cat may still be copying: give it the processor until nothing moves any more.
                std::thread::yield_now();
                Output::Pipe.write(&pipe, &line).is_err()
            }
        });
        assert!(full.is_some());
        drop(pipe);
        let mut copied = Vec::new();
        { drain }.read_to_end(&mut copied).unwrap();
        assert_eq!(copied.len() % 4096, 0, "a line was torn");
        child.wait().unwrap();

        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(matches!(Output::of(&ours), Output::Socket));
        assert!((0..10_000).any(|_| Output::Socket.write(&ours, &line).is_err()));
        drop(theirs);
        assert!(Output::Socket.write(&ours, &line).is_err());
        let null = Output::of(&File::open("/dev/null").unwrap());
        assert!(matches!(null, Output::Other));
    }

    #[test]
    fn a_terminal_that_is_not_read_refuses_lines_and_tears_none() {
        let (mut master, mut slave) = (0, 0);
        let none = ptr::null_mut();
        // SAFETY: two live numbers to be filled; no name, and the usual modes.
        let opened = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                none,
                ptr::null(),
                ptr::null(),
            )
        };
        assert_eq!(opened, 0, "{}", io::Error::last_os_error());
        // SAFETY: both are open, and owned by nobody else.
        let (master, slave) =
            unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let output = Output::of(&slave);
        assert!(matches!(output, Output::Terminal(_)), "{output:?}");
        let line = format!("{}\n", "x".repeat(999));
        let taken = (0..10_000)
            .take_while(|_| output.write(&slave, line.as_bytes()).is_ok())
            .count();
        assert!((1..10_000).contains(&taken), "{taken}");
        let reader = std::thread::spawn(move || {
            let (mut master, mut lines) = (File::from(master), Vec::new());
            while lines.split(|byte| *byte == b'\n').count() < taken + 2 {
                let mut buffer = [0; 4096];
                let count = master.read(&mut buffer).unwrap();
                lines.extend_from_slice(&buffer[..count]);
            }
            lines
        });
        // what is read makes room: the rest of the last line, and another one
        while output.write(&slave, line.as_bytes()).is_err() {
            std::thread::yield_now();
        }
        let lines = String::from_utf8(reader.join().unwrap()).unwrap();
        assert!(
            lines.lines().all(|line| line.len() == 999),
            "a line was torn"
        );
    }
}
