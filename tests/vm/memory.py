# The proxy stays below ten megabytes whatever its clients do: no OOM kill, the same process, health always in time, and
# the memory is freed afterwards.
import json
import unittest

check = unittest.TestCase()

start_all()
proxy.wait_for_unit("lean-proxy.service")
upstream.wait_for_unit("upstream.service")
upstream.wait_for_open_port(8080)
upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy:8080/health", timeout=60)

CLIENT = "python3 /etc/vm/client.py"
LIMIT = 10 << 20
AT_REST = 2 << 20  # bytes in use, without the page cache
SECONDS = 5  # for a health report at any time, on emulated machines that share a processor
REFUSED = 0  # how often the kernel may have had to reclaim memory at the limit
first_pid = proxy.get_unit_property("lean-proxy.service", "MainPID")


def memory(what: str) -> str:
    group = proxy.get_unit_property("lean-proxy.service", "ControlGroup")
    return proxy.succeed(f"cat /sys/fs/cgroup{group}/memory.{what}").strip()


def resident() -> int:
    """Bytes that the kernel cannot reclaim: without the page cache."""
    stat = dict(line.split() for line in memory("stat").splitlines())
    return int(memory("current")) - int(stat["file"])


def watch() -> None:
    """Starts asking for health, five times a second."""
    upstream.succeed(
        "rm -f /tmp/enough /tmp/watch; systemd-run --unit=watch --collect -p StandardOutput=file:/tmp/watch "
        f"{CLIENT} probe proxy 8080 /health --until /tmp/enough"
    )
    upstream.wait_until_succeeds("test -s /tmp/watch", timeout=60)


def alive(when: str) -> None:
    """Ends `watch`: the process is the same, its limit was never reached, and health was always in time."""
    upstream.succeed("touch /tmp/enough")
    upstream.wait_until_succeeds("grep -q slowest /tmp/watch", timeout=60)
    health = json.loads(upstream.succeed("tail -1 /tmp/watch"))
    events = dict(line.split() for line in memory("events").splitlines())
    proxy.log(f"{when}: memory.current {memory('current')}, memory.peak {memory('peak')}, held {resident()}, {events}, {health}")
    check.assertEqual(list(health["answers"]), ["200"], when)
    check.assertLess(health["slowest"], SECONDS, when)
    check.assertEqual((events["oom"], events["oom_kill"]), ("0", "0"), when)
    check.assertLessEqual(int(events["max"]), REFUSED, when)
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "MainPID"), first_pid, when)
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "NRestarts"), "0", when)


def held(kind: str, count: int, seconds: int) -> tuple[str, dict[str, int]]:
    """Runs `count` clients that hold connections, and checks the proxy. Returns the status of another request meanwhile, and
    how the clients ended."""
    ready = f"/tmp/{kind}"
    watch()
    upstream.succeed(
        f"rm -f {ready}; systemd-run --unit={kind} -p LimitNOFILE=8192 -p StandardOutput=file:{ready}.out "
        f"{CLIENT} hold {kind} proxy 8080 {count} {seconds} --ready {ready}"
    )
    upstream.wait_for_file(ready, timeout=120)
    fresh = upstream.succeed("curl -s -o /dev/null -w '%{http_code}' --max-time 20 http://proxy:8080/echo")
    check.assertIn(fresh, ("200", "503"), f"a fresh request beside {count} {kind}")
    upstream.succeed(f"while systemctl is-active -q {kind}; do sleep 0.5; done", timeout=seconds + 120)
    alive(f"{count} {kind}")
    became: dict[str, int] = json.loads(upstream.succeed(f"cat {ready}.out"))
    proxy.log(f"{count} {kind}: {became}; a fresh request meanwhile: {fresh}")
    return fresh, became


with subtest("at rest"):
    check.assertEqual(memory("max"), str(LIMIT))
    watch()
    alive("at rest")
    at_rest = resident()
    check.assertLess(at_rest, AT_REST)

with subtest("load"):
    watch()
    seen = json.loads(upstream.succeed(f"{CLIENT} load proxy 8080 /echo 50 20", timeout=300))
    proxy.log(f"50 clients, 20 requests each: {seen}")
    check.assertEqual(seen, {"200": 1000})
    alive("after load")

with subtest("500 idle connections, and room for one more"):
    check.assertEqual(held("idle", 500, 5), ("200", {"answer 200": 500, "stayed": 500}))

with subtest("128 exchanges at the same time"):
    became = held("streams", 128, 10)[1]
    # some are closed where new ones need memory or places
    check.assertGreaterEqual(became["answer 200"], 100)
    check.assertGreaterEqual(became["stayed"], 100)

with subtest("heads that never end in time"):
    held("heads", 300, 8)

with subtest("heads without an end"):
    held("endless", 600, 5)

with subtest("bodies that are never sent"):
    held("bodies", 500, 8)

with subtest("large answers that are not read"):
    held("readers", 300, 12)

with subtest("more clients than memory allows"):
    held("idle", 2000, 10)

with subtest("the memory is freed"):
    seen = json.loads(upstream.succeed(f"{CLIENT} load proxy 8080 /echo 10 5", timeout=120))
    check.assertEqual(seen, {"200": 50})
    # Without the page cache, which the kernel reclaims. The first requests leave 0.3 MB in use and the floods another 0.4 MB
    # (page tables, the allocator, the kernel's caches), once.
    slack = 1 << 20
    group = "/sys/fs/cgroup" + proxy.get_unit_property("lean-proxy.service", "ControlGroup")
    held_now = f"$(cat {group}/memory.current) - $(sed -n 's/^file //p' {group}/memory.stat)"
    proxy.wait_until_succeeds(f"test $(( {held_now} )) -lt {at_rest + slack}", timeout=60)
    watch()
    alive("at the end")
    check.assertLess(int(memory("peak")), LIMIT)
    proxy.log(f"memory.peak {memory('peak')} of {LIMIT} bytes, at rest {at_rest}, at the end {memory('current')}")
    proxy.log(proxy.succeed("grep -E '^(anon|file|kernel|sock|slab) ' /sys/fs/cgroup/system.slice/lean-proxy.service/memory.stat"))
