# Clients and upstreams that try to exhaust ten megabytes, and with TLS and HTTP/2 also sixty-four, one flood in each row. In each row the process must not be killed
# or restarted, memory must stay below its limit, /health must always answer within a second, other requests must be
# answered, and the memory must be freed. All rows run even after a failure; the failures are reported at the end.
import json
import unittest
from typing import Any

check = unittest.TestCase()

start_all()
proxy.wait_for_unit("lean-proxy.service")
upstream.wait_for_unit("upstream.service")

FLOOD = "/etc/vm/flood"
UNIT = "lean-proxy.service"
GROUP = f"/sys/fs/cgroup/system.slice/{UNIT}"
LIMIT = 10 << 20  # unless the row has a "limit"
WIDE_LIMIT = 64 << 20
SECONDS = 8  # how long a flood lasts
PATIENCE = 20  # seconds in which the memory must be freed
TLS_WITHIN = 2  # seconds for health over TLS, which a Python program asks for on the machine that is attacked
SLACK = 1 << 20  # bytes that may remain in use: what the allocator and the kernel keep

ROUTES = """
routes:
  - {path: /, target: "http://upstream:9000"}
  - {path: /other/, target: "http://upstream:9001"}
"""
WIDE = "transport: {max_conns_per_host: 0}\nproxy: {max_concurrent_requests: 0}\n"
LISTEN = 'listen: ":8080"\n'
CERTIFICATES = "".join(f'  - {{path: /tls/{i}, target: "https://upstream:{9100 + i}"}}\n' for i in range(300))
PAIR = "/run/floods/cert.pem", "/run/floods/key.pem"
SECURED = 'listen:\n  - {{address: ":8080", http2: true}}\n  - {{address: ":8443", http2: true, tls: {{certificates: [{{cert_file: {}, key_file: {}}}]}}}}\n'.format(*PAIR)
CONFIGS = {
    "default": LISTEN + ROUTES,
    "wide": LISTEN + WIDE + ROUTES,
    "access": LISTEN + "log: {access: true}\n" + ROUTES,
    "access, wide": LISTEN + "log: {access: true}\n" + WIDE + ROUTES,
    "300 https targets": LISTEN + ROUTES + CERTIFICATES,
    "secured": SECURED + ROUTES,
    "unix": 'listen: [":8080", "unix:/run/lean-proxy/socket"]\n' + WIDE + ROUTES.replace("http://upstream:9000", "unix:/run/floods/upstream"),
}

READERS = "--clients 300 --path /body/100000000 --read 0"
UPLOADS = "--clients 300 --path /sink --body 100000000"
MUTE = "--mute --total 0"
LONG = "--clients 100 --path /silent/ --path-bytes 60000 --total 0"
# A well-behaved client that uploads at a steady rate during the flood.
STEADY = "--clients 3 --path /other/drain --body 300000 --pace 60000 --finish"

# "attacks" run on the other machine; with "local" on the proxy's machine, against its unix socket, with "tls" against the
# listener with TLS. "good" is the path of the
# other requests (default: one of another target), "share" the part of them that must be served (default: half; the others
# get 503), "within" the seconds that they may take (default: `queue_timeout` and one). "kernel": bytes of kernel memory,
# without sockets, that are allowed. "stays": the memory need not be freed at once, because clients that vanish without
# closing keep their place until `write_timeout` unless it is needed.
ROWS: list[dict[str, Any]] = [
    {"name": "nothing", "config": "default", "attacks": []},
    {"name": "heads of 90 kB, unread", "config": "default", "attacks": ["--clients 100 --path /head/90 --read 0 --rcvbuf 2048 --total 0"]},
    {"name": "heads of 90 kB, read slowly", "config": "default", "attacks": ["--clients 100 --path /head/90 --read 2000 --rcvbuf 2048 --total 0"]},
    {"name": "heads of 90 kB, 20 readers", "config": "default", "attacks": ["--clients 20 --path /head/90 --again --total 0"]},
    {"name": "heads of 30 kB, 300 readers", "config": "default", "attacks": ["--clients 300 --path /head/30 --again --total 0"]},
    {"name": "heads of 16 kB, 300 readers", "config": "default", "attacks": ["--clients 300 --path /head/16 --again --total 0"]},
    {"name": "heads of 90 kB that stop", "config": "default", "attacks": ["--clients 300 --path /stall/90 --total 0"]},
    {"name": "103s without an end", "config": "default", "attacks": ["--clients 300 --path /hints/300/0 --read 0 --total 0"]},
    {"name": "103s of 60 kB", "config": "default", "attacks": ["--clients 300 --path /hints/60000/9 --read 0 --rcvbuf 2048 --total 0"]},
    {"name": "answers of 4 kB, unread", "config": "default", "attacks": ["--clients 3000 --path /body/4000 --close --read 0 --rcvbuf 2048 --rate 400"]},
    {"name": "orphans by half a close", "config": "default", "attacks": ["--clients 3000 --path /body/100000000 --take 2000 --leave fin --rcvbuf 2048 --rate 200"]},
    {"name": "orphans without a word", "config": "default", "attacks": ["vanish"], "stays": True},
    {"name": "mute connections", "config": "default", "attacks": ["--clients 6000 " + MUTE]},
    {"name": "idle connections that return", "config": "default", "attacks": ["--clients 2000 --path /health --total 0"]},
    {"name": "heads without an end", "config": "default", "attacks": ["--clients 600 --fields --total 0"]},
    {"name": "readers that do not read", "config": "default", "attacks": [READERS + " --total 0"], "steady": STEADY},
    {"name": "uploads that are not read", "config": "default", "attacks": [UPLOADS + " --total 0"], "steady": STEADY},
    {"name": "uploads given up", "config": "default", "attacks": ["--clients 20 --path /sink --body 10000000 --stay 2000 --total 20"], "good": "/good", "share": 0.9, "within": 5},
    {"name": "20 WebSockets", "config": "default", "attacks": ["--clients 20 --path /ws/silent --upgrade"], "good": "/good", "share": 0.9, "within": 1},
    {"name": "WebSockets, unread", "config": "wide", "attacks": ["--clients 200 --path /ws/flood --upgrade --read 0 --total 0"]},
    {"name": "WebSockets into a sink", "config": "wide", "attacks": ["--clients 200 --path /ws/sink --upgrade --frames --total 0"]},
    {"name": "silent WebSockets and mute", "config": "wide", "attacks": ["--clients 157 --path /ws/silent --upgrade", "--clients 45 --mute"]},
    {"name": "stalled readers and mute", "config": "wide", "attacks": ["--clients 160 --path /body/100000000 --read 0", "--clients 10 --path /health"]},
    {"name": "heads of 90 kB, unread", "config": "wide", "attacks": ["--clients 300 --path /head/90 --read 0 --rcvbuf 2048 --total 0"]},
    {"name": "heads of 30 kB, 300 readers", "config": "wide", "attacks": ["--clients 300 --path /head/30 --again --total 0"]},
    {"name": "103s of 60 kB", "config": "wide", "attacks": ["--clients 300 --path /hints/60000/9 --read 0 --rcvbuf 2048 --total 0"]},
    {"name": "uploads that are not read", "config": "wide", "attacks": [UPLOADS + " --total 0"], "steady": STEADY},
    {"name": "paths of 60 kB", "config": "access", "attacks": [LONG]},
    {"name": "Hosts of 60 kB", "config": "access", "attacks": ["--clients 100 --path /silent --host-bytes 60000 --total 0"]},
    {"name": "a journal that has stopped", "config": "access", "attacks": ["--clients 10 --path /other/ --path-bytes 2000 --again"], "journal": "stopped", "kernel": 2 << 20},
    {"name": "a journal that is slow", "config": "access", "attacks": ["--clients 10 --path /other/ --path-bytes 2000 --again"], "journal": "slow", "kernel": 2 << 20},
    {"name": "paths of 60 kB", "config": "access, wide", "attacks": [LONG]},
    {"name": "certificates of 64 kB", "config": "300 https targets", "attacks": ["--clients 300 --path /tls/ --paths 300 --total 0"]},
    {"name": "unix socket, unread", "config": "unix", "attacks": ["local --clients 200 --path /body/100000000 --read 0 --total 0"]},
    # bytes that a closed unix socket had sent are charged to the sender until the other side reads or closes, which it never does
    {"name": "unix target, uploads", "config": "unix", "attacks": ["--clients 200 --path /sink --body 100000000 --total 0"], "stays": True},
    {"name": "unix target, uploads given up", "config": "unix", "attacks": ["--clients 200 --path /sink --body 10000000 --stay 300 --total 0"], "stays": True},
    {"name": "unix target, heads of 90 kB", "config": "unix", "attacks": ["local --clients 100 --path /head/90 --read 0 --total 0"]},
    {
        "name": "all at once",
        "config": "access",
        "attacks": [
            "--clients 100 --path /head/90 --read 0 --rcvbuf 2048 --total 0",
            "--clients 100 --path /hints/60000/9 --read 0 --rcvbuf 2048 --total 0",
            "--clients 50 --path /ws/flood --upgrade --read 0 --total 0",
            "--clients 1000 --path /body/4000 --close --read 0 --rcvbuf 2048 --rate 100",
            "--clients 1000 " + MUTE,
            "--clients 100 --fields --total 0",
            READERS.replace("300", "100") + " --total 0",
            UPLOADS.replace("300", "100") + " --total 0",
            LONG,
        ],
        "steady": STEADY,
        "share": 0.1,
    },
]

FRAMES = "/run/frames"  # what world/frames.py writes: the attacks of HTTP/2 and TLS by their names there


def framed(name: str) -> str:
    """A client that sends what is in this file, and leaves after a second."""
    return f"--send {FRAMES}/{name} --clients 20 --stay 1000 --total 0"


ENDLESS = ("settings", "pings", "priorities", "window-updates", "unknown", "empty-continuation", "empty-data", "small-data")
SENT = ("resets-in-batches", "resets", "continuation", "far-pieces", "table", "unread", "heads", "large-heads", "trailers", "half-head", "half-body", "half-open")
HTTP2 = [(name, framed(name)) for name in SENT]
HTTP2 += [(name, f"{framed(name)} --repeat {FRAMES}/{name}.again") for name in ENDLESS]
HTTP2 += [("window-0", f"--send {FRAMES}/window-0 --clients 10")]
TLS = [(name, f"tls --send {FRAMES}/{name} --clients 300 --total 0") for name in ("half-hello", "bytewise-hello", "long-hello", "garbage")]
TLS += [("slow hellos", f"tls --send {FRAMES}/hello --pace 50 --clients 300 --total 0")]
TLS += [("2,000 connects a second", f"tls --send {FRAMES}/hello --rate 2000 --clients 4000 --stay 500 --total 0")]
ROWS += [
    # in 64 MiB the connections to the upstream stay open until `idle_conn_timeout`
    {"name": f"{name}, {limit >> 20} MiB", "config": "secured", "limit": limit, "attacks": [options], "seconds": 3, "stays": limit == WIDE_LIMIT}
    for limit in (LIMIT, WIDE_LIMIT)
    for name, options in HTTP2 + TLS
]

MACHINES = {"proxy": proxy, "upstream": upstream}
address = upstream.succeed("getent ahostsv4 proxy | awk '{print $1; exit}'").strip()
me = proxy.succeed("getent ahostsv4 upstream | awk '{print $1; exit}'").strip()
program = proxy.succeed(f"readlink /proc/{proxy.get_unit_property(UNIT, 'MainPID')}/exe").strip()
running: tuple[str, int] | None = None  # the proxy's configuration and its limit; None: it must be started again
failures: list[str] = []


def run(machine: str, unit: str, command: str) -> None:
    """Starts `command` in the background; its output is in /tmp/UNIT."""
    MACHINES[machine].succeed(f"rm -f /tmp/{unit}; systemd-run -q --unit={unit} --collect -E PATH=\"$PATH\" -p LimitNOFILE=65536 -p StandardOutput=file:/tmp/{unit} {command}")


def ended(machine: str, unit: str) -> dict[str, Any]:
    """Waits for what `run` started and returns its result."""
    MACHINES[machine].succeed(f"for i in $(seq 600); do systemctl is-active -q {unit} || exit 0; sleep 0.1; done; exit 1")
    said = MACHINES[machine].succeed(f"tail -n 1 /tmp/{unit}")
    return dict(json.loads(said)) if said.startswith("{") else {}


def start(config: str, limit: int) -> None:
    """Starts the proxy with this configuration, as a new process in a new cgroup."""
    global running
    proxy.succeed(
        f"mkdir -p /run/floods /run/systemd/system/{UNIT}.d; chmod 755 /run/floods; cat > /run/floods/config.yaml <<'END'\n{CONFIGS[config]}END\n"
        f"printf '[Service]\\nRuntimeDirectory=lean-proxy\\nMemoryMax={limit}\\nExecStart=\\nExecStart={program} /run/floods/config.yaml\\n' > /run/systemd/system/{UNIT}.d/floods.conf; "
        f"systemctl daemon-reload; systemctl stop {UNIT}; systemctl reset-failed {UNIT} || true; systemctl start {UNIT}"
    )
    proxy.wait_until_succeeds("curl -sf --max-time 2 http://127.0.0.1:8080/health", timeout=60)
    proxy.wait_until_succeeds("curl -sf --max-time 2 http://127.0.0.1:8080/other/x", timeout=60)
    running = config, limit


def install_certificate() -> None:
    """For the listener with TLS."""
    upstream.succeed("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=flood -keyout /tmp/key.pem -out /tmp/cert.pem 2>&1")
    for source, file in zip(("/tmp/cert.pem", "/tmp/key.pem"), PAIR):
        text = upstream.succeed(f"cat {source}")
        # the service's user has no name
        proxy.succeed(f"cat > {file} <<'PEM'\n{text}PEM\nchmod 644 {file}")


def held() -> int:
    """Bytes that the service uses, without the page cache, which the kernel can reclaim."""
    return int(proxy.succeed(f"cd {GROUP}; echo $(($(cat memory.current) - $(awk '$1 == \"file\" {{print $2}}' memory.stat)))"))


def life() -> tuple[str, str, str]:
    """Values that change if the process was killed or has ended."""
    kills = proxy.succeed(f"sed -n 's/^oom_kill //p' {GROUP}/memory.events 2> /dev/null || true").strip()
    return proxy.get_unit_property(UNIT, "MainPID"), proxy.get_unit_property(UNIT, "NRestarts"), kills


def watch(seconds: int, good: str) -> dict[str, Any]:
    return dict(json.loads(proxy.succeed(f"{FLOOD} watch 127.0.0.1:8080 --seconds {seconds} --good {good} --cgroup {GROUP}", timeout=seconds + 60)))


def vanish() -> str:
    """Four times 100 clients that read the beginning of a large answer, and whose address then disappears."""
    attack = f"{FLOOD} attack {address}:8080 --clients 100 --path /body/100000000 --take 2000 --rcvbuf 2048 --seconds 3"
    script = f"dev=$(ip -o route get {address} | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p')\nfor i in 1 2 3 4; do\n  a=${{1%.*}}.20$i\n  ip addr add $a/24 dev $dev\n  {attack} --from $a &\n  sleep 1.8\n  ip addr del $a/24 dev $dev\ndone\nwait\n"
    upstream.succeed(f"cat > /tmp/vanish.sh <<'END'\n{script}END\n")
    return f"bash /tmp/vanish.sh {me}"


def journal(state: str) -> None:
    """Stops systemd's journal, or lets it run a tenth of the time."""
    to = "systemctl kill -s {} systemd-journald.service"
    if state == "stopped":
        proxy.succeed(to.format("STOP"))
    elif state == "slow":
        run("proxy", "slow", f"bash -c 'for i in $(seq {SECONDS}); do {to.format('STOP')}; sleep 0.9; {to.format('CONT')}; sleep 0.1; done'")
    else:
        proxy.execute("systemctl stop slow.service")
        proxy.succeed(to.format("CONT"))


def attack(row: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Runs a row's attackers; returns the results of `watch`, of the attackers, and of the steady uploads."""
    seconds = row.get("seconds", SECONDS)
    journal(row.get("journal", "runs"))
    if row["config"] == "secured":
        proxy.succeed("rm -f /tmp/enough")
        run("proxy", "secured", "python3 /etc/vm/client.py probe 127.0.0.1 8443 /health --tls --until /tmp/enough")
        proxy.wait_until_succeeds("test -s /tmp/secured", timeout=60)
    if "steady" in row:
        run("upstream", "steady", f"{FLOOD} attack {address}:8080 {row['steady']} --seconds {SECONDS + 12}")
    attackers = []
    for index, options in enumerate(row["attacks"]):
        word, _, rest = options.partition(" ")
        machine, to, rest = {
            "local": ("proxy", "unix:/run/lean-proxy/socket", rest),
            "tls": ("upstream", f"{address}:8443", rest),
        }.get(word, ("upstream", f"{address}:8080", options))
        command = vanish() if options == "vanish" else f"{FLOOD} attack {to} {rest} --seconds {seconds}"
        run(machine, f"attack-{index}", command)
        attackers.append((machine, f"attack-{index}"))
    seen = watch(seconds, row.get("good", "/other/x"))
    if row["config"] == "secured":
        proxy.succeed("touch /tmp/enough")
        seen["secured"] = ended("proxy", "secured")
    became = [ended(*one) for one in attackers]
    steady = ended("upstream", "steady") if "steady" in row else {}
    journal("runs")
    return seen, became, steady


def back(rest: int) -> float:
    """Seconds until the service uses no more than at rest; PATIENCE if it still uses more."""
    command = (
        f"cd {GROUP}; for i in $(seq 0 {2 * PATIENCE}); do "
        f"[ $(($(cat memory.current) - $(awk '$1 == \"file\" {{print $2}}' memory.stat))) -gt {rest + SLACK} ] || break; sleep 0.5; done; echo $i"
    )
    return int(proxy.succeed(command)) / 2


def judge(row: dict[str, Any], seen: dict[str, Any], became: list[dict[str, Any]], steady: dict[str, Any]) -> list[str]:
    """What is wrong with a row, by what was measured from outside."""
    wrong = []
    health, good, peak = seen["health"], seen["good"], seen["peak"]
    answered = health["answers"].get("200", 0)
    if answered < health["asked"] or health["asked"] < row.get("seconds", SECONDS):
        wrong.append(f"health: {answered} of {health['asked']}")
    if health["worst"] > 1:
        wrong.append(f"health after {health['worst']} s")
    secured = seen.get("secured", {"answers": {"200": 1}, "slowest": 0})
    if list(secured["answers"]) != ["200"] or secured["slowest"] > TLS_WITHIN:
        wrong.append(f"health over TLS: {secured}")
    if good["failed"] or set(good["answers"]) - {"200", "503"}:
        wrong.append(f"requests without an answer: {good['failed']}, answers {good['answers']}")
    if good["worst"] > row.get("within", 11):
        wrong.append(f"an answer after {good['worst']} s")
    if good["answers"].get("200", 0) < row.get("share", 0.5) * good["asked"]:
        wrong.append(f"requests served: {good['answers'].get('200', 0)} of {good['asked']}")
    limit = row.get("limit", LIMIT)
    if peak["current"] > limit:
        wrong.append(f"memory {peak['current']} over the limit")
    if peak["kernel"] > row.get("kernel", limit):
        wrong.append(f"kernel memory {peak['kernel']}")
    if steady and (steady["complete"] < 3 or set(steady["answers"]) - {"200", "503"}):
        wrong.append(f"steady uploads: {steady}")
    for options, one in zip(row["attacks"], became):
        if one.get("opened", 1) < 10 or (one.get("sent", 1) == 0 and "--mute" not in options):
            wrong.append(f"no flood: {options}: {one}")
    return wrong


def flood(row: dict[str, Any]) -> None:
    global running
    wanted = row["config"], row.get("limit", LIMIT)
    if running != wanted:
        start(*wanted)
    title = f"{row['name']} ({row['config']})"
    before, rest = life(), held()
    seen, became, steady = attack(row)
    wrong = judge(row, seen, became, steady)
    if life() != before:
        wrong.insert(0, f"killed or restarted: {before} -> {life()}")
        proxy.wait_until_succeeds("curl -sf --max-time 2 http://127.0.0.1:8080/health", timeout=60)
    seconds = 0 if row.get("stays") else back(rest)
    if seconds >= PATIENCE:
        wrong.append(f"memory stays: {held()} bytes of {rest} at rest")
    after = watch(1, row.get("good", "/other/x"))
    if any(after[kind]["answers"] != {"200": after[kind]["asked"]} for kind in ("health", "good")):
        wrong.append(f"afterwards: {after['health']}, {after['good']}")
    peak, good = {k: f"{v / 1e6:.1f}" for k, v in seen["peak"].items()}, seen["good"]
    secured = f"over TLS {seen['secured']['slowest']} s | " if "secured" in seen else ""
    proxy.log(
        f"flood: {title} | {'FAILED' if wrong else 'ok'} | health {seen['health']['worst']} s | {secured}good {good['answers'].get('200', 0)}/{good['asked']} worst {good['worst']} s | "
        f"peak {peak['current']} sock {peak['sock']} kernel {peak['kernel']} anon {peak['anon']} MB | back {seconds} s | {'; '.join(wrong)}"
    )
    proxy.log(f"  attackers: {became} {steady}")
    if wrong:
        failures.append(f"{title}: {'; '.join(wrong)}")
    if wrong or row.get("stays"):
        running = None


with subtest("the machines"):
    for machine in (proxy, upstream):
        # the firewall drops packets where this table is full, and in a small machine it is full with 2,000 connections
        machine.succeed("[ ! -e /proc/sys/net/netfilter/nf_conntrack_max ] || echo 65536 > /proc/sys/net/netfilter/nf_conntrack_max")
    run("upstream", "hostile", f"{FLOOD} serve 0.0.0.0:9000 --seconds 3600")
    run("upstream", "good", f"{FLOOD} serve 0.0.0.0:9001 --seconds 3600")
    run("upstream", "certificates", f"{FLOOD} serve 0.0.0.0:9100-9399 --tls 64000 --seconds 3600")
    proxy.succeed("mkdir -p /run/floods; chmod 755 /run/floods")
    run("proxy", "hostile", f"{FLOOD} serve unix:/run/floods/upstream --seconds 3600")
    upstream.wait_for_open_port(9001)
    upstream.succeed(f"python3 /etc/vm/frames.py {FRAMES}")
    install_certificate()
    start("default", LIMIT)
    check.assertEqual(proxy.succeed(f"cat {GROUP}/memory.max").strip(), str(LIMIT))

with subtest("floods"):
    for each in ROWS:
        flood(each)
    peak = proxy.succeed(f"cat {GROUP}/memory.peak").strip()
    proxy.log(f"flood: {len(ROWS)} rows, {len(failures)} failed; memory.peak of the last configuration {peak}")
    check.assertEqual(failures, [])
