//! The entries of `listen:`: the addresses that the proxy listens on, and the certificates of those with TLS.
//!
//! The files of certificates and keys are read here, at load and again when they have changed, so that `--check`
//! reports the same mistakes as a start. `server/tls` builds the rustls configurations from them.

use std::{
    fmt::{self, Display},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::{
    RootCertStore,
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::config::{
    address::{Listen, parse_listen},
    certificates,
    document::{Field, Section},
    wording::{plain, quote},
    x509,
};

/// One entry of `listen:`.
#[derive(Debug, Clone)]
pub struct ListenEntry {
    /// The address.
    pub address: Listen,
    /// `None` = plain HTTP.
    pub tls: Option<Arc<ListenerTls>>,
    /// Whether HTTP/2 is offered. Default true with `tls`, false without.
    pub http2: bool,
}

/// `tls:` of a listener.
#[derive(Debug, Clone)]
pub struct ListenerTls {
    /// At least one; the first is shown to clients that ask for a name that no certificate has.
    pub certificates: Vec<Certificate>,
    /// The lowest version of TLS that is accepted. Default 1.2.
    pub min_version: TlsVersion,
    /// The authorities that must have issued a client's certificate; `None` = clients are not asked for a certificate.
    pub client_ca: Option<ClientCa>,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// `client_ca_file` with its content at load.
#[derive(Debug, Clone)]
pub struct ClientCa {
    /// The file.
    pub file: PathBuf,
    /// The state of the file before it was read.
    pub stamp: Option<Stamp>,
    /// The certificates in it.
    pub roots: Arc<RootCertStore>,
}

/// The state of a file, compared to see whether the file was written or replaced. `None` in its place = the file cannot
/// be examined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// The two files of an entry of `certificates`; they may be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, the certificate of the server first.
    pub cert_file: PathBuf,
    /// The key of the first certificate.
    pub key_file: PathBuf,
}

/// A chain and its key, as they were in the files at load.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The two files.
    pub files: CertificateFiles,
    /// The entry's place in the configuration, as messages show it: `listen[0].tls.certificates[0]`.
    pub field: String,
    /// The state of the two files before they were read.
    pub stamps: [Option<Stamp>; 2],
    /// The chain with its key; the two fit.
    pub key: Arc<CertifiedKey>,
    /// The DNS names that the certificate is for, in lower case.
    pub names: Vec<String>,
    /// The first and the last second in which it is valid, in seconds since 1970.
    pub validity: (i64, i64),
}

/// The file that cannot be used, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Flaw {
    /// `cert_file` or `key_file`.
    pub key: &'static str,
    /// The message; it begins with the file's path.
    pub sentence: String,
}

impl PartialEq<Listen> for ListenEntry {
    fn eq(&self, address: &Listen) -> bool {
        self.address == *address
    }
}

impl From<Listen> for ListenEntry {
    /// A listener without TLS.
    fn from(address: Listen) -> ListenEntry {
        ListenEntry {
            address,
            tls: None,
            http2: false,
        }
    }
}

impl Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.sentence)
    }
}

impl Certificate {
    /// Reads a chain and its key, which must fit.
    ///
    /// # Errors
    /// The file that cannot be used, and why.
    pub fn load(files: &CertificateFiles, field: String) -> Result<Certificate, Flaw> {
        let (cert_file, key_file) = (&files.cert_file, &files.key_file);
        let of_cert = |reason: &dyn Display| flaw("cert_file", cert_file, reason);
        let of_key = |reason: &dyn Display| flaw("key_file", key_file, reason);
        // before the files are read: a change during the read is noticed the next time
        let stamps = files.stamps();
        let chain = chain(cert_file).map_err(|reason| of_cert(&reason))?;
        let key = private_key(key_file).map_err(|reason| of_key(&reason))?;
        let key =
            any_supported_type(&key).map_err(|_| of_key(&"holds a key of an unknown kind"))?;
        let leaf = chain
            .first()
            .and_then(|leaf| x509::Certificate::parse(leaf));
        let leaf = leaf.ok_or_else(|| of_cert(&"holds no X.509 certificate"))?;
        let (names, validity) = (leaf.names, (leaf.not_before, leaf.not_after));
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|_| {
            let shown = cert_file.display();
            of_key(&format_args!(
                "is not the key of the first certificate in {shown}"
            ))
        })?;
        Ok(Certificate {
            files: files.clone(),
            field,
            stamps,
            key: Arc::new(key),
            names,
            validity,
        })
    }

    /// Why clients refuse the certificate at this time; `None` = it is valid.
    pub fn complaint(&self, now: SystemTime) -> Option<String> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let (not_before, not_after) = self.validity;
        let file = self.files.cert_file.display();
        let days = |seconds: i64| (seconds / 86_400).max(0);
        if now > not_after {
            let ago = days(now - not_after);
            return Some(format!(
                "{}: {file}: the certificate expired {ago} days ago",
                self.field
            ));
        }
        if now < not_before {
            let left = days(not_before - now);
            return Some(format!(
                "{}: {file}: the certificate becomes valid in {left} days only",
                self.field
            ));
        }
        None
    }
}

impl CertificateFiles {
    /// The state of both files.
    pub fn stamps(&self) -> [Option<Stamp>; 2] {
        [&self.cert_file, &self.key_file].map(|path| Stamp::of(path))
    }
}

impl Stamp {
    /// The state of the file at this path.
    pub fn of(path: &Path) -> Option<Stamp> {
        let file = fs::metadata(path).ok()?;
        Some(Stamp {
            inode: file.ino(),
            bytes: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
        })
    }
}

impl ClientCa {
    /// Reads the file.
    ///
    /// # Errors
    /// The file cannot be used; the message begins with its path.
    pub fn load(file: PathBuf) -> Result<ClientCa, String> {
        let stamp = Stamp::of(&file);
        let roots = Arc::new(certificates::of_file(&file)?.roots);
        Ok(ClientCa { file, stamp, roots })
    }
}

/// The certificates of a PEM file.
fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    check_size(path)?;
    let read = |error: &dyn Display| plain(error);
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|error| read(&error))?
        .collect::<Result<_, _>>()
        .map_err(|error| read(&error))?;
    if found.is_empty() {
        return Err("holds no certificate in PEM form".to_owned());
    }
    Ok(found)
}

/// The private key of a PEM file.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    check_size(path)?;
    let text = fs::read(path).map_err(|error| plain(&error))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        let holds = |word: &[u8]| text.windows(word.len()).any(|bytes| bytes == word);
        if holds(b"ENCRYPTED") {
            "holds an encrypted key: decrypt it, and let file permissions guard it".to_owned()
        } else {
            "holds no private key in PEM form".to_owned()
        }
    })
}

/// An error unless the path is a regular file of at most [`MAX_FILE`] bytes.
fn check_size(path: &Path) -> Result<(), String> {
    let kind = fs::metadata(path).map_err(|error| plain(&error))?;
    if kind.is_dir() {
        return Err("Is a directory".to_owned());
    }
    if !kind.is_file() {
        return Err("is no plain file".to_owned());
    }
    if kind.len() > MAX_FILE {
        return Err(format!("is larger than {MAX_FILE} bytes"));
    }
    Ok(())
}

fn flaw(key: &'static str, path: &Path, reason: &dyn Display) -> Flaw {
    let sentence = format!("{}: {reason}", path.display());
    Flaw { key, sentence }
}

/// What `listen` says; never empty.
pub fn entries(field: &Field<'_>) -> Vec<ListenEntry> {
    let items = field.items();
    if items.is_empty() {
        field.complain("must name at least one address");
    }
    let mut list: Vec<ListenEntry> = Vec::with_capacity(items.len());
    for item in items {
        let Some((entry, place)) = entry(&item) else {
            continue;
        };
        let is_known = list.iter().any(|other| *other == entry.address);
        if is_known && !entry.address.is_any_port() {
            place.complain(format!(
                "{} is listed twice",
                quote(&place.text().unwrap_or_default())
            ));
        } else {
            list.push(entry);
        }
    }
    if list.is_empty() {
        // The mistake is reported, so this address is never bound; an empty list would mean that the key is absent.
        list.push(Listen::Everywhere(0).into());
    }
    list
}

/// One address, or a mapping with more keys; the second part is the field of the address.
fn entry<'a>(item: &Field<'a>) -> Option<(ListenEntry, Field<'a>)> {
    if !item.is_mapping() {
        let address = item.parsed(parse_listen)?;
        return Some((address.into(), item.clone()));
    }
    item.section(|s| {
        let place = s.get("address");
        if place.is_none() {
            s.field()
                .complain("needs an `address`, as in {address: \":443\"}");
        }
        let is_sound = s.field().error_count();
        let tls = s.get("tls").map(|field| field.section(tls));
        let is_sound = is_sound == s.field().error_count();
        let http2 = s.flag("http2", tls.is_some());
        let place = place?;
        let address = place.parsed(parse_listen)?;
        let tls = tls.filter(|_| is_sound).map(Arc::new);
        Some((
            ListenEntry {
                address,
                tls,
                http2,
            },
            place,
        ))
    })
}

// in a function of its own: the stack of a program without TLS would grow for it
#[inline(never)]
fn tls(s: &Section<'_>) -> ListenerTls {
    let items = s
        .get("certificates")
        .map_or_else(Vec::new, |field| field.items());
    if items.is_empty() {
        s.place("certificates")
            .complain("needs at least one {cert_file: …, key_file: …}");
    }
    ListenerTls {
        certificates: items.iter().filter_map(certificate).collect(),
        min_version: s
            .one_of("min_version", &VERSIONS)
            .unwrap_or(TlsVersion::Tls12),
        client_ca: client_ca(s),
    }
}

fn certificate(item: &Field<'_>) -> Option<Certificate> {
    item.section(|s| {
        let path = |key: &'static str| {
            let path = s.text(key);
            if path.is_empty() && s.get(key).is_none_or(|field| field.text().is_some()) {
                s.place(key).complain("must name a file");
            }
            PathBuf::from(path)
        };
        let files = CertificateFiles {
            cert_file: path("cert_file"),
            key_file: path("key_file"),
        };
        if files.cert_file.as_os_str().is_empty() || files.key_file.as_os_str().is_empty() {
            return None;
        }
        Certificate::load(&files, item.shown())
            .map_err(|flaw| s.place(flaw.key).complain(flaw.sentence))
            .ok()
    })
}

fn client_ca(s: &Section<'_>) -> Option<ClientCa> {
    let field = s.get("client_ca_file")?;
    let file = PathBuf::from(field.text().filter(|text| !text.is_empty())?);
    ClientCa::load(file)
        .map_err(|sentence| field.complain(sentence))
        .ok()
}

const VERSIONS: [(&str, TlsVersion); 2] = [("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)];
/// Most bytes of a file with a chain or a key. A chain of three has 6 kB and is sent in each full handshake.
const MAX_FILE: u64 = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, date_time_ymd};

    use super::*;
    use crate::config::{
        certificates::tests::{Temporary, authority, file},
        tests::{errors, good},
    };

    /// A certificate for these names with its key, in two files.
    fn pair(label: &str, names: &[&str], years: (i32, i32)) -> (Temporary, Temporary) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let kind = if label.contains("ed25519") {
            &PKCS_ED25519
        } else {
            &PKCS_ECDSA_P256_SHA256
        };
        let key = KeyPair::generate_for(kind).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (
            file(&format!("{label}-cert"), &certificate.pem()),
            file(&format!("{label}-key"), &key.serialize_pem()),
        )
    }

    fn yaml(address: &str, cert: &Path, key: &Path, more: &str) -> String {
        format!(
            "listen:\n  - {{address: \"{address}\", tls: {{certificates: [{{cert_file: {}, key_file: {}}}]{more}}}}}\nroutes: [{{path: /, target: \"http://h\"}}]\n",
            cert.display(),
            key.display()
        )
    }

    #[test]
    fn an_entry_may_be_a_mapping_with_certificates() {
        let (cert, key) = pair("entry", &["a.example", "*.b.example"], (2020, 2040));
        let config = good(&yaml(":443", &cert.0, &key.0, ""));
        let [entry] = &config.listen[..] else {
            panic!("{:?}", config.listen);
        };
        let tls = entry.tls.as_ref().unwrap();
        assert_eq!(entry.address, Listen::Everywhere(443));
        assert!(entry.http2, "the default beside tls");
        assert_eq!(tls.min_version, TlsVersion::Tls12);
        assert!(tls.client_ca.is_none());
        assert_eq!(tls.certificates[0].names, ["a.example", "*.b.example"]);
        assert_eq!(config.warnings, [""; 0]);

        let ca = file("entry-ca", &authority().pem());
        let more = format!(", min_version: 1.3, client_ca_file: {}", ca.0.display());
        let config = good(&yaml("unix:/run/tls.sock", &cert.0, &key.0, &more));
        let tls = config.listen[0].tls.as_ref().unwrap();
        assert_eq!(tls.min_version, TlsVersion::Tls13);
        assert_eq!(tls.client_ca.as_ref().unwrap().roots.len(), 1);

        let plain = "listen: {address: \":80\"}\nroutes: [{path: /, target: \"http://h\"}]\n";
        let config = good(plain);
        assert!(config.listen[0].tls.is_none() && !config.listen[0].http2);
    }

    #[test]
    fn ed25519_keys_are_taken() {
        let (cert, key) = pair("ed25519", &["a.example"], (2020, 2040));
        let config = good(&yaml(":443", &cert.0, &key.0, ""));
        assert_eq!(config.listen[0].tls.as_ref().unwrap().certificates.len(), 1);
    }

    #[test]
    fn an_expired_certificate_is_a_complaint_and_no_error() {
        let (cert, key) = pair("expired", &["a.example"], (2001, 2002));
        let config = good(&yaml(":443", &cert.0, &key.0, ""));
        let shown = cert.0.display();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(
            config.invalid_certificates(at(1_009_843_200 + 3 * 86_400 + 5)),
            [format!(
                "listen[0].tls.certificates[0]: {shown}: the certificate expired 3 days ago"
            )]
        );
        assert_eq!(config.invalid_certificates(at(1_000_000_000)), [""; 0]);
        assert_eq!(config.invalid_certificates(at(0)).len(), 1, "not valid yet");
        let tls = config.listen[0].tls.as_ref().unwrap();
        let (first, last) = tls.certificates[0].validity;
        for (second, invalid) in [(first - 1, 1), (first, 0), (last, 0), (last + 1, 1)] {
            let second = at(u64::try_from(second).unwrap());
            assert_eq!(config.invalid_certificates(second).len(), invalid);
        }
    }

    #[test]
    fn files_that_cannot_serve_are_errors_at_their_field() {
        let (cert, key) = pair("sound", &["a.example"], (2020, 2040));
        let (_other, other_key) = pair("other", &["a.example"], (2020, 2040));
        let nowhere = PathBuf::from("/nowhere.pem");
        let encrypted = file(
            "encrypted",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        );
        for (cert_file, key_file, complaint) in [
            (
                &nowhere,
                &key.0,
                "cert_file: /nowhere.pem: No such file or directory",
            ),
            (
                &cert.0,
                &nowhere,
                "key_file: /nowhere.pem: No such file or directory",
            ),
            (
                &cert.0,
                &other_key.0,
                "is not the key of the first certificate in",
            ),
            (&cert.0, &cert.0, "holds no private key in PEM form"),
            (&key.0, &key.0, "holds no certificate in PEM form"),
            (&cert.0, &encrypted.0, "holds an encrypted key"),
            (&PathBuf::from("/"), &key.0, "cert_file: /: Is a directory"),
        ] {
            let found = errors(&yaml(":443", cert_file, key_file, ""));
            assert_eq!(found.len(), 1, "{found:?}");
            let begins = found[0].starts_with("c.yaml:2: listen[0].tls.certificates[0].");
            assert!(begins && found[0].contains(complaint), "{found:?}");
        }
    }

    #[test]
    fn what_a_mapping_lacks_is_said_at_its_field() {
        let (cert, key) = pair("lack", &["a.example"], (2020, 2040));
        let (cert, key) = (cert.0.display(), key.0.display());
        for (entry, complaint) in [
            ("{tls: {}}", "listen[0]: needs an `address`"),
            (
                "{address: \":443\", tls: {}}",
                "listen[0].tls.certificates: needs at least one",
            ),
            (
                "{address: \":443\", tls: true}",
                "listen[0].tls: must be a mapping of keys, got true",
            ),
            (
                "{address: \"443\"}",
                "listen[0].address: must be an address and a port",
            ),
            (
                "{addres: \":443\"}",
                "listen[0].addres: unknown key, did you mean `address`?",
            ),
            (
                "{address: \":443\", tls: {certificates: [{cert_file: x}]}}",
                "certificates[0].key_file: must name a file",
            ),
            (
                &*format!(
                    "{{address: \":443\", tls: {{min_version: 1.1, certificates: [{{cert_file: {cert}, key_file: {key}}}]}}}}"
                ),
                "min_version: must be one of 1.2, 1.3, got \"1.1\"",
            ),
            (
                &*format!(
                    "{{address: \":443\", tls: {{client_ca_file: /nowhere, certificates: [{{cert_file: {cert}, key_file: {key}}}]}}}}"
                ),
                "client_ca_file: /nowhere: No such file",
            ),
        ] {
            let found = errors(&format!(
                "listen: [{entry}]\nroutes: [{{path: /, target: \"http://h\"}}]\n"
            ));
            assert!(
                found.iter().any(|error| error.contains(complaint)),
                "{entry}: {found:?}"
            );
        }
        let twice = errors(
            "listen: [\":80\", {address: \":80\"}]\nroutes: [{path: /, target: \"http://h\"}]\n",
        );
        assert!(
            twice[0].contains("listen[1].address: \":80\" is listed twice"),
            "{twice:?}"
        );
    }
}
