# gRPC with a real client and server: over TLS and without, on both sides of the proxy.
import unittest

check = unittest.TestCase()

start_all()
upstream.wait_for_unit("upstream.service")


def certificate(name: str, host: str) -> None:
    """A certificate for this host, by the root."""
    upstream.succeed(
        f"printf 'subjectAltName=DNS:{host}\\n' > /run/tls/names",
        f"openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN={name}' "
        f"-keyout /run/tls/{name}.key -out /run/tls/{name}.csr 2>&1",
        f"openssl x509 -req -in /run/tls/{name}.csr -CA /run/tls/root.pem -CAkey /run/tls/root.key "
        f"-CAcreateserial -days 30 -extfile /run/tls/names -out /run/tls/{name}.pem 2>&1",
    )


def install(source: str, target: str) -> None:
    text = upstream.succeed(f"cat /run/tls/{source}")
    proxy.succeed(f"cat > /var/lib/tls/{target} <<'PEM'\n{text}PEM")


with subtest("certificates for the proxy and the server"):
    upstream.succeed(
        "mkdir -p /run/tls",
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj '/CN=root' "
        "-addext 'basicConstraints=critical,CA:TRUE' -keyout /run/tls/root.key -out /run/tls/root.pem 2>&1",
    )
    certificate("proxy", "proxy.example")
    certificate("server", "upstream.example")
    proxy.succeed("mkdir -p /var/lib/tls")
    install("proxy.pem", "cert.pem")
    install("proxy.key", "key.pem")
    install("root.pem", "root.pem")
    # the service's user has no name: the folder is what keeps others out here
    proxy.succeed("chmod 644 /var/lib/tls/*.pem", "systemctl restart lean-proxy")

with subtest("a server of gRPC"):
    upstream.succeed("python3 /etc/vm/rpc.py serve /run/tls/server.key /run/tls/server.pem > /run/rpc.log 2>&1 &")
    upstream.wait_for_open_port(9000)
    upstream.wait_for_open_port(9443)

for client, target, root in (("without TLS", "proxy:8080", ""), ("over TLS", "proxy:443", "/run/tls/root.pem")):
    for server, service in (("without TLS", "plain.Calls"), ("over TLS", "secure.Calls")):
        with subtest(f"calls {client}, to a server {server}"):
            said = upstream.succeed(f"python3 /etc/vm/rpc.py call {target} {service} {root} 2>&1", timeout=300)
            upstream.log(said)
            check.assertEqual(len(said.splitlines()), 9, said)

with subtest("inside its memory"):
    group = proxy.get_unit_property("lean-proxy.service", "ControlGroup")
    proxy.log("memory.peak " + proxy.succeed(f"cat /sys/fs/cgroup{group}/memory.peak"))
    check.assertIn("oom_kill 0", proxy.succeed(f"cat /sys/fs/cgroup{group}/memory.events"))
