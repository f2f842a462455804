//! TLS towards upstreams: 1.2 and 1.3, the certificate verified against the right roots, sessions resumed.
//!
//! Nothing is built before the first dial to an https target, for the roots alone cost 70 kB. [`check`] reads the same
//! files at load, so that a later dial meets no surprise.

use std::{
    cell::RefCell,
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{failure::Failure, route};

/// What TLS needs for each distinct `tls:` of the configuration; belongs to one worker and one configuration, so that a
/// reload reads changed files.
#[derive(Default)]
pub struct Connectors {
    built: RefCell<Vec<(route::Tls, TlsConnector)>>,
}

impl Connectors {
    /// Shakes hands over a fresh connection. Has no time-out of its own.
    pub async fn connect(
        &self,
        tls: &route::Tls,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let (connector, name) = self.connector(tls).map_err(Failure::TlsFailed)?;
        let handshake = connector.connect_with(name, stream, |connection| {
            connection.set_buffer_limit(Some(SEND_BUFFER));
        });
        handshake
            .await
            .map_err(|error| Failure::TlsFailed(format!("{}: {error}", tls.server_name)))
    }

    fn connector(&self, tls: &route::Tls) -> Result<(TlsConnector, ServerName<'static>), String> {
        let name = server_name(tls)?;
        let mut built = self.built.borrow_mut();
        if let Some((_, connector)) = built.iter().find(|(known, _)| known == tls) {
            return Ok((connector.clone(), name));
        }
        let connector =
            TlsConnector::from(Arc::new(client_config(tls, &Roots::from_environment())?));
        built.push((tls.clone(), connector.clone()));
        Ok((connector, name))
    }
}

/// Whether a dial with these settings can work: the name is a name or an IP literal, and the files of roots
/// (`ca_file`, else `SSL_CERT_FILE` and `SSL_CERT_DIR`) hold certificates. Asks no network.
pub fn check(tls: &route::Tls) -> Result<(), String> {
    server_name(tls)?;
    client_config(tls, &Roots::from_environment()).map(|_| ())
}

fn server_name(tls: &route::Tls) -> Result<ServerName<'static>, String> {
    let name = tls.server_name.as_str();
    ServerName::try_from(name.to_owned())
        .map_err(|_| format!("server_name: neither a host name nor an IP address: {name:?}"))
}

fn client_config(tls: &route::Tls, roots: &Roots) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    // Read even where nothing is verified: a path that is wrong now will be wrong when verification is turned on.
    let builder = match (&tls.ca_file, tls.insecure_skip_verify) {
        (Some(path), insecure) => {
            let own = certificates(path).map_err(|error| format!("ca_file: {error}"))?;
            let verifier: Arc<dyn ServerCertVerifier> = if insecure {
                Arc::new(AnyCertificate(provider))
            } else {
                Arc::new(OwnCertificates::new(own, provider)?)
            };
            builder
                .dangerous()
                .with_custom_certificate_verifier(verifier)
        }
        (None, true) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
        (None, false) => builder.with_root_certificates(roots.load()?),
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

/// Where the roots are if a route names none.
#[derive(Debug, Default)]
struct Roots {
    file: Option<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Roots {
    /// OpenSSL's variables; an empty one counts as absent.
    fn from_environment() -> Roots {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
        Roots {
            file: variable("SSL_CERT_FILE").map(PathBuf::from),
            directories: variable("SSL_CERT_DIR")
                .map(|list| env::split_paths(&list).collect())
                .unwrap_or_default(),
        }
    }

    /// The environment's roots instead of the ones compiled in, never beside them.
    fn load(&self) -> Result<RootCertStore, String> {
        if self.file.is_none() && self.directories.is_empty() {
            return Ok(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect());
        }
        let mut found = Vec::new();
        if let Some(file) = &self.file {
            found.extend(certificates(file).map_err(|error| format!("SSL_CERT_FILE: {error}"))?);
        }
        for directory in &self.directories {
            let files = fs::read_dir(directory)
                .map_err(|error| format!("SSL_CERT_DIR: {}: {error}", directory.display()))?;
            // Such a folder also holds lists of revocation and links to nowhere.
            let files = files.filter_map(|file| certificates(&file.ok()?.path()).ok());
            found.extend(files.flatten());
        }
        store(found).map_err(|error| format!("SSL_CERT_FILE and SSL_CERT_DIR: {error}"))
    }
}

/// Every certificate of a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let complaint = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let text = fs::read(path).map_err(|error| complaint(&error))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| complaint(&error))?;
    if found.is_empty() {
        return Err(complaint(&"no certificate in PEM form"));
    }
    Ok(found)
}

/// Bundles carry a few odd certificates; one good root is what it takes.
fn store(found: Vec<CertificateDer<'_>>) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let (good, _odd) = store.add_parsable_certificates(found);
    if good == 0 {
        return Err("no certificate that can be a root".to_owned());
    }
    Ok(store)
}

/// `ca_file`: what these certificates vouch for, and they themselves. `openssl req -x509` marks a self-signed
/// certificate as an authority's, which webpki refuses as a server's own; other programs take it, and so do we where it
/// is byte by byte a certificate of the file.
#[derive(Debug)]
struct OwnCertificates {
    usual: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl OwnCertificates {
    fn new(
        own: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<OwnCertificates, String> {
        let roots = store(own.clone()).map_err(|error| format!("ca_file: {error}"))?;
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| format!("ca_file: {error}"))?;
        Ok(OwnCertificates { usual, own })
    }
}

impl ServerCertVerifier for OwnCertificates {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self.usual.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verdict {
            // webpki looks at the dates before it looks at this.
            Err(error) if is_authority(&error) && self.own.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

fn is_authority(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(other)) = error else {
        return false;
    };
    // rustls has no variant of its own for it, and webpki is not among our dependencies.
    other.to_string() == "CaUsedAsEndEntity"
}

/// `insecure_skip_verify`: any certificate, whoever it names; that the other side holds its key is still proved.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Bytes that may wait inside a connection for a socket that takes none: one record.
const SEND_BUFFER: usize = 16 * 1024;
/// Tickets kept for one `tls:`; a resumed handshake costs half the time of a full one.
const SESSIONS: usize = 8;

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        net::{SocketAddr, TcpListener},
        thread::{self, JoinHandle},
    };

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd,
    };
    use rustls::{
        HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection, StreamOwned,
        SupportedProtocolVersion, pki_types::PrivateKeyDer, version,
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        runtime::Builder,
    };

    use super::*;

    /// Kind, version and SNI; `None` where the client went away.
    type Seen = Option<(HandshakeKind, ProtocolVersion, Option<String>)>;

    struct Certificate {
        pem: String,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    }

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn signed(by: &CertifiedIssuer<'_, KeyPair>, params: &CertificateParams) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, by).unwrap();
        Certificate {
            pem: by.pem(),
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }

    fn self_signed(params: &CertificateParams) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Certificate {
            pem: certificate.pem(),
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }

    fn params(name: &str) -> CertificateParams {
        CertificateParams::new(vec![name.to_owned()]).unwrap()
    }

    /// Answers `count` connections: echoes five bytes, then closes without a word. Gives what each handshake was.
    fn serve(
        certificate: &Certificate,
        versions: &'static [&'static SupportedProtocolVersion],
        count: usize,
    ) -> (SocketAddr, JoinHandle<Vec<Seen>>) {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificate.chain.clone(), certificate.key.clone_key())
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let answer = |_| {
                let (stream, _) = listener.accept().unwrap();
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(connection, stream);
                let mut buffer = [0; 5];
                stream.read_exact(&mut buffer).ok()?;
                stream.write_all(&buffer).ok()?;
                stream.flush().ok()?;
                Some((
                    stream.conn.handshake_kind()?,
                    stream.conn.protocol_version()?,
                    stream.conn.server_name().map(str::to_owned),
                ))
            };
            (0..count).map(answer).collect()
        });
        (address, server)
    }

    fn tls(name: &str, ca_file: Option<&Path>, insecure_skip_verify: bool) -> route::Tls {
        route::Tls {
            server_name: name.to_owned(),
            ca_file: ca_file.map(Path::to_owned),
            insecure_skip_verify,
        }
    }

    /// A file for the time of a test.
    struct Temporary(PathBuf);

    impl Drop for Temporary {
        fn drop(&mut self) {
            fs::remove_file(&self.0).unwrap();
        }
    }

    fn file(name: &str, content: &str) -> Temporary {
        let name = format!("lean-proxy-tls-{}-{name}.pem", std::process::id());
        let path = env::temp_dir().join(name);
        fs::write(&path, content).unwrap();
        Temporary(path)
    }

    fn exchange(
        connectors: &Connectors,
        tls: &route::Tls,
        address: SocketAddr,
    ) -> Result<(), String> {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = TcpStream::connect(address).await.unwrap();
            let connected = connectors.connect(tls, stream).await;
            let mut stream = match connected {
                Ok(stream) => stream,
                Err(Failure::TlsFailed(reason)) => return Err(reason),
                Err(other) => panic!("{other:?}"),
            };
            stream.write_all(b"hello").await.unwrap();
            let mut buffer = [0; 5];
            stream.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, b"hello");
            let end = stream.read(&mut buffer).await.unwrap_err();
            assert_eq!(
                end.kind(),
                ErrorKind::UnexpectedEof,
                "a cut is no clean end"
            );
            Ok(())
        })
    }

    #[test]
    fn certificates_are_judged() {
        let ca = authority();
        let mut expired = params("a.example");
        expired.not_before = date_time_ymd(2001, 1, 1);
        expired.not_after = date_time_ymd(2002, 1, 1);
        let mut own_authority = params("a.example");
        own_authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut old_authority = expired.clone();
        old_authority.is_ca = own_authority.is_ca;
        let stranger = file("stranger", &authority().pem());
        for (case, certificate, name, complaint) in [
            ("good", signed(&ca, &params("a.example")), "a.example", None),
            (
                "IP literal",
                signed(&ca, &params("127.0.0.1")),
                "127.0.0.1",
                None,
            ),
            (
                "self-signed and listed",
                self_signed(&params("a.example")),
                "a.example",
                None,
            ),
            (
                "own authority",
                self_signed(&own_authority),
                "a.example",
                None,
            ),
            (
                "own authority, wrong name",
                self_signed(&own_authority),
                "b.example",
                Some("not valid for name"),
            ),
            (
                "own authority, expired",
                self_signed(&old_authority),
                "a.example",
                Some("expired"),
            ),
            (
                "expired",
                signed(&ca, &expired),
                "a.example",
                Some("expired"),
            ),
            (
                "wrong name",
                signed(&ca, &params("a.example")),
                "b.example",
                Some("not valid for name"),
            ),
        ] {
            let roots = file(&case.replace(' ', "-"), &certificate.pem);
            let check = |tls: route::Tls| {
                let (address, server) = serve(&certificate, rustls::ALL_VERSIONS, 1);
                let outcome = exchange(&Connectors::default(), &tls, address);
                server.join().unwrap();
                outcome
            };
            let trusted = check(tls(name, Some(&roots.0), false));
            match complaint {
                None => assert_eq!(trusted, Ok(()), "{case}"),
                Some(complaint) => {
                    let reason = trusted.expect_err(case);
                    assert!(reason.contains(complaint), "{case}: {reason}");
                }
            }
            assert_eq!(check(tls(name, None, true)), Ok(()), "{case}, not verified");
            let built_in = check(tls(name, None, false)).expect_err(case);
            assert!(
                built_in.contains("invalid peer certificate"),
                "{case}: {built_in}"
            );
            assert!(
                check(tls(name, Some(&stranger.0), false)).is_err(),
                "{case}, other roots"
            );
        }
    }

    #[test]
    fn sessions_are_resumed_in_both_versions() {
        const NEW: &[&SupportedProtocolVersion] = &[&version::TLS13];
        const OLD: &[&SupportedProtocolVersion] = &[&version::TLS12];
        let certificate = self_signed(&params("a.example"));
        let roots = file("resumed", &certificate.pem);
        let tls = tls("a.example", Some(&roots.0), false);
        for (versions, version) in [
            (NEW, ProtocolVersion::TLSv1_3),
            (OLD, ProtocolVersion::TLSv1_2),
        ] {
            let (address, server) = serve(&certificate, versions, 3);
            let connectors = Connectors::default();
            for _ in 0..3 {
                exchange(&connectors, &tls, address).unwrap();
            }
            let name = Some("a.example".to_owned());
            let seen = |kind| Some((kind, version, name.clone()));
            assert_eq!(
                server.join().unwrap(),
                [
                    HandshakeKind::Full,
                    HandshakeKind::Resumed,
                    HandshakeKind::Resumed
                ]
                .map(seen)
            );
            assert_eq!(connectors.built.borrow().len(), 1);
        }
    }

    #[test]
    fn what_cannot_work_is_said_at_load() {
        let empty = file("empty", "");
        let broken = file(
            "broken",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        );
        let torn = file("torn", "-----BEGIN CERTIFICATE-----\nAAAA\n");
        for (tls, complaint) in [
            (tls("a.example", None, false), None),
            (tls("::1", None, true), None),
            (tls("a b", None, false), Some("server_name: neither")),
            (tls("", None, false), Some("server_name: neither")),
            (
                tls("a", Some(Path::new("/nowhere.pem")), true),
                Some("ca_file: /nowhere.pem: No such file"),
            ),
            (
                tls("a", Some(&empty.0), false),
                Some("no certificate in PEM form"),
            ),
            (
                tls("a", Some(&broken.0), false),
                Some("no certificate that can be a root"),
            ),
            (tls("a", Some(&torn.0), false), Some("ca_file: ")),
        ] {
            match (check(&tls), complaint) {
                (outcome, None) => assert_eq!(outcome, Ok(()), "{tls:?}"),
                (Err(reason), Some(complaint)) => assert!(reason.contains(complaint), "{reason}"),
                (Ok(()), Some(_)) => panic!("{tls:?} was accepted"),
            }
        }
    }

    #[test]
    fn the_environments_roots_replace_ours() {
        let roots = |file: Option<&Path>, directories: &[&Path]| Roots {
            file: file.map(Path::to_owned),
            directories: directories
                .iter()
                .map(|path| PathBuf::from(*path))
                .collect(),
        };
        assert!(roots(None, &[]).load().unwrap().len() > 100);
        let (one, two) = (file("one", &authority().pem()), authority().pem());
        assert_eq!(roots(Some(&one.0), &[]).load().unwrap().len(), 1);
        let directory = env::temp_dir().join(format!("lean-proxy-roots-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("two.pem"), two.clone() + &two).unwrap();
        fs::write(directory.join("readme"), "nothing").unwrap();
        assert_eq!(roots(None, &[&directory]).load().unwrap().len(), 2);
        assert_eq!(roots(Some(&one.0), &[&directory]).load().unwrap().len(), 3);
        fs::remove_file(directory.join("two.pem")).unwrap();
        let reason = roots(None, &[&directory]).load().unwrap_err();
        assert!(reason.contains("SSL_CERT_DIR"), "{reason}");
        fs::remove_dir_all(&directory).unwrap();
        let reason = roots(Some(Path::new("/nowhere")), &[]).load().unwrap_err();
        assert!(reason.starts_with("SSL_CERT_FILE: /nowhere: "), "{reason}");
    }
}
