//! A list allows the same origins as a second implementation, and no response names two origins.
//!
//! The input's first line is the Origin, the second what a preflight asks for, the others are the list.

#![no_main]

use std::net::Ipv6Addr;

use http::{HeaderValue, Method, StatusCode};
use lean_proxy::fuzzing::{
    cors::{Cors, Credentials, Settings, Verdict},
    fields::Fields,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|byte| *byte == b'\n');
    let (Some(origin), Some(asked)) = (lines.next(), lines.next()) else {
        return;
    };
    let Some(list) = lines
        .map(|line| Some(std::str::from_utf8(line).ok()?.to_owned()))
        .collect::<Option<Vec<String>>>()
    else {
        return;
    };
    let settings = Settings {
        allowed_origins: list.clone(),
        allowed_methods: vec!["*".to_owned()],
        allowed_headers: vec!["*".to_owned()],
        exposed_headers: Vec::new(),
        allow_credentials: Credentials::Auto,
        max_age: 60,
    };
    let Ok(Some(cors)) = Cors::new(&settings) else {
        return;
    };
    let (Ok(value), Ok(asked)) = (
        HeaderValue::from_bytes(origin),
        HeaderValue::from_bytes(asked),
    ) else {
        return;
    };
    let any = list.iter().any(|entry| entry == "*");
    let sound = (1..=512).contains(&origin.len());
    let expected = sound && (any || list.iter().any(|entry| allows(entry, origin)));

    let mut headers = Fields::new();
    headers.append("origin", &value);
    let Verdict::Grant(grant) = cors.judge(&Method::GET, &headers) else {
        panic!("a GET is never answered by the policy");
    };
    let granted = if any { sound } else { grant.origin.is_some() };
    assert_eq!(
        granted,
        expected,
        "{list:?} {:?}",
        origin.escape_ascii().to_string()
    );
    assert!(grant.origin.as_ref().is_none_or(|echo| *echo == value));

    // whatever the upstream sent, one grant is left, or none
    let mut answer = Fields::new();
    for name in [
        "allow-origin",
        "allow-origin",
        "allow-methods",
        "allow-credentials",
    ] {
        answer.append(format!("access-control-{name}"), "true");
    }
    cors.stamp(&grant, &mut answer);
    let said: Vec<&[u8]> = answer.get_all("access-control-allow-origin").collect();
    if any {
        assert_eq!(said, [b"*"]);
        assert!(!answer.contains("vary"));
    } else {
        let echo = grant.origin.iter().map(HeaderValue::as_bytes);
        assert_eq!(said, echo.collect::<Vec<_>>());
        assert_eq!(answer.only("vary"), Some(&b"Origin"[..]));
    }
    assert!(!answer.contains("access-control-allow-methods"));
    assert_eq!(
        answer.contains("access-control-allow-credentials"),
        grant.origin.is_some()
    );

    headers.append("access-control-request-method", &asked);
    headers.append("access-control-request-headers", &asked);
    match cors.judge(&Method::OPTIONS, &headers) {
        Verdict::Answer(StatusCode::NO_CONTENT, fields) => {
            assert!(expected);
            assert_eq!(fields.get_all("access-control-allow-origin").count(), 1);
            let echoed = fields.get("access-control-allow-headers");
            assert!(echoed.is_none_or(|names| {
                let names = std::str::from_utf8(names).expect("tokens are ASCII");
                names.len() <= 2048 && names.split(", ").all(is_token)
            }));
            let method = fields.get("access-control-allow-methods");
            assert!(
                method.is_none_or(|method| is_token(std::str::from_utf8(method).expect("ASCII")))
            );
        }
        Verdict::Answer(status, _) => panic!("a preflight is answered with {status}"),
        Verdict::Refused(fields) => {
            assert!(!expected);
            let told = cors.explain(&headers);
            assert!(told.contains(&*String::from_utf8_lossy(value.as_bytes())));
            assert!(
                !fields
                    .iter()
                    .any(|(name, _)| name.starts_with(b"access-control"))
            );
        }
        Verdict::Grant(_) => panic!("a preflight must be answered by the policy"),
    }
});

/// Whether an accepted entry allows an origin: scheme, host and port are compared one by one.
fn allows(entry: &str, origin: &[u8]) -> bool {
    if entry == "null" {
        return origin == b"null";
    }
    let Ok(origin) = std::str::from_utf8(origin) else {
        return false;
    };
    let entry = entry.to_ascii_lowercase();
    let (Some((scheme, authority)), Some((its_scheme, its_authority))) =
        (entry.split_once("://"), origin.split_once("://"))
    else {
        return false;
    };
    let default = match scheme {
        "http" => "80",
        "https" => "443",
        _ => "",
    };
    let (host, port) = parts(authority);
    let (its_host, its_port) = parts(its_authority);
    let port_fits = match (port, its_port) {
        (Some("*"), None) => true,
        (Some("*"), Some(its)) => {
            !its.starts_with('0')
                && its.bytes().all(|b| b.is_ascii_digit())
                && its.parse::<u16>().is_ok()
        }
        // browsers never send a default port, so an origin with it does not match
        (port, its) => port.filter(|port| *port != default) == its,
    };
    let host_fits = if let Some(below) = host.strip_prefix("*.") {
        let labels: Vec<&str> = its_host.split('.').collect();
        let fixed: Vec<&str> = below.split('.').collect();
        let sound = |label: &&str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
        };
        labels.len() > fixed.len()
            && labels.ends_with(&fixed)
            && labels.iter().all(sound)
            && its_host.len() - below.len() - 1 <= 253
    } else if let Some(literal) = host.strip_prefix('[') {
        let address: Result<Ipv6Addr, _> = literal.trim_end_matches(']').parse();
        address.is_ok_and(|address| its_host == format!("[{address}]"))
    } else {
        host == its_host
    };
    scheme == its_scheme && host_fits && port_fits
}

/// Host and port; the port follows the first colon outside of brackets.
fn parts(authority: &str) -> (&str, Option<&str>) {
    let behind = authority.rfind(']').map_or(0, |end| end + 1);
    match authority[behind..].find(':') {
        Some(colon) => (
            &authority[..behind + colon],
            Some(&authority[behind + colon + 1..]),
        ),
        None => (authority, None),
    }
}

fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}
