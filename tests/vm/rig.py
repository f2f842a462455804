#!/usr/bin/env python3
"""Describes a test's machines for a runner that makes them without Nix.

rig.py NAME SYSTEMD > NAME.json

NAME.toml, nix/service.toml and world/ go in, that is the same files that the NixOS test is made
of; a JSON file with each machine's files and units comes out. {BIN} in it stands for the static
binary, {FLOOD} for world/flood.c compiled. SYSTEMD is the version of systemd on the machines:
before 253 there is no notify-reload.
"""

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONFIG = "/etc/lean-proxy/config.yaml"
FLOOD = {"from": "{FLOOD}", "mode": "755"}  # world/flood.c, compiled
# User Mode Linux gives every packet 64 KB of memory where it may merge them: a window of packets
# would fill a small receive buffer at once.
NETWORK = {"/etc/systemd/network/10-vec.link": "[Match]\nOriginalName=vec*\n[Link]\nGenericReceiveOffload=no\n"}


def main() -> None:
    name, systemd = sys.argv[1], int(sys.argv[2])
    options = tomllib.loads((HERE / f"{name}.toml").read_text())
    nodes = {"proxy": proxy(options, systemd), "upstream": upstream()}
    json.dump({"nodes": nodes}, sys.stdout, indent=1)


def proxy(options: dict[str, Any], systemd: int) -> dict[str, Any]:
    """As world/proxy.nix and nix/module.nix make it."""
    settings = options["settings"]
    listen = settings["listen"] if isinstance(settings["listen"], list) else [settings["listen"]]
    activated = options.get("socketActivation", False)
    units = {}
    if activated:
        settings["listen"] = [f"fd:{3 + index}" for index in range(len(listen))]
        units["lean-proxy.socket"] = socket(listen)
    low = not activated and any(int(a.rsplit(":", 1)[1]) < 1024 for a in listen)
    units["lean-proxy.service"] = service(options, low, activated, systemd)
    return {
        "files": NETWORK
        | {
            CONFIG: json.dumps(settings, indent=1) + "\n",  # JSON is YAML
            "/usr/bin/lean-proxy": {"from": "{BIN}", "mode": "755"},
            "/etc/vm/client.py": {"from": str(HERE / "world/client.py")},
            "/etc/vm/flood": FLOOD,
        },
        "units": units,
    }


def upstream() -> dict[str, Any]:
    """As world/upstream.nix makes it."""
    text = section("Unit", {"After": "network.target"})
    text += section("Service", {"ExecStart": "/usr/bin/python3 /etc/vm/upstream.py 8080", "LimitNOFILE": 65536})
    text += section("Install", {"WantedBy": "multi-user.target"})
    programs = {f"/etc/vm/{p}.py": {"from": str(HERE / f"world/{p}.py")} for p in ("client", "upstream")}
    return {"files": NETWORK | programs | {"/etc/vm/flood": FLOOD}, "units": {"upstream.service": text}}


def service(options: dict[str, Any], low: bool, activated: bool, systemd: int) -> str:
    data = tomllib.loads((HERE.parent.parent / "nix/service.toml").read_text())
    keys = data["service"] | data["low_port" if low else "no_low_port"]
    if systemd < 253:
        keys |= {"Type": "notify", "ExecReload": "/bin/kill -HUP $MAINPID"}
    keys["ExecStart"] = f"/usr/bin/lean-proxy {CONFIG}"
    keys["MemoryMax"] = options.get("memoryMax", "10M")
    keys["Environment"] = [f"{k}={v}" for k, v in options.get("environment", {}).items()]
    unit: dict[str, Any] = {"After": ["network.target"], "StartLimitIntervalSec": 0}
    if activated:
        unit |= {"Requires": "lean-proxy.socket"}
    return section("Unit", unit) + section("Service", keys) + section("Install", {"WantedBy": "multi-user.target"})


def socket(listen: list[str]) -> str:
    streams = [a.removeprefix(":").removeprefix("unix:") for a in listen]
    return section("Socket", {"ListenStream": streams}) + section("Install", {"WantedBy": "sockets.target"})


def section(title: str, keys: dict[str, Any]) -> str:
    """A part of a unit file; a list is one line each."""
    lines = [f"[{title}]"]
    for key, value in keys.items():
        for one in value if isinstance(value, list) else [value]:
            lines.append(f"{key}={str(one).lower() if isinstance(one, bool) else one}")
    return "\n".join(lines) + "\n"


main()
