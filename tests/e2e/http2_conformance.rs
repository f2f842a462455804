//! Each rule of RFC 9113 and RFC 7541 that h2spec 2.6 has a case for (its groups `generic`, `http2` and `hpack`), frame by
//! frame, in the order and with the section numbers of h2spec, which are those of RFC 7540.
//!
//! h2spec takes any closed connection for an answer to an error. Here each case names the one code that comes, and where it
//! is not the one that its section asks for, the reason.

use std::net::SocketAddr;

use crate::{
    h2::{DATA, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS, field, frame, head},
    support::{OK, Proxy, Upstream},
};

const PRIORITY: u8 = 2;
const PUSH_PROMISE: u8 = 5;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const UNKNOWN: u8 = 0x16;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const WHOLE: u8 = END_STREAM | END_HEADERS;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const COMPRESSION_ERROR: u32 = 9;

/// The most streams that a listener without a memory limit accepts.
const STREAMS: u32 = 100;

/// The largest frame that it accepts.
const LARGEST: usize = 16_384;

/// The answer's body, of more bytes than any window below.
const BODY: &str = "more than five bytes";

/// What the PINGs hold.
const SIGN: [u8; 8] = *b"a sign !";

/// How the proxy reacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    /// The request is answered with 200.
    Answered,
    /// The PING behind it is acknowledged, and nothing was reset.
    Ignored,
    /// SETTINGS are acknowledged.
    Settled,
    /// A DATA frame of this many bytes comes.
    Data(usize),
    /// The stream is reset with this code.
    Reset(u32),
    /// The connection ends with a GOAWAY of this code.
    Gone(u32),
}

use Reaction::{Answered, Data, Gone, Ignored, Reset, Settled};

/// What the client does.
enum Step {
    Send(Vec<u8>),
    /// Waits for the end of the answer on stream 1.
    AwaitEnd,
    Await(Reaction),
}

impl From<Vec<u8>> for Step {
    fn from(frame: Vec<u8>) -> Step {
        Step::Send(frame)
    }
}

struct Case {
    section: &'static str,
    what: &'static str,
    steps: Vec<Step>,
    required: Reaction,
    /// What comes instead, and why.
    instead: Option<(Reaction, &'static str)>,
}

/// `section, what => required reaction, [steps]; …`
macro_rules! cases {
    ($($section:literal, $what:literal => $required:expr, [$($step:expr),*] $(, instead $reaction:expr, $why:expr)?;)*) => {
        vec![$(Case {
            section: $section,
            what: $what,
            steps: vec![$($step.into()),*],
            required: $required,
            instead: None $(.or(Some(($reaction, $why))))?,
        }),*]
    };
}

// ---- frames ----

fn get() -> Vec<u8> {
    head("GET", "/")
}

fn post() -> Vec<u8> {
    head("POST", "/")
}

fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, stream, block)
}

/// A whole request without a body on stream 1.
fn request() -> Vec<u8> {
    headers(WHOLE, 1, &get())
}

/// The same with these fields behind its own.
fn with(more: &[u8]) -> Vec<u8> {
    headers(WHOLE, 1, &[&get(), more].concat())
}

/// A request on stream 1 whose body follows.
fn upload() -> Vec<u8> {
    headers(END_HEADERS, 1, &post())
}

fn data(flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(DATA, flags, stream, payload)
}

fn continuation(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    frame(CONTINUATION, flags, stream, block)
}

fn priority(stream: u32, on: u32, weight: u8) -> Vec<u8> {
    let mut payload = on.to_be_bytes().to_vec();
    payload.push(weight);
    frame(PRIORITY, 0, stream, &payload)
}

fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (key, value) in values {
        payload.extend(key.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

fn initial_window(value: u32) -> Vec<u8> {
    settings(&[(4, value)])
}

fn go_away(stream: u32, code: u32) -> Vec<u8> {
    frame(
        GOAWAY,
        0,
        stream,
        &[0_u32.to_be_bytes(), code.to_be_bytes()].concat(),
    )
}

fn ping() -> Vec<u8> {
    frame(PING, 0, 0, &SIGN)
}

fn more() -> Vec<u8> {
    field("x-more", "y")
}

// ---- why a reaction differs ----

const ANY_STREAM_ERROR: &str =
    "an endpoint may treat a stream error as a connection error (RFC 9113 §5.4.1)";

/// The required code is more precise. The connection ends as it must; a code has no effect beyond that (RFC 9113 §7).
const LESS_PRECISE: &str =
    "hyper ends the connection with PROTOCOL_ERROR for every frame that it cannot read";

const BOTH: &str = "a connection error, as is allowed, and with PROTOCOL_ERROR as for every frame that hyper cannot read";

// ---- the cases ----

fn generic() -> Vec<Case> {
    let block = get();
    let (first, rest) = block.split_at(5);
    let (second, third) = rest.split_at(5);
    let padded = [&[8], &block[..], &[0; 8]].concat();
    let prioritised = [&[0, 0, 0, 0, 255], &block[..]].concat();
    let parameters = [
        (1, 4096),
        (2, 1),
        (3, 100),
        (4, 65_535),
        (5, 16_384),
        (6, 100),
    ];
    cases! {
        "1", "a preface" => Settled, [settings(&[(4, 65_535)])];
        "2", "PRIORITY on an idle stream" => Ignored, [priority(1, 0, 255), ping()];
        "2", "WINDOW_UPDATE on a half-closed stream" => Data(1), [initial_window(0), request(), window(1, 1)];
        "2", "PRIORITY on a half-closed stream" => Data(1), [initial_window(0), request(), priority(1, 0, 255), window(1, 1)];
        "2", "RST_STREAM on a half-closed stream" => Ignored, [request(), reset(1, CANCEL), ping()];
        "2", "PRIORITY on a closed stream" => Ignored, [request(), Step::AwaitEnd, priority(1, 0, 255), ping()];
        "3.1", "DATA" => Answered, [upload(), data(END_STREAM, 1, b"test")];
        "3.1", "two DATA" => Answered, [upload(), data(0, 1, b"test"), data(END_STREAM, 1, b"test")];
        "3.1", "DATA with padding" => Answered, [upload(), data(END_STREAM | PADDED, 1, b"\x05test\0\0\0\0\0")];
        "3.2", "HEADERS" => Answered, [request()];
        "3.2", "HEADERS with padding" => Answered, [headers(WHOLE | PADDED, 1, &padded)];
        "3.2", "HEADERS with a priority" => Answered, [headers(WHOLE | WITH_PRIORITY, 1, &prioritised)];
        "3.3", "PRIORITY of weight 1" => Answered, [priority(1, 0, 0), request()];
        "3.3", "PRIORITY of weight 256" => Answered, [priority(1, 0, 255), request()];
        "3.3", "PRIORITY with a dependency" => Answered, [priority(3, 1, 0), request()];
        "3.3", "PRIORITY, exclusive" => Answered, [priority(1, 1 << 31, 0), request()];
        "3.3", "PRIORITY of a later stream" => Answered, [priority(3, 0, 255), request()];
        "3.4", "RST_STREAM" => Ignored, [upload(), reset(1, CANCEL), ping()];
        "3.5", "SETTINGS of each kind" => Settled, [settings(&parameters)];
        "3.7", "PING" => Ignored, [ping()];
        "3.8", "GOAWAY" => Ignored, [go_away(0, 0), ping()];
        "3.9", "WINDOW_UPDATE of the connection" => Ignored, [window(0, 1), ping()];
        "3.9", "WINDOW_UPDATE of a stream" => Answered, [request(), window(1, 1)];
        "3.10", "CONTINUATION" => Answered, [headers(END_STREAM, 1, first), continuation(END_HEADERS, 1, rest)];
        "3.10", "two CONTINUATION" => Answered, [headers(END_STREAM, 1, first), continuation(0, 1, second), continuation(END_HEADERS, 1, third)];
        "4", "GET" => Answered, [request()];
        "4", "HEAD" => Answered, [headers(WHOLE, 1, &head("HEAD", "/"))];
        "4", "POST" => Answered, [upload(), data(END_STREAM, 1, b"test")];
        "4", "POST with trailers" => Answered, [headers(END_HEADERS, 1, &[post(), field("trailer", "x-more")].concat()), data(0, 1, b"test"), headers(WHOLE, 1, &more())];
    }
}

/// "yes" by the Huffman code of RFC 7541, and "x-a".
const YES: &[u8] = b"\x83\xf4\x54\x7f";
const X_A: &[u8] = b"\x83\xf2\xb0\xff";

fn generic_hpack() -> Vec<Case> {
    let plain = (b"\x03x-a".as_slice(), b"\x03yes".as_slice());
    let with_name =
        |kind: u8, (name, value): (&[u8], &[u8])| with(&[&[kind], name, value].concat());
    let update = |updates: &[u8]| headers(WHOLE, 1, &[updates, &get()].concat());
    cases! {
        "5", "an indexed field" => Answered, [with(b"\xba")];
        "5", "indexed by name, then kept" => Answered, [with(b"\x7a\x03yes")];
        "5", "the same, Huffman" => Answered, [with(&[b"\x7a", YES].concat())];
        "5", "a new name, then kept" => Answered, [with_name(0x40, plain)];
        "5", "the same, Huffman" => Answered, [with_name(0x40, (X_A, YES))];
        "5", "indexed by name, not kept" => Answered, [with(b"\x0f\x2b\x03yes")];
        "5", "the same, Huffman" => Answered, [with(&[b"\x0f\x2b", YES].concat())];
        "5", "a new name, not kept" => Answered, [with_name(0, plain)];
        "5", "the same, Huffman" => Answered, [with_name(0, (X_A, YES))];
        "5", "indexed by name, never kept" => Answered, [with(b"\x1f\x2b\x03yes")];
        "5", "the same, Huffman" => Answered, [with(&[b"\x1f\x2b", YES].concat())];
        "5", "a new name, never kept" => Answered, [with_name(0x10, plain)];
        "5", "the same, Huffman" => Answered, [with_name(0x10, (X_A, YES))];
        "5", "a size of the table" => Answered, [update(b"\x3f\xe1\x1f")];
        "5", "two sizes of the table" => Answered, [update(b"\x20\x3f\xe1\x1f")];
    }
}

fn frames() -> Vec<Case> {
    let beyond = vec![b'x'; LARGEST + 1];
    cases! {
        "4.1", "a frame of an unknown type" => Ignored, [frame(UNKNOWN, 0, 0, &[0; 8]), ping()];
        "4.1", "flags without a meaning" => Ignored, [frame(PING, 0x16, 0, &SIGN)];
        "4.1", "the reserved bit" => Ignored, [frame(PING, 0x16, 1 << 31, &SIGN)];
        "4.2", "DATA of 2^14 bytes" => Answered, [upload(), data(END_STREAM, 1, &beyond[1..])];
        "4.2", "DATA over the largest frame" => Reset(FRAME_SIZE_ERROR), [upload(), data(END_STREAM, 1, &beyond)], instead Gone(FRAME_SIZE_ERROR), ANY_STREAM_ERROR;
        "4.2", "HEADERS over the largest frame" => Gone(FRAME_SIZE_ERROR), [headers(WHOLE, 1, &beyond)];
        "4.3", "half a field" => Gone(COMPRESSION_ERROR), [headers(WHOLE, 1, b"\x40")], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "4.3", "PRIORITY inside a head" => Gone(PROTOCOL_ERROR), [headers(0, 1, &get()), priority(1, 0, 255), continuation(END_HEADERS, 1, &more())];
        "4.3", "HEADERS of another stream inside a head" => Gone(PROTOCOL_ERROR), [headers(0, 1, &get()), headers(WHOLE, 3, &get()), continuation(END_HEADERS, 1, &more())];
        "5.5", "an extension" => Ignored, [frame(UNKNOWN, 0, 0, &[0; 8]), ping()];
        "5.5", "an extension inside a head" => Gone(PROTOCOL_ERROR), [headers(END_STREAM, 1, &get()), frame(UNKNOWN, 0, 0, &[0; 8])];
    }
}

fn streams() -> Vec<Case> {
    let on_itself = [&[0, 0, 0, 1, 255], &get()[..]].concat();
    let bad_ping = || frame(PING, 0, 3, &SIGN);
    let crowd = (0..=STREAMS).flat_map(|number| headers(WHOLE, 2 * number + 1, &get()));
    let crowd: Vec<u8> = crowd.collect();
    cases! {
        "5.1", "DATA on an idle stream" => Gone(PROTOCOL_ERROR), [data(END_STREAM, 1, b"test")];
        "5.1", "RST_STREAM on an idle stream" => Gone(PROTOCOL_ERROR), [reset(1, CANCEL)];
        "5.1", "WINDOW_UPDATE on an idle stream" => Gone(PROTOCOL_ERROR), [window(1, 100)];
        "5.1", "CONTINUATION on an idle stream" => Gone(PROTOCOL_ERROR), [continuation(END_HEADERS, 1, &get())];
        "5.1", "DATA on a half-closed stream" => Reset(STREAM_CLOSED), [request(), data(END_STREAM, 1, b"test")], instead Gone(PROTOCOL_ERROR), BOTH;
        "5.1", "HEADERS on a half-closed stream" => Reset(STREAM_CLOSED), [request(), request()], instead Gone(PROTOCOL_ERROR), BOTH;
        "5.1", "CONTINUATION on a half-closed stream" => Gone(PROTOCOL_ERROR), [request(), continuation(END_HEADERS, 1, &get())];
        "5.1", "DATA behind RST_STREAM" => Reset(STREAM_CLOSED), [upload(), reset(1, CANCEL), data(END_STREAM, 1, b"test")];
        "5.1", "HEADERS behind RST_STREAM" => Reset(STREAM_CLOSED), [upload(), reset(1, CANCEL), headers(WHOLE, 1, &get())], instead Gone(PROTOCOL_ERROR), BOTH;
        "5.1", "CONTINUATION behind RST_STREAM" => Gone(PROTOCOL_ERROR), [upload(), reset(1, CANCEL), continuation(END_HEADERS, 1, &more())];
        "5.1", "DATA on a closed stream" => Reset(STREAM_CLOSED), [request(), Step::AwaitEnd, data(END_STREAM, 1, b"test")];
        "5.1", "HEADERS on a closed stream" => Gone(STREAM_CLOSED), [request(), Step::AwaitEnd, request()], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "5.1", "CONTINUATION on a closed stream" => Gone(PROTOCOL_ERROR), [request(), Step::AwaitEnd, continuation(END_HEADERS, 1, &more())];
        "5.1.1", "an even stream" => Gone(PROTOCOL_ERROR), [headers(WHOLE, 2, &get())];
        "5.1.1", "a stream below the last one" => Gone(PROTOCOL_ERROR), [headers(WHOLE, 5, &get()), headers(WHOLE, 3, &get())];
        "5.1.2", "more streams than are allowed" => Reset(REFUSED_STREAM), [initial_window(0), crowd];
        "5.3.1", "HEADERS that depend on themselves" => Reset(PROTOCOL_ERROR), [headers(WHOLE | WITH_PRIORITY, 1, &on_itself)];
        "5.3.1", "PRIORITY that depends on itself" => Reset(PROTOCOL_ERROR), [priority(1, 1, 255)];
        "5.4.1", "an error of the connection closes it" => Gone(PROTOCOL_ERROR), [bad_ping()];
        "5.4.1", "GOAWAY comes before that" => Gone(PROTOCOL_ERROR), [bad_ping(), request()];
    }
}

fn definitions() -> Vec<Case> {
    let open = || headers(0, 1, &post());
    let too_much_padding = [&[u8::try_from(get().len() + 1).unwrap()], &get()[..]].concat();
    cases! {
        "6.1", "DATA on stream 0" => Gone(PROTOCOL_ERROR), [data(END_STREAM, 0, b"test")];
        "6.1", "DATA behind END_STREAM" => Reset(STREAM_CLOSED), [headers(WHOLE, 1, &post()), data(END_STREAM, 1, b"test")], instead Gone(PROTOCOL_ERROR), BOTH;
        "6.1", "DATA with more padding than bytes" => Gone(PROTOCOL_ERROR), [headers(END_HEADERS, 1, &[post(), field("content-length", "4")].concat()), data(END_STREAM | PADDED, 1, b"\x06test")];
        "6.2", "PRIORITY behind HEADERS without END_HEADERS" => Gone(PROTOCOL_ERROR), [headers(0, 1, &get()), priority(1, 0, 255), continuation(END_HEADERS, 1, &more())];
        "6.2", "HEADERS of another stream behind HEADERS without END_HEADERS" => Gone(PROTOCOL_ERROR), [headers(0, 1, &get()), headers(WHOLE, 3, &get()), continuation(END_HEADERS, 1, &more())];
        "6.2", "HEADERS on stream 0" => Gone(PROTOCOL_ERROR), [headers(WHOLE, 0, &get())];
        "6.2", "HEADERS with more padding than bytes" => Gone(PROTOCOL_ERROR), [headers(WHOLE | PADDED, 1, &too_much_padding)];
        "6.3", "PRIORITY on stream 0" => Gone(PROTOCOL_ERROR), [priority(0, 0, 255)];
        "6.3", "PRIORITY of 4 bytes" => Reset(FRAME_SIZE_ERROR), [request(), frame(PRIORITY, 0, 1, &[0x80, 0, 0, 1])], instead Gone(PROTOCOL_ERROR), BOTH;
        "6.4", "RST_STREAM on stream 0" => Gone(PROTOCOL_ERROR), [reset(0, CANCEL)];
        "6.4", "RST_STREAM on an idle stream" => Gone(PROTOCOL_ERROR), [reset(1, CANCEL)];
        "6.4", "RST_STREAM of 3 bytes" => Gone(FRAME_SIZE_ERROR), [request(), frame(RST_STREAM, 0, 1, &[0; 3])], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "6.5", "SETTINGS with ACK and a payload" => Gone(FRAME_SIZE_ERROR), [frame(SETTINGS, ACK, 0, &[0])], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "6.5", "SETTINGS on a stream" => Gone(PROTOCOL_ERROR), [frame(SETTINGS, 0, 1, &[0, 3, 0, 0, 0, 100])];
        "6.5", "SETTINGS of 3 bytes" => Gone(FRAME_SIZE_ERROR), [frame(SETTINGS, 0, 0, &[0, 3, 0])], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "6.5.2", "ENABLE_PUSH of 2" => Gone(PROTOCOL_ERROR), [settings(&[(2, 2)])];
        "6.5.2", "INITIAL_WINDOW_SIZE of 2^31" => Gone(FLOW_CONTROL_ERROR), [initial_window(1 << 31)], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "6.5.2", "MAX_FRAME_SIZE below 2^14" => Gone(PROTOCOL_ERROR), [settings(&[(5, 16_383)])];
        "6.5.2", "MAX_FRAME_SIZE of 2^24" => Gone(PROTOCOL_ERROR), [settings(&[(5, 1 << 24)])];
        "6.5.2", "a parameter without a meaning" => Ignored, [settings(&[(0xff, 1)]), ping()];
        "6.5.3", "a parameter twice: the last counts" => Data(1), [settings(&[(4, 100), (4, 1)]), request()];
        "6.5.3", "SETTINGS are acknowledged" => Settled, [settings(&[(2, 0)])];
        "6.7", "a PING is acknowledged with its payload" => Ignored, [ping()];
        "6.7", "a PING with ACK is not" => Ignored, [frame(PING, ACK, 0, b"no sign!"), ping()];
        "6.7", "a PING on a stream" => Gone(PROTOCOL_ERROR), [frame(PING, 0, 1, &SIGN)];
        "6.7", "a PING of 6 bytes" => Gone(FRAME_SIZE_ERROR), [frame(PING, 0, 0, &[0; 6])], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "6.8", "GOAWAY on a stream" => Gone(PROTOCOL_ERROR), [go_away(1, 0)];
        "6.10", "two CONTINUATION behind HEADERS" => Answered, [headers(END_STREAM, 1, &get()), continuation(0, 1, &more()), continuation(END_HEADERS, 1, &more())];
        "6.10", "DATA behind CONTINUATION without END_HEADERS" => Gone(PROTOCOL_ERROR), [open(), continuation(0, 1, &more()), data(END_STREAM, 1, b"test")];
        "6.10", "CONTINUATION on stream 0" => Gone(PROTOCOL_ERROR), [headers(END_STREAM, 1, &get()), continuation(END_HEADERS, 0, &more())];
        "6.10", "CONTINUATION behind HEADERS with END_HEADERS" => Gone(PROTOCOL_ERROR), [request(), continuation(END_HEADERS, 1, &more())];
        "6.10", "CONTINUATION behind CONTINUATION with END_HEADERS" => Gone(PROTOCOL_ERROR), [headers(END_STREAM, 1, &get()), continuation(END_HEADERS, 1, &more()), continuation(END_HEADERS, 1, &more())];
        "6.10", "CONTINUATION behind DATA" => Gone(PROTOCOL_ERROR), [open(), data(END_STREAM, 1, b"test"), continuation(0, 1, &more()), continuation(END_HEADERS, 0, &more())];
        "7", "GOAWAY with a code without a meaning" => Ignored, [go_away(0, 0xff), ping()];
        "7", "RST_STREAM with a code without a meaning" => Ignored, [upload(), reset(1, 0xff), ping()];
    }
}

fn windows() -> Vec<Case> {
    const MOST: u32 = (1 << 31) - 1;
    cases! {
        "6.9", "WINDOW_UPDATE of 0 on the connection" => Gone(PROTOCOL_ERROR), [window(0, 0)];
        "6.9", "WINDOW_UPDATE of 0 on a stream" => Reset(PROTOCOL_ERROR), [upload(), window(1, 0)], instead Gone(PROTOCOL_ERROR), ANY_STREAM_ERROR;
        "6.9", "WINDOW_UPDATE of 3 bytes" => Gone(FRAME_SIZE_ERROR), [frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1])], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "6.9.1", "a window of 1 is kept" => Data(1), [initial_window(1), Step::Await(Settled), request()];
        "6.9.1", "a window of the connection over 2^31-1" => Gone(FLOW_CONTROL_ERROR), [window(0, MOST), window(0, MOST)];
        "6.9.1", "a window of a stream over 2^31-1" => Reset(FLOW_CONTROL_ERROR), [upload(), window(1, MOST), window(1, MOST)];
        "6.9.2", "a change of the initial window holds for open streams" => Data(1), [initial_window(0), Step::Await(Settled), request(), initial_window(1)];
        "6.9.2", "a window below 0 is tracked" => Data(1), [initial_window(3), Step::Await(Settled), request(), Step::Await(Data(3)), initial_window(2), Step::Await(Settled), window(1, 2)];
        "6.9.2", "an initial window over 2^31-1" => Gone(FLOW_CONTROL_ERROR), [initial_window(1 << 31)], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
    }
}

fn messages() -> Vec<Case> {
    let malformed = Reset(PROTOCOL_ERROR);
    let without = |name: &str| {
        let fields = [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "a.example"),
        ];
        let left = fields.iter().filter(|(it, _)| *it != name);
        let block: Vec<u8> = left.flat_map(|(name, value)| field(name, value)).collect();
        headers(WHOLE, 1, &block)
    };
    let told = |flags| headers(flags, 1, &[post(), field("content-length", "1")].concat());
    cases! {
        "8.1", "a second HEADERS without END_STREAM" => malformed, [upload(), data(0, 1, b"test"), headers(END_HEADERS, 1, &more())];
        "8.1.2", "a name in capitals" => malformed, [with(&field("X-MORE", "y"))], instead Gone(PROTOCOL_ERROR), ANY_STREAM_ERROR;
        "8.1.2.1", "an unknown pseudo-field" => malformed, [with(&field(":more", "y"))], instead Gone(PROTOCOL_ERROR), ANY_STREAM_ERROR;
        "8.1.2.1", "the pseudo-field of a response" => malformed, [with(&field(":status", "200"))];
        "8.1.2.1", "a pseudo-field in trailers" => malformed, [upload(), data(0, 1, b"test"), headers(END_HEADERS, 1, &field(":method", "POST"))];
        "8.1.2.1", "a pseudo-field behind another field" => malformed, [headers(WHOLE, 1, &[more(), get()].concat())];
        "8.1.2.2", "a field of the connection" => malformed, [with(&field("connection", "keep-alive"))];
        "8.1.2.2", "te with more than trailers" => malformed, [with(&field("te", "trailers, deflate"))];
        "8.1.2.3", "an empty :path" => malformed, [headers(WHOLE, 1, &head("GET", ""))];
        "8.1.2.3", "no :method" => malformed, [without(":method")];
        "8.1.2.3", "no :scheme" => malformed, [without(":scheme")];
        "8.1.2.3", "no :path" => malformed, [without(":path")];
        "8.1.2.3", ":method twice" => malformed, [with(&field(":method", "GET"))];
        "8.1.2.3", ":scheme twice" => malformed, [with(&field(":scheme", "http"))];
        "8.1.2.3", ":path twice" => malformed, [with(&field(":path", "/"))];
        "8.1.2.6", "a body longer than its Content-Length" => malformed, [told(END_HEADERS), data(END_STREAM, 1, b"test")];
        "8.1.2.6", "two DATA longer than their Content-Length" => malformed, [told(END_HEADERS), data(0, 1, b"test"), data(END_STREAM, 1, b"test")];
        "8.2", "PUSH_PROMISE" => Gone(PROTOCOL_ERROR), [frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 3], &get()[..]].concat())];
    }
}

fn hpack() -> Vec<Case> {
    let value = |value: &[u8]| with(&[&[0], X_A, value].concat());
    let broken = Gone(COMPRESSION_ERROR);
    cases! {
        "2.3.3", "an index beyond the tables" => broken, [with(b"\xc6")], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "2.3.3", "a name with an index beyond the tables" => broken, [with(b"\x7f\x07\x00")], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "4.2", "a size of the table behind fields" => broken, [with(b"\x21")], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "5.2", "padding of more than 7 bits" => broken, [value(b"\x84\xf4\x54\x7f\xff")], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "5.2", "padding of zeros" => broken, [value(b"\x82\xf4\x50")], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "5.2", "the end of a string inside it" => broken, [value(b"\x87\xf4\x54\x7f\xff\xff\xfe\x8f")], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "6.1", "index 0" => broken, [with(b"\x80")], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
        "6.3", "a table larger than was allowed" => broken, [headers(WHOLE, 1, &[b"\x3f\xe2\x1f", &get()[..]].concat())], instead Gone(PROTOCOL_ERROR), LESS_PRECISE;
    }
}

// ---- the test ----

/// A connection on which both sides have acknowledged SETTINGS.
fn connect(address: SocketAddr) -> Raw {
    let mut raw = Raw::connect(address, b"");
    let first = raw.read().unwrap();
    assert_eq!(
        (first.0, first.1),
        (SETTINGS, 0),
        "SETTINGS come first (RFC 9113 §3.4)"
    );
    raw.until("an acknowledgement", |it| (it.0, it.1) == (SETTINGS, ACK));
    raw.write(&frame(SETTINGS, ACK, 0, b""));
    raw
}

/// Reads until this comes, or an error.
fn react(raw: &mut Raw, to: Reaction) -> Option<Reaction> {
    loop {
        let (kind, flags, _, payload) = raw.read()?;
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        let found = match kind {
            // `:status: 200` of the static table
            HEADERS if payload[0] == 0x88 => Answered,
            DATA => Data(payload.len()),
            PING if flags == ACK && payload == SIGN => Ignored,
            SETTINGS if flags == ACK => Settled,
            RST_STREAM => Reset(code(0)),
            WINDOW_UPDATE => continue,
            GOAWAY if code(4) == 0 => continue,
            GOAWAY => {
                let code = code(4);
                // the connection is closed behind it (RFC 9113 §5.4.1)
                while raw.read().is_some() {}
                Gone(code)
            }
            other => panic!("a frame of kind {other}: {payload:?}"),
        };
        if found == to || matches!(found, Reset(_) | Gone(_)) {
            return Some(found);
        }
    }
}

fn check(proxy: &Proxy, case: &Case) {
    let mut raw = connect(proxy.address());
    let mut unsent = Vec::new();
    for step in &case.steps {
        let Step::Send(bytes) = step else {
            raw.write(&std::mem::take(&mut unsent));
            match step {
                Step::Await(reaction) => assert_eq!(react(&mut raw, *reaction), Some(*reaction)),
                _ => drop(raw.until("the end of an answer", |it| {
                    (it.0, it.1) == (DATA, END_STREAM)
                })),
            }
            continue;
        };
        unsent.extend(bytes);
    }
    raw.write(&unsent);
    let (expected, _) = case.instead.unwrap_or((case.required, ""));
    let found = react(&mut raw, expected);
    assert_eq!(found, Some(expected), "§{}: {}", case.section, case.what);
}

const YAML: &str =
    "listen: {address: '127.0.0.1:0', http2: true}\nroutes: [{path: /, target: 'http://UP'}]\n";

fn check_all(cases: &[Case]) {
    // reads a request with its body before it answers
    let upstream = Upstream::fixed(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    ));
    let mut proxy = Proxy::before(&upstream, YAML);
    for case in cases {
        check(&proxy, case);
    }
    assert!(proxy.is_running());
    upstream.forgive();
}

#[test]
fn generic_cases() {
    check_all(&generic());
}

#[test]
fn generic_cases_of_hpack() {
    check_all(&generic_hpack());
}

#[test]
fn cases_of_frames() {
    check_all(&frames());
}

#[test]
fn cases_of_streams() {
    check_all(&streams());
}

#[test]
fn cases_of_each_kind_of_frame() {
    check_all(&definitions());
}

#[test]
fn cases_of_windows() {
    check_all(&windows());
}

#[test]
fn cases_of_messages() {
    check_all(&messages());
}

#[test]
fn cases_of_hpack() {
    check_all(&hpack());
}

/// §3.5 asks for a connection error of HTTP/2 where the preface is wrong. "A GOAWAY frame MAY be omitted in this case, since
/// an invalid preface indicates that the peer is not using HTTP/2" (RFC 9113 §3.4), and this listener speaks HTTP/1.1 too: it
/// reads a request line, refuses it in HTTP/1.1, and ends the connection. h2spec counts these bytes as a failure.
#[test]
fn bytes_that_are_no_preface_are_read_as_http_1() {
    let upstream = Upstream::fixed("");
    let proxy = Proxy::before(&upstream, YAML);
    let mut client = proxy.client();
    let answer = client.ask("INVALID CONNECTION PREFACE\r\n\r\n");
    assert_eq!(answer.status, 400);
    client.end();
    assert_eq!(upstream.connections(), 0);
}

/// RFC 9113 §8.1 calls this malformed. h2spec's case has no `END_STREAM` and is reset for that; with it hyper takes the trailers
/// without their pseudo-fields, so that none reaches the upstream.
#[test]
fn pseudo_fields_of_trailers_are_not_passed_on() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, YAML);
    let mut raw = connect(proxy.address());
    let trailers = [field(":method", "PUT"), more()].concat();
    raw.write(&[upload(), data(0, 1, b"test"), headers(WHOLE, 1, &trailers)].concat());
    assert_eq!(react(&mut raw, Answered), Some(Answered));
    let sent = upstream.received(0);
    assert!(
        sent.ends_with(b"0\r\nx-more: y\r\n\r\n"),
        "{}",
        sent.escape_ascii()
    );
}

/// All of h2spec's 147, one of which is for its strict mode, but the preface's two: [`connect`] and the test above have them.
#[test]
fn no_case_is_left_out() {
    let all = [
        generic(),
        generic_hpack(),
        frames(),
        streams(),
        definitions(),
        windows(),
        messages(),
        hpack(),
    ];
    assert_eq!(all.iter().map(Vec::len).sum::<usize>(), 145);
    for case in all.iter().flatten() {
        let differs = case
            .instead
            .filter(|(reaction, _)| *reaction != case.required);
        assert_eq!(differs.is_some(), case.instead.is_some(), "{}", case.what);
    }
}
