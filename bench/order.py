#!/usr/bin/env python3
"""Writes `layout_busy.ld`, the functions that requests run:  python3 bench/order.py BINARY

BINARY is the static one with symbols (`CARGO_PROFILE_RELEASE_STRIP=false bash .ci/musl.sh FOLDER`). It serves four kinds of
requests under valgrind; each function that runs is listed, with its jump tables. Worth doing after larger changes of
the code: `bench/layout.py` checks what it brings.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from contenders import Contender, lean_proxy
from machine import PROXY_CPUS, Running, prepare, work_folder
from measures import REQUESTS, Testbed, wait_for_answer
from run import build

OUT = Path(__file__).resolve().parent.parent / "layout_busy.ld"
HEAD = "/* Functions that requests run, and their jump tables. Written by bench/order.py */\n"


def functions_run(binary: str) -> set[str]:
    """The symbols of the functions that run from the second request on."""
    lab = Testbed(build("--example=traffic")["traffic"], work_folder())
    contender = Contender("lean-proxy", lean_proxy, binary)
    try:
        lab.use_private_copy(contender)
        site = lab.site(contender, one_process=True)
        command, environment = contender.set_up(site)
        out = site.folder / "profile"
        flags = ["--demangle=no", "--compress-strings=no", "--compress-pos=no", f"--callgrind-out-file={out}"]
        whole = {"PATH": os.environ.get("PATH", ""), **environment}
        running = Running(["valgrind", "--tool=callgrind", *flags, *command], whole, site.folder, None, PROXY_CPUS)
        try:
            wait_for_answer(running, site.port, 60)
            pid = str(running.pids()[-1])
            subprocess.run(["callgrind_control", "--zero", pid], check=True, capture_output=True)
            for kind in ("cpu_100", "cpu_100k", "cpu_post", "cpu_close"):
                lab.ask(site.port, **{**REQUESTS[kind], "count": 300, "seconds": 60})
            time.sleep(1.5)  # for the ticks after them
            subprocess.run(["callgrind_control", "--dump", pid], check=True, capture_output=True)
        finally:
            running.stop()
        profile = Path(f"{out}.1").read_text()
    finally:
        lab.close()
    return {name.partition("'")[0] for name in re.findall(r"^fn=(\S+)", profile, re.M)}


def pattern(symbol: str) -> str:
    """Without what differs from one compiler to the next: the hash of a function, the number of a crate."""
    return re.sub(r"Cs[0-9A-Za-z]+_", "*", re.sub(r"17h[0-9a-f]{16}E", "17h*", symbol))


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    prepare()
    run = functions_run(sys.argv[1])
    table = subprocess.run(["nm", "--numeric-sort", sys.argv[1]], capture_output=True, text=True, check=True).stdout
    placed = [line.split()[2] for line in table.splitlines() if len(line.split()) == 3]
    ours = [name for name in placed if name in run and re.match("_ZN|_R|_?_?mi_", name)]
    lines = [f"*(.text.{name})\n" for name in dict.fromkeys(map(pattern, ours))]
    tables = sorted({pattern(name) for name in ours if name.startswith("_ZN")})
    lines += [f"*(.rodata.{name} .rodata..Lswitch.table.{name})\n" for name in tables]
    OUT.write_text(HEAD + "".join(lines))
    print(f"{OUT.name}: {len(ours)} functions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
