"""A process as this machine sees it: what /proc tells of its ids, walls, resource group and files.

Read from outside, by the machine's own files, so it does not depend on what a runtime says. What we may not read is
listed, not guessed. Sources: proc(5), namespaces(7), cgroups(7), user_namespaces(7). Taught in chapters 03, 06 and 07.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from minirt.errors import NotFound

# The walls, in the order they are shown: names of files in /proc/PID/ns.
NAMESPACES = ("mnt", "pid", "net", "uts", "ipc", "user", "cgroup")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """`target` as the process sees it; `options` of the mount, `detail` of the file system."""

    target: str
    kind: str
    options: str
    detail: str


@dataclass(frozen=True)
class Namespace:
    """`theirs` and `ours` are the kernel's names, as in net:[4026531833]; "" where we may not read it."""

    theirs: str
    ours: str

    @property
    def apart(self) -> bool | None:
        """Whether it has one of its own; None where we cannot tell."""
        return None if not (self.theirs and self.ours) else self.theirs != self.ours


@dataclass(frozen=True)
class Process:
    """`inside` is its pid in the innermost pid namespace, `uid` its user as we count users, `uids` rows of (inside,
    outside, count), `cgroups` the paths with their controllers, `refused` the files we may not read."""

    pid: int
    inside: int
    uid: int
    memory: int
    namespaces: dict[str, Namespace]
    cgroups: dict[str, tuple[str, ...]]
    mounts: tuple[Mount, ...]
    uids: tuple[tuple[int, int, int], ...]
    interfaces: tuple[str, ...]
    refused: tuple[str, ...]

    def apart(self, name: str) -> bool:
        """Whether it surely has its own namespace of that kind."""
        return self.namespaces[name].apart is True

    @property
    def root(self) -> Mount | None:
        """What is mounted on its / (the last one, which hides the others)."""
        return next((mount for mount in reversed(self.mounts) if mount.target == "/"), None)


def look(pid: int) -> Process:
    """Raises NotFound where there is no such process any more."""
    folder, refused = Path(f"/proc/{pid}"), []

    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except PermissionError:
            refused.append(f"/proc/{pid}/{name}")
        except (FileNotFoundError, ProcessLookupError) as error:
            if not folder.exists() or isinstance(error, ProcessLookupError):
                raise NotFound(f"process {pid} has ended") from error
            refused.append(f"/proc/{pid}/{name}")  # a kernel without it
        except OSError:
            refused.append(f"/proc/{pid}/{name}")
        return b""

    status = dict(
        line.split(":\t", 1) for line in read("status").decode(errors="replace").splitlines() if ":\t" in line
    )
    uid, inside = _numbers(status.get("Uid", "")), _numbers(status.get("NSpid", ""))
    found = {name: Namespace(_link(f"/proc/{pid}/ns/{name}"), _link(f"/proc/self/ns/{name}")) for name in NAMESPACES}
    refused += [f"/proc/{pid}/ns/{name}" for name, namespace in found.items() if not namespace.theirs]
    cgroups, mounts, uids = read("cgroup"), read("mountinfo"), read("uid_map")
    interfaces = read("net/dev").decode(errors="replace").splitlines()[2:]
    if not folder.exists():
        raise NotFound(f"process {pid} has ended")
    return Process(
        pid=pid,
        inside=inside[-1] if inside else pid,
        uid=uid[0] if uid else -1,
        memory=1024 * (_numbers(status.get("VmRSS", "0").removesuffix("kB")) or [0])[0],
        namespaces=found,
        cgroups=_cgroups(cgroups),
        mounts=tuple(_mount(line) for line in mounts.splitlines() if b" - " in line),
        uids=tuple(
            (row[0], row[1], row[2])
            for row in map(_numbers, uids.decode(errors="replace").splitlines())
            if len(row) == 3
        ),
        interfaces=tuple(line.partition(":")[0].strip() for line in interfaces),
        refused=tuple(dict.fromkeys(refused)),
    )


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split() if word.isdigit()]


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # told by the caller, among what is refused
        return ""


def _cgroups(data: bytes) -> dict[str, tuple[str, ...]]:
    """Path to controllers; "" is the controller of version 2. Source: cgroups(7), /proc/pid/cgroup."""
    found: dict[str, tuple[str, ...]] = {}
    for line in data.decode(errors="replace").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        found[path] = (*found.get(path, ()), *(name for name in controllers.split(",") if name))
    return found


def _mount(line: bytes) -> Mount:
    """Source: proc(5), /proc/pid/mountinfo: blanks in a path are written as octal numbers."""
    before, _, after = line.partition(b" - ")
    head, tail = before.split(b" "), after.split(b" ", 2)
    plain = [_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 255]), part) for part in (head[4], tail[0], tail[-1])]
    target, kind, detail = (part.decode(errors="replace") for part in plain)
    return Mount(target, kind, head[5].decode(errors="replace"), detail)
