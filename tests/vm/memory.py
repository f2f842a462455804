# The promise: ten megabytes, whatever clients do. No OOM kill, the same process, health within
# its second, and the memory comes back.
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
first_pid = proxy.get_unit_property("lean-proxy.service", "MainPID")


def memory(what: str) -> str:
    group = proxy.get_unit_property("lean-proxy.service", "ControlGroup")
    return proxy.succeed(f"cat /sys/fs/cgroup{group}/memory.{what}").strip()


def alive(when: str) -> None:
    """The same process, never killed, inside its limit, and health comes in time."""
    took = upstream.succeed("curl -sf -o /dev/null -w '%{http_code} %{time_total}' --max-time 10 http://proxy:8080/health")
    code, seconds = took.split()
    proxy.log(f"{when}: memory.current {memory('current')}, memory.peak {memory('peak')}, health after {seconds} s")
    check.assertEqual(code, "200", when)
    check.assertLess(float(seconds), 2, when)
    check.assertIn("oom_kill 0", memory("events"), when)
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "MainPID"), first_pid, when)
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "NRestarts"), "0", when)


def held(kind: str, count: int, seconds: int) -> tuple[str, dict[str, int]]:
    """Lets so many clients hold on to the proxy and looks after it: what a fresh request got meanwhile, what became of them."""
    ready = f"/tmp/{kind}"
    upstream.succeed(
        f"rm -f {ready}; systemd-run --unit={kind} -p LimitNOFILE=8192 -p StandardOutput=file:{ready}.out "
        f"{CLIENT} hold {kind} proxy 8080 {count} {seconds} --ready {ready}"
    )
    upstream.wait_for_file(ready, timeout=120)
    alive(f"{count} {kind}")
    fresh = upstream.succeed("curl -s -o /dev/null -w '%{http_code}' --max-time 20 http://proxy:8080/echo")
    check.assertIn(fresh, ("200", "503"), f"a fresh request beside {count} {kind}")
    upstream.succeed(f"while systemctl is-active -q {kind}; do sleep 0.5; done", timeout=seconds + 120)
    became: dict[str, int] = json.loads(upstream.succeed(f"cat {ready}.out"))
    proxy.log(f"{count} {kind}: {became}; a fresh request meanwhile: {fresh}")
    return fresh, became


with subtest("at rest"):
    check.assertEqual(memory("max"), str(LIMIT))
    at_rest = int(memory("current"))
    alive("at rest")

with subtest("load"):
    seen = json.loads(upstream.succeed(f"{CLIENT} load proxy 8080 /echo 50 20", timeout=300))
    proxy.log(f"50 clients, 20 requests each: {seen}")
    check.assertEqual(seen, {"200": 1000})
    alive("after load")

with subtest("500 idle connections, and room for one more"):
    check.assertEqual(held("idle", 500, 5), ("200", {"answer 200": 500, "stayed": 500}))

with subtest("128 exchanges at the same time"):
    became = held("streams", 128, 10)[1]
    check.assertEqual(became["answer 200"], 128)
    check.assertGreaterEqual(became["stayed"], 127)  # one may have to go for the fresh request

with subtest("heads that never end in time"):
    held("heads", 300, 8)

with subtest("heads without an end"):
    held("endless", 600, 5)

with subtest("bodies that do not come"):
    held("bodies", 500, 8)

with subtest("large answers that nobody reads"):
    held("readers", 300, 12)

with subtest("more clients than there is room for"):
    held("idle", 2000, 10)

with subtest("the memory comes back"):
    seen = json.loads(upstream.succeed(f"{CLIENT} load proxy 8080 /echo 10 5", timeout=120))
    check.assertEqual(seen, {"200": 50})
    slack = 2 << 20
    proxy.wait_until_succeeds(
        "test $(cat /sys/fs/cgroup/system.slice/lean-proxy.service/memory.current) -lt " + str(at_rest + slack), timeout=60
    )
    alive("at the end")
    proxy.log(f"memory.peak {memory('peak')} of {LIMIT} bytes, at rest {at_rest}, at the end {memory('current')}")
    proxy.log(proxy.succeed("grep -E '^(anon|file|kernel|sock|slab) ' /sys/fs/cgroup/system.slice/lean-proxy.service/memory.stat"))
