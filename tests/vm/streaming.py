# Bodies of any size are streamed in both directions, inside the unit's ten megabytes.
import json
import unittest

check = unittest.TestCase()

start_all()
proxy.wait_for_unit("lean-proxy.service")
upstream.wait_for_unit("upstream.service")
upstream.wait_for_open_port(8080)
upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy:8080/health", timeout=60)

CLIENT = "python3 /etc/vm/client.py"
MEGABYTES = 16  # more than the limit, and not too much for a slow machine


READERS = 10


def memory(what: str) -> str:
    group = proxy.get_unit_property("lean-proxy.service", "ControlGroup")
    return proxy.succeed(f"cat /sys/fs/cgroup{group}/memory.{what}").strip()


def held() -> int:
    """Bytes that the kernel cannot reclaim: without the page cache."""
    return int(memory("current")) - sum(int(line.split()[1]) for line in memory("stat").splitlines() if line.startswith("file "))


def sent() -> int:
    """Bytes of large answers that the upstream has written; asked without the proxy."""
    return int(upstream.succeed("curl -sf http://localhost:8080/sent"))


with subtest("server-sent events arrive one by one"):
    came: list[float] = json.loads(upstream.succeed(f"{CLIENT} sse proxy 8080 '/sse?count=5&pause=1'"))
    check.assertEqual(len(came), 5)
    check.assertLess(came[0], 0.9)
    for before, after in zip(came, came[1:]):
        check.assertGreater(after - before, 0.5, f"{came}")

with subtest("a large answer"):
    got = proxy.succeed(f"curl -sf 'http://127.0.0.1:8080/bytes?size={MEGABYTES << 20}' | wc -c")
    check.assertEqual(int(got), MEGABYTES << 20)

with subtest("a large request, with and without its length"):
    want = proxy.succeed(f"head -c {MEGABYTES}M /dev/zero | sha256sum").split()[0]
    proxy.succeed(f"truncate -s {MEGABYTES}M /tmp/zeros")
    for source in ("-T /tmp/zeros", "-T - < /tmp/zeros"):
        seen = json.loads(proxy.succeed(f"curl -sf -H 'Expect:' http://127.0.0.1:8080/echo {source}"))
        check.assertEqual((seen["size"], seen["sha256"]), (MEGABYTES << 20, want), source)

with subtest("Expect: 100-continue"):
    seen = json.loads(upstream.succeed("curl -sf -H 'Expect: 100-continue' http://proxy:8080/echo -d hello"))
    check.assertEqual(seen["size"], 5)

with subtest("a WebSocket"):
    upstream.succeed(f"{CLIENT} websocket proxy 8080 /ws 3")

with subtest("a client that stops reading stops the upstream, and fills no memory"):
    at_rest, before = held(), sent()
    upstream.succeed(f"systemd-run --unit=readers --collect {CLIENT} hold readers proxy 8080 {READERS} 60 --ready /tmp/readers")
    upstream.wait_for_file("/tmp/readers")
    # of a hundred megabytes each, the upstream writes only what fits into the buffers between
    upstream.wait_until_succeeds("a=$(curl -sf http://localhost:8080/sent); sleep 3; test $(curl -sf http://localhost:8080/sent) = $a", timeout=40)
    each = (sent() - before) / READERS
    proxy.log(f"with {READERS} stalled readers: {each:.0f} bytes written for each, {held()} bytes of memory held, {at_rest} before")
    check.assertGreater(each, 0)
    check.assertLess(each, 8 << 20)
    check.assertLess(held() - at_rest, READERS * (256 << 10))
    check.assertEqual(upstream.succeed("curl -sf --max-time 5 http://proxy:8080/health"), "ok\n")
    check.assertEqual(upstream.succeed("systemctl is-active readers").strip(), "active")
    upstream.succeed("systemctl stop readers")

with subtest("the memory limit was never reached"):
    proxy.log(f"memory.peak {memory('peak')}, memory.current {memory('current')}")
    check.assertEqual(memory("max"), str(10 << 20))
    events = dict(line.split() for line in memory("events").splitlines())
    check.assertEqual((events["max"], events["oom"], events["oom_kill"]), ("0", "0", "0"))
    check.assertLess(int(memory("peak")), 8 << 20)
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "NRestarts"), "0")
