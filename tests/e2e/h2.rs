//! HTTP/2 for the tests: a client by hyper, and one that writes frames by hand.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
    rt::Executor,
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime,
    task::LocalSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A body that is given frame by frame.
#[derive(Default)]
pub struct Frames(pub VecDeque<Frame<Bytes>>);

impl Frames {
    /// These pieces, and trailers where there are any.
    pub fn new(pieces: &[&[u8]], trailers: &[(&'static str, &str)]) -> Frames {
        let mut frames: VecDeque<Frame<Bytes>> = pieces
            .iter()
            .map(|piece| Frame::data(Bytes::copy_from_slice(piece)))
            .collect();
        if !trailers.is_empty() {
            let fields = trailers
                .iter()
                .map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap()));
            frames.push_back(Frame::trailers(fields.collect()));
        }
        Frames(frames)
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

/// An answer that was read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
}

impl Answer {
    /// Reads the rest.
    pub async fn read(response: Response<Incoming>) -> hyper::Result<Answer> {
        let (parts, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Answer {
            status: parts.status.as_u16(),
            fields: parts.headers,
            body: body.to_bytes().to_vec(),
            trailers,
        })
    }

    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
}

#[derive(Clone)]
pub struct Local;

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Runs a test that waits, with a bound.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let work = async { tokio::time::timeout(PATIENCE, work).await.unwrap() };
    LocalSet::new().block_on(&runtime, work)
}

/// A connection with prior knowledge.
pub async fn connect(address: SocketAddr) -> SendRequest<Frames> {
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    begin(socket).await
}

/// The protocol that ALPN chose, and the connection.
pub async fn connect_tls(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> (Vec<u8>, TlsStream<tokio::net::TcpStream>) {
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    let stream = TlsConnector::from(config).connect(name, socket).await;
    let stream = stream.unwrap();
    let protocol = stream.get_ref().1.alpn_protocol().unwrap_or_default();
    (protocol.to_vec(), stream)
}

/// Begins HTTP/2 on a connection.
pub async fn begin(io: impl AsyncRead + AsyncWrite + Unpin + 'static) -> SendRequest<Frames> {
    let handshake = Builder::new(Local).handshake(TokioIo::new(io));
    let (sender, connection) = handshake.await.unwrap();
    tokio::task::spawn_local(connection);
    sender
}

/// A request without a body.
pub fn get(path: &str, fields: &[(&str, &str)]) -> Request<Frames> {
    send("GET", path, fields, Frames::default())
}

/// A request with one.
pub fn send(method: &str, path: &str, fields: &[(&str, &str)], body: Frames) -> Request<Frames> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://a.example{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(body).unwrap()
}

/// Asks once, over a connection of its own.
pub fn ask(address: SocketAddr, request: Request<Frames>) -> Answer {
    run(async {
        let mut sender = connect(address).await;
        let response = sender.send_request(request).await.unwrap();
        Answer::read(response).await.unwrap()
    })
}

/// A client that writes frames by hand.
pub struct Raw {
    socket: TcpStream,
    unread: Vec<u8>,
    next: u32,
}

/// A frame that came: kind, flags, stream, payload.
pub type RawFrame = (u8, u8, u32, Vec<u8>);

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = len[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A field without indexing (RFC 7541 §6.2.2), its name and value under 127 bytes.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(name.len()).unwrap()];
    bytes.extend(name.as_bytes());
    bytes.push(u8::try_from(value.len()).unwrap());
    bytes.extend(value.as_bytes());
    bytes
}

/// The fields that open a request.
pub fn head(method: &str, path: &str) -> Vec<u8> {
    [
        field(":method", method),
        field(":scheme", "http"),
        field(":path", path),
        field(":authority", "a.example"),
    ]
    .concat()
}

impl Raw {
    /// Connects, with the preface and these SETTINGS.
    pub fn connect(address: SocketAddr, settings: &[u8]) -> Raw {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut raw = Raw {
            socket,
            unread: Vec::new(),
            next: 1,
        };
        raw.write(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat());
        raw
    }

    /// How long a write may wait for the proxy.
    pub fn set_write_timeout(&mut self, time: Duration) {
        self.socket.set_write_timeout(Some(time)).unwrap();
    }

    /// Writes as far as the proxy takes it; says whether it took all.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    /// Opens a stream with such a head; `ends` = without a body.
    pub fn open(&mut self, block: &[u8], ends: bool) -> u32 {
        let stream = self.next;
        self.next += 2;
        self.write(&frame(HEADERS, 4 | u8::from(ends), stream, block));
        stream
    }

    /// The next frame; `None` at the end of the connection, which must come in time.
    pub fn read(&mut self) -> Option<RawFrame> {
        loop {
            if let Some(found) = self.take() {
                return Some(found);
            }
            let mut buffer = [0; 16_384];
            let count = match self.socket.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("it stays open"),
                result => result.ok()?,
            };
            if count == 0 {
                return None;
            }
            self.unread.extend(&buffer[..count]);
        }
    }

    fn take(&mut self) -> Option<RawFrame> {
        let head: [u8; 9] = self.unread.get(..9)?.try_into().unwrap();
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = self.unread.get(9..9 + len)?.to_vec();
        self.unread.drain(..9 + len);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, payload))
    }

    /// Reads until such a frame comes.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&RawFrame) -> bool) -> RawFrame {
        loop {
            let found = self.read().unwrap_or_else(|| panic!("no {what}"));
            if wanted(&found) {
                return found;
            }
        }
    }

    /// Reads to the end; gives the reason of the last GOAWAY.
    pub fn reason_to_go(&mut self) -> Option<u32> {
        let mut reason = None;
        while let Some((kind, _, _, payload)) = self.read() {
            if kind == GOAWAY {
                reason = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        reason
    }
}
