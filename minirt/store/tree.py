"""File work under one directory that no name can leave: every path is opened from a descriptor of its root.

`openat2` with RESOLVE_BENEATH and no symbolic links lets the kernel hold the line; where it is refused (old kernels,
some seccomp policies) a walk by component with O_NOFOLLOW holds the same. No path is ever joined to a host path.
Invariant: `parent()` descriptors are directories inside the root. Source: openat2(2); CVE-2021-30465 shows why.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from minirt import linux

_DIRECTORY = getattr(os, "O_PATH", 0) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BENEATH = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
_KEPT_OPEN = 64
_DEPTH = 100  # levels a removal goes down before it moves the rest up


class Tree:
    """A root directory and the directories lately used under it. `made` is told of those that were made on the way."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.open(root, _DIRECTORY)
        self._open: dict[bytes, int] = {}
        self._has_openat2 = True
        self.made: Callable[[int], None] | None = None

    def close(self) -> None:
        self.forget()
        os.close(self.root)

    def forget(self) -> None:
        """Drop cached directories: needed after anything was removed or replaced."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def directory(self, path: bytes, create: bool = False) -> int:
        """A descriptor of the directory `path` (clean and relative; empty is the root). Owned by the tree.

        With `create`, missing ones are made, 0755. Raises OSError: ELOOP or ENOTDIR where a component is not a
        directory.
        """
        if not path:
            return self.root
        fd = self._open.get(path)
        if fd is not None:
            return fd
        try:
            fd = self._resolve(path)
        except FileNotFoundError:
            if not create:
                raise
            self._make(path)
            fd = self._resolve(path)
        if len(self._open) >= _KEPT_OPEN:
            self.forget()
        self._open[path] = fd
        return fd

    def _make(self, path: bytes) -> None:
        """mkdir -p, each step from the descriptor of the one above, beginning with the nearest that is open."""
        near = path.rpartition(b"/")[0]
        while near and near not in self._open:
            near = near.rpartition(b"/")[0]
        here = os.dup(self._open.get(near, self.root))
        try:
            for component in path[len(near) :].lstrip(b"/").split(b"/"):
                new = True
                try:
                    os.mkdir(component, 0o755, dir_fd=here)
                except FileExistsError:
                    new = False
                below = os.open(component, _DIRECTORY | _NOFOLLOW, dir_fd=here)
                os.close(here)
                here = below
                if new and self.made:
                    self.made(here)
        finally:
            os.close(here)

    def _resolve(self, path: bytes) -> int:
        if self._has_openat2:
            try:
                return linux.openat2(self.root, path, _DIRECTORY, _BENEATH)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
                self._has_openat2 = False
        fd = os.dup(self.root)
        for component in path.split(b"/"):
            try:
                below = os.open(component, _DIRECTORY | _NOFOLLOW, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd


def remove(name: bytes | str, dir_fd: int | None = None) -> None:
    """Remove `name` and all below it without following links, restoring our own access where modes deny it.

    A missing name is fine, also where another process removes it meanwhile. However deep the tree, few descriptors are
    open: what lies too deep is moved up first.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
    try:
        base = _open_to_empty(name, dir_fd)
    except FileNotFoundError:
        return
    try:
        deep = [b"."]
        while deep:
            top = deep.pop()
            with contextlib.suppress(FileNotFoundError):
                _empty(base, top, base, deep, _DEPTH)
                if top != b".":
                    os.rmdir(top, dir_fd=base)
    finally:
        os.close(base)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=dir_fd)


def _empty(parent: int, name: bytes, base: int, deep: list[bytes], depth: int) -> None:
    fd = _open_to_empty(name, parent)
    try:
        for child in _names(fd):
            with contextlib.suppress(FileNotFoundError):
                try:
                    os.unlink(child, dir_fd=fd)
                    continue
                except IsADirectoryError:
                    pass
                if depth:
                    _empty(fd, child, base, deep, depth - 1)
                    os.rmdir(child, dir_fd=fd)
                else:
                    os.close(_open_to_empty(child, fd))  # moving a directory takes leave to write to it
                    aside = b".removing-%d-%d" % (os.fstat(fd).st_ino, len(deep))
                    os.rename(child, aside, src_dir_fd=fd, dst_dir_fd=base)
                    deep.append(aside)
    finally:
        os.close(fd)


def _open_to_empty(name: bytes | str, dir_fd: int | None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=dir_fd)
        fd = os.open(name, flags, dir_fd=dir_fd)
    if os.fstat(fd).st_mode & 0o300 != 0o300 and os.geteuid() != 0:
        os.chmod(fd, 0o700)
    return fd


def _names(fd: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(fd)]


def walk(root: str | os.PathLike[str]) -> Iterator[os.stat_result]:
    """The lstat of every entry below `root`, links not followed, to a depth of 500; what vanishes is passed over."""
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack = [(here, _names(here))]
    try:
        while stack:
            fd, names = stack[-1]
            if not names:
                os.close(stack.pop()[0])
                continue
            name = names.pop()
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) and len(stack) < 500:
                    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                    stack.append((below, _names(below)))
                yield status
    finally:
        for fd, _ in stack:
            os.close(fd)
