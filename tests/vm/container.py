# The image in Docker, with --memory=10m as in the README.
import json
import unittest

check = unittest.TestCase()

start_all()
proxy.wait_for_unit("docker.service")
upstream.wait_for_unit("upstream.service")
upstream.wait_for_open_port(8080)

with subtest("the image loads"):
    proxy.succeed("docker load < /etc/vm/image.tar.gz")
    image = json.loads(proxy.succeed("docker image inspect lean-proxy:latest"))[0]
    check.assertEqual(image["Config"]["Entrypoint"], ["/lean-proxy"])
    check.assertEqual(image["Config"]["User"], "65532:65532")
    check.assertIn("PORT=80", image["Config"]["Env"])
    check.assertEqual(image["Config"]["Healthcheck"]["Test"], ["CMD", "/lean-proxy", "--health"])
    check.assertIn("org.opencontainers.image.revision", image["Config"]["Labels"])

address = proxy.succeed("getent ahostsv4 upstream | cut -d' ' -f1 | head -1").strip()


def write(name: str, label: str) -> None:
    """Writes the file in place, because the container has mounted the file and not its folder."""
    proxy.succeed(
        f"mkdir -p /srv; printf 'version: {label}\\nlisten: :80\\nroutes:\\n  - path: /api/\\n    target: http://{address}:8080/base/\\n' "
        f"> /srv/{name}.yaml; chmod 644 /srv/{name}.yaml"
    )


def run(name: str, port: int, mounts: str, *arguments: str, options: str = "") -> None:
    proxy.succeed(f"docker run -d --name {name} -p {port}:80 --memory=10m {options} -v {mounts} lean-proxy:latest {' '.join(arguments)}")
    proxy.wait_until_succeeds(f"curl -sf --max-time 2 http://127.0.0.1:{port}/health", timeout=60)


def state(name: str, of: str) -> str:
    return proxy.succeed(f"docker inspect -f '{{{{.State.{of}}}}}' {name}").strip()


with subtest("with the repository's config.yaml, as in the README"):
    proxy.succeed("mkdir -p /srv; install -m 644 /etc/vm/config.yaml /srv/own.yaml")
    run("own", 8082, "/srv/own.yaml:/config.yaml")
    check.assertEqual(proxy.succeed("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8082/").strip(), "502")

with subtest("with a config at /config.yaml"):
    write("config", "the-usual")
    # without its health check, which starts a process of the container runtime inside the ten megabytes
    run("usual", 8080, "/srv/config.yaml:/config.yaml", options="--no-healthcheck")
    seen = json.loads(proxy.succeed("curl -sf http://127.0.0.1:8080/api/x"))
    check.assertEqual(seen["target"], "/base/x")

with subtest("with a config elsewhere"):
    write("other", "the-other")
    run("other", 8081, "/srv/other.yaml:/other.yaml", "/other.yaml")
    check.assertIn("the-other", proxy.succeed("curl -sf 'http://127.0.0.1:8081/health?format=json'"))

with subtest("the container's own health check"):
    for name in ("own", "other"):
        check.assertEqual(proxy.succeed(f"docker exec {name} /lean-proxy --health").strip(), "ok")
        proxy.wait_until_succeeds(f"test $(docker inspect -f '{{{{.State.Health.Status}}}}' {name}) = healthy", timeout=60)

with subtest("it reloads at SIGHUP"):
    write("config", "the-new")
    proxy.succeed("docker kill -s HUP usual")
    proxy.wait_until_succeeds("curl -sf 'http://127.0.0.1:8080/health?format=json' | grep -q the-new", timeout=20)
    check.assertEqual(state("usual", "Running"), "true")

with subtest("load and attacks inside ten megabytes"):
    client = "python3 /etc/vm/client.py"
    said = json.loads(proxy.succeed(f"{client} load 127.0.0.1 8080 /api/x 50 20", timeout=300))
    check.assertEqual(said, {"200": 1000})
    for kind, count in (("idle", 500), ("heads", 300), ("bodies", 100), ("endless", 30)):
        proxy.log(proxy.succeed(f"{client} hold {kind} 127.0.0.1 8080 {count} 5", timeout=120).strip())
        proxy.succeed("curl -sf --max-time 2 http://127.0.0.1:8080/health")
    group = proxy.succeed("cat /proc/$(docker inspect -f '{{.State.Pid}}' usual)/cgroup").strip().removeprefix("0::")
    events = dict(line.split() for line in proxy.succeed(f"cat /sys/fs/cgroup{group}/memory.events").splitlines())
    check.assertEqual((events["oom"], events["oom_kill"]), ("0", "0"))
    check.assertEqual(state("usual", "OOMKilled"), "false")
    check.assertEqual(state("usual", "Running"), "true")

with subtest("it stops at once at SIGTERM"):
    proxy.succeed("timeout 8 docker stop -t 10 usual other own")
    check.assertEqual(state("usual", "ExitCode"), "0")
    proxy.succeed("docker rm usual other own")
