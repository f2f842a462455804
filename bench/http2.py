#!/usr/bin/env python3
"""Measures TLS and HTTP/2 towards clients: lean-proxy, and those of nginx, HAProxy, lighttpd and h2o that are installed.

    python3 bench/http2.py BINARY                   some fifteen minutes
    python3 bench/http2.py BINARY --only nginx      one peer; --only "" for none

Prints two tables in Markdown: what clients cost, and nine loads in a memory cgroup of 10 MiB (as root). Each proxy has one
worker, a P-256 certificate, and offers h2 and http/1.1. All traffic is on loopback. Needs Linux, Python 3, openssl and cargo.
"""

import argparse
import http.client
import multiprocessing
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from multiprocessing.synchronize import Event
from pathlib import Path

import contenders
from contenders import Contender, Site, version
from machine import MB, PROXY_CPUS, Box, Running, prepare, work_folder
from measures import Testbed
from run import build

LIMIT = 10 * MB
PATH = "/api/bytes/100"
LARGE = "/api/bytes/100000"
SINK = "/api/sink"
CROWD = 200
ATTACKERS = 20
STREAMS = 100
PATIENCE = 5.0
SECONDS = 6.0
ROUNDS = 5
# A load is survived if the process lives, serves afterwards, and answered this share of the good requests meanwhile.
ENOUGH = 0.95

FORK = multiprocessing.get_context("fork")
# Each idle client raises it behind its first answer.
ANSWERED = FORK.Semaphore(0)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4


# ---- the proxies ----


def files(site: Site) -> tuple[Path, Path, Path]:
    """Certificate, key, and both in one file."""
    return site.folder.parent / "server.pem", site.folder.parent / "server.key", site.folder.parent / "server.both"


def make_certificate(work: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(work / "server.key"), "-out", str(work / "server.pem")],
        check=True,
        capture_output=True,
    )
    (work / "server.both").write_text((work / "server.pem").read_text() + (work / "server.key").read_text())
    (work / "server.key").chmod(0o644)
    (work / "server.both").chmod(0o644)


def lean_proxy(site: Site) -> tuple[list[str], dict[str, str]]:
    certificate, key, _ = files(site)
    config = site.folder / "config.yaml"
    config.write_text(
        f"""listen:
  address: "127.0.0.1:{site.port}"
  http2: true
  tls: {{certificates: [{{cert_file: "{certificate}", key_file: "{key}"}}]}}
routes:
  - {{path: /api/, target: "http://127.0.0.1:{site.upstream}/"}}
"""
    )
    return [site.binary, str(config)], {}


def changed(site: Site, name: str, set_up: contenders.SetUp, changes: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """The configuration of the other benchmark, with its listener changed."""
    command, environment = set_up(site)
    config = site.folder / name
    text = config.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    config.write_text(text)
    return command, environment


def nginx(site: Site) -> tuple[list[str], dict[str, str]]:
    certificate, key, _ = files(site)
    listen = f"listen 127.0.0.1:{site.port} ssl http2 backlog=4096; ssl_certificate {certificate}; ssl_certificate_key {key};"
    return changed(site, "nginx.conf", contenders.nginx, {f"listen 127.0.0.1:{site.port} backlog=4096;": listen})


def haproxy(site: Site) -> tuple[list[str], dict[str, str]]:
    bind = f"bind 127.0.0.1:{site.port} backlog 4096"
    return changed(site, "haproxy.cfg", contenders.haproxy, {bind: f"{bind} ssl crt {files(site)[2]} alpn h2,http/1.1"})


def lighttpd(site: Site) -> tuple[list[str], dict[str, str]]:
    certificate, key, _ = files(site)
    engine = f'server.modules = ( "mod_openssl", "mod_proxy" )\nssl.engine = "enable"\nssl.pemfile = "{certificate}"\nssl.privkey = "{key}"\n'
    made = changed(site, "lighttpd.conf", contenders.lighttpd, {'server.modules = ( "mod_proxy" )\n': engine})
    for place in ("/usr/lib/lighttpd", "/usr/lib64/lighttpd", "/usr/local/lib/lighttpd"):
        if Path(place, "mod_openssl.so").exists():
            shutil.copy(Path(place, "mod_openssl.so"), site.folder / "modules")
    return made


def h2o(site: Site) -> tuple[list[str], dict[str, str]]:
    certificate, key, _ = files(site)
    config = site.folder / "h2o.conf"
    config.write_text(
        f"""num-threads: 1
max-connections: {site.connections}
error-log: {site.folder}/error.log
{"user: root" if os.getuid() == 0 else ""}
listen:
  host: 127.0.0.1
  port: {site.port}
  ssl: {{certificate-file: {certificate}, key-file: {key}}}
hosts:
  default:
    paths:
      /api/: {{proxy.reverse.url: "http://127.0.0.1:{site.upstream}/"}}
"""
    )
    return [site.binary, "-c", str(config)], {}


PEERS = {
    "nginx": ("nginx", nginx, "-v"),
    "haproxy": ("HAProxy", haproxy, "-v"),
    "lighttpd": ("lighttpd", lighttpd, "-v"),
    "h2o": ("h2o", h2o, "-v"),
}


def gather(binary: str, only: str | None) -> list[Contender]:
    found = [Contender("lean-proxy", lean_proxy, binary, version([binary, "--version"]))]
    for program, (name, set_up, ask) in PEERS.items():
        path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        if path is not None and only in (None, program):
            found.append(Contender(name, set_up, path, version([path, ask])))
    return found


@contextmanager
def serving(lab: Testbed, contender: Contender, connections: int, box: Box | None = None) -> Iterator[tuple[Running, int]]:
    site = lab.site(contender, connections)
    command, own = contender.set_up(site)
    environment = {"PATH": os.environ.get("PATH", ""), **contender.library_path, **own}
    lab.copies.forget(contender.name)
    running = Running(command, environment, site.folder, box, PROXY_CPUS)
    try:
        if not answers(site.port, 20):
            raise OSError(f"{contender.name} does not start: {site.folder}")
        yield running, site.port
    finally:
        running.stop()


# ---- clients ----


@cache
def tls(*protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols))
    return context


def connect(port: int) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=tls("http/1.1"))


def get(client: http.client.HTTPSConnection) -> bool:
    client.request("GET", PATH)
    answer = client.getresponse()
    return answer.status == 200 and len(answer.read()) == 100


def once(port: int) -> bool:
    """A request on a connection of its own."""
    client = connect(port)
    try:
        return get(client)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        client.close()


def answers(port: int, seconds: float) -> bool:
    """Whether a request is answered within this time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if once(port):
            return True
        time.sleep(0.05)
    return False


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: str, value: str) -> bytes:
    """A field that is kept in no table (RFC 7541 §6.2.2), its name and value below 127 bytes."""
    return bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def head(method: str, path: str) -> bytes:
    fields = ((":method", method), (":scheme", "https"), (":path", path), (":authority", "proxy.test"))
    return b"".join(literal(name, value) for name, value in fields)


def request(stream: int, path: str) -> bytes:
    return frame(HEADERS, END_STREAM | END_HEADERS, stream, head("GET", path))


class Http2:
    """A connection, or one of HTTP/1.1 where the proxy chose that."""

    def __init__(self, port: int, settings: bytes = b"") -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket = tls("h2", "http/1.1").wrap_socket(plain, server_hostname="localhost")
        self.is_http2 = self.socket.selected_alpn_protocol() == "h2"
        self._unread = b""
        if self.is_http2:
            self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))

    def ask(self) -> None:
        """One request, answered."""
        if not self.is_http2:
            self.socket.sendall(f"GET {PATH} HTTP/1.1\r\nHost: proxy.test\r\n\r\n".encode())
            got = b""
            while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < 100:
                got += self._read()
            return
        self.socket.sendall(frame(SETTINGS, 1, 0) + request(1, PATH))
        while True:
            kind, flags = self._frame()
            if kind == DATA and flags & END_STREAM:
                return

    def _frame(self) -> tuple[int, int]:
        while len(self._unread) < 9 or len(self._unread) < 9 + int.from_bytes(self._unread[:3], "big"):
            self._unread += self._read()
        kind, flags = self._unread[3:5]
        self._unread = self._unread[9 + int.from_bytes(self._unread[:3], "big") :]
        return kind, flags

    def _read(self) -> bytes:
        got = self.socket.recv(65_536)
        if not got:
            raise ConnectionResetError("closed")
        return got


# ---- loads ----

# What one client of a load does; it returns when the load is over, and is called again when its connection breaks.
Work = Callable[[int, threading.Event], None]


def idle_tls(port: int, over: threading.Event) -> None:
    client = connect(port)
    get(client)
    ANSWERED.release()
    over.wait()
    client.close()


def idle_http2(port: int, over: threading.Event) -> None:
    client = Http2(port)
    client.ask()
    ANSWERED.release()
    over.wait()
    client.socket.close()


def busy_tls(port: int, over: threading.Event) -> None:
    client = connect(port)
    while not over.is_set():
        get(client)
    client.close()


def attack(settings: bytes, opening: bytes, batches: Callable[[], Iterator[bytes]]) -> Work:
    """Sends these frames as long as the proxy takes them, reads nothing, and stays."""

    def work(port: int, over: threading.Event) -> None:
        client = Http2(port, settings)
        if client.is_http2:
            client.socket.settimeout(0.5)
            try:
                client.socket.sendall(opening)
                for batch in batches():
                    client.socket.sendall(batch)
                    if over.is_set():
                        break
            except TimeoutError:
                pass
        over.wait()
        client.socket.close()

    return work


def forever(batch: bytes) -> Callable[[], Iterator[bytes]]:
    def repeated() -> Iterator[bytes]:
        while True:
            yield batch

    return repeated


def streams(count: int, ask: Callable[[int], bytes]) -> bytes:
    return b"".join(ask(2 * number + 1) for number in range(count))


def resets() -> Iterator[bytes]:
    stream = 1
    while True:
        batch = b""
        for _ in range(50):
            batch += request(stream, PATH) + frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big"))
            stream += 2
        yield batch


def nothing() -> Iterator[bytes]:
    return iter(())


BOMB = b"".join(literal(chr(ord("a") + number % 26), "") for number in range(300))
UNENDED = literal("x-a", "x" * 100) * 150

LOADS: list[tuple[str, int, Work]] = [
    ("200 idle TLS clients", CROWD, idle_tls),
    ("200 idle HTTP/2 clients", CROWD, idle_http2),
    ("200 busy TLS clients", CROWD, busy_tls),
    ("rapid reset", ATTACKERS, attack(b"", b"", resets)),
    ("window 0, 100 answers of 100 kB", ATTACKERS, attack(b"\0\4\0\0\0\0", streams(STREAMS, lambda it: request(it, LARGE)), nothing)),
    ("PING", ATTACKERS, attack(b"", b"", forever(frame(PING, 0, 0, bytes(8)) * 500))),
    ("SETTINGS", ATTACKERS, attack(b"", b"", forever(frame(SETTINGS, 0, 0, b"\0\4\0\0\xff\xff") * 500))),
    (
        "CONTINUATION",
        ATTACKERS,
        attack(b"", frame(HEADERS, 0, 1, head("GET", PATH)), forever(frame(CONTINUATION, 0, 1, UNENDED))),
    ),
    (
        "100 heads of 300 fields",
        ATTACKERS,
        attack(b"", streams(STREAMS, lambda it: frame(HEADERS, END_HEADERS, it, head("POST", SINK) + BOMB)), nothing),
    ),
]


def stay(port: int, count: int, work: Work, left: Event) -> None:
    """A crowd in a process of its own, so that it does not delay the good requests."""
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            try:
                work(port, over)
            except (OSError, http.client.HTTPException):
                over.wait(0.2)

    clients = [threading.Thread(target=client, daemon=True) for _ in range(count)]
    for each in clients:
        each.start()
    left.wait()
    over.set()
    for each in clients:
        each.join(PATIENCE)


@contextmanager
def crowd(port: int, count: int, work: Work) -> Iterator[None]:
    left = FORK.Event()
    process = FORK.Process(target=stay, args=(port, count, work, left), daemon=True)
    process.start()
    try:
        yield
    finally:
        left.set()
        process.join(2 * PATIENCE)
        process.kill()


def good_requests(port: int) -> tuple[list[float], int]:
    """A request on a connection of its own every 50 ms: the seconds of those that were answered, and how many were not."""
    took: list[float] = []
    failed = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        begun = time.monotonic()
        if once(port):
            took.append(time.monotonic() - begun)
        else:
            failed += 1
        time.sleep(0.05)
    return took, failed


def under(lab: Testbed, contender: Contender, count: int, work: Work) -> tuple[bool, str]:
    """Whether the load is survived, and how."""
    box = Box.make(LIMIT)
    if box is None:
        return False, "not measured"
    try:
        with serving(lab, contender, 4096, box) as (running, port):
            with crowd(port, count, work):
                time.sleep(2)
                took, failed = good_requests(port)
            lives = answers(port, 2 * PATIENCE)
            kills, peak = box.kills(), box.peak() / MB
            if kills or not running.alive():
                return False, "killed"
            if not lives:
                return False, "hangs"
    except OSError:
        return False, "does not start" if not box.kills() else "killed"
    all_of_them = len(took) + failed
    median = f"{1000 * statistics.median(took):.0f} ms, " if took else ""
    lost = f"{failed} of {all_of_them} failed, " if failed else ""
    return len(took) >= ENOUGH * all_of_them, f"{median}{lost}{peak:.1f} MB"


# ---- costs ----


def per_client(lab: Testbed, contender: Contender, count: int, work: Work) -> tuple[float, float]:
    """PSS before, in MB, and bytes for each client that idles behind a request."""
    with serving(lab, contender, 4096) as (running, port):
        time.sleep(3)
        before = running.pss()
        while ANSWERED.acquire(block=False):
            pass
        with crowd(port, count, work):
            for _ in range(count):
                if not ANSWERED.acquire(timeout=10 * PATIENCE):
                    raise OSError(f"{contender.name} does not answer {count} clients")
            time.sleep(1)
            return before / MB, (running.pss() - before) / count


def idle(lab: Testbed, contender: Contender) -> float:
    """PSS with one TLS listener, in MB, without any client since the start's."""
    with serving(lab, contender, 1024) as (running, _):
        time.sleep(3)
        return running.pss() / MB


def cpu_costs(lab: Testbed, contender: Contender) -> tuple[float, float]:
    """Microseconds of processor time: a handshake with one request and the close; a request on a kept connection."""
    with serving(lab, contender, 1024) as (running, port):
        for _ in range(20):
            once(port)
        begun = running.cpu()
        for _ in range(200):
            once(port)
        handshake = (running.cpu() - begun) / 200
        client = connect(port)
        for _ in range(200):
            get(client)
        begun = running.cpu()
        for _ in range(1_000):
            get(client)
        kept = (running.cpu() - begun) / 1_000
        client.close()
        return handshake * 1e6, kept * 1e6


def costs(lab: Testbed, all_of_them: list[Contender]) -> list[list[str]]:
    rows = [["idle, PSS, with one TLS listener"], ["… each of 1,000 idle TLS clients"], ["… each of 200 idle HTTP/2 clients"]]
    for contender in all_of_them:
        rows[0].append(f"{idle(lab, contender):.1f} MB")
        rows[1].append(f"{per_client(lab, contender, 1_000, idle_tls)[1] / 1000:.1f} kB")
        rows[2].append(f"{per_client(lab, contender, CROWD, idle_http2)[1] / 1000:.1f} kB")
    measured: dict[str, list[tuple[float, float]]] = {it.name: [] for it in all_of_them}
    for _ in range(ROUNDS):
        for contender in all_of_them:
            measured[contender.name].append(cpu_costs(lab, contender))
    for number, what in enumerate(("CPU of a handshake, one request and the close", "CPU of a request on a kept TLS connection")):
        least = {name: min(each[number] for each in rounds) for name, rounds in measured.items()}
        base = least.get("nginx", 0.0)
        row = [f"{what}, against nginx" if base else what]
        for name, value in least.items():
            row.append(f"{value / base:.2f}" if base and name != "nginx" else f"1 ({value:.0f} µs)" if base else f"{value:.0f} µs")
        rows.append(row)
    return rows


def print_table(first: str, names: list[str], rows: list[list[str]]) -> None:
    print(f"| {first} | " + " | ".join(names) + " |")
    print("| --- |" + " --- |" * len(names))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("binary")
    options.add_argument("--only")
    options.add_argument("--part", choices=("costs", "loads"))
    given = options.parse_args()
    prepare()
    lab = Testbed(build("--example=traffic")["traffic"], work_folder())
    try:
        make_certificate(lab.work)
        all_of_them = [replace(it) for it in gather(given.binary, given.only)]
        names = [it.name for it in all_of_them]
        print(", ".join(f"{it.name} {it.version}" for it in all_of_them) + "\n", flush=True)
        for contender in all_of_them:
            lab.use_private_copy(contender)
        if given.part != "loads":
            print_table("", names, costs(lab, all_of_them))
        if given.part != "costs":
            rows = []
            survived = dict.fromkeys(names, 0)
            for what, count, work in LOADS:
                row = [what]
                for contender in all_of_them:
                    well, how = under(lab, contender, count, work)
                    survived[contender.name] += well
                    row.append(("**yes**, " if well else "no, ") + how)
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
            rows.append([f"survived, of {len(LOADS)}", *(str(survived[name]) for name in names)])
            print_table("in 10 MiB", names, rows)
    finally:
        lab.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
