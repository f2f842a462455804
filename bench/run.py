#!/usr/bin/env python3
"""Measures lean-proxy and the installed peers: nginx, HAProxy, lighttpd, Caddy.

    python3 bench/run.py              half an hour
    python3 bench/run.py --quick      some fifteen minutes
    python3 bench/run.py --contender lighttpd=/opt/static/lighttpd      another build of a peer, beside the installed one

Builds what it needs with cargo; --binary PATH measures an existing build, such as the static one. Prints a table in
Markdown, and writes it to --out with the values of all rounds and a picture of the memory over time. Needs Linux, Python 3
and cargo; as root it also attacks each proxy in a memory cgroup of 10 MiB. Counts system calls with perf or strace and
instructions with valgrind. What cannot be measured is reported and left out. All traffic is on loopback.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measures
from contenders import PEERS, SLOTS, Contender, Unable, find, linkage, ours, peer
from machine import CPUS, Box, prepare, read, work_folder
from measures import ATTACKS, BULK, IN_TEN, LIMIT, REQUESTS, Figures, Testbed, Trouble, counters, say
from report import Course, Results, markdown, picture

ROOT = Path(__file__).resolve().parent.parent

# docs/benchmark.md has the results between these two lines, and the README has some of their rows.
FIRST_MARK = "<!-- bench/run.py --page -->"
LAST_MARK = "<!-- end -->"


def build(*what: str) -> dict[str, str]:
    """Builds with cargo; returns the executables by name."""
    command = ["cargo", "build", "--locked", "--message-format=json", *what]
    made = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = {}
    for line in made.splitlines():
        message = json.loads(line)
        if message.get("executable"):
            found[message["target"]["name"]] = message["executable"]
    return found


def gather(only: list[str], others: list[str]) -> list[Contender]:
    peers = []
    for program in only or PEERS:
        installed = find(program)
        if installed is None:
            say(f"{program} is not installed: left out")
        else:
            peers.append(installed)
    for number, other in enumerate(others, 1):
        program, path = other.split("=", 1)
        names = [it.name for it in peers]
        build = peer(program, path, f" ({linkage(path)})")
        if build.name in names:
            build.name = f"{build.name} {number}"
        peers.append(build)
    return peers


class Bench:
    def __init__(self, lab: Testbed, contenders: list[Contender], quick: bool) -> None:
        self.lab = lab
        self.contenders = contenders
        self.quick = quick
        self.results: Results = {}
        self.verdicts: dict[str, dict[str, str]] = {}
        self.courses: dict[str, Course] = {}
        self.trouble: list[str] = []

    def each_contender(self, what: str, rounds: int, measure: Callable[[Contender], Figures]) -> None:
        """Measures all contenders in each round, beginning with another one each time, so that disturbances affect all alike."""
        say(what)
        for turn in range(rounds):
            first = turn % len(self.contenders)
            for contender in self.contenders[first:] + self.contenders[:first]:
                try:
                    figures = measure(contender)
                except Unable as why:
                    say(f"{contender.name} is left out: {why}")
                    continue
                except (Trouble, OSError, subprocess.SubprocessError) as error:
                    self.trouble.append(f"{contender.name}, {what}: {error}")
                    say(self.trouble[-1])
                    continue
                for key, value in figures.items():
                    self.results.setdefault(key, {}).setdefault(contender.name, []).append(value)

    def run(self) -> None:
        lab, quick = self.lab, self.quick
        once, often = (1, 3) if quick else (3, 5)
        self.each_contender("idle", once, partial(measures.idle, lab))
        self.each_contender("idle, https target", once, partial(measures.idle_with_tls, lab))
        self.each_contender("1,000 idle connections", once, partial(measures.held_connections, lab, "held", 1000, 4096))
        self.each_contender("5,000 idle connections", once, partial(measures.held_connections, lab, "many", 5000, 12_000))
        self.each_contender("event streams", once, partial(measures.streams, lab))
        self.each_contender("slow readers", once, partial(measures.slow_readers, lab))
        self.each_contender("busy connections", once, partial(measures.busy, lab))
        self.each_contender("start", often, partial(measures.start, lab))
        self.each_contender("events", once, partial(measures.event_delay, lab))
        for missing in {"calls", "instructions"} - counters().keys():
            say(f"{missing} per request are not counted: neither perf nor strace, or no valgrind")
        self.each_contender("counts", 1, partial(measures.counts, lab))
        for key in REQUESTS:
            self.each_contender(key, often, partial(measures.cpu_per_request, lab, key, 0.7 if quick else 3))
        for key in BULK:
            size = (250_000_000 if quick else 1_000_000_000) // (5 if key == "bulk_chunked" else 1)
            self.each_contender(key, often, partial(measures.cpu_per_gigabyte, lab, key, size))
        for work in IN_TEN:
            for conns in (10, 100):
                measure = partial(measures.speed_in_ten, lab, work, conns, 0.7 if quick else 1.5)
                self.each_contender(f"{work} in 10 MiB, {conns} connections", once, measure)
        self.attacks()

    def attacks(self) -> None:
        box = Box.make(None)
        if box is None:
            say("no memory cgroup can be made here: the attacks in 10 MiB are left out, and the picture shows PSS")
        else:
            box.remove()
            for attack in ATTACKS:
                say(attack)
                self.verdicts[attack] = {it.name: measures.withstand(self.lab, it, attack, 6) for it in self.contenders}
        for contender in [self.contenders[0], *self.contenders[2:4]]:
            say("the course of", contender.name)
            self.courses[contender.name] = measures.course(self.lab, contender, 1 if self.quick else 5)


def setting(lab: Testbed, contenders: list[Contender], quick: bool) -> list[str]:
    model = re.search(r"^model name\s*: (.*)", read("/proc/cpuinfo"), re.M)
    with_boxes = Box.make(None)
    kind = f"cgroup v{with_boxes.version}" if with_boxes else "no cgroup"
    if with_boxes:
        with_boxes.remove()
    return [
        f"{', '.join(f'{it.name} {it.version}' for it in contenders)}; Linux {platform.release()}, {kind}, "
        f"{len(CPUS)} CPUs{f' ({model.group(1)})' if model else ''}, the proxy alone on one of them; {lab.copies.note}; "
        f"{'quick' if quick else 'full'} run, load average {os.getloadavg()[0]:.1f}."
    ]


def settings(contenders: list[Contender]) -> list[str]:
    """The settings of each contender, for below the tables."""
    lines = [f"- {it.name}, {linkage(it.binary)}: {it.settings}" for it in contenders]
    return ["Settings; each with one worker and no access log:", "", *lines, f"- {SLOTS}", ""]


def replace_between_marks(page: Path, change: Callable[[str], str]) -> None:
    before, rest = page.read_text().split(FIRST_MARK + "\n")
    old, after = rest.split(LAST_MARK)
    page.write_text(f"{before}{FIRST_MARK}\n{change(old)}{LAST_MARK}{after}")


def put_into_pages(text: str) -> None:
    """Puts the whole text into docs/benchmark.md, and new figures into the rows that the README shows."""
    replace_between_marks(ROOT / "docs" / "benchmark.md", lambda _: text)
    rows = {line.split("|")[1]: line for line in text.splitlines() if line.startswith("|")}

    def refresh(old: str) -> str:
        lines = [rows.get(line.split("|")[1], line) if line.startswith("|") else line for line in old.splitlines()]
        return "\n".join(lines) + "\n"

    replace_between_marks(ROOT / "README.md", refresh)


def named_path(text: str) -> str:
    name, _, path = text.partition("=")
    if name not in PEERS or not os.access(path, os.X_OK):
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=PATH, where NAME is one of {', '.join(PEERS)} and PATH a program")
    return text


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="fewer rounds, shorter attacks")
    arguments.add_argument("--binary", help="the lean-proxy to measure; default: cargo builds it")
    arguments.add_argument(
        "--contender",
        action="append",
        default=[],
        metavar="NAME=PATH",
        type=named_path,
        help=f"another build of {', '.join(PEERS)} (may be repeated)",
    )
    arguments.add_argument("--peer", action="append", default=[], choices=list(PEERS), help="only this peer (may be repeated)")
    arguments.add_argument("--out", type=Path, default=ROOT / "target" / "bench", help="folder for bench.md, bench.json and memory.svg")
    arguments.add_argument("--page", action="store_true", help="put the tables into docs/benchmark.md and the README, and the picture beside them")
    asked = arguments.parse_args()
    prepare()
    traffic = build("--release", "--example=traffic")["traffic"]
    binary = str(Path(asked.binary).resolve()) if asked.binary else build("--release", "--bin=lean-proxy")["lean-proxy"]
    contenders = [*ours(binary), *gather(asked.peer, asked.contender)]
    lab = Testbed(traffic, work_folder())
    try:
        for contender in contenders:
            lab.use_private_copy(contender)
        about = setting(lab, contenders, asked.quick)
        foot = settings(contenders)
        bench = Bench(lab, contenders, asked.quick)
        bench.run()
    finally:
        lab.close()
    names = [it.name for it in contenders]
    text = markdown(bench.results, bench.verdicts, names, names[min(2, len(names) - 1)], about) + "\n".join(foot)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "bench.md").write_text(text)
    raw = {"setting": about, "results": bench.results, "verdicts": bench.verdicts, "trouble": bench.trouble}
    (asked.out / "bench.json").write_text(json.dumps(raw, indent=1))
    counted = "socket buffers included" if bench.verdicts else "PSS"
    drawn = picture(bench.courses, LIMIT, counted)
    (asked.out / "memory.svg").write_text(drawn)
    if asked.page:
        (ROOT / "bench" / "memory.svg").write_text(drawn)
        put_into_pages(text)
    print(text)
    say("written to", asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
