# Every limit gives its status, and the next request is served.
import unittest

check = unittest.TestCase()

start_all()
proxy.wait_for_unit("lean-proxy.service")
upstream.wait_for_unit("upstream.service")
upstream.wait_for_open_port(8080)
upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy:8080/health", timeout=60)

CLIENT = "python3 /etc/vm/client.py"


def status(target: str, *options: str) -> str:
    return upstream.succeed(f"curl -s -o /dev/null -w '%{{http_code}}' --max-time 30 {' '.join(options)} 'http://proxy:8080{target}'")


def timed(target: str) -> tuple[str, float]:
    """The status, and the seconds until the answer."""
    code, seconds = upstream.succeed(
        f"curl -s -o /dev/null -w '%{{http_code}} %{{time_total}}' --max-time 30 'http://proxy:8080{target}'"
    ).split()
    return code, float(seconds)


def raw(text: str) -> str:
    """The answer to these bytes (in printf's notation)."""
    return upstream.succeed(f"printf '{text}' | timeout 30 {CLIENT} raw proxy 8080")


with subtest("sizes"):
    check.assertEqual(status("/echo", "-H \"X-Long: $(head -c 9000 /dev/zero | tr '\\0' x)\""), "431")
    check.assertEqual(status("/small/echo", "-d \"$(head -c 2000 /dev/zero | tr '\\0' x)\""), "413")
    check.assertEqual(status("/small/echo", "-H 'Transfer-Encoding: chunked'", "-d \"$(head -c 2000 /dev/zero | tr '\\0' x)\""), "413")
    check.assertEqual(status("/small/echo", "-d hello"), "200")

with subtest("times"):
    code, seconds = timed("/slow?seconds=10")
    check.assertEqual(code, "504")
    check.assertGreaterEqual(seconds, 2)
    check.assertLess(seconds, 9)
    check.assertEqual(status("/patient/slow?seconds=4"), "200")
    late = raw("GET / HTTP/1.1\\r\\nHost: x\\r\\n")
    check.assertTrue(late.startswith("HTTP/1.1 408 "), late)

with subtest("upstreams that do not exist"):
    check.assertEqual(status("/refused/"), "502")
    check.assertIn(status("/nowhere/"), ("502", "504"))
    body = upstream.succeed("curl -s http://proxy:8080/refused/")
    for secret in ("192.", ":9", "errno", "error"):
        check.assertNotIn(secret, body)

with subtest("malformed requests"):
    for bad in (
        "GET / HTTP/1.1\\r\\n\\r\\n",
        "GET / HTTP/1.1\\r\\nHost: a\\r\\nHost: b\\r\\n\\r\\n",
        "GET / HTTP/1.1\\r\\nHost: a\\r\\nX : y\\r\\n\\r\\n",
        "POST / HTTP/1.1\\r\\nHost: a\\r\\nTransfer-Encoding: x, chunked, x\\r\\n\\r\\n",
        "POST / HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: +5\\r\\n\\r\\nhello",
    ):
        said = raw(bad)
        check.assertTrue(said.startswith("HTTP/1.1 400 "), f"{bad}: {said}")
        check.assertEqual(said.count("HTTP/1.1"), 1, bad)
    check.assertTrue(raw("CONNECT a:1 HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n").startswith("HTTP/1.1 405 "))
    check.assertTrue(raw("GET / HTTP/3.0\\r\\nHost: a\\r\\n\\r\\n").startswith("HTTP/1.1 505 "))

with subtest("without a place a request gets 503 after queue_timeout, and health needs no place"):
    upstream.succeed(f"systemd-run --unit=streams --collect {CLIENT} hold streams proxy 8080 2 30 --ready /tmp/streams")
    upstream.wait_for_file("/tmp/streams")
    answer = upstream.succeed("curl -s -D - -o /dev/null -w '%{time_total}' --max-time 20 http://proxy:8080/echo")
    check.assertIn(" 503 ", answer.splitlines()[0])
    check.assertIn("retry-after:", answer.lower())
    waited = float(answer.splitlines()[-1])
    check.assertGreaterEqual(waited, 0.95)
    check.assertLess(waited, 5)
    check.assertEqual(status("/health"), "200")
    upstream.succeed("systemctl stop streams")
    upstream.wait_until_succeeds("curl -sf --max-time 5 http://proxy:8080/echo", timeout=30)
