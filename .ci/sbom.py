#!/usr/bin/env python3
"""Writes the bill of materials (CycloneDX 1.5) to standard output: the same as nix/sbom.nix.

It lists the crates that Cargo.lock resolves from [dependencies], with their checksums and dependencies. Crates that are
needed only for building or on other systems are included, because the lock file does not distinguish them; those of the
tests are not.
"""

import json
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
Crate = dict[str, Any]
MANIFEST = tomllib.loads((ROOT / "Cargo.toml").read_text())
LOCKED: list[Crate] = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]


def find(dependency: str) -> Crate:
    """A crate by "name", or by "name version" where the lock file has several."""
    name, *version = dependency.split()
    return next(crate for crate in LOCKED if crate["name"] == name and (not version or crate["version"] == version[0]))


def purl(crate: Crate) -> str:
    return f"pkg:cargo/{crate['name']}@{quote(crate['version'], safe='')}"


def needs(crate: Crate) -> list[Crate]:
    return [find(dependency) for dependency in crate.get("dependencies", [])]


def reachable(start: list[Crate]) -> list[Crate]:
    """Each crate once, direct dependencies first."""
    found: dict[str, Crate] = {}
    queue = list(start)
    for crate in queue:
        if purl(crate) not in found:
            found[purl(crate)] = crate
            queue += needs(crate)
    return list(found.values())


def component(crate: Crate) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": purl(crate),
        "purl": purl(crate),
        "name": crate["name"],
        "version": crate["version"],
        "hashes": [{"alg": "SHA-256", "content": crate["checksum"]}],
    }


def edges(crate: Crate, to: list[Crate]) -> dict[str, Any]:
    return {"ref": purl(crate), "dependsOn": [purl(one) for one in to]}


def main() -> None:
    program = find(MANIFEST["package"]["name"])
    direct = [crate for crate in needs(program) if crate["name"] in MANIFEST["dependencies"]]
    crates = reachable(direct)
    metadata = {
        "type": "application",
        "bom-ref": purl(program),
        "name": program["name"],
        "version": program["version"],
        "licenses": [{"license": {"id": MANIFEST["package"]["license"]}}],
    }
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": metadata},
        "components": [component(crate) for crate in crates],
        "dependencies": [edges(program, direct), *(edges(crate, needs(crate)) for crate in crates)],
    }
    print(json.dumps(bill, sort_keys=True))


main()
