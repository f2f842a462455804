//! The rustls configuration of each listener with TLS, built when the configuration is taken over.
//!
//! Session tickets are stateless: the ticket is encrypted with keys that are kept across reloads, and nothing is stored
//! for a client. A listener that asks for client certificates issues no tickets, so that each of its connections proves
//! its certificate anew, against the authorities in force.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::{
    ServerConfig, SupportedProtocolVersion,
    crypto::ring,
    server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier},
    version,
};

use crate::{
    config::{
        Listen,
        listeners::{ListenEntry, ListenerTls, TlsVersion},
    },
    server::tls::resolver::Resolver,
};

/// The rustls configuration of each listener, by its address.
pub type Contexts = Vec<(Listen, Arc<ServerConfig>)>;

/// The ticket keys of each listener, by its address: a ticket of one listener is not valid at another.
#[derive(Default)]
pub struct TicketKeys {
    known: Vec<(Listen, Arc<dyn ProducesTickets>)>,
}

impl TicketKeys {
    fn of(&mut self, address: &Listen) -> Result<Arc<dyn ProducesTickets>> {
        if let Some((_, keys)) = self.known.iter().find(|(known, _)| known == address) {
            return Ok(Arc::clone(keys));
        }
        let keys = ring::Ticketer::new().context("making keys for tickets")?;
        self.known.push((address.clone(), Arc::clone(&keys)));
        Ok(keys)
    }
}

/// Builds the configurations of these listeners; none where none has TLS.
///
/// # Errors
/// What rustls does not accept.
pub fn build(listen: &[ListenEntry], tickets: &mut TicketKeys) -> Result<Contexts> {
    let mut contexts = Vec::new();
    for entry in listen {
        if let Some(tls) = &entry.tls {
            let context = context(entry, tls, tickets).context("preparing TLS")?;
            contexts.push((entry.address.clone(), Arc::new(context)));
        }
    }
    Ok(contexts)
}

// in a function of its own: the stack of a program without TLS would grow for it
#[inline(never)]
fn context(
    entry: &ListenEntry,
    tls: &ListenerTls,
    tickets: &mut TicketKeys,
) -> Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions(tls.min_version))?;
    let builder = match &tls.client_ca {
        Some(authority) => {
            let roots = Arc::clone(&authority.roots);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            builder.with_client_cert_verifier(verifier.build()?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(Resolver::new(&tls.certificates)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if tls.client_ca.is_some() {
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = tickets.of(&entry.address)?;
    }
    config.alpn_protocols = protocols(entry.http2);
    Ok(config)
}

fn versions(least: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
    static NEWER: [&SupportedProtocolVersion; 1] = [&version::TLS13];
    match least {
        TlsVersion::Tls12 => &BOTH,
        TlsVersion::Tls13 => &NEWER,
    }
}

/// The protocols that ALPN offers, the preferred one first (RFC 7301).
fn protocols(http2: bool) -> Vec<Vec<u8>> {
    let h2 = http2.then(|| b"h2".to_vec());
    h2.into_iter().chain([HTTP1.to_vec()]).collect()
}

/// The same configuration without HTTP/2, for a client whose HTTP/2 connection would not fit into memory.
pub fn without_http2(context: &Arc<ServerConfig>) -> Arc<ServerConfig> {
    let mut context = ServerConfig::clone(context);
    context.alpn_protocols = vec![HTTP1.to_vec()];
    Arc::new(context)
}

/// HTTP/1.1 as ALPN calls it.
const HTTP1: &[u8] = b"http/1.1";
