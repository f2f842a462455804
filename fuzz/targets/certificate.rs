//! Bytes are a certificate or none, without a panic; a subject is read back from its text as it was put in.

#![no_main]

use lean_proxy::fuzzing::config::x509::{Certificate, MAX_SUBJECT};
use lean_proxy_fuzz::tools::Dice;
use libfuzzer_sys::fuzz_target;

/// The first second of the year 0 and the last of 9999: the range of four digits.
const TIMES: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

/// Attributes with a short name: the last byte of their type, below 2.5.4.
const KINDS: [(u8, &str); 4] = [(3, "CN"), (6, "C"), (10, "O"), (11, "OU")];

fuzz_target!(|input: &[u8]| {
    if let Some(certificate) = Certificate::parse(input) {
        assert!(TIMES.contains(&certificate.not_before));
        assert!(TIMES.contains(&certificate.not_after));
        assert!(certificate.names.len() <= 1_000);
        for name in &certificate.names {
            assert_eq!(*name, name.to_ascii_lowercase());
        }
        if let Some(subject) = certificate.subject() {
            assert!(subject.len() <= MAX_SUBJECT);
            assert!(subject.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
        // DER: no other bytes are the same certificate
        assert_eq!(Certificate::parse(&input[..input.len() - 1]), None);
        assert_eq!(Certificate::parse(&[input, &[0]].concat()), None);
    }
    a_subject_comes_back(input);
});

fn a_subject_comes_back(input: &[u8]) {
    let (mut dice, bytes) = Dice::new(input, 6);
    let count = dice.next() % 5;
    let attributes: Vec<(u8, &str, String)> = dice
        .cut(bytes)
        .into_iter()
        .take(count)
        .map(|value| {
            let (kind, name) = KINDS[value.len() % KINDS.len()];
            (kind, name, String::from_utf8_lossy(value).into_owned())
        })
        .collect();
    let sets = attributes.iter().map(|(kind, _, value)| {
        let kind = der(0x06, &[0x55, 4, *kind]);
        der(
            0x31,
            &der(0x30, &[kind, der(0x0c, value.as_bytes())].concat()),
        )
    });
    let subject: Vec<u8> = sets.flatten().collect();
    let time = der(0x17, b"700101000000Z");
    let body = [
        der(0x02, &[1]),
        der(0x30, &[]),
        der(0x30, &[]),
        der(0x30, &[time.clone(), time].concat()),
        der(0x30, &subject),
        der(0x30, &[]),
    ];
    let der = der(0x30, &der(0x30, &body.concat()));
    let certificate = Certificate::parse(&der).expect("it is one");
    let Some(text) = certificate.subject() else {
        let most: usize = attributes.iter().map(|it| 3 * it.2.len() + 5).sum();
        assert!(most > MAX_SUBJECT, "a short subject was refused");
        return;
    };
    let expected: Vec<(Vec<u8>, Vec<u8>)> = attributes
        .iter()
        .rev()
        .map(|(_, name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect();
    assert_eq!(read_back(&text), expected, "{text}");
}

/// Reads a text of RFC 4514: the names and values of its attributes.
fn read_back(text: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    if text.is_empty() {
        return Vec::new();
    }
    let mut pairs = vec![(Vec::new(), None::<Vec<u8>>)];
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b',' => {
                pairs.push((Vec::new(), None));
                continue;
            }
            b'\\' => {
                let first = bytes.next().expect("an escaped byte");
                if first.is_ascii_hexdigit() {
                    let second = bytes.next().expect("two digits");
                    let digits = [first, second];
                    let digits = std::str::from_utf8(&digits).expect("ASCII");
                    u8::from_str_radix(digits, 16).expect("two digits")
                } else {
                    first
                }
            }
            byte => byte,
        };
        let (name, value) = pairs.last_mut().expect("there is one");
        match value {
            Some(value) => value.push(byte),
            None if byte == b'=' => *value = Some(Vec::new()),
            None => name.push(byte),
        }
    }
    let pairs = pairs.into_iter();
    pairs
        .map(|(name, value)| (name, value.expect("a value")))
        .collect()
}

/// A value of DER, shorter than 64 kB.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut bytes = vec![tag];
    match length {
        0..=0x7f => bytes.push(length as u8),
        0x80..=0xff => bytes.extend([0x81, length as u8]),
        _ => bytes.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    bytes.extend(content);
    bytes
}
