"""Formats the figures as a table in Markdown, and the memory over time as an SVG picture."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from machine import MB

# row -> contender -> one value per round
Results = dict[str, dict[str, list[float]]]
Course = tuple[list[tuple[float, int]], list[tuple[str, float, float]]]


def _megabytes(value: float) -> str:
    return f"{value / MB:.1f} MB"


def _kilobytes(value: float) -> str:
    return f"{value / 1024:.1f} kB"


def _bytes(value: float) -> str:
    return f"{value:,.0f} B"


def _milliseconds(value: float) -> str:
    return f"{value * 1e3:.1f} ms"


def _microseconds(value: float) -> str:
    return f"{value * 1e6:.0f} µs"


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _plain(value: float) -> str:
    return f"{value:.1f}"


def _part(value: float) -> str:
    return f"{value:.2f}"


def _per_second(value: float) -> str:
    return f"{value:,.0f}/s"


def _thousands(value: float) -> str:
    return f"{value:,.0f}"


@dataclass
class Row:
    key: str
    label: str
    show: Callable[[float], str]
    # Processor time varies with the machine, so it is compared with the first peer within each round.
    ratio: bool = False
    # More is better.
    more: bool = False


def _in_ten(work: str, title: str) -> list[Row]:
    """The rows of `measures.speed_in_ten`."""
    rows = []
    for conns in (10, 100):
        key = f"ten_{work}_{conns}"
        rows += [
            Row(key, f"{title} in 10 MiB, {conns} connections, requests per second", _per_second, ratio=True, more=True),
            Row(f"{key}_part", f"{title}, {conns} connections: rate in 10 MiB, as a part of the rate without a limit", _part, more=True),
            Row(f"{key}_cpu", f"{title} in 10 MiB, {conns} connections, CPU per request", _microseconds, ratio=True),
        ]
    return rows


ROWS = [
    Row("idle", "idle, PSS", _megabytes),
    Row("idle_tls", "after the first request to an https target, PSS", _megabytes),
    Row("held_whole", "1,000 idle keep-alive connections, PSS", _megabytes),
    Row("held_kept", "… of them kept", _thousands, more=True),
    Row("held", "… growth with each", _bytes),
    Row("many_whole", "5,000 idle keep-alive connections, PSS", _megabytes),
    Row("many_kept", "… of them kept", _thousands, more=True),
    Row("many", "… growth with each", _bytes),
    Row("stream_whole", "200 open event streams, PSS", _megabytes),
    Row("stream", "… growth with each", _kilobytes),
    Row("reader_whole", "100 slow readers of a long body, PSS", _megabytes),
    Row("reader", "… growth with each", _kilobytes),
    Row("reader_kernel", "… the kernel's socket buffers for each", _kilobytes),
    Row("busy", "peak with 100 busy connections", _megabytes),
    Row("start", "start to first answer", _milliseconds),
    Row("event", "an event on its way, median of 20", _milliseconds),
    Row("calls_one", "system calls per request, one connection", _plain),
    Row("calls", "… 100 connections", _plain),
    Row("instructions", "instructions per request", _thousands),
    Row("cpu_100", "CPU per request, 100 B", _microseconds, ratio=True),
    Row("cpu_one", "… one connection", _microseconds, ratio=True),
    Row("cpu_10k", "… 10 KB", _microseconds, ratio=True),
    Row("cpu_100k", "… 100 KB", _microseconds, ratio=True),
    Row("cpu_post", "… POST of 10 KB with a browser's head", _microseconds, ratio=True),
    Row("cpu_close", "… a connection for each", _microseconds, ratio=True),
    Row("cpu_tls", "… 100 B of an https target", _microseconds, ratio=True),
    Row("bulk_down", "CPU per GB, download", _seconds, ratio=True),
    Row("bulk_up", "… upload", _seconds, ratio=True),
    Row("bulk_chunked", "… chunked download", _seconds, ratio=True),
    *_in_ten("get_10k", "GET of 10 kB"),
    *_in_ten("get_100k", "GET of 100 kB"),
    *_in_ten("get_1m", "GET of 1 MB"),
    *_in_ten("post_10k", "POST of 10 kB"),
    *_in_ten("post_100k", "POST of 100 kB"),
]


def _cells(row: Row, values: dict[str, list[float]], names: Sequence[str], reference: str) -> dict[str, str]:
    middle = {name: statistics.median(values[name]) for name in names if values.get(name)}
    shown = {name: row.show(value) for name, value in middle.items()}
    if row.ratio and reference in middle:
        for name in middle:
            pairs = zip(values[name], values[reference], strict=False)
            middle[name] = statistics.median(own / other for own, other in pairs)
        shown = {name: f"{middle[name]:.2f}" for name in middle} | {reference: f"1 ({shown[reference]})"}
    best = shown[(max if row.more else min)(middle, key=lambda name: middle[name])]
    for name, text in shown.items():
        if text.split(" (")[0] == best.split(" (")[0]:
            shown[name] = f"**{text}**"
    return {name: shown.get(name, "–") for name in names}


def markdown(results: Results, verdicts: dict[str, dict[str, str]], names: Sequence[str], reference: str, setting: Sequence[str]) -> str:
    lines = [*setting, "", _line(["", *names]), _line(["---"] * (len(names) + 1))]
    lost = []
    group = ""
    for row in ROWS:
        if not row.label.startswith("…"):
            group = row.label.rsplit(", ", 1)[0]
        if row.key in results:
            cells = _cells(row, results[row.key], names, reference)
            lines.append(_line([row.label + (f", against {reference}" if row.ratio else ""), *cells.values()]))
            if not any(cells[name].startswith("**") for name in names if name.startswith("lean-proxy")):
                lost.append(row.label.replace("…", f"{group},"))
    lines += ["", f"Best in each row in bold. Rows that another wins: {'; '.join(lost) or 'none'}.", ""]
    if verdicts:
        lines += [_line(["in 10 MiB", *names]), _line(["---"] * (len(names) + 1))]
        lines += [_line([attack, *(words.get(name, "–") for name in names)]) for attack, words in verdicts.items()]
        lines += ["", "Behind each: the peak of the memory cgroup; `+`: socket buffers, where the limit does not count them (cgroup v1).", ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


COLOURS = ["#0b6e4f", "#c8553d", "#3a5a98"]
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 900, 400, 60, 40, 110, 70


def picture(courses: dict[str, Course], limit: int, counted: str) -> str:
    """Memory over time on a logarithmic scale, with a band for each attack."""
    first = next(iter(courses))
    spans = courses[first][1]
    end = max(time for seen, _ in courses.values() for time, _ in seen)
    most = max(value for seen, _ in courses.values() for _, value in seen)
    ticks = [tick * MB for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)]
    low, high = ticks[0], next((tick for tick in ticks if tick >= most), ticks[-1])

    def x(time: float) -> float:
        return LEFT + time / end * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = math.log(max(value, low) / low) / math.log(high / low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">Memory under one attack after another ({escape(counted)}; logarithmic)</text>',
    ]
    for number, (_, came, went) in enumerate(spans, 1):
        parts.append(f'<rect x="{x(came):.1f}" y="{TOP}" width="{x(went) - x(came):.1f}" height="{HEIGHT - BOTTOM - TOP}" fill="#f1efe8"/>')
        parts.append(f'<text x="{(x(came) + x(went)) / 2:.1f}" y="{TOP + 14}" text-anchor="middle" fill="#666">{number}</text>')
    for tick in ticks:
        if tick <= high:
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick // MB} MB</text>')
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(limit):.1f}" y2="{y(limit):.1f}" stroke="{COLOURS[0]}" stroke-dasharray="4 4"/>')
    named = []
    for (name, (seen, _)), colour in zip(courses.items(), COLOURS, strict=False):
        points = " ".join(f"{x(time):.1f},{y(value):.1f}" for time, value in seen)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        named.append((y(seen[-1][1]) + 4, name, colour))
    lowest = 0.0
    for height, name, colour in sorted(named):
        lowest = max(height, lowest + 14)  # names must not overlap
        parts.append(f'<text x="{WIDTH - RIGHT + 6}" y="{lowest:.1f}" fill="{colour}" font-weight="bold">{escape(name)}</text>')
    words = [f"{number}: {attack}" for number, (attack, _, _) in enumerate(spans, 1)]
    for line, of_line in enumerate((words[:4], words[4:])):
        parts.append(f'<text x="{LEFT}" y="{HEIGHT - BOTTOM + 24 + 18 * line}">{escape(" · ".join(of_line))}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - BOTTOM + 60}" fill="#666">{end:.0f} s; dashed: the limit that {escape(first)} was told</text>')
    return "\n".join([*parts, "</svg>", ""])
