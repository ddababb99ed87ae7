"""What a container wrote, read back: `docker logs`; and what may be asked of its log when it is created.

The log is one of ours whatever docker's driver is called; `json-file` and `local` differ in their limits only, and
`none` keeps nothing. Sources: Engine API 1.44 reference "ContainerLogs"; moby daemon/logs.go, daemon/logger.
Taught in chapter 08.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minirt.errors import InvalidInput, Unsupported
from minirt.runtime import log
from minirt.runtime import state as records

CONFIG: dict[str, Any] = {"Type": "json-file", "Config": {}}
DRIVERS: dict[str, dict[str, str]] = {
    "json-file": {"max-size": "-1", "max-file": "1"},
    "local": {"max-size": "20m", "max-file": "5"},
    "none": {},
}
_SIZE = r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([kmgtp]?)i?b?"
_IGNORED = {"compress": "false", "mode": "blocking"}  # they ask for what is done


def limits(config: dict[str, Any] | None) -> dict[str, Any]:
    """HostConfig.LogConfig as `Log`'s settings: `limit` in bytes (0: none) and `files`, 0 of them for no log.

    Raises InvalidInput, Unsupported.
    """
    name = (config or {}).get("Type") or "json-file"
    given = {str(key): str(value) for key, value in ((config or {}).get("Config") or {}).items()}
    if name not in DRIVERS:
        raise Unsupported(f'error looking up logging plugin {name[:80]}: plugin "{name[:80]}" not found')
    known = DRIVERS[name]
    for key, value in given.items():
        if key in _IGNORED and known and value == _IGNORED[key]:
            continue
        if key in ("compress", "mode", "labels", "env", "tag") and known:
            raise Unsupported(f"log opt '{key}' is not supported")
        if key not in known:
            raise InvalidInput(f"unknown log opt '{key[:80]}' for {name} log driver")
    if not known:
        return {"limit": 0, "files": 0}
    said = known | given
    size, files = re.fullmatch(_SIZE, said["max-size"], re.ASCII | re.IGNORECASE), said["max-file"]
    limit = int(float(size[1]) * 1024.0 ** " kmgtp".index(size[2].lower() or " ")) if size else 0
    if said["max-size"] != "-1" and not limit:
        raise InvalidInput(f"invalid log opt max-size: invalid size: '{said['max-size'][:80]}'")
    if not re.fullmatch("[0-9]{1,4}", files, re.ASCII) or not int(files):
        raise InvalidInput("invalid log opt max-file: max-file cannot be less than 1")
    if not limit and int(files) > 1:
        raise InvalidInput("max-file needs max-size to be set: there is nothing to begin another file for")
    return {"limit": limit, "files": int(files)}


def read(
    folder: Path,
    config: dict[str, Any] | None,
    stdout: bool = True,
    stderr: bool = True,
    follow: bool = False,
    tail: int | None = None,
    since: float = 0,
    until: float = 0,
    timestamps: bool = False,
) -> Iterator[tuple[str, bytes]]:
    """GET /containers/{id}/logs, as ("stdout" | "stderr", bytes): full lines, and parts of those over 16 KiB.

    `tail` counts lines (None, or below 0: all) of both streams; `since` and `until` are seconds of the epoch (0: none).
    With `follow` it ends with the container, and yields ("", b"") about once a second while there is nothing new.
    Raises InvalidInput, and Unsupported where no log is kept.
    """
    if not (stdout or stderr):
        raise InvalidInput("Bad parameters: you must choose at least one stream")
    if not limits(config)["files"]:
        raise Unsupported("configured logging driver does not support reading")
    streams = [name for name, wanted in (("stdout", stdout), ("stderr", stderr)) if wanted]
    tail = None if tail is None or tail < 0 else tail

    def lines() -> Iterator[tuple[str, bytes]]:
        run = records.read_json(str(folder / "run.json")) if follow else None
        shim = records.open_process(run, "shim") if run else None
        try:
            yield from log.read(folder / "log", streams, tail, since, until, timestamps, shim)
        finally:
            if shim is not None:
                os.close(shim)

    return lines()
