//! One event, one line on stdout, as text (`key=value`) or JSON.
//!
//! Writing to a pipe, socket or terminal never blocks: a line that does not fit is dropped and counted, and the count is
//! written before the next line. A regular file is written as usual. `log_line.rs` bounds each line. Header values, bodies
//! and queries are never logged.

use std::{
    cell::Cell,
    fmt::Display,
    io,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    config::{self, Level},
    observe::log_line::{LINE, Line, Lossy, beginning},
    outcome::Outcome,
    sys::stdout::Output,
};

/// A field's name and value.
pub type Field<'a> = (&'a str, &'a dyn Display);

/// Sets format, level and the access switch; before the first call: text, `info`, no access lines. May be called again at
/// any time.
pub fn init(log: config::Log) {
    JSON.store(log.json, Relaxed);
    LEAST.store(log.level as u8, Relaxed);
    ACCESS.store(log.access, Relaxed);
}

/// Bounds the bytes of lines that the kernel may hold unread, where stdout is a socket; `None` keeps the kernel's bound.
pub fn bound(bytes: Option<usize>) {
    QUEUE.store(bytes.unwrap_or(0), Relaxed);
}

/// Whether events of this level are written. Ask before computing a value only for the log.
pub fn enabled(level: Level) -> bool {
    level as u8 >= LEAST.load(Relaxed)
}

/// Writes an event. The names of fields are constants of this program; their values may come from a client.
pub fn event(level: Level, message: &str, fields: &[Field<'_>]) {
    if !enabled(level) {
        return;
    }
    emit(level, message, |line| {
        for (name, value) in fields {
            line.field(name, value);
        }
    });
}

/// The program failed at something that a client or an operator will notice.
pub fn error(message: &str, fields: &[Field<'_>]) {
    event(Level::Error, message, fields);
}

/// Something is wrong, and the program goes on.
pub fn warn(message: &str, fields: &[Field<'_>]) {
    event(Level::Warn, message, fields);
}

/// Start, reload and stop of the program.
pub fn info(message: &str, fields: &[Field<'_>]) {
    event(Level::Info, message, fields);
}

/// Details of single exchanges, such as retries.
pub fn debug(message: &str, fields: &[Field<'_>]) {
    event(Level::Debug, message, fields);
}

/// The values of an access line, which is written when the last byte of an exchange is sent.
pub struct Access<'a> {
    /// The client's address.
    pub client: &'a dyn Display,
    /// The request's method.
    pub method: &'a str,
    /// The request's Host, as it came.
    pub host: Option<&'a [u8]>,
    /// The request's path; a query behind it is not written.
    pub path: &'a str,
    /// The status of the answer; 0 = none was sent.
    pub status: u16,
    /// Bytes of body taken from the client.
    pub received: u64,
    /// Bytes of body given to the client.
    pub sent: u64,
    /// From the request's head to the last byte of the answer, waits included.
    pub duration: Duration,
    /// How long the request waited in queues: for memory, a place, an upstream connection.
    pub waited: Duration,
    /// From the request's head to the beginning of the answer; `None` = there was no answer.
    pub first_byte: Option<Duration>,
    /// The upstream that answered; `None` = the proxy itself.
    pub upstream: Option<&'a dyn Display>,
    /// How the exchange ended.
    pub outcome: Outcome,
}

/// The values kept during an exchange for its access line, which is written when this is dropped.
#[derive(Debug)]
pub struct Record {
    client: Option<IpAddr>,
    method: String,
    host: String,
    path: String,
    begun: Instant,
    first_byte: Option<Duration>,
    /// The status of the answer; 0 = the client left before.
    pub status: u16,
    /// Bytes of body taken from the client.
    pub received: u64,
    /// Bytes of body given to the client.
    pub sent: u64,
    /// The upstream that answered; `None` = the proxy itself.
    pub upstream: Option<String>,
    /// How long the request waited in queues.
    pub waited: Duration,
    /// How the exchange ended.
    pub outcome: Outcome,
}

impl Record {
    /// Begins a record; `None` where access lines are off. Only the beginnings of method, host and path are kept. `begun` is
    /// when the request's head was complete.
    pub fn begin(
        client: Option<IpAddr>,
        method: &str,
        host: &str,
        path: &str,
        begun: Instant,
    ) -> Option<Box<Record>> {
        access_enabled().then(|| {
            Box::new(Record {
                client,
                method: beginning(method).into_owned(),
                host: beginning(host).into_owned(),
                path: beginning(path).into_owned(),
                begun,
                first_byte: None,
                status: 0,
                received: 0,
                sent: 0,
                upstream: None,
                waited: Duration::ZERO,
                outcome: Outcome::ClientGone,
            })
        })
    }

    /// Notes the status of the answer, and that it begins now.
    pub fn answers(&mut self, status: u16) {
        self.status = status;
        self.first_byte = Some(self.begun.elapsed());
    }
}

/// A client's address as log lines show it: IPv4 as such where the socket is IPv6, `unix` where there is no address.
pub fn client(client: Option<IpAddr>) -> String {
    client.map_or_else(
        || "unix".to_owned(),
        |client| client.to_canonical().to_string(),
    )
}

impl Drop for Record {
    fn drop(&mut self) {
        let client = client(self.client);
        access(&Access {
            client: &client,
            method: &self.method,
            host: (!self.host.is_empty()).then_some(self.host.as_bytes()),
            path: &self.path,
            status: self.status,
            received: self.received,
            sent: self.sent,
            duration: self.begun.elapsed(),
            waited: self.waited,
            first_byte: self.first_byte,
            upstream: self
                .upstream
                .as_ref()
                .map(|upstream| upstream as &dyn Display),
            outcome: self.outcome,
        });
    }
}

/// Writes the access line of an exchange if `log.access` is on, at any `log.level`.
pub fn access(access: &Access<'_>) {
    if !access_enabled() {
        return;
    }
    emit(Level::Info, "access", |line| tell(access, line));
}

/// Whether [`access`] writes anything.
pub fn access_enabled() -> bool {
    ACCESS.load(Relaxed)
}

/// Lines dropped since the start because stdout was full or gone.
pub fn dropped() -> u64 {
    DROPPED.load(Relaxed)
}

fn tell(access: &Access<'_>, line: &mut Line) {
    let path = access.path.split('?').next().unwrap_or("");
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    line.field("client", access.client);
    line.short("method", &access.method);
    if let Some(host) = access.host {
        line.short("host", &Lossy(host));
    }
    line.field("path", &path);
    line.number("status", u64::from(access.status));
    line.number("received", access.received);
    line.number("sent", access.sent);
    line.number("ms", millis(access.duration));
    line.number("waited_ms", millis(access.waited));
    if let Some(first_byte) = access.first_byte {
        line.number("first_byte_ms", millis(first_byte));
    }
    if let Some(upstream) = access.upstream {
        line.short("upstream", upstream);
    }
    line.field("outcome", &access.outcome);
}

fn emit(level: Level, message: &str, fill: impl FnOnce(&mut Line)) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    // Taken, not borrowed: a value that logs while it is formatted gets a buffer of its own.
    let mut line = Line::begin(BUFFER.take(), JSON.load(Relaxed), now, name(level), message);
    fill(&mut line);
    let text = line.end();
    OUTPUT.lock().unwrap_or_else(PoisonError::into_inner).pass(
        &text,
        |dropped| {
            let mut line = Line::begin(
                String::new(),
                JSON.load(Relaxed),
                now,
                name(Level::Warn),
                "log lines dropped",
            );
            line.number("lines", dropped);
            line.end()
        },
        Output::write,
    );
    if text.capacity() <= LINE {
        BUFFER.set(text);
    }
}

/// Writes lines to stdout, one at a time.
struct OutputState {
    /// Determined once, at the first line: stdout does not change.
    output: Option<Output>,
    /// Dropped lines that no line has reported yet.
    unreported: u64,
}

impl OutputState {
    fn pass(
        &mut self,
        line: &str,
        notice: impl FnOnce(u64) -> String,
        write: impl Fn(&Output, &io::Stdout, &[u8]) -> io::Result<()>,
    ) {
        let stdout = io::stdout();
        let output = self.output.get_or_insert_with(|| {
            let output = Output::of(&stdout);
            match QUEUE.load(Relaxed) {
                0 => {}
                bytes => output.bound(&stdout, bytes),
            }
            output
        });
        let write = |line: &str| write(output, &stdout, line.as_bytes()).is_ok();
        if self.unreported > 0 && write(&notice(self.unreported)) {
            self.unreported = 0;
        }
        if self.unreported > 0 || !write(line) {
            self.unreported += 1;
            DROPPED.fetch_add(1, Relaxed);
        }
    }
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    }
}

static JSON: AtomicBool = AtomicBool::new(false);
static LEAST: AtomicU8 = AtomicU8::new(Level::Info as u8);
static ACCESS: AtomicBool = AtomicBool::new(false);
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// Locked for a single write that does not wait; workers share one stdout.
static OUTPUT: Mutex<OutputState> = Mutex::new(OutputState {
    output: None,
    unreported: 0,
});
/// `SO_SNDBUF` of stdout where it is a socket; 0 = the kernel's default.
static QUEUE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The buffer of the last line, reused for the next.
    static BUFFER: Cell<String> = const { Cell::new(String::new()) };
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const NOW: Duration = Duration::from_millis(1_795_410_720_123);

    #[test]
    fn an_access_line_has_no_query_and_keeps_its_numbers() {
        let long = "h".repeat(9000);
        let mut access = Access {
            client: &"192.0.2.1",
            method: "GET",
            host: Some(b"a.example"),
            path: "/x y?secret",
            status: 200,
            received: 0,
            sent: 17,
            duration: Duration::from_micros(12_999),
            waited: Duration::from_millis(3),
            first_byte: None,
            upstream: None,
            outcome: Outcome::Ok,
        };
        let told = |access: &Access<'_>, json| {
            let mut line = Line::begin(String::new(), json, NOW, "info", "access");
            tell(access, &mut line);
            line.end()
        };
        assert!(told(&access, false).ends_with(
            " level=info msg=\"access\" client=192.0.2.1 method=GET host=a.example path=\"/x y\" \
             status=200 received=0 sent=17 ms=12 waited_ms=3 outcome=ok\n"
        ));
        access.first_byte = Some(Duration::from_millis(11));
        access.upstream = Some(&"http://u:1");
        assert!(told(&access, true).ends_with(
            ",\"status\":200,\"received\":0,\"sent\":17,\"ms\":12,\"waited_ms\":3,\"first_byte_ms\":11,\"upstream\":\"http://u:1\",\"outcome\":\"ok\"}\n"
        ));
        (access.method, access.host, access.path) = (&long, Some(long.as_bytes()), &long);
        assert!(
            told(&access, false).ends_with(
                "…\" status=200 received=0 sent=17 ms=12 waited_ms=3 first_byte_ms=11 upstream=http://u:1 outcome=ok\n"
            )
        );
    }

    #[test]
    fn dropped_lines_are_reported_before_the_next_line_that_is_written() {
        let mut output = OutputState {
            output: Some(Output::Other),
            unreported: 0,
        };
        let (open, written) = (Cell::new(true), RefCell::new(String::new()));
        let mut pass = |line: &str| {
            output.pass(
                line,
                |dropped| format!("{dropped} dropped\n"),
                |_, _, line| {
                    written
                        .borrow_mut()
                        .push_str(std::str::from_utf8(line).unwrap());
                    if !open.get() {
                        written.borrow_mut().truncate(2);
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    Ok(())
                },
            );
        };
        pass("1\n");
        open.set(false);
        let before = dropped();
        (2..5).for_each(|number| pass(&format!("{number}\n")));
        assert_eq!(dropped(), before + 3);
        open.set(true);
        pass("5\n");
        pass("6\n");
        assert_eq!(*written.borrow(), "1\n3 dropped\n5\n6\n");
    }

    #[test]
    fn levels_are_ordered() {
        assert!(enabled(Level::Info) && enabled(Level::Error) && !enabled(Level::Debug));
        assert!(!access_enabled());
    }

    #[test]
    fn a_client_is_written_as_people_write_its_address() {
        for (address, written) in [
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(client(address.parse().ok()), written);
        }
        assert_eq!(client(None), "unix");
    }
}
