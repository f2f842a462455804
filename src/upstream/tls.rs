//! TLS to upstreams: versions 1.2 and 1.3, certificates verified against the configured roots, sessions resumed.
//!
//! Nothing is built before the first dial to an https target, because the roots alone cost 70 kB. The configuration has
//! already read the same files once (`certificates.rs`), so that mistakes in them are reported at load.

use std::{cell::RefCell, env, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    any_certificate::AnyCertificate,
    config::{
        address::server_name,
        certificates::{self, Anchors, Roots},
    },
    failure::Failure,
    net::Bounded,
    route,
};

/// A connector for each distinct `tls:` of the configuration. Belongs to one worker and one configuration, so that a reload
/// reads changed files.
#[derive(Default)]
pub struct Connectors {
    built: RefCell<Vec<Built>>,
}

struct Built {
    tls: route::Tls,
    http2: bool,
    verifier: Arc<dyn ServerCertVerifier>,
    connector: TlsConnector,
}

impl Connectors {
    /// Does the TLS handshake over a new connection, offering HTTP/2 by ALPN where `http2` is true. Has no time-out of its
    /// own.
    pub async fn connect(
        &self,
        tls: &route::Tls,
        http2: bool,
        stream: Bounded,
    ) -> Result<TlsStream<Bounded>, Failure> {
        let (connector, name) = self.connector(tls, http2).map_err(Failure::TlsFailed)?;
        let handshake = connector.connect_with(name, stream, |connection| {
            connection.set_buffer_limit(Some(SEND_BUFFER));
        });
        let stream = handshake
            .await
            .map_err(|error| Failure::TlsFailed(format!("{}: {error}", tls.server_name)))?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let bytes: usize = certificates
            .iter()
            .map(|certificate| certificate.len())
            .sum();
        if bytes > MAX_CHAIN {
            return Err(Failure::TlsFailed(format!(
                "{}: {bytes} bytes of certificates",
                tls.server_name
            )));
        }
        Ok(stream)
    }

    fn connector(
        &self,
        tls: &route::Tls,
        http2: bool,
    ) -> Result<(TlsConnector, ServerName<'static>), String> {
        let name = server_name(&tls.server_name)?;
        let mut built = self.built.borrow_mut();
        if let Some(known) = built
            .iter()
            .find(|known| known.tls == *tls && known.http2 == http2)
        {
            return Ok((known.connector.clone(), name));
        }
        // names with the same roots share one verifier
        let alike = |known: &&Built| {
            known.tls.ca_file == tls.ca_file
                && known.tls.insecure_skip_verify == tls.insecure_skip_verify
        };
        let verifier = match built.iter().find(alike) {
            Some(known) => Arc::clone(&known.verifier),
            None => verifier(tls, &Roots::of(&|name| env::var_os(name)))?,
        };
        let config = client_config(Arc::clone(&verifier), http2)?;
        let connector = TlsConnector::from(Arc::new(config));
        built.push(Built {
            tls: tls.clone(),
            http2,
            verifier,
            connector: connector.clone(),
        });
        Ok((connector, name))
    }
}

fn verifier(tls: &route::Tls, environment: &Roots) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let provider = Arc::new(ring::default_provider());
    if tls.insecure_skip_verify {
        return Ok(Arc::new(AnyCertificate(provider)));
    }
    let anchors = match &tls.ca_file {
        Some(path) => certificates::of_file(path).map_err(|error| format!("ca_file: {error}"))?,
        None => environment
            .load()
            .map_err(|(variable, sentence)| format!("{variable}: {sentence}"))?,
    };
    Ok(Arc::new(AnchorsVerifier::new(anchors, provider)?))
}

fn client_config(
    verifier: Arc<dyn ServerCertVerifier>,
    http2: bool,
) -> Result<ClientConfig, String> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let offered: &[&[u8]] = if http2 {
        &[b"h2", b"http/1.1"]
    } else {
        &[b"http/1.1"]
    };
    config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

/// Accepts certificates that chain to an anchor, and a certificate that is itself listed in the operator's files.
///
/// `openssl req -x509` marks a self-signed certificate as an authority's, and webpki refuses an authority's certificate as
/// a server's. Other programs accept it where it is listed, and so does this one, if it equals a listed certificate byte
/// by byte. Comparing its key or name alone would not do: webpki refuses it before it checks any signature, so an attacker
/// could choose both.
#[derive(Debug)]
struct AnchorsVerifier {
    usual: Arc<WebPkiServerVerifier>,
    /// [`Anchors::own`].
    own: Vec<CertificateDer<'static>>,
}

impl AnchorsVerifier {
    fn new(anchors: Anchors, provider: Arc<CryptoProvider>) -> Result<AnchorsVerifier, String> {
        let roots = Arc::new(anchors.roots);
        let usual = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(AnchorsVerifier {
            usual,
            own: anchors.own,
        })
    }
}

impl ServerCertVerifier for AnchorsVerifier {
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
            // webpki checks the dates before it checks this
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
    // rustls has no variant for it, and webpki is not a direct dependency
    other.to_string() == "CaUsedAsEndEntity"
}

/// Bytes of an upstream's certificates: rustls keeps them as long as the connection. Chains have 2 to 6 kB.
const MAX_CHAIN: usize = 16 * 1024;
/// Bounds the bytes that rustls may buffer while the socket takes none: one record.
const SEND_BUFFER: usize = 16 * 1024;
/// Session tickets kept for one `tls:`; a resumed handshake takes half the time of a full one.
const SESSIONS: usize = 8;

#[cfg(test)]
mod tests {
    mod trust;

    use std::{
        io::{ErrorKind, Read, Write},
        net::{SocketAddr, TcpListener},
        path::Path,
        thread::{self, JoinHandle},
    };

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd,
    };
    use rustls::{
        HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection, StreamOwned,
        SupportedProtocolVersion,
        crypto::ring::sign::any_supported_type,
        pki_types::PrivateKeyDer,
        sign::{CertifiedKey, SingleCertAndKey},
        version,
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        runtime::Builder,
    };

    use super::*;
    use crate::config::certificates::tests::{authority, file};

    /// Kind, version and SNI of a handshake; `None` where the client aborted it.
    type Seen = Option<(HandshakeKind, ProtocolVersion, Option<String>)>;

    struct Certificate {
        pem: String,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
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

    /// Serves `count` connections: echoes five bytes, then closes without `close_notify`. Returns each handshake.
    fn serve(
        certificate: &Certificate,
        versions: &'static [&'static SupportedProtocolVersion],
        count: usize,
    ) -> (SocketAddr, JoinHandle<Vec<Seen>>) {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(
                certificate.chain.clone(),
                // the key is not compared with the certificate's: some tests use another on purpose
                any_supported_type(&certificate.key).unwrap(),
            ))));
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

    fn exchange(
        connectors: &Connectors,
        tls: &route::Tls,
        address: SocketAddr,
    ) -> Result<(), String> {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let stream = Bounded::upstream(stream, None);
            let connected = connectors.connect(tls, false, stream).await;
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
                "an end without close_notify is an error"
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
            // where SSL_CERT_FILE names no file, the failure names the variable
            assert!(
                built_in.contains("invalid peer certificate")
                    || built_in.starts_with("SSL_CERT_FILE: "),
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
    fn names_that_are_verified_alike_share_their_roots() {
        let roots = file("shared", &authority().pem());
        let connectors = Connectors::default();
        for (name, ca_file, insecure) in [
            ("a.example", Some(&*roots.0), false),
            ("b.example", Some(&*roots.0), false),
            ("a.example", Some(&*roots.0), true),
            ("a.example", None, true),
        ] {
            connectors
                .connector(&tls(name, ca_file, insecure), false)
                .unwrap();
        }
        let built = connectors.built.borrow();
        let [a, b, c, d] = &built[..] else {
            panic!("{} were built", built.len());
        };
        assert!(Arc::ptr_eq(&a.verifier, &b.verifier));
        for other in [&c.verifier, &d.verifier] {
            assert!(!Arc::ptr_eq(&a.verifier, other));
        }
        assert!(!Arc::ptr_eq(&c.verifier, &d.verifier));
    }
}
