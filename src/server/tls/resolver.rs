//! Chooses the certificate for a client: by the name that it asks for, and by what it can verify.

use std::{fmt, sync::Arc};

use rustls::{
    SignatureScheme,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::config::listeners::Certificate;

/// The certificates of a listener, in the order of the configuration.
pub struct Resolver {
    entries: Vec<Entry>,
}

struct Entry {
    names: Vec<String>,
    key: Arc<CertifiedKey>,
}

impl Resolver {
    /// For the certificates of a configuration.
    pub fn new(certificates: &[Certificate]) -> Resolver {
        let entry = |certificate: &Certificate| Entry {
            names: certificate.names.clone(),
            key: Arc::clone(&certificate.key),
        };
        Resolver {
            entries: certificates.iter().map(entry).collect(),
        }
    }

    /// An exact name comes before a wildcard, and a wildcard before the first certificate. Of several that match alike,
    /// the first one that the client can verify is chosen: so a name may have an ECDSA and an RSA certificate.
    fn choose(
        &self,
        name: Option<&str>,
        schemes: &[SignatureScheme],
    ) -> Option<&Arc<CertifiedKey>> {
        let name = name.map(str::to_ascii_lowercase).unwrap_or_default();
        let parent = name.split_once('.').map(|(_, parent)| parent);
        let is_exact = |entry: &&Entry| entry.names.contains(&name);
        let is_below = |entry: &&Entry| {
            entry.names.iter().any(|other| {
                let wildcard = other.strip_prefix("*.");
                wildcard.is_some() && wildcard == parent
            })
        };
        let exact = self.entries.iter().filter(is_exact);
        let below = self.entries.iter().filter(is_below);
        let named: Vec<&Entry> = exact.chain(below).chain(&self.entries).collect();
        let is_usable = |entry: &&&Entry| entry.key.key.choose_scheme(schemes).is_some();
        let chosen = named.iter().find(is_usable).or(named.first())?;
        Some(&chosen.key)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
            .map(Arc::clone)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
    use rustls::{crypto::ring::sign::any_supported_type, pki_types::PrivateKeyDer};

    use super::*;

    const BOTH: &[SignatureScheme] = &[
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::ED25519,
    ];

    fn entry(names: &[&str], kind: &'static rcgen::SignatureAlgorithm) -> Entry {
        let key = KeyPair::generate_for(kind).unwrap();
        let params = CertificateParams::new(Vec::new()).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Entry {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            key: Arc::new(CertifiedKey::new(
                vec![certificate.der().clone()],
                any_supported_type(&der).unwrap(),
            )),
        }
    }

    fn chosen(resolver: &Resolver, name: Option<&str>, schemes: &[SignatureScheme]) -> usize {
        let key = resolver.choose(name, schemes).unwrap();
        let mut entries = resolver.entries.iter();
        entries
            .position(|entry| Arc::ptr_eq(&entry.key, key))
            .unwrap()
    }

    #[test]
    fn an_exact_name_wins_then_a_wildcard_then_the_first() {
        let resolver = Resolver {
            entries: vec![
                entry(&["first.example"], &PKCS_ECDSA_P256_SHA256),
                entry(&["*.b.example"], &PKCS_ECDSA_P256_SHA256),
                entry(&["a.b.example", "b.example"], &PKCS_ECDSA_P256_SHA256),
            ],
        };
        for (name, expected) in [
            (Some("a.b.example"), 2),
            (Some("A.B.Example"), 2),
            (Some("c.b.example"), 1),
            (Some("b.example"), 2),
            (Some("x.c.b.example"), 0),
            (Some("other.example"), 0),
            (Some("example"), 0),
            (None, 0),
        ] {
            assert_eq!(chosen(&resolver, name, BOTH), expected, "{name:?}");
        }
    }

    #[test]
    fn of_certificates_that_fit_alike_the_first_is_shown_that_the_client_can_verify() {
        let resolver = Resolver {
            entries: vec![
                entry(&["a.example"], &PKCS_ED25519),
                entry(&["a.example"], &PKCS_ECDSA_P256_SHA256),
            ],
        };
        let ecdsa = &[SignatureScheme::ECDSA_NISTP256_SHA256];
        assert_eq!(chosen(&resolver, Some("a.example"), BOTH), 0);
        assert_eq!(chosen(&resolver, Some("a.example"), ecdsa), 1);
        let rsa = &[SignatureScheme::RSA_PSS_SHA256];
        assert_eq!(chosen(&resolver, Some("a.example"), rsa), 0, "none fits");
    }
}
