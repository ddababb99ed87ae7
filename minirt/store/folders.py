"""Folders that a container's write layer has from the start, because fuse-overlayfs would copy them up wrongly.

When something in a folder of a shared layer changes, fuse-overlayfs makes the folder in the write layer with the owner
and mode that lie on disk (root's, 0755; so 1.10 does), and not with those that OVERRIDE says: a /tmp that nobody else
could write to any more. So every folder that is not root's with 0755 is made there when the container is, as it should
look; a folder that is in a layer and in the write layer with the same owner and mode is no change. What a layer has of
them stands in its facts, so nothing is searched. Source: fuse-overlayfs main.c, create_node_directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from minirt.store import shared
from minirt.store.applier import REFUSED_XATTRS
from minirt.store.merge import WHITEOUT, opaque

LIMIT = 2000  # of one layer: with more of them it is unpacked again, which costs each container nothing


class Layer(NamedTuple):
    """`path` of an unpacked layer, and whether it is in the shared form."""

    path: bytes
    shared: bool


def make(upper: bytes, layers: list[Layer], folders: Iterable[bytes], squashed: bool) -> None:
    """Make those of `folders` in `upper` that can be seen through `layers` (top first), and what leads to them."""
    made: dict[bytes, tuple[bytes, shared.Seen | os.stat_result]] = {}
    wanted = {b"/".join(path.split(b"/")[: end + 1]) for path in folders for end in range(path.count(b"/") + 1)}
    before = os.umask(0)
    try:
        for path in sorted(wanted):  # what leads to a folder comes before it
            found = _top(layers, path)
            if found is None or (path.count(b"/") and path.rpartition(b"/")[0] not in made):
                continue
            place = os.path.join(found.path, path)
            status = shared.seen(place, squashed) if found.shared else os.lstat(place)
            target = os.path.join(upper, path)
            os.mkdir(target, 0o700)
            if not squashed:
                os.chown(target, status.st_uid, status.st_gid)
            os.chmod(target, stat.S_IMODE(status.st_mode))
            for key in os.listxattr(place):
                if key.startswith("user.") and not key.startswith(REFUSED_XATTRS):
                    os.setxattr(target, key, os.getxattr(place, key))
            made[path] = target, status
        for target, status in reversed(made.values()):
            os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
    finally:
        os.umask(before)


def _top(layers: list[Layer], path: bytes) -> Layer | None:
    """The first layer in which the folder can be seen; None where something hides it."""
    parts = path.split(b"/")
    for layer in layers:
        here, last = layer.path, False
        for number, part in enumerate(parts):
            if os.path.lexists(os.path.join(here, WHITEOUT + part)):
                last = True
            here = os.path.join(here, part)
            try:
                status = os.lstat(here)
            except FileNotFoundError:
                break
            if not stat.S_ISDIR(status.st_mode):  # a file, or a whiteout
                return None
            if number == len(parts) - 1:
                return layer
            last = last or opaque(here, "user.overlay.")
        if last:
            return None
    return None
