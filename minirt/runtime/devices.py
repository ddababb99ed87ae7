"""The device files every container has, on its own /dev (runtime-spec config-linux.md, "Default Devices").

Root makes new nodes; in a user namespace mknod(2) is refused, so the machine's own are bind-mounted.
A container keeps CAP_MKNOD, as docker's does, so a node that it (or its image) makes must open nothing: each default
device is a mount of its own, and everything around them, /dev and the root file system, is `nodev`.
Taught in chapter 07.
"""

from __future__ import annotations

import os
import stat

from minirt import linux
from minirt.runtime import mounts

NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
LINKS = {
    "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore", "ptmx": "pts/ptmx",
}  # fmt: skip


def make(root: mounts.Root, rootless: bool) -> None:
    """Fill the container's fresh /dev. For a process with umask 0."""
    dev = root.open("/dev", os.O_PATH | os.O_DIRECTORY, links=False)
    for name, (major, minor) in NODES.items():
        if rootless:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=dev))
            tree = linux.open_tree(-100, f"/dev/{name}", linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
        else:
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=dev)
            tree = linux.open_tree(dev, name, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
        mounts.attach(tree, os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev))
    for name, target in LINKS.items():
        if name != "core" or os.path.exists(target):  # a kernel may be built without /proc/kcore
            os.symlink(target, name, dir_fd=dev)
    linux.mount_setattr(dev, "", linux.AT_EMPTY_PATH, linux.MOUNT_ATTR_NODEV)
    os.close(dev)
