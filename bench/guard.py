#!/usr/bin/env python3
"""Fails when a request has become more expensive:  python3 bench/guard.py BINARY

Counts the instructions (valgrind) and system calls (perf or strace) of one small request on a kept-alive connection, and
the system calls of a long download and of an upload with a budget of 10 MiB. They are compared with the bounds for the
static release build, and are the same on a busy machine. What cannot be counted on this machine is reported and skipped.
"""

import sys

from contenders import Contender, lean_proxy_in_ten, ours
from machine import prepare, work_folder
from measures import Testbed, counted, counters
from run import build

# The measured values; the bounds are 15 % above. Lower them when the program needs less.
MARGIN = 1.15
MEASURED = {"instructions": 16_000, "calls": 6.0}
# System calls with a budget of 10 MiB, where socket buffers are paid for. How many reads a body takes depends on how it
# comes, so the bounds are wider.
TIGHT_MARGIN = 1.5
TIGHT: dict[str, tuple[dict[str, int | str], float]] = {
    "GET of 10 kB": ({"path": "/api/bytes/10240"}, 7.0),
    "GET of 100 kB": ({"path": "/api/bytes/100000"}, 10.0),
    "POST of 10 kB": ({"path": "/api/sink", "post": 10_240}, 7.0),
}


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    prepare()
    lab = Testbed(build("--example=traffic")["traffic"], work_folder())
    worse = 0
    try:
        proxy = ours(sys.argv[1])[0]
        lab.use_private_copy(proxy)
        available = counters()
        for what, once in MEASURED.items():
            if what not in available:
                print(f"skipped: {what} per request, because there is no {'valgrind' if what == 'instructions' else 'perf or strace'}")
                continue
            now = counted(lab, proxy, available[what], conns=1, few=200, many=700)
            fits = now <= once * MARGIN
            worse += not fits
            print(f"{what} per request: {now:,.1f}, {'within' if fits else 'OVER'} the bound of {once * MARGIN:,.1f}")
        tight = Contender("lean-proxy in 10 MiB", lean_proxy_in_ten, sys.argv[1])
        lab.use_private_copy(tight)
        for what, (request, once) in TIGHT.items() if "calls" in available else ():
            now = counted(lab, tight, available["calls"], conns=1, few=200, many=700, **request)
            fits = now <= once * TIGHT_MARGIN
            worse += not fits
            print(f"calls per {what} in 10 MiB: {now:,.1f}, {'within' if fits else 'OVER'} the bound of {once * TIGHT_MARGIN:,.1f}")
    finally:
        lab.close()
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
