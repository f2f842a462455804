"""The measurements. Each starts a new process, and returns its figures by the keys of the report's rows."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contenders import Contender, Site
from machine import MB, PROXY_CPUS, TRAFFIC_CPUS, Box, Running, BinaryCopies, free_port

Figures = dict[str, float]
Options = Mapping[str, int | float | str]


LIMIT = 10 * MB


class Trouble(Exception):
    """A measurement failed; the others continue."""


@dataclass
class Served:
    """A proxy that has answered its first request, `started` seconds after its start."""

    running: Running
    port: int
    started: float


class Traffic:
    """One run of the traffic program."""

    def __init__(self, program: str, kind: str, options: Options) -> None:
        self.process = subprocess.Popen(
            [program, kind, *(f"{key}={value}" for key, value in options.items())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, TRAFFIC_CPUS),
        )

    def line(self, patience: float = 150) -> Figures:
        """Its line of JSON."""
        watchdog = threading.Timer(patience, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        watchdog.cancel()
        try:
            said: Figures = json.loads(text)
        except ValueError:
            raise Trouble(f"the traffic program said {text!r}") from None
        return said

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Sampler(threading.Thread):
    """Samples a figure ten times a second."""

    def __init__(self, look: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self.look = look
        self.begun = time.monotonic()
        self.seen: list[tuple[float, int]] = []
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.1):
            self.seen.append((time.monotonic() - self.begun, self.look()))

    def finish(self) -> int:
        """The maximum of the samples."""
        self._over.set()
        self.join()
        return max((value for _, value in self.seen), default=0)


class Testbed:
    """What measurements share: the traffic program, the upstream, and the copies of the binaries."""

    def __init__(self, traffic: str, work: Path) -> None:
        self.work = work
        self.copies = BinaryCopies(work)
        self.program = traffic
        self.roots = str(work / "roots.pem")
        self._upstream = Traffic(traffic, "upstream", {"roots": self.roots})
        ports = self._upstream.line()
        self.upstream, self.tls_upstream = int(ports["port"]), int(ports["tls_port"])

    def close(self) -> None:
        self._upstream.end()
        self.copies.close()
        shutil.rmtree(self.work, ignore_errors=True)

    def use_private_copy(self, contender: Contender) -> None:
        """Replaces the contender's binary by a private copy."""
        contender.binary, contender.library_path = self.copies.add(contender.name, contender.binary)

    def traffic(self, kind: str, port: int, **options: int | float | str) -> Traffic:
        return Traffic(self.program, kind, {"port": port, **options})

    def ask(self, port: int, **options: int | float | str) -> Figures:
        """Well-behaved clients; raises Trouble if no request was answered."""
        said = self.traffic("ask", port, **options).line()
        if not said["ok"]:
            raise Trouble("no request was answered")
        return said

    def site(self, contender: Contender, connections: int = 1024, one_process: bool = False, tls: bool = False) -> Site:
        port = free_port()
        folder = self.work / f"site-{port}"
        folder.mkdir(mode=0o755)
        upstream, roots = (self.tls_upstream, self.roots) if tls else (self.upstream, "")
        return Site(folder, contender.binary, port, upstream, connections, one_process, roots)

    @contextmanager
    def serving(
        self,
        contender: Contender,
        connections: int = 1024,
        box: Box | None = None,
        environment: Mapping[str, str] | None = None,
        tls: bool = False,
    ) -> Iterator[Served]:
        site = self.site(contender, connections, tls=tls)
        command, own = contender.set_up(site)
        whole = {"PATH": os.environ.get("PATH", ""), **contender.library_path, **own, **(environment or {})}
        if box is not None:
            self.copies.forget(contender.name)
        running = Running(command, whole, site.folder, box, PROXY_CPUS)
        try:
            wait_for_answer(running, site.port, 10)
            yield Served(running, site.port, time.monotonic() - running.begun)
        finally:
            running.stop()


def wait_for_answer(running: Running, port: int, patience: float) -> None:
    """Waits for the first 200 from the upstream, which also checks that the proxy rewrites the request."""
    end = time.monotonic() + patience
    while time.monotonic() < end and running.alive():
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
                connection.sendall(b"GET /api/bytes/1 HTTP/1.1\r\nHost: proxy.test\r\nConnection: close\r\n\r\n")
                if b" 200 " in connection.recv(4096)[:20]:
                    return
            time.sleep(0.01)
        except OSError:
            time.sleep(0.001)
    raise Trouble("it did not start, or does not do the work")


# ---------------------------------------------------------------- memory


def idle(lab: Testbed, contender: Contender) -> Figures:
    """Two seconds after a request: lean-proxy still checks its idle upstream connection five times a second."""
    with lab.serving(contender) as proxy:
        time.sleep(2)
        return {"idle": proxy.running.pss()}


def idle_with_tls(lab: Testbed, contender: Contender) -> Figures:
    """After the first request to an https target."""
    with lab.serving(contender, tls=True) as proxy:
        time.sleep(0.5)
        return {"idle_tls": proxy.running.pss()}


def _held_clients(
    lab: Testbed, contender: Contender, name: str, kind: str, count: int, slots: int = 4096, **options: int | float | str
) -> Figures:
    """The proxy's memory with `count` clients, its growth and socket buffers per client, and how many clients it kept."""
    box = Box.make(None)
    with lab.serving(contender, connections=slots, box=box) as proxy:
        lab.ask(proxy.port, conns=50, count=2000)
        time.sleep(2)
        before = proxy.running.pss()
        clients = lab.traffic(kind, proxy.port, conns=count, **options)
        try:
            figures: Figures = {}
            if kind == "hold":
                count = int(clients.line()["open"])
                if not count:
                    raise Trouble("no client was served")
                figures[f"{name}_kept"] = count
            time.sleep(2.5)
            whole = proxy.running.pss()
            figures |= {name: (whole - before) / count, f"{name}_whole": whole}
            return figures | ({f"{name}_kernel": box.sockets() / count} if box else {})
        finally:
            clients.end()


def held_connections(lab: Testbed, name: str, count: int, slots: int, contender: Contender) -> Figures:
    return _held_clients(lab, contender, name, "hold", count, slots)


def streams(lab: Testbed, contender: Contender) -> Figures:
    return _held_clients(lab, contender, "stream", "hold", 200, stream=1, path="/api/events/1000/500")


def slow_readers(lab: Testbed, contender: Contender) -> Figures:
    return _held_clients(lab, contender, "reader", "read", 100, path="/api/bytes/1000000000", rate=100_000, window=65_536, seconds=30)


def busy(lab: Testbed, contender: Contender) -> Figures:
    """The maximum of memory with a hundred busy connections."""
    with lab.serving(contender) as proxy:
        sampler = Sampler(proxy.running.pss)
        for work in ("cpu_100", "cpu_100k", "cpu_post"):
            lab.ask(proxy.port, **{**REQUESTS[work], "seconds": 1})
        sampled = sampler.finish()
        return {"busy": proxy.running.peak() or sampled}


# ---------------------------------------------------------------- time

REQUESTS: dict[str, dict[str, int | str]] = {
    "cpu_100": {"conns": 100, "path": "/api/bytes/100", "count": 30_000},
    "cpu_10k": {"conns": 100, "path": "/api/bytes/10000", "count": 15_000},
    "cpu_100k": {"conns": 100, "path": "/api/bytes/100000", "count": 3_000},
    "cpu_post": {"conns": 100, "path": "/api/sink", "post": 10_240, "browser": 1, "count": 15_000},
    "cpu_close": {"conns": 100, "path": "/api/bytes/100", "close": 1, "count": 6_000},
    "cpu_tls": {"conns": 100, "path": "/api/bytes/100", "count": 15_000},
    "cpu_one": {"conns": 1, "path": "/api/bytes/100", "count": 4_000},
}


def cpu_per_request(lab: Testbed, key: str, seconds: float, contender: Contender) -> Figures:
    """Seconds of processor time per request, after a warm-up."""
    with lab.serving(contender, tls=key == "cpu_tls") as proxy:
        work = {**REQUESTS[key], "seconds": seconds}
        lab.ask(proxy.port, **{**work, "seconds": 0.3})
        before = proxy.running.cpu()
        answered = lab.ask(proxy.port, **work)["ok"]
        return {key: (proxy.running.cpu() - before) / answered}


IN_TEN: dict[str, dict[str, int | str]] = {
    "get_10k": {"path": "/api/bytes/10240"},
    "get_100k": {"path": "/api/bytes/102400"},
    "get_1m": {"path": "/api/bytes/1048576"},
    "post_10k": {"path": "/api/sink", "post": 10_240},
    "post_100k": {"path": "/api/sink", "post": 102_400},
}


def speed_in_ten(lab: Testbed, work: str, conns: int, seconds: float, contender: Contender) -> Figures:
    """Requests per second and processor time per request in a memory cgroup of 10 MiB, and the part that the rate is of the
    one without a limit. Version 1 does not count socket buffers, so there the limit binds only what counts them itself."""
    options = {**IN_TEN[work], "conns": conns}
    rates: list[float] = []
    cost = 0.0
    for limit in (None, LIMIT):
        box = Box.make(limit)
        if box is None:
            raise Trouble("no memory cgroup can be made here")
        try:
            with lab.serving(contender, box=box) as proxy:
                lab.ask(proxy.port, seconds=0.3, **options)
                before = proxy.running.cpu()
                said = lab.ask(proxy.port, seconds=seconds, timeout=5000, **options)
                cost = (proxy.running.cpu() - before) / said["ok"]
                rates.append(said["ok"] / said["seconds"])
        finally:
            if box.folder.exists():
                box.remove()
    key = f"ten_{work}_{conns}"
    return {key: rates[1], f"{key}_part": rates[1] / rates[0], f"{key}_cpu": cost}


BULK: dict[str, tuple[str, dict[str, int | str]]] = {
    "bulk_down": ("read", {"path": "/api/bytes/{bytes}"}),
    "bulk_up": ("write", {"path": "/api/sink", "post": "{bytes}"}),
    "bulk_chunked": ("read", {"path": "/api/chunked/{bytes}"}),
}


def cpu_per_gigabyte(lab: Testbed, key: str, size: int, contender: Contender) -> Figures:
    kind, options = BULK[key]
    named = {name: str(value).format(bytes=size) for name, value in options.items()}
    with lab.serving(contender) as proxy:
        before = proxy.running.cpu()
        said = lab.traffic(kind, proxy.port, conns=1, count=1, **named).line()
        if said["ok"] != 1 or said["failed"]:
            raise Trouble("the body did not pass whole")
        return {key: (proxy.running.cpu() - before) / size * 1e9}


def event_delay(lab: Testbed, contender: Contender) -> Figures:
    with lab.serving(contender) as proxy:
        said = lab.traffic("events", proxy.port, path="/api/events/20/50", seconds=8).line()
        if not said["events"]:
            raise Trouble("no event came")
        return {"event": said["p50_ms"] / 1e3}


def start(lab: Testbed, contender: Contender) -> Figures:
    with lab.serving(contender) as proxy:
        return {"start": proxy.started}


# ---------------------------------------------------------------- counts


Counter = tuple[list[str], Callable[[str], int]]

# Counters: the wrapper that runs the program and writes {out}, and how to read that file. The first that works is used.
_COUNTERS: dict[str, list[Counter]] = {
    "calls": [
        (["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-o", "{out}"], lambda text: _match(r"^(\d+),", text)),
        (["strace", "-f", "-c", "-o", "{out}"], lambda text: _match(r"^100\.00 +\S+ +\S+ +(\d+) .*total$", text)),
    ],
    "instructions": [
        (
            ["valgrind", "--tool=callgrind", "--callgrind-out-file={out}"],
            lambda text: _match(r"^(?:summary|totals): (\d+)", text),
        ),
    ],
}


def counters() -> dict[str, Counter]:
    """The counters that work on this machine."""
    found: dict[str, Counter] = {}
    for what, choices in _COUNTERS.items():
        for wrapper, read_out in choices:
            trial = [word.format(out="/dev/null") for word in wrapper] + ["true"]
            if shutil.which(wrapper[0]) and subprocess.run(trial, capture_output=True).returncode == 0:
                found.setdefault(what, (wrapper, read_out))
    return found


def _match(pattern: str, text: str) -> int:
    found = re.search(pattern, text, re.M)
    if found is None:
        raise Trouble("the counter wrote no figure")
    return int(found.group(1))


def counted(lab: Testbed, contender: Contender, counter: Counter, conns: int, few: int, many: int, **request: int | str) -> float:
    """The difference between a run with many requests and one with few, per request: start and end do not count."""
    wrapper, read_out = counter

    def run(count: int) -> tuple[int, float]:
        site = lab.site(contender, one_process=True)
        command, environment = contender.set_up(site)
        out = site.folder / "counted"
        whole = {"PATH": os.environ.get("PATH", ""), **contender.library_path, **environment}
        running = Running([word.format(out=out) for word in wrapper] + command, whole, site.folder, None, PROXY_CPUS)
        try:
            wait_for_answer(running, site.port, 60)
            answered = lab.ask(site.port, conns=conns, count=count, **request)["ok"]
            # valgrind replaces the program, the other wrappers are its parent
            running.interrupt(running.pids()[-1])
        finally:
            running.stop()
        return read_out(out.read_text()), answered

    (base, fewer), (whole, more) = run(few), run(many)
    return (whole - base) / (more - fewer)


def counts(lab: Testbed, contender: Contender) -> Figures:
    available = counters()
    figures: Figures = {}
    if "calls" in available:
        figures["calls_one"] = counted(lab, contender, available["calls"], 1, 100, 600)
        figures["calls"] = counted(lab, contender, available["calls"], 100, 500, 2500)
    if "instructions" in available and contender.name != "Caddy":  # valgrind does not run Go's threads
        figures["instructions"] = counted(lab, contender, available["instructions"], 1, 200, 700)
    return figures


# ---------------------------------------------------------------- attacks

Kind = tuple[str, dict[str, int | str]]
_SLOW_HEADS: Kind = ("slow-heads", {"every": 200})
_BIG_HEADS: Kind = ("big-heads", {"post": 60_000, "every": 1500})
_DOWNLOADS: Kind = ("read", {"path": "/api/bytes/100000000", "rate": 1_000_000})
_UPLOADS: Kind = ("write", {"path": "/api/slow/1000000", "post": 20_000_000})
_SLOW_BODIES: Kind = ("slow-bodies", {"path": "/api/sink", "post": 8192, "every": 5000})

# What comes at the same time, and from how many clients.
ATTACKS: dict[str, list[tuple[Kind, int]]] = {
    "1,000 idle connections": [(("hold", {}), 1000)],
    "2,000 slow request heads": [(_SLOW_HEADS, 2000)],
    "200 heads of 60 kB": [(_BIG_HEADS, 200)],
    "100 slow downloads": [(_DOWNLOADS, 100)],
    "100 uploads into a slow upstream": [(_UPLOADS, 100)],
    "900 request bodies of 8 kB, a byte each 5 s": [(_SLOW_BODIES, 900)],
    "500 slow heads, 100 of 60 kB, 60 downloads, 40 uploads": [(_SLOW_HEADS, 500), (_BIG_HEADS, 100), (_DOWNLOADS, 60), (_UPLOADS, 40)],
}


@contextmanager
def under(lab: Testbed, port: int, attack: str, seconds: float) -> Iterator[None]:
    attackers = [lab.traffic(kind, port, conns=conns, seconds=seconds, **options) for (kind, options), conns in ATTACKS[attack]]
    try:
        time.sleep(0.3)
        yield
    finally:
        for attacker in attackers:
            attacker.end()


def withstand(lab: Testbed, contender: Contender, attack: str, seconds: float) -> str:
    """Four clients send 200 requests a second during an attack, and two some more after it. Returns the result in words."""
    box = Box.make(LIMIT)
    if box is None:
        raise Trouble("no memory cgroup can be made here")
    try:
        with lab.serving(contender, connections=4096, box=box) as proxy:
            with under(lab, proxy.port, attack, seconds + 5):
                good = lab.traffic("ask", proxy.port, conns=4, rate=200, seconds=seconds, timeout=2000).line()
            time.sleep(0.1)
            if box.kills() or not proxy.running.alive():
                return "killed"
            after = lab.traffic("ask", proxy.port, conns=2, count=50, timeout=2000, seconds=4).line()
            if not good["ok"]:
                return "hangs"
            words = f"serves, p99 {_milliseconds(good['p99_us'])}"
            if good["failed"]:
                words += f", {good['failed']:.0f} of {good['ok'] + good['failed']:.0f} failed"
            if after["failed"]:
                words += "; hangs afterwards"
            apart = box.peak_apart()
            return f"{words}; {box.peak() / MB:.1f} MB" + (f" + {apart / MB:.0f}" if apart else "")
    except Trouble:
        if box.folder.exists():
            box.remove()
        return "does not start"


def _milliseconds(micros: float) -> str:
    return f"{micros / 1000:.0f} ms" if micros >= 950 else "below 1 ms"


def course(lab: Testbed, contender: Contender, seconds: float) -> tuple[list[tuple[float, int]], list[tuple[str, float, float]]]:
    """Memory over time under one attack after another, with socket buffers where they can be counted, and the time of each
    attack. No cgroup limits the memory: the proxy is only told its limit."""
    box = Box.make(None)
    spans = []
    with lab.serving(contender, connections=4096, box=box, environment={"LEAN_PROXY_MEMORY": str(LIMIT)}) as proxy:
        sampler = Sampler(box.charged if box else proxy.running.pss)
        for number, attack in enumerate(ATTACKS):
            # at fixed times, so that the courses can be compared
            came = 0.5 + number * (seconds + 1.5)
            time.sleep(max(0.0, sampler.begun + came - time.monotonic()))
            with under(lab, proxy.port, attack, seconds + 5):
                time.sleep(seconds)
            spans.append((attack, came, came + 0.3 + seconds))
        time.sleep(2)
        sampler.finish()
    return sampler.seen, spans


def say(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)
