//! Fields whose names look like others', trailer fields, and fields of interim responses: the operator's edits apply to all
//! of them.

use crate::{
    forward::echo,
    strict::Response,
    support::{ALL, OK, Proxy, Upstream, seen, with},
};

/// Everything to `UP`, with these edits.
fn edited(edits: &str) -> String {
    format!("routes: [{{path: /, target: 'http://UP', {edits}}}]\n")
}

// ---- names that look alike ----

#[test]
fn a_field_that_looks_like_an_edited_one_does_not_reach_the_upstream() {
    let (proxy, _upstream) = echo(&edited(
        "request_headers: {set: {X-User: guest, X_Legacy: ours}, remove: [X-Admin, X-Two-Words]}",
    ));
    let request = seen(&proxy.ask(with(
        "GET /",
        &[
            "X_User: root",
            "x.uSER: root",
            "X`User: root",
            "X-User: root",
            "X-Legacy: theirs",
            "x~legacy: theirs",
            "X_Admin: 1",
            "X|Admin: 1",
            "X-Two_Words: 1",
            "x_two-words: 1",
            "X_Users: kept",
            "X__User: kept",
            "Xx_User: kept",
            "XUser: kept",
            "my_field: kept",
        ],
    )))
    .fields;
    assert_eq!(request.all("x-user"), ["guest"]);
    assert_eq!(request.all("x_legacy"), ["ours"]);
    let others: Vec<String> = request
        .0
        .iter()
        .filter(|(_, value)| !["guest", "ours"].contains(&value.as_str()))
        .filter(|(_, value)| ["root", "theirs", "1", "kept"].contains(&value.as_str()))
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    assert_eq!(
        others,
        [
            "x_users: kept",
            "x__user: kept",
            "xx_user: kept",
            "xuser: kept",
            "my_field: kept"
        ]
    );
}

#[test]
fn a_field_that_looks_like_a_forwarded_or_hop_by_hop_one_does_not_reach_the_upstream() {
    let (proxy, _upstream) = echo(ALL);
    let dropped = [
        "X_Forwarded_For",
        "x-forwarded_proto",
        "X.Forwarded.Host",
        "X!Forwarded!Anything",
        "X-Forwarded-Client_Ip",
        "X_Real_IP",
        "Keep_Alive",
        "Proxy.Connection",
        "Proxy_Authorization",
        "Transfer_Encoding",
        "transfer~encoding",
        "Content_Length",
    ];
    let kept = [
        "X_Forward",
        "XX_Forwarded_For",
        "X_Real_IPs",
        "Keep_Alives",
        "Content_Lengths",
    ];
    let sent: Vec<String> = dropped
        .iter()
        .chain(&kept)
        .map(|name| format!("{name}: twin"))
        .collect();
    let sent: Vec<&str> = sent.iter().map(String::as_str).collect();
    let request = seen(&proxy.ask(with("GET /", &sent))).fields;
    let twins: Vec<&str> = request
        .0
        .iter()
        .filter(|(_, value)| value == "twin")
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(
        twins,
        kept.map(str::to_ascii_lowercase)
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
    );
}

// ---- trailers ----

/// Trailer fields that do not change how a message is read.
const HARMLESS: [&str; 4] = ["X-Sum", "ETag", "grpc-status", "Server-Timing"];

/// Fields that RFC 9110 §6.5.1 does not allow in trailers.
const FORBIDDEN: [&str; 34] = [
    "Accept",
    "Accept-Encoding",
    "Age",
    "Authorization",
    "Cache-Control",
    "CDN-Cache-Control",
    "Connection",
    "Content-Encoding",
    "Content-Range",
    "Content-Type",
    "Content_Type",
    "Cookie",
    "Date",
    "Expect",
    "Expires",
    "Forwarded",
    "Host",
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "If_Unmodified_Since",
    "If-Range",
    "Keep-Alive",
    "Location",
    "Max-Forwards",
    "Pragma",
    "Proxy-Authorization",
    "Range",
    "Set-Cookie",
    "Set_Cookie",
    "TE",
    "Vary",
    "WWW-Authenticate",
    "X-Forwarded-For",
];

/// A chunked body with these trailer fields.
fn chunked(names: &[&str]) -> String {
    let lines: Vec<String> = names.iter().map(|name| format!("{name}: t\r\n")).collect();
    format!("3\r\nabc\r\n0\r\n{}\r\n", lines.concat())
}

/// An upstream that answers with the names of the trailer fields that it received.
fn trailer_names() -> Upstream {
    Upstream::answering(|request, peer| {
        let mut names = request.trailers.names();
        names.push(format!(
            "announced {}",
            request.fields.list("trailer").join(" ")
        ));
        let names = names.join(",");
        let length = names.len();
        peer.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{names}"
        ))
    })
}

fn uploaded(proxy: &Proxy, names: &[&str], fields: &[&str]) -> String {
    let announced = format!("Trailer: {}", names.join(", "));
    let fields = [&["Transfer-Encoding: chunked", &announced], fields].concat();
    let response = proxy.ask(with("POST /", &fields) + &chunked(names));
    assert_eq!(response.status, 200, "{response:?}");
    response.text()
}

#[test]
fn fields_not_allowed_in_trailers_do_not_reach_the_upstream() {
    let upstream = trailer_names();
    let proxy = Proxy::before(&upstream, ALL);
    let all: Vec<&str> = HARMLESS.iter().chain(&FORBIDDEN).copied().collect();
    let harmless = HARMLESS.map(str::to_ascii_lowercase);
    assert_eq!(
        uploaded(&proxy, &all, &[]),
        format!("{},announced {}", harmless.join(","), harmless.join(" "))
    );
}

#[test]
fn edits_apply_to_trailers_of_an_upload() {
    let upstream = trailer_names();
    let proxy = Proxy::before(
        &upstream,
        &edited("request_headers: {set: {X-User: guest}, remove: [X-Admin]}"),
    );
    let names = ["X-User", "X_User", "X-Admin", "x.admin", "X-Sum"];
    assert_eq!(uploaded(&proxy, &names, &[]), "x-sum,announced x-sum");
}

#[test]
fn fields_that_connection_lists_do_not_pass_as_trailers_either() {
    let upstream = trailer_names();
    let proxy = Proxy::before(&upstream, ALL);
    assert_eq!(
        uploaded(&proxy, &["X-Hop", "X-Sum"], &["Connection: X-Hop"]),
        "x-sum,announced x-sum"
    );
    let upstream = Upstream::fixed(format!(
        "HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        chunked(&["X-Hop", "X-Sum"])
    ));
    let response = with_trailers(&Proxy::before(&upstream, ALL));
    assert_eq!(response.trailers.names(), ["x-sum"]);
}

fn with_trailers(proxy: &Proxy) -> Response {
    proxy.ask(with("GET /", &["TE: trailers", "Connection: TE"]))
}

#[test]
fn fields_not_allowed_in_trailers_do_not_reach_the_client() {
    let names: Vec<&str> = HARMLESS
        .iter()
        .chain(&FORBIDDEN)
        .chain(&[
            "Access-Control-Allow-Origin",
            "Access-Control-Allow-Credentials",
            "Access_Control_Allow_Origin",
        ])
        .copied()
        .collect();
    let upstream = Upstream::fixed(format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: {}\r\n\r\n{}",
        names.join(", "),
        chunked(&names)
    ));
    for policy in ["", "cors: {allowed_origins: ['*']}\n"] {
        let response = with_trailers(&Proxy::before(&upstream, &format!("{ALL}{policy}")));
        let harmless = HARMLESS.map(str::to_ascii_lowercase);
        assert_eq!(response.trailers.names(), harmless);
        assert_eq!(response.fields.list("trailer"), harmless);
    }
}

#[test]
fn edits_apply_to_trailers_of_an_answer() {
    let upstream = Upstream::fixed(format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Internal, X-Sum\r\n\r\n{}",
        chunked(&["X-Internal", "Server", "X-Frame-Options", "X-Sum"])
    ));
    let proxy = Proxy::before(
        &upstream,
        &edited("response_headers: {remove: [X-Internal, Server], set: {X-Frame-Options: DENY}}"),
    );
    let response = with_trailers(&proxy);
    assert_eq!(response.trailers.names(), ["x-sum"]);
    assert_eq!(response.fields.list("trailer"), ["x-sum"]);
    assert_eq!(response.fields.all("x-frame-options"), ["DENY"]);
}

// ---- interim answers ----

#[test]
fn edits_and_cors_apply_to_interim_answers() {
    let upstream = Upstream::fixed(format!(
        "HTTP/1.1 103 Early Hints\r\nX-Internal: secret\r\nServer: s/1\r\nLink: </a>\r\n\
         Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\n\r\n{OK}"
    ));
    let edits = "response_headers: {remove: [X-Internal], set: {Server: ours}}";
    for (policy, grants) in [
        ("", vec!["*", "true"]),
        ("cors: {allowed_origins: ['https://app.example']}\n", vec![]),
    ] {
        let proxy = Proxy::before(&upstream, &(edited(edits) + policy));
        let response = proxy.ask(with("GET /", &["Origin: https://app.example"]));
        let [hint] = response.interim.as_slice() else {
            panic!("{response:?}")
        };
        assert_eq!(hint.status, 103);
        assert_eq!(hint.fields.all("link"), ["</a>"]);
        assert_eq!(hint.fields.all("server"), ["ours"]);
        assert!(!hint.fields.has("x-internal"), "{hint:?}");
        let granted: Vec<&str> = ["allow-origin", "allow-credentials"]
            .iter()
            .filter_map(|name| hint.fields.one(&format!("access-control-{name}")))
            .collect();
        assert_eq!(granted, grants, "{policy}");
    }
}

// ---- TE ----

#[test]
fn te_goes_on_together_with_its_connection_option() {
    let (proxy, _upstream) = echo(ALL);
    for te in ["trailers", "gzip, trailers", "Trailers"] {
        let fields =
            seen(&proxy.ask(with("GET /", &["Connection: TE", &format!("TE: {te}")]))).fields;
        assert_eq!(fields.all("te"), ["trailers"], "{te}");
        assert_eq!(fields.all("connection"), ["te"], "{te}");
    }
    let fields = seen(&proxy.ask(with("GET /", &["Connection: TE", "TE: gzip"]))).fields;
    assert!(!fields.has("te") && !fields.has("connection"), "{fields:?}");
}

#[test]
fn te_and_an_upgrade_share_one_connection_field() {
    let (proxy, _upstream) = echo(ALL);
    let fields = seen(&proxy.ask(with(
        "GET /",
        &[
            "Connection: Upgrade, TE",
            "Upgrade: websocket",
            "TE: trailers",
        ],
    )))
    .fields;
    assert_eq!(fields.all("connection"), ["te, upgrade"]);
    assert_eq!(fields.all("te"), ["trailers"]);
    assert_eq!(fields.all("upgrade"), ["websocket"]);
}
