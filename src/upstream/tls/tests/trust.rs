//! Which certificates are accepted: forged keys, anchors presented by servers, names, constraints, and sessions that are
//! resumed under another policy.

use std::{ffi::OsString, fs, path::PathBuf};

use rcgen::{
    DnType, ExtendedKeyUsagePurpose, GeneralSubtree, NameConstraints, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SignatureAlgorithm,
};
use rustls::pki_types::pem::PemObject;

use super::*;

/// How anchors are configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    BuiltIn,
    CaFile,
    SslCertFile,
    SslCertDir,
}

const FILES: [Source; 3] = [Source::CaFile, Source::SslCertFile, Source::SslCertDir];

/// A folder with one file, `anchors.pem`, removed at the end of a test.
struct Folder(PathBuf);

impl Folder {
    fn of(name: &str, pem: &str) -> Folder {
        let name = format!("lean-proxy-tls-{}-{name}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("anchors.pem"), pem).unwrap();
        Folder(path)
    }

    /// A verifier with this folder's file as its anchors, configured by `source`.
    fn verifier(&self, source: Source) -> Arc<dyn ServerCertVerifier> {
        let file = self.0.join("anchors.pem");
        let variable = |name: &str| -> Option<OsString> {
            match (source, name) {
                (Source::SslCertFile, "SSL_CERT_FILE") => Some(file.clone().into()),
                (Source::SslCertDir, "SSL_CERT_DIR") => Some(self.0.clone().into()),
                _ => None,
            }
        };
        let ca_file = (source == Source::CaFile).then_some(&*file);
        verifier(&tls("unused", ca_file, false), &Roots::of(&variable)).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Empty where the certificate is accepted; otherwise the error.
fn verdict(
    verifier: &Arc<dyn ServerCertVerifier>,
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    name: &str,
) -> String {
    let name = server_name(name).unwrap();
    let now = UnixTime::now();
    match verifier.verify_server_cert(certificate, intermediates, &name, &[], now) {
        Ok(_) => String::new(),
        Err(error) => format!("{error}"),
    }
}

fn own_authority(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// A public key without a private key, as it is encoded in a certificate.
struct Shown(Vec<u8>, &'static SignatureAlgorithm);

impl PublicKeyData for Shown {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.1
    }
}

/// Keys that share bytes with an anchor's; `info` is the anchor's subjectPublicKeyInfo without the header of its sequence.
fn forged_keys(info: &[u8]) -> Vec<(&'static str, Shown)> {
    let key = |parts: &[&[u8]]| Shown(parts.concat(), &PKCS_ECDSA_P256_SHA256);
    let point = info.get(info.len() - 65..).unwrap();
    vec![
        ("the end", key(&[&[4; 40], info])),
        ("the beginning", key(&[info, &[4; 40]])),
        ("the middle", key(&[&[4; 40], info, &[4; 40]])),
        ("no more", key(&[info])),
        ("the last bytes", key(&[point])),
    ]
}

/// An RSA modulus with chosen last bytes takes seconds to make, so these bytes prove nothing. These certificates have all
/// that an attacker can copy from an anchor: its name and any part of its key.
#[test]
fn a_key_that_shares_bytes_with_an_anchor_is_refused() {
    let anchor = self_signed(&own_authority("a.example"));
    let folder = Folder::of("shares-bytes", &anchor.pem);
    let own = ParsedCertificate::try_from(&anchor.chain[0]).unwrap();
    let own = own.subject_public_key_info();
    // the header of a sequence of 89 bytes has two bytes
    let mut infos = vec![own.as_ref()[2..].to_vec()];
    infos.extend(
        webpki_roots::TLS_SERVER_ROOTS
            .iter()
            .map(|root| root.subject_public_key_info.to_vec()),
    );
    let impostor =
        CertifiedIssuer::self_signed(own_authority("x"), KeyPair::generate().unwrap()).unwrap();
    let verifiers = [Source::BuiltIn, Source::CaFile, Source::SslCertFile]
        .map(|source| (source, folder.verifier(source)));
    for info in &infos {
        for (part, key) in forged_keys(info) {
            for marked in [true, false] {
                let mut params = params("a.example");
                if marked {
                    params = own_authority("a.example");
                }
                let forged = params.signed_by(&key, &impostor).unwrap();
                for (source, verifier) in &verifiers {
                    let verdict = verdict(verifier, forged.der(), &[], "a.example");
                    let expected = if marked {
                        "CaUsedAsEndEntity"
                    } else {
                        "UnknownIssuer"
                    };
                    // the anchor of the same name is tried, and the signature is not its own
                    let is_refused = verdict.contains(expected) || verdict.contains("BadSignature");
                    assert!(is_refused, "{source:?}, {part} of a key: {verdict:?}");
                }
            }
        }
    }
}

#[test]
fn a_server_may_present_an_anchor_only_if_the_operator_listed_it() {
    let key = KeyPair::generate().unwrap();
    let anchor = own_authority("a.example").self_signed(&key).unwrap();
    let renewed = own_authority("a.example").self_signed(&key).unwrap();
    let mut expired = own_authority("a.example");
    expired.not_before = date_time_ymd(2001, 1, 1);
    expired.not_after = date_time_ymd(2002, 1, 1);
    let expired = expired.self_signed(&key).unwrap();
    let mut early = own_authority("a.example");
    early.not_before = date_time_ymd(2999, 1, 1);
    early.not_after = date_time_ymd(3000, 1, 1);
    let early = early.self_signed(&key).unwrap();
    let stranger = own_authority("a.example")
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap();
    let bytes = anchor.der().as_ref();
    let altered = |edit: fn(&mut Vec<u8>)| {
        let mut bytes = bytes.to_vec();
        edit(&mut bytes);
        CertificateDer::from(bytes)
    };
    let flipped = altered(|bytes| *bytes.last_mut().unwrap() ^= 1);
    let longer = altered(|bytes| bytes.push(0));
    let shorter = altered(|bytes| bytes.truncate(bytes.len() - 1));
    let listed = [anchor.pem(), expired.pem(), early.pem()].concat();
    let folder = Folder::of("listed", &listed);
    for source in FILES {
        let verifier = folder.verifier(source);
        for (case, certificate, name, expected) in [
            ("itself", anchor.der(), "a.example", ""),
            ("another name", anchor.der(), "b.example", "not valid for"),
            ("a name below", anchor.der(), "x.a.example", "not valid for"),
            ("an address", anchor.der(), "127.0.0.1", "not valid for"),
            ("expired", expired.der(), "a.example", "expired"),
            ("early", early.der(), "a.example", "not valid yet"),
            ("its key, not listed", renewed.der(), "a.example", "CaUsed"),
            ("its name", stranger.der(), "a.example", "CaUsed"),
            ("another signature", &flipped, "a.example", "CaUsed"),
            ("a byte more", &longer, "a.example", "BadEncoding"),
            ("a byte less", &shorter, "a.example", "BadEncoding"),
        ] {
            let verdict = verdict(&verifier, certificate, &[], name);
            let fits = verdict.is_empty() == expected.is_empty() && verdict.contains(expected);
            assert!(fits, "{source:?}, {case}: {verdict:?}");
        }
    }
    let built_in = folder.verifier(Source::BuiltIn);
    let verdict = verdict(&built_in, anchor.der(), &[], "a.example");
    assert!(verdict.contains("CaUsedAsEndEntity"), "{verdict:?}");
}

#[test]
fn a_server_may_not_present_a_root_that_is_compiled_in() {
    assert!(Roots::default().load().unwrap().own.is_empty());
    let isrg_root_x2 = file("isrg-root-x2", ISRG_ROOT_X2);
    let listed = certificates::of_file(&isrg_root_x2.0).unwrap();
    assert!(listed.own.is_empty(), "it names no server");
    let info = &listed.roots.roots[0].subject_public_key_info;
    let ours = webpki_roots::TLS_SERVER_ROOTS
        .iter()
        .find(|root| root.subject_public_key_info == *info)
        .expect("it is compiled in");
    assert_eq!(ours.subject, listed.roots.roots[0].subject);
    let folder = Folder::of("x2", ISRG_ROOT_X2);
    let bytes = CertificateDer::from_pem_slice(ISRG_ROOT_X2.as_bytes()).unwrap();
    for source in [Source::BuiltIn, Source::CaFile] {
        let verdict = verdict(&folder.verifier(source), &bytes, &[], "letsencrypt.org");
        assert!(verdict.contains("CaUsedAsEndEntity"), "{verdict:?}");
    }
}

#[test]
fn a_server_that_presents_an_anchor_must_hold_its_key() {
    let mut stolen = self_signed(&own_authority("a.example"));
    stolen.key = self_signed(&own_authority("a.example")).key;
    let roots = file("stolen", &stolen.pem);
    for version in rustls::ALL_VERSIONS {
        for tls in [
            tls("a.example", Some(&roots.0), false),
            tls("a.example", None, true),
        ] {
            let versions = std::slice::from_ref(version);
            let (address, server) = serve(&stolen, versions, 1);
            let reason = exchange(&Connectors::default(), &tls, address).unwrap_err();
            assert!(reason.contains("BadSignature"), "{version:?}: {reason}");
            assert_eq!(server.join().unwrap(), [None]);
        }
    }
}

#[test]
fn a_name_fits_as_rfc_9525_says() {
    let ca = authority();
    let folder = Folder::of("names", &ca.pem());
    let verifier = folder.verifier(Source::CaFile);
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let ip = |address: &str| SanType::IpAddress(address.parse().unwrap());
    for (presented, name, fits) in [
        (dns("a.example"), "a.example", true),
        (dns("A.Example"), "a.example", true),
        (dns("a.example"), "xa.example", false),
        (dns("a.example"), "a.example.evil", false),
        (dns("a.example.evil"), "a.example", false),
        (dns("xa.example"), "a.example", false),
        (dns("a.example\0.evil"), "a.example", false),
        (dns("*.a.example"), "x.a.example", true),
        (dns("*.a.example"), "a.example", false),
        (dns("*.a.example"), "y.x.a.example", false),
        (dns("x*.a.example"), "xy.a.example", false),
        (dns("x.*.example"), "x.a.example", false),
        (dns("*.*.example"), "x.a.example", false),
        (dns("*"), "localhost", false),
        (dns("*.com"), "x.a.com", false),
        (ip("127.0.0.1"), "127.0.0.1", true),
        (ip("127.0.0.2"), "127.0.0.1", false),
        (dns("127.0.0.1"), "127.0.0.1", false),
        (ip("::ffff:127.0.0.1"), "127.0.0.1", false),
        (ip("::1"), "::1", true),
        (ip("::1"), "0.0.0.1", false),
    ] {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let common_name = name.to_owned();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.subject_alt_names = vec![presented];
        let certificate = signed(&ca, &params);
        let verdict = verdict(&verifier, &certificate.chain[0], &[], name);
        let shown = &params.subject_alt_names;
        assert_eq!(verdict.is_empty(), fits, "{shown:?}, {name}: {verdict:?}");
    }
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, "a.example");
    let certificate = signed(&ca, &params);
    let verdict = verdict(&verifier, &certificate.chain[0], &[], "a.example");
    assert!(verdict.contains("not valid for"), "a common name is none");
}

#[test]
fn constraints_of_an_authority_are_enforced() {
    let subtree = |name: &str| vec![GeneralSubtree::DnsName(name.to_owned())];
    let constrained = |permitted, excluded| NameConstraints {
        permitted_subtrees: permitted,
        excluded_subtrees: excluded,
    };
    let any = BasicConstraints::Unconstrained;
    let within = Some(constrained(subtree("a.example"), Vec::new()));
    let without = Some(constrained(Vec::new(), subtree("b.example")));
    for (constraints, middle, server, fits) in [
        (None, IsCa::Ca(any), "x.a.example", true),
        (within.clone(), IsCa::Ca(any), "x.a.example", true),
        (within, IsCa::Ca(any), "x.b.example", false),
        (without.clone(), IsCa::Ca(any), "x.a.example", true),
        (without, IsCa::Ca(any), "x.b.example", false),
        (None, IsCa::ExplicitNoCa, "x.a.example", false),
        (None, IsCa::NoCa, "x.a.example", false),
    ] {
        let case = format!("{constraints:?} {middle:?} {server}");
        let mut root = own_authority("ours");
        root.distinguished_name.push(DnType::CommonName, "root");
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
        let mut between = CertificateParams::new(Vec::new()).unwrap();
        between
            .distinguished_name
            .push(DnType::CommonName, "between");
        (between.is_ca, between.name_constraints) = (middle, constraints);
        let between =
            CertifiedIssuer::signed_by(between, KeyPair::generate().unwrap(), &root).unwrap();
        let folder = Folder::of("constraints", &root.pem());
        let verifier = folder.verifier(Source::CaFile);
        let certificate = signed(&between, &params(server));
        let chain = [between.der().clone()];
        let verdict = verdict(&verifier, &certificate.chain[0], &chain, server);
        assert_eq!(verdict.is_empty(), fits, "{case}: {verdict:?}");
    }
}

#[test]
fn constraints_of_an_operators_root_are_enforced_and_a_clients_certificate_is_refused() {
    let mut root = own_authority("ours");
    root.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("a.example".to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let folder = Folder::of("purposes", &root.pem());
    let verifier = folder.verifier(Source::CaFile);
    let mut client = params("x.a.example");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for (params, name, expected) in [
        (params("x.a.example"), "x.a.example", ""),
        (params("b.example"), "b.example", "NameConstraintViolation"),
        (client, "x.a.example", "extended key usage"),
    ] {
        let certificate = signed(&root, &params);
        let verdict = verdict(&verifier, &certificate.chain[0], &[], name);
        let fits = verdict.is_empty() == expected.is_empty() && verdict.contains(expected);
        assert!(fits, "{name}: {verdict:?}");
    }
}

#[test]
fn a_session_is_resumed_only_under_the_policy_that_made_it() {
    let ca = authority();
    let certificate = signed(&ca, &params("a.example"));
    let roots = file("policies", &certificate.pem);
    let copy = file("policies-copy", &certificate.pem);
    let policies = [
        tls("a.example", None, true),
        tls("a.example", Some(&roots.0), false),
        tls("a.example", Some(&copy.0), false),
        tls("a.example", Some(&roots.0), true),
    ];
    for version in rustls::ALL_VERSIONS {
        let versions = std::slice::from_ref(version);
        let (address, server) = serve(&certificate, versions, 3 * policies.len());
        let connectors = Connectors::default();
        for tls in &policies {
            exchange(&connectors, tls, address).unwrap();
            exchange(&connectors, tls, address).unwrap();
        }
        // connectors built by a reload have no sessions
        let connectors = Connectors::default();
        for tls in &policies {
            exchange(&connectors, tls, address).unwrap();
        }
        let kinds: Vec<_> = server.join().unwrap();
        let kinds: Vec<_> = kinds.iter().map(|seen| seen.as_ref().unwrap().0).collect();
        let (before, after) = kinds.split_at(2 * policies.len());
        for pair in before.chunks(2) {
            assert_eq!(pair, [HandshakeKind::Full, HandshakeKind::Resumed]);
        }
        assert_eq!(after, [HandshakeKind::Full; 4]);
    }
}

/// One of the compiled-in roots, as its owner publishes it.
const ISRG_ROOT_X2: &str = "\
-----BEGIN CERTIFICATE-----
MIICGzCCAaGgAwIBAgIQQdKd0XLq7qeAwSxs6S+HUjAKBggqhkjOPQQDAzBPMQsw
CQYDVQQGEwJVUzEpMCcGA1UEChMgSW50ZXJuZXQgU2VjdXJpdHkgUmVzZWFyY2gg
R3JvdXAxFTATBgNVBAMTDElTUkcgUm9vdCBYMjAeFw0yMDA5MDQwMDAwMDBaFw00
MDA5MTcxNjAwMDBaME8xCzAJBgNVBAYTAlVTMSkwJwYDVQQKEyBJbnRlcm5ldCBT
ZWN1cml0eSBSZXNlYXJjaCBHcm91cDEVMBMGA1UEAxMMSVNSRyBSb290IFgyMHYw
EAYHKoZIzj0CAQYFK4EEACIDYgAEzZvVn4CDCuwJSvMWSj5cz3es3mcFDR0HttwW
+1qLFNvicWDEukWVEYmO6gbf9yoWHKS5xcUy4APgHoIYOIvXRdgKam7mAHf7AlF9
ItgKbppbd9/w+kHsOdx1ymgHDB/qo0IwQDAOBgNVHQ8BAf8EBAMCAQYwDwYDVR0T
AQH/BAUwAwEB/zAdBgNVHQ4EFgQUfEKWrt5LSDv6kviejM9ti6lyN5UwCgYIKoZI
zj0EAwMDaAAwZQIwe3lORlCEwkSHRhtFcP9Ymd70/aTSVaYgLXTWNLxBo1BfASdW
tL4ndQavEi51mI38AjEAi/V3bNTIZargCyzuFJ0nN6T5U6VR5CmD1/iQMVtCnwr1
/q4AaOeMSQ+2b1tbFfLn
-----END CERTIFICATE-----
";
