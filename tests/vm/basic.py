# Routing, rewriting, headers and health, on a port below 1024.
import json
import unittest
from typing import Any

check = unittest.TestCase()

start_all()
proxy.wait_for_unit("lean-proxy.service")
proxy.wait_for_open_port(80)
upstream.wait_for_unit("upstream.service")
upstream.wait_for_open_port(8080)
upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy/health", timeout=60)


def ask(target: str, *options: str) -> Any:
    """What the upstream received for a request that another machine sent to the proxy."""
    return json.loads(upstream.succeed(f"curl -sf --path-as-is {' '.join(options)} 'http://proxy{target}'"))


def status(target: str, *options: str) -> str:
    return upstream.succeed(f"curl -s -o /dev/null -w '%{{http_code}}' --path-as-is {' '.join(options)} 'http://proxy{target}'")


with subtest("health answers as text and as JSON"):
    check.assertEqual(upstream.succeed("curl -sf http://proxy/health"), "ok\n")
    report = json.loads(upstream.succeed("curl -sf -H 'Accept: application/json' http://proxy/health"))
    check.assertEqual(report["status"], "UP")
    check.assertEqual(report["config"], {"version": "basic-1", "routes": 5})
    proxy.succeed("lean-proxy --health /etc/lean-proxy/config.yaml")
    proxy.fail("lean-proxy --health http://127.0.0.1:81/health")

with subtest("the longest prefix wins and is stripped"):
    check.assertEqual(ask("/api/x?q=1&r=%20")["target"], "/base/x?q=1&r=%20")
    check.assertEqual(ask("/api/deep/x")["target"], "/deep/x")
    check.assertEqual(ask("/api/a%2Fb//c")["target"], "/base/a%2Fb//c")
    check.assertEqual(ask("/whole/x")["target"], "/kept/whole/x")
    check.assertEqual(status("/wholex"), "404")
    check.assertEqual(status("/elsewhere"), "404")
    check.assertEqual(status("/api/../x"), "400")
    moved = upstream.succeed("curl -s -o /dev/null -w '%{http_code} %{redirect_url}' 'http://proxy/api?q'")
    check.assertEqual(moved, "307 http://proxy/api/?q")

with subtest("a route can be for one host only"):
    check.assertEqual(ask("/x", "-H 'Host: a.example.com'")["target"], "/by-host/x")
    check.assertEqual(status("/x", "-H 'Host: example.com'"), "404")

with subtest("the upstream gets the client's address and host"):
    seen = ask("/api/x", "-H 'X-Forwarded-For: 10.9.8.7'", "-H 'Connection: X-Gone'", "-H 'X-Gone: 1'", "-A 'the client'")
    headers = {name.lower(): value for name, value in seen["headers"]}
    check.assertEqual(headers["host"], "upstream:8080")
    check.assertRegex(headers["x-forwarded-for"], r"^10\.9\.8\.7, [0-9a-f.:]+$")
    check.assertEqual(headers["x-forwarded-host"], "proxy")
    check.assertEqual(headers["x-forwarded-proto"], "http")
    check.assertEqual(headers["user-agent"], "the client")
    check.assertNotIn("x-gone", headers)
    check.assertNotIn("accept-encoding", headers)
    kept = {name.lower(): value for name, value in ask("/whole/x")["headers"]}
    check.assertEqual(kept["host"], "proxy")

with subtest("headers are edited as the route is configured"):
    check.assertIn(["x-set", "by the proxy"], [[n.lower(), v] for n, v in ask("/changed/x", "-H 'X-Secret: 1'")["headers"]])
    check.assertNotIn("x-secret", [n.lower() for n, _ in ask("/changed/x", "-H 'X-Secret: 1'")["headers"]])
    answer = upstream.succeed("curl -sf -D - -o /dev/null http://proxy/changed/x").lower()
    check.assertIn("x-answer: changed", answer)
    check.assertNotIn("server:", answer)

with subtest("an upstream that is down gives 502, and is used again once it is up"):
    upstream.succeed("systemctl stop upstream")
    check.assertEqual(status("/api/x"), "502")
    check.assertEqual(status("/health"), "200")
    upstream.succeed("systemctl start upstream")
    upstream.wait_for_open_port(8080)
    check.assertEqual(status("/api/x"), "200")

with subtest("a wrong configuration is refused, and its keys are named"):
    proxy.fail("printf 'routes:\\n  - path: api\\n    target: ftp://x\\n' > /run/bad.yaml; lean-proxy --check /run/bad.yaml")
    said = proxy.succeed("lean-proxy --check /run/bad.yaml 2>&1 || true")
    check.assertIn("routes[0].path", said)
    check.assertIn("routes[0].target", said)
    proxy.succeed("lean-proxy --check /etc/lean-proxy/config.yaml")

with subtest("stopping is quick and clean"):
    proxy.succeed("systemctl stop lean-proxy")
    check.assertEqual(proxy.get_unit_property("lean-proxy.service", "Result"), "success")
    proxy.wait_for_closed_port(80)
    proxy.succeed("systemctl start lean-proxy")
    check.assertEqual(status("/api/x"), "200")
