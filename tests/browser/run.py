#!/usr/bin/env python3
"""Tests CORS in a browser:  python3 tests/browser/run.py target/debug/lean-proxy

In a headless Chromium, pages on three origins run the checks of checks.js and post the results, three times: with a sound
configuration every result must be as in EXPECTED; with one that grants nothing, every response that should be readable must
be blocked; with one that grants everything, the reverse. So no check can pass without testing something.

Needs Chromium (Debian: `apt-get install chromium`); without it the exit code is 77. All traffic is on loopback.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue

HERE = Path(__file__).resolve().parent
SKIPPED = 77
# seconds for a page to post its results: a check may take ten seconds, and usually takes a fraction of one
PATIENCE = 120
NAMES = ("allowed", "stranger", "localhost")
LISTED = 0  # the origin that the configuration lists

# The result of a check where the browser hides the response from the page, and where there was none in time.
BLOCKED, LATE = "blocked", "timed out"

# The results of each check on the three origins.
EXPECTED: dict[str, tuple[str, str, str]] = {}


def everywhere(name: str, value: str) -> None:
    EXPECTED[name] = (value, value, value)


def where_listed(name: str, value: str) -> None:
    EXPECTED[name] = (value, BLOCKED, BLOCKED)


where_listed("a simple request", "plain")
where_listed("a simple request with a body", "POST text/plain;charset=UTF-8 none hello")
where_listed("PUT with a field of its own", 'PUT application/json custom {"a":1}')
where_listed("PATCH with a field of its own", 'PATCH application/json custom {"a":1}')
where_listed("DELETE", "DELETE none none ")
everywhere("a method that is not allowed", BLOCKED)
everywhere("a field that is not allowed", BLOCKED)
where_listed("an exposed field", "extra")
everywhere("a field that is not exposed", BLOCKED)
where_listed("cookies", "crumb=1")
where_listed("cookies with a preflight", "crumb=1")
where_listed("cookies where the upstream grants them", "generous")
everywhere("cookies where the upstream does not", BLOCKED)
everywhere("a star", "plain")
everywhere("a star with cookies", BLOCKED)
everywhere("a star with a preflight", 'PUT application/json custom {"a":1}')
everywhere("a star for a page without an origin", "plain")
everywhere("a list for a page without an origin", BLOCKED)
everywhere("a route with CORS off", BLOCKED)
EXPECTED["any port of localhost"] = (BLOCKED, BLOCKED, "plain")
for code in (400, 404, 413, 431, 502, 503, 504):
    where_listed(f"a {code} of ours", f"{code} with its sentence")
where_listed("an EventSource", "one two three")
where_listed("an EventSource with cookies", "one two three")
everywhere("a WebSocket", "over and out")  # CORS does not apply
where_listed("a redirect", "plain redirected")
where_listed("the redirect to the final slash", "/?q redirected")
where_listed("early hints before the answer", "early")
where_listed("raw characters in a query", "as meant")
where_listed("raw characters in a path", "as meant")


class Upstream(BaseHTTPRequestHandler):
    """An application without CORS support, which allows a wrong origin."""

    protocol_version = "HTTP/1.1"

    def answer(self, body: str, status: str = "200 OK", fields: str = "") -> None:
        data = body.encode("latin-1")
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(data)}\r\n"
            f"Access-Control-Allow-Origin: https://wrong.example\r\nX-Extra: extra\r\n{fields}\r\n"
        )
        self.wfile.write(head.encode() + data)

    def ask(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        path = self.path.split("?")[0]
        if path == "/echo":
            kind, custom = (self.headers.get(name, "none") for name in ("Content-Type", "X-Custom"))
            self.answer(f"{self.command} {kind} {custom} {body}")
        elif path == "/cookie":
            self.answer(self.headers.get("Cookie", "none"), fields="Set-Cookie: crumb=1; Path=/\r\n")
        elif path == "/generous":
            self.answer("generous", fields="Access-Control-Allow-Credentials: true\r\n")
        elif path == "/redirect":
            self.answer("", "302 Found", "Location: /list/plain\r\n")
        elif path == "/early":
            self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
            self.answer("early")
        elif path in ("/events", "/hold"):
            self.stream(is_held=path == "/hold")
        elif path == "/socket":
            self.websocket()
        elif path == "/silent":
            self.rfile.read(1)
        elif path == "/" or path.startswith("/target"):
            self.answer(self.path)
        else:
            self.answer("plain")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = ask

    def stream(self, is_held: bool) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        if is_held:
            self.rfile.read(1)  # until the client has closed
            return
        for word in (b"one", b"two", b"three"):
            self.wfile.write(b"data: " + word + b"\n\n")
            self.wfile.flush()

    def websocket(self) -> None:
        """Echoes one message (RFC 6455 §1.3, §5.2)."""
        self.close_connection = True
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.wfile.write(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        length = self.rfile.read(2)[1] & 127
        mask, masked = self.rfile.read(4), self.rfile.read(length)
        message = bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked))
        self.wfile.write(bytes([0x81, length]) + message)
        self.rfile.read(1)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server on a free port of loopback; `told` receives what pages post."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.page = ""
        self.told: Queue[dict[str, str]] = Queue()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Ignores clients that have closed."""


class Page(BaseHTTPRequestHandler):
    """The page of one origin, and its results."""

    server: Server

    def do_GET(self) -> None:
        data = self.server.page.encode()
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        results = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.server.told.put(json.loads(results))

    def log_message(self, *_: object) -> None:
        pass


def configuration(grants: str, allowed: str, upstream: int, dead: int) -> str:
    """The configuration; `grants` is `sound`, or `nothing` or `everything` for a wrong one."""
    target = f"http://127.0.0.1:{upstream}"
    origins = {"sound": [allowed], "nothing": ["https://nobody.example"], "everything": ["http://127.0.0.1:*", "http://localhost:*", "null"]}
    generous = {
        "allowed_origins": origins[grants],
        "allowed_headers": ["*"],
        "exposed_headers": ["X-Extra"],
        "allow_credentials": True,
        "max_age": -1,
    }
    laid_over: dict[str, object] = {
        "star": {"allowed_origins": ["*"], "exposed_headers": [], "allow_credentials": False, "allowed_headers": ["*"]},
        "auto": {"allow_credentials": "auto"},
        "strict": {"allowed_methods": ["GET"], "allowed_headers": ["Content-Type"]},
        "off": False,
        "ports": {"allowed_origins": ["http://localhost:*"]},
    }
    if grants == "everything":
        generous["allowed_methods"] = ["*"]
    routes: list[dict[str, object]] = [{"path": f"/{name}/", "target": target} for name in ("list", "star", "auto", "strict", "off", "ports")]
    for route in routes if grants == "sound" else []:
        name = str(route["path"]).strip("/")
        if name in laid_over:
            route["cors"] = laid_over[name]
    routes += [
        {"path": "/down/", "target": f"http://127.0.0.1:{dead}"},
        {"path": "/slow/", "target": target, "response_header_timeout": 0.3},
        {"path": "/small/", "target": target, "max_body_size": 3},
    ]
    if grants == "nothing":
        routes.append({"path": "/list/socket", "target": f"http://127.0.0.1:{dead}"})
    return json.dumps({"listen": "127.0.0.1:0", "routes": routes, "cors": generous})


def narrow(text: str) -> str:
    """The configuration with one place and a short queue_timeout, for a 503."""
    config = json.loads(text)
    config["routes"] = [{"path": "/", "target": config["routes"][0]["target"]}]
    config["proxy"] = {"max_concurrent_requests": 1, "queue_timeout": 0.2}
    return json.dumps(config)


class Proxy:
    """The program under test; its log says where it listens."""

    def __init__(self, binary: str, text: str, folder: Path) -> None:
        folder.mkdir()
        path = folder / "config.yaml"
        path.write_text(text)
        self.child = subprocess.Popen([binary, str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.child.stdout
        for line in self.child.stdout:
            if found := re.search(r"msg=\"listening\" address=(\S+)", line):
                self.url = f"http://{found[1]}"
                break
        else:
            raise SystemExit(f"the proxy did not start with {text}")
        threading.Thread(target=self.child.stdout.read, daemon=True).start()

    def end(self) -> None:
        self.child.terminate()
        self.child.wait(30)


def closed_port() -> int:
    """A port that is bound but not listened on, so that a dial to it is refused."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    KEPT.append(bound)
    return int(bound.getsockname()[1])


KEPT: list[socket.socket] = []


def browse(browser: str, url: str, folder: Path) -> "subprocess.Popen[bytes]":
    """Starts a browser that can reach loopback only."""
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --no-proxy-server"
        " --disable-background-networking --disable-component-update --disable-default-apps --disable-extensions --disable-sync"
    ).split()
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
    return subprocess.Popen(
        [browser, *flags, rules, f"--user-data-dir={folder}", url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "HOME": str(folder.parent)},
    )


def run(grants: str, binary: str, browser: str, work: Path) -> list[dict[str, str]]:
    """The results of the pages on the three origins."""
    upstream, pages = Server(Upstream), [Server(Page) for _ in NAMES]
    hosts = ("127.0.0.1", "127.0.0.1", "localhost")
    urls = [f"http://{host}:{page.server_port}" for host, page in zip(hosts, pages)]
    text = configuration(grants, urls[LISTED], upstream.server_port, closed_port())
    proxies = [Proxy(binary, text, work / "proxy"), Proxy(binary, narrow(text), work / "full")]
    script = (HERE / "checks.js").read_text()
    for at, page in enumerate(pages):
        setting = {"proxy": proxies[0].url, "full": proxies[1].url, "next": urls[at + 1] if at + 1 < len(urls) else None}
        page.page = f"<!doctype html><meta charset=utf-8><body><script>const SETTING = {json.dumps(setting)};\n{script}</script>"
    child = browse(browser, urls[0], work / "profile")
    try:
        return [page.told.get(timeout=PATIENCE) for page in pages]
    except Empty:
        raise SystemExit(f"{browser} posted no results within {PATIENCE} s") from None
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(30)
        for proxy in proxies:
            proxy.end()
        for server in (upstream, *pages):
            server.shutdown()


def faults(grants: str, results: list[dict[str, str]]) -> list[str]:
    """Results that differ from the expected ones."""
    found = []
    for at, (origin, told) in enumerate(zip(NAMES, results)):
        if told.keys() != EXPECTED.keys():
            found.append(f"{origin}: other checks ran than are expected: {sorted(told.keys() ^ EXPECTED.keys())}")
        for name, expected in EXPECTED.items():
            seen, should = told.get(name, "nothing"), expected[at]
            fits = {
                "sound": seen == should,
                "nothing": should == BLOCKED or seen == BLOCKED,
                "everything": should != BLOCKED or seen not in (BLOCKED, LATE),
            }[grants]
            if not fits:
                wanted = {"sound": repr(should), "nothing": repr(BLOCKED), "everything": "an answer"}[grants]
                found.append(f"{grants} granted, {origin}: {name}: {seen!r} instead of {wanted}")
    return found


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        print("skipped: the browser's checks, because there is no Chromium")
        return SKIPPED
    wrong = []
    for grants in ("sound", "nothing", "everything"):
        with tempfile.TemporaryDirectory(prefix="lean-browser-", ignore_cleanup_errors=True) as work:
            found = faults(grants, run(grants, sys.argv[1], browser, Path(work)))
        print(f"{grants} granted: {len(EXPECTED)} checks on {len(NAMES)} origins, {len(found)} wrong")
        wrong += found
    for fault in wrong:
        print(fault)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
