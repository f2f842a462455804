//! A TLS session with a client, without a socket: encrypted bytes on one side, plain bytes on the other.
//!
//! rustls's unbuffered connection does the protocol; the buffers are allocated here when bytes arrive and freed when
//! they are consumed, so that an idle session holds no buffer. Buffers are bounded: one record from the client,
//! encrypted or decrypted, and one record to it.

use std::{io::IoSlice, sync::Arc};

use rustls::{
    Error, ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic},
};

type Traffic<'a> = WriteTraffic<'a, ServerConnectionData>;

/// The session of one connection.
pub struct Session {
    connection: UnbufferedServerConnection,
    /// Bytes from the client that are not decrypted yet: records, the last of which may be incomplete.
    incoming: Vec<u8>,
    /// Bytes of `incoming` that are filled; the rest is space.
    filled: usize,
    /// Plain bytes that are not read yet, from `read` on.
    plain: Vec<u8>,
    read: usize,
    /// Encrypted bytes that are not sent yet, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
    /// Plain bytes in `outgoing` that were not reported as written yet.
    claimed: usize,
    /// The client has sent `close_notify`.
    has_ended: bool,
    /// `close_notify` was written for the client.
    has_closed: bool,
    /// All of `incoming` was examined: it is part of a record or message.
    needs_more: bool,
}

/// How far [`Session::advance`] goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Until the first plain bytes, or until more input is needed.
    Data,
    /// Until more input is needed.
    Blocked,
}

/// Bytes of a record's header (RFC 8446 §5.1).
const HEADER: usize = 5;

/// Bytes of the largest record that rustls accepts, with its header (RFC 5246 §6.2.3). An incomplete handshake message,
/// which may be spread over many records, gets no more space: real ones have 0.3 to 4 kB, and rustls would collect 64
/// kB.
const MAX_INCOMING: usize = HEADER + 16 * 1024 + 2048;

/// Bytes to read at a time while the length of a record is unknown.
const READ: usize = 4 * 1024;

/// Bytes that encryption adds to a record: a header, in TLS 1.2 a nonce of 8 bytes, in 1.3 a byte of content type, and
/// a tag of 16.
const OVERHEAD: usize = HEADER + 8 + 16;

impl Session {
    /// A session before the first byte from the client.
    ///
    /// # Errors
    /// A configuration that rustls does not accept.
    pub fn new(config: Arc<ServerConfig>) -> Result<Session, Error> {
        Ok(Session {
            connection: UnbufferedServerConnection::new(config)?,
            incoming: Vec::new(),
            filled: 0,
            plain: Vec::new(),
            read: 0,
            outgoing: Vec::new(),
            sent: 0,
            claimed: 0,
            has_ended: false,
            has_closed: false,
            needs_more: false,
        })
    }

    /// Whether the handshake is still going on.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// The protocol that ALPN chose; `None` = none was negotiated.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.connection.alpn_protocol()
    }

    /// The client's own certificate, which was verified; `None` = the client was not asked for one.
    pub fn client_certificate(&self) -> Option<&[u8]> {
        let chain = self.connection.peer_certificates()?;
        chain.first().map(AsRef::as_ref)
    }

    /// Whether the client has sent `close_notify`.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// How many plain bytes can be read at once.
    pub fn readable(&self) -> usize {
        self.plain.len() - self.read
    }

    /// Whether a complete record is here that was not decrypted.
    pub fn has_record(&self) -> bool {
        !self.needs_more && self.record_end().is_some_and(|end| end <= self.filled)
    }

    /// Bytes of buffers that are held for data of the client.
    pub fn held(&self) -> usize {
        self.incoming.capacity() + self.plain.capacity()
    }

    /// The end of the first record in `incoming`; `None` = its header is incomplete.
    fn record_end(&self) -> Option<usize> {
        match self.incoming.get(..self.filled)? {
            [_, _, _, high, low, ..] => {
                Some(HEADER + usize::from(u16::from_be_bytes([*high, *low])))
            }
            _ => None,
        }
    }

    /// The space for bytes from the client; [`Session::fill`] follows. `None` = no more is accepted: the handshake
    /// message is too large.
    pub fn space(&mut self) -> Option<&mut [u8]> {
        let end = match self.record_end() {
            Some(end) if end > self.filled => end,
            _ => self.filled + READ,
        };
        let end = end.min(MAX_INCOMING);
        if end <= self.filled {
            return None;
        }
        if self.incoming.len() < end {
            self.incoming.reserve_exact(end - self.incoming.len());
            self.incoming.resize(end, 0);
        }
        self.incoming.get_mut(self.filled..end)
    }

    /// Records that this many bytes were put into [`Session::space`].
    pub fn fill(&mut self, count: usize) {
        self.filled = (self.filled + count).min(self.incoming.len());
        self.needs_more = false;
    }

    /// Frees unused space.
    pub fn shrink(&mut self) {
        if self.filled == 0 {
            self.incoming = Vec::new();
        } else {
            self.incoming.truncate(self.filled);
            self.incoming.shrink_to_fit();
        }
    }

    /// Decrypts what has arrived, as far as `until` says. The protocol's answers to it are in [`Session::pending`].
    ///
    /// # Errors
    /// The client violates the protocol, or the two sides have nothing in common; an alert for it is pending.
    pub fn advance(&mut self, until: Until) -> Result<(), Error> {
        loop {
            let input = self.incoming.get_mut(..self.filled).unwrap_or_default();
            let UnbufferedStatus { mut discard, state } =
                self.connection.process_tls_records(input);
            let is_done = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        self.plain.extend_from_slice(record.payload);
                    }
                    until == Until::Data && self.plain.len() > self.read
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.outgoing, |space| match data.encode(space) {
                        Ok(count) => Ok(count),
                        Err(EncodeError::InsufficientSize(error)) => Err(error.required_size),
                        Err(EncodeError::AlreadyEncoded) => Ok(0),
                    });
                    false
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    false
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.has_ended = true;
                    false
                }
                Ok(_) => {
                    self.needs_more = true;
                    true
                }
                Err(error) => {
                    self.drop_front(discard);
                    self.collect_alert();
                    return Err(error);
                }
            };
            self.drop_front(discard);
            if is_done {
                return Ok(());
            }
        }
    }

    /// After an error: collects the alert for the client.
    fn collect_alert(&mut self) {
        let input = self.incoming.get_mut(..self.filled).unwrap_or_default();
        let status = self.connection.process_tls_records(input);
        if let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state {
            encode(&mut self.outgoing, |space| match data.encode(space) {
                Err(EncodeError::InsufficientSize(error)) => Err(error.required_size),
                result => Ok(result.unwrap_or(0)),
            });
        }
    }

    fn drop_front(&mut self, count: usize) {
        self.incoming.copy_within(count..self.filled, 0);
        self.filled -= count;
    }

    /// Copies plain bytes out.
    pub fn take(&mut self, space: &mut [u8]) -> usize {
        let count = self.readable().min(space.len());
        let bytes = self.plain.get(self.read..self.read + count);
        if let (Some(bytes), Some(space)) = (bytes, space.get_mut(..count)) {
            space.copy_from_slice(bytes);
        }
        self.read += count;
        if self.readable() == 0 {
            (self.plain, self.read) = (Vec::new(), 0);
        }
        count
    }

    /// Encrypts up to `most` of these plain bytes into one record. They count as written when [`Session::pending`] is
    /// empty: see [`Session::written`].
    ///
    /// # Errors
    /// The session is over, or its keys are exhausted.
    pub fn encrypt(&mut self, pieces: &[IoSlice<'_>], most: usize) -> Result<(), Error> {
        let gathered;
        let bytes: &[u8] = if let [piece] = pieces {
            piece
        } else {
            gathered = gather(pieces, most);
            &gathered
        };
        let bytes = bytes.get(..most).unwrap_or(bytes);
        self.outgoing.reserve_exact(bytes.len() + OVERHEAD);
        self.write(|traffic, space| traffic.encrypt(bytes, space))?;
        self.claimed = bytes.len();
        Ok(())
    }

    /// Lets rustls append to `outgoing`.
    fn write(
        &mut self,
        mut write: impl FnMut(&mut Traffic<'_>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), Error> {
        // decrypt first what has arrived, because it may change the keys of both directions
        self.advance(Until::Blocked)?;
        let input = self.incoming.get_mut(..self.filled).unwrap_or_default();
        let UnbufferedStatus { discard, state } = self.connection.process_tls_records(input);
        let ConnectionState::WriteTraffic(mut traffic) = state? else {
            return Err(Error::General("the session takes no more bytes".to_owned()));
        };
        let mut result = Ok(());
        encode(&mut self.outgoing, |space| {
            match write(&mut traffic, space) {
                Ok(count) => Ok(count),
                Err(EncryptError::InsufficientSize(error)) => Err(error.required_size),
                Err(EncryptError::EncryptExhausted) => {
                    result = Err(Error::EncryptError);
                    Ok(0)
                }
            }
        });
        self.drop_front(discard);
        result
    }

    /// How many plain bytes were encrypted and not reported; this call reports them.
    pub fn written(&mut self) -> usize {
        std::mem::take(&mut self.claimed)
    }

    /// Whether encrypted plain bytes are not reported yet.
    pub fn is_claimed(&self) -> bool {
        self.claimed > 0
    }

    /// Appends `close_notify`, once.
    pub fn close(&mut self) {
        if !std::mem::replace(&mut self.has_closed, true) {
            // an error means that the session is over
            drop(self.write(close_notify));
        }
    }

    /// The encrypted bytes to send.
    pub fn pending(&self) -> &[u8] {
        self.outgoing.get(self.sent..).unwrap_or_default()
    }

    /// Records that this many of them were sent.
    pub fn sent(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= self.outgoing.len() {
            (self.outgoing, self.sent) = (Vec::new(), 0);
        }
    }
}

fn close_notify(traffic: &mut Traffic<'_>, space: &mut [u8]) -> Result<usize, EncryptError> {
    traffic.queue_close_notify(space)
}

/// Appends what `write` puts into the space that it is given; its `Err` is the number of bytes that it needs.
fn encode(out: &mut Vec<u8>, mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>) {
    let start = out.len();
    out.resize(out.capacity(), 0);
    loop {
        match write(out.get_mut(start..).unwrap_or_default()) {
            Ok(count) => return out.truncate(start + count),
            Err(needed) => {
                out.truncate(start);
                out.reserve_exact(needed);
                out.resize(start + needed, 0);
            }
        }
    }
}

/// The first `most` bytes of these pieces, joined.
fn gather(pieces: &[IoSlice<'_>], most: usize) -> Vec<u8> {
    let all: usize = pieces.iter().map(|piece| piece.len()).sum();
    let mut bytes = Vec::with_capacity(all.min(most));
    for piece in pieces {
        let left = most - bytes.len();
        bytes.extend_from_slice(piece.get(..left).unwrap_or(piece));
    }
    bytes
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

#[cfg(test)]
pub mod tests {
    use std::io::{Read as _, Write as _};

    use rcgen::{Certificate, CertificateParams, KeyPair};
    use rustls::{
        ClientConfig, ClientConnection, RootCertStore,
        crypto::ring,
        pki_types::{PrivateKeyDer, ServerName},
    };

    use super::*;

    /// A client and a session that have not exchanged a byte.
    fn both() -> (ClientConnection, Session) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = server_config(&certificate, &key);
        let name = ServerName::try_from("a.test").unwrap();
        let client = ClientConnection::new(Arc::new(client), name).unwrap();
        (client, Session::new(server).unwrap())
    }

    /// What a server is configured with, with a certificate of its own.
    pub fn config() -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        server_config(&certificate, &key)
    }

    fn server_config(certificate: &Certificate, key: &KeyPair) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            );
        Arc::new(config.unwrap())
    }

    fn feed(session: &mut Session, mut bytes: &[u8], most: usize) {
        while !bytes.is_empty() {
            let space = session.space().unwrap();
            let count = most.min(space.len()).min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            session.fill(count);
            bytes = &bytes[count..];
            session.advance(Until::Blocked).unwrap();
            session.shrink();
        }
    }

    /// Carries bytes both ways, `most` at a time towards the session, until neither side has more.
    fn carry(client: &mut ClientConnection, session: &mut Session, most: usize) {
        loop {
            let mut out = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut out).unwrap();
            }
            feed(session, &out, most);
            let pending = session.pending().to_vec();
            session.sent(pending.len());
            if out.is_empty() && pending.is_empty() {
                return;
            }
            let mut rest = pending.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
        }
    }

    fn taken(session: &mut Session) -> Vec<u8> {
        let mut bytes = vec![0; session.readable()];
        session.take(&mut bytes);
        bytes
    }

    #[test]
    fn bytes_pass_both_ways_in_pieces_of_every_size_and_nothing_is_held_afterwards() {
        for most in [1, 7, 100, usize::MAX] {
            let (mut client, mut session) = both();
            carry(&mut client, &mut session, most);
            assert!(!session.is_handshaking() && session.held() == 0, "{most}");
            client.writer().write_all(b"hello").unwrap();
            carry(&mut client, &mut session, most);
            assert_eq!(taken(&mut session), b"hello");
            assert_eq!(session.held(), 0, "{most}");
            let pieces = [IoSlice::new(b"the"), IoSlice::new(b"re")];
            session.encrypt(&pieces, 4).unwrap();
            assert!(session.is_claimed());
            carry(&mut client, &mut session, most);
            assert_eq!(session.written(), 4, "at most so many in one record");
            let mut heard = [0; 4];
            client.reader().read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"ther");
        }
    }

    #[test]
    fn a_part_of_a_record_keeps_its_bytes_alone() {
        let (mut client, mut session) = both();
        carry(&mut client, &mut session, usize::MAX);
        client.writer().write_all(&[b'x'; 10_000]).unwrap();
        let mut record = Vec::new();
        client.write_tls(&mut record).unwrap();
        feed(&mut session, &record[..700], usize::MAX);
        assert!(!session.has_record() && session.readable() == 0);
        assert!((700..800).contains(&session.held()), "{}", session.held());
        feed(&mut session, &record[700..], usize::MAX);
        assert_eq!(taken(&mut session).len(), 10_000);
        assert_eq!(session.held(), 0);
    }

    #[test]
    fn an_end_is_told_apart_from_a_cut() {
        let (mut client, mut session) = both();
        carry(&mut client, &mut session, usize::MAX);
        assert!(!session.has_ended());
        client.send_close_notify();
        carry(&mut client, &mut session, usize::MAX);
        assert!(session.has_ended());
        // the other half still works
        session.encrypt(&[IoSlice::new(b"bye")], 100).unwrap();
        session.close();
        session.close();
        carry(&mut client, &mut session, usize::MAX);
        let mut heard = Vec::new();
        client.reader().read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"bye");
    }

    #[test]
    fn a_message_that_does_not_end_has_no_more_space_than_a_record() {
        let (_, mut session) = both();
        let mut record = vec![22, 3, 1, 0x3e, 0x80, 1, 0, 0xea, 0x60];
        record.resize(HEADER + 16_000, 0);
        feed(&mut session, &record, usize::MAX);
        assert!(!session.has_record(), "all of it was examined");
        let mut more = 0;
        while let Some(space) = session.space() {
            more += space.len();
            let count = space.len();
            session.fill(count);
        }
        assert!(record.len() + more <= MAX_INCOMING);
    }

    #[test]
    fn one_record_is_encrypted_at_a_time_and_nothing_is_held_once_it_is_sent() {
        let (mut client, mut session) = both();
        carry(&mut client, &mut session, usize::MAX);
        let long = [b'x'; 9_000];
        let (one, three) = ([IoSlice::new(&long)], [IoSlice::new(&long[..3_000]); 3]);
        for pieces in [&one[..], &three[..]] {
            session.encrypt(pieces, 4_096).unwrap();
            assert!(session.pending().len() <= 4_096 + OVERHEAD);
            assert_eq!(session.written(), 4_096);
            carry(&mut client, &mut session, usize::MAX);
            assert_eq!(session.outgoing.capacity(), 0);
        }
        session.close();
        let alert = session.pending().len();
        session.close();
        assert_eq!(session.pending().len(), alert, "once");
    }
}
