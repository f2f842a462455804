//! Reads the fields of a certificate that the proxy needs: subject, DNS names and validity.
//!
//! DER alone is accepted, and each length is checked. Whether a certificate is trusted is decided by webpki; this file
//! reads only certificates that were verified, and the operator's own.

use std::fmt::Write as _;

/// The fields of a certificate (RFC 5280 §4.1) that are used here.
#[derive(Debug, PartialEq, Eq)]
pub struct Certificate<'a> {
    /// The content of its subject: a sequence of relative distinguished names.
    subject: &'a [u8],
    /// The first second in which it is valid, in seconds since 1970.
    pub not_before: i64,
    /// The last second in which it is valid, in seconds since 1970.
    pub not_after: i64,
    /// The DNS names of its subjectAltName, in lower case; wildcards are kept as they are written.
    pub names: Vec<String>,
}

/// Most bytes of a subject as text. A longer one is refused: a truncated subject might be another's.
pub const MAX_SUBJECT: usize = 2048;

/// Most DNS names that are read from one certificate; authorities put at most a hundred into one.
const MAX_NAMES: usize = 1_000;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const BOOLEAN: u8 = 0x01;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, constructed: the version.
const VERSION: u8 = 0xa0;
/// `[3]`, constructed: the extensions.
const EXTENSIONS: u8 = 0xa3;
/// `[2]`, primitive: a DNS name in subjectAltName.
const DNS_NAME: u8 = 0x82;
/// 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 17];

/// The rest of a DER encoding (X.690 §10).
#[derive(Debug, Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn is_end(&self) -> bool {
        self.0.is_empty()
    }

    /// The next value: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        // tags above 30 have more bytes, and do not occur in a certificate
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = digits
                    .iter()
                    .fold(0, |length, digit| length << 8 | usize::from(*digit));
                // the length must be encoded in the fewest bytes, as DER demands
                let is_least = length > 0x7f && digits.first() != Some(&0);
                (is_least.then_some(length)?, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The next value; `None` where it has another tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next()
            .filter(|(found, _)| *found == tag)
            .map(|(_, content)| content)
    }

    /// The next value where it has this tag; otherwise it is not consumed.
    fn skip(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.0.first() == Some(&tag) {
            self.expect(tag)
        } else {
            None
        }
    }
}

impl<'a> Certificate<'a> {
    /// Reads a certificate; `None` where the bytes are not one.
    pub fn parse(der: &'a [u8]) -> Option<Certificate<'a>> {
        let mut outer = Reader(der);
        let mut certificate = Reader(outer.expect(SEQUENCE)?);
        let mut body = Reader(certificate.expect(SEQUENCE)?);
        if !outer.is_end() {
            return None;
        }
        body.skip(VERSION);
        body.expect(INTEGER)?;
        let _algorithm = body.expect(SEQUENCE)?;
        let _issuer = body.expect(SEQUENCE)?;
        let mut validity = Reader(body.expect(SEQUENCE)?);
        let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
        let subject = body.expect(SEQUENCE)?;
        let _key = body.expect(SEQUENCE)?;
        let mut names = Vec::new();
        while !body.is_end() {
            if let (EXTENSIONS, content) = body.next()? {
                names = alternative_names(content)?;
            }
        }
        Some(Certificate {
            subject,
            not_before,
            not_after,
            names,
        })
    }

    /// The subject as RFC 4514 writes it, the most specific name first: `CN=alice,O=Example`. The text is that of
    /// `openssl x509 -noout -subject -nameopt RFC2253`, except for attributes that are not in the table: these are
    /// written as a dotted number and `#` with the bytes of their value. The text is printable ASCII; other characters
    /// are escaped as `\C3\A9`. Empty where the certificate has no subject; `None` where the subject is malformed or
    /// longer than [`MAX_SUBJECT`] bytes.
    pub fn subject(&self) -> Option<String> {
        let mut sets = Vec::new();
        let mut reader = Reader(self.subject);
        while !reader.is_end() {
            sets.push(reader.expect(SET)?);
        }
        let mut text = String::new();
        for set in sets.iter().rev() {
            if !text.is_empty() {
                text.push(',');
            }
            push_relative_name(&mut text, set)?;
            if text.len() > MAX_SUBJECT {
                return None;
            }
        }
        Some(text)
    }
}

/// One relative distinguished name: usually one attribute, otherwise several joined by `+`.
fn push_relative_name(text: &mut String, set: &[u8]) -> Option<()> {
    let mut attributes = Reader(set);
    let mut is_first = true;
    while !attributes.is_end() || is_first {
        if !std::mem::take(&mut is_first) {
            text.push('+');
        }
        let mut pair = Reader(attributes.expect(SEQUENCE)?);
        let kind = pair.expect(OID)?;
        let whole = pair.0;
        let (tag, value) = pair.next()?;
        if !pair.is_end() || text.len() + value.len() > MAX_SUBJECT {
            return None;
        }
        let known = short_name(kind);
        match known {
            Some(name) => text.push_str(name),
            None => push_dotted(text, kind)?,
        }
        text.push('=');
        if let Some(value) = known.and_then(|_| string(tag, value)) {
            push_escaped(text, &value);
        } else {
            text.push('#');
            for byte in whole {
                let _ = write!(text, "{byte:02X}");
            }
        }
    }
    Some(())
}

/// The short name of an attribute (RFC 4519, and two more that OpenSSL knows and that are common in certificates).
fn short_name(oid: &[u8]) -> Option<&'static str> {
    Some(match oid {
        [0x55, 4, 3] => "CN",
        [0x55, 4, 4] => "SN",
        [0x55, 4, 5] => "serialNumber",
        [0x55, 4, 6] => "C",
        [0x55, 4, 7] => "L",
        [0x55, 4, 8] => "ST",
        [0x55, 4, 9] => "street",
        [0x55, 4, 10] => "O",
        [0x55, 4, 11] => "OU",
        [0x55, 4, 12] => "title",
        [0x55, 4, 42] => "GN",
        // 0.9.2342.19200300.100.1.1 and .25
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1] => "UID",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25] => "DC",
        // 1.2.840.113549.1.9.1
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1] => "emailAddress",
        _ => return None,
    })
}

/// An object identifier as numbers with dots between them.
fn push_dotted(text: &mut String, oid: &[u8]) -> Option<()> {
    let mut number: u64 = 0;
    let mut is_first = true;
    let mut is_amid = false;
    for byte in oid {
        number = number.checked_mul(128)? | u64::from(byte & 0x7f);
        is_amid = byte & 0x80 != 0;
        if is_amid {
            continue;
        }
        if std::mem::take(&mut is_first) {
            let root = (number / 40).min(2);
            let _ = write!(text, "{root}.{}", number - 40 * root);
        } else {
            let _ = write!(text, ".{number}");
        }
        number = 0;
    }
    (!is_first && !is_amid).then_some(())
}

/// The text of a string; `None` for other types and for malformed values.
fn string(tag: u8, value: &[u8]) -> Option<String> {
    match tag {
        // UTF8String, PrintableString, IA5String
        0x0c | 0x13 | 0x16 => str::from_utf8(value).ok().map(str::to_owned),
        // TeletexString, which certificates use for Latin-1
        0x14 => Some(value.iter().map(|byte| char::from(*byte)).collect()),
        // BMPString
        0x1e => {
            let (pairs, rest) = value.as_chunks::<2>();
            let units = pairs.iter().map(|pair| u16::from_be_bytes(*pair));
            let text: Result<String, _> = char::decode_utf16(units).collect();
            text.ok().filter(|_| rest.is_empty())
        }
        _ => None,
    }
}

/// Appends a value, escaped as RFC 4514 §2.4 demands.
fn push_escaped(text: &mut String, value: &str) {
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b'#' if at == 0 => text.push_str("\\#"),
            b' ' if at == 0 || at == last => text.push_str("\\ "),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\{byte:02X}");
            }
        }
    }
}

/// The DNS names of the subjectAltName extension.
fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut list = Reader(Reader(extensions).expect(SEQUENCE)?);
    while !list.is_end() {
        let mut extension = Reader(list.expect(SEQUENCE)?);
        let kind = extension.expect(OID)?;
        extension.skip(BOOLEAN);
        let value = extension.expect(OCTETS)?;
        if kind != SUBJECT_ALT_NAME {
            continue;
        }
        let mut found = Reader(Reader(value).expect(SEQUENCE)?);
        while !found.is_end() {
            if let (DNS_NAME, name) = found.next()?
                && names.len() < MAX_NAMES
            {
                names.push(str::from_utf8(name).ok()?.to_ascii_lowercase());
            }
        }
    }
    Some(names)
}

/// A point in time (RFC 5280 §4.1.2.5), in seconds since 1970: `YYMMDDHHMMSSZ` until 2049, then `YYYYMMDDHHMMSSZ`.
fn time(reader: &mut Reader<'_>) -> Option<i64> {
    let (tag, text) = reader.next()?;
    let text = text.strip_suffix(b"Z")?;
    let digits: Vec<i64> = text
        .iter()
        .map(|byte| byte.is_ascii_digit().then(|| i64::from(byte - b'0')))
        .collect::<Option<_>>()?;
    let (year, rest) = match (tag, digits.as_slice()) {
        (UTC_TIME, [a, b, rest @ ..]) => {
            let year = 10 * a + b;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (GENERALIZED_TIME, [a, b, c, d, rest @ ..]) => (1000 * a + 100 * b + 10 * c + d, rest),
        _ => return None,
    };
    let pairs: Vec<i64> = rest
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |sum, digit| 10 * sum + digit))
        .collect();
    let [month, day, hour, minute, second] = *pairs.as_slice() else {
        return None;
    };
    let is_time = rest.len() == 10
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    is_time.then(|| ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

/// Days from 1970-01-01 in the Gregorian calendar. Years are counted from March, so that a leap day is a year's last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year / 4 - year / 100 + year / 400 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, KeyPair,
        date_time_ymd,
    };

    use super::*;

    fn der(params: &CertificateParams) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn named(pairs: &[(DnType, DnValue)]) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in pairs {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        der(&params)
    }

    fn utf8(text: &str) -> DnValue {
        DnValue::Utf8String(text.to_owned())
    }

    #[test]
    fn names_and_dates_are_read() {
        let names = ["A.example", "*.b.example", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names.to_vec()).unwrap();
        params.not_before = date_time_ymd(2001, 2, 28);
        params.not_after = date_time_ymd(2064, 2, 29);
        let der = der(&params);
        let certificate = Certificate::parse(&der).unwrap();
        assert_eq!(certificate.names, ["a.example", "*.b.example"]);
        assert_eq!(certificate.not_before, 983_318_400);
        assert_eq!(certificate.not_after, 2_971_468_800);
    }

    #[test]
    fn a_subject_is_written_as_rfc_4514_has_it() {
        for (pairs, expected) in [
            (vec![], ""),
            (vec![(DnType::CommonName, utf8("alice"))], "CN=alice"),
            (
                vec![
                    (DnType::CountryName, utf8("DE")),
                    (DnType::OrganizationName, utf8("Example, Inc.")),
                    (DnType::CommonName, utf8(" #a=b+\"c\";<\\> ")),
                ],
                r#"CN=\ #a=b\+\"c\"\;\<\\\>\ ,O=Example\, Inc.,C=DE"#,
            ),
            (
                vec![(DnType::CommonName, utf8("#J\u{fc}rgen\r\n\u{0}"))],
                r"CN=\#J\C3\BCrgen\0D\0A\00",
            ),
            (
                vec![(
                    DnType::CommonName,
                    DnValue::BmpString("\u{e9}".try_into().unwrap()),
                )],
                r"CN=\C3\A9",
            ),
            (
                vec![(DnType::CustomDnType(vec![1, 2, 840, 5]), utf8("x"))],
                "1.2.840.5=#0C0178",
            ),
        ] {
            let der = named(&pairs);
            let subject = Certificate::parse(&der).unwrap().subject();
            assert_eq!(subject.as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_subject_that_is_too_long_is_none_and_not_cut() {
        let der = named(&[(DnType::CommonName, utf8(&"a".repeat(MAX_SUBJECT + 1)))]);
        assert_eq!(Certificate::parse(&der).unwrap().subject(), None);
        let der = named(&[(DnType::CommonName, utf8(&"\u{e9}".repeat(MAX_SUBJECT / 3)))]);
        assert_eq!(Certificate::parse(&der).unwrap().subject(), None);
    }

    #[test]
    fn several_attributes_in_one_name_are_joined() {
        let attribute = |kind: u8, value: &[u8]| {
            let mut pair = vec![
                OID,
                3,
                0x55,
                4,
                kind,
                0x0c,
                u8::try_from(value.len()).unwrap(),
            ];
            pair.extend_from_slice(value);
            let mut out = vec![SEQUENCE, u8::try_from(pair.len()).unwrap()];
            out.extend(pair);
            out
        };
        let mut text = String::new();
        let set = [attribute(3, b"a"), attribute(10, b"b")].concat();
        push_relative_name(&mut text, &set).unwrap();
        assert_eq!(text, "CN=a+O=b");
        assert_eq!(push_relative_name(&mut String::new(), &[]), None);
    }

    #[test]
    fn no_cut_and_no_flipped_byte_is_read_beyond_its_end() {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0])];
        let good = der(&params);
        assert!(Certificate::parse(&good).is_some());
        for end in 0..good.len() {
            assert_eq!(Certificate::parse(&good[..end]), None, "cut at {end}");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                if let Some(certificate) = Certificate::parse(&bad) {
                    let _ = certificate.subject();
                }
            }
        }
        let mut longer = good;
        longer.push(0);
        assert_eq!(Certificate::parse(&longer), None, "bytes behind it");
    }

    #[test]
    fn lengths_are_in_their_shortest_form() {
        for (bytes, expected) in [
            (&[4, 1, 7][..], Some((4, &[7][..]))),
            (&[4, 0x81, 1, 7], None),
            (&[4, 0x80], None),
            (&[4, 0x84, 0, 0, 0, 1, 7], None),
            (&[0x1f, 1, 7], None),
            (&[4, 2, 7], None),
            (&[4], None),
            (&[], None),
        ] {
            assert_eq!(Reader(bytes).next(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn times_are_exact_and_nonsense_is_none() {
        for (tag, text, expected) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", Some(-631_152_000)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "20000229120000Z", Some(951_825_600)),
            (UTC_TIME, "701301000000Z", None),
            (UTC_TIME, "700101000000", None),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "70010100000aZ", None),
            (GENERALIZED_TIME, "700101000000Z", None),
            (OCTETS, "700101000000Z", None),
        ] {
            let mut der = vec![tag, u8::try_from(text.len()).unwrap()];
            der.extend_from_slice(text.as_bytes());
            assert_eq!(time(&mut Reader(&der)), expected, "{text}");
        }
    }
}
