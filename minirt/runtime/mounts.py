"""What is mounted where in a container, as config.json lists it.

Invariants. A target is looked up inside the rootfs by the kernel (openat2, RESOLVE_IN_ROOT, no magic links) and from
then on is a descriptor, never a path: nothing can be swapped under us, and a link in the image leads nowhere else. At
and under /proc, /sys and /dev no link is followed at all, and no other target may end up there. A mount gets its flags
while it is still detached, so it is never visible without them. Needs kernel 5.12 (mount_setattr).
Sources: runtime-spec config.md "Mounts", mount_setattr(2), CVE-2019-19921, CVE-2021-30465, CVE-2025-31133. Chapter 07.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from minirt import linux
from minirt.errors import StartError

# option: (attributes to set, attributes to clear)
_ATTRIBUTES = {
    "ro": (linux.MOUNT_ATTR_RDONLY, 0), "rw": (0, linux.MOUNT_ATTR_RDONLY),
    "nosuid": (linux.MOUNT_ATTR_NOSUID, 0), "suid": (0, linux.MOUNT_ATTR_NOSUID),
    "nodev": (linux.MOUNT_ATTR_NODEV, 0), "dev": (0, linux.MOUNT_ATTR_NODEV),
    "noexec": (linux.MOUNT_ATTR_NOEXEC, 0), "exec": (0, linux.MOUNT_ATTR_NOEXEC),
    "noatime": (linux.MOUNT_ATTR_NOATIME, linux.MOUNT_ATTR__ATIME), "relatime": (0, linux.MOUNT_ATTR__ATIME),
    "strictatime": (linux.MOUNT_ATTR_STRICTATIME, linux.MOUNT_ATTR__ATIME),
    "nodiratime": (linux.MOUNT_ATTR_NODIRATIME, 0), "diratime": (0, linux.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (linux.MOUNT_ATTR_NOSYMFOLLOW, 0),
}  # fmt: skip
_PROPAGATION = {
    "private": linux.MS_PRIVATE, "slave": linux.MS_SLAVE, "shared": linux.MS_SHARED, "unbindable": linux.MS_UNBINDABLE,
}  # fmt: skip
_KERNEL_TREES = ("/proc", "/sys", "/dev")
_MAX_LINKS = 40


def _inside(path: str, trees: tuple[str, ...]) -> bool:
    return any(path == tree or path.startswith(tree + "/") for tree in trees)


class Root:
    """The rootfs as a descriptor: everything is looked up under it."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, path: str, flags: int = os.O_PATH, links: bool = True) -> int:
        """Open what `path` means inside the container. OSError as usual; ELOOP for a link where none may be."""
        # IN_ROOT stops magic links today; openat2(2) asks to say so all the same.
        resolve = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS | (0 if links else linux.RESOLVE_NO_SYMLINKS)
        return linux.openat2(self.fd, path, flags, resolve)

    def make(self, path: str, directory: bool = True, links: bool = True) -> int:
        """Open `path`, first making what is missing of it: directories 0755, and last a directory or an empty file."""
        fd, done, todo = -1, "/", [part for part in path.split("/") if part]
        followed = 0
        if not todo:
            return self.open("/")
        while todo:
            name = todo.pop(0)
            here = os.path.join(done, name)
            try:
                fd = self.open(here, links=links)
            except FileNotFoundError:
                parent = self.open(done, os.O_PATH | os.O_DIRECTORY, links)
                try:
                    target = os.readlink(name, dir_fd=parent) if links else ""
                except OSError:
                    target = ""
                if target:  # a dangling link: make what it points to
                    followed += 1
                    if followed > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                    todo = [part for part in target.split("/") if part] + todo
                    done = "/" if target.startswith("/") else done
                    os.close(parent)
                    continue
                if todo or directory:
                    os.mkdir(name, 0o755, dir_fd=parent)
                else:
                    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent))
                os.close(parent)
                fd = self.open(here, links=links)
            done = here
            if todo:
                os.close(fd)
        return fd

    def target(self, path: str, directory: bool) -> int:
        """The place to mount on. Raises StartError where a link of the image leads to or away from a kernel tree."""
        guarded = _inside(os.path.normpath(path), _KERNEL_TREES)
        try:
            fd = self.make(path, directory, links=not guarded)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise StartError(f"mount {path}: a symbolic link in the image stands in the way: refused") from error
            raise
        base, real = (os.readlink(f"/proc/self/fd/{number}") for number in (self.fd, fd))
        if not guarded and _inside(real.removeprefix(base.rstrip("/")), _KERNEL_TREES):
            raise StartError(f"mount {path}: a symbolic link in the image leads to {real.removeprefix(base)}: refused")
        return fd


def mount(root: Root, entry: dict[str, Any], bundle: str) -> None:
    """Do one line of the `mounts` list."""
    options = entry.get("options", [])
    kind, path = entry.get("type", "none"), entry["destination"]
    attributes = cleared = recursive = propagation = 0
    bind, data = kind == "bind", []
    for option in options:
        name = option[1:] if option[:1] == "r" and option[1:] in {"bind", "ro", *_PROPAGATION} else option
        if name == "bind":
            bind = True
        elif name in _PROPAGATION:
            propagation = _PROPAGATION[name]
        elif name in _ATTRIBUTES:
            set_, clear = _ATTRIBUTES[name]
            attributes, cleared = attributes & ~clear | set_, cleared | clear
            recursive |= linux.AT_RECURSIVE if option == "rro" else 0
        else:
            data.append(option)
    if bind:
        source = os.path.join(bundle, entry["source"])
        fd = linux.open_tree(-100, source, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE)
        linux.mount_setattr(
            fd, "", linux.AT_EMPTY_PATH | recursive, attributes, cleared & ~attributes | _atime(attributes)
        )
        linux.mount_setattr(
            fd, "", linux.AT_EMPTY_PATH | linux.AT_RECURSIVE, propagation=propagation or linux.MS_PRIVATE
        )
        attach(fd, root.target(path, stat.S_ISDIR(os.fstat(fd).st_mode)))
    elif kind == "cgroup":
        _mount_cgroups(root.target(path, True), attributes)
    else:
        attach(detached(kind, entry.get("source", kind), data, attributes), root.target(path, True))


def _atime(attributes: int) -> int:
    """The kernel wants all of the access-time field cleared by whoever sets it."""
    return linux.MOUNT_ATTR__ATIME if attributes & linux.MOUNT_ATTR__ATIME else 0


def detached(kind: str, source: str, data: list[str], attributes: int = 0) -> int:
    """A new file system, configured and mounted nowhere yet."""
    fd = linux.fsopen(kind)
    try:
        linux.fsconfig_string(fd, "source", source)
        for option in data:
            key, equals, value = option.partition("=")
            if equals:
                linux.fsconfig_string(fd, key, value)
            else:
                linux.fsconfig_flag(fd, key)
        linux.fsconfig_create(fd)
        return linux.fsmount(fd, attributes)
    except OSError as error:
        raise StartError(f"mount {kind}: {explain(fd) or error.strerror}") from error
    finally:
        os.close(fd)


def explain(fs_fd: int) -> str:
    """What the kernel said about a failed fsconfig, fsopen(2): the last line of its message log."""
    last = ""
    while True:
        try:
            last = os.read(fs_fd, 4096).decode(errors="replace").strip()[2:]
        except OSError:
            return last


def attach(mount_fd: int, target_fd: int) -> None:
    """Put a detached mount in its place; closes both descriptors."""
    linux.move_mount(mount_fd, target_fd)
    os.close(mount_fd)
    os.close(target_fd)


def _mount_cgroups(target: int, attributes: int) -> None:
    """The container's view of its cgroups: cgroup2, or (v1, hybrid) a tmpfs with each hierarchy of this machine."""
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        attach(detached("cgroup2", "cgroup", [], attributes), target)
        return
    top = detached("tmpfs", "tmpfs", ["mode=755"], attributes & ~linux.MOUNT_ATTR_RDONLY)
    linux.move_mount(top, target)
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        hierarchies = [line.split(":")[1] for line in file]
    for controllers in filter(None, hierarchies):
        name = controllers.removeprefix("name=")
        os.mkdir(name, 0o755, dir_fd=top)
        for alias in name.split(",") if "," in name else ():
            os.symlink(name, alias, dir_fd=top)
        fd = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=top)
        attach(detached("cgroup", "cgroup", controllers.split(","), attributes), fd)
    linux.mount_setattr(top, "", linux.AT_EMPTY_PATH, attributes & linux.MOUNT_ATTR_RDONLY)
    os.close(top)
    os.close(target)


def mask(root: Root, path: str) -> None:
    """Hide what is there: a directory under an empty read-only tmpfs, a file under the container's /dev/null."""
    try:
        fd = root.open(path, links=False)
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        attach(detached("tmpfs", "tmpfs", ["nr_blocks=1", "nr_inodes=1"], linux.MOUNT_ATTR_RDONLY), fd)
        return
    null = root.open("/dev/null", links=False)
    if os.fstat(null).st_rdev != os.makedev(1, 3):
        raise StartError("/dev/null is not the null device: refused (CVE-2025-31133)")
    tree = linux.open_tree(null, "", linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_EMPTY_PATH)
    os.close(null)
    attach(tree, fd)


def read_only(root: Root, path: str) -> None:
    """Lay a read-only view of a path over itself."""
    try:
        fd = root.open(path, links=False)
    except (FileNotFoundError, NotADirectoryError):
        return
    flags = linux.AT_EMPTY_PATH | linux.AT_RECURSIVE
    tree = linux.open_tree(fd, "", linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | flags)
    linux.mount_setattr(tree, "", flags, linux.MOUNT_ATTR_RDONLY)
    attach(tree, fd)
