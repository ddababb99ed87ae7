"""Changing files so that a crash leaves the old content or the new, never half: write aside, fsync, rename.

Locks are advisory file locks, which the kernel drops when their holder dies however it dies. Source: rename(2),
fsync(2), flock(2).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace `path` with `content` on the disk, durably. Raises OSError; then `path` is as it was."""
    aside = path.with_name(f".{os.urandom(8).hex()}.new")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, mode)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames in `path` durable (a no-op where directories cannot be opened)."""
    if hasattr(os, "O_DIRECTORY"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sync_files(folder: Path) -> None:
    """Make the content of the files that lie in `folder` durable; for files of which a record will say that they are
    there, and which were written as it was quickest."""
    for entry in os.scandir(folder):
        if entry.is_file(follow_symlinks=False):
            fd = os.open(entry.path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


@contextlib.contextmanager
def locked(path: Path, shared: bool = False, wait: bool = True) -> Iterator[int | None]:
    """Hold the lock file `path`; yields its descriptor, and who inherits that holds the lock as well.

    Yields None instead of waiting where `wait` is off and another holds it.

    The file may be removed by its holder: after locking, a file that lost its name is opened anew.
    """
    while True:
        mode = os.O_RDONLY if shared else os.O_RDWR  # a read-only store can be looked at
        fd = os.open(path, mode | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            if not try_lock(fd, shared, wait):
                yield None
                return
            try:
                same = os.fstat(fd).st_ino == os.stat(path).st_ino
            except FileNotFoundError:
                same = False
            if same:
                yield fd
                return
        finally:
            os.close(fd)


def try_lock(fd: int, shared: bool, wait: bool = False) -> bool:
    """Lock what is open as `fd`; False where another holds it and we do not `wait`."""
    try:
        import fcntl
    except ImportError:  # Windows: one process at a time, by the C library's lock
        import msvcrt

        getattr(msvcrt, "locking")(fd, getattr(msvcrt, "LK_LOCK"), 1)  # noqa: B009
        return True
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
