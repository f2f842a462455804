//! The operating system behind safe functions: allocator, cgroup limits, inherited sockets, notification, stdout.
//!
//! The only module with `unsafe` code. It decides nothing: it returns what the kernel reports as values. The parsers are
//! pure and tested on texts. Of what a client sends, only [`socket::peek`] allocates a copy, as long as its caller says.
#![expect(
    unsafe_code,
    reason = "the allocator and a few calls of libc have no safe form"
)]

pub mod alloc;
pub mod cgroup;
pub mod code_pages;
pub mod socket;
pub mod stack;
pub mod stdout;
pub mod systemd;
pub mod text;
pub mod timer;

use std::{
    ffi::c_int,
    fs::File,
    io,
    mem::MaybeUninit,
    os::fd::{FromRawFd as _, OwnedFd},
    ptr,
};

/// Sends SIGHUP to a process.
///
/// # Errors
/// The process does not exist, or belongs to another user.
pub fn hang_up(pid: i32) -> io::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory.
    match unsafe { libc::kill(pid, libc::SIGHUP) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Raises the soft limit of open files to the hard limit where that is allowed; returns the soft limit then in force.
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

/// Ignores signals that would end the program but mean nothing to it: a stray SIGUSR1 from log rotation, the SIGPIPE of a
/// closed stdout.
pub fn ignore_signals() {
    for number in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGPIPE] {
        // SAFETY: SIG_IGN installs no handler that could run at a bad moment.
        unsafe { libc::signal(number, libc::SIG_IGN) };
    }
}

/// Blocks these signals for this thread and those that it starts later, and returns a descriptor that they are read from,
/// one `signalfd_siginfo` each (signalfd(2)); a read does not wait. Blocked signals end no process, and one that arrives
/// before the first read is kept.
///
/// # Errors
/// There is no descriptor left.
pub fn signal_file(signals: &[c_int]) -> io::Result<File> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset fills the set, and the others read it; all pointers are to this live set.
    let file = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
        libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    };
    match file {
        // SAFETY: signalfd has returned a new descriptor, which nothing else owns.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(file) }.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use crate::Path;
    use crate::PathBuf;
    use crate::env;
    use crate::sys::cgroup::MemoryLimit;
    use crate::sys::cgroup::MemoryUse;
    use crate::sys::cgroup::file_cache;
    use crate::sys::cgroup::smallest_limit;
    use crate::sys::socket::unsent;
    use crate::sys::stdout::Output;
    use crate::sys::systemd::monotonic_usec;
    use crate::sys::systemd::parse_inherited;
    use crate::sys::systemd::parse_watchdog;
    use crate::sys::systemd::send_notice;
    use std::alloc::Layout;
    use std::fs;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;
    use std::{
        alloc::GlobalAlloc as _,
        os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr},
    };
    use std::{
        ffi::{CStr, c_char, c_void},
        io::Read,
        os::unix::net::UnixStream,
        process::{Command, Stdio},
    };

    use super::*;
    use crate::sys::{
        alloc::{ALLOCATOR, ALLOW_THP, ARENA_RESERVE, PURGE_DELAY},
        cgroup::{limit_files, parse_limit},
    };

    #[test]
    fn the_allocator_honours_every_alignment() {
        for align in (0..13).map(|power| 1_usize << power) {
            for size in [
                1, 7, 8, 9, 15, 16, 17, 24, 100, 900, 1024, 1025, 4096, 70_000,
            ] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the layout is not empty, and each block is freed once, with its current layout.
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
        // SAFETY: mimalloc passes a C string, and the pointer that it was given, which is to a live String.
        unsafe { (*to.cast::<String>()).push_str(&CStr::from_ptr(text).to_string_lossy()) }
    }

    #[test]
    fn the_option_numbers_match_their_names_in_c() {
        let mut text = String::new();
        // SAFETY: the callback has the C side's signature, and the String outlives the call.
        unsafe { mi_options_print_out(append, (&raw mut text).cast()) }
        let names: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("option '")?.split('\'').next())
            .collect();
        assert_eq!(names[ARENA_RESERVE as usize], "arena_reserve");
        assert_eq!(names[ALLOW_THP as usize], "allow_thp");
        assert_eq!(names[PURGE_DELAY as usize], "purge_delay");
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
        // kernels since 5.0 have this line
        if let Some(line) = status.lines().find(|line| line.starts_with("THP_enabled")) {
            assert!(line.ends_with('0'), "{line}");
        }
    }

    /// Uses a kilobyte of stack for each call; the address of the deepest.
    #[inline(never)]
    fn deep(calls: usize) -> usize {
        let mut bytes = [0_u8; 1024];
        let here = std::hint::black_box(&mut bytes).as_ptr().addr();
        if calls == 0 { here } else { deep(calls - 1) }
    }

    #[test]
    fn the_stack_below_is_returned_and_what_is_in_use_is_kept() {
        let thread = std::thread::spawn(|| {
            let mut kept = [7_u8; 16_384];
            let kept = std::hint::black_box(&mut kept);
            let page = deep(64) & !4095;
            let is_resident = || {
                let mut resident = 0_u8;
                // SAFETY: asks about one page, and writes one byte.
                let asked = unsafe {
                    libc::mincore(ptr::without_provenance_mut(page), 4096, &raw mut resident)
                };
                asked == 0 && resident & 1 == 1
            };
            assert!(is_resident());
            stack::forget_unused();
            assert!(!is_resident());
            assert!(kept.iter().all(|byte| *byte == 7));
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_signal_that_is_queued_ends_nothing_and_is_read_once() {
        // on a thread of its own: the signal is blocked there alone, and sent to it alone
        let queued = std::thread::spawn(|| {
            let mut file = signal_file(&[libc::SIGURG, libc::SIGWINCH]).unwrap();
            let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
            let none = file.read(&mut bytes).unwrap_err().kind();
            assert_eq!(none, io::ErrorKind::WouldBlock);
            // SAFETY: raise takes a number; the signal is blocked on this thread.
            unsafe { libc::raise(libc::SIGWINCH) };
            assert_eq!(file.read(&mut bytes).unwrap(), bytes.len());
            let number = bytes.first_chunk().copied().map(u32::from_ne_bytes);
            assert_eq!(number, Some(libc::SIGWINCH as u32));
            file.read(&mut bytes).is_err()
        });
        assert!(queued.join().unwrap());
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
    fn limits_are_read_from_the_own_cgroup_and_its_parents() {
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
    fn limits_are_read_on_v1_and_hybrid_hosts() {
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
    fn no_text_makes_a_parser_panic() {
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

    /// Anonymous memory that is resident from the start and returned to the kernel on drop.
    struct PopulatedPages(*mut c_void, usize);

    impl PopulatedPages {
        fn map(bytes: usize) -> PopulatedPages {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
            // SAFETY: a new mapping, at an address that the kernel chooses.
            let address = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
            assert_ne!(address, libc::MAP_FAILED);
            PopulatedPages(address, bytes)
        }
    }

    impl Drop for PopulatedPages {
        fn drop(&mut self) {
            // SAFETY: unmaps the mapping made above, to which no reference is left.
            unsafe { libc::munmap(self.0, self.1) };
        }
    }

    #[test]
    fn memory_in_use_is_read_again_and_again() {
        let used = MemoryUse::of_process().unwrap();
        let before = used.read().unwrap();
        assert!(before > 500_000 && used.reclaimable() < before);
        // Pages from the kernel and not from the allocator, which would reuse memory that earlier tests freed; so many that
        // what tests on other threads allocate and free meanwhile makes no difference.
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
    fn a_watchdog_for_another_process_is_ignored() {
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
        assert_eq!(parse_inherited("7", "5000", "", 7).len(), 1024);
        assert_eq!(parse_inherited("", "", "", 7), []);
    }

    #[test]
    fn the_soft_limit_of_descriptors_is_raised_to_the_hard_limit() {
        let soft = raise_descriptor_limit();
        assert!(soft >= 256);
        assert_eq!(raise_descriptor_limit(), soft);
    }

    #[test]
    fn the_queue_of_a_log_socket_is_bounded() {
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
    fn bytes_discarded_by_a_reset_are_not_counted_as_unsent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        while io::Write::write(&mut server, &[0; 4096]).is_ok() {}
        let socket = socket2::Socket::from(server);
        assert!(unsent(&socket) > 0, "the client does not read");
        // closing a socket with unread bytes sends a reset
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
        // The output of cat is not read, so in the end both pipes are full; the line after that must not wait.
        let line = [b'x'; 4096];
        let full = (0..10_000).find(|_| {
            Output::Pipe.write(&pipe, &line).is_err() && {
                // cat may still be copying: yield to it until it stops
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
        // SAFETY: the pointers are to two live numbers; the name and the modes may be null.
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
        // SAFETY: both are open, and nothing else owns them.
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
        // reading makes space for the rest of the last line and another one
        while output.write(&slave, line.as_bytes()).is_err() {
            std::thread::yield_now();
        }
        let lines = String::from_utf8(reader.join().unwrap()).unwrap();
        assert!(
            lines.lines().all(|line| line.len() == 999),
            "a line was torn"
        );
    }

    #[test]
    fn a_socket_is_reset_where_its_other_side_has_not_read_all() {
        use std::io::{Read as _, Write as _};

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let pair = || {
            let theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (listener.accept().unwrap().0, theirs)
        };
        let (ours, mut theirs) = pair();
        let socket = socket2::SockRef::from(&ours);
        assert!(!socket::has_hung_up(&socket) && !socket::is_dead(&socket));
        theirs.write_all(b"hello").unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let since = std::time::Instant::now();
        while !socket::has_hung_up(&socket) {
            assert!(since.elapsed().as_secs() < 20);
            std::thread::yield_now();
        }
        assert!(!socket::is_dead(&socket), "it can still be answered");
        for _ in 0..2 {
            assert_eq!(socket::peek(&socket, 9), b"hello");
        }
        (&ours).read_exact(&mut [0; 5]).unwrap();
        socket::reset_unsent(&socket);
        drop(ours);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "an end, not a reset");
        let (mut ours, theirs) = pair();
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[0; 16_384]).is_ok() {}
        socket::reset_unsent(&socket2::SockRef::from(&ours));
        drop(ours);
        let socket = socket2::SockRef::from(&theirs);
        while !socket::is_dead(&socket) {
            assert!(since.elapsed().as_secs() < 20);
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_process_at_the_other_end_of_a_unix_socket_is_known() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let process = socket::peer_process(&socket2::SockRef::from(&ours));
        assert_eq!(u32::try_from(process), Ok(std::process::id()));
    }
}
