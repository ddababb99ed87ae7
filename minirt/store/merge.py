"""The copy fallback: overlay-form layers merged into one plain tree, where the kernel refuses overlayfs.

Does in files what the mount would show: a whiteout removes, an opaque directory empties, everything else replaces.
It takes whiteouts in both forms: the kernel's (device 0:0, xattr) and the plain one (the archive's own `.wh.` files).
Costs the image's size again for each container, so it is a step down that the user is told of.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

from minirt.store.tree import remove

WHITEOUT, OPAQUE = b".wh.", b".wh..wh..opq"


def merge(layers: list[Path], target: Path, prefix: str) -> None:
    """Copy `layers` (base first) onto the directory `target`; `prefix` is the namespace of overlay's xattrs."""
    for layer in layers:
        _merge(os.fsencode(layer), os.fsencode(target), f"{prefix}.overlay.", {})


def _merge(source: bytes, target: bytes, ours: str, links: dict[int, bytes]) -> None:
    names = sorted(os.listdir(source))
    for name in [name for name in names if name.startswith(WHITEOUT)]:
        names.remove(name)
        if name != OPAQUE:
            remove(os.path.join(target, name[len(WHITEOUT) :]))
    for name in names:
        old, new = os.path.join(source, name), os.path.join(target, name)
        status = os.lstat(old)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            remove(new)
            continue
        directory = stat.S_ISDIR(status.st_mode)
        if not directory or not _is_directory(new) or opaque(old, ours):
            remove(new)
        if directory:
            with contextlib.suppress(FileExistsError):
                os.mkdir(new, 0o700)
            _merge(old, new, ours, links)
        elif status.st_nlink > 1 and status.st_ino in links:
            os.link(links[status.st_ino], new, follow_symlinks=False)
            continue
        else:
            _copy_one(old, new, status)
            links[status.st_ino] = new
        _copy_metadata(old, new, status, ours)
    _copy_metadata(source, target, os.lstat(source), ours)


def _copy_one(old: bytes, new: bytes, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        _copy_data(old, new, status.st_size)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(old), new)
    else:
        os.mknod(new, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev)


def _copy_data(old: bytes, new: bytes, size: int) -> None:
    """The bytes, but not the holes: a sparse file may be larger than the disk."""
    with open(old, "rb", buffering=0) as source, open(new, "xb", buffering=0) as copy:
        copy.truncate(size)
        at = 0
        while (at := _data(source.fileno(), at)) < size:
            end = os.lseek(source.fileno(), at, os.SEEK_HOLE)
            os.lseek(copy.fileno(), at, os.SEEK_SET)
            while at < end:
                at += os.sendfile(copy.fileno(), source.fileno(), at, end - at)


def _data(fd: int, at: int) -> int:
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing but a hole from here on
            raise
        return sys.maxsize


def _copy_metadata(old: bytes, new: bytes, status: os.stat_result, ours: str) -> None:
    os.chown(new, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(new, stat.S_IMODE(status.st_mode))
        for key in os.listxattr(old):
            if not key.startswith(ours):
                os.setxattr(new, key, os.getxattr(old, key))
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _is_directory(path: bytes) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def opaque(path: bytes, ours: str) -> bool:
    """Does this directory of a layer hide what lower layers have in it? `ours` begins the names of overlay's xattrs."""
    if os.path.lexists(os.path.join(path, OPAQUE)):
        return True
    try:
        return os.getxattr(path, ours + "opaque") == b"y"
    except OSError:
        return False
