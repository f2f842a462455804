# A switch to a changed system: an upgrade refuses no connection, and a changed `listen` is applied.
import json
import unittest

check = unittest.TestCase()

start_all()
proxy.wait_for_unit("lean-proxy.service")
upstream.wait_for_unit("upstream.service")
upstream.wait_for_open_port(8080)
upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy/echo", timeout=60)


def pid() -> str:
    return proxy.get_unit_property("lean-proxy.service", "MainPID")


def switch(system: str) -> None:
    proxy.log(proxy.succeed(f"/run/booted-system/{system}bin/switch-to-configuration test 2>&1"))
    proxy.wait_for_unit("lean-proxy.service")


def answers(port: int) -> bool:
    return upstream.execute(f"curl -sf -o /dev/null --max-time 10 http://proxy:{port}/echo")[0] == 0


with subtest("an upgrade refuses no connection"):
    before = pid()
    upstream.succeed(
        'systemd-run --unit=asking -E PATH="$PATH" -p StandardOutput=file:/tmp/asked -p RemainAfterExit=yes '
        "python3 /etc/vm/client.py probe proxy 8080 /echo --until /tmp/enough"
    )
    upstream.wait_until_succeeds("test -s /tmp/asked", timeout=30)
    switch("specialisation/upgraded/")
    check.assertNotEqual(pid(), before)
    check.assertIn("LOG_FORMAT=json", proxy.get_unit_property("lean-proxy.service", "Environment"))
    check.assertTrue(answers(80))
    upstream.succeed("touch /tmp/enough")
    upstream.wait_until_succeeds("grep -q slowest /tmp/asked", timeout=60)
    asked = json.loads(upstream.succeed("tail -1 /tmp/asked"))
    proxy.log(f"meanwhile: {asked}")
    check.assertEqual(list(asked["answers"]), ["200"])

with subtest("after a changed listen the new port is open and the old one closed"):
    check.assertFalse(answers(81))
    switch("specialisation/moved/")
    check.assertTrue(answers(81))
    check.assertTrue(answers(8080))
    check.assertFalse(answers(80))
    proxy.fail("curl -s -o /dev/null --max-time 10 http://127.0.0.1:80/echo")

with subtest("a switch back restores the first ports"):
    switch("")
    check.assertTrue(answers(80))
    check.assertTrue(answers(8080))
    check.assertFalse(answers(81))
    check.assertNotIn("LOG_FORMAT", proxy.get_unit_property("lean-proxy.service", "Environment"))
