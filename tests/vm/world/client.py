#!/usr/bin/env python3
"""Clients for what curl cannot do.

client.py raw HOST PORT                        sends stdin unchanged, prints the answer
client.py sse HOST PORT TARGET                 prints when each event arrived, in seconds
client.py websocket HOST PORT TARGET [HOLD]    sends every second for HOLD seconds; everything must be echoed
client.py probe HOST PORT TARGET --until FILE  asks on a new connection each 0.2 s until FILE exists; prints a line at the
                                               first answer, and counts by status and the slowest answer at the end;
                                               over TLS with --tls, whatever the certificate
client.py load HOST PORT TARGET CLIENTS EACH   CLIENTS clients with EACH requests each; counts the answers by status
client.py hold KIND HOST PORT COUNT SECONDS    COUNT clients that keep a connection or a request open:
     idle     a request, and then nothing
     heads    half a head, and a byte every second
     bodies   a Content-Length and no body
     readers  a large answer that is not read
     streams  server-sent events, which are read
     endless  an endless head
  writes a line to the file of --ready when all are connected, and at the end counts how they ended
"""

import argparse
import asyncio
import collections
import json
import os
import ssl
import sys
import time

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def raw(host: str, port: int) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(sys.stdin.buffer.read())
    await writer.drain()
    while piece := await asyncio.wait_for(reader.read(65536), 20):
        sys.stdout.buffer.write(piece)
        sys.stdout.flush()


async def sse(host: str, port: int, target: str) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    start = time.monotonic()
    came = []
    while line := await reader.readline():
        if line.startswith(b"data:"):
            came.append(round(time.monotonic() - start, 2))
    print(json.dumps(came))


async def websocket(host: str, port: int, target: str, hold: float) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(
        f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode()
    assert head.startswith("HTTP/1.1 101 "), head
    assert "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head, head
    frame = b"\x82\xfe\x04\x00" + bytes(4) + os.urandom(1024)
    end = time.monotonic() + hold
    while True:
        writer.write(frame)
        assert await asyncio.wait_for(reader.readexactly(len(frame)), 20) == frame
        if time.monotonic() >= end:
            break
        await asyncio.sleep(1)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 20) == b""
    print("all of it came back")


async def probe(host: str, port: int, target: str, until: str, tls: bool) -> None:
    context = ssl._create_unverified_context() if tls else None
    answers: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    while not os.path.exists(until):
        start = time.monotonic()
        answers[await status_of(host, port, target, context)] += 1
        slowest = max(slowest, time.monotonic() - start)
        if answers.total() == 1:
            print("begun", flush=True)
        await asyncio.sleep(0.2)
    print(json.dumps({"answers": answers, "slowest": round(slowest, 2)}))


async def status_of(host: str, port: int, target: str, context: ssl.SSLContext | None) -> str:
    """The status of one request on a new connection, or the error."""
    try:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            writer.write(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            return answer[9:12].decode() or "nothing"
    except (OSError, asyncio.TimeoutError) as e:
        return type(e).__name__


async def load(host: str, port: int, target: str, clients: int, each: int) -> None:
    seen: collections.Counter[str] = collections.Counter()

    async def one() -> None:
        pair: Pair | None = None
        for _ in range(each):
            try:
                pair = pair or await asyncio.open_connection(host, port)
                reader, writer = pair
                writer.write(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
                length = next(int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length"))
                await reader.readexactly(length)
                seen[head.split(b" ")[1].decode()] += 1
                if b"connection: close" in head.lower():
                    writer.close()
                    pair = None
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as e:
                seen[type(e).__name__] += 1
                pair = None

    await asyncio.gather(*(one() for _ in range(clients)))
    print(json.dumps(seen))


async def hold(kind: str, host: str, port: int, count: int, seconds: float, ready: str) -> None:
    first = {
        "idle": "GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        "heads": "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        "bodies": "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
        "readers": "GET /bytes?size=100000000 HTTP/1.1\r\nHost: x\r\n\r\n",
        "streams": "GET /sse?count=100000&pause=1 HTTP/1.1\r\nHost: x\r\n\r\n",
        "endless": "GET / HTTP/1.1\r\nHost: x\r\n",
    }[kind]
    more = {"heads": b"x", "endless": b"X-More: " + b"x" * 8000 + b"\r\n"}.get(kind, b"")
    gone: collections.Counter[str] = collections.Counter()
    there = asyncio.Semaphore(0)

    async def one() -> None:
        counted = False
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port, limit=4096), 60)
            writer.write(first.encode())
            await writer.drain()
            if kind in ("idle", "streams"):
                line = await asyncio.wait_for(reader.readline(), 60)
                gone["answer " + line[9:12].decode()] += 1
            if kind == "readers":
                await reader.readexactly(1)
            there.release()
            counted = True
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                if more:
                    writer.write(more)
                    await asyncio.wait_for(writer.drain(), left)
                if kind == "readers":
                    await asyncio.sleep(left)
                elif not more or kind == "heads":
                    try:
                        if not await asyncio.wait_for(reader.read(4096), min(left, 1) if more else left):
                            gone["let go"] += 1
                            return
                    except asyncio.TimeoutError:
                        pass
            gone["stayed"] += 1
            writer.close()
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as e:
            gone[type(e).__name__] += 1
        finally:
            if not counted:
                there.release()

    clients = [asyncio.create_task(one()) for _ in range(count)]
    for _ in clients:
        await there.acquire()
    if ready:
        with open(ready, "w") as f:
            f.write("ready\n")
    await asyncio.gather(*clients)
    print(json.dumps(gone))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["raw", "sse", "websocket", "probe", "load", "hold"])
    p.add_argument("rest", nargs="*")
    p.add_argument("--ready", default="")
    p.add_argument("--until", default="")
    p.add_argument("--tls", action="store_true")
    a = p.parse_args()
    r = a.rest
    if a.what == "raw":
        asyncio.run(raw(r[0], int(r[1])))
    elif a.what == "sse":
        asyncio.run(sse(r[0], int(r[1]), r[2]))
    elif a.what == "websocket":
        asyncio.run(websocket(r[0], int(r[1]), r[2], float(r[3]) if len(r) > 3 else 0))
    elif a.what == "probe":
        asyncio.run(probe(r[0], int(r[1]), r[2], a.until, a.tls))
    elif a.what == "load":
        asyncio.run(load(r[0], int(r[1]), r[2], int(r[3]), int(r[4])))
    else:
        asyncio.run(hold(r[0], r[1], int(r[2]), int(r[3]), float(r[4]), a.ready))


main()
