//! A strict reader: it accepts a message only if no two parsers could disagree about it.
//!
//! Everything that the proxy sends, to upstreams and to clients, is read here. What HTTP allows but some servers read in
//! another way (a bare LF, a second length, a chunk extension) is an error.

use std::{
    fmt,
    io::{self, ErrorKind, Read},
};

/// Fields in their order, each byte of a value as one `char`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    /// The value of a field that occurs at most once.
    pub fn one(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} occurs more than once: {self:?}");
        all.first().copied()
    }

    /// Every value of a field, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }

    /// Whether the field is there at all.
    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    /// The members of a comma-separated list over all its lines, trimmed, lower case, without empty ones.
    pub fn list(&self, name: &str) -> Vec<String> {
        let joined = self.all(name).join(",");
        let members = joined.split(',').map(|m| m.trim().to_ascii_lowercase());
        members.filter(|m| !m.is_empty()).collect()
    }

    /// The names, lower case, in order.
    pub fn names(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|(name, _)| name.to_ascii_lowercase())
            .collect()
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(n, v)| format!("{n}: {v}")))
            .finish()
    }
}

/// What determines the end of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body: no field announces one, or the status or method does not allow it.
    None,
    /// Content-Length.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
    /// An answer that ends with its connection.
    Close,
}

/// An unambiguous request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub fields: Fields,
    pub framing: Framing,
    pub body: Vec<u8>,
    pub trailers: Fields,
    /// The head as received, blank line included.
    pub raw: Vec<u8>,
}

/// An unambiguous answer.
#[derive(Clone)]
pub struct Response {
    pub version: String,
    pub status: u16,
    pub reason: String,
    pub fields: Fields,
    pub framing: Framing,
    pub body: Vec<u8>,
    pub trailers: Fields,
    /// The 1xx answers before it.
    pub interim: Vec<Response>,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Response {
            version,
            status,
            reason,
            fields,
            ..
        } = self;
        write!(
            f,
            "{version} {status} {reason} {fields:?} {}",
            show(&self.body)
        )?;
        if !self.interim.is_empty() || self.trailers != Fields::default() {
            write!(f, " after {:?}, before {:?}", self.interim, self.trailers)?;
        }
        Ok(())
    }
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a field that occurs at most once.
    pub fn one(&self, name: &str) -> Option<&str> {
        self.fields.one(name)
    }
}

/// Reads exactly one complete request; any other byte is an error.
pub fn parse_request(bytes: &[u8]) -> Result<Request, String> {
    let (mut requests, rest) = parse_requests(bytes)?;
    match (requests.pop(), requests.is_empty(), rest) {
        (Some(request), true, 0) => Ok(request),
        (_, _, rest) => Err(format!("not one whole request ({rest} bytes left)")),
    }
}

/// Reads all bytes of a connection: the complete requests on it, and how many bytes of an unfinished one follow.
pub fn parse_requests(bytes: &[u8]) -> Result<(Vec<Request>, usize), String> {
    let mut reader = Reader::new(bytes);
    let mut requests = Vec::new();
    let mut whole = 0;
    loop {
        match reader.request() {
            Ok(Some(request)) => requests.push(request),
            Ok(None) => return Ok((requests, 0)),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                return Ok((requests, bytes.len() - whole));
            }
            Err(e) => return Err(e.to_string()),
        }
        whole = reader.taken();
    }
}

/// Reads messages from a stream. Invalid bytes are `InvalidData`, an end inside a message is `UnexpectedEof`.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    buffer: Vec<u8>,
    at: usize,
    gone: usize,
}

impl<R: Read> Reader<R> {
    /// A reader that has read nothing yet.
    pub fn new(source: R) -> Reader<R> {
        Reader {
            source,
            buffer: Vec::new(),
            at: 0,
            gone: 0,
        }
    }

    /// Bytes returned so far.
    pub fn taken(&self) -> usize {
        self.gone + self.at
    }

    /// Bytes that were received and not returned.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.at
    }

    /// The next head with its blank line; `None` at the end of the stream.
    pub fn head(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut seen = self.at;
        loop {
            let from = seen.saturating_sub(3).max(self.at);
            if let Some(i) = find(&self.buffer[from..], b"\r\n\r\n") {
                return Ok(Some(self.take(from + i + 4 - self.at)));
            }
            seen = self.buffer.len();
            let pending = seen - self.at;
            if pending > 4 << 20 {
                return Err(bad("a head without end"));
            }
            let moved = self.at;
            if self.fill()? == 0 {
                return if pending == 0 {
                    Ok(None)
                } else {
                    Err(self.cut("a head"))
                };
            }
            seen -= moved - self.at;
        }
    }

    /// The next complete request with its body; `None` at the end of the stream.
    pub fn request(&mut self) -> io::Result<Option<Request>> {
        let Some(mut request) = self.request_head()? else {
            return Ok(None);
        };
        (request.body, request.trailers) = self.body(request.framing)?;
        Ok(Some(request))
    }

    /// The next request's head; its body is still to be read.
    pub fn request_head(&mut self) -> io::Result<Option<Request>> {
        let Some(raw) = self.head()? else {
            return Ok(None);
        };
        request_head(&raw)
            .map(Some)
            .map_err(|e| bad(&format!("{e} in {}", show(&raw))))
    }

    /// The next head of an answer to this method; its body is still to be read.
    pub fn response_head(&mut self, method: &str) -> io::Result<Option<Response>> {
        let Some(raw) = self.head()? else {
            return Ok(None);
        };
        response_head(&raw, method)
            .map(Some)
            .map_err(|e| bad(&format!("{e} in {}", show(&raw))))
    }

    /// A body to its end.
    pub fn body(&mut self, framing: Framing) -> io::Result<(Vec<u8>, Fields)> {
        let mut body = Vec::new();
        let trailers = self.body_into(framing, &mut body)?;
        Ok((body, trailers))
    }

    /// A body to its end; the bytes before an error are in `body`, too.
    pub fn body_into(&mut self, framing: Framing, body: &mut Vec<u8>) -> io::Result<Fields> {
        match framing {
            Framing::None => {}
            Framing::Length(n) => self.pieces_into(n, body)?,
            Framing::Chunked => {
                while let Some(n) = self.chunk_size()? {
                    self.pieces_into(n, body)?;
                    self.chunk_end()?;
                }
                return self.trailers();
            }
            Framing::Close => loop {
                let piece = self.some()?;
                if piece.is_empty() {
                    break;
                }
                body.extend(piece);
            },
        }
        Ok(Fields::default())
    }

    /// The next chunk's data; `None` at the last one, whose trailers are then to be read.
    pub fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(n) = self.chunk_size()? else {
            return Ok(None);
        };
        let mut data = Vec::new();
        self.pieces_into(n, &mut data)?;
        self.chunk_end()?;
        Ok(Some(data))
    }

    /// The trailer section after the last chunk.
    pub fn trailers(&mut self) -> io::Result<Fields> {
        let mut lines = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            lines.push(
                field(&line).map_err(|e| bad(&format!("{e} in a trailer: {}", show(&line))))?,
            );
        }
        let trailers = Fields(lines);
        let framing = [
            "content-length",
            "transfer-encoding",
            "host",
            "connection",
            "te",
            "trailer",
            "expect",
        ];
        match framing.iter().find(|name| trailers.has(name)) {
            Some(name) => Err(bad(&format!("{name} in the trailers"))),
            None => Ok(trailers),
        }
    }

    /// The bytes that are available, at least one; empty at the end of the stream.
    pub fn some(&mut self) -> io::Result<Vec<u8>> {
        if self.at == self.buffer.len() && self.fill()? == 0 {
            return Ok(Vec::new());
        }
        let n = self.buffer.len() - self.at;
        Ok(self.take(n))
    }

    /// Exactly `n` bytes.
    pub fn exact(&mut self, n: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.pieces_into(n as u64, &mut bytes)?;
        Ok(bytes)
    }

    /// All bytes until the end of the stream.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.body(Framing::Close)?.0)
    }

    fn pieces_into(&mut self, n: u64, out: &mut Vec<u8>) -> io::Result<()> {
        let mut left = usize::try_from(n).map_err(|_| bad("a length beyond this machine"))?;
        while left > 0 {
            if self.at == self.buffer.len() && self.fill()? == 0 {
                return Err(self.cut("a body"));
            }
            let piece = self.take(left.min(self.buffer.len() - self.at));
            left -= piece.len();
            out.extend(piece);
        }
        Ok(())
    }

    fn chunk_size(&mut self) -> io::Result<Option<u64>> {
        let line = self.line()?;
        let hex = line.len() <= 15 && !line.is_empty() && line.iter().all(u8::is_ascii_hexdigit);
        let size = hex.then(|| String::from_utf8_lossy(&line).into_owned());
        let size = size.and_then(|s| u64::from_str_radix(&s, 16).ok());
        match size.ok_or_else(|| bad(&format!("chunk size {}", show(&line))))? {
            0 if line.len() > 1 => Err(bad("a last chunk of many zeros")),
            0 => Ok(None),
            n => Ok(Some(n)),
        }
    }

    fn chunk_end(&mut self) -> io::Result<()> {
        let end = self.exact(2)?;
        if end == b"\r\n" {
            Ok(())
        } else {
            Err(bad(&format!("{} behind a chunk", show(&end))))
        }
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(i) = self.buffer[self.at..].iter().position(|&b| b == b'\n') {
                let mut line = self.take(i + 1);
                line.pop();
                if line.pop() != Some(b'\r') {
                    return Err(bad("a bare LF"));
                }
                return Ok(line);
            }
            if self.buffer.len() - self.at > 1 << 20 {
                return Err(bad("a line without end"));
            }
            if self.fill()? == 0 {
                return Err(self.cut("a line"));
            }
        }
    }

    fn take(&mut self, n: usize) -> Vec<u8> {
        let taken = self.buffer[self.at..self.at + n].to_vec();
        self.at += n;
        taken
    }

    fn fill(&mut self) -> io::Result<usize> {
        if self.at > 0 {
            self.buffer.drain(..self.at);
            self.gone += self.at;
            self.at = 0;
        }
        let old = self.buffer.len();
        self.buffer.resize(old + 65536, 0);
        let read = loop {
            match self.source.read(&mut self.buffer[old..]) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer
            .truncate(old + read.as_ref().copied().unwrap_or(0));
        read
    }

    fn cut(&self, what: &str) -> io::Error {
        let tail = show(&self.buffer[self.at..]);
        io::Error::new(
            ErrorKind::UnexpectedEof,
            format!("the stream ends inside {what}: {tail}"),
        )
    }
}

/// Bytes in readable form, at most a few hundred.
pub fn show(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(400)];
    let more = if bytes.len() > shown.len() {
        format!("… ({} bytes)", bytes.len())
    } else {
        String::new()
    };
    format!("\"{}\"{more}", shown.escape_ascii())
}

fn request_head(raw: &[u8]) -> Result<Request, String> {
    let (line, fields) = head_lines(raw)?;
    let parts: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let &[method, target, b"HTTP/1.1"] = parts.as_slice() else {
        return Err("a bad request line".to_owned());
    };
    if !is_token(method) {
        return Err("a method that is no token".to_owned());
    }
    if target.first() != Some(&b'/') || target.iter().any(|&b| b <= b' ' || b == 0x7f || b == b'#')
    {
        return Err("a target that is not origin-form".to_owned());
    }
    let hosts = fields.all("host");
    let &[host] = hosts.as_slice() else {
        return Err(format!("{} Host fields", hosts.len()));
    };
    if host.is_empty()
        || !host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=".contains(&b))
    {
        return Err("a Host that is no host".to_owned());
    }
    never_passed_on(&fields)?;
    let framing = framing_of(&fields)?;
    Ok(Request {
        method: latin(method),
        target: latin(target),
        fields,
        framing,
        body: Vec::new(),
        trailers: Fields::default(),
        raw: raw.to_vec(),
    })
}

/// Refuses fields that belong to the client's connection, or that only an attacker sends.
fn never_passed_on(fields: &Fields) -> Result<(), String> {
    for name in [
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
    ] {
        if fields.has(name) {
            return Err(format!("{name} was passed on"));
        }
    }
    if let Some(member) = fields
        .list("connection")
        .iter()
        .find(|m| !["close", "keep-alive", "upgrade", "te"].contains(&m.as_str()))
    {
        return Err(format!("Connection lists {member}"));
    }
    if fields.has("upgrade")
        && (fields.list("upgrade") != ["websocket"]
            || !fields.list("connection").contains(&"upgrade".to_owned()))
    {
        return Err(
            "Upgrade to something else than websocket, or not listed in Connection".to_owned(),
        );
    }
    if fields.has("te") && fields.all("te") != ["trailers"] {
        return Err(format!("TE is {:?}", fields.all("te")));
    }
    if fields.has("te") && !fields.list("connection").contains(&"te".to_owned()) {
        return Err("TE is not listed in Connection".to_owned());
    }
    match fields
        .names()
        .iter()
        .find(|name| name.contains('_') && name.replace('_', "-").starts_with("x-forwarded-"))
    {
        Some(twin) => Err(format!("{twin} was passed on")),
        None => Ok(()),
    }
}

fn response_head(raw: &[u8], method: &str) -> Result<Response, String> {
    let (line, fields) = head_lines(raw)?;
    let bad_line = || Err("a bad status line".to_owned());
    let Some((version, rest)) = line.split_at_checked(9) else {
        return bad_line();
    };
    let Some((code, reason)) = rest.split_at_checked(3) else {
        return bad_line();
    };
    let known = version == b"HTTP/1.1 " || version == b"HTTP/1.0 ";
    let status = latin(code)
        .parse::<u16>()
        .ok()
        .filter(|s| (100..1000).contains(s));
    let (true, Some(status), Some(b' ')) = (known, status, reason.first()) else {
        return bad_line();
    };
    if reason
        .iter()
        .any(|&b| (b < b' ' && b != b'\t') || b == 0x7f)
    {
        return bad_line();
    }
    let framing = match (framing_of(&fields)?, status, method) {
        (Framing::Length(_) | Framing::Chunked, 100..200 | 204, _) => {
            return Err(format!("a length on a {status}"));
        }
        (_, 100..200 | 204 | 304, _) | (_, _, "HEAD") => Framing::None,
        (Framing::None, ..) => Framing::Close,
        (framing, ..) => framing,
    };
    Ok(Response {
        version: latin(&version[..8]),
        status,
        reason: latin(&reason[1..]),
        fields,
        framing,
        body: Vec::new(),
        trailers: Fields::default(),
        interim: Vec::new(),
    })
}

fn head_lines(raw: &[u8]) -> Result<(Vec<u8>, Fields), String> {
    let inner = raw.strip_suffix(b"\r\n\r\n").ok_or("no blank line")?;
    let mut lines: Vec<&[u8]> = inner.split(|&b| b == b'\n').collect();
    let last = lines.len() - 1;
    for line in &mut lines[..last] {
        *line = line.strip_suffix(b"\r").ok_or("a bare LF")?;
    }
    let (first, rest) = lines.split_first().ok_or("an empty head")?;
    if first.iter().any(|&b| b == b'\r' || b == 0) {
        return Err("a control byte in the first line".to_owned());
    }
    let fields = rest
        .iter()
        .map(|line| field(line))
        .collect::<Result<Vec<_>, String>>()?;
    Ok((first.to_vec(), Fields(fields)))
}

fn field(line: &[u8]) -> Result<(String, String), String> {
    let colon = line
        .iter()
        .position(|&b| b == b':')
        .ok_or("a line without a colon")?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if !is_token(name) {
        return Err("a field name that is no token".to_owned());
    }
    let value = value.strip_prefix(b" ").unwrap_or(value);
    let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    if blank(value.first()) || blank(value.last()) {
        return Err("white space around a value".to_owned());
    }
    if value.iter().any(|&b| (b < b' ' && b != b'\t') || b == 0x7f) {
        return Err("a control byte in a value".to_owned());
    }
    Ok((latin(name), latin(value)))
}

fn framing_of(fields: &Fields) -> Result<Framing, String> {
    match (
        fields.all("transfer-encoding").as_slice(),
        fields.all("content-length").as_slice(),
    ) {
        ([], []) => Ok(Framing::None),
        ([], [length])
            if (1..=19).contains(&length.len()) && length.bytes().all(|b| b.is_ascii_digit()) =>
        {
            length
                .parse()
                .map(Framing::Length)
                .map_err(|_| "a Content-Length beyond all measure".to_owned())
        }
        ([coding], []) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        (codings, lengths) => Err(format!(
            "framing by Transfer-Encoding {codings:?} and Content-Length {lengths:?}"
        )),
    }
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| char::from(b)).collect()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn bad(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[test]
fn the_strict_reader_accepts_ordinary_messages() {
    let get = parse_request(b"GET /a?b HTTP/1.1\r\nHost: h:1\r\nA:b\r\nA: c\r\n\r\n").unwrap();
    assert_eq!(
        (
            get.method.as_str(),
            get.target.as_str(),
            get.fields.all("a")
        ),
        ("GET", "/a?b", vec!["b", "c"])
    );
    let post =
        parse_request(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc").unwrap();
    assert_eq!(post.body, b"abc");
    let chunked = b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: v\r\n\r\n";
    let chunked = parse_request(chunked).unwrap();
    assert_eq!(
        (chunked.body.len(), chunked.trailers.one("t")),
        (13, Some("v"))
    );
    let two = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\nGET";
    let (requests, rest) = parse_requests(two).unwrap();
    assert_eq!((requests.len(), rest), (2, 3));
}

#[test]
fn the_strict_reader_refuses_ambiguous_messages() {
    let heads: [&[u8]; 30] = [
        b"GET  / HTTP/1.1\r\nHost: h\r\n",
        b"GET / HTTP/1.0\r\nHost: h\r\n",
        b"GET / HTTP/1.1 \r\nHost: h\r\n",
        b"GET /\t HTTP/1.1\r\nHost: h\r\n",
        b"G(T / HTTP/1.1\r\nHost: h\r\n",
        b"GET http://h/ HTTP/1.1\r\nHost: h\r\n",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n",
        b"GET / HTTP/1.1\r\nHost: h, h\r\n",
        b"GET / HTTP/1.1\nHost: h\r\n",
        b"GET / HTTP/1.1\r\nHost: h\nA: b\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA : b\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n A: b\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\0c\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b \r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nKeep-Alive: 5\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: x-private\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX_Forwarded-For: 1.1.1.1\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: h\r\n",
        b"GET /a#b HTTP/1.1\r\nHost: h\r\n",
    ];
    for head in heads {
        let whole = [head, b"\r\nx"].concat();
        assert!(parse_requests(&whole).is_err(), "{}", show(&whole));
    }
    let bodies: [&[u8]; 9] = [
        b"3;a=b\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n",
        b" 3\r\nabc\r\n",
        b"3\nabc\r\n",
        b"3\r\nabcd\r\n",
        b"\r\n",
        b"00\r\n\r\n",
        b"0\r\nA\r\n\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
    ];
    for body in bodies {
        let whole = [
            b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
            body,
        ]
        .concat();
        assert!(parse_requests(&whole).is_err(), "{}", show(&whole));
    }
}
