# Socket activation: no capability, a unix socket, and restarts that refuse no connection.
import unittest

check = unittest.TestCase()

start_all()
proxy.wait_for_unit("lean-proxy-80.socket")
proxy.wait_for_unit("lean-proxy-unix--run-lean-proxy.sock.socket")
proxy.wait_for_unit("lean-proxy.service")
upstream.wait_for_unit("upstream.service")
upstream.wait_for_open_port(8080)
upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy/echo", timeout=60)

with subtest("port 80 without a capability"):
    pid = proxy.get_unit_property("lean-proxy.service", "MainPID")
    effective = proxy.succeed(f"sed -n 's/^CapEff:[[:space:]]*//p' /proc/{pid}/status").strip()
    check.assertEqual(effective, "0000000000000000")
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "PrivateUsers"), "yes")
    proxy.log(proxy.succeed("systemd-analyze security --no-pager --threshold=15 lean-proxy.service | tail -1"))

with subtest("the unix socket"):
    proxy.succeed("curl -sf --unix-socket /run/lean-proxy.sock http://x/echo")
    proxy.succeed("curl -sf --unix-socket /run/lean-proxy.sock http://x/health")

with subtest("a restart refuses no connection"):
    upstream.succeed(
        'systemd-run --unit=asking -E PATH="$PATH" -p StandardOutput=file:/tmp/asked -p RemainAfterExit=yes '
        "bash -c 'for i in $(seq 20); do curl -s -o /dev/null -w \"%{http_code}\\n\" --max-time 20 http://proxy/echo; sleep 0.2; done; echo done'"
    )
    upstream.succeed("sleep 1")
    proxy.succeed("systemctl restart lean-proxy.service")
    upstream.wait_until_succeeds("grep -q done /tmp/asked", timeout=120)
    check.assertEqual(upstream.succeed("sort -u /tmp/asked").split(), ["200", "done"])
    check.assertNotEqual(proxy.get_unit_property("lean-proxy.service", "MainPID"), pid)
