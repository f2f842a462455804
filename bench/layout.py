#!/usr/bin/env python3
"""Checks `layout.ld` and what it is for:  python3 bench/layout.py BINARY [LINK_MAP]

Fails when the idle process, or one with a hundred busy connections, takes more memory than it should (PSS and the peak of
the resident set; neither depends on how busy the machine is).
Counts the instructions of one small request inside and outside `.text_busy` by their addresses (valgrind; no symbols are
needed), and fails when more than a small part is outside: the code of requests would then be spread over pages with much
unused code. With the linker's map it also fails when a pattern of `layout.ld` matches nothing, or many of `layout_busy.ld`:
which functions are inlined differs from one compiler to the next. What cannot be counted on this machine is reported and
skipped.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

from contenders import Contender, lean_proxy
from machine import PROXY_CPUS, Running, prepare, work_folder
from measures import Testbed, Trouble, busy, idle, wait_for_answer
from run import build

# The part of a request's instructions that may be outside.
OUTSIDE = 0.02

# The part of the patterns of `layout_busy.ld` that may match nothing.
STALE = 0.15

# kB, some 5 to 10 % above what was measured: the PSS of an idle process, and the peak with a hundred busy connections.
IDLE = 450
BUSY = 2500

PAGE = 4096


def busy_section(binary: str) -> tuple[int, int]:
    """First and last address of `.text_busy`, as linked."""
    table = subprocess.run(["readelf", "-SW", binary], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\.text_busy\s+PROGBITS\s+([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)", table)
    if found is None or int(found.group(2), 16) == 0:
        raise Trouble(f"{binary} has no code in .text_busy")
    start = int(found.group(1), 16)
    return start, start + int(found.group(2), 16)


def load_address(pid: int, binary: str) -> int:
    """The difference between mapped and linked addresses: 0 unless the program is position-independent."""
    header = subprocess.run(["readelf", "-hW", binary], capture_output=True, text=True, check=True).stdout
    if not re.search(r"Type:\s+DYN", header):
        return 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[2] == "00000000" and os.path.samefile(fields[5], binary):
            return int(fields[0].split("-")[0], 16)
    raise Trouble(f"{binary} is not in the memory of process {pid}")


def executed(profile: str) -> Counter[int]:
    """Instructions by address. The line after `calls=` holds those of the callee, which are counted at its own address."""
    counts: Counter[int] = Counter()
    is_call = False
    for line in profile.splitlines():
        if line.startswith("calls="):
            is_call = True
        elif line.startswith("0x"):
            fields = line.split()
            if not is_call:
                counts[int(fields[0], 16)] += int(fields[-1])
            is_call = False
    return counts


def run(lab: Testbed, contender: Contender, requests: int) -> Counter[int]:
    site = lab.site(contender, one_process=True)
    command, environment = contender.set_up(site)
    out = site.folder / "profile"
    flags = ["--dump-instr=yes", "--compress-pos=no", "--compress-strings=no", f"--callgrind-out-file={out}"]
    whole = {"PATH": os.environ.get("PATH", ""), **contender.library_path, **environment}
    running = Running(["valgrind", "--tool=callgrind", *flags, *command], whole, site.folder, None, PROXY_CPUS)
    try:
        wait_for_answer(running, site.port, 60)
        offset = load_address(running.pids()[-1], command[0])
        lab.ask(site.port, conns=1, count=requests)
        running.interrupt(running.pids()[-1])
    finally:
        running.stop()
    return Counter({address - offset: count for address, count in executed(out.read_text()).items()})


def check_code(binary: str) -> bool:
    first, last = busy_section(binary)
    lab = Testbed(build("--example=traffic")["traffic"], work_folder())
    try:
        contender = Contender("lean-proxy", lean_proxy, binary)
        lab.use_private_copy(contender)
        few, many = run(lab, contender, 200), run(lab, contender, 700)
    finally:
        lab.close()
    each = {address: (count - few[address]) / 500 for address, count in many.items() if count > few[address]}
    outside = {address: count for address, count in each.items() if not first <= address < last}
    part = sum(outside.values()) / sum(each.values())
    pages: Counter[int] = Counter()
    for address, count in outside.items():
        pages[address // PAGE * PAGE] += int(count)
    fits = part <= OUTSIDE
    print(
        f"outside .text_busy: {part:.1%} of {sum(each.values()):,.0f} instructions per request, on {len(pages)} pages: "
        f"{'within' if fits else 'OVER'} the bound of {OUTSIDE:.0%}"
    )
    for page, count in pages.most_common(0 if fits else 12):
        print(f"  page {page:#x}: {count} instructions per request")
    return fits


def placed(link_map: str) -> list[tuple[str, str]]:
    """The input sections of `.text_busy` in GNU ld's map, each with the archive member that it came from."""
    start = link_map.index("\n.text_busy ")
    end = re.compile(r"^\.\w+ ", re.M).search(link_map, start + 12)
    part = link_map[start : end.start() if end else len(link_map)]
    return re.findall(r"^ (\.(?:text|rodata)\S*)\s+0x[0-9a-f]+\s+0x[0-9a-f]+ (\S+)$", part, re.M)


def unmatched(script: str, link_map: str) -> list[str]:
    """Patterns of `layout.ld` that match no section."""
    sections = placed(link_map)
    missing = []
    for files, names in re.findall(r"([*:\w.]+)\(([^()]+)\)", re.sub(r"/\*.*?\*/", "", script, flags=re.S)):
        member = files.removeprefix("*:")
        inside = [name for name, file in sections if files == "*" or fnmatchcase(file.rpartition("(")[2].rstrip(")"), member)]
        if files == "*":
            missing += [name for name in names.split() if not any(fnmatchcase(section, name) for section in inside)]
        elif not inside:
            missing.append(files)
    return missing


def check_memory(binary: str) -> bool:
    lab = Testbed(build("--example=traffic")["traffic"], work_folder())
    good = True
    try:
        contender = Contender("lean-proxy", lean_proxy, binary)
        lab.use_private_copy(contender)
        for what, now, most in (("idle", idle(lab, contender)["idle"], IDLE), ("busy, peak", busy(lab, contender)["busy"], BUSY)):
            fits = now <= most * 1024
            good = good and fits
            print(f"memory, {what}: {now / 1024:,.0f} kB, {'within' if fits else 'OVER'} the bound of {most:,} kB")
    finally:
        lab.close()
    return good


def check_patterns(link_map: str) -> bool:
    root = Path(__file__).resolve().parent.parent
    missing = unmatched((root / "layout.ld").read_text(), link_map)
    for pattern in missing:
        print(f"layout.ld: {pattern} matches nothing")
    # a function without a jump table has no constants of its own
    busy_functions = re.sub(r"^.*\.rodata.*$", "", (root / "layout_busy.ld").read_text(), flags=re.M)
    part = len(unmatched(busy_functions, link_map)) / busy_functions.count("*(")
    fits = part <= STALE
    print(f"layout_busy.ld: {part:.0%} of its functions do not exist" + ("" if fits else ": run bench/order.py"))
    return not missing and fits


def main() -> int:
    if len(sys.argv) not in (2, 3):
        print(__doc__)
        return 2
    prepare()
    good = len(sys.argv) < 3 or check_patterns(Path(sys.argv[2]).read_text())
    good = check_memory(sys.argv[1]) and good
    if shutil.which("valgrind") is None or shutil.which("readelf") is None:
        print("skipped: the layout of a request's code, because there is no valgrind or no readelf")
    else:
        good = check_code(sys.argv[1]) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
