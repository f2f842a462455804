//! The loss of a vital part ends the program, and the proxy recovers from a shortage.

use std::{
    fs,
    net::{Shutdown, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Command, Stdio, id},
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::{
    metrics::metric,
    support::{ALL, Client, OK, PATIENCE, Proxy, Setup, Upstream, eventually, get, skip},
};

/// Sets a resource limit of a running process; false where this machine has no program for it.
fn limit(proxy: &Proxy, what: &str, value: &str) -> bool {
    let pid = proxy.pid().to_string();
    let status = Command::new("prlimit")
        .args(["--pid", &pid, &format!("--{what}={value}")])
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

#[test]
fn a_listener_that_breaks_ends_the_program_with_code_three() {
    let upstream = Upstream::fixed(OK);
    for threads in ["1", "2"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$0\" \"$@\"";
        let socket = OwnedFd::from(listener.try_clone().unwrap());
        let mut proxy = Setup::new(&format!("{ALL}listen: 'fd:3'\n"))
            .upstream("UP", &upstream)
            .env("LISTEN_FDS", "1")
            .env("LEAN_PROXY_THREADS", threads)
            .shell(script, socket)
            .start();
        assert_eq!(Client::connect(address).get("/").status, 200);
        // both processes share the socket, which no longer listens
        SockRef::from(&listener).shutdown(Shutdown::Both).unwrap();
        assert_eq!(proxy.exit().code(), Some(3));
        let errors = proxy.last_errors();
        let is_told = errors.contains("has lost its acceptor: accept: ");
        assert!(is_told && errors.lines().count() == 1, "{errors}");
    }
}

#[test]
fn few_descriptors_at_the_start_are_an_error_or_enough_for_every_worker() {
    let upstream = Upstream::fixed(OK);
    let mut served = 0;
    for descriptors in 8..40 {
        let script = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
        let setup = Setup::new(ALL)
            .upstream("UP", &upstream)
            .env("LEAN_PROXY_THREADS", "2")
            .shell(&script, Stdio::null());
        let mut proxy = setup.start_or_end();
        if proxy.addresses().is_empty() {
            assert_eq!(proxy.exit().code(), Some(3), "{descriptors}");
            let errors = proxy.last_errors();
            assert!(errors.contains("limit of open files"), "{errors}");
            continue;
        }
        // the kernel distributes them to both workers; each is answered
        let answers = (0..16).map(|_| proxy.get("/health").status);
        assert!(
            answers.into_iter().all(|status| status == 200),
            "{descriptors}"
        );
        served += 1;
        assert_eq!(proxy.terminate().code(), Some(0), "{descriptors}");
    }
    assert!(served > 0, "with so many descriptors it should serve");
}

#[test]
fn without_threads_for_its_workers_the_program_does_not_start() {
    let root = Command::new("setpriv")
        .args(["--reuid=61235", "--clear-groups", "true"])
        .stderr(Stdio::null())
        .status();
    if !root.is_ok_and(|status| status.success()) {
        return skip("setpriv cannot change the user here");
    }
    let script = "exec setpriv --reuid=61235 --clear-groups prlimit --nproc=1 \"$0\" \"$@\"";
    let mut proxy = Setup::new("routes: [{path: /, target: 'http://127.0.0.1:1'}]\n")
        .env("LEAN_PROXY_THREADS", "2")
        .env("PATH", "/usr/bin:/bin")
        .shell(script, Stdio::null())
        .start_or_end();
    if proxy.last_errors().contains("ermission denied") {
        return skip("the binary is not readable by all");
    }
    assert_eq!(proxy.exit().code(), Some(3));
    assert!(
        proxy.last_errors().contains("starting a worker"),
        "{}",
        proxy.last_errors()
    );
}

#[test]
fn without_descriptors_the_proxy_does_not_spin_and_recovers_afterwards() {
    let upstream = Upstream::fixed(OK);
    let mut proxy = Proxy::before(&upstream, ALL);
    let mut kept = proxy.client();
    assert_eq!(kept.get("/health").status, 200);
    if !limit(&proxy, "nofile", "4:4096") {
        return skip("limits cannot be set from outside here");
    }
    let mut waiting = TcpStream::connect_timeout(&proxy.address(), PATIENCE).unwrap();
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    std::io::Write::write_all(&mut waiting, get("/").as_bytes()).unwrap();
    proxy.await_log("the shortage", |line| {
        line.contains("level=warn msg=\"accept\"") && line.contains("os error 24")
    });
    let (before, since) = (proxy.cpu_seconds(), Instant::now());
    crate::support::let_pass(Duration::from_millis(1_500));
    let spent = proxy.cpu_seconds() - before;
    assert!(
        spent < since.elapsed().as_secs_f64() / 4.0,
        "{spent} s: it spins"
    );
    let warnings = proxy.logs();
    let warnings = warnings
        .iter()
        .filter(|line| line.contains("msg=\"accept\""));
    assert_eq!(warnings.count(), 1, "a shortage is logged once");
    assert!(limit(&proxy, "nofile", "4096:4096"));
    let mut answer = [0; 15];
    std::io::Read::read_exact(&mut waiting, &mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    eventually("it says that it is over", || {
        assert_eq!(proxy.get("/").status, 200);
        proxy
            .logs()
            .iter()
            .any(|line| line.contains("msg=\"accepting again\""))
    });
    assert_eq!(proxy.terminate().code(), Some(0));
}

#[test]
fn stray_signals_are_ignored() {
    let upstream = Upstream::fixed(OK);
    let mut proxy = Proxy::before(&upstream, ALL);
    for name in ["USR1", "USR2", "PIPE"] {
        proxy.signal(name);
        assert_eq!(proxy.get("/").status, 200, "{name}");
    }
    assert!(proxy.is_running());
    assert_eq!(proxy.terminate().code(), Some(0));
}

#[test]
fn the_watchdog_is_notified_while_idle_with_several_workers() {
    let setup = Setup::new(&format!("{ALL}metrics: {{listen: '127.0.0.1:0'}}\n"));
    let upstream = Upstream::fixed(OK);
    let socket = UnixDatagram::bind(setup.dir().join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let proxy = setup
        .upstream("UP", &upstream)
        .env("NOTIFY_SOCKET", "DIR/notify")
        .env("WATCHDOG_USEC", "600000")
        .env("LEAN_PROXY_THREADS", "3")
        .start();
    // with no connection open there are no deadlines, but every timer must run
    assert_eq!(metric(&proxy, "lean_proxy_connections_open"), 0);
    let mut fed = 0;
    let mut buffer = [0; 256];
    while fed < 6 {
        let count = socket.recv(&mut buffer).expect("a notice comes");
        fed += usize::from(&buffer[..count] == b"WATCHDOG=1");
    }
}

/// A freezer cgroup (version 1), which holds single threads; thawed and removed when dropped.
struct Freezer(PathBuf);

impl Freezer {
    fn new() -> Option<Freezer> {
        let path = Path::new("/sys/fs/cgroup/freezer").join(format!("lean-proxy-{}", id()));
        fs::create_dir(&path).ok().map(|()| Freezer(path))
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }

    fn freeze(&self, thread: &str) {
        self.write("tasks", thread);
        self.write("freezer.state", "FROZEN");
        eventually("it is frozen", || {
            fs::read_to_string(self.0.join("freezer.state")).unwrap() == "FROZEN\n"
        });
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // a thread that is frozen cannot even be killed
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        for thread in fs::read_to_string(self.0.join("tasks"))
            .unwrap_or_default()
            .lines()
        {
            let _ = fs::write("/sys/fs/cgroup/freezer/tasks", thread);
        }
        eventually("it is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

/// The thread of this name.
fn thread_of(proxy: &Proxy, name: &str) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap();
    let mut threads = tasks.map(|task| task.unwrap());
    let is_it = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let found = threads.find(is_it).expect("a worker's thread has its name");
    found.file_name().into_string().unwrap()
}

#[test]
fn the_watchdog_is_not_fed_while_one_thread_hangs() {
    let upstream = Upstream::fixed(OK);
    let setup = Setup::new(ALL).upstream("UP", &upstream);
    let path = setup.dir().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    let proxy = setup
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", "400000")
        .env("LEAN_PROXY_THREADS", "2")
        .start();
    let is_fed_within = |patience: Duration| {
        socket.set_read_timeout(Some(patience)).unwrap();
        let mut buffer = [0; 256];
        loop {
            match socket.recv(&mut buffer) {
                Ok(count) if &buffer[..count] == b"WATCHDOG=1" => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    };
    assert!((0..3).all(|_| is_fed_within(PATIENCE)));
    let Some(freezer) = Freezer::new() else {
        return skip("a hung thread needs the right to make a freezer cgroup (version 1)");
    };
    freezer.freeze(&thread_of(&proxy, "worker-1"));
    // what was on its way; then nothing for three times as long as systemd waits
    let falls_silent = (0..20).any(|_| !is_fed_within(Duration::from_millis(1_200)));
    assert!(falls_silent, "it is fed though a thread hangs");
    freezer.write("freezer.state", "THAWED");
    assert!(is_fed_within(PATIENCE), "it goes on");
}
