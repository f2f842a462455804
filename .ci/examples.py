#!/usr/bin/env python3
"""Checks examples/ against the program and nix/service.toml:  examples.py LEAN_PROXY   (needs PyYAML)

Every configuration in examples/, also inside a ConfigMap, must pass --check, and the unit's [Service] must have the keys
of the NixOS module's unit.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
# The module uses a Type that needs a newer systemd; the example's comment explains it.
DIFFERS = {"Type"}


def configurations() -> dict[str, str]:
    """The name and text of each configuration."""
    found = {"lean-proxy.yaml": (ROOT / "examples/lean-proxy.yaml").read_text()}
    for file in sorted((ROOT / "examples/kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            if document["kind"] == "ConfigMap":
                found[file.name] = document["data"]["config.yaml"]
    return found


def check(program: str, name: str, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        said = subprocess.run([program, "--check", file.name], capture_output=True, text=True, check=False)
        if said.returncode:
            sys.exit(f"examples: {name}: {said.stdout}{said.stderr}")


def unit(path: Path) -> dict[str, list[str]]:
    """The keys of [Service], each with all of its values."""
    keys: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            keys.setdefault(key, []).append(value)
    return keys


def text_of(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def differences() -> list[str]:
    data = tomllib.loads((ROOT / "nix/service.toml").read_text())
    has = unit(ROOT / "examples/systemd/lean-proxy.service")
    found = []
    for key, value in (data["service"] | data["low_port"]).items():
        wanted = " ".join(text_of(one) for one in (value if isinstance(value, list) else [value]))
        if key not in DIFFERS and " ".join(has.get(key, [])) != wanted:
            found.append(f"lean-proxy.service: {key} is {has.get(key)}, not {wanted}")
    return found


def main() -> None:
    found = configurations()
    for name, text in found.items():
        check(sys.argv[1], name, text)
    if wrong := differences():
        sys.exit("\n".join(wrong))
    print(f"examples: {', '.join(found)} pass --check; lean-proxy.service has the keys of nix/service.toml")


main()
