"""A container's network as the Engine API shows it: what the shim wrote down when it connected the container.

Source: Engine API 1.44 reference (NetworkSettings, Port). Taught in chapter 08.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minirt.runtime import state

_STATE = "network-state.json"  # runtime.network writes it


def shown(folder: Path, mode: str) -> dict[str, Any]:
    """NetworkSettings of inspect; addresses are empty while the container does not run."""
    found = state.read_json(str(folder / _STATE)) or {}
    place = {key: found.get(key, "") for key in ("IPAddress", "Gateway", "MacAddress")}
    place["IPPrefixLen"] = found.get("IPPrefixLen", 0)
    return {"Networks": {mode: place}, "Ports": found.get("Ports") or {}, **place}


def summary(folder: Path) -> list[dict[str, Any]]:
    """Ports of a container in a list: an entry for each place a port is published at, or one if it is only exposed."""
    rows: list[dict[str, Any]] = []
    for key, places in ((state.read_json(str(folder / _STATE)) or {}).get("Ports") or {}).items():
        number, _, kind = key.partition("/")
        row = {"PrivatePort": int(number), "Type": kind}
        rows += [row | {"IP": place["HostIp"], "PublicPort": int(place["HostPort"])} for place in places or ()] or [row]
    return rows
