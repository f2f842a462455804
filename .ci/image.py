#!/usr/bin/env python3
"""Compares a container image's configuration with nix/image.toml and Cargo.toml.

image.py                 the last stage of the Dockerfile
image.py FILE ...        configurations of images, as JSON from `docker image inspect` or an image archive

The label of the revision must exist, with any value. A PATH, which `docker build` adds, is ignored.

Prints what was compared; every difference is an error.
"""

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REVISION = "org.opencontainers.image.revision"
UNITS = {"ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
Config = dict[str, Any]


def wanted() -> Config:
    """The configuration that both ways of building must give, without the revision."""
    config: Config = tomllib.loads((ROOT / "nix/image.toml").read_text())
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    config["Labels"] = {label: package[key] for label, key in config["Labels"].items() if key in package}
    return config


def nanoseconds(text: str) -> int:
    number, unit = re.fullmatch(r"([0-9]+)(ms|s|m)", text).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def health_check(text: str) -> Config:
    options, command = text.split("CMD", 1)
    given = dict(word.removeprefix("--").split("=", 1) for word in options.split())
    return {
        "Test": ["CMD", *json.loads(command)],
        "Interval": nanoseconds(given["interval"]),
        "Timeout": nanoseconds(given["timeout"]),
        "StartPeriod": nanoseconds(given["start-period"]),
        "Retries": int(given["retries"]),
    }


def of_dockerfile(path: Path) -> Config:
    """The configuration of the last stage, which must begin with an empty image and copy one file."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", path.read_text()))
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    last = max(index for index, line in enumerate(lines) if line[0] == "FROM")
    stage = [(word, rest.strip()) for word, rest in lines[last:]]
    assert stage[0] == ("FROM", "scratch"), stage[0]
    files = [rest.split()[-1] for word, rest in stage if word in ("COPY", "ADD")]
    assert files == ["/lean-proxy"], files
    config: Config = {"Env": [], "ExposedPorts": {}, "Labels": {}}
    for word, rest in stage:
        if word == "LABEL":
            config["Labels"] |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif word == "ENV":
            config["Env"] += shlex.split(rest)
        elif word == "EXPOSE":
            config["ExposedPorts"][rest] = {}
        elif word == "USER":
            config["User"] = rest
        elif word == "HEALTHCHECK":
            config["Healthcheck"] = health_check(rest)
        elif word in ("ENTRYPOINT", "CMD"):
            config[word.capitalize()] = json.loads(rest)
        elif word not in ("FROM", "COPY", "ARG"):
            sys.exit(f"{path}: {word} is not known here")
    return config


def of_image(path: Path) -> Config:
    data = json.loads(path.read_text())
    data = data[0] if isinstance(data, list) else data
    config: Config = data.get("Config") or data.get("config") or data
    return config


def differences(name: str, config: Config) -> list[str]:
    """The differences from the wanted configuration, one line each."""
    found = []
    for key, value in wanted().items():
        has = config.get(key)
        if key == "Env":
            has = [pair for pair in has or [] if not pair.startswith("PATH=")]
        if key == "Labels":
            has = {label: text for label, text in (has or {}).items() if label != REVISION}
        if has != value:
            found.append(f"{name}: {key} is {has!r}, not {value!r}")
    if not config.get("Labels", {}).get(REVISION):
        found.append(f"{name}: no label {REVISION}")
    return found


def main() -> None:
    given = [Path(name) for name in sys.argv[1:]]
    configs = {str(path): of_image(path) for path in given} or {"Dockerfile": of_dockerfile(ROOT / "Dockerfile")}
    found = [line for name, config in configs.items() for line in differences(name, config)]
    if found:
        sys.exit("\n".join(found))
    print(f"{' and '.join(configs)}: the same as in nix/image.toml and Cargo.toml ({', '.join(wanted())})")


main()
