"""Additional stores: another store of this machine, of which images are used as if they were one's own, and read only.

A class server keeps one copy of each image in a store that root *shares* (`minirt system share`); others name it in
`additional-stores`. Nothing in it is written, made or locked against its owner, so it may be mounted read-only.

Trust. Blobs are checked by their digests whenever they are used. An unpacked layer has no digest any more: it is what
lies there. So a store counts only where root or the user owns it and every folder above it, and nobody else can write
to any of them; then whoever could change it could change this user's own files as well. Else it is left aside, and
`info`, `system check` and `pull` say why.

Reading while its owner pulls or removes: the table of names, blobs and layers appear and vanish by rename. What goes
away between two looks is reported as gone; a layer that a running container stands on stays until it has ended
(runtime/rootfs.py holds it, `Store.sweep` asks). Source: containers-storage.conf(5), additionalimagestores.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from minirt.store.format import VERSION
from minirt.store.layout import Layout

_AGAIN = 1.0  # seconds a verdict about a folder holds


class Additional:
    """The stores that `named` tells, but for the one in `own`. Called, it gives the layouts of the usable ones."""

    def __init__(self, named: Callable[[], Iterable[Path]], own: Path) -> None:
        self._named, self._own = named, own
        self._looked: dict[Path, tuple[float, str]] = {}

    def __call__(self) -> list[Layout]:
        return [Layout(path / "oci") for path in self.paths() if not self._fault(path)]

    def paths(self) -> list[Path]:
        """All of them. Raises InvalidInput where the settings cannot be read."""
        return [path for path in self._named() if path != self._own and not _same(path, self._own)]

    def refused(self) -> list[tuple[Path, str]]:
        """Those that are left aside, and why."""
        return [(path, why) for path in self.paths() if (why := self._fault(path))]

    def _fault(self, path: Path) -> str:
        when, found = self._looked.get(path, (0.0, ""))
        if not when or time.monotonic() - when > _AGAIN:
            found = fault(path)
            self._looked[path] = time.monotonic(), found
        return found


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def fault(path: Path) -> str:
    """Why the store in `path` cannot be used; empty where it can."""
    try:
        if found := exposed_above(path):
            return found
        path = Path(os.path.realpath(path))
        for name in ("", "version", "oci", "oci/index.json", "oci/blobs", "oci/blobs/sha256"):
            if found := exposed(path / name):
                return found
        with open(path / "version", encoding="utf-8", errors="replace") as file:
            version = file.read(20).strip()
        with open(path / "oci/index.json", "rb"):
            pass
    except FileNotFoundError as error:
        return f"it is no store: there is no {error.filename}" if path.is_dir() else "it is not there"
    except OSError as error:
        return f"it cannot be read: {(error.strerror or str(error)).lower()}: {error.filename}"
    return (
        "" if version == str(VERSION) else f"it was written by another minirt (format {version!r}, ours is {VERSION})"
    )


def exposed_above(path: Path) -> str:
    """Who but root and we could put another folder in this one's place; empty where nobody could. Raises OSError.

    As sshd looks at what leads to a user's keys; a sticky folder like /tmp lets nobody move what is not theirs.
    """
    real = Path(os.path.realpath(path))
    for above in (*reversed(path.parents), *reversed(real.parents)):
        if found := exposed(above, os.stat(above)):
            return found
    return ""


def exposed(path: Path, above: os.stat_result | None = None) -> str:
    """Who but root and we could write to this file or folder of a store, which is no link; empty where nobody could.

    `above`: of a folder that leads there. An access list shows in the group's bits, acl(5). Raises OSError.
    """
    status = above or os.lstat(path)
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        return f"{path} is neither a folder nor a file"
    if status.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to {_called(status.st_uid)}, who is neither root nor you"
    if status.st_mode & 0o022 and not (above and status.st_mode & stat.S_ISVTX):
        return f"others than root and you may write to {path}"
    return ""


def _called(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
