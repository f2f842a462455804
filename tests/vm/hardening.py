# The service has only the rights that it needs, by systemd's rating and by the kernel.
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

with subtest("not root, one capability, and no way to get more"):
    check.assertNotIn("0", shown("Uid").split())
    bind = "0000000000000400"
    for field in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        check.assertEqual(shown(field), bind, field)
    check.assertEqual(shown("NoNewPrivs"), "1")
    check.assertEqual(shown("Seccomp"), "2")

with subtest("nothing is writable, and no home folder is visible"):
    inside = f"nsenter --mount --target {pid} --"
    proxy.succeed(f"{inside} test -r /etc/lean-proxy/config.yaml")
    for place in ("/etc", "/var", "/usr", "/srv"):
        proxy.fail(f"{inside} touch {place}/x 2>&1")
    check.assertEqual(proxy.succeed(f"{inside} ls -A /home /root 2>/dev/null | grep -v : || true").strip(), "")
    check.assertEqual(proxy.succeed(f"{inside} ls /dev | grep -cE '^(sd|vd|ubd|mem|kmsg)' || true").strip(), "0")

with subtest("its log is in the journal, one line for each event"):
    lines = proxy.succeed("journalctl -o cat --no-pager -u lean-proxy.service _PID=" + pid).splitlines()
    check.assertTrue(lines)
    for line in lines:
        check.assertIsInstance(json.loads(line), dict)

with subtest("it is restarted after a crash"):
    proxy.succeed(f"kill -KILL {pid}")
    upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy/echo", timeout=30)
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "NRestarts"), "1")

with subtest("a process that hangs is restarted"):
    hung = proxy.get_unit_property("lean-proxy.service", "MainPID")
    proxy.succeed(f"kill -STOP {hung}")
    proxy.wait_until_succeeds("test $(systemctl show -P NRestarts lean-proxy) = 2", timeout=90)
    upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy/echo", timeout=30)
    check.assertNotEqual(proxy.get_unit_property("lean-proxy.service", "MainPID"), hung)
