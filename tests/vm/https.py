# TLS towards clients: a real chain, port 443 by an ordinary user, and a renewal of the files under load.
import json
import unittest

check = unittest.TestCase()

CURL = "curl -s --cacert /run/tls/root.pem --connect-to proxy.example:443:proxy:443"

start_all()
upstream.wait_for_unit("upstream.service")
upstream.wait_for_open_port(8080)


def certificate(name: str) -> None:
    """A chain of the certificate and an intermediate authority, for proxy.example; `name` is its serial's and file's."""
    upstream.succeed(
        f"openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN={name}' "
        f"-keyout /run/tls/{name}.key -out /run/tls/{name}.csr 2>&1",
        f"openssl x509 -req -in /run/tls/{name}.csr -CA /run/tls/middle.pem -CAkey /run/tls/middle.key "
        f"-CAcreateserial -days 30 -extfile /run/tls/names -out /run/tls/{name}.crt 2>&1",
        f"cat /run/tls/{name}.crt /run/tls/middle.pem > /run/tls/{name}.pem",
    )


def install(name: str) -> None:
    """One file after the other, each at once, as an ACME client does."""
    for source, target in ((f"{name}.pem", "cert.pem"), (f"{name}.key", "key.pem")):
        text = upstream.succeed(f"cat /run/tls/{source}")
        proxy.succeed(f"cat > /var/lib/tls/{target}.new <<'PEM'\n{text}PEM")
        # the service's user has no name: the folder is what keeps others out here
        proxy.succeed(f"chmod 644 /var/lib/tls/{target}.new && mv /var/lib/tls/{target}.new /var/lib/tls/{target}")


def shown() -> str:
    """Whose certificate a client is shown."""
    return upstream.succeed(
        "echo | openssl s_client -connect proxy:443 -servername proxy.example 2>/dev/null | openssl x509 -noout -subject"
    )


with subtest("a root, an authority below it, and a certificate for the proxy"):
    upstream.succeed(
        "mkdir -p /run/tls",
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj '/CN=root' "
        "-addext 'basicConstraints=critical,CA:TRUE' -keyout /run/tls/root.key -out /run/tls/root.pem 2>&1",
        "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=middle' "
        "-keyout /run/tls/middle.key -out /run/tls/middle.csr 2>&1",
        "printf 'basicConstraints=critical,CA:TRUE\n' > /run/tls/authority",
        "printf 'subjectAltName=DNS:proxy.example\n' > /run/tls/names",
        "openssl x509 -req -in /run/tls/middle.csr -CA /run/tls/root.pem -CAkey /run/tls/root.key "
        "-CAcreateserial -days 30 -extfile /run/tls/authority -out /run/tls/middle.pem 2>&1",
    )
    certificate("first")
    certificate("second")
    proxy.succeed("mkdir -p /var/lib/tls")
    install("first")
    proxy.succeed("systemctl restart lean-proxy")
    upstream.wait_until_succeeds(f"{CURL} -f --max-time 2 https://proxy.example/health", timeout=60)

with subtest("requests and bodies pass, and the upstream hears of https"):
    seen = json.loads(upstream.succeed(f"{CURL} -f https://proxy.example/x"))
    headers = {name.lower(): value for name, value in seen["headers"]}
    check.assertEqual(seen["target"], "/x")
    check.assertEqual(headers["x-forwarded-proto"], "https")
    got = upstream.succeed(f"{CURL} -f 'https://proxy.example/bytes?size={2 << 20}' | wc -c")
    check.assertEqual(int(got), 2 << 20)
    seen = json.loads(upstream.succeed(f"head -c 2M /dev/zero | {CURL} -f -T - https://proxy.example/echo"))
    check.assertEqual(seen["size"], 2 << 20)
    upstream.fail("curl -sf --max-time 5 https://proxy/health")
    check.assertIn("This port speaks TLS", upstream.succeed("curl -s http://proxy:443/"))

with subtest("the proxy's own health check"):
    proxy.succeed("lean-proxy --health /etc/lean-proxy/config.yaml")

with subtest("renewed files are taken over without a failed request"):
    check.assertIn("first", shown())
    loop = f"while [ ! -e /run/tls/stop ]; do {CURL} -f --max-time 10 -o /dev/null https://proxy.example/x && echo good || echo bad; done"
    upstream.succeed("rm -f /run/tls/stop", f"( {loop} ) > /run/tls/answers 2>&1 &")
    install("second")
    upstream.wait_until_succeeds(
        "echo | openssl s_client -connect proxy:443 -servername proxy.example 2>/dev/null | openssl x509 -noout -subject | grep second",
        timeout=150,
    )
    upstream.succeed("touch /run/tls/stop", "sleep 2")
    answers = upstream.succeed("cat /run/tls/answers").split()
    proxy.log(f"{len(answers)} requests during the renewal")
    check.assertGreater(answers.count("good"), 5, "machines of every speed run this")
    check.assertEqual(answers.count("bad"), 0)
    proxy.succeed("journalctl --no-pager -u lean-proxy.service | grep 'certificate renewed'")

with subtest("inside its memory"):
    group = proxy.get_unit_property("lean-proxy.service", "ControlGroup")
    proxy.log("memory.peak " + proxy.succeed(f"cat /sys/fs/cgroup{group}/memory.peak"))
    check.assertIn("oom_kill 0", proxy.succeed(f"cat /sys/fs/cgroup{group}/memory.events"))
