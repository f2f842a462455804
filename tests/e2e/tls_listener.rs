//! TLS on a listener: the choice of the certificate, the protocol's limits and endings, and the proxy's other behaviour
//! over TLS.
//!
//! The client is rustls over a socket of the test's own; tests write invalid bytes to the socket directly.

use std::{
    cell::RefCell,
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    rc::Rc,
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm,
};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion,
    RootCertStore, StreamOwned, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    version::{TLS12, TLS13},
};

use crate::{
    metrics::metric,
    strict::{Reader, Response},
    support::{
        ALL, Client, OK, PATIENCE, Proxy, Setup, Upstream, eventually, get, pattern, seen, skip,
        with,
    },
};

pub type Authority = CertifiedIssuer<'static, KeyPair>;

/// A listener with the certificates of [`write_files`].
pub const LISTEN: &str = "listen:\n  - {address: '127.0.0.1:0', tls: {certificates: [{cert_file: DIR/cert.pem, key_file: DIR/key.pem}]}}\n";

/// The same, with `client_ca_file`.
const MUTUAL: &str = "listen:\n  - {address: '127.0.0.1:0', tls: {client_ca_file: DIR/ca.pem, certificates: [{cert_file: DIR/cert.pem, key_file: DIR/key.pem}]}}\n";

pub fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "ours");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// `LABEL.pem` and `LABEL-key.pem` of a certificate for these names.
fn write_pair(
    dir: &Path,
    label: (&str, &str),
    by: &Authority,
    names: &[&str],
    kind: &'static SignatureAlgorithm,
) {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let key = KeyPair::generate_for(kind).unwrap();
    let params = CertificateParams::new(names).unwrap();
    let certificate = params.signed_by(&key, by).unwrap();
    fs::write(dir.join(label.0), certificate.pem() + &by.pem()).unwrap();
    fs::write(dir.join(label.1), key.serialize_pem()).unwrap();
}

/// The files that [`LISTEN`] names.
pub fn write_files(dir: &Path, by: &Authority) {
    fs::write(dir.join("ca.pem"), by.pem()).unwrap();
    let label = ("cert.pem", "key.pem");
    write_pair(dir, label, by, &["a.test"], &PKCS_ECDSA_P256_SHA256);
}

/// A proxy with one listener, which uses TLS.
fn start(yaml: &str, upstream: &Upstream, by: &Authority) -> Proxy {
    let setup = Setup::new(yaml).upstream("UP", upstream);
    write_files(&setup.dir(), by);
    setup.start()
}

fn before(upstream: &Upstream, by: &Authority) -> Proxy {
    start(&format!("{LISTEN}{ALL}"), upstream, by)
}

// ---- the client ----

type Versions = &'static [&'static SupportedProtocolVersion];

/// The authority alone.
pub fn roots(by: &Authority) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(by.der().clone()).unwrap();
    roots
}

/// The configuration of a client: the authority that it trusts, and the certificate that it presents.
pub fn trust(
    by: &Authority,
    versions: Versions,
    own: Option<(&str, &Authority)>,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots(by));
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((name, by)) => {
            let (chain, key) = identity(name, by);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

fn identity(name: &str, by: &Authority) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    let dn = &mut params.distinguished_name;
    dn.push(DnType::OrganizationName, "Example, Inc.");
    dn.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, by).unwrap();
    let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    (vec![certificate.der().clone()], der)
}

#[derive(Clone)]
struct Shared(Rc<RefCell<StreamOwned<ClientConnection, TcpStream>>>);

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

/// The client's end of a TLS connection.
pub struct Secure {
    stream: Shared,
    reader: Reader<Shared>,
}

impl Secure {
    /// Connects; the handshake begins with the first byte.
    pub fn connect(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Secure {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        let stream = Shared(Rc::new(RefCell::new(StreamOwned::new(connection, socket))));
        let reader = Reader::new(stream.clone());
        Secure { stream, reader }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let mut stream = self.stream.0.borrow_mut();
        stream.write_all(bytes.as_ref())?;
        stream.flush()
    }

    /// Writes to the socket below TLS.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        let mut stream = self.stream.0.borrow_mut();
        // a proxy that refuses takes only a part of the bytes
        let _ = stream.sock.write_all(bytes);
    }

    fn receive(&mut self) -> io::Result<Response> {
        let head = self.reader.response_head("")?;
        let mut response = head.ok_or(ErrorKind::UnexpectedEof)?;
        response.trailers = self
            .reader
            .body_into(response.framing, &mut response.body)?;
        Ok(response)
    }

    pub fn try_ask(&mut self, request: impl AsRef<[u8]>) -> io::Result<Response> {
        self.send(request)?;
        self.receive()
    }

    pub fn get(&mut self, target: &str) -> Response {
        self.try_ask(get(target)).unwrap()
    }

    fn with<T>(&self, look: impl FnOnce(&mut ClientConnection) -> T) -> T {
        look(&mut self.stream.0.borrow_mut().conn)
    }

    /// Reads to the end; an error where the end comes without `close_notify`.
    fn end(&mut self) -> io::Result<Vec<u8>> {
        self.reader.rest()
    }
}

fn client(proxy: &Proxy, by: &Authority) -> Secure {
    Secure::connect(
        proxy.address(),
        &trust(by, rustls::ALL_VERSIONS, None),
        "a.test",
    )
}

const NEW: Versions = &[&TLS13];
const OLD: Versions = &[&TLS12];

// ---- requests over TLS ----

#[test]
fn requests_are_served_in_both_versions_and_the_upstream_hears_of_https() {
    let by = authority();
    let upstream = Upstream::echo_head();
    let proxy = before(&upstream, &by);
    for (versions, version) in [
        (NEW, ProtocolVersion::TLSv1_3),
        (OLD, ProtocolVersion::TLSv1_2),
    ] {
        let mut client = Secure::connect(proxy.address(), &trust(&by, versions, None), "a.test");
        for i in 0..3 {
            let request = seen(&client.get(&format!("/{i}")));
            assert_eq!(request.target, format!("/{i}"));
            assert_eq!(request.fields.one("x-forwarded-proto"), Some("https"));
            assert_eq!(request.fields.one("x-forwarded-for"), Some("127.0.0.1"));
        }
        assert_eq!(client.get("/health").body, b"ok\n");
        client.with(|it| {
            assert_eq!(it.protocol_version(), Some(version));
            assert_eq!(it.alpn_protocol(), Some(&b"http/1.1"[..]));
        });
    }
}

#[test]
fn long_bodies_pass_both_ways_byte_by_byte_right() {
    let by = authority();
    let size = 3_000_000;
    let upstream = Upstream::answering(move |request, peer| {
        assert_eq!(request.body, pattern(0, size));
        peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"))?;
        peer.write(pattern(0, size))
    });
    for memory in ["10MiB", "0"] {
        let setup = Setup::new(&format!("{LISTEN}{ALL}limits: {{memory: {memory}}}\n"));
        write_files(&setup.dir(), &by);
        let proxy = setup.upstream("UP", &upstream).start();
        let length = format!("Content-Length: {size}");
        let head = format!("POST /x HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n");
        let mut request = head.into_bytes();
        request.extend(pattern(0, size));
        let mut client = client(&proxy, &by);
        let response = client.try_ask(&request).unwrap();
        assert_eq!(response.body.len(), size, "{memory}");
        assert!(response.body == pattern(0, size), "{memory}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let by = authority();
    let upstream = Upstream::echo_head();
    let proxy = before(&upstream, &by);
    let mut client = client(&proxy, &by);
    let requests: String = (0..20).map(|i| get(&format!("/{i}"))).collect();
    client.send(requests).unwrap();
    for i in 0..20 {
        assert_eq!(seen(&client.receive().unwrap()).target, format!("/{i}"));
    }
}

#[test]
fn a_location_of_the_target_is_rewritten_to_https() {
    let by = authority();
    let upstream = Upstream::answering(|request, peer| {
        let host = request.fields.one("host").unwrap_or_default().to_owned();
        peer.write(format!(
            "HTTP/1.1 302 Found\r\nLocation: http://{host}/there\r\nContent-Length: 0\r\n\r\n"
        ))
    });
    let proxy = before(&upstream, &by);
    let mut client = client(&proxy, &by);
    let response = client
        .try_ask("GET /here HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .unwrap();
    assert_eq!(response.one("location"), Some("https://a.test/there"));
}

#[test]
fn a_route_for_http_sends_to_https_and_does_not_serve_https() {
    let by = authority();
    let upstream = Upstream::echo_head();
    let plain = LISTEN.replace("listen:\n", "listen:\n  - '127.0.0.2:0'\n");
    let redirect = "{path: /, scheme: http, redirect: {to: 'https://{host}'}}";
    let yaml = plain + &format!("routes: [{redirect}, {{path: /api/, target: 'http://UP/'}}]\n");
    let setup = Setup::new(&yaml).upstream("UP", &upstream).listeners(2);
    write_files(&setup.dir(), &by);
    let proxy = setup.start();
    let at = |index: usize| proxy.addresses()[index].parse::<SocketAddr>().unwrap();

    let to_https = Client::connect(at(0)).ask("GET /api/x?y=z HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(to_https.status, 308, "{to_https:?}");
    assert_eq!(
        to_https.fields.one("location"),
        Some("https://a.test/api/x?y=z")
    );
    let believed = Client::connect(at(0))
        .ask("GET /api/x HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n");
    assert_eq!(believed.status, 200, "the balancer terminated TLS");

    let trust = trust(&by, rustls::ALL_VERSIONS, None);
    let mut secure = Secure::connect(at(1), &trust, "a.test");
    assert_eq!(secure.get("/api/x").status, 200);
    assert_eq!(secure.get("/other").status, 404);
}

#[test]
fn a_websocket_passes_through_tls() {
    let by = authority();
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )?;
        for _ in 0..3 {
            let bytes = peer.reader().exact(5)?;
            peer.write(bytes)?;
        }
        Ok(())
    });
    let proxy = before(&upstream, &by);
    let mut client = client(&proxy, &by);
    let upgrade = with("GET /ws", &["Connection: Upgrade", "Upgrade: websocket"]);
    client.send(upgrade).unwrap();
    let head = client.reader.response_head("").unwrap().unwrap();
    assert_eq!(head.status, 101);
    for word in ["hello", "there", "again"] {
        client.send(word).unwrap();
        assert_eq!(client.reader.exact(5).unwrap(), word.as_bytes());
    }
    assert!(
        client.end().unwrap().is_empty(),
        "the connection ends with close_notify"
    );
}

// ---- certificates ----

#[test]
fn the_certificate_follows_the_name_that_the_client_asks_for() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let files = |n: usize| format!("{{cert_file: DIR/{n}.pem, key_file: DIR/{n}-key.pem}}");
    let yaml = format!(
        "listen: [{{address: '127.0.0.1:0', tls: {{certificates: [{}, {}, {}]}}}}]\n{ALL}",
        files(0),
        files(1),
        files(2)
    );
    let setup = Setup::new(&yaml).upstream("UP", &upstream);
    for (label, names) in [
        (("0.pem", "0-key.pem"), &["first.test"][..]),
        (("1.pem", "1-key.pem"), &["*.b.test"]),
        (("2.pem", "2-key.pem"), &["a.b.test"]),
    ] {
        let kind: &'static SignatureAlgorithm = if names == ["*.b.test"] {
            &PKCS_ED25519
        } else {
            &PKCS_ECDSA_P256_SHA256
        };
        write_pair(&setup.dir(), label, &by, names, kind);
    }
    let proxy = setup.start();
    let config = trust(&by, rustls::ALL_VERSIONS, None);
    for name in ["first.test", "x.b.test", "a.b.test"] {
        let mut client = Secure::connect(proxy.address(), &config, name);
        assert_eq!(client.get("/").status, 200, "{name}");
    }
    let mut client = Secure::connect(proxy.address(), &config, "other.test");
    let error = client.try_ask(get("/")).unwrap_err().to_string();
    assert!(error.contains("first.test"), "{error}");
}

#[test]
fn sessions_are_resumed_in_both_versions_and_across_a_reload() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let proxy = before(&upstream, &by);
    for versions in [NEW, OLD] {
        let config = trust(&by, versions, None);
        let kind = || {
            let mut client = Secure::connect(proxy.address(), &config, "a.test");
            assert_eq!(client.get("/").status, 200);
            client.with(|it| it.handshake_kind())
        };
        assert!(matches!(
            kind(),
            Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest)
        ));
        assert_eq!(kind(), Some(HandshakeKind::Resumed));
        let reloads = |proxy: &Proxy| {
            let logs = proxy.logs();
            logs.iter()
                .filter(|line| line.contains("msg=\"reloaded\""))
                .count()
        };
        let so_far = reloads(&proxy);
        proxy.signal("HUP");
        eventually("it reloads", || reloads(&proxy) > so_far);
        assert_eq!(kind(), Some(HandshakeKind::Resumed));
    }
}

#[test]
fn a_session_of_one_listener_is_not_resumed_at_another() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let listener = |host: u8| {
        format!(
            "  - {{address: '127.0.0.{host}:0', tls: {{certificates: [{{cert_file: DIR/cert.pem, key_file: DIR/key.pem}}]}}}}\n"
        )
    };
    let yaml = format!("listen:\n{}{}{ALL}", listener(1), listener(2));
    let proxy = start(&yaml, &upstream, &by);
    let addresses: Vec<SocketAddr> = proxy
        .addresses()
        .iter()
        .map(|address| address.parse().unwrap())
        .collect();
    for versions in [NEW, OLD] {
        let config = trust(&by, versions, None);
        let is_resumed = |address| {
            let mut client = Secure::connect(address, &config, "a.test");
            assert_eq!(client.get("/").status, 200);
            client.with(|it| it.handshake_kind()) == Some(HandshakeKind::Resumed)
        };
        let kinds = [0, 0, 1, 1].map(|listener| is_resumed(addresses[listener]));
        assert_eq!(kinds, [false, true, false, true]);
    }
}

#[test]
fn who_connects_and_leaves_without_a_word_has_not_failed() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let yaml = format!("{LISTEN}{ALL}metrics: {{listen: '127.0.0.1:0'}}\n");
    let proxy = start(&yaml, &upstream, &by);
    for _ in 0..3 {
        drop(TcpStream::connect(proxy.address()).unwrap());
    }
    assert_eq!(client(&proxy, &by).get("/").status, 200);
    eventually("all have left", || {
        metric(&proxy, "lean_proxy_connections_open") == 0
    });
    let failed = "lean_proxy_failures_total{outcome=\"handshake-failed\"}";
    assert_eq!(metric(&proxy, failed), 0);
}

#[test]
fn a_reload_takes_over_other_files_and_keeps_connections() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let proxy = before(&upstream, &by);
    let mut kept = client(&proxy, &by);
    assert_eq!(kept.get("/").status, 200);
    let other = authority();
    write_files(proxy.dir(), &other);
    proxy.signal("HUP");
    proxy.await_log("it reloads", |line| line.contains("msg=\"reloaded\""));
    eventually("the new certificate is shown", || {
        client(&proxy, &other).try_ask(get("/")).is_ok()
    });
    assert!(client(&proxy, &by).try_ask(get("/")).is_err());
    assert_eq!(kept.get("/").status, 200);
    fs::write(proxy.dir().join("key.pem"), "nothing").unwrap();
    proxy.signal("HUP");
    proxy.await_log("the proxy does not reload", |line| {
        line.contains("not reloaded") && line.contains("key_file")
    });
    assert_eq!(client(&proxy, &other).get("/").status, 200);
}

// ---- client certificates ----

#[test]
fn a_client_certificate_is_required_and_its_subject_told() {
    let by = authority();
    let upstream = Upstream::echo_head();
    let proxy = start(&format!("{MUTUAL}{ALL}"), &upstream, &by);
    for versions in [NEW, OLD] {
        let config = trust(&by, versions, Some(("alice", &by)));
        for _ in 0..2 {
            let mut client = Secure::connect(proxy.address(), &config, "a.test");
            let forged = with(
                "GET /",
                &[
                    "X-Client-Cert-Subject: CN=root",
                    "X_Client_Cert_Subject: CN=root",
                ],
            );
            let request = seen(&client.try_ask(forged).unwrap());
            assert_eq!(
                request.fields.all("x-client-cert-subject"),
                [r"CN=alice,O=Example\, Inc."]
            );
            assert!(!request.fields.has("x_client_cert_subject"));
            let kind = client.with(|it| it.handshake_kind());
            assert!(!matches!(kind, Some(HandshakeKind::Resumed)), "proved anew");
        }
        let none = trust(&by, versions, None);
        let stranger = trust(&by, versions, Some(("alice", &authority())));
        for config in [none, stranger] {
            let mut client = Secure::connect(proxy.address(), &config, "a.test");
            assert!(client.try_ask(get("/")).is_err());
        }
    }
    assert_eq!(upstream.requests(), 4);
}

#[test]
fn a_plain_listener_removes_the_certificate_subject_of_a_request() {
    let upstream = Upstream::echo_head();
    let proxy = Proxy::before(&upstream, ALL);
    let forged = with(
        "GET /",
        &[
            "X-Client-Cert-Subject: CN=root",
            "x_client_cert_subject: CN=root",
            "X-Client.Cert_Subject: CN=root",
        ],
    );
    let request = seen(&proxy.ask(forged));
    let names = request.fields.names();
    assert!(
        !names.iter().any(|name| name.contains("ubject")),
        "{names:?}"
    );
}

// ---- the end of a connection ----

#[test]
fn the_last_answer_is_followed_by_close_notify() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let yaml = format!("{LISTEN}{ALL}server: {{idle_timeout: 300ms}}\n");
    let proxy = start(&yaml, &upstream, &by);
    let mut asked = client(&proxy, &by);
    let last = with("GET /", &["Connection: close"]);
    assert_eq!(asked.try_ask(last).unwrap().status, 200);
    assert_eq!(asked.end().unwrap(), b"");
    let mut idle = client(&proxy, &by);
    assert_eq!(idle.get("/").status, 200);
    assert_eq!(idle.end().unwrap(), b"", "after idle_timeout");
}

#[test]
fn an_answer_that_breaks_off_is_followed_by_none() {
    let by = authority();
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write("HTTP/1.1 200 OK\r\n\r\nhalf")?;
        peer.cut()
    });
    let proxy = before(&upstream, &by);
    let mut client = client(&proxy, &by);
    // without a length, and to HTTP/1.0: only the end of the connection ends the answer
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n").unwrap();
    let error = client.end().unwrap_err();
    assert_ne!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert_ne!(error.kind(), ErrorKind::WouldBlock, "{error}");
}

#[test]
fn garbage_ends_the_connection_with_an_alert() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let yaml = format!("{LISTEN}{ALL}metrics: {{listen: '127.0.0.1:0'}}\nlog: {{level: debug}}\n");
    let proxy = start(&yaml, &upstream, &by);
    let mut garbled = client(&proxy, &by);
    assert_eq!(garbled.get("/").status, 200);
    let mut record = vec![23, 3, 3, 0, 40];
    record.extend([7; 40]);
    garbled.send_raw(&record);
    let error = garbled.end().unwrap_err();
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
    // before the handshake
    let mut raw = Client::connect(proxy.address());
    raw.send([22, 3, 1, 0, 5, 1, 0, 0, 1, 9]);
    let (bytes, _) = raw.until_end();
    assert_eq!(bytes.first(), Some(&21), "an alert: {bytes:?}");
    proxy.await_log("why", |line| line.contains("msg=\"no handshake\""));
    let failed = "lean_proxy_failures_total{outcome=\"handshake-failed\"}";
    assert_eq!(metric(&proxy, failed), 1);
    assert!(metric(&proxy, "lean_proxy_tls_handshakes_total") >= 1);
}

#[test]
fn plain_http_on_a_listener_with_tls_is_told_so() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let proxy = before(&upstream, &by);
    let response = Client::connect(proxy.address()).get("/");
    assert_eq!(response.status, 400);
    assert_eq!(response.text(), "This port speaks TLS, not plain HTTP.\n");
}

#[test]
fn a_hello_in_records_of_one_byte_is_understood() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let proxy = before(&upstream, &by);
    let mut client = client(&proxy, &by);
    let mut hello = Vec::new();
    client.with(|it| it.write_tls(&mut hello).unwrap());
    let split: Vec<u8> = hello[5..]
        .iter()
        .flat_map(|byte| [22, 3, 1, 0, 1, *byte])
        .collect();
    client.send_raw(&split);
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn an_unfinished_hello_is_not_collected_without_end() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let proxy = before(&upstream, &by);
    // a handshake message of 60 kB, of which most is sent
    let mut raw = Client::connect(proxy.address());
    let mut message = vec![1, 0, 0xea, 0x60];
    message.resize(50_000, 0);
    for (at, piece) in message.chunks(16_000).enumerate() {
        let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
        let record = [&[22, 3, if at == 0 { 1 } else { 3 }], &length[..], piece].concat();
        if raw.try_send(record).is_err() {
            break;
        }
    }
    let (_, _) = raw.until_end();
}

#[test]
fn a_handshake_that_is_not_done_in_time_ends() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let yaml = format!("{LISTEN}{ALL}server: {{header_timeout: 300ms}}\nlog: {{level: debug}}\n");
    let proxy = start(&yaml, &upstream, &by);
    let mut hello = Vec::new();
    client(&proxy, &by).with(|it| it.write_tls(&mut hello).unwrap());
    for bytes in [&b""[..], &hello[..3], &hello[..hello.len() / 2], &hello] {
        let mut raw = Client::connect(proxy.address());
        raw.send(bytes);
        raw.until_end();
    }
    eventually("three time-outs are logged", || {
        let logs = proxy.logs();
        logs.iter()
            .filter(|line| line.contains("not done in time"))
            .count()
            >= 3
    });
}

// ---- openssl and curl ----

fn has(tool: &str) -> bool {
    let found = Command::new(tool)
        .arg("version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let is_there = found.is_ok();
    if !is_there {
        skip(&format!("{tool} is not installed"));
    }
    is_there
}

/// Runs `openssl s_client` with these arguments and writes `command` to it; when it has printed `word`, writes `rest`.
/// Gives all that it printed.
fn s_client(proxy: &Proxy, args: &[&str], (command, word): (&str, &str), rest: &str) -> String {
    let address = proxy.address().to_string();
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-servername", "a.test"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    stdin.write_all(command.as_bytes()).unwrap();
    let mut said = Vec::new();
    let mut piece = [0; 1024];
    while !String::from_utf8_lossy(&said).contains(word) {
        let count = stderr.read(&mut piece).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&said));
        said.extend(&piece[..count]);
    }
    let _ = stdin.write_all(rest.as_bytes());
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    stderr.read_to_end(&mut said).unwrap();
    String::from_utf8_lossy(&[output.stdout, said].concat()).into_owned()
}

#[test]
fn openssl_changes_keys_in_the_middle() {
    if !has("openssl") {
        return;
    }
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let proxy = before(&upstream, &by);
    // new keys for both sides
    let said = s_client(
        &proxy,
        &["-tls1_3", "-crlf"],
        ("K\n", "KEYUPDATE"),
        "GET /health HTTP/1.1\nHost: a\nConnection: close\n\n",
    );
    assert!(
        said.contains("HTTP/1.1 200 OK") && said.contains("\nok"),
        "{said}"
    );
}

#[test]
fn openssl_may_not_renegotiate() {
    if !has("openssl") {
        return;
    }
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let proxy = before(&upstream, &by);
    let said = s_client(&proxy, &["-tls1_2"], ("R\n", "RENEGOTIATING"), "");
    assert!(
        said.contains("no renegotiation") || said.contains("alert"),
        "{said}"
    );
}

#[test]
fn health_is_asked_over_tls() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let proxy = before(&upstream, &by);
    let yaml = format!("{LISTEN}{ALL}").replace("127.0.0.1:0", &proxy.address().to_string());
    let setup = Setup::new(&yaml).upstream("UP", &upstream);
    write_files(&setup.dir(), &by);
    let finished = setup.args(&["--health", "CONFIG"]).run();
    assert_eq!(
        (finished.code, &*finished.out),
        (Some(0), "ok\n"),
        "{}",
        finished.err
    );
}

#[test]
fn check_warns_of_an_expired_certificate_and_refuses_a_key_that_does_not_fit() {
    let by = authority();
    let setup = Setup::new(&format!("{LISTEN}routes: [{{path: /, respond: {{}}}}]\n"));
    let dir = setup.dir();
    write_files(&dir, &by);
    let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
    params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &by).unwrap();
    fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
    fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    let finished = setup.args(&["--check", "CONFIG"]).run();
    assert_eq!(finished.code, Some(0), "{}", finished.err);
    assert!(
        finished.err.contains("the certificate expired"),
        "{}",
        finished.err
    );

    let setup = Setup::new(&format!("{LISTEN}routes: [{{path: /, respond: {{}}}}]\n"));
    write_files(&setup.dir(), &by);
    fs::write(setup.dir().join("key.pem"), key.serialize_pem()).unwrap();
    let finished = setup.args(&["--check", "CONFIG"]).run();
    assert_eq!(finished.code, Some(1));
    assert!(finished.err.contains("key_file") && finished.err.contains("is not the key"));
}

#[test]
fn an_alert_tells_a_client_that_is_too_old() {
    let by = authority();
    let upstream = Upstream::fixed(OK);
    let yaml = format!("{LISTEN}{ALL}").replace("tls: {", "tls: {min_version: 1.3, ");
    let proxy = start(&yaml, &upstream, &by);
    let mut old = Secure::connect(proxy.address(), &trust(&by, OLD, None), "a.test");
    let error = old.try_ask(get("/")).unwrap_err();
    let inner = error
        .get_ref()
        .and_then(|it| it.downcast_ref::<rustls::Error>());
    assert!(
        matches!(
            inner,
            Some(rustls::Error::AlertReceived(
                AlertDescription::ProtocolVersion
            ))
        ),
        "{error:?}"
    );
    let mut new = Secure::connect(proxy.address(), &trust(&by, NEW, None), "a.test");
    assert_eq!(new.get("/").status, 200);
}
