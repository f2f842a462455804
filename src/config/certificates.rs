//! The trust anchors for upstreams' certificates: which files they are in, and whether these can be used.
//!
//! The files are read twice: at load to report mistakes, without keeping anything, and at the first dial to an https target
//! to use them. No other file is read.

use std::{
    env,
    ffi::OsString,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::config::wording::plain;

/// Checks that a `ca_file` holds at least one certificate that can be a root. Errors begin with the path.
pub fn check_file(path: &Path) -> Result<(), String> {
    if holds_root(path)? {
        return Ok(());
    }
    Err(complaint(path, &NO_ROOT))
}

/// The anchors of a `ca_file`. Errors begin with the path.
pub fn of_file(path: &Path) -> Result<Anchors, String> {
    certificates(path).and_then(Anchors::of)
}

/// Trust anchors (RFC 5280 §6.1.1): what a certificate must chain to, or be.
#[derive(Debug)]
pub struct Anchors {
    /// The roots that other certificates must chain to.
    pub roots: RootCertStore,
    /// Certificates from the operator's files that a server may present as its own although they are marked as an
    /// authority's. Empty for the compiled-in roots: no server holds the key of one.
    pub own: Vec<CertificateDer<'static>>,
}

impl Anchors {
    /// The compiled-in roots.
    fn built_in() -> Anchors {
        Anchors {
            roots: webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect(),
            own: Vec::new(),
        }
    }

    /// Anchors from the operator's files. Bundles contain some certificates that cannot be roots; one that can is enough.
    fn of(found: Vec<CertificateDer<'static>>) -> Result<Anchors, String> {
        let own = found.iter().filter(|it| may_name(it)).cloned().collect();
        let mut roots = RootCertStore::empty();
        let (good, _odd) = roots.add_parsable_certificates(found);
        if good == 0 {
            return Err(NO_ROOT.to_owned());
        }
        Ok(Anchors { roots, own })
    }
}

/// Whether a certificate may name a server: it contains the identifier of subjectAltName (2.5.29.17). One without it
/// matches no name (RFC 9525 §2) and is not kept: the 200 kB bundle of a Linux distribution has none.
fn may_name(certificate: &CertificateDer<'_>) -> bool {
    const SUBJECT_ALT_NAME: &[u8] = &[0x06, 3, 0x55, 0x1d, 17];
    certificate
        .windows(SUBJECT_ALT_NAME.len())
        .any(|bytes| bytes == SUBJECT_ALT_NAME)
}

/// Where the roots are for routes without `ca_file`.
#[derive(Debug, Default)]
pub struct Roots {
    file: Option<PathBuf>,
    directories: Vec<PathBuf>,
}

/// A variable, and what is wrong with the file or folder that it names.
type Flaw = (&'static str, String);

impl Roots {
    /// Reads OpenSSL's variables; an empty one counts as unset.
    pub fn of(environment: &dyn Fn(&str) -> Option<OsString>) -> Roots {
        let variable = |name| environment(name).filter(|value| !value.is_empty());
        Roots {
            file: variable("SSL_CERT_FILE").map(PathBuf::from),
            directories: variable("SSL_CERT_DIR")
                .map(|list| env::split_paths(&list).collect())
                .unwrap_or_default(),
        }
    }

    /// Checks that at least one certificate can be a root, where the environment names files. Keeps none of them in memory,
    /// because there may never be a dial.
    pub fn check(&self) -> Result<(), Flaw> {
        if self.is_built_in() {
            return Ok(());
        }
        let mut found = false;
        if let Some(file) = &self.file {
            found = holds_root(file).map_err(|error| ("SSL_CERT_FILE", error))?;
        }
        for directory in &self.directories {
            for file in fs::read_dir(directory)
                .map_err(|error| ("SSL_CERT_DIR", complaint(directory, &error)))?
            {
                found = found || file.is_ok_and(|file| holds_root(&file.path()) == Ok(true));
            }
        }
        if found {
            return Ok(());
        }
        Err((self.variable(), NO_ROOT.to_owned()))
    }

    /// The variable that a message names where there is no root at all.
    fn variable(&self) -> &'static str {
        if self.directories.is_empty() {
            "SSL_CERT_FILE"
        } else {
            "SSL_CERT_DIR"
        }
    }

    fn is_built_in(&self) -> bool {
        self.file.is_none() && self.directories.is_empty()
    }

    /// The environment's roots, which replace the compiled-in ones; those only where the environment names none.
    pub fn load(&self) -> Result<Anchors, Flaw> {
        if self.is_built_in() {
            return Ok(Anchors::built_in());
        }
        let mut found = Vec::new();
        if let Some(file) = &self.file {
            found.extend(certificates(file).map_err(|error| ("SSL_CERT_FILE", error))?);
        }
        for directory in &self.directories {
            let files = fs::read_dir(directory)
                .map_err(|error| ("SSL_CERT_DIR", complaint(directory, &error)))?;
            // such a folder also contains revocation lists and broken links
            let files = files.filter_map(|file| certificates(&file.ok()?.path()).ok());
            found.extend(files.flatten());
        }
        // and it contains each certificate two or three times: by name, by hash and in a bundle
        found.sort_unstable_by(|one, other| one.as_ref().cmp(other.as_ref()));
        found.dedup();
        Anchors::of(found).map_err(|error| (self.variable(), error))
    }
}

/// Every certificate of a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    each_certificate(path, |certificate| found.push(certificate))?;
    Ok(found)
}

/// Whether a PEM file holds a certificate that can be a root. The whole file must be well-formed.
fn holds_root(path: &Path) -> Result<bool, String> {
    let mut store = RootCertStore::empty();
    each_certificate(path, |certificate| {
        if store.is_empty() {
            // a bundle may contain certificates that cannot be roots
            drop(store.add(certificate));
        }
    })?;
    Ok(!store.is_empty())
}

/// Reads the certificates of a PEM file, at least one. Only a regular file of at most [`MAX_FILE`] bytes is read.
fn each_certificate(
    path: &Path,
    mut take: impl FnMut(CertificateDer<'static>),
) -> Result<(), String> {
    let wrong = |reason: &dyn Display| complaint(path, reason);
    let kind = fs::metadata(path).map_err(|error| wrong(&error))?;
    if kind.is_dir() {
        return Err(wrong(&"Is a directory"));
    }
    if !kind.is_file() {
        return Err(wrong(&"is not a regular file"));
    }
    if kind.len() > MAX_FILE {
        return Err(wrong(&format_args!("is larger than {MAX_FILE} bytes")));
    }
    let mut count = 0;
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))? {
        take(certificate.map_err(|error| wrong(&error))?);
        count += 1;
    }
    if count == 0 {
        return Err(wrong(&"holds no certificate in PEM form"));
    }
    Ok(())
}

fn complaint(path: &Path, reason: &dyn Display) -> String {
    format!("{}: {}", path.display(), plain(reason))
}

const NO_ROOT: &str = "holds no certificate that can be a root";
/// Bounds the bytes of a file of certificates; the largest bundles have a quarter of a megabyte.
const MAX_FILE: u64 = 4 << 20;

#[cfg(test)]
pub mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    use super::*;

    /// An authority of its own.
    pub fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A file that is removed at the end of a test.
    pub struct Temporary(pub PathBuf);

    impl Drop for Temporary {
        fn drop(&mut self) {
            fs::remove_file(&self.0).unwrap();
        }
    }

    /// A PEM file of this content.
    pub fn file(name: &str, content: &str) -> Temporary {
        let name = format!("lean-proxy-roots-{}-{name}.pem", std::process::id());
        let path = env::temp_dir().join(name);
        fs::write(&path, content).unwrap();
        Temporary(path)
    }

    #[test]
    fn files_that_cannot_be_used_are_refused_at_load() {
        let empty = file("empty", "");
        let broken = file(
            "broken",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        );
        let torn = file("torn", "-----BEGIN CERTIFICATE-----\nAAAA\n");
        let good = file("sound", &authority().pem());
        let mut bytes = b"# J\xfcrgen\n".to_vec();
        bytes.extend(fs::read(&good.0).unwrap());
        let commented = file("commented", "");
        fs::write(&commented.0, bytes).unwrap();
        assert_eq!(check_file(&good.0), Ok(()));
        assert_eq!(check_file(&commented.0), Ok(()), "a comment in Latin-1");
        for (path, complaint) in [
            (Path::new("/nowhere.pem"), "No such file or directory"),
            (Path::new("/"), "Is a directory"),
            (Path::new("/dev/zero"), "is not a regular file"),
            (&empty.0, "holds no certificate in PEM form"),
            (&broken.0, "holds no certificate that can be a root"),
            (&torn.0, ""),
        ] {
            let reason = check_file(path).unwrap_err();
            let shown = path.display();
            assert!(
                reason.starts_with(&format!("{shown}: {complaint}")),
                "{reason}"
            );
        }
    }

    #[test]
    fn the_environments_roots_replace_the_compiled_in_ones() {
        let roots = |file: Option<&Path>, directories: &[&Path]| Roots {
            file: file.map(Path::to_owned),
            directories: directories
                .iter()
                .map(|path| PathBuf::from(*path))
                .collect(),
        };
        assert!(roots(None, &[]).load().unwrap().roots.len() > 100);
        let (one, two) = (file("one", &authority().pem()), authority().pem());
        assert_eq!(roots(Some(&one.0), &[]).load().unwrap().roots.len(), 1);
        let directory = env::temp_dir().join(format!("lean-proxy-roots-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("two.pem"), two.clone() + &two).unwrap();
        fs::write(directory.join("readme"), "nothing").unwrap();
        fs::write(directory.join("3b1a8f02.0"), &two).unwrap();
        assert_eq!(roots(None, &[&directory]).load().unwrap().roots.len(), 1);
        assert_eq!(
            roots(Some(&one.0), &[&directory])
                .load()
                .unwrap()
                .roots
                .len(),
            2
        );
        fs::remove_file(directory.join("3b1a8f02.0")).unwrap();
        fs::remove_file(directory.join("two.pem")).unwrap();
        let flaw = roots(None, &[&directory]).check().unwrap_err();
        assert_eq!(flaw.0, "SSL_CERT_DIR");
        fs::remove_dir_all(&directory).unwrap();
        let flaw = roots(Some(Path::new("/nowhere")), &[]).check().unwrap_err();
        let sentence = "/nowhere: No such file or directory".to_owned();
        assert_eq!(flaw, ("SSL_CERT_FILE", sentence));
        assert_eq!(Roots::of(&|_| Some(OsString::new())).check(), Ok(()));
    }
}
