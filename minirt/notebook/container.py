"""A container looked at from both sides: what its daemon says of it, and what this machine says of its process.

Nothing is kept: each look asks again. Taught in chapters 03 and 06.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from typing import Any

from minirt.client import Client
from minirt.errors import MinirtError, NotFound
from minirt.notebook import process
from minirt.notebook.process import Process

_MOST, _BYTES = 1 << 20, 6000  # bytes of a file that are read, and shown


@dataclass(frozen=True)
class Figures:
    """What its group counted so far: bytes of memory, nanoseconds of processor time, processes."""

    memory: int
    cpu: int
    processes: int


@dataclass(frozen=True)
class Container:
    """`process` is None where none runs, or where it has just ended; `figures` None where nobody counts, and
    `uncounted` says why. `contents` are the files of its folder, by name, where it was recorded (walk.py)."""

    inspected: dict[str, Any]
    process: Process | None = None
    figures: Figures | None = None
    uncounted: str = ""
    contents: dict[str, str] | None = None

    @property
    def name(self) -> str:
        return str(self.inspected["Name"]).removeprefix("/")

    @property
    def state(self) -> str:
        return str(self.inspected["State"]["Status"])

    @property
    def command(self) -> list[str]:
        return [str(self.inspected["Path"]), *map(str, self.inspected["Args"])]

    @property
    def driver(self) -> str:
        """What lays its disk: overlay, fuse-overlayfs, directory (copied), proot (copied, without walls)."""
        return str(self.inspected["Driver"])

    @property
    def lowers(self) -> list[str]:
        """Its image's layers as folders, top first; none where their files were copied."""
        return [path for path in (self._disk("LowerDir")).split(":") if path]

    @property
    def upper(self) -> str:
        """The folder of its write layer; "" where its files were copied."""
        return self._disk("UpperDir")

    def _disk(self, key: str) -> str:
        return str(((self.inspected.get("GraphDriver") or {}).get("Data") or {}).get(key) or "")

    @property
    def limits(self) -> tuple[int, float, int]:
        """Bytes of memory, processors, processes it may have; 0 for no limit."""
        host = self.inspected["HostConfig"]
        quota, period = int(host.get("CpuQuota") or 0), int(host.get("CpuPeriod") or 0) or 100_000
        cpus = int(host.get("NanoCpus") or 0) / 1e9 or max(quota, 0) / period
        return int(host.get("Memory") or 0), cpus, max(int(host.get("PidsLimit") or 0), 0)

    @property
    def folder(self) -> str:
        """Where its daemon keeps it, with config.json and rootfs.json; "" of a daemon not ours."""
        return str(self.inspected.get("BundlePath") or "")

    def files(self) -> list[str]:
        """What lies in its folder, sorted; empty where we may not look."""
        if self.contents is not None:
            return sorted(self.contents)
        try:
            return sorted(os.listdir(self.folder)) if self.folder else []
        except OSError:
            return []

    def read(self, name: str) -> str:
        """The beginning of a file of its folder, JSON a value a line. Raises OSError."""
        if self.contents is not None:
            return self.contents.get(name, "")
        with open(os.path.join(self.folder, name), "rb") as file:
            text = file.read(_MOST).decode(errors="replace")
        with contextlib.suppress(ValueError):  # what is not JSON is shown as it is
            text = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
        return text[:_BYTES]


def look(client: Client, name: str) -> Container:
    """Raises MinirtError, NotFound among it."""
    inspected = client.inspect_container(name, size=True)
    pid = int(inspected["State"].get("Pid") or 0)
    if not pid:
        return Container(inspected)
    try:
        seen = process.look(pid)
    except NotFound:  # it ended under our eyes: what the daemon says now is what holds
        return Container(client.inspect_container(name, size=True))
    try:
        return Container(inspected, seen, _figures(client, str(inspected["Id"])))
    except MinirtError as error:
        return Container(inspected, seen, None, str(error))


def _figures(client: Client, identity: str) -> Figures:
    with contextlib.closing(client.stats(identity)) as looks:  # type: ignore[type-var]
        found = next(looks)
    memory, cpu = found.get("memory_stats") or {}, (found.get("cpu_stats") or {}).get("cpu_usage") or {}
    pids = found.get("pids_stats") or {}
    return Figures(int(memory.get("usage") or 0), int(cpu.get("total_usage") or 0), int(pids.get("current") or 0))
