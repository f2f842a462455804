# https targets: verified against the route's ca_file, otherwise 502.
import json
import unittest

check = unittest.TestCase()

start_all()
upstream.wait_for_unit("upstream.service")
upstream.wait_for_open_port(8080)

with subtest("an authority, and a certificate for the upstream"):
    upstream.succeed(
        "mkdir -p /run/tls",
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj '/CN=the authority' "
        "-addext 'basicConstraints=critical,CA:TRUE' -keyout /run/tls/authority.key -out /run/tls/authority.pem 2>&1",
        "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=upstream' "
        "-keyout /run/tls/upstream.key -out /run/tls/upstream.csr 2>&1",
        "printf 'subjectAltName=DNS:upstream,DNS:other-name.example\\n' > /run/tls/names",
        "openssl x509 -req -in /run/tls/upstream.csr -CA /run/tls/authority.pem -CAkey /run/tls/authority.key "
        "-CAcreateserial -days 30 -extfile /run/tls/names -out /run/tls/upstream.pem 2>&1",
        "systemd-run --unit=secure python3 /etc/vm/upstream.py 8443 /run/tls/upstream.pem /run/tls/upstream.key",
    )
    upstream.wait_for_open_port(8443)
    authority = upstream.succeed("cat /run/tls/authority.pem")
    proxy.succeed(f"mkdir -p /etc/vm; cat > /etc/vm/authority.pem <<'PEM'\n{authority}PEM")
    proxy.succeed("systemctl restart lean-proxy")
    upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy:8080/health", timeout=60)


def status(target: str) -> str:
    return upstream.succeed(f"curl -s -o /dev/null -w '%{{http_code}}' --max-time 30 'http://proxy:8080{target}'")


with subtest("a certificate of the configured authority is accepted"):
    seen = json.loads(upstream.succeed("curl -sf http://proxy:8080/x"))
    check.assertEqual(seen["target"], "/x")
    check.assertIn("upstream:8443", [v for n, v in seen["headers"] if n.lower() == "host"])

with subtest("anything else fails, and the client gets no details"):
    check.assertEqual(status("/unknown/x"), "502")
    check.assertEqual(status("/misnamed/x"), "502")
    check.assertEqual(status("/plain/x"), "504", "a server that waits for the end of a head gets the first of a handshake")
    check.assertNotIn("certificate", upstream.succeed("curl -s http://proxy:8080/unknown/x").lower())
    proxy.succeed("journalctl --no-pager -u lean-proxy.service | grep -i certificate")

with subtest("another name, or no verification, if configured"):
    check.assertEqual(status("/renamed/x"), "200")
    check.assertEqual(status("/trusting/x"), "200")

with subtest("bodies and tunnels through TLS"):
    got = upstream.succeed(f"curl -sf 'http://proxy:8080/bytes?size={2 << 20}' | wc -c")
    check.assertEqual(int(got), 2 << 20)
    seen = json.loads(upstream.succeed("head -c 2M /dev/zero | curl -sf -T - http://proxy:8080/echo"))
    check.assertEqual(seen["size"], 2 << 20)
    upstream.succeed("python3 /etc/vm/client.py websocket proxy 8080 /ws 2")

with subtest("no OOM kill"):
    group = proxy.get_unit_property("lean-proxy.service", "ControlGroup")
    proxy.log("memory.peak " + proxy.succeed(f"cat /sys/fs/cgroup{group}/memory.peak"))
    check.assertIn("oom_kill 0", proxy.succeed(f"cat /sys/fs/cgroup{group}/memory.events"))
