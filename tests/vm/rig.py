#!/usr/bin/env python3
"""Describes the machines of a test for a runner that makes them without Nix.

rig.py NAME SYSTEMD > NAME.json

It reads NAME.toml, nix/service.toml and world/, which the NixOS test uses too, and writes a JSON file with the files and
units of each machine. In it {BIN} stands for the static binary, {FLOOD} for world/flood.c compiled. SYSTEMD is the version
of systemd on the machines: before 253 there is no notify-reload.

The machines are as strict as NixOS: the configuration is written as by pkgs.formats.yaml, a transient unit finds no
program by its name, only the ports that the module opens are open, and a switch to a specialisation takes the steps of
switch-to-configuration.
"""

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONFIG = "/etc/lean-proxy/config.yaml"
FLOOD = {"from": "{FLOOD}", "mode": "755"}  # world/flood.c, compiled
# User Mode Linux allocates 64 KB for every packet where it may merge them, so a window of packets would fill a small
# receive buffer at once.
NETWORK = {"/etc/systemd/network/10-vec.link": "[Match]\nOriginalName=vec*\n[Link]\nGenericReceiveOffload=no\n"}
# On NixOS the PATH of a unit has only what its `path` option names, and that of a transient unit systemd's own programs.
SEARCH = {
    "/etc/systemd/system.conf.d/path.conf": "[Manager]\nDefaultEnvironment=PATH=/usr/lib/systemd\n",
    "/etc/systemd/system/vm-shell.service.d/path.conf": "[Service]\nEnvironment=PATH=/usr/sbin:/usr/bin\n",
}
# A word that YAML reads as a string without quotes, except for the words below.
PLAIN = re.compile(r"[A-Za-z/:][A-Za-z0-9/:._*+-]*( [A-Za-z0-9/._+-]+)*")
OTHER = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
System = dict[str, dict[str, str]]


def main() -> None:
    name, systemd = sys.argv[1], int(sys.argv[2])
    options = tomllib.loads((HERE / f"{name}.toml").read_text())
    nodes = {"proxy": proxy(options, systemd), "upstream": upstream()}
    json.dump({"nodes": nodes}, sys.stdout, indent=1)


def proxy(options: dict[str, Any], systemd: int) -> dict[str, Any]:
    """The machine of world/proxy.nix and nix/module.nix."""
    changes = options.pop("specialisation", {})
    machine = options.pop("machine", {})
    now = system(options, machine, systemd)
    files: dict[str, Any] = {
        "/usr/bin/lean-proxy": {"from": "{BIN}", "mode": "755"},
        "/etc/vm/client.py": {"from": str(HERE / "world/client.py")},
        "/etc/vm/flood": FLOOD,
    }
    if changes:
        lines = ["L /run/booted-system - - - - /srv/system", "z /srv/system/bin/* 755", "z /srv/system/specialisation/*/bin/* 755"]
        files |= {"/etc/tmpfiles.d/booted-system.conf": "\n".join(lines) + "\n"}
        files |= switchable("/srv/system", now)
    for name, change in changes.items():
        files |= switchable(f"/srv/system/specialisation/{name}", system(merged(options, change), machine, systemd))
    return {"files": NETWORK | SEARCH | files | now["files"], "units": now["units"]}


def merged(options: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A specialisation's options over those of its parent, the settings key by key."""
    return options | change | {"settings": options["settings"] | change.get("settings", {})}


def system(options: dict[str, Any], machine: dict[str, Any], systemd: int) -> System:
    """The parts of a system that depend on the options."""
    settings = options["settings"]
    listeners = settings["listen"] if isinstance(settings["listen"], list) else [settings["listen"]]
    listen = [entry["address"] if isinstance(entry, dict) else entry for entry in listeners]
    tcp = [a for a in listen if not a.startswith("unix:")]
    names = []
    units = {}
    if options.get("socketActivation", False):
        names = [socket_name(a) for a in listen]
        handed = zip(listeners, (f"fd:{name}" for name in names))
        settings = settings | {"listen": [entry | {"address": fd} if isinstance(entry, dict) else fd for entry, fd in handed]}
        units = {f"{name}.socket": socket(a, name) for a, name in zip(listen, names)}
    low = not names and any(int(a.rsplit(":", 1)[1]) < 1024 for a in tcp)
    units["lean-proxy.service"] = service(options, low, names, systemd)
    if machine.get("firewall", True):
        ports = [a.rsplit(":", 1)[1] for a in tcp] + [str(p) for p in machine.get("ports", [])]
        units["firewall.service"] = firewall(ports)
    return {"files": {CONFIG: yaml(settings)}, "units": units}


def yaml(value: Any, indent: str = "") -> str:
    """YAML as by pkgs.formats.yaml: sorted, in block style, words without quotes where possible."""
    if isinstance(value, (dict, list)) and value:
        entries = [(f"{k}:", value[k]) for k in sorted(value)] if isinstance(value, dict) else [("-", v) for v in value]
        return "".join(f"{indent}{mark}{below(v, indent, mark)}" for mark, v in entries)
    if isinstance(value, str) and not (PLAIN.fullmatch(value) and value.lower() not in OTHER and not value.endswith(":")):
        return "'" + value.replace("'", "''") + "'"
    return value if isinstance(value, str) else json.dumps(value)


def below(value: Any, indent: str, mark: str) -> str:
    if not isinstance(value, (dict, list)) or not value:
        return f" {yaml(value)}\n"
    if mark == "-":
        return f" {yaml(value, indent + '  ').lstrip()}"
    # the items of a list are not indented below their key
    return "\n" + yaml(value, indent + "  " if isinstance(value, dict) else indent)


def switchable(place: str, new: System) -> dict[str, Any]:
    """A system in a folder, with a script that switches to it. The steps are those of NixOS: stop removed units, leave
    changed sockets, install the new files, restart or reload what changed, start new units."""
    script = f"""#!/bin/bash
set -euo pipefail
new={place}/units
for socket in /etc/systemd/system/lean-proxy*.socket; do
  [ -e "$socket" ] || continue
  [ -e "$new/${{socket##*/}}" ] || {{ systemctl stop "${{socket##*/}}"; rm "$socket" "/etc/systemd/system/sockets.target.wants/${{socket##*/}}"; }}
done
changed=
for unit in lean-proxy firewall; do
  [ ! -e "$new/$unit.service" ] || cmp -s "$new/$unit.service" "/etc/systemd/system/$unit.service" || changed="$changed $unit.service"
done
reload=
cmp -s {place}/config.yaml {CONFIG} || reload=lean-proxy.service
install -m 644 {place}/config.yaml {CONFIG}
for unit in "$new"/*; do
  install -m 644 "$unit" /etc/systemd/system/
  case $unit in *.socket) ln -sf "../${{unit##*/}}" /etc/systemd/system/sockets.target.wants/ ;; esac
done
systemctl daemon-reload
case $changed in
  *lean-proxy*) systemctl restart $changed ;;
  *) [ -z "$reload" ] || systemctl reload $reload; [ -z "$changed" ] || systemctl restart $changed ;;
esac
systemctl start sockets.target multi-user.target
"""
    files: dict[str, Any] = {f"{place}/units/{name}": text for name, text in new["units"].items()}
    return files | {f"{place}/config.yaml": new["files"][CONFIG], f"{place}/bin/switch-to-configuration": script}


def upstream() -> dict[str, Any]:
    """The machine of world/upstream.nix."""
    text = section("Unit", {"After": "network.target"})
    text += section("Service", {"ExecStart": "/usr/bin/python3 /etc/vm/upstream.py 8080", "LimitNOFILE": 65536})
    text += section("Install", {"WantedBy": "multi-user.target"})
    programs = {f"/etc/vm/{p}.py": {"from": str(HERE / f"world/{p}.py")} for p in ("client", "upstream", "rpc", "frames")}
    return {"files": NETWORK | SEARCH | programs | {"/etc/vm/flood": FLOOD}, "units": {"upstream.service": text}}


def service(options: dict[str, Any], low: bool, sockets: list[str], systemd: int) -> str:
    data = tomllib.loads((HERE.parent.parent / "nix/service.toml").read_text())
    keys = data["service"] | data["low_port" if low else "no_low_port"]
    if systemd < 253:
        keys |= {"Type": "notify", "ExecReload": "/bin/kill -HUP $MAINPID"}
    keys["ExecStart"] = f"/usr/bin/lean-proxy {CONFIG}"
    keys["MemoryMax"] = options.get("memoryMax", "10M")
    keys["Environment"] = [f"{k}={v}" for k, v in options.get("environment", {}).items()]
    keys["LoadCredential"] = [f"{name}:{file}" for name, file in options.get("credentials", {}).items()]
    keys["Sockets"] = [f"{name}.socket" for name in sockets]
    unit: dict[str, Any] = {"After": ["network.target"], "StartLimitIntervalSec": 0}
    return section("Unit", unit) + section("Service", keys) + section("Install", {"WantedBy": "multi-user.target"})


def socket_name(address: str) -> str:
    return "lean-proxy-" + address.removeprefix(":").translate(str.maketrans(":/%@", "----", "[]"))


def socket(address: str, name: str) -> str:
    stream = address.removeprefix(":").removeprefix("unix:")
    keys = {"ListenStream": stream, "Service": "lean-proxy.service", "FileDescriptorName": name}
    return section("Socket", keys) + section("Install", {"WantedBy": "sockets.target"})


def firewall(ports: list[str]) -> str:
    """The rules of networking.firewall with these ports: anything else from outside is dropped."""
    rules = ["-P INPUT DROP", "-F INPUT", "-A INPUT -i lo -j ACCEPT", "-A INPUT -p icmp -j ACCEPT"]
    rules += ["-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"]
    rules += [f"-A INPUT -p tcp --dport {port} -j ACCEPT" for port in ports]
    # User Mode Linux has no nftables
    keys = {"Type": "oneshot", "RemainAfterExit": "yes", "ExecStart": [f"/usr/sbin/iptables-legacy {rule}" for rule in rules]}
    return section("Unit", {"Before": "lean-proxy.service"}) + section("Service", keys) + section("Install", {"WantedBy": "multi-user.target"})


def section(title: str, keys: dict[str, Any]) -> str:
    """A section of a unit file; a list gives one line for each element."""
    lines = [f"[{title}]"]
    for key, value in keys.items():
        for one in value if isinstance(value, list) else [value]:
            lines.append(f"{key}={str(one).lower() if isinstance(one, bool) else one}")
    return "\n".join(lines) + "\n"


main()
