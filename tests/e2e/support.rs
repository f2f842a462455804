//! The support of all tests: the real binary ([`Proxy`]), a scripted server behind it ([`Upstream`]) and a client of raw
//! bytes in front of it ([`Client`]).
//!
//! Tests share nothing, no port is fixed, every wait ends within [`PATIENCE`], and processes end when their handle is
//! dropped. Everything that the proxy sends is read by `strict.rs`; what is not strict fails the test.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockRef, Type};

use crate::strict::{self, Fields, Framing, Reader, Request, Response};

/// Bounds every wait; only a slow machine or a fault comes near it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Everything to the upstream `UP`.
pub const ALL: &str = "routes: [{path: /, target: 'http://UP'}]\n";

/// A plain answer that keeps its connection.
pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Waits until `so` returns true.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the time of a time-out that must *not* occur. Never use it to wait for something.
pub fn let_pass(time: Duration) {
    thread::sleep(time);
}

/// Prints why a test did not run.
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// Sends a signal to a process by the shell's built-in `kill`: not every machine has a program of that name.
pub fn signal(name: &str, pid: &str) {
    let kill = Command::new("/bin/sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .status();
    assert!(kill.unwrap().success(), "kill -{name}");
}

/// The binary under test.
pub fn binary() -> OsString {
    env::var_os("LEAN_PROXY_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_lean-proxy").into())
}

/// Whether the binary is a release build: memory is only measured for those.
pub fn is_release() -> bool {
    env::var_os("LEAN_PROXY_BIN").is_some() || !cfg!(debug_assertions)
}

/// Bytes that differ from their neighbours at every offset.
pub fn pattern(offset: usize, length: usize) -> Vec<u8> {
    const PRIME: usize = 65_521;
    static BLOCK: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let block = BLOCK.get_or_init(|| {
        let mut x = 0x9e37_79b9_u32;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x.to_le_bytes()[1]
        };
        let once: Vec<u8> = (0..PRIME).map(|_| next()).collect();
        once.repeat(2)
    });
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = (offset + bytes.len()) % PRIME;
        let piece = (length - bytes.len()).min(PRIME);
        bytes.extend_from_slice(&block[at..at + piece]);
    }
    bytes
}

/// Reads the [`pattern`] from its beginning, as it comes.
pub fn read_pattern(reader: &mut Reader<impl Read>, length: usize) -> io::Result<()> {
    let mut at = 0;
    while at < length {
        let bytes = reader.some()?;
        assert!(
            !bytes.is_empty() && bytes == pattern(at, bytes.len()),
            "at {at}"
        );
        at += bytes.len();
    }
    assert_eq!(at, length);
    Ok(())
}

/// A semaphore: each raise lets one wait pass.
#[derive(Debug, Clone, Default)]
pub struct Signal(Arc<(Mutex<usize>, Condvar)>);

impl Signal {
    /// Lets one wait pass, now or later.
    pub fn raise(&self) {
        self.raise_many(1);
    }

    /// Lets `count` waits pass.
    pub fn raise_many(&self, count: usize) {
        *lock(&self.0.0) += count;
        self.0.1.notify_all();
    }

    /// Waits for a raise.
    pub fn wait(&self) -> io::Result<()> {
        let waited = self
            .0
            .1
            .wait_timeout_while(lock(&self.0.0), PATIENCE, |n| *n == 0);
        let (mut count, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *count = count
            .checked_sub(1)
            .ok_or_else(|| io::Error::new(ErrorKind::TimedOut, "no signal"))?;
        Ok(())
    }
}

// ---- the proxy ----

/// The options for starting a proxy.
#[derive(Debug)]
pub struct Setup {
    yaml: String,
    tokens: Vec<(String, String)>,
    env: Vec<(String, OsString)>,
    args: Option<Vec<String>>,
    shell: Option<(String, Stdio)>,
    listeners: usize,
    room: TempDir,
}

impl Setup {
    /// A proxy with this configuration, and `listen: "127.0.0.1:0"` unless it has one. `DIR` in it (and in arguments and the
    /// environment) is the proxy's own directory.
    pub fn new(yaml: &str) -> Setup {
        let room = TempDir::new();
        let tokens = vec![("DIR".to_owned(), room.0.display().to_string())];
        Setup {
            yaml: yaml.to_owned(),
            tokens,
            env: Vec::new(),
            args: None,
            shell: None,
            listeners: 1,
            room,
        }
    }

    /// `token` in the configuration stands for the upstream's host and port.
    #[must_use]
    pub fn upstream(mut self, token: &str, upstream: &Upstream) -> Setup {
        self.tokens.push((token.to_owned(), upstream.authority()));
        self
    }

    /// `token` in the configuration stands for this.
    #[must_use]
    pub fn token(mut self, token: &str, text: String) -> Setup {
        self.tokens.push((token.to_owned(), text));
        self
    }

    /// Sets a variable in its environment, which is empty otherwise.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Setup {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Arguments instead of the configuration's path, for which `CONFIG` stands.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Setup {
        self.args = Some(args.iter().map(|&a| a.to_owned()).collect());
        self
    }

    /// Runs it as `"$0" "$@"` of this shell script, which must `exec` it, with this stdin.
    #[must_use]
    pub fn shell(mut self, script: &str, stdin: impl Into<Stdio>) -> Setup {
        self.shell = Some((script.to_owned(), stdin.into()));
        self
    }

    /// How many addresses it must report before it counts as started.
    #[must_use]
    pub fn listeners(mut self, count: usize) -> Setup {
        self.listeners = count;
        self
    }

    /// Its own directory.
    pub fn dir(&self) -> PathBuf {
        self.room.0.clone()
    }

    /// Starts it and waits until it listens.
    pub fn start(self) -> Proxy {
        let listeners = self.listeners;
        let mut proxy = self.spawn();
        proxy.await_listeners(listeners);
        proxy
    }

    /// Starts it and waits until it listens or has ended; in that case it has no address.
    pub fn start_or_end(self) -> Proxy {
        let mut proxy = self.spawn();
        eventually("it listens or ends", || {
            let logs = proxy.logs();
            proxy.addresses = logs.iter().filter_map(|line| listening(line)).collect();
            !proxy.addresses.is_empty() || !proxy.is_running()
        });
        proxy
    }

    /// Runs it to its end.
    pub fn run(self) -> Finished {
        let mut proxy = self.spawn();
        let status = proxy.exit();
        proxy.out.finish();
        proxy.err.finish();
        Finished {
            code: status.code(),
            out: proxy.out.text(),
            err: proxy.err.text(),
        }
    }

    fn spawn(mut self) -> Proxy {
        let config = self.room.0.join("config.yaml");
        fs::write(&config, self.fill_in_yaml(&self.yaml)).unwrap();
        let args = self
            .args
            .take()
            .unwrap_or_else(|| vec!["CONFIG".to_owned()]);
        let args = args
            .iter()
            .map(|a| self.fill_in(&a.replace("CONFIG", &config.display().to_string())));
        let args: Vec<String> = args.collect();
        let mut command = match &self.shell {
            Some((script, _)) => {
                let mut sh = Command::new("/bin/sh");
                sh.arg("-c").arg(script).arg(binary());
                sh
            }
            None => Command::new(binary()),
        };
        command
            .args(args)
            .env_clear()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .stdin(Stdio::null());
        for (name, value) in &self.env {
            let value = value
                .to_str()
                .map_or_else(|| value.clone(), |v| self.fill_in(v).into());
            command.env(name, value);
        }
        if let Some((_, stdin)) = self.shell.take() {
            command.stdin(stdin);
        }
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", binary().display()));
        let out = Lines::follow(child.stdout.take().unwrap());
        let err = Lines::follow(child.stderr.take().unwrap());
        Proxy {
            child,
            out,
            err,
            addresses: Vec::new(),
            setup: self,
            status: None,
        }
    }

    fn fill_in(&self, text: &str) -> String {
        self.tokens
            .iter()
            .fold(text.to_owned(), |text, (token, value)| {
                text.replace(token, value)
            })
    }

    fn fill_in_yaml(&self, yaml: &str) -> String {
        let filled = self.fill_in(yaml);
        let names_listen = filled
            .lines()
            .any(|line| line.trim_start_matches('\u{feff}').starts_with("listen:"));
        let silent = names_listen || self.env.iter().any(|(name, _)| name == "PORT");
        if silent {
            filled
        } else {
            format!("{filled}\nlisten: \"127.0.0.1:0\"\n")
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Finished {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A running proxy; killed when dropped. It must never have panicked.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    out: Lines,
    err: Lines,
    addresses: Vec<String>,
    setup: Setup,
    status: Option<ExitStatus>,
}

impl Proxy {
    /// Starts one in front of an upstream, `UP` in the configuration.
    pub fn before(upstream: &Upstream, yaml: &str) -> Proxy {
        Setup::new(yaml).upstream("UP", upstream).start()
    }

    /// Where it listens, TCP.
    pub fn address(&self) -> SocketAddr {
        let loopback = self.addresses[0]
            .replace("[::]", "127.0.0.1")
            .replace("0.0.0.0", "127.0.0.1");
        loopback
            .parse()
            .unwrap_or_else(|_| panic!("no TCP address: {loopback}"))
    }

    /// Every address it reported, as written.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Its own directory, `DIR` in its configuration.
    pub fn dir(&self) -> &Path {
        &self.setup.room.0
    }

    /// A new connection.
    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// GET on a new connection.
    pub fn get(&self, target: &str) -> Response {
        self.client().get(target)
    }

    /// Sends these bytes on a new connection and reads the answer.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Response {
        self.client().ask(request)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Proportional set size in kB: private memory, and its share of the program's code.
    pub fn pss_kb(&self) -> u64 {
        self.memory("Pss")
    }

    /// Private memory in kB, for differences: the share of the code changes with every proxy that another test starts or
    /// ends.
    pub fn own_kb(&self) -> u64 {
        self.memory("Anonymous")
    }

    /// A line of `smaps_rollup` in kB.
    pub fn memory(&self, key: &str) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).unwrap();
        let line = rollup
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    /// Seconds of processor time it has used.
    pub fn cpu_seconds(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.pid())).unwrap();
        let nanos: f64 = text.split_whitespace().next().unwrap().parse().unwrap();
        nanos / 1e9
    }

    /// What it wrote to stdout so far.
    pub fn logs(&self) -> Vec<String> {
        self.out.lines()
    }

    /// What it wrote to stderr so far.
    pub fn errors(&self) -> String {
        self.err.text()
    }

    /// All that it wrote to stderr, once it has ended.
    pub fn last_errors(&self) -> String {
        self.err.finish();
        self.err.text()
    }

    /// Waits for a line of its log.
    pub fn await_log(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.out
            .find(&wanted)
            .unwrap_or_else(|| panic!("no log line: {what}; there are {:#?}", self.logs()))
    }

    /// Sends it a signal: `TERM`, `HUP`, …
    pub fn signal(&self, name: &str) {
        signal(name, &self.pid().to_string());
    }

    /// Writes another configuration over its own.
    pub fn rewrite(&self, yaml: &str) {
        fs::write(
            self.dir().join("config.yaml"),
            self.setup.fill_in_yaml(yaml),
        )
        .unwrap();
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.exit()
    }

    /// Waits for its end.
    pub fn exit(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the proxy ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.status = status;
        status.unwrap()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn await_listeners(&mut self, count: usize) {
        let start = Instant::now();
        loop {
            self.addresses = self
                .logs()
                .iter()
                .filter_map(|line| listening(line))
                .collect();
            if self.addresses.len() >= count {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "it ended with {ended:?}: {}\n{:#?}",
                self.errors(),
                self.logs()
            );
            assert!(
                start.elapsed() < PATIENCE,
                "it does not listen: {}\n{:#?}",
                self.errors(),
                self.logs()
            );
            self.out.wait_a_little();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        self.err.finish();
        if thread::panicking() {
            eprintln!(
                "--- stdout of the proxy\n{}--- its stderr\n{}",
                self.out.text(),
                self.err.text()
            );
        } else {
            let said = self.err.text() + &self.out.text();
            assert!(!said.contains("panicked at"), "the proxy panicked: {said}");
        }
    }
}

/// The address in a line that says it listens, text or JSON.
fn listening(line: &str) -> Option<String> {
    let says = [
        "msg=listening",
        "msg=\"listening\"",
        "\"msg\":\"listening\"",
    ]
    .iter()
    .any(|m| line.contains(m));
    let value = line
        .split_once("address=")
        .or_else(|| line.split_once("\"address\":"))?
        .1;
    let end = if value.starts_with('"') { '"' } else { ' ' };
    let address = value.trim_start_matches('"').split(end).next()?;
    says.then(|| address.trim_end().to_owned())
}

#[derive(Debug, Default)]
struct Text {
    lines: Vec<String>,
    ended: bool,
}

/// A stream of text, read in a thread as it comes.
#[derive(Debug)]
struct Lines {
    shared: Arc<(Mutex<Text>, Condvar)>,
}

impl Lines {
    fn follow(stream: impl Read + Send + 'static) -> Lines {
        let shared = <Arc<(Mutex<Text>, Condvar)>>::default();
        let ours = Arc::clone(&shared);
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                lock(&ours.0)
                    .lines
                    .push(String::from_utf8_lossy(&line).into_owned());
                ours.1.notify_all();
            }
            lock(&ours.0).ended = true;
            ours.1.notify_all();
        });
        Lines { shared }
    }

    fn lines(&self) -> Vec<String> {
        lock(&self.shared.0).lines.clone()
    }

    fn text(&self) -> String {
        let mut text = self.lines().join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }

    fn wait_a_little(&self) {
        let _ = self
            .shared
            .1
            .wait_timeout(lock(&self.shared.0), Duration::from_millis(50));
    }

    fn find(&self, wanted: &dyn Fn(&str) -> bool) -> Option<String> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(line) = self.lines().into_iter().find(|line| wanted(line)) {
                return Some(line);
            }
            self.wait_a_little();
        }
        None
    }

    /// Waits for the end of the stream.
    fn finish(&self) {
        let _ = self
            .shared
            .1
            .wait_timeout_while(lock(&self.shared.0), PATIENCE, |text| !text.ended);
    }
}

#[derive(Debug)]
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> TempDir {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "lean-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

// ---- sockets ----

/// A stream socket of either family.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn twin(&self) -> Socket {
        match self {
            Socket::Tcp(s) => Socket::Tcp(s.try_clone().unwrap()),
            Socket::Unix(s) => Socket::Unix(s.try_clone().unwrap()),
        }
    }

    fn bound(&self, read: Duration, write: Duration) {
        let (read, write) = (Some(read), Some(write));
        let _ = match self {
            Socket::Tcp(s) => s
                .set_read_timeout(read)
                .and(s.set_write_timeout(write))
                .and(s.set_nodelay(true)),
            Socket::Unix(s) => s.set_read_timeout(read).and(s.set_write_timeout(write)),
        };
    }

    /// Shuts it down in both directions, for all clones of it.
    pub fn end(&self) {
        self.shut(Shutdown::Both);
    }

    /// Its close will be a reset.
    pub fn reset_on_close(&self) {
        let _ = match self {
            Socket::Tcp(s) => SockRef::from(s).set_linger(Some(Duration::ZERO)),
            Socket::Unix(_) => Ok(()),
        };
    }

    fn shut(&self, how: Shutdown) {
        let _ = match self {
            Socket::Tcp(s) => s.shutdown(how),
            Socket::Unix(s) => s.shutdown(how),
        };
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self {
            Socket::Tcp(s) => s.read(buffer),
            Socket::Unix(s) => s.read(buffer),
        };
        read.map_err(|e| {
            if e.kind() == ErrorKind::WouldBlock {
                ErrorKind::TimedOut.into()
            } else {
                e
            }
        })
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(s) => s.write(bytes),
            Socket::Unix(s) => s.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes blocks of the [`pattern`] until the other side takes none for a second or `limit` is reached; returns the bytes
/// that were written.
fn write_until_stalled(socket: &mut Socket, from: usize, limit: usize) -> io::Result<usize> {
    socket.bound(PATIENCE, Duration::from_secs(1));
    let mut written = 0;
    while written < limit {
        let block = pattern(from + written, 65_536.min(limit - written));
        match socket.write(&block) {
            Ok(n) => written += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    socket.bound(PATIENCE, PATIENCE);
    Ok(written)
}

// ---- the upstream ----

/// What an upstream does with each connection. An error ends only the connection.
type Script = dyn Fn(&mut Peer) -> io::Result<()> + Send + Sync;

/// A scripted server: each connection runs the script in its own thread. A peer reads strictly, and dropping the upstream
/// fails the test if something was not strict.
#[derive(Debug)]
pub struct Upstream {
    authority: String,
    address: Option<SocketAddr>,
    path: Option<PathBuf>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    records: Vec<Arc<Mutex<Vec<u8>>>>,
    sockets: BTreeMap<usize, Socket>,
    open: usize,
    peak: usize,
    requests: usize,
    notes: Vec<String>,
    complaints: Vec<String>,
}

impl Upstream {
    /// Serves on a free TCP port.
    pub fn start(script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static) -> Upstream {
        Upstream::on("127.0.0.1:0", script)
    }

    /// Serves on this address.
    pub fn on(
        address: &str,
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> Upstream {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let accept = move || listener.accept().map(|(s, _)| Socket::Tcp(s));
        let shared = serve(accept, Arc::new(script));
        Upstream {
            authority: address.to_string(),
            address: Some(address),
            path: None,
            shared,
        }
    }

    /// Serves on a socket in the file system.
    pub fn unix(
        path: &Path,
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> Upstream {
        let listener = UnixListener::bind(path).unwrap();
        let accept = move || listener.accept().map(|(s, _)| Socket::Unix(s));
        let shared = serve(accept, Arc::new(script));
        Upstream {
            authority: path.display().to_string(),
            address: None,
            path: Some(path.to_owned()),
            shared,
        }
    }

    /// Answers each request of each connection with what `answer` writes.
    pub fn answering(
        answer: impl Fn(&Request, &mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> Upstream {
        Upstream::start(move |peer| {
            while let Some(request) = peer.request()? {
                answer(&request, peer)?;
            }
            Ok(())
        })
    }

    /// Answers every request with these bytes.
    pub fn fixed(response: impl AsRef<[u8]>) -> Upstream {
        let response = response.as_ref().to_vec();
        Upstream::answering(move |_, peer| peer.write(&response))
    }

    /// Answers by path (without the query), 404 where none matches.
    pub fn per_path(answers: &[(&str, &str)]) -> Upstream {
        let answers: HashMap<String, String> = answers
            .iter()
            .map(|&(p, a)| (p.to_owned(), a.to_owned()))
            .collect();
        Upstream::answering(move |request, peer| {
            let path = request.target.split('?').next().unwrap_or_default();
            let missing = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
            peer.write(answers.get(path).map_or(missing, String::as_str))
        })
    }

    /// Answers 200 with the head it received as the body: see [`seen`].
    pub fn echo_head() -> Upstream {
        Upstream::answering(|request, peer| {
            peer.write(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                request.raw.len()
            ))?;
            peer.write(&request.raw)
        })
    }

    /// Answers each request when the signal is raised.
    pub fn held() -> (Upstream, Signal) {
        let hold = Signal::default();
        let release = hold.clone();
        let upstream = Upstream::answering(move |_, peer| {
            release.wait()?;
            peer.write(OK)
        });
        (upstream, hold)
    }

    /// Answers below `/endless` with an endless body.
    pub fn endless() -> Upstream {
        Upstream::answering(|request, peer| {
            if !request.target.starts_with("/endless") {
                return peer.write(OK);
            }
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")?;
            let block = pattern(0, 65_536);
            while peer.write(&block).is_ok() {}
            Ok(())
        })
    }

    /// Host and port (or the path of the socket).
    pub fn authority(&self) -> String {
        self.authority.clone()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        lock(&self.shared.state).records.len()
    }

    /// Connections open at this moment.
    pub fn open(&self) -> usize {
        lock(&self.shared.state).open
    }

    /// The maximum of connections that were open at the same time.
    pub fn peak(&self) -> usize {
        lock(&self.shared.state).peak
    }

    /// Complete requests read so far (or heads, where the script reads bodies itself).
    pub fn requests(&self) -> usize {
        lock(&self.shared.state).requests
    }

    /// What arrived on the n-th connection, its first megabytes.
    pub fn received(&self, n: usize) -> Vec<u8> {
        let record = Arc::clone(&lock(&self.shared.state).records[n]);
        lock(&record).clone()
    }

    /// What arrived on all connections.
    pub fn received_all(&self) -> Vec<Vec<u8>> {
        (0..self.connections()).map(|n| self.received(n)).collect()
    }

    /// Every note its peers made.
    pub fn notes(&self) -> Vec<String> {
        lock(&self.shared.state).notes.clone()
    }

    /// Waits until a peer has noted this.
    pub fn await_note(&self, note: &str) {
        self.await_state(&format!("note {note}"), |state| {
            state.notes.iter().any(|n| n == note)
        });
    }

    /// Waits until `count` requests have been read.
    pub fn await_requests(&self, count: usize) {
        self.await_state(&format!("{count} requests"), |state| {
            state.requests >= count
        });
    }

    /// Waits until `count` connections are open.
    pub fn await_open(&self, count: usize) {
        self.await_state(&format!("{count} connections open"), |state| {
            state.open == count
        });
    }

    /// Returns and clears what was not strict, for tests that expect it.
    pub fn forgive(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.shared.state).complaints)
    }

    fn await_state(&self, what: &str, so: impl Fn(&State) -> bool) {
        let state = lock(&self.shared.state);
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, |s| !so(s));
        let (state, time) = waited.unwrap_or_else(PoisonError::into_inner);
        let (open, requests, notes) = (state.open, state.requests, state.notes.clone());
        drop(state);
        assert!(
            !time.timed_out(),
            "the upstream waited in vain for {what}: {open} open, {requests} requests, {notes:?}"
        );
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let sockets = std::mem::take(&mut lock(&self.shared.state).sockets);
        let _ = self.address.map(TcpStream::connect);
        let _ = self.path.as_ref().map(UnixStream::connect);
        for socket in sockets.values() {
            socket.shut(Shutdown::Both);
        }
        let complaints = lock(&self.shared.state).complaints.clone();
        assert!(
            thread::panicking() || complaints.is_empty(),
            "not strict: {complaints:#?}"
        );
    }
}

fn serve(
    accept: impl Fn() -> io::Result<Socket> + Send + 'static,
    script: Arc<Script>,
) -> Arc<Shared> {
    let shared = Arc::new(Shared::default());
    let ours = Arc::clone(&shared);
    thread::spawn(move || {
        while let Ok(socket) = accept() {
            if ours.stop.load(Ordering::SeqCst) {
                return;
            }
            let (shared, script) = (Arc::clone(&ours), Arc::clone(&script));
            socket.bound(PATIENCE, PATIENCE);
            let mut peer = Peer::enter(socket, shared);
            thread::spawn(move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| script(&mut peer)));
                peer.leave(outcome);
            });
        }
    });
    shared
}

/// The upstream's end of one connection.
#[derive(Debug)]
pub struct Peer {
    reader: Reader<Recorded>,
    socket: Socket,
    shared: Arc<Shared>,
    number: usize,
}

#[derive(Debug)]
struct Recorded {
    socket: Socket,
    record: Arc<Mutex<Vec<u8>>>,
}

impl Read for Recorded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.socket.read(buffer)?;
        let mut record = lock(&self.record);
        if record.len() < 4 << 20 {
            record.extend_from_slice(&buffer[..n]);
        }
        Ok(n)
    }
}

impl Peer {
    fn enter(socket: Socket, shared: Arc<Shared>) -> Peer {
        let record = Arc::new(Mutex::new(Vec::new()));
        let number = {
            let mut state = lock(&shared.state);
            state.records.push(Arc::clone(&record));
            state.open += 1;
            state.peak = state.peak.max(state.open);
            let number = state.records.len() - 1;
            state.sockets.insert(number, socket.twin());
            number
        };
        shared.changed.notify_all();
        Peer {
            reader: Reader::new(Recorded {
                socket: socket.twin(),
                record,
            }),
            socket,
            shared,
            number,
        }
    }

    fn leave(self, outcome: thread::Result<io::Result<()>>) {
        let Peer {
            reader,
            socket,
            shared,
            number,
        } = self;
        let mut state = lock(&shared.state);
        match outcome {
            Ok(Err(e)) if e.kind() == ErrorKind::InvalidData => {
                state.complaints.push(e.to_string());
            }
            Ok(_) => {}
            Err(_) => state.complaints.push("the script panicked".to_owned()),
        }
        state.sockets.remove(&number);
        drop((reader, socket));
        state.open -= 1;
        state.notes.push(format!("left {number}"));
        drop(state);
        shared.changed.notify_all();
    }

    /// The number of this connection, from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The next whole request, bodies included; `None` where the proxy closed instead.
    pub fn request(&mut self) -> io::Result<Option<Request>> {
        let request = self.reader.request();
        self.count(request)
    }

    /// The next request's head, its body still to come.
    pub fn head(&mut self) -> io::Result<Request> {
        let head = self.reader.request_head();
        self.count(head)?
            .ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    /// The reader behind it, for bodies by hand.
    pub fn reader(&mut self) -> &mut Reader<impl Read + use<>> {
        &mut self.reader
    }

    /// Sends these bytes.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.socket.write_all(bytes.as_ref())
    }

    /// Sends one chunk.
    pub fn chunk(&mut self, data: impl AsRef<[u8]>) -> io::Result<()> {
        let data = data.as_ref();
        self.write([format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat())
    }

    /// Sends the [`pattern`] until the proxy takes no more for a second; returns the bytes that it took.
    pub fn write_until_stalled(&mut self, from: usize, limit: usize) -> io::Result<usize> {
        write_until_stalled(&mut self.socket, from, limit)
    }

    /// Closes the sending side, and goes on reading.
    pub fn half_close(&mut self) {
        self.socket.shut(Shutdown::Write);
    }

    /// Waits for the proxy to close; what comes before is read and ignored.
    pub fn await_close(&mut self) -> io::Result<()> {
        loop {
            match self.reader.some() {
                Ok(bytes) if bytes.is_empty() => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::TimedOut => return Err(e),
                Err(_) => return Ok(()),
            }
        }
    }

    /// Neither reads nor writes until the upstream ends, or all waits of a test would be over.
    pub fn stand_still(&self) {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && !self.shared.stop.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Closes with a reset, by leaving bytes unread: it waits for the first of them.
    pub fn reset(&mut self) -> io::Result<()> {
        if let Socket::Tcp(s) = &self.socket {
            s.peek(&mut [0])?;
        }
        Ok(())
    }

    /// Closes with a reset in any case.
    pub fn cut(&mut self) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(s) => SockRef::from(s).set_linger(Some(Duration::ZERO)),
            Socket::Unix(_) => Ok(()),
        }
    }

    /// Makes a note for the test.
    pub fn note(&self, note: impl Into<String>) {
        lock(&self.shared.state).notes.push(note.into());
        self.shared.changed.notify_all();
    }

    fn count<T>(&self, request: io::Result<Option<T>>) -> io::Result<Option<T>> {
        if let Ok(Some(_)) = request {
            lock(&self.shared.state).requests += 1;
            self.shared.changed.notify_all();
        }
        request
    }
}

/// The request as the upstream saw it, from an answer of [`Upstream::echo_head`].
pub fn seen(response: &Response) -> Request {
    assert_eq!(response.status, 200, "{response:?}");
    let head = Reader::new(response.body.as_slice()).request_head();
    head.unwrap()
        .unwrap_or_else(|| panic!("no echo: {response:?}"))
}

// ---- the client ----

/// Why an answer is incomplete.
#[derive(Debug)]
pub struct Broken {
    /// The part that was received, if its head was.
    pub partial: Option<Response>,
    /// `UnexpectedEof`, `ConnectionReset`, `TimedOut` or `InvalidData`.
    pub cause: io::Error,
}

impl Broken {
    fn boxed(partial: Option<Response>, cause: io::Error) -> Box<Broken> {
        Box::new(Broken { partial, cause })
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Clean,
    Reset,
}

/// A client of raw bytes.
#[derive(Debug)]
pub struct Client {
    reader: Reader<Socket>,
    socket: Socket,
}

impl Client {
    /// Connects to a TCP address.
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)
            .unwrap_or_else(|e| panic!("{address}: {e}"));
        Client::over(Socket::Tcp(stream))
    }

    /// Connects to a TCP address with a receive buffer of a few kilobytes.
    pub fn narrow(address: SocketAddr) -> Client {
        let socket =
            socket2::Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket
            .connect_timeout(&address.into(), PATIENCE)
            .unwrap_or_else(|e| panic!("{address}: {e}"));
        Client::over(Socket::Tcp(socket.into()))
    }

    /// Connects to a TCP address from another address of this machine.
    pub fn calling_from(source: IpAddr, address: SocketAddr) -> Client {
        let socket =
            socket2::Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        socket
            .connect_timeout(&address.into(), PATIENCE)
            .unwrap_or_else(|e| panic!("{address} from {source}: {e}"));
        Client::over(Socket::Tcp(socket.into()))
    }

    /// Connects to a socket in the file system.
    pub fn unix(path: &Path) -> Client {
        Client::over(Socket::Unix(UnixStream::connect(path).unwrap()))
    }

    fn over(socket: Socket) -> Client {
        socket.bound(PATIENCE, PATIENCE);
        Client {
            reader: Reader::new(socket.twin()),
            socket,
        }
    }

    /// Sends these bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        self.try_send(bytes).unwrap_or_else(|e| panic!("send: {e}"));
        self
    }

    /// Sends these bytes; an error if they are not all taken.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.socket.write_all(bytes.as_ref())
    }

    /// Sends one chunk.
    pub fn chunk(&mut self, data: impl AsRef<[u8]>) -> &mut Client {
        let data = data.as_ref();
        self.send([format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat())
    }

    /// Sends the [`pattern`] until no more is taken for a second; returns the bytes that were sent.
    pub fn write_until_stalled(&mut self, from: usize, limit: usize) -> usize {
        write_until_stalled(&mut self.socket, from, limit).unwrap()
    }

    /// A clone of the socket, for a thread that writes while this one reads.
    pub fn writer(&self) -> Socket {
        self.socket.twin()
    }

    /// GET, and its answer.
    pub fn get(&mut self, target: &str) -> Response {
        self.ask(get(target))
    }

    /// Sends a request and reads its answer.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Response {
        let method = if request.as_ref().starts_with(b"HEAD ") {
            "HEAD"
        } else {
            ""
        };
        self.send(request);
        self.receive_for(method)
    }

    /// Reads a complete answer (not one to HEAD).
    pub fn receive(&mut self) -> Response {
        self.receive_for("")
    }

    /// Reads a complete answer to this method.
    pub fn receive_for(&mut self, method: &str) -> Response {
        self.try_receive_for(method)
            .unwrap_or_else(|broken| panic!("no whole answer: {broken:?}"))
    }

    /// Reads an answer, or returns why it is incomplete.
    pub fn try_receive(&mut self) -> Result<Response, Box<Broken>> {
        self.try_receive_for("")
    }

    /// Reads an answer's head, its body still to come.
    pub fn head(&mut self) -> Response {
        self.try_head("")
            .unwrap_or_else(|broken| panic!("no head of an answer: {broken:?}"))
    }

    fn try_receive_for(&mut self, method: &str) -> Result<Response, Box<Broken>> {
        let mut response = self.try_head(method)?;
        match self.reader.body_into(response.framing, &mut response.body) {
            Ok(trailers) => Ok(Response {
                trailers,
                ..response
            }),
            Err(cause) => Err(Broken::boxed(Some(response), cause)),
        }
    }

    fn try_head(&mut self, method: &str) -> Result<Response, Box<Broken>> {
        let mut interim = Vec::new();
        loop {
            let head = self.reader.response_head(method);
            let head = head.and_then(|head| head.ok_or_else(|| ErrorKind::UnexpectedEof.into()));
            match head.map_err(|cause| Broken::boxed(None, cause))? {
                one if (100..200).contains(&one.status) && one.status != 101 => interim.push(one),
                last => return Ok(Response { interim, ..last }),
            }
        }
    }

    /// The rest of a body whose head was read by [`Client::head`].
    pub fn body(&mut self, framing: Framing) -> io::Result<(Vec<u8>, Fields)> {
        self.reader.body(framing)
    }

    /// The next interim answer or head, as it comes.
    pub fn interim(&mut self) -> Response {
        self.reader
            .response_head("")
            .unwrap()
            .unwrap_or_else(|| panic!("closed instead of an answer"))
    }

    /// The reader behind it, for bodies by hand.
    pub fn reader(&mut self) -> &mut Reader<impl Read + use<>> {
        &mut self.reader
    }

    /// Closes the sending side, and goes on reading.
    pub fn half_close(&mut self) {
        self.socket.shut(Shutdown::Write);
    }

    /// Waits for the end of the connection; nothing may come before.
    pub fn end(&mut self) -> End {
        match self.reader.some() {
            Ok(bytes) if bytes.is_empty() => End::Clean,
            Ok(bytes) => panic!("bytes instead of an end: {}", strict::show(&bytes)),
            Err(e) if e.kind() == ErrorKind::TimedOut => panic!("the connection does not end"),
            Err(_) => End::Reset,
        }
    }

    /// Waits for the end of the connection; returns what came before it.
    pub fn until_end(&mut self) -> (Vec<u8>, End) {
        let mut bytes = Vec::new();
        loop {
            match self.reader.some() {
                Ok(piece) if piece.is_empty() => return (bytes, End::Clean),
                Ok(piece) => bytes.extend(piece),
                Err(e) if e.kind() == ErrorKind::TimedOut => {
                    panic!("it does not end after {}", strict::show(&bytes))
                }
                Err(_) => return (bytes, End::Reset),
            }
        }
    }

    /// What comes within this time, until the end or until nothing comes.
    pub fn within(&mut self, time: Duration) -> Vec<u8> {
        self.socket.bound(time, PATIENCE);
        let mut bytes = Vec::new();
        while let Ok(piece) = self.reader.some() {
            if piece.is_empty() {
                break;
            }
            bytes.extend(piece);
        }
        self.socket.bound(PATIENCE, PATIENCE);
        bytes
    }

    /// Whether nothing was received and the connection stayed open for this time.
    pub fn is_silent(&mut self, time: Duration) -> bool {
        self.socket.bound(time, PATIENCE);
        let silent = matches!(self.reader.some(), Err(e) if e.kind() == ErrorKind::TimedOut);
        self.socket.bound(PATIENCE, PATIENCE);
        silent
    }
}

/// Expects a 200 for the request of each client.
pub fn all_served(clients: &mut [Client]) {
    for client in clients {
        assert_eq!(client.receive().status, 200);
    }
}

/// The bytes of a plain GET.
pub fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: proxy.test\r\n\r\n")
}

/// The bytes of a request with these further field lines, each without its line's end.
pub fn with(line: &str, fields: &[&str]) -> String {
    let lines = [&["Host: proxy.test"], fields].concat().join("\r\n");
    format!("{line} HTTP/1.1\r\n{lines}\r\n\r\n")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_client_and_an_upstream_understand_each_other() {
    let upstream = Upstream::echo_head();
    let mut client = Client::connect(upstream.address.unwrap());
    for i in 0..3 {
        let response =
            client.ask(with(&format!("POST /{i}"), &["Content-Length: 3", "X-A: b"]) + "abc");
        let request = seen(&response);
        assert_eq!(
            (request.target, request.fields.one("x-a")),
            (format!("/{i}"), Some("b"))
        );
    }
    assert_eq!(
        (upstream.connections(), upstream.requests(), upstream.open()),
        (1, 3, 1)
    );
    drop(client);
    upstream.await_note("left 0");
    assert_eq!(upstream.open(), 0);
    assert!(upstream.received(0).starts_with(b"POST /0 HTTP/1.1\r\n"));
}

#[test]
fn a_client_distinguishes_complete_answers_from_broken_ones() {
    let whole = "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n";
    for (answer, kind) in [
        (whole, None),
        (&whole[..whole.len() - 2], Some(ErrorKind::UnexpectedEof)),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
            Some(ErrorKind::UnexpectedEof),
        ),
        ("", Some(ErrorKind::UnexpectedEof)),
        (
            "HTTP/1.1 200 OK\nContent-Length: 3\r\n\r\nabc",
            Some(ErrorKind::InvalidData),
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            Some(ErrorKind::InvalidData),
        ),
    ] {
        let upstream = Upstream::start(move |peer| {
            peer.request()?;
            peer.write(answer)
        });
        let mut client = Client::connect(upstream.address.unwrap());
        client.send(get("/"));
        match (client.try_receive(), kind) {
            (Ok(response), None) => {
                assert_eq!(
                    (response.text().as_str(), response.interim.len()),
                    ("abc", 1)
                );
                assert_eq!(response.trailers.one("x"), Some("y"));
                assert_eq!(client.end(), End::Clean);
            }
            (Err(broken), Some(kind)) => assert_eq!(broken.cause.kind(), kind, "{answer:?}"),
            (result, _) => panic!("{answer:?}: {result:?}"),
        }
    }
}

#[test]
fn a_reset_is_distinguished_from_an_end() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.reset()
    });
    let mut client = Client::connect(upstream.address.unwrap());
    client.send(with("POST /", &["Content-Length: 6"]));
    upstream.await_requests(1);
    client.send("unread");
    assert_eq!(client.end(), End::Reset);
}

#[test]
fn what_is_not_strict_fails_its_test() {
    let upstream = Upstream::fixed(OK);
    let mut client = Client::connect(upstream.address.unwrap());
    client.send("GET / HTTP/1.1\r\nHost: a\r\nKeep-Alive: 5\r\n\r\n");
    client.end();
    upstream.await_note("left 0");
    assert!(upstream.forgive()[0].contains("keep-alive was passed on"));
}

#[test]
fn a_stalled_writer_returns() {
    let upstream = Upstream::start(|peer| {
        let sent = peer.write_until_stalled(0, 1 << 30)?;
        peer.note(if sent < 1 << 30 {
            "stalled"
        } else {
            "swallowed"
        });
        peer.await_close()
    });
    let mut client = Client::connect(upstream.address.unwrap());
    upstream.await_note("stalled");
    assert_eq!(client.reader().exact(200_000).unwrap(), pattern(0, 200_000));
    drop(client);
    upstream.await_note("left 0");
}

#[test]
fn the_log_line_with_the_address_is_parsed() {
    for (line, address) in [
        (
            "level=info msg=listening address=127.0.0.1:8080",
            Some("127.0.0.1:8080"),
        ),
        (
            "msg=\"listening\" address=\"[::1]:80\" more=x",
            Some("[::1]:80"),
        ),
        (
            "{\"level\":\"info\",\"msg\":\"listening\",\"address\":\"unix:/a b\",\"x\":1}",
            Some("unix:/a b"),
        ),
        ("msg=stopped address=127.0.0.1:8080", None),
        ("msg=listening", None),
    ] {
        assert_eq!(listening(line).as_deref(), address, "{line}");
    }
}
