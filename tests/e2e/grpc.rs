//! Calls of gRPC, from HTTP/2 to HTTP/2. `tests/vm/grpc.py` has them with a real client and a real server.

use http::Request;
use hyper::body::Incoming;

use crate::{
    h2::{DATA, Frames, HEADERS, PING, RST_STREAM, Raw, ask, frame, head, send},
    http2_upstream::{CANCEL, Server, echo, proxy, reply, silent},
};

const ACK: u8 = 1;
const END_STREAM: u8 = 1;

#[test]
fn the_fields_of_a_call_pass_and_its_error_comes_behind_a_message() {
    const FIELDS: [(&str, &str); 6] = [
        ("content-type", "application/grpc+proto"),
        ("te", "trailers"),
        ("grpc-timeout", "9S"),
        ("grpc-encoding", "identity"),
        ("x-a-bin", "AP8"),
        ("user-agent", "grpc-test/1"),
    ];
    let server = Server::start(|request: Request<Incoming>| async move {
        for (name, value) in FIELDS {
            assert_eq!(request.headers()[name], value);
        }
        let trailers = [
            ("grpc-status", "15"),
            ("grpc-message", "%C3%A9"),
            ("x-b-bin", "AAH/"),
        ];
        let kind = [("content-type", "application/grpc+proto")];
        reply(200, &kind, &[b"\0\0\0\0\x03one"], &trailers)
    });
    let proxy = proxy(server.address, "");
    let call = send(
        "POST",
        "/a.B/C",
        &FIELDS,
        Frames::new(&[b"\0\0\0\0\0"], &[]),
    );
    let answer = ask(proxy.address(), call);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.fields["content-type"], "application/grpc+proto");
    assert_eq!(answer.body, b"\0\0\0\0\x03one");
    assert_eq!(answer.trailers["grpc-status"], "15");
    assert_eq!(answer.trailers["grpc-message"], "%C3%A9");
    assert_eq!(answer.trailers["x-b-bin"], "AAH/");
}

#[test]
fn messages_pass_in_turn_while_both_sides_are_open() {
    let server = Server::start(|request| async { echo(request) });
    let proxy = proxy(server.address, "");
    let mut raw = Raw::connect(proxy.address(), b"");
    let stream = raw.open(&head("POST", "/a.B/C"), false);
    raw.until("an answer before the call has ended", |it| it.0 == HEADERS);
    for message in [b"one", b"two", b"end"] {
        raw.write(&frame(DATA, 0, stream, message));
        let found = raw.until("the message", |it| it.0 == DATA);
        assert_eq!((found.1, found.3.as_slice()), (0, &message[..]));
    }
    raw.write(&frame(DATA, END_STREAM, stream, b""));
    raw.until("the end", |it| it.0 == DATA && it.1 == END_STREAM);
}

#[test]
fn a_cancelled_call_is_cancelled_at_the_server_and_the_others_go_on() {
    let (upstream, seen) = silent();
    let proxy = proxy(upstream, "");
    let mut raw = Raw::connect(proxy.address(), b"");
    let calls = [(); 3].map(|()| {
        let stream = raw.open(&head("POST", "/a.B/C"), false);
        assert_eq!(seen.recv().unwrap(), (false, 0), "it was asked");
        stream
    });
    for stream in calls {
        raw.write(&frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
        assert_eq!(seen.recv().unwrap().1, CANCEL);
        raw.write(&frame(PING, 0, 0, b"a sign !"));
        let sign = raw.until("a PING", |it| matches!(it.0, PING | RST_STREAM));
        assert_eq!((sign.0, sign.1), (PING, ACK), "no other call has ended");
        assert!(seen.try_recv().is_err(), "one reset for one");
    }
}
