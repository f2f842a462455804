# A new configuration without a restart: existing connections stay, new ones use it, and a wrong one changes nothing.
import json
import unittest

check = unittest.TestCase()

start_all()
proxy.wait_for_unit("lean-proxy.service")
upstream.wait_for_unit("upstream.service")
upstream.wait_for_open_port(8080)
upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy:8080/health", timeout=60)

CLIENT = "python3 /etc/vm/client.py"
CONFIG = "/etc/lean-proxy/config.yaml"
first_pid = proxy.get_unit_property("lean-proxy.service", "MainPID")


def change(sed: str) -> None:
    """Replaces the configuration by a changed one, as a switch to a new system does, and reloads."""
    proxy.succeed(f"sed '{sed}' {CONFIG} > /run/changed.yaml", f"rm {CONFIG}", f"install -m 644 /run/changed.yaml {CONFIG}")
    proxy.execute("systemctl reload lean-proxy")
    proxy.wait_until_succeeds("test $(systemctl show -P ActiveState lean-proxy) = active", timeout=30)


def target(port: int = 8080) -> str:
    return str(json.loads(upstream.succeed(f"curl -sf --max-time 10 http://proxy:{port}/x"))["target"])


def version(port: int = 8080) -> str:
    return str(json.loads(upstream.succeed(f"curl -sf 'http://proxy:{port}/health?format=json'"))["config"]["version"])


with subtest("a new configuration is applied, and a WebSocket stays open"):
    check.assertEqual((version(), target()), ("the-first", "/the-base/x"))
    upstream.succeed(f"systemd-run --unit=talk -p StandardOutput=file:/tmp/talk -p RemainAfterExit=yes {CLIENT} websocket proxy 8080 /ws 20")
    upstream.succeed("sleep 2")
    change("s/the-first/the-second/; s/the-base/a-new-base/")
    upstream.wait_until_succeeds("curl -sf 'http://proxy:8080/health?format=json' | grep -q the-second", timeout=10)
    check.assertEqual(target(), "/a-new-base/x")
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "MainPID"), first_pid)

with subtest("a wrong configuration is logged and changes nothing"):
    proxy.succeed(f"cp {CONFIG} /run/good.yaml")
    change("s,http://upstream,ftp://upstream,")
    check.assertEqual((version(), target()), ("the-second", "/a-new-base/x"))
    proxy.succeed("journalctl --no-pager -u lean-proxy.service | grep -F 'routes[0].target'")
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "MainPID"), first_pid)
    proxy.succeed(f"install -m 644 /run/good.yaml {CONFIG}")

with subtest("listen may change"):
    change("s/^listen: .*/listen: :8081/; s/the-second/the-third/")
    upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy:8081/health", timeout=10)
    check.assertEqual((version(8081), target(8081)), ("the-third", "/a-new-base/x"))
    upstream.fail("curl -sf --max-time 2 http://proxy:8080/health")
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "MainPID"), first_pid)

with subtest("the first WebSocket has received everything"):
    upstream.wait_until_succeeds("grep -q 'all of it came back' /tmp/talk", timeout=60)

with subtest("a stop lets a request end"):
    upstream.succeed("systemd-run --unit=last -p StandardOutput=file:/tmp/last -p RemainAfterExit=yes curl -sf -w ' %{http_code}' 'http://proxy:8081/slow?seconds=3'")
    upstream.succeed("sleep 1")
    proxy.succeed("systemctl stop lean-proxy")
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "Result"), "success")
    upstream.wait_until_succeeds("grep -q ' 200$' /tmp/last", timeout=20)
