//! https targets: which certificates are accepted, what the handshake contains, and the other behaviour over TLS.
//!
//! The tests make their certificates, and their server is rustls over the bytes of a scripted [`Upstream`].

use std::{
    cell::RefCell,
    fs,
    io::{self, Read, Write},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::{
    HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::Acceptor,
    version::{TLS12, TLS13},
};

use crate::{
    metrics::metric,
    strict::{Reader, Request},
    support::{
        Client, End, OK, Peer, Proxy, Setup, Signal, Upstream, all_served, eventually, get,
        is_release, let_pass, pattern, seen, skip, with,
    },
};

/// Everything to the upstream, verified by `ca.pem`.
const SECURE: &str =
    "routes: [{path: /, target: 'https://UP', tls: {server_name: a.test, ca_file: DIR/ca.pem}}]\n";

/// Everything to the upstream, verified by the environment's roots or the compiled-in ones.
const BY_ENVIRONMENT: &str =
    "routes: [{path: /, target: 'https://UP', tls: {server_name: a.test}}]\n";

/// An answer with `Connection: close`.
const LAST: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

type Versions = &'static [&'static SupportedProtocolVersion];

const NEW: Versions = &[&TLS13];
const OLD: Versions = &[&TLS12];

// ---- certificates ----

/// A certificate authority.
type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server's certificate with its key, and the `ca_file` for it.
struct Identity {
    roots: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn names(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
    CertificateParams::new(names).unwrap()
}

fn signed(by: &Authority, params: &CertificateParams) -> Identity {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, by).unwrap();
    Identity {
        roots: by.pem(),
        chain: vec![certificate.der().clone()],
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

fn self_signed(params: &CertificateParams) -> Identity {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Identity {
        roots: certificate.pem(),
        chain: vec![certificate.der().clone()],
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

/// A valid one for every name in these tests.
fn good() -> Identity {
    let params = names(&["a.test", "b.test", "localhost", "127.0.0.1", "::1"]);
    signed(&authority("ours"), &params)
}

// ---- a server ----

/// The bytes below TLS.
struct Wire<'a> {
    peer: &'a mut Peer,
    unread: Vec<u8>,
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() {
            self.unread = self.peer.reader().some()?;
        }
        let count = self.unread.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.unread[..count]);
        self.unread.drain(..count);
        Ok(count)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.peer.write(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One side of a stream that another side writes to.
#[derive(Clone)]
struct Shared<'a>(Rc<RefCell<StreamOwned<ServerConnection, Wire<'a>>>>);

impl Read for Shared<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

/// The upstream's end of one TLS connection.
struct Session<'a> {
    stream: Shared<'a>,
    reader: Reader<Shared<'a>>,
}

impl<'a> Session<'a> {
    /// Does a handshake. Notes what the proxy asked for, and the result.
    fn accept(peer: &'a mut Peer, config: Arc<ServerConfig>) -> io::Result<Session<'a>> {
        let mut wire = Wire {
            peer,
            unread: Vec::new(),
        };
        let mut acceptor = Acceptor::default();
        let accepted = loop {
            if acceptor.read_tls(&mut wire)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(accepted) = acceptor.accept().map_err(|(e, _)| io::Error::other(e))? {
                break accepted;
            }
        };
        let hello = accepted.client_hello();
        let sni = hello.server_name().unwrap_or("none");
        let alpn: Vec<_> = hello.alpn().into_iter().flatten().collect();
        let alpn = alpn.join(&b", "[..]).escape_ascii().to_string();
        wire.peer.note(format!("asked for {sni} by {alpn}"));
        let connection = accepted.into_connection(config);
        let mut connection = connection.map_err(|(e, _)| io::Error::other(e))?;
        while connection.is_handshaking() {
            if let Err(error) = connection.complete_io(&mut wire) {
                wire.peer.note(format!("no handshake: {error}"));
                return Err(io::Error::other(error));
            }
        }
        wire.peer.note(match connection.handshake_kind() {
            Some(HandshakeKind::Resumed) => "resumed",
            _ => "full",
        });
        wire.peer.note(match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            _ => "another version",
        });
        let stream = Shared(Rc::new(RefCell::new(StreamOwned::new(connection, wire))));
        let reader = Reader::new(stream.clone());
        Ok(Session { stream, reader })
    }

    fn request(&mut self) -> io::Result<Option<Request>> {
        self.reader.request()
    }

    fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let mut stream = self.stream.0.borrow_mut();
        stream.write_all(bytes.as_ref())?;
        stream.flush()
    }

    /// Sends `close_notify`, and goes on reading.
    fn close_notify(&mut self) -> io::Result<()> {
        let mut stream = self.stream.0.borrow_mut();
        stream.conn.send_close_notify();
        stream.flush()
    }

    fn note(&self, note: &str) {
        self.stream.0.borrow().sock.peer.note(note);
    }
}

type Answer = dyn Fn(&mut Session<'_>) -> io::Result<()> + Send + Sync;

/// Does handshakes in these versions, then runs the script.
fn server_in(
    versions: Versions,
    identity: &Identity,
    script: impl Fn(&mut Session<'_>) -> io::Result<()> + Send + Sync + 'static,
) -> Upstream {
    server_at("127.0.0.1:0", versions, identity, Box::new(script))
}

fn server_at(
    address: &str,
    versions: Versions,
    identity: &Identity,
    script: Box<Answer>,
) -> Upstream {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let config = Arc::new(config);
    Upstream::on(address, move |peer| {
        let mut session = Session::accept(peer, Arc::clone(&config))?;
        script(&mut session)
    })
}

fn server(
    identity: &Identity,
    script: impl Fn(&mut Session<'_>) -> io::Result<()> + Send + Sync + 'static,
) -> Upstream {
    server_in(rustls::ALL_VERSIONS, identity, script)
}

/// Answers each request of each connection with these bytes.
fn fixed(identity: &Identity, response: &'static str) -> Upstream {
    server(identity, move |session| {
        while session.request()?.is_some() {
            session.write(response)?;
        }
        Ok(())
    })
}

/// A configuration beside `ca.pem`, which holds the identity's roots.
fn setup(yaml: &str, identity: &Identity, upstream: &Upstream) -> Setup {
    let setup = Setup::new(yaml).upstream("UP", upstream);
    fs::write(setup.dir().join("ca.pem"), &identity.roots).unwrap();
    setup
}

fn before(upstream: &Upstream, identity: &Identity) -> Proxy {
    setup(SECURE, identity, upstream).start()
}

pub fn port(upstream: &Upstream) -> u16 {
    let authority = upstream.authority();
    authority.rsplit(':').next().unwrap().parse().unwrap()
}

/// How often a peer made this note.
fn count(upstream: &Upstream, note: &str) -> usize {
    upstream.notes().iter().filter(|n| *n == note).count()
}

// ---- the handshake ----

#[test]
fn an_https_target_is_served_in_both_versions_and_its_connection_kept() {
    for (versions, version) in [(NEW, "1.3"), (OLD, "1.2")] {
        let identity = good();
        let upstream = server_in(versions, &identity, |session| {
            while let Some(request) = session.request()? {
                let length = request.raw.len();
                session.write(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
                ))?;
                session.write(&request.raw)?;
            }
            Ok(())
        });
        let proxy = before(&upstream, &identity);
        for i in 0..5 {
            let request = seen(&proxy.get(&format!("/{i}")));
            assert_eq!(request.target, format!("/{i}"));
            assert_eq!(request.fields.one("host"), Some(&*upstream.authority()));
            assert_eq!(request.fields.one("x-forwarded-proto"), Some("http"));
        }
        assert_eq!(
            upstream.notes(),
            ["asked for a.test by http/1.1", "full", version]
        );
        assert_eq!((upstream.connections(), upstream.open()), (1, 1));
    }
}

#[test]
fn the_name_that_is_asked_for_is_the_hosts_or_the_routes_and_no_address() {
    let identity = good();
    for (host, server_name, asked) in [
        ("localhost", "", "localhost"),
        ("LocalHost", "", "localhost"),
        ("localhost", "a.test", "a.test"),
        ("localhost", "127.0.0.1", "none"),
        ("127.0.0.1", "", "none"),
        ("127.0.0.1", "b.test", "b.test"),
    ] {
        let upstream = fixed(&identity, OK);
        let port = port(&upstream);
        let yaml = format!(
            "routes: [{{path: /, target: 'https://{host}:{port}', tls: {{server_name: '{server_name}', ca_file: DIR/ca.pem}}}}]\n"
        );
        let proxy = setup(&yaml, &identity, &upstream).start();
        assert_eq!(proxy.get("/").status, 200, "{host} as {server_name:?}");
        assert_eq!(
            upstream.notes()[0],
            format!("asked for {asked} by http/1.1"),
            "{host} as {server_name:?}"
        );
    }
}

#[test]
fn no_sni_is_sent_for_an_ipv6_literal() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return skip("there is no IPv6 here");
    }
    let identity = good();
    let script = |session: &mut Session<'_>| {
        session.request()?;
        session.write(LAST)
    };
    let upstream = server_at("[::1]:0", rustls::ALL_VERSIONS, &identity, Box::new(script));
    let yaml = "routes: [{path: /, target: 'https://UP', tls: {ca_file: DIR/ca.pem}}]\n";
    let proxy = setup(yaml, &identity, &upstream).start();
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(upstream.notes()[0], "asked for none by http/1.1");
}

#[test]
fn sessions_are_resumed() {
    for (versions, version) in [(NEW, "1.3"), (OLD, "1.2")] {
        let identity = good();
        let upstream = server_in(versions, &identity, |session| {
            session.request()?;
            session.write(LAST)?;
            session.close_notify()
        });
        let proxy = before(&upstream, &identity);
        for _ in 0..4 {
            assert_eq!(proxy.get("/").text(), "ok");
        }
        let handshakes = (count(&upstream, "full"), count(&upstream, "resumed"));
        assert_eq!(handshakes, (1, 3), "{version}: {:?}", upstream.notes());
    }
}

// ---- verification ----

#[test]
fn an_invalid_certificate_is_a_bad_gateway_and_the_log_says_why() {
    let ca = authority("ours");
    let stranger = authority("a stranger");
    let at = |from, until| {
        let mut params = names(&["a.test"]);
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        params
    };
    for (case, identity, roots, reason) in [
        ("good", signed(&ca, &names(&["a.test"])), &ca, None),
        (
            "expired",
            signed(&ca, &at(2001, 2002)),
            &ca,
            Some("expired"),
        ),
        (
            "not yet valid",
            signed(&ca, &at(2999, 3000)),
            &ca,
            Some("not valid yet"),
        ),
        (
            "another name",
            signed(&ca, &names(&["b.test"])),
            &ca,
            Some("not valid for name"),
        ),
        (
            "self-signed",
            self_signed(&names(&["a.test"])),
            &ca,
            Some("UnknownIssuer"),
        ),
        (
            "unknown authority",
            signed(&stranger, &names(&["a.test"])),
            &ca,
            Some("UnknownIssuer"),
        ),
    ] {
        let identity = Identity {
            roots: roots.pem(),
            ..identity
        };
        let upstream = fixed(&identity, OK);
        let proxy = before(&upstream, &identity);
        let response = proxy.get("/secret");
        let Some(reason) = reason else {
            assert_eq!(response.status, 200, "{case}");
            continue;
        };
        assert_eq!(response.status, 502, "{case}");
        assert_eq!(
            response.text(),
            "No secure connection to the upstream could be made.\n",
            "{case}"
        );
        let line = proxy.await_log(case, |line| line.contains("no answer"));
        for part in ["level=warn", "tls-failed", "a.test", reason] {
            assert!(line.contains(part), "{case}: no {part:?} in {line}");
        }
        upstream.await_open(0);
        let received = upstream.received(0);
        assert!(
            !received.windows(6).any(|bytes| bytes == b"secret"),
            "{case}: nothing is said to a stranger"
        );
    }
}

#[test]
fn a_long_chain_of_certificates_is_a_bad_gateway() {
    let mut identity = good();
    let other = self_signed(&names(&[&"x".repeat(60)])).chain;
    let (mut bytes, mut served) = (identity.chain[0].len(), Vec::new());
    while bytes <= 20_000 {
        bytes += other[0].len();
        identity.chain.extend(other.clone());
        let upstream = fixed(&identity, OK);
        if (15_000..16 * 1024).contains(&bytes) || bytes > 16 * 1024 {
            served.push((bytes, before(&upstream, &identity).get("/").status));
        }
    }
    assert!(served.iter().any(|(bytes, _)| *bytes < 16 * 1024));
    for (bytes, status) in served {
        let expected = if bytes <= 16 * 1024 { 200 } else { 502 };
        assert_eq!(status, expected, "{bytes} bytes");
    }
}

#[test]
fn a_self_signed_certificate_is_accepted_where_it_is_listed() {
    let mut marked = names(&["a.test"]);
    marked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    for params in [names(&["a.test"]), marked] {
        let identity = self_signed(&params);
        let upstream = fixed(&identity, OK);
        assert_eq!(before(&upstream, &identity).get("/").status, 200);
        for (variable, value, status) in [
            ("SSL_CERT_FILE", "DIR/ca.pem", 200),
            ("SSL_CERT_DIR", "DIR", 200),
            ("X", "", 502),
        ] {
            let upstream = fixed(&identity, OK);
            let setup = setup(BY_ENVIRONMENT, &identity, &upstream);
            let proxy = setup.env(variable, value).start();
            assert_eq!(proxy.get("/").status, status, "{variable}={value}");
        }
    }
}

#[test]
fn the_environments_roots_replace_those_compiled_in() {
    const PLAIN: &str = BY_ENVIRONMENT;
    let identity = good();
    let stranger = authority("a stranger").pem();
    let start = |yaml: &str, variable: &str, value: &str| {
        let upstream = fixed(&identity, OK);
        let setup = setup(yaml, &identity, &upstream);
        fs::write(setup.dir().join("stranger.pem"), &stranger).unwrap();
        fs::create_dir(setup.dir().join("certs")).unwrap();
        fs::write(setup.dir().join("certs/0a1b2c3d.0"), &identity.roots).unwrap();
        fs::write(setup.dir().join("certs/README"), "nothing").unwrap();
        let proxy = setup.env(variable, value).start();
        proxy.get("/").status
    };
    for (yaml, variable, value, status) in [
        (PLAIN, "X", "", 502),
        (PLAIN, "SSL_CERT_FILE", "DIR/ca.pem", 200),
        (PLAIN, "SSL_CERT_FILE", "DIR/stranger.pem", 502),
        (PLAIN, "SSL_CERT_FILE", "", 502),
        (PLAIN, "SSL_CERT_DIR", "DIR/certs", 200),
        (PLAIN, "SSL_CERT_DIR", "DIR:DIR/certs", 200),
        (SECURE, "SSL_CERT_FILE", "DIR/stranger.pem", 200),
    ] {
        assert_eq!(start(yaml, variable, value), status, "{variable}={value}");
    }
}

#[test]
fn the_roots_of_a_route_apply_to_no_other() {
    let identity = good();
    let upstream = fixed(&identity, OK);
    let yaml = "
routes:
  - {path: /own, target: 'https://UP', tls: {server_name: a.test, ca_file: DIR/ca.pem}}
  - {path: /any, target: 'https://UP', tls: {server_name: a.test, insecure_skip_verify: true}}
  - {path: /none, target: 'https://UP', tls: {server_name: a.test}}
  - {path: /other, target: 'https://UP', tls: {server_name: c.test, ca_file: DIR/ca.pem}}
";
    let proxy = setup(yaml, &identity, &upstream).start();
    for _ in 0..3 {
        for (path, status) in [
            ("/own", 200),
            ("/any", 200),
            ("/none", 502),
            ("/other", 502),
        ] {
            assert_eq!(proxy.get(path).status, status, "{path}");
        }
    }
}

#[test]
fn a_reload_closes_connections_verified_by_the_old_roots() {
    let identity = good();
    let go_on = Signal::default();
    let release = go_on.clone();
    let upstream = server(&identity, move |session| {
        while let Some(request) = session.request()? {
            if request.target == "/held" {
                session.note("held");
                release.wait()?;
            }
            session.write(OK)?;
        }
        Ok(())
    });
    let setup = setup(SECURE, &identity, &upstream);
    let roots = setup.dir().join("ca.pem");
    let proxy = setup.start();
    assert_eq!(proxy.get("/").status, 200);
    let mut client = proxy.client();
    client.send(get("/held"));
    upstream.await_note("held");
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(upstream.open(), 2);

    fs::write(roots, authority("a stranger").pem()).unwrap();
    proxy.signal("HUP");
    upstream.await_open(1);
    assert_eq!(
        proxy.get("/").status,
        502,
        "nothing that is idle is believed"
    );
    go_on.raise();
    assert_eq!(client.receive().text(), "ok", "what is in work is finished");
    upstream.await_open(0);
    assert_eq!(proxy.get("/").status, 502);
}

#[test]
fn insecure_skip_verify_is_warned_about_at_each_start() {
    let identity = self_signed(&names(&["elsewhere.test"]));
    let upstream = fixed(&identity, OK);
    let yaml = "routes: [{path: /, target: 'https://UP', tls: {insecure_skip_verify: true}}]\n";
    let proxy = Proxy::before(&upstream, yaml);
    let warned = |line: &str| {
        line.contains("level=warn") && line.contains("routes[0].tls: insecure_skip_verify")
    };
    proxy.await_log("the warning", warned);
    assert_eq!(proxy.get("/").status, 200);

    let upstream = fixed(&identity, OK);
    let proxy = setup(SECURE, &identity, &upstream).start();
    assert_eq!(proxy.get("/").status, 502);
    assert!(!proxy.logs().iter().any(|line| line.contains("insecure")));
}

#[test]
fn roots_that_cannot_be_used_are_found_by_the_check() {
    const AT_HOME: &str = "routes: [{path: /, target: 'https://a.test'}]\n";
    let route = |file: &str| {
        format!("routes: [{{path: /, target: 'https://a.test', tls: {{ca_file: {file}}}}}]\n")
    };
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let good = authority("ours").pem();
    let torn = &good[..good.len() / 2];
    let run = |yaml: &str, variable: (&str, &str), arguments: &[&str]| {
        let setup = Setup::new(yaml);
        for (name, content) in [
            ("good.pem", &*good),
            ("empty.pem", ""),
            ("broken.pem", broken),
            ("torn.pem", torn),
        ] {
            fs::write(setup.dir().join(name), content).unwrap();
        }
        fs::create_dir(setup.dir().join("nothing")).unwrap();
        setup.env(variable.0, variable.1).args(arguments).run()
    };
    for (yaml, variable, value, field) in [
        (&*route("DIR/none.pem"), "X", "", "routes[0].tls.ca_file: "),
        (&route("DIR"), "X", "", "routes[0].tls.ca_file: "),
        (&route("DIR/empty.pem"), "X", "", "routes[0].tls.ca_file: "),
        (&route("DIR/broken.pem"), "X", "", "routes[0].tls.ca_file: "),
        (&route("DIR/torn.pem"), "X", "", "routes[0].tls.ca_file: "),
        (&route("CONFIG"), "X", "", "routes[0].tls.ca_file: "),
        (AT_HOME, "SSL_CERT_FILE", "DIR/none.pem", "SSL_CERT_FILE: "),
        (AT_HOME, "SSL_CERT_FILE", "DIR/empty.pem", "SSL_CERT_FILE: "),
        (
            AT_HOME,
            "SSL_CERT_FILE",
            "DIR/broken.pem",
            "SSL_CERT_FILE: ",
        ),
        (AT_HOME, "SSL_CERT_DIR", "DIR/none", "SSL_CERT_DIR: "),
        (AT_HOME, "SSL_CERT_DIR", "DIR/nothing", "SSL_CERT_DIR: "),
    ] {
        for arguments in [&["--check", "CONFIG"][..], &["CONFIG"]] {
            let finished = run(yaml, (variable, value), arguments);
            let case = format!("{arguments:?} {yaml} {variable}={value}: {finished:?}");
            assert_eq!(finished.code, Some(1), "{case}");
            assert!(finished.err.contains(field), "{case}");
            assert_eq!(finished.err.lines().count(), 1, "{case}");
        }
    }
    let http = "routes: [{path: /, target: 'http://a.test'}]\n";
    for (yaml, variable, value) in [
        (&*route("DIR/good.pem"), "SSL_CERT_FILE", "DIR/none.pem"),
        (AT_HOME, "SSL_CERT_FILE", "DIR/good.pem"),
        (http, "SSL_CERT_FILE", "DIR/none.pem"),
    ] {
        let finished = run(yaml, (variable, value), &["--check", "CONFIG"]);
        assert_eq!(finished.code, Some(0), "{yaml} {variable}: {finished:?}");
    }
}

// ---- handshakes that fail ----

/// A record of the handshake that holds a `ServerHello` of TLS 1.1.
fn old_hello() -> Vec<u8> {
    let mut hello = vec![3, 2];
    hello.extend([7; 32]);
    // no session, TLS_RSA_WITH_AES_128_CBC_SHA, no compression
    hello.extend([0, 0, 0x2f, 0]);
    let length = u8::try_from(hello.len()).unwrap();
    [&[22, 3, 2, 0, length + 4, 2, 0, 0, length], &*hello].concat()
}

#[test]
fn a_server_without_tls_1_2_or_later_is_a_bad_gateway() {
    for (case, answer) in [
        ("alert: protocol version", vec![21, 3, 1, 0, 2, 2, 70]),
        ("TLS 1.1", old_hello()),
        (
            "plain HTTP",
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec(),
        ),
        ("nothing", Vec::new()),
        ("half a record", vec![22, 3, 3, 0]),
    ] {
        let identity = good();
        let upstream = Upstream::start(move |peer| {
            peer.reader().some()?;
            peer.write(&answer)
        });
        let proxy = before(&upstream, &identity);
        let response = proxy.get("/");
        assert_eq!(response.status, 502, "{case}");
        assert_eq!(
            response.text(),
            "No secure connection to the upstream could be made.\n"
        );
        proxy.await_log(case, |line| line.contains("tls-failed: a.test: "));
        assert_eq!(upstream.connections(), 1, "{case}: it is not tried again");
    }
}

#[test]
fn the_dial_time_out_includes_the_handshake() {
    for (case, answer) in [
        ("silent", Vec::new()),
        ("half a record", vec![22, 3, 3, 0, 90]),
    ] {
        let identity = good();
        let upstream = Upstream::start(move |peer| {
            peer.reader().some()?;
            peer.write(&answer)?;
            peer.await_close()
        });
        let yaml = format!("{SECURE}transport: {{dial_timeout: 0.4, max_conns_per_host: 1}}\n");
        let proxy = setup(&yaml, &identity, &upstream).start();
        for _ in 0..2 {
            let since = Instant::now();
            assert_eq!(proxy.get("/").status, 504, "{case}");
            let took = since.elapsed();
            assert!(took > Duration::from_millis(380), "{case}: {took:?}");
            assert!(took < Duration::from_secs(8), "{case}: {took:?}");
        }
        upstream.await_open(0);
        proxy.await_log(case, |line| line.contains("dial-timed-out"));
    }
}

#[test]
fn a_handshake_is_abandoned_when_the_client_leaves() {
    let identity = good();
    let upstream = Upstream::start(|peer| {
        peer.reader().some()?;
        peer.note("greeted");
        peer.await_close()
    });
    let proxy = before(&upstream, &identity);
    let mut client = proxy.client();
    client.send(get("/"));
    upstream.await_note("greeted");
    drop(client);
    upstream.await_open(0);
}

// ---- other behaviour over TLS ----

#[test]
fn a_truncated_body_is_detected_in_every_framing() {
    const UNTIL_CLOSE: &str = "HTTP/1.1 200 OK\r\n\r\nhello";
    for (case, response, says_goodbye, whole) in [
        ("until close, cut", UNTIL_CLOSE, false, false),
        ("until close, ended", UNTIL_CLOSE, true, true),
        (
            "length, cut",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
            false,
            false,
        ),
        (
            "length, ended early",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
            true,
            false,
        ),
        (
            "length, complete",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            false,
            true,
        ),
        (
            "chunked, cut",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            false,
            false,
        ),
        (
            "chunked, ended early",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            true,
            false,
        ),
        (
            "chunked, complete",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            false,
            true,
        ),
    ] {
        for versions in [NEW, OLD] {
            let identity = good();
            let upstream = server_in(versions, &identity, move |session| {
                session.request()?;
                session.write(response)?;
                if says_goodbye {
                    session.close_notify()?;
                }
                Ok(())
            });
            let proxy = before(&upstream, &identity);
            let mut client = proxy.client();
            client.send(get("/"));
            match client.try_receive() {
                Ok(response) => assert!(whole && response.text() == "hello", "{case}"),
                Err(broken) => assert!(
                    !whole && broken.cause.kind() != io::ErrorKind::TimedOut,
                    "{case}: {broken:?}"
                ),
            }
            let mut old = proxy.client();
            old.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
            let (bytes, end) = old.until_end();
            let has_length = response.contains("Content-Length");
            assert!(
                end == if whole { End::Clean } else { End::Reset } || has_length,
                "{case}: {end:?} after {}",
                bytes.escape_ascii()
            );
        }
    }
}

#[test]
fn events_arrive_one_by_one() {
    let identity = good();
    let go_on = Signal::default();
    let release = go_on.clone();
    let upstream = server(&identity, move |session| {
        session.request()?;
        session.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for i in 0..5 {
            session.write(format!("9\r\ndata: {i}\n\n\r\n"))?;
            release.wait()?;
        }
        session.write("0\r\n\r\n")
    });
    let proxy = before(&upstream, &identity);
    let mut client = proxy.client();
    client.send(get("/"));
    assert_eq!(client.head().status, 200);
    for i in 0..5 {
        let event = client.reader().chunk().unwrap().unwrap();
        assert_eq!(event, format!("data: {i}\n\n").as_bytes());
        go_on.raise();
    }
    assert_eq!(client.reader().chunk().unwrap(), None);
}

#[test]
fn megabytes_pass_up_and_down() {
    const SIZE: usize = 4 << 20;
    for versions in [NEW, OLD] {
        let identity = good();
        let upstream = server_in(versions, &identity, |session| {
            while let Some(request) = session.request()? {
                let length = request.body.len();
                session.write(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
                ))?;
                session.write(&request.body)?;
            }
            Ok(())
        });
        let proxy = before(&upstream, &identity);
        let mut client = proxy.client();
        for chunked in [false, true] {
            let body = pattern(0, SIZE);
            if chunked {
                client.send(with("POST /", &["Transfer-Encoding: chunked"]));
                for piece in body.chunks(100_000) {
                    client.chunk(piece);
                }
                client.send("0\r\n\r\n");
            } else {
                client.send(with("POST /", &[&format!("Content-Length: {SIZE}")]));
                client.send(&body);
            }
            assert!(client.receive().body == body, "chunked: {chunked}");
        }
        assert_eq!(upstream.connections(), 1);
    }
}

#[test]
fn a_slow_reader_holds_the_upstream_back() {
    const SIZE: usize = 64 << 20;
    let identity = good();
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let upstream = server(&identity, move |session| {
        let request = session.request()?;
        if request.is_some_and(|request| request.target == "/warm") {
            return session.write(LAST);
        }
        session.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"))?;
        while session.write(pattern(0, 16_384)).is_ok() {
            counter.fetch_add(16_384, Ordering::Relaxed);
        }
        Ok(())
    });
    let proxy = before(&upstream, &identity);
    assert_eq!(proxy.get("/warm").status, 200);
    let weighed = proxy.own_kb();
    let mut client = proxy.client();
    client.send(get("/"));
    assert_eq!(client.head().status, 200);
    let stalled = || {
        let so_far = written.load(Ordering::Relaxed);
        let_pass(Duration::from_millis(500));
        so_far > 0 && so_far == written.load(Ordering::Relaxed)
    };
    eventually("the upstream stalls", stalled);
    let (taken, more) = (written.load(Ordering::Relaxed), proxy.own_kb() - weighed);
    assert!(taken < SIZE / 2, "{taken} bytes were taken");
    let allowed = if is_release() { 256 } else { 2048 };
    assert!(more < allowed, "a stalled download costs {more} kB");
    drop(client);
    upstream.await_open(0);
}

#[test]
fn a_stale_connection_is_replaced_once() {
    for says_goodbye in [true, false] {
        let identity = good();
        // each connection serves one request and closes at the next without an answer
        let upstream = server(&identity, move |session| {
            session.request()?;
            session.write(OK)?;
            session.request()?;
            session.note("second");
            if says_goodbye {
                session.close_notify()?;
            }
            Ok(())
        });
        let proxy = before(&upstream, &identity);
        for i in 1..4 {
            assert_eq!(proxy.get("/").status, 200, "goodbye: {says_goodbye}");
            assert_eq!(upstream.connections(), i);
        }
        let post = with("POST /", &["Content-Length: 2"]) + "ab";
        assert_eq!(proxy.ask(&post).status, 502, "a POST is not sent twice");
        assert_eq!(upstream.connections(), 3);
    }
}

#[test]
fn a_connection_that_the_upstream_closed_is_not_used_again() {
    for says_goodbye in [true, false] {
        let identity = good();
        let upstream = server(&identity, move |session| {
            session.request()?;
            session.write(OK)?;
            if says_goodbye {
                session.close_notify()?;
            }
            Ok(())
        });
        let proxy = before(&upstream, &identity);
        for i in 0..3 {
            // a GET, because the close may arrive after the next request is sent
            assert_eq!(proxy.get("/").status, 200, "goodbye: {says_goodbye}");
            upstream.await_note(&format!("left {i}"));
        }
        assert_eq!(upstream.connections(), 3);
    }
}

#[test]
fn new_keys_and_late_tickets_leave_a_connection_as_it_is() {
    let identity = good();
    let upstream = server_in(NEW, &identity, |session| {
        while session.request()?.is_some() {
            let refreshed = session.stream.0.borrow_mut().conn.refresh_traffic_keys();
            refreshed.map_err(io::Error::other)?;
            session.write(OK)?;
            // sent while the connection is idle
            let refreshed = session.stream.0.borrow_mut().conn.refresh_traffic_keys();
            refreshed.map_err(io::Error::other)?;
            session.write("")?;
        }
        Ok(())
    });
    let proxy = before(&upstream, &identity);
    for _ in 0..5 {
        assert_eq!(proxy.get("/").text(), "ok");
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn the_limit_of_connections_counts_handshakes() {
    let identity = good();
    let go_on = Signal::default();
    let release = go_on.clone();
    let upstream = server(&identity, move |session| {
        while session.request()?.is_some() {
            session.note("asked");
            release.wait()?;
            session.write(OK)?;
        }
        Ok(())
    });
    let yaml = format!("{SECURE}transport: {{max_conns_per_host: 2}}\n");
    let proxy = setup(&yaml, &identity, &upstream).start();
    let mut clients: Vec<Client> = (0..6).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(get("/"));
    }
    eventually("two are asked for", || count(&upstream, "asked") == 2);
    go_on.raise_many(6);
    all_served(&mut clients);
    assert_eq!((upstream.peak(), upstream.connections()), (2, 2));
}

#[test]
fn a_websocket_runs_over_tls() {
    const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nwelcome";
    let fields = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ];
    for versions in [NEW, OLD] {
        let identity = good();
        let upstream = server_in(versions, &identity, |session| {
            let head = session.reader.request_head()?.unwrap();
            assert_eq!(head.fields.list("upgrade"), ["websocket"]);
            session.write(SWITCHED)?;
            loop {
                let bytes = session.reader.some()?;
                if bytes.is_empty() {
                    session.note("heard the end");
                    session.write("bye")?;
                    return session.close_notify();
                }
                session.write(bytes)?;
            }
        });
        let proxy = before(&upstream, &identity);
        let mut client = proxy.client();
        client.send(with("GET /ws", &fields));
        assert_eq!(client.head().status, 101);
        assert_eq!(client.reader().exact(7).unwrap(), b"welcome");
        for size in [1, 100, 70_000, 3] {
            client.send(pattern(size, size));
            assert!(client.reader().exact(size).unwrap() == pattern(size, size));
        }
        client.half_close();
        upstream.await_note("heard the end");
        assert_eq!(client.reader().rest().unwrap(), b"bye");
    }
}

#[test]
fn an_early_refusal_of_an_upload_reaches_the_client() {
    let identity = good();
    let upstream = server(&identity, |session| {
        session.reader.request_head()?;
        session.write(
            "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno\n",
        )?;
        session.close_notify()?;
        while !session.reader.some()?.is_empty() {}
        Ok(())
    });
    let proxy = before(&upstream, &identity);
    let mut client = proxy.client();
    client.send(with("POST /", &["Content-Length: 9999999"]));
    client.send(pattern(0, 100_000));
    let response = client.receive();
    assert_eq!((response.status, response.text().as_str()), (413, "no\n"));
}

#[test]
fn an_idle_connection_over_tls_costs_little() {
    const MORE: u64 = 8;
    if !is_release() {
        return skip("memory is measured on a release build: --release, or LEAN_PROXY_BIN");
    }
    let identity = good();
    let go_on = Signal::default();
    let release = go_on.clone();
    let upstream = server(&identity, move |session| {
        while let Some(request) = session.request()? {
            if request.target == "/held" {
                session.note("held");
                release.wait()?;
            }
            session.write(OK)?;
        }
        Ok(())
    });
    let yaml = format!("{SECURE}transport: {{max_idle_conns_per_host: 20, max_idle_conns: 0}}\n");
    let proxy = setup(&yaml, &identity, &upstream).start();
    let idle = proxy.own_kb();
    let hold = |count: usize| {
        let mut clients: Vec<Client> = (0..count).map(|_| proxy.client()).collect();
        let before = self::count(&upstream, "held");
        for client in &mut clients {
            client.send(get("/held"));
        }
        eventually("all are held", || {
            self::count(&upstream, "held") == before + count
        });
        go_on.raise_many(count);
        all_served(&mut clients);
    };
    hold(1);
    let_pass(Duration::from_secs(2));
    let own = proxy.own_kb();
    let first = own.saturating_sub(idle);
    hold(1 + usize::try_from(MORE).unwrap());
    let_pass(Duration::from_secs(2));
    let each = proxy.own_kb().saturating_sub(own) / MORE;
    assert_eq!(upstream.open(), 9);
    // the code of TLS is not in the process's own memory
    assert!(first < 256, "the first costs {first} kB");
    assert!(each < 32, "each further one costs {each} kB");
}

// ---- progress ----

/// A step of a slow side; the time-outs are several times as long, and what is watched three times that.
const STEP: Duration = Duration::from_millis(200);
const STRIKES: &str = "server: {read_timeout: 1.5, write_timeout: 1.5}\n";
const WATCHED: Duration = Duration::from_millis(4_500);

/// Bytes of a body that no kernel takes in at once.
const LONG: usize = 40_000_000;

/// The slow side reads some bytes at each step, or none, until it is over.
fn sips(is_steady: bool, is_over: &AtomicBool, mut read: impl FnMut() -> bool) {
    while !is_over.load(Ordering::Relaxed) {
        let_pass(STEP);
        if is_steady && !(0..8).all(|_| read()) {
            return;
        }
    }
}

/// A long body to or from a TLS upstream, whose receiver is slow; `watch` sees the proxy meanwhile.
fn beside_slow_receiver(is_upload: bool, is_steady: bool, memory: &str, watch: fn(&Proxy, &str)) {
    let is_over = Arc::new(AtomicBool::new(false));
    let identity = good();
    let seen = Arc::clone(&is_over);
    let upstream = server(&identity, move |session| {
        session.reader.head()?;
        if is_upload {
            sips(is_steady, &seen, || session.reader.some().is_ok());
            return Ok(());
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n");
        session.write(head)?;
        let piece = pattern(0, 65_536);
        while session.write(&piece).is_ok() {}
        Ok(())
    });
    let yaml = format!(
        "{SECURE}{STRIKES}metrics: {{listen: '127.0.0.1:0'}}\nlimits: {{memory: {memory}}}\n"
    );
    let proxy = setup(&yaml, &identity, &upstream).start();
    let mut client = Client::narrow(proxy.address());
    let ends = client.writer();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut socket = client.writer();
            if is_upload {
                client.send(with("POST /", &[&format!("Content-Length: {LONG}")]));
                let _ = socket.write_all(&pattern(0, LONG));
            } else {
                client.send(get("/"));
                let mut buffer = [0; 8 * 1024];
                sips(is_steady, &is_over, || {
                    socket.read(&mut buffer).is_ok_and(|count| count > 0)
                });
            }
        });
        eventually("the client is there", || is_open(&proxy));
        watch(&proxy, if is_upload { "upload" } else { "download" });
        is_over.store(true, Ordering::Relaxed);
        ends.end();
        drop(proxy);
    });
}

fn is_open(proxy: &Proxy) -> bool {
    metric(proxy, "lean_proxy_connections_open") == 1
}

fn beside_each_slow_receiver(is_steady: bool, watch: fn(&Proxy, &str)) {
    thread::scope(|scope| {
        for memory in ["off", "10485760"] {
            for is_upload in [true, false] {
                scope.spawn(move || beside_slow_receiver(is_upload, is_steady, memory, watch));
            }
        }
    });
}

#[test]
fn a_slow_side_over_tls_that_goes_on_is_never_cut_off() {
    beside_each_slow_receiver(true, |proxy, what| {
        let_pass(WATCHED);
        assert!(is_open(proxy), "{what}: cut off");
    });
}

#[test]
fn a_side_over_tls_that_stops_is_cut_off() {
    beside_each_slow_receiver(false, |proxy, what| {
        eventually(&format!("{what}: it is cut off"), || !is_open(proxy));
    });
}
