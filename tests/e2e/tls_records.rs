//! A TLS 1.2 client that writes records by hand, behind a handshake by rustls: what no library would send.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, ContentType, ProtocolVersion,
    SupportedCipherSuite,
    crypto::{
        CryptoProvider,
        cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage},
        ring::{self, cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 as CHACHA20},
    },
    pki_types::ServerName,
};

use crate::{
    h2::PATIENCE,
    tls_listener::{Authority, roots},
};

/// A `ClientHello` of TLS 1.2 with one suite and no extension.
pub const HELLO: &[u8] = &{
    let mut hello = [0; 45];
    hello[0] = 1; // its type, and 41 bytes
    hello[3] = 41;
    hello[4] = 3; // TLS 1.2
    hello[5] = 3;
    // a random of zeros, no session, one suite, no compression
    hello[40] = 2;
    hello[41] = 0xcc;
    hello[42] = 0xa9;
    hello[43] = 1;
    hello
};

/// What the client of [`Records`] is configured with.
pub fn config(by: &Authority) -> Arc<ClientConfig> {
    let provider = CryptoProvider {
        cipher_suites: vec![CHACHA20],
        ..ring::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots(by))
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// The client's end of a connection.
pub struct Records {
    socket: TcpStream,
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
}

impl Records {
    /// Does the handshake on this socket; `None` = the proxy ended the connection.
    pub fn begin(mut socket: TcpStream, config: &Arc<ClientConfig>) -> Option<Records> {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from("a.test").unwrap();
        let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).ok()?;
        }
        let secrets = connection.dangerous_extract_secrets().unwrap();
        let (sequence, ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets.tx else {
            panic!("another suite");
        };
        let SupportedCipherSuite::Tls12(suite) = CHACHA20 else {
            panic!("another version");
        };
        Some(Records {
            socket,
            encrypter: suite.aead_alg.encrypter(key, iv.as_ref(), &[]),
            sequence,
        })
    }

    /// Connects and does the handshake.
    pub fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Option<Records> {
        Records::begin(TcpStream::connect(address).ok()?, config)
    }

    /// How long a write may wait for the proxy.
    pub fn set_write_timeout(&mut self, time: Duration) {
        self.socket.set_write_timeout(Some(time)).unwrap();
    }

    /// Encrypts a record with this content.
    pub fn encrypt(&mut self, kind: ContentType, content: &[u8]) -> Vec<u8> {
        let message = OutboundPlainMessage {
            typ: kind,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(content),
        };
        let record = self.encrypter.encrypt(message, self.sequence).unwrap();
        self.sequence += 1;
        record.encode()
    }

    /// Writes as far as the proxy takes it; says whether it took all.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    /// The next record, still encrypted; `None` at the end.
    pub fn record(&mut self) -> Option<Vec<u8>> {
        let mut record = vec![0; 5];
        self.socket.read_exact(&mut record).ok()?;
        let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
        record.resize(5 + length, 0);
        self.socket.read_exact(&mut record[5..]).ok()?;
        Some(record)
    }

    /// Reads to the end.
    pub fn until_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // a reset is an end as well
        let _ = self.socket.read_to_end(&mut bytes);
        bytes
    }
}
