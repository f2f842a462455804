//! Location headers of upstreams.

use crate::support::{Proxy, Upstream, with};

/// Answers with the location in the query.
fn redirecting(status: u16, field: &'static str) -> Upstream {
    Upstream::answering(move |request, peer| {
        let location = request
            .target
            .split_once('?')
            .map_or("", |(_, query)| query);
        peer.write(format!(
            "HTTP/1.1 {status} Somewhere\r\n{field}: {location}\r\nContent-Length: 0\r\n\r\n"
        ))
    })
}

#[test]
fn a_location_that_names_the_target_is_mapped_back() {
    let upstream = redirecting(302, "Location");
    let up = upstream.authority();
    let proxy = Proxy::before(
        &upstream,
        "routes:\n\
         - {path: /app/, target: 'http://UP/base'}\n\
         - {path: /kept/, target: 'http://UP', rewrite_location: false}\n\
         - {path: /, target: 'http://UP'}\n",
    );
    for (path, location, expected) in [
        (
            "/app/x",
            format!("http://{up}/base/login?next=%2F#top"),
            "http://proxy.test/app/login?next=%2F#top".to_owned(),
        ),
        (
            "/app/x",
            format!("http://{up}/other"),
            format!("http://{up}/other"),
        ),
        ("/app/x", "/base/login".to_owned(), "/base/login".to_owned()),
        (
            "/app/x",
            "https://elsewhere.example/base/".to_owned(),
            "https://elsewhere.example/base/".to_owned(),
        ),
        (
            "/x",
            format!("http://{up}/login"),
            "http://proxy.test/login".to_owned(),
        ),
        (
            "/x",
            format!("HTTP://{up}"),
            "http://proxy.test/".to_owned(),
        ),
        (
            "/kept/x",
            format!("http://{up}/login"),
            format!("http://{up}/login"),
        ),
    ] {
        let response = proxy.ask(with(
            &format!("GET {path}?{location}").replace('#', "%23"),
            &[],
        ));
        let sent = location.replace('#', "%23");
        let expected = expected.replace('#', "%23");
        assert_eq!(
            response.one("location"),
            Some(expected.as_str()),
            "{path} {sent}"
        );
    }
}

#[test]
fn a_trusted_proxy_says_whether_the_client_used_https() {
    let upstream = redirecting(201, "Content-Location");
    let up = upstream.authority();
    let secure = ["X-Forwarded-Proto: https"];
    for (trusted, expected) in [
        ("[]", "https://proxy.test/x"),
        ("[127.0.0.0/8]", "https://proxy.test/x"),
        ("[192.0.2.0/24]", "http://proxy.test/x"),
    ] {
        let yaml = format!(
            "routes: [{{path: /, target: 'http://UP'}}]\nserver: {{trusted_proxies: {trusted}}}\n"
        );
        let proxy = Proxy::before(&upstream, &yaml);
        let response = proxy.ask(with(&format!("GET /?http://{up}/x"), &secure));
        assert_eq!(
            response.one("content-location"),
            Some(expected),
            "{trusted}"
        );
    }
}

#[test]
fn the_operators_edits_win_over_the_rewrite() {
    let upstream = redirecting(302, "Location");
    let up = upstream.authority();
    let proxy = Proxy::before(
        &upstream,
        "routes: [{path: /, target: 'http://UP', response_headers: {set: {Location: /fixed}}}]\n",
    );
    let response = proxy.ask(with(&format!("GET /?http://{up}/x"), &[]));
    assert_eq!(response.one("location"), Some("/fixed"));
}

#[test]
fn without_a_host_the_location_is_not_changed() {
    let upstream = redirecting(302, "Location");
    let up = upstream.authority();
    let proxy = Proxy::before(&upstream, "routes: [{path: /, target: 'http://UP'}]\n");
    let response = proxy.ask(format!("GET /?http://{up}//x HTTP/1.0\r\n\r\n"));
    assert_eq!(
        response.one("location"),
        Some(format!("http://{up}//x").as_str())
    );
}
