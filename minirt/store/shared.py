"""The shared form of a layer: one copy that other users of this machine may read, and none may change or be hurt by.

In it every file is root's, 0644 or 0755, every folder 0755: no set-uid file, no capability, no device and no access
list of an image lies where others reach it. Whose a file is in a container and with which mode, the xattr OVERRIDE
says, `uid:gid:mode`, which fuse-overlayfs shows in place of what is on disk (podman's `force_mask`); it wants it on
every file and folder. Whiteouts and opaque folders are in overlay's `user.` form. Links and pipes can have no such
xattr: root's, whom a plain user's namespace does not know, they look like nobody's. With a single id `squash_to_root`
makes all of them the user's; with a range a mapping of fuse-overlayfs' turns nobody's into root's, for which what an
image gives to `nobody` has another number on disk; where a layer of one's own above has something of nobody's, all are
unpacked again.
Lost, beside what a plain user has not anyway: file capabilities, other xattrs than `user.`, whose a link or pipe is,
and a pipe's mode.
Sources: fuse-overlayfs(1), containers-storage.conf(5) force_mask, xattr(7). Taught in chapter 06.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from minirt.userns import IdMapping

FORM = "shared"
OVERRIDE = "user.containers.override_stat"
NOBODY, _SPARE = 65534, 65535  # the kernel's overflow id; -1 of 16 bits, which chown(2) never gave to anybody
IDS = 65536


class Seen(NamedTuple):
    """What of a file's lstat a container sees otherwise; the rest is as on disk."""

    st_mode: int
    st_uid: int
    st_gid: int
    st_rdev: int
    st_size: int
    st_mtime_ns: int


def record(uid: int, gid: int, mode: int) -> bytes:
    """The value of OVERRIDE."""
    uid, gid = (_SPARE if number == NOBODY else number for number in (uid, gid))
    return b"%d:%d:%04o" % (uid, gid, mode & 0o7777)


def mask(file: int | str, uid: int, gid: int, mode: int, directory: bool) -> None:
    """Record whose a new file or folder is, and open it to be read."""
    os.setxattr(file, OVERRIDE, record(uid, gid, mode))
    os.chmod(file, 0o755 if directory or mode & 0o111 else 0o644)


def seen(path: bytes | str | os.PathLike[str], squashed: bool) -> Seen:
    """A file of a shared layer as a container sees it; `squashed` where only one id exists."""
    status = os.lstat(path)
    uid, gid, mode = 0, 0, stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        owner, group, octal = os.getxattr(path, OVERRIDE).split(b":")[:3]
        uid, gid, mode = int(owner), int(group), int(octal, 8) & 0o7777
    uid, gid = (0 if squashed else NOBODY if number == _SPARE else number for number in (uid, gid))
    return Seen(stat.S_IFMT(status.st_mode) | mode, uid, gid, status.st_rdev, status.st_size, status.st_mtime_ns)


def options(ids: IdMapping) -> str:
    """fuse-overlayfs' options for these ids."""
    if ids.single:
        return "squash_to_root"
    rows = f"{NOBODY}:0:1:0:0:{NOBODY}:{_SPARE}:{NOBODY}:1"
    return f"uidmapping={rows},gidmapping={rows}"


def possible(ids: IdMapping) -> bool:
    """Are there the ids that the mapping above takes?"""
    count = min(sum(row[2] for row in rows) for rows in (ids.uids, ids.gids)) if ids.rootless else 0
    return not ids.faked and (ids.single or count >= IDS)
