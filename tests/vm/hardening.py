# The service has what it needs and nothing else: as systemd rates it, and as the kernel has it.
import json
import unittest

check = unittest.TestCase()

start_all()
proxy.wait_for_unit("lean-proxy.service")
proxy.wait_for_open_port(80)
upstream.wait_for_unit("upstream.service")
upstream.wait_for_open_port(8080)
upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy/echo", timeout=60)

pid = proxy.get_unit_property("lean-proxy.service", "MainPID")


def shown(field: str) -> str:
    return proxy.succeed(f"sed -n 's/^{field}:[[:space:]]*//p' /proc/{pid}/status").strip()


with subtest("systemd's own rating"):
    proxy.log(proxy.succeed("systemd-analyze security --no-pager --threshold=15 lean-proxy.service | tail -1"))

with subtest("no root, one capability, no way to more"):
    check.assertNotIn("0", shown("Uid").split())
    bind = "0000000000000400"
    for field in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        check.assertEqual(shown(field), bind, field)
    check.assertEqual(shown("NoNewPrivs"), "1")
    check.assertEqual(shown("Seccomp"), "2")

with subtest("nothing to write, nobody to see"):
    inside = f"nsenter --mount --target {pid} --"
    proxy.succeed(f"{inside} test -r /etc/lean-proxy/config.yaml")
    for place in ("/etc", "/var", "/usr", "/srv"):
        proxy.fail(f"{inside} touch {place}/x 2>&1")
    check.assertEqual(proxy.succeed(f"{inside} ls -A /home /root 2>/dev/null | grep -v : || true").strip(), "")
    check.assertEqual(proxy.succeed(f"{inside} ls /dev | grep -cE '^(sd|vd|ubd|mem|kmsg)' || true").strip(), "0")

with subtest("its log is in the journal, a line an event"):
    lines = proxy.succeed("journalctl -o cat --no-pager -u lean-proxy.service _PID=" + pid).splitlines()
    check.assertTrue(lines)
    for line in lines:
        check.assertIsInstance(json.loads(line), dict)

with subtest("a crash is made good"):
    proxy.succeed(f"kill -KILL {pid}")
    upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy/echo", timeout=30)
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "NRestarts"), "1")

with subtest("a process that hangs is replaced"):
    hung = proxy.get_unit_property("lean-proxy.service", "MainPID")
    proxy.succeed(f"kill -STOP {hung}")
    proxy.wait_until_succeeds("test $(systemctl show -P NRestarts lean-proxy) = 2", timeout=90)
    upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy/echo", timeout=30)
    check.assertNotEqual(proxy.get_unit_property("lean-proxy.service", "MainPID"), hung)
