# CORS: preflights without the upstream, one Allow-Origin in every response, and none for other origins.
import unittest

check = unittest.TestCase()

start_all()
proxy.wait_for_unit("lean-proxy.service")
upstream.wait_for_unit("upstream.service")
upstream.wait_for_open_port(8080)
upstream.wait_until_succeeds("curl -sf --max-time 2 http://proxy:8080/health", timeout=60)

GOOD = "https://app.example.com"


def head(target: str, origin: str, *options: str) -> tuple[str, list[tuple[str, str]]]:
    """Status and headers of a response, names in lower case."""
    with_origin = f"-H 'Origin: {origin}'" if origin else ""
    text = upstream.succeed(f"curl -s -D - -o /dev/null {with_origin} {' '.join(options)} 'http://proxy:8080{target}'")
    first, *lines = text.strip().splitlines()
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return first.split(" ")[1], [(n.lower(), v.strip()) for n, v in pairs]


def every(headers: list[tuple[str, str]], name: str) -> list[str]:
    return [value for n, value in headers if n == name]


def preflight(target: str, origin: str) -> tuple[str, list[tuple[str, str]]]:
    return head(target, origin, "-X OPTIONS", "-H 'Access-Control-Request-Method: PUT'", "-H 'Access-Control-Request-Headers: content-type'")


with subtest("a preflight is answered by the proxy"):
    code, headers = preflight("/x", GOOD)
    check.assertEqual(code, "204")
    check.assertEqual(every(headers, "access-control-allow-origin"), [GOOD])
    check.assertIn("PUT", every(headers, "access-control-allow-methods")[0])
    check.assertEqual(every(headers, "access-control-max-age"), ["600"])
    vary = every(headers, "vary")[0].lower()
    for name in ("origin", "access-control-request-method", "access-control-request-headers"):
        check.assertIn(name, vary)

with subtest("a preflight from another origin is refused"):
    for origin in ("https://evil.example", "https://app.example.com.evil.example", "null", "https://pages.example"):
        code, headers = preflight("/x", origin)
        check.assertEqual(code, "403", origin)
        check.assertFalse([n for n, _ in headers if n.startswith("access-control-")], origin)

with subtest("wildcards match labels and ports"):
    for origin in ("https://a.pages.example", "https://a.b.pages.example", "http://localhost:3000", "http://localhost"):
        check.assertEqual(every(head("/x", origin)[1], "access-control-allow-origin"), [origin])
    check.assertEqual(every(head("/x", "http://a.pages.example")[1], "access-control-allow-origin"), [])

with subtest("the upstream's own CORS headers do not get through"):
    code, headers = head("/cors", GOOD)
    check.assertEqual((code, every(headers, "access-control-allow-origin")), ("200", [GOOD]))
    check.assertEqual(every(headers, "access-control-allow-methods"), [])
    vary = ", ".join(every(headers, "vary")).lower()
    check.assertIn("accept-encoding", vary)
    check.assertIn("origin", vary)
    check.assertEqual(every(head("/cors", "https://evil.example")[1], "access-control-allow-origin"), [])

with subtest("a route may allow all origins, or have CORS off"):
    code, headers = head("/open/cors", "https://anybody.example")
    check.assertEqual(every(headers, "access-control-allow-origin"), ["*"])
    check.assertEqual(every(headers, "vary"), ["Accept-Encoding"])
    code, headers = head("/closed/cors", GOOD)
    check.assertEqual(every(headers, "access-control-allow-origin"), ["https://upstream.example"])

with subtest("preflights and CORS on errors when the upstream is down"):
    upstream.succeed("systemctl stop upstream")
    check.assertEqual(preflight("/x", GOOD)[0], "204")
    code, headers = head("/x", GOOD)
    check.assertEqual((code, every(headers, "access-control-allow-origin")), ("502", [GOOD]))
    code, headers = head("/health", GOOD)
    check.assertEqual((code, every(headers, "access-control-allow-origin")), ("200", [GOOD]))
