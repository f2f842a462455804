#!/usr/bin/env python3
"""Writes what hostile clients of HTTP/2 and TLS send, one file for each attack.

frames.py FOLDER      NAME is sent once on a connection, NAME.again, where there is one, without end behind it
"""

import ssl
import sys
from pathlib import Path

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION, UNKNOWN = 0, 1, 2, 3, 4, 6, 8, 9, 0x20
END_STREAM, END_HEADERS = 1, 4
STREAMS = 120  # more than a client may have


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def integer(value: int) -> bytes:
    """A length with a prefix of seven bits (RFC 7541 section 5.1)."""
    if value < 127:
        return bytes([value])
    rest, out = value - 127, [127]
    while rest >= 128:
        out.append(rest % 128 | 128)
        rest //= 128
    return bytes([*out, rest])


def field(name: str, value: str, kind: int = 0) -> bytes:
    """A field without indexing, or with it where `kind` is 0x40."""
    return bytes([kind]) + integer(len(name)) + name.encode() + integer(len(value)) + value.encode()


def head(method: str, path: str, kind: int = 0) -> bytes:
    return field(":method", method) + field(":scheme", "http") + field(":path", path, kind) + field(":authority", "flood")


def get(stream: int, path: str, more: bytes = b"") -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, head("GET", path) + more)


def post(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, head("POST", "/sink"))


def reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big"))


def indexed(stream: int, path: str) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, head("GET", path, 0x40) + field("x-a", "x" * 7_600))


def tiny(count: int) -> bytes:
    return b"".join(field(chr(97 + number % 26), "") for number in range(count))


def streams(count: int) -> range:
    return range(1, 2 * count, 2)


def http2() -> dict[str, tuple[bytes, bytes]]:
    """What is sent behind the preface, once and again."""
    many = streams(STREAMS)
    batches = [streams(30 * STREAMS)[at : at + STREAMS] for at in range(0, 30 * STREAMS, STREAMS)]
    uploads = b"".join(map(post, streams(8)))
    trailers = [post(i) + frame(DATA, 0, i, b"x" * 300) + frame(HEADERS, END_HEADERS | END_STREAM, i, tiny(240)) for i in streams(30)]
    far = [frame(DATA, 0, i, b"x" * 256) + frame(UNKNOWN, 0, 0, bytes(7_800)) for i in streams(8) for _ in range(30)]
    once = {
        "resets-in-batches": b"".join(b"".join(get(i, "/silent") for i in batch) + b"".join(map(reset, batch)) for batch in batches),
        "resets": b"".join(get(i, "/silent") + reset(i) for i in streams(3_000)),
        "continuation": frame(HEADERS, 0, 1, head("GET", "/silent")) + frame(CONTINUATION, 0, 1, field("x-a", "x" * 16_000)) * 50,
        "far-pieces": uploads + b"".join(far),
        "table": b"".join(indexed(i, f"/good/{i:03}") for i in streams(107)),
        "window-0": frame(SETTINGS, 0, 0, bytes([0, 4, 0, 0, 0, 0])) + b"".join(get(i, "/body/100000") for i in streams(100)),
        "unread": b"".join(get(i, "/body/100000") for i in many),
        "heads": b"".join(get(i, "/silent", tiny(240)) for i in many),
        "large-heads": b"".join(get(i, "/silent", tiny(450)) for i in many),
        "trailers": b"".join(trailers),
        "half-head": indexed(1, "/silent")[:-1],
        "half-body": post(1) + frame(DATA, 0, 1, b"x" * 16_000)[:-1],
        "half-open": b"".join(map(post, streams(1_000))),
    }
    again = {
        "settings": frame(SETTINGS, 0, 0, bytes([0, 4, 0, 0, 255, 255])),
        "pings": frame(PING, 0, 0, bytes(8)),
        "priorities": frame(PRIORITY, 0, 1, bytes([0, 0, 0, 0, 1])),
        "window-updates": frame(WINDOW_UPDATE, 0, 0, (1).to_bytes(4, "big")),
        "unknown": frame(UNKNOWN, 0, 0, bytes(100)),
    }
    both = {name: (bytes_, b"") for name, bytes_ in once.items()} | {name: (b"", bytes_) for name, bytes_ in again.items()}
    both["empty-continuation"] = (frame(HEADERS, 0, 1, head("GET", "/silent")), frame(CONTINUATION, 0, 1, b""))
    both["empty-data"] = (post(1), frame(DATA, 0, 1, b""))
    both["small-data"] = (post(1), frame(DATA, 0, 1, b"x"))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"")
    return {name: (preface + first, more * (1 + 16_000 // len(more)) if more else b"") for name, (first, more) in both.items()}


def tls() -> dict[str, bytes]:
    """Handshakes that do not go on."""
    out = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="proxy.example")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    hello = out.read()
    message = bytes([1, 0, 0xEA, 0x60]) + bytes(58_996)  # a hello of 60 kB, without its end
    record = bytes([22, 3, 1])
    return {
        "hello": hello,
        "half-hello": hello[: len(hello) // 2],
        "bytewise-hello": b"".join(record + bytes([0, 1, byte]) for byte in message[:5_000]),
        "long-hello": b"".join(record + len(part).to_bytes(2, "big") + part for part in (message[at : at + 16_000] for at in range(0, 59_000, 16_000))),
        "garbage": record + bytes([0, 5]) + b"\x09" * 5,
    }


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (once, again) in http2().items():
        (folder / name).write_bytes(once)
        if again:
            (folder / f"{name}.again").write_bytes(again)
    for name, hello in tls().items():
        (folder / name).write_bytes(hello)


main(Path(sys.argv[1]))
