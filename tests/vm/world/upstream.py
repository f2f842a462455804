#!/usr/bin/env python3
"""The upstream of the tests: an HTTP/1.1 server that returns what it received.

upstream.py PORT [CERTIFICATE KEY]

The last word of the path decides the answer:
  sse?count=5&pause=0.5    `count` server-sent events, `pause` seconds apart
  bytes?size=N             N bytes with a Content-Length
  slow?seconds=S           an answer after S seconds
  sent                     how many bytes of `bytes` answers were written so far
  cors                     an answer with CORS headers of the upstream's own
  ws                       101, and then every byte is echoed
  anything else            the request as JSON: method, target, headers, size and SHA-256 of the body
"""

import asyncio
import base64
import hashlib
import json
import ssl
import sys
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

Headers = list[tuple[str, str]]
PIECE = 16384
sent = 0


class Request:
    def __init__(self, head: bytes, reader: asyncio.StreamReader) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = first.split(" ", 2)
        self.headers: Headers = []
        for line in filter(None, lines):
            name, value = line.split(":", 1)
            self.headers.append((name, value.strip()))
        self.reader = reader

    def header(self, name: str) -> str:
        return next((v for n, v in self.headers if n.lower() == name), "")

    async def body(self) -> AsyncIterator[bytes]:
        if "chunked" in self.header("transfer-encoding"):
            while size := int((await self.reader.readline()).split(b";")[0], 16):
                left = size
                while left:
                    piece = await self.reader.readexactly(min(left, PIECE))
                    left -= len(piece)
                    yield piece
                await self.reader.readline()
            while (await self.reader.readline()).strip():
                pass
        else:
            left = int(self.header("content-length") or 0)
            while left:
                piece = await self.reader.readexactly(min(left, PIECE))
                left -= len(piece)
                yield piece


async def answer(request: Request, writer: asyncio.StreamWriter) -> bool:
    """Answers one request; false if the connection must be closed."""
    global sent
    url = urlsplit(request.target)
    query = {k: v[0] for k, v in parse_qs(url.query).items()}
    word = url.path.rsplit("/", 1)[-1]

    if word == "ws":
        await websocket(request, writer)
        return False

    if word == "sse":
        head(writer, 200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        for n in range(int(query.get("count", "5"))):
            event = b"data: %d\n\n" % n
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(float(query.get("pause", "0.5")))
        writer.write(b"0\r\n\r\n")
        return True

    if word == "bytes":
        left = int(query["size"])
        head(writer, 200, [("Content-Type", "application/octet-stream"), ("Content-Length", str(left))])
        while left:
            piece = bytes(min(left, PIECE))
            left -= len(piece)
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
        return True

    if word == "sent":
        text = str(sent).encode()
        head(writer, 200, [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
        writer.write(text)
        return True

    if word == "slow":
        await asyncio.sleep(float(query["seconds"]))

    size, digest = 0, hashlib.sha256()
    if request.header("expect").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    async for piece in request.body():
        size += len(piece)
        digest.update(piece)
    seen = {
        "method": request.method,
        "target": request.target,
        "headers": request.headers,
        "size": size,
        "sha256": digest.hexdigest(),
    }
    body = json.dumps(seen).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    if word == "cors":
        headers += [
            ("Access-Control-Allow-Origin", "https://upstream.example"),
            ("Access-Control-Allow-Methods", "PURGE"),
            ("Vary", "Accept-Encoding"),
        ]
    head(writer, 200, headers)
    if request.method != "HEAD":
        writer.write(body)
    return True


def head(writer: asyncio.StreamWriter, status: int, headers: Headers) -> None:
    lines = [f"HTTP/1.1 {status} x", "Server: upstream", *(f"{n}: {v}" for n, v in headers)]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))


async def websocket(request: Request, writer: asyncio.StreamWriter) -> None:
    key = request.header("sec-websocket-key").encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key).digest()).decode()
    head(writer, 101, [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)])
    while piece := await request.reader.read(PIECE):
        writer.write(piece)
        await writer.drain()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            request = Request(await reader.readuntil(b"\r\n\r\n"), reader)
            again = await answer(request, writer)
            await writer.drain()
            if not again or request.header("connection").lower() == "close":
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    port, *pair = sys.argv[1:]
    tls = None
    if pair:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*pair)
    server = await asyncio.start_server(serve, None, int(port), ssl=tls, limit=1 << 20, backlog=1024)
    async with server:
        await server.serve_forever()


asyncio.run(main())
