"""A container's layers as they are now: asked of the daemon, and of the kernel where it runs.

Read-only layers below, its write layer on top, how they are laid over each other, and what was written. No widget here.
Source: proc(5), /proc/PID/mountinfo; kernel Documentation/filesystems/overlayfs.rst. Taught in chapter 06.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from minirt.client import Client
from minirt.errors import MinirtError, NotFound
from minirt.notebook.place import Place
from minirt.notebook.snapshot import Snapshot

CHANGED, ADDED, DELETED = range(3)  # the Engine API's numbers


@dataclass(frozen=True)
class Overlay:
    """`layers` are (DiffID, the step that made it), lowest first. `driver`: overlay, fuse-overlayfs, directory (a copy)
    or proot (a copy too). `mount` is the type and options of its `/` in the kernel's words, None where it is not
    mounted; `refused` why the kernel's words could not be had. `options` is what the daemon asks for. `changes` are
    (CHANGED | ADDED | DELETED, path)."""

    name: str
    pid: int
    driver: str
    layers: tuple[tuple[str, str], ...]
    mount: tuple[str, str] | None
    refused: str
    options: tuple[tuple[str, str], ...]
    changes: tuple[tuple[int, str], ...]

    @property
    def running(self) -> bool:
        return self.pid > 0

    @property
    def copied(self) -> bool:
        return self.driver in ("directory", "proot")

    def count(self, kind: int) -> int:
        return sum(found == kind for found, _ in self.changes)


def look(place: Place, name: str) -> Overlay:
    """Raises NotFound where there is no such container."""
    with place.client() as client:
        seen = client.inspect_container(name)
        changes = tuple((int(change["Kind"]), str(change["Path"])) for change in client.changes(str(seen["Id"])))
        layers = _layers(client, place, seen)
    pid, graph = int(seen["State"]["Pid"] or 0), seen["GraphDriver"]
    mount, refused = None, ""
    if pid:
        try:
            mount = mounted(pid)
        except OSError as error:
            refused = error.strerror or str(error)
    data = graph["Data"]
    options = tuple(
        (option, str(data[key]))
        for option, key in (("lowerdir", "LowerDir"), ("upperdir", "UpperDir"), ("workdir", "WorkDir"))
        if data.get(key)
    )
    shown = str(seen["Name"]).lstrip("/")
    return Overlay(shown, pid, str(graph["Name"]), layers, mount, refused, options, changes)


def _layers(client: Client, place: Place, seen: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    image = str(seen["Image"])
    try:
        found = [str(diff_id) for diff_id in client.inspect_image(image)["RootFS"]["Layers"]]
    except NotFound:  # its name was removed: the layers stay, and the record names their folders, top first
        folders = str(seen["GraphDriver"]["Data"].get("LowerDir") or "")
        found = [f"sha256:{name}" for name in reversed(re.findall(r"/([0-9a-f]{64})(?=:|$)", folders))]
    try:
        steps = [layer.made_by for layer in Snapshot.read(place.root, image).layers]
    except MinirtError:
        steps = []
    return tuple((diff_id, steps[at] if at < len(steps) else "") for at, diff_id in enumerate(found))


def mounted(pid: int) -> tuple[str, str] | None:
    """File system type and options of what is mounted on `/` for process `pid`. Raises OSError."""
    found = None
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split(" ")
            if fields[4] == "/" and "-" in fields[6:]:
                kind, _source, options = fields[fields.index("-", 6) + 1 :][:3]
                found = kind, options.strip()  # a later line lies over an earlier one
    return found


def split(options: str) -> list[tuple[str, str]]:
    """Mount options as (name, value); a comma of a value is written `\\,` by the kernel."""
    parts = re.split(r"(?<!\\),", options)
    return [(name, value) for name, _, value in (part.partition("=") for part in parts)]
