//! Traffic for the benchmark: the upstream of the proxies, and their well-behaved and malicious clients.
//!
//! `run.py` builds and starts it. One run is one process with one thread, which uses loopback only and prints one line of
//! JSON. It ends after a number of requests or seconds, or when its standard input closes.
//!
//! ```text
//! traffic upstream roots=FILE         prints {"port":N,"tls_port":N}, leaves its certificate in FILE, and serves
//!                                     /bytes/N, /chunked/N, /events/N/MS, /sink, /slow/RATE
//! traffic ask port=N [conns] [path] [count] [seconds] [rate] [post] [browser=1] [close=1] [timeout=MS]
//! traffic hold port=N [conns] [path] [stream=1]      one answer each (or its first piece), then silence until stdin closes
//! traffic read port=N [conns] [path] [rate] [window] [seconds]        readers, slow where there is a rate (bytes per second)
//! traffic write port=N [conns] [path] [post] [seconds]                one upload per connection
//! traffic events port=N [path] [count]               how late each event comes
//! traffic slow-heads port=N [conns] [every=MS] [seconds]              a head without end, a byte at a time
//! traffic big-heads port=N [conns] [post] [every=MS] [seconds]        a head of `post` bytes, a pause, its end
//! traffic slow-bodies port=N [conns] [path] [post] [every=MS] [seconds]       a body of `post` bytes, a byte at a time
//! ```
//!
//! The upstream answers 400 to a request whose path was not rewritten or that has no X-Forwarded-For, so that every proxy
//! does the same work. Malicious clients connect again 100 ms after they were disconnected.

#![expect(
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a tool for this repository: it prints its result, and a panic is a failed measurement"
)]

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    env, fs,
    future::Future,
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr},
    process,
    rc::Rc,
    str::FromStr,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime,
    sync::Semaphore,
    task::{LocalSet, spawn_local},
    time::{sleep, sleep_until, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;

/// The fields that a browser sends besides Host.
const BROWSER: &str = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: */*\r\n\
    Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nReferer: https://app.example.com/some/page?x=1\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; _ga=GA1.1.123456789.1234567890\r\nSec-Fetch-Dest: empty\r\n\
    Sec-Fetch-Mode: cors\r\nSec-Fetch-Site: same-site\r\nDNT: 1\r\nPriority: u=4\r\nX-Request-Id: 7d3c1a52-8a2e-4a7e-9a55-2b7d6f1e0c11\r\n";

/// Body bytes, sent repeatedly.
static BLOCK: [u8; 65_536] = [b'x'; 65_536];

/// How long a malicious client waits after it was disconnected.
const BACKOFF: Duration = Duration::from_millis(100);

fn main() {
    let mut arguments = env::args().skip(1);
    let kind = arguments.next().unwrap_or_default();
    let options = Options(
        arguments
            .filter_map(|argument| {
                argument
                    .split_once('=')
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
            })
            .collect(),
    );
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let plan = Rc::new(Plan::of(&options));
    runtime.block_on(LocalSet::new().run_until(async {
        match kind.as_str() {
            "upstream" => upstream(&options).await.expect("two listeners on loopback"),
            "ask" => ask(plan).await,
            "hold" => hold(plan).await,
            "events" => events(plan).await,
            "read" | "write" => {
                attack(plan, |plan| async move { plan.exchange().await.map(drop) }).await;
            }
            "slow-heads" => attack(plan, slow_head).await,
            "big-heads" => attack(plan, big_head).await,
            "slow-bodies" => attack(plan, slow_body).await,
            _ => {
                println!("traffic: unknown kind \"{kind}\"; see the head of traffic.rs");
                process::exit(2);
            }
        }
    }));
}

struct Options(HashMap<String, String>);

impl Options {
    fn number<T: FromStr>(&self, key: &str, default: T) -> T {
        match self.0.get(key) {
            Some(value) => value.parse().unwrap_or_else(|_| {
                println!("traffic: {key}={value} is not a number");
                process::exit(2);
            }),
            None => default,
        }
    }
}

/// What the clients of one run do.
struct Plan {
    proxy: SocketAddr,
    conns: u32,
    /// Requests of all clients together.
    count: u64,
    /// How long the run may take.
    life: Duration,
    /// Requests per second of all clients, or bytes per second of one reader; 0 = as fast as possible.
    rate: u32,
    /// The client's receive buffer in bytes; 0 = the kernel's default.
    window: u32,
    /// Bytes of request body, or of a big head.
    post: usize,
    every: Duration,
    /// How long one answer may take.
    patience: Duration,
    close: bool,
    stream: bool,
    head: Vec<u8>,
}

impl Plan {
    fn of(options: &Options) -> Plan {
        let path = options
            .0
            .get("path")
            .map_or("/api/bytes/100", String::as_str);
        let post = options.number("post", 0);
        let close = options.number("close", 0) != 0;
        let method = if post > 0 { "POST" } else { "GET" };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: proxy.test\r\n");
        if options.number("browser", 0) != 0 {
            head.push_str(BROWSER);
        }
        if close {
            head.push_str("Connection: close\r\n");
        }
        if post > 0 {
            head.push_str("Content-Type: application/json\r\nContent-Length: ");
            head.push_str(&post.to_string());
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        Plan {
            proxy: (Ipv4Addr::LOCALHOST, options.number("port", 0)).into(),
            conns: options.number("conns", 1),
            count: options.number("count", u64::MAX),
            life: Duration::from_secs_f64(options.number("seconds", 60.0)),
            rate: options.number("rate", 0),
            window: options.number("window", 0),
            post,
            every: Duration::from_millis(options.number("every", 200)),
            patience: Duration::from_millis(options.number("timeout", 10_000)),
            close,
            stream: options.number("stream", 0) != 0,
            head: head.into_bytes(),
        }
    }

    async fn dial(&self) -> io::Result<Line> {
        let socket = TcpSocket::new_v4()?;
        if self.window > 0 {
            socket.set_recv_buffer_size(self.window)?;
        }
        let stream = socket.connect(self.proxy).await?;
        stream.set_nodelay(true)?;
        Ok(Line::new(stream))
    }

    /// Sends one request on a new connection and reads its whole answer, at most `rate` bytes a second. Returns the bytes.
    async fn exchange(&self) -> io::Result<u64> {
        let mut line = self.dial().await?;
        if self.rate > 0 {
            line.slow_down(self.rate);
        }
        let head = line.question(self).await?;
        line.body(head.framing, |_| {}).await
    }
}

/// A plain connection or a TLS one.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// One side of a connection, with what was read from it and not used yet.
struct Line {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    from: usize,
    until: usize,
    /// The maximum of bytes of one read, and the pause before it.
    sip: usize,
    rest: Duration,
}

impl Line {
    fn new(stream: impl Stream + 'static) -> Line {
        Line {
            stream: Box::new(stream),
            buffer: Vec::new(),
            from: 0,
            until: 0,
            sip: usize::MAX,
            rest: Duration::ZERO,
        }
    }

    /// Limits reading to `rate` bytes a second, in twenty reads.
    fn slow_down(&mut self, rate: u32) {
        self.sip = (rate as usize / 20).max(1);
        self.rest = Duration::from_millis(50);
    }

    async fn question(&mut self, plan: &Plan) -> io::Result<Head> {
        self.send(plan).await?;
        self.head().await
    }

    async fn send(&mut self, plan: &Plan) -> io::Result<()> {
        if plan.post == 0 {
            return self.stream.write_all(&plan.head).await;
        }
        if plan.post <= BLOCK.len() {
            let mut whole = plan.head.clone();
            whole.extend_from_slice(&BLOCK[..plan.post]);
            return self.stream.write_all(&whole).await;
        }
        self.stream.write_all(&plan.head).await?;
        let mut left = plan.post;
        while left > 0 {
            let piece = left.min(BLOCK.len());
            self.stream.write_all(&BLOCK[..piece]).await?;
            left -= piece;
        }
        Ok(())
    }

    /// Reads more into the buffer. The end of the stream is an error.
    async fn fill(&mut self) -> io::Result<()> {
        if self.from == self.until {
            (self.from, self.until) = (0, 0);
        }
        if self.until == self.buffer.len() {
            let longer = (self.buffer.len() * 4).clamp(4096, 262_144);
            if longer == self.buffer.len() {
                return Err(io::Error::other("a head that is too long"));
            }
            self.buffer.resize(longer, 0);
        }
        if !self.rest.is_zero() {
            sleep(self.rest).await;
        }
        let room = (self.buffer.len() - self.until).min(self.sip);
        let read = self
            .stream
            .read(&mut self.buffer[self.until..][..room])
            .await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.until += read;
        Ok(())
    }

    async fn head(&mut self) -> io::Result<Head> {
        loop {
            let ready = &self.buffer[self.from..self.until];
            if let Some(end) = ready.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = Head::read(&String::from_utf8_lossy(&ready[..end]));
                self.from += end + 4;
                if head.status != 100 {
                    return Ok(head);
                }
                continue;
            }
            self.fill().await?;
        }
    }

    /// Reads a body to its end, passes its pieces to `seen`, and returns the number of bytes.
    async fn body(&mut self, mut framing: Framing, mut seen: impl FnMut(&[u8])) -> io::Result<u64> {
        let mut bytes = 0;
        let mut count = |piece: &[u8]| {
            bytes += piece.len() as u64;
            seen(piece);
        };
        while !framing.is_over() {
            if self.from == self.until {
                match self.fill().await {
                    Err(error)
                        if error.kind() == io::ErrorKind::UnexpectedEof
                            && matches!(framing, Framing::Close) =>
                    {
                        break;
                    }
                    other => other?,
                }
            }
            self.from += framing.eat(&self.buffer[self.from..self.until], &mut count);
        }
        Ok(bytes)
    }
}

/// The parts of a head that are used. The status of a request is 0.
struct Head {
    target: String,
    status: u16,
    framing: Framing,
    closes: bool,
    forwarded: bool,
}

impl Head {
    fn read(text: &str) -> Head {
        let mut lines = text.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let first = words.next().unwrap_or_default();
        let second = words.next().unwrap_or_default();
        let is_answer = first.starts_with("HTTP/");
        let version = if is_answer {
            first
        } else {
            words.next().unwrap_or_default()
        };
        let mut head = Head {
            target: second.to_owned(),
            status: if is_answer {
                second.parse().unwrap_or(0)
            } else {
                0
            },
            framing: if is_answer {
                Framing::Close
            } else {
                Framing::Length(0)
            },
            closes: version == "HTTP/1.0",
            forwarded: false,
        };
        for line in lines {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.framing = Framing::Length(value.parse().unwrap_or(0));
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.framing = Framing::Chunked(Chunk::Size(0));
            } else if name.eq_ignore_ascii_case("connection") {
                head.closes = value.eq_ignore_ascii_case("close")
                    || (head.closes && !value.eq_ignore_ascii_case("keep-alive"));
            } else if name.eq_ignore_ascii_case("x-forwarded-for") {
                head.forwarded = true;
            }
        }
        head
    }
}

enum Framing {
    Length(u64),
    Chunked(Chunk),
    Close,
}

/// The position in a chunked body. The trailer section is expected to be empty.
enum Chunk {
    Size(u64),
    Data(u64),
    /// The line end after data.
    Edge,
    /// The line end after the last chunk.
    Last,
    Over,
}

impl Framing {
    fn is_over(&self) -> bool {
        matches!(self, Framing::Length(0) | Framing::Chunked(Chunk::Over))
    }

    /// Consumes the body's part of `bytes`, passes its data to `seen`, and returns how much it consumed.
    fn eat(&mut self, bytes: &[u8], seen: &mut impl FnMut(&[u8])) -> usize {
        match self {
            Framing::Close => {
                seen(bytes);
                bytes.len()
            }
            Framing::Length(left) => {
                let piece = &bytes[..bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX))];
                *left -= piece.len() as u64;
                seen(piece);
                piece.len()
            }
            Framing::Chunked(chunk) => {
                let mut at = 0;
                while at < bytes.len() && !matches!(chunk, Chunk::Over) {
                    at += chunk.eat(&bytes[at..], seen);
                }
                at
            }
        }
    }
}

impl Chunk {
    fn eat(&mut self, bytes: &[u8], seen: &mut impl FnMut(&[u8])) -> usize {
        let end = bytes[0] == b'\n';
        match self {
            Chunk::Size(0) if end => *self = Chunk::Last,
            Chunk::Size(size) if end => *self = Chunk::Data(*size),
            Chunk::Size(size) => {
                if let Some(digit) = char::from(bytes[0]).to_digit(16) {
                    *size = *size * 16 + u64::from(digit);
                }
            }
            Chunk::Data(left) => {
                let piece = &bytes[..bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX))];
                *left -= piece.len() as u64;
                seen(piece);
                if *left == 0 {
                    *self = Chunk::Edge;
                }
                return piece.len();
            }
            Chunk::Edge if end => *self = Chunk::Size(0),
            Chunk::Last if end => *self = Chunk::Over,
            Chunk::Edge | Chunk::Last | Chunk::Over => {}
        }
        1
    }
}

/// The results of a run's requests.
#[derive(Default)]
struct Tally {
    taken: Cell<u64>,
    failed: Cell<u64>,
    timed_out: Cell<u64>,
    micros: RefCell<Vec<u64>>,
}

/// Well-behaved clients on kept-alive connections.
async fn ask(plan: Rc<Plan>) {
    let tally = Rc::new(Tally::default());
    let begin = Instant::now();
    let tasks: Vec<_> = (0..plan.conns)
        .map(|number| {
            spawn_local(ask_on_and_on(
                number,
                begin,
                Rc::clone(&plan),
                Rc::clone(&tally),
            ))
        })
        .collect();
    for task in tasks {
        task.await.expect("a client that does not panic");
    }
    let seconds = begin.elapsed().as_secs_f64();
    let mut micros = tally.micros.take();
    micros.sort_unstable();
    let at = |percent: usize| {
        micros
            .get((micros.len() * percent / 100).min(micros.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0)
    };
    println!(
        "{{\"ok\":{},\"failed\":{},\"timed_out\":{},\"seconds\":{seconds:.4},\"p50_us\":{},\"p99_us\":{},\"max_us\":{}}}",
        micros.len(),
        tally.failed.get(),
        tally.timed_out.get(),
        at(50),
        at(99),
        at(100)
    );
}

async fn ask_on_and_on(number: u32, begin: Instant, plan: Rc<Plan>, tally: Rc<Tally>) {
    let mut line = None;
    let mut round = 0;
    while begin.elapsed() < plan.life && tally.taken.get() < plan.count {
        tally.taken.set(tally.taken.get() + 1);
        if plan.rate > 0 {
            let turn = f64::from(round * plan.conns + number) / f64::from(plan.rate);
            let due = begin + Duration::from_secs_f64(turn);
            if due > begin + plan.life {
                return;
            }
            sleep_until(due.into()).await;
            round += 1;
        }
        let since = Instant::now();
        match timeout(plan.patience, ask_once(&mut line, &plan)).await {
            Ok(Ok(200)) => {
                let micros = since.elapsed().as_micros();
                let micros = u64::try_from(micros).unwrap_or(u64::MAX);
                tally.micros.borrow_mut().push(micros);
            }
            Ok(outcome) => {
                tally.failed.set(tally.failed.get() + 1);
                if outcome.is_err() {
                    line = None;
                    sleep(Duration::from_millis(10)).await;
                }
            }
            Err(_) => {
                line = None;
                tally.failed.set(tally.failed.get() + 1);
                tally.timed_out.set(tally.timed_out.get() + 1);
            }
        }
    }
}

/// Sends one request on the kept connection, or on a new one if there is none or the proxy has closed it.
async fn ask_once(line: &mut Option<Line>, plan: &Plan) -> io::Result<u16> {
    let kept = line.take();
    let was_kept = kept.is_some();
    let mut open = match kept {
        Some(open) => open,
        None => plan.dial().await?,
    };
    let head = match open.question(plan).await {
        Err(_) if was_kept && open.until == 0 => {
            open = plan.dial().await?;
            open.question(plan).await?
        }
        head => head?,
    };
    let ends = head.closes || plan.close || matches!(head.framing, Framing::Close);
    open.body(head.framing, |_| {}).await?;
    *line = (!ends).then_some(open);
    Ok(head.status)
}

/// Clients that get an answer and keep their connections; at most 50 ask at a time. Prints a line when all have asked.
async fn hold(plan: Rc<Plan>) {
    let slots = Rc::new(Semaphore::new(50));
    let tasks: Vec<_> = (0..plan.conns)
        .map(|_| {
            let (plan, slots) = (Rc::clone(&plan), Rc::clone(&slots));
            spawn_local(async move {
                let _slot = slots.acquire().await;
                timeout(plan.patience, hold_one(&plan)).await.ok()?.ok()
            })
        })
        .collect();
    let mut held = Vec::new();
    for task in tasks {
        held.extend(task.await.expect("a client that does not panic"));
    }
    println!("{{\"open\":{}}}", held.len());
    leave_with_stdin();
    // event streams are read on, as in a browser
    let readers: Vec<_> = held
        .into_iter()
        .map(|(mut line, framing)| spawn_local(async move { line.body(framing, |_| {}).await }))
        .collect();
    for reader in readers {
        let _ = reader.await;
    }
    std::future::pending::<()>().await;
}

async fn hold_one(plan: &Plan) -> io::Result<(Line, Framing)> {
    let mut line = plan.dial().await?;
    let head = line.question(plan).await?;
    if plan.stream {
        return Ok((line, head.framing));
    }
    line.body(head.framing, |_| {}).await?;
    // nothing more is sent: reading waits for the close
    Ok((line, Framing::Close))
}

/// Ends the process when its parent closes the pipe or ends.
fn leave_with_stdin() {
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        process::exit(0);
    });
}

/// Measures the delay of events, each of which holds the time at which it was written.
async fn events(plan: Rc<Plan>) {
    let mut late = Vec::new();
    let mut text = Vec::new();
    let reading = async {
        let mut line = plan.dial().await?;
        let head = line.question(&plan).await?;
        line.body(head.framing, |piece| {
            text.extend_from_slice(piece);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let row: Vec<u8> = text.drain(..=end).collect();
                if let Some(stamp) = String::from_utf8_lossy(&row).trim().strip_prefix("data: ") {
                    late.push(since_the_epoch() - stamp.parse::<f64>().unwrap_or(0.0));
                }
            }
        })
        .await
    };
    let outcome = timeout(plan.life, reading).await;
    let whole = matches!(outcome, Ok(Ok(_)));
    late.sort_unstable_by(f64::total_cmp);
    let of = |index: usize| late.get(index).copied().unwrap_or(0.0) * 1000.0;
    println!(
        "{{\"whole\":{whole},\"events\":{},\"p50_ms\":{:.3},\"max_ms\":{:.3}}}",
        late.len(),
        of(late.len() / 2),
        of(late.len().saturating_sub(1))
    );
}

fn since_the_epoch() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |past| past.as_secs_f64())
}

/// Clients that repeat one action until the time is up.
async fn attack<F, Fut>(plan: Rc<Plan>, action: F)
where
    F: Fn(Rc<Plan>) -> Fut + Copy + 'static,
    Fut: Future<Output = io::Result<()>> + 'static,
{
    let end = tokio::time::Instant::now() + plan.life;
    let done = Rc::new(Cell::new(0_u64));
    let refused = Rc::new(Cell::new(0_u64));
    let tasks: Vec<_> = (0..plan.conns)
        .map(|_| {
            let (plan, done, refused) = (Rc::clone(&plan), Rc::clone(&done), Rc::clone(&refused));
            spawn_local(async move {
                let actions = async {
                    while done.get() < plan.count {
                        let outcome = action(Rc::clone(&plan)).await;
                        let counter = if outcome.is_ok() { &done } else { &refused };
                        counter.set(counter.get() + 1);
                        if outcome.is_err() {
                            sleep(BACKOFF).await;
                        }
                    }
                };
                let _ = timeout_at(end, actions).await;
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a client that does not panic");
    }
    println!("{{\"ok\":{},\"failed\":{}}}", done.get(), refused.get());
}

/// Sends a head that never ends, a byte at a time. Ends when the proxy answers or closes.
async fn slow_head(plan: Rc<Plan>) -> io::Result<()> {
    let mut line = plan.dial().await?;
    let start = &plan.head[..plan.head.len() - 2];
    line.stream.write_all(start).await?;
    for byte in b"X-Slow: bbbbbbbb\r\n".iter().cycle() {
        line.stream.write_all(std::slice::from_ref(byte)).await?;
        if timeout(plan.every, line.fill()).await.is_ok() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
    Ok(())
}

/// Sends a whole head, and its body a byte at a time. Ends when the proxy answers or closes.
async fn slow_body(plan: Rc<Plan>) -> io::Result<()> {
    let mut line = plan.dial().await?;
    line.stream.write_all(&plan.head).await?;
    for byte in &BLOCK[..plan.post] {
        line.stream.write_all(std::slice::from_ref(byte)).await?;
        if timeout(plan.every, line.fill()).await.is_ok() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
    line.head().await.map(drop)
}

async fn big_head(plan: Rc<Plan>) -> io::Result<()> {
    let mut line = plan.dial().await?;
    let mut head = b"GET /api/bytes/100 HTTP/1.1\r\nHost: proxy.test\r\n".to_vec();
    let mut number = 0;
    while head.len() + 122 < plan.post {
        head.extend_from_slice(format!("X-Pad-{number:04}: {:0>106}\r\n", 7).as_bytes());
        number += 1;
    }
    line.stream.write_all(&head).await?;
    sleep(plan.every).await;
    line.stream.write_all(b"\r\n").await?;
    let answer = line.head().await?;
    line.body(answer.framing, |_| {}).await.map(drop)
}

/// Serves until standard input closes: plain on one port, TLS with a certificate made for this call on another.
async fn upstream(options: &Options) -> io::Result<()> {
    let roots = options.0.get("roots").map_or("roots.pem", String::as_str);
    let (plain, tls) = (listen()?, listen()?);
    let acceptor = acceptor(roots)?;
    println!(
        "{{\"port\":{},\"tls_port\":{}}}",
        plain.local_addr()?.port(),
        tls.local_addr()?.port()
    );
    leave_with_stdin();
    let secure = spawn_local(accept(tls, move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(Line::new(stream)).await;
            }
        }
    }));
    accept(plain, |stream| serve(Line::new(stream))).await;
    secure.await.map_err(io::Error::other)
}

fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    socket.listen(4096)
}

/// Makes a certificate for localhost and writes it to a file for the proxies to trust.
fn acceptor(roots: &str) -> io::Result<TlsAcceptor> {
    let made =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(io::Error::other)?;
    fs::write(roots, made.cert.pem())?;
    let key =
        PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(io::Error::other)?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .map_err(io::Error::other)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept<F: Future<Output = ()> + 'static>(
    listener: TcpListener,
    served: impl Fn(TcpStream) -> F,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // if the socket is closed already, serving it fails
                let _ = stream.set_nodelay(true);
                spawn_local(served(stream));
            }
            // out of descriptors: wait until others are closed
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(mut line: Line) {
    while let Ok(true) = serve_one(&mut line).await {}
}

/// Answers one request; returns false if the connection is to be closed.
async fn serve_one(line: &mut Line) -> io::Result<bool> {
    let head = line.head().await?;
    let mut words = head.target.split('/').skip(1);
    let kind = words.next().unwrap_or_default();
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
    let (first, second) = (number().unwrap_or(0), number().unwrap_or(0));
    let goes_on = !head.closes;
    let close = if head.closes {
        "Connection: close\r\n"
    } else {
        ""
    };
    if kind == "slow" {
        line.slow_down(u32::try_from(first).unwrap_or(u32::MAX));
    }
    let received = line.body(head.framing, |_| {}).await?;
    (line.sip, line.rest) = (usize::MAX, Duration::ZERO);
    let answer = |status: &str, framing: &str| {
        format!(
            "HTTP/1.1 {status}\r\nServer: upstream\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: application/json\r\n\
             Cache-Control: no-store\r\n{close}{framing}\r\n\r\n"
        )
        .into_bytes()
    };
    match kind {
        _ if !head.forwarded => {
            let refusal = answer("400 No X-Forwarded-For", "Content-Length: 0");
            line.stream.write_all(&refusal).await?;
        }
        "bytes" => {
            let mut head = answer("200 OK", &format!("Content-Length: {first}"));
            let mut left = usize::try_from(first).unwrap_or(usize::MAX);
            let piece = left.min(BLOCK.len());
            head.extend_from_slice(&BLOCK[..piece]);
            line.stream.write_all(&head).await?;
            left -= piece;
            while left > 0 {
                let piece = left.min(BLOCK.len());
                line.stream.write_all(&BLOCK[..piece]).await?;
                left -= piece;
            }
        }
        "chunked" => {
            let head = answer("200 OK", "Transfer-Encoding: chunked");
            line.stream.write_all(&head).await?;
            let mut left = usize::try_from(first).unwrap_or(usize::MAX);
            while left > 0 {
                let piece = left.min(4000);
                let mut chunk = format!("{piece:x}\r\n").into_bytes();
                chunk.extend_from_slice(&BLOCK[..piece]);
                chunk.extend_from_slice(b"\r\n");
                line.stream.write_all(&chunk).await?;
                left -= piece;
            }
            line.stream.write_all(b"0\r\n\r\n").await?;
        }
        "events" => {
            let head = answer("200 OK", "Transfer-Encoding: chunked");
            line.stream.write_all(&head).await?;
            for _ in 0..first {
                sleep(Duration::from_millis(second)).await;
                let event = format!("data: {:.6}\n\n", since_the_epoch());
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                line.stream.write_all(chunk.as_bytes()).await?;
            }
            line.stream.write_all(b"0\r\n\r\n").await?;
        }
        "sink" | "slow" => {
            let text = format!("{{\"bytes\":{received}}}\n");
            let mut whole = answer("200 OK", &format!("Content-Length: {}", text.len()));
            whole.extend_from_slice(text.as_bytes());
            line.stream.write_all(&whole).await?;
        }
        _ => {
            let refusal = answer("400 Not Rewritten", "Content-Length: 0");
            line.stream.write_all(&refusal).await?;
        }
    }
    Ok(goes_on)
}
