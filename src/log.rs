//! One event, one line on stdout, as text (`key=value`) or JSON.
//!
//! It never blocks: a line that finds stdout full is dropped and counted, and the count goes out before the next line.
//! It never grows: a value is cut at 2 kB, a line at 4096 bytes, what a pipe takes in one piece. Whatever a stranger puts
//! into a value, a line stays one line and its fields stay apart. Never here: header values, bodies, queries.

use std::{
    cell::Cell,
    fmt::{self, Display, Write},
    io,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    config::{self, Level},
    sys::Output,
};

/// A field's name and value.
pub type Field<'a> = (&'a str, &'a dyn Display);

/// Takes over format, level and the access switch; before the first call: text, `info`, no access lines. May be called
/// again at any time.
pub fn init(log: config::Log) {
    JSON.store(log.json, Relaxed);
    LEAST.store(log.level as u8, Relaxed);
    ACCESS.store(log.access, Relaxed);
}

/// Whether events of this level are written: worth asking before a value is computed only for the log.
pub fn enabled(level: Level) -> bool {
    level as u8 >= LEAST.load(Relaxed)
}

/// Writes an event; the fields' names are ours, the values may be anybody's.
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

/// Somebody did not get an answer.
pub fn error(message: &str, fields: &[Field<'_>]) {
    event(Level::Error, message, fields);
}

/// Something is not as it should be, and the program copes.
pub fn warn(message: &str, fields: &[Field<'_>]) {
    event(Level::Warn, message, fields);
}

/// The life of the program.
pub fn info(message: &str, fields: &[Field<'_>]) {
    event(Level::Info, message, fields);
}

/// The upstream's URL, retries.
pub fn debug(message: &str, fields: &[Field<'_>]) {
    event(Level::Debug, message, fields);
}

/// What is told of an exchange when its last byte is gone.
pub struct Access<'a> {
    /// The client's address.
    pub client: &'a dyn Display,
    /// The request's method.
    pub method: &'a str,
    /// The request's Host, as it came.
    pub host: Option<&'a [u8]>,
    /// The request's path; a query behind it is not written.
    pub path: &'a str,
    /// What the client was answered.
    pub status: u16,
    /// Bytes of body taken from the client.
    pub received: u64,
    /// Bytes of body given to the client.
    pub sent: u64,
    /// From the request's head to the last byte of the answer.
    pub duration: Duration,
    /// Who answered; `None` = the proxy itself.
    pub upstream: Option<&'a dyn Display>,
    /// `ok`, or a failure's short word.
    pub outcome: &'a str,
}

/// What is kept of an exchange for its access line, which is written when this is dropped.
#[derive(Debug)]
pub struct Record {
    client: Option<IpAddr>,
    method: String,
    host: Vec<u8>,
    path: String,
    begun: Instant,
    /// What the client was answered; 0 = it left before.
    pub status: u16,
    /// Bytes of body taken from the client.
    pub received: u64,
    /// Bytes of body given to the client.
    pub sent: u64,
    /// Who answered; `None` = the proxy itself.
    pub upstream: Option<String>,
    /// `ok`, or a failure's short word.
    pub outcome: &'static str,
}

impl Record {
    /// Begins a record, where access lines are written at all.
    pub fn begin(client: Option<IpAddr>, method: &str, host: &[u8], path: &str) -> Option<Box<Record>> {
        access_enabled().then(|| {
            Box::new(Record {
                client,
                method: method.to_owned(),
                host: host.to_owned(),
                path: path.to_owned(),
                begun: Instant::now(),
                status: 0,
                received: 0,
                sent: 0,
                upstream: None,
                outcome: "client-gone",
            })
        })
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let client = self.client.map_or_else(|| "unix".to_owned(), |client| client.to_string());
        access(&Access {
            client: &client,
            method: &self.method,
            host: (!self.host.is_empty()).then_some(self.host.as_slice()),
            path: &self.path,
            status: self.status,
            received: self.received,
            sent: self.sent,
            duration: self.begun.elapsed(),
            upstream: self.upstream.as_ref().map(|upstream| upstream as &dyn Display),
            outcome: self.outcome,
        });
    }
}

/// Writes the line of an exchange where `log.access` asks for it, at any level.
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

/// Bytes that should be text; what is not UTF-8 shows as U+FFFD.
pub struct Lossy<'a>(pub &'a [u8]);

impl Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

fn tell(access: &Access<'_>, line: &mut Line) {
    let path = access.path.split('?').next().unwrap_or("");
    let duration = u64::try_from(access.duration.as_millis()).unwrap_or(u64::MAX);
    line.field("client", access.client);
    // A stranger's method or host must not take the room of what stands behind it.
    line.value("method", SHORT, false, &access.method);
    if let Some(host) = access.host {
        line.value("host", SHORT, false, &Lossy(host));
    }
    line.field("path", &path);
    line.number("status", u64::from(access.status));
    line.number("received", access.received);
    line.number("sent", access.sent);
    line.number("ms", duration);
    if let Some(upstream) = access.upstream {
        line.value("upstream", SHORT, false, upstream);
    }
    line.field("outcome", &access.outcome);
}

fn emit(level: Level, message: &str, fill: impl FnOnce(&mut Line)) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    // Taken, not borrowed: a value that logs while it is being written gets a buffer of its own.
    let mut line = Line::begin(BUFFER.take(), JSON.load(Relaxed), now, level, message);
    fill(&mut line);
    let text = line.end();
    GATE.lock().unwrap_or_else(PoisonError::into_inner).pass(
        &text,
        |dropped| {
            let mut line = Line::begin(
                String::new(),
                JSON.load(Relaxed),
                now,
                Level::Warn,
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

/// The way to stdout, one line at a time.
struct Gate {
    /// Asked once: stdout does not change.
    output: Option<Output>,
    /// Dropped lines that nobody was told of yet.
    untold: u64,
}

impl Gate {
    fn pass(
        &mut self,
        line: &str,
        notice: impl FnOnce(u64) -> String,
        write: impl Fn(Output, &io::Stdout, &[u8]) -> io::Result<()>,
    ) {
        let stdout = io::stdout();
        let output = *self.output.get_or_insert_with(|| Output::of(&stdout));
        let write = |line: &str| write(output, &stdout, line.as_bytes()).is_ok();
        if self.untold > 0 && write(&notice(self.untold)) {
            self.untold = 0;
        }
        if self.untold > 0 || !write(line) {
            self.untold += 1;
            DROPPED.fetch_add(1, Relaxed);
        }
    }
}

/// A line in the making: never longer than [`LINE`], always complete.
struct Line {
    text: String,
    json: bool,
}

impl Line {
    fn begin(buffer: String, json: bool, now: Duration, level: Level, message: &str) -> Line {
        let mut line = Line { text: buffer, json };
        line.text.clear();
        line.text.reserve(256);
        line.value("time", SHORT, false, &Timestamp(now));
        line.value("level", SHORT, false, &name(level));
        line.value("msg", LONG, true, &message);
        line
    }

    fn end(mut self) -> String {
        self.text.push_str(if self.json { "}\n" } else { "\n" });
        self.text
    }

    fn field(&mut self, name: &str, value: &dyn Display) {
        self.value(name, LONG, false, value);
    }

    /// Digits without quotes, in JSON too.
    fn number(&mut self, name: &str, value: u64) {
        // Twenty digits at most.
        if self.room(name) >= 20 {
            self.key(name);
            self.put(format_args!("{value}"));
        }
    }

    /// A value in quotes; in text without them where it is plain and they are not asked for.
    fn value(&mut self, name: &str, most: usize, quoted: bool, value: &dyn Display) {
        let room = self.room(name).min(most);
        if room < 8 {
            return;
        }
        self.key(name);
        let start = self.text.len();
        self.text.push('"');
        let mut value_writer = Value {
            text: &mut self.text,
            json: self.json,
            room,
            plain: true,
        };
        // An error is the cut, or a value that gave up: what is there stays.
        let _cut = write!(value_writer, "{value}");
        let plain = value_writer.plain && self.text.len() > start + 1;
        if plain && !quoted && !self.json {
            self.text.remove(start);
        } else {
            self.text.push('"');
        }
    }

    fn key(&mut self, name: &str) {
        let first = self.text.is_empty();
        match (self.json, first) {
            (true, true) => self.put(format_args!("{{\"{name}\":")),
            (true, false) => self.put(format_args!(",\"{name}\":")),
            (false, true) => self.put(format_args!("{name}=")),
            (false, false) => self.put(format_args!(" {name}=")),
        }
    }

    fn put(&mut self, text: fmt::Arguments<'_>) {
        self.text
            .write_fmt(text)
            .expect("a String takes everything");
    }

    /// Bytes left for a value: without key, quotes, the mark of a cut, and the line's end.
    fn room(&self, name: &str) -> usize {
        LINE.saturating_sub(self.text.len() + name.len() + 16)
    }
}

/// Escapes what is written into it, and stops with an error when the room is used up.
struct Value<'a> {
    text: &'a mut String,
    json: bool,
    room: usize,
    plain: bool,
}

impl Write for Value<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|char| self.write_char(char))
    }

    fn write_char(&mut self, char: char) -> fmt::Result {
        // The longest escape is `\u{202e}`, 8 bytes.
        if self.room < 8 {
            if self.room > 0 {
                self.room = 0;
                self.plain = false;
                self.text.push('…');
            }
            return Err(fmt::Error);
        }
        let before = self.text.len();
        self.plain &= char.is_ascii_graphic() && !matches!(char, '"' | '\\' | '=');
        match char {
            '"' => self.text.push_str("\\\""),
            '\\' => self.text.push_str("\\\\"),
            '\n' => self.text.push_str("\\n"),
            '\r' => self.text.push_str("\\r"),
            '\t' => self.text.push_str("\\t"),
            char if !misleads(char) => self.text.push(char),
            char => {
                let code = u32::from(char);
                match self.json {
                    true => write!(self.text, "\\u{code:04x}"),
                    false if char.is_ascii() => write!(self.text, "\\x{code:02x}"),
                    false => write!(self.text, "\\u{{{code:x}}}"),
                }?;
            }
        }
        self.room -= self.text.len() - before;
        Ok(())
    }
}

/// Controls of both sets, line separators, marks that turn the direction of writing, and what is no character: a terminal
/// or a viewer would show another line than was written.
fn misleads(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Time since 1970 as `2026-11-23T05:12:00.123Z`.
struct Timestamp(Duration);

impl Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (year, month, day) = civil(seconds / 86400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let milliseconds = self.0.subsec_millis();
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z"
        )
    }
}

/// Year, month and day of a day since 1970 (Howard Hinnant, `civil_from_days`): years begin in March, so that the leap
/// day is their last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
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
/// Held for one write that does not wait; workers share one stdout.
static GATE: Mutex<Gate> = Mutex::new(Gate {
    output: None,
    untold: 0,
});

thread_local! {
    /// The last line's buffer, for the next.
    static BUFFER: Cell<String> = const { Cell::new(String::new()) };
}

/// Bytes of a line with its newline: `PIPE_BUF`, what a pipe takes whole or not at all.
const LINE: usize = 4096;
/// Bytes of a value after escaping.
const LONG: usize = 2048;
/// Bytes of a value that is short unless somebody plays.
const SHORT: usize = 256;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const NOW: Duration = Duration::from_millis(1_795_410_720_123);

    fn line(json: bool, fields: &[Field<'_>]) -> String {
        let mut line = Line::begin(String::new(), json, NOW, Level::Info, "listening");
        for (name, value) in fields {
            line.field(name, value);
        }
        line.end()
    }

    #[test]
    fn an_event_is_one_line_of_text() {
        assert_eq!(
            line(false, &[("address", &"127.0.0.1:80"), ("routes", &3)]),
            "time=2026-11-23T05:12:00.123Z level=info msg=\"listening\" address=127.0.0.1:80 routes=3\n"
        );
    }

    #[test]
    fn an_event_is_one_object_of_json() {
        assert_eq!(
            line(true, &[("address", &"127.0.0.1:80"), ("routes", &3)]),
            "{\"time\":\"2026-11-23T05:12:00.123Z\",\"level\":\"info\",\"msg\":\"listening\",\
             \"address\":\"127.0.0.1:80\",\"routes\":\"3\"}\n"
        );
    }

    #[test]
    fn values_cannot_leave_their_field() {
        for (value, text, json) in [
            ("plain/1.2:3?&%[]", "plain/1.2:3?&%[]", "plain/1.2:3?&%[]"),
            ("", r#""""#, ""),
            ("two words", r#""two words""#, "two words"),
            ("a=b", r#""a=b""#, "a=b"),
            ("a\"b\\c", r#""a\"b\\c""#, r#"a\"b\\c"#),
            ("x\nlevel=error", r#""x\nlevel=error""#, r"x\nlevel=error"),
            (
                "\r\t\0\x1b[31m\x7f",
                r#""\r\t\x00\x1b[31m\x7f""#,
                r"\r\t\u0000\u001b[31m\u007f",
            ),
            (
                "\u{85}\u{2028}\u{202e}",
                r#""\u{85}\u{2028}\u{202e}""#,
                r"\u0085\u2028\u202e",
            ),
            ("grün", "\"grün\"", "grün"),
        ] {
            let head = line(false, &[]).trim_end().to_owned();
            assert_eq!(
                line(false, &[("v", &value)]),
                format!("{head} v={text}\n"),
                "{value:?}"
            );
            let head = line(true, &[]).trim_end_matches("}\n").to_owned();
            assert_eq!(
                line(true, &[("v", &value)]),
                format!("{head},\"v\":\"{json}\"}}\n"),
                "{value:?}"
            );
        }
        assert_eq!(
            Lossy(b"a\xff\xfeb\xc3").to_string(),
            "a\u{fffd}\u{fffd}b\u{fffd}"
        );
    }

    #[test]
    fn any_bytes_give_one_bounded_line_of_valid_json() {
        let mut seed = 11_u64;
        for round in (0..3000).step_by(7) {
            let mut bytes = Vec::new();
            for _ in 0..round {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                bytes.push(seed.to_be_bytes()[2]);
            }
            let (lossy, host) = (Lossy(&bytes), Lossy(&bytes[bytes.len() / 2..]));
            let fields: [Field<'_>; 3] = [("a", &lossy), ("b", &host), ("c", &lossy)];
            for json in [false, true] {
                let text = line(json, &fields);
                assert!(text.len() <= LINE, "{} bytes", text.len());
                assert_eq!(text.find('\n'), Some(text.len() - 1));
                assert!(!text.trim_end().contains(misleads));
            }
            // YAML is a superset of JSON: a reader that is at hand.
            let text = line(true, &fields);
            let value: serde_yaml::Value = serde_yaml::from_str(&text).expect(&text);
            assert_eq!(value["msg"], "listening", "{text}");
        }
    }

    #[test]
    fn long_values_and_long_lines_are_cut() {
        let long = "x".repeat(10_000);
        let fields: [Field<'_>; 4] = [("a", &long), ("b", &long), ("c", &long), ("d", &"short")];
        for json in [false, true] {
            let text = line(json, &fields);
            assert!(
                text.len() <= LINE && text.len() > LINE - 64,
                "{}",
                text.len()
            );
            assert_eq!(
                text.matches('…').count(),
                2,
                "a and b; there is no room for c"
            );
            assert!(text.ends_with(if json { "…\"}\n" } else { "…\"\n" }));
        }
    }

    #[test]
    fn an_exchange_is_told_without_its_query_and_its_numbers_stay() {
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
            upstream: None,
            outcome: "ok",
        };
        let told = |access: &Access<'_>, json| {
            let mut line = Line::begin(String::new(), json, NOW, Level::Info, "access");
            tell(access, &mut line);
            line.end()
        };
        assert!(told(&access, false).ends_with(
            " level=info msg=\"access\" client=192.0.2.1 method=GET host=a.example path=\"/x y\" \
             status=200 received=0 sent=17 ms=12 outcome=ok\n"
        ));
        access.upstream = Some(&"http://u:1");
        assert!(told(&access, true).ends_with(
            ",\"status\":200,\"received\":0,\"sent\":17,\"ms\":12,\"upstream\":\"http://u:1\",\"outcome\":\"ok\"}\n"
        ));
        (access.method, access.host, access.path) = (&long, Some(long.as_bytes()), &long);
        assert!(
            told(&access, false).ends_with(
                "…\" status=200 received=0 sent=17 ms=12 upstream=http://u:1 outcome=ok\n"
            )
        );
    }

    #[test]
    fn days_become_dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp(Duration::from_secs(seconds)).to_string(), date);
        }
    }

    #[test]
    fn dropped_lines_are_told_before_the_next_that_gets_through() {
        let mut gate = Gate {
            output: Some(Output::Other),
            untold: 0,
        };
        let (open, written) = (Cell::new(true), RefCell::new(String::new()));
        let mut pass = |line: &str| {
            gate.pass(
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
}
