"""What a container changed: the tree it sees, held against its image's layers.

The tree is the mounted one, so whiteouts and opaque directories of its write layer are the kernel's business and not
read here; the write layer only tells what need not be looked at. The layers are looked at as they lie, whiteouts in
both their forms. A directory has changed when something in it has, or its owner or mode: so `docker diff` lists it.
Source: moby pkg/archive changes.go. Taught in chapter 06.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from minirt.errors import StoreError
from minirt.store.merge import OPAQUE, WHITEOUT, opaque
from minirt.store.shared import Seen

MODIFIED, ADDED, DELETED = 0, 1, 2
_DEPTH = 400
_CHUNK = 1 << 18
_OPEN = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class Change(NamedTuple):
    """`path` is relative to the root."""

    kind: int
    path: bytes


class Diff:
    """`ours` begins the names of overlay's xattrs. `owners` turns ids as the tree has them into those of the layers.

    `touched`: a file in the write layer counts though it is as it was: a new name may have been given to it.
    What is in `stubs` counts as added only with something in it: the runtime made it to mount on. `seen` gives the
    lstat of a file of the layers, as the tree shows it.
    """

    def __init__(
        self,
        ours: str,
        owners: Callable[[int, int], tuple[int, int]],
        stubs: frozenset[bytes],
        touched: bool,
        seen: Callable[[bytes], os.stat_result | Seen] = os.lstat,
    ) -> None:
        self._ours, self._owners, self._stubs, self._touched, self._seen = ours, owners, stubs, touched, seen

    def run(self, tree: int, lowers: list[bytes], upper: int | None) -> list[Change]:
        """`lowers` top first; `upper`: the write layer, or None where the tree is a copy. A directory comes before what
        is in it."""
        return self._compare(tree, lowers, upper, b"", _DEPTH)

    def _compare(self, tree: int, lowers: list[bytes], upper: int | None, path: bytes, depth: int) -> list[Change]:
        if not depth:
            raise StoreError(f"{os.fsdecode(path[:200])!r} lies deeper than {_DEPTH} directories")
        below, out = self._below(lowers), []
        here = {os.fsencode(name) for name in os.listdir(tree)}
        touched = None if upper is None else {os.fsencode(name) for name in os.listdir(upper)}
        for name in sorted(here | below.keys()):
            full = path + b"/" + name if path else name
            if name not in here:
                out.append(Change(DELETED, full))
                continue
            known = below.get(name, [])
            if known and touched is not None and name not in touched:
                continue  # a name that is not in the write layer is the layers' own
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it changes under our eyes
                out += self._one(tree, known, upper, name, full, depth)
        return out

    def _one(
        self, tree: int, known: list[bytes], upper: int | None, name: bytes, path: bytes, depth: int
    ) -> list[Change]:
        status = os.stat(name, dir_fd=tree, follow_symlinks=False)
        old = self._seen(known[0]) if known else None
        both = old is not None and stat.S_ISDIR(old.st_mode) and stat.S_ISDIR(status.st_mode)
        inner: list[Change] = []
        if stat.S_ISDIR(status.st_mode):
            with contextlib.ExitStack() as opened:
                fd = _open(name, tree, opened)
                # A new directory's content is all new, wherever it lies.
                below = _open(name, upper, opened) if upper is not None and both else None
                inner = self._compare(fd, known if both else [], below, path, depth - 1)
        if old is None:
            stub = path in self._stubs and not inner and (stat.S_ISDIR(status.st_mode) or not status.st_size)
            return [] if stub else [Change(ADDED, path), *inner]
        changed = bool(inner) or self._differ(status, old, content=not both)
        if not (changed or both or upper is None):  # it was only opened, or given back the time it had
            changed = self._touched or not _alike(name, tree, known[0], status)
        return [Change(MODIFIED, path), *inner] if changed else []

    def _differ(self, new: os.stat_result, old: os.stat_result | Seen, content: bool = False) -> bool:
        mine = (new.st_mode, *self._owners(new.st_uid, new.st_gid), new.st_rdev)
        theirs = (old.st_mode, old.st_uid, old.st_gid, old.st_rdev)
        return mine != theirs or (content and (new.st_size, new.st_mtime_ns) != (old.st_size, old.st_mtime_ns))

    def _below(self, folders: list[bytes]) -> dict[bytes, list[bytes]]:
        """What layers show in one directory: each name, and where it lies (a directory perhaps in several layers)."""
        found: dict[bytes, list[bytes]] = {}
        settled: set[bytes] = set()  # names for which no lower layer counts
        for folder in folders:
            hides = set()
            for name in os.listdir(folder):
                if name.startswith(WHITEOUT):
                    hides |= {name[len(WHITEOUT) :]} - {OPAQUE[len(WHITEOUT) :]}
                    continue
                if name in settled:
                    continue
                place = os.path.join(folder, name)
                status = os.lstat(place)
                if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                    hides.add(name)
                elif stat.S_ISDIR(status.st_mode):
                    found.setdefault(name, []).append(place)
                    hides |= {name} if opaque(place, self._ours) else set()
                else:
                    found.setdefault(name, [place])  # a directory of a layer above hides a file
                    hides.add(name)
            settled |= hides
        return found


def _alike(name: bytes, parent: int, old: bytes, status: os.stat_result) -> bool:
    """Have two files of one size and time the same content and capabilities?"""
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(name, dir_fd=parent) == os.readlink(old)
    if not stat.S_ISREG(status.st_mode):
        return True
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    with open(fd, "rb") as new, open(old, "rb") as before:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or _capability(fd) != _capability(before.fileno()):
            return False
        while piece := new.read(_CHUNK):
            if piece != before.read(len(piece)):
                return False
    return True


def _capability(fd: int) -> bytes:
    try:
        return os.getxattr(fd, "security.capability")
    except OSError:  # none, or a file system without any
        return b""


def _open(name: bytes, parent: int, opened: contextlib.ExitStack) -> int:
    fd = os.open(name, _OPEN, dir_fd=parent)
    opened.callback(os.close, fd)
    return fd
