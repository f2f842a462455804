//! Reads certificates again whose files change while the program runs, without a reload.
//!
//! A certificate and its key are two files, and the program that renews them writes one after the other. So the new
//! pair is used only when both fit; until then the old pair stays, and one warning says why.

use std::{sync::Arc, time::SystemTime};

use anyhow::{Context as _, Result};

use crate::{
    config::{
        Config, ListenEntry,
        listeners::{Certificate, ClientCa, ListenerTls, Stamp},
    },
    observe::log,
    server::tls::contexts::{self, Contexts, TicketKeys},
};

/// The listeners with TLS, each with the state of its files when they were last read.
#[derive(Default)]
pub struct Renewal {
    listeners: Vec<ListenEntry>,
    /// The state of files that could not be used, so that each is logged once.
    told: Vec<(String, [Option<Stamp>; 2])>,
}

impl Renewal {
    /// For the listeners of a configuration that was just loaded.
    pub fn of(config: &Config) -> Renewal {
        let entries = config.listen.iter();
        Renewal {
            listeners: entries
                .filter(|entry| entry.tls.is_some())
                .cloned()
                .collect(),
            told: Vec::new(),
        }
    }

    /// Whether no listener has TLS.
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }

    /// Checks every file, and reads those that have changed. `None` = nothing is new.
    ///
    /// # Errors
    /// What rustls does not accept.
    pub fn look(&mut self, tickets: &mut TicketKeys) -> Result<Option<Contexts>> {
        let mut is_new = false;
        for entry in &mut self.listeners {
            let Some(tls) = &entry.tls else { continue };
            if let Some(renewed) = renewed(tls, &mut self.told) {
                entry.tls = Some(Arc::new(renewed));
                is_new = true;
            }
        }
        if !is_new {
            return Ok(None);
        }
        let contexts = contexts::build(&self.listeners, tickets);
        contexts.map(Some).context("renewing certificates")
    }
}

/// A listener's certificates, those that have changed read again; `None` = none has changed.
#[inline(never)]
fn renewed(tls: &ListenerTls, told: &mut Vec<(String, [Option<Stamp>; 2])>) -> Option<ListenerTls> {
    let mut fresh = tls.clone();
    let mut is_new = false;
    for certificate in &mut fresh.certificates {
        let stamps = certificate.files.stamps();
        if stamps == certificate.stamps {
            continue;
        }
        let field = certificate.field.clone();
        match Certificate::load(&certificate.files, field.clone()) {
            Ok(loaded) => {
                log::info("certificate renewed", &[("field", &field)]);
                if let Some(complaint) = loaded.complaint(SystemTime::now()) {
                    log::warn("config", &[("warning", &complaint)]);
                }
                *certificate = loaded;
                is_new = true;
            }
            Err(flaw) => tell(told, field, stamps, &flaw.to_string()),
        }
    }
    if let Some(authority) = &mut fresh.client_ca {
        let stamps = [Stamp::of(&authority.file), None];
        if stamps[0] != authority.stamp {
            let field = authority.file.display().to_string();
            match ClientCa::load(authority.file.clone()) {
                Ok(loaded) => {
                    log::info("client_ca_file renewed", &[("file", &field)]);
                    *authority = loaded;
                    is_new = true;
                }
                Err(sentence) => tell(told, field, stamps, &sentence),
            }
        }
    }
    is_new.then_some(fresh)
}

/// Logs a warning, once for each state of the files.
fn tell(
    told: &mut Vec<(String, [Option<Stamp>; 2])>,
    field: String,
    stamps: [Option<Stamp>; 2],
    error: &str,
) {
    let state = (field, stamps);
    if told.contains(&state) {
        return;
    }
    log::warn(
        "not renewed, the old certificate stays",
        &[("field", &state.0), ("error", &error)],
    );
    told.retain(|(field, _)| *field != state.0);
    told.push(state);
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::config::{certificates::tests::file, tests::good};

    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// As an ACME client does: renames another file onto it.
    fn replace(path: &Path, text: &str) {
        let beside = path.with_extension("new");
        fs::write(&beside, text).unwrap();
        fs::rename(&beside, path).unwrap();
    }

    #[test]
    fn a_changed_pair_is_read_again_once_both_fit() {
        let (old, new) = (pair(), pair());
        let cert = file("renewal-cert", &old.0);
        let key = file("renewal-key", &old.1);
        let config = good(&format!(
            "listen: {{address: \":0\", tls: {{certificates: [{{cert_file: {}, key_file: {}}}]}}}}\nroutes: [{{path: /, respond: {{}}}}]\n",
            cert.0.display(),
            key.0.display()
        ));
        let mut tickets = TicketKeys::default();
        let mut renewal = Renewal::of(&config);
        assert!(
            renewal.look(&mut tickets).unwrap().is_none(),
            "nothing changed"
        );
        replace(&cert.0, &new.0);
        for _ in 0..2 {
            assert!(renewal.look(&mut tickets).unwrap().is_none(), "half of it");
            assert_eq!(renewal.told.len(), 1);
        }
        replace(&key.0, &new.1);
        let contexts = renewal.look(&mut tickets).unwrap().unwrap();
        assert_eq!(contexts.len(), 1);
        assert!(renewal.look(&mut tickets).unwrap().is_none(), "once");
        replace(&key.0, &new.1);
        assert!(renewal.look(&mut tickets).unwrap().is_some(), "a key alone");
        for text in ["", "no key"] {
            replace(&key.0, text);
            assert!(renewal.look(&mut tickets).unwrap().is_none());
            assert_eq!(renewal.told.len(), 1, "the last state of each");
        }
    }

    #[test]
    fn a_changed_authority_of_clients_is_read_again() {
        let (pair, other) = (pair(), pair());
        let cert = file("renewal-served", &pair.0);
        let key = file("renewal-served-key", &pair.1);
        let authority = file("renewal-authority", &pair.0);
        let config = good(&format!(
            "listen: {{address: \":0\", tls: {{client_ca_file: {}, certificates: [{{cert_file: {}, key_file: {}}}]}}}}\nroutes: [{{path: /, respond: {{}}}}]\n",
            authority.0.display(),
            cert.0.display(),
            key.0.display()
        ));
        let mut tickets = TicketKeys::default();
        let mut renewal = Renewal::of(&config);
        assert!(renewal.look(&mut tickets).unwrap().is_none());
        replace(&authority.0, &other.0);
        assert!(renewal.look(&mut tickets).unwrap().is_some());
        assert!(renewal.look(&mut tickets).unwrap().is_none(), "once");
        replace(&authority.0, "no certificate");
        assert!(renewal.look(&mut tickets).unwrap().is_none());
        assert_eq!(renewal.told.len(), 1);
    }
}
