"""The device files of a container: those every one has on its own /dev, and those it is given.

Root makes nodes, which open as far as the cgroup's device rules let them; in a user namespace mknod(2) is refused, so
the machine's own are bind-mounted. Sources: runtime-spec config-linux.md "Default Devices", "Devices".
Taught in chapter 07.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from minirt import linux
from minirt.errors import InvalidInput, StartError
from minirt.runtime import mounts

NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
LINKS = {
    "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore", "ptmx": "pts/ptmx",
}  # fmt: skip


_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def fill(root: mounts.Root, borrowed: bool) -> None:
    """Fill the container's fresh /dev. For a process with umask 0; `borrowed`: bind the machine's nodes."""
    for name, (major, minor) in NODES.items():
        node = {"path": f"/dev/{name}", "type": "c", "major": major, "minor": minor, "fileMode": 0o666}
        add(root, [node], borrowed)
    dev = root.open("/dev", os.O_PATH | os.O_DIRECTORY, links=False)
    for name, target in LINKS.items():
        if name != "core" or os.path.exists(target):  # a kernel may be built without /proc/kcore
            os.symlink(target, name, dir_fd=dev)
    os.close(dev)


def add(root: mounts.Root, wanted: list[dict[str, Any]], borrowed: bool) -> None:
    """Make these nodes (runtime-spec objects). One that is there already must be the same; ptmx is always our own."""
    for device in wanted:
        path = os.path.normpath(device["path"])
        if path == "/dev/ptmx":  # a privileged container is given all devices of the machine, this one with them
            continue
        if device.get("type") not in _TYPES or not path.startswith("/") or path == "/":
            raise InvalidInput(f"config.json: linux.devices: {path}: a type (c, b, p) and a full path are needed")
        folder = root.target(os.path.dirname(path), True)
        name = os.path.basename(path)
        try:
            if borrowed:
                _borrow(path, name, folder)
            else:
                _make(device, name, folder)
        except OSError as error:
            raise StartError(f"device {path}: {error.strerror}") from error
        os.close(folder)


def _make(device: dict[str, Any], name: str, folder: int) -> None:
    kind, number = _TYPES[device["type"]], os.makedev(device.get("major") or 0, device.get("minor") or 0)
    try:
        os.mknod(name, kind | (device.get("fileMode") or 0o666) & 0o7777, number, dir_fd=folder)
    except FileExistsError:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if (stat.S_IFMT(found.st_mode), found.st_rdev) != (kind, number):
            raise
        return  # whose it is stays: in a folder of the machine's it is the machine's own
    os.chown(name, device.get("uid") or 0, device.get("gid") or 0, dir_fd=folder, follow_symlinks=False)


def _borrow(path: str, name: str, folder: int) -> None:
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open(name, flags | os.O_EXCL, 0o666, dir_fd=folder))
    except FileExistsError:
        found, ours = os.stat(name, dir_fd=folder, follow_symlinks=False), os.stat(path)
        if (stat.S_IFMT(found.st_mode), found.st_rdev) != (stat.S_IFMT(ours.st_mode), ours.st_rdev):
            raise
        return  # a volume has put it there
    tree = linux.open_tree(-100, path, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
    mounts.attach(tree, os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder))
