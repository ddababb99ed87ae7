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
OPTIONS = sorted([*_ATTRIBUTES, *(f"r{name}" for name in _ATTRIBUTES if f"r{name}" not in _ATTRIBUTES), *_PROPAGATION,
                  *(f"r{name}" for name in _PROPAGATION), "bind", "rbind", "defaults", "tmpcopyup"])  # fmt: skip
_MAX_LINKS = 40
_PROC_MAGIC = 0x9FA0
# What lxcfs and the like may lay over.
_OVER_PROC = {
    "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "net/dev",
    "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
}  # fmt: skip


def _inside(path: str, trees: tuple[str, ...]) -> bool:
    return any(path == tree or path.startswith(tree + "/") for tree in trees)


class Root:
    """The rootfs as a descriptor: everything is looked up under it."""

    def __init__(self, place: str | int) -> None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self.fd = place if isinstance(place, int) else os.open(place, flags)

    def open(self, path: str, flags: int = os.O_PATH, links: bool = True) -> int:
        """Open what `path` means inside the container. OSError as usual; ELOOP for a link where none may be."""
        # IN_ROOT stops magic links today; openat2(2) asks to say so all the same.
        resolve = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS | (0 if links else linux.RESOLVE_NO_SYMLINKS)
        return linux.openat2(self.fd, path, flags, resolve)

    def make(self, path: str, directory: bool = True, links: bool = True) -> int:
        """Open `path`, first making what is missing of it: directories 0755, and last a directory or an empty file."""
        fd, done, todo = -1, "/", [part for part in path.split("/") if part]
        followed = 0
        try:
            return self.open("/" + "/".join(todo), links=links)
        except FileNotFoundError:
            pass  # mostly it is there
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
        if guarded:  # no link was followed
            return fd
        base, real = (os.readlink(f"/proc/self/fd/{number}") for number in (self.fd, fd))
        real = real.removeprefix(base.rstrip("/"))
        if _inside(real, _KERNEL_TREES):
            raise StartError(f"mount {path}: a symbolic link in the image leads to {real}: refused")
        return fd


def is_bind(entry: dict[str, Any]) -> bool:
    return entry.get("type") == "bind" or not {"bind", "rbind"}.isdisjoint(entry.get("options") or ())


def is_shared(entry: dict[str, Any]) -> bool:
    return not {"shared", "rshared"}.isdisjoint(entry.get("options") or ())


def is_own_dev(entry: dict[str, Any]) -> bool:
    """Whether this makes the container's /dev: then the runtime fills it."""
    return os.path.normpath(entry["destination"]) == "/dev" and not is_bind(entry)


class _Options:
    """The `options` of a mount, sorted: attributes (of this mount, and of those below), propagation, the rest."""

    def __init__(self, words: list[str]) -> None:
        self.set = self.clear = self.deep_set = self.deep_clear = self.propagation = 0
        self.deep_propagation = self.copy_up = False
        self.data: list[str] = []
        for word in words:
            deep = word[:1] == "r" and word not in _ATTRIBUTES
            name = word[1:] if deep else word
            if name in _ATTRIBUTES:
                set_, clear = _ATTRIBUTES[name]
                if deep:
                    self.deep_set, self.deep_clear = self.deep_set & ~clear | set_, self.deep_clear | clear
                else:
                    self.set, self.clear = self.set & ~clear | set_, self.clear | clear
            elif name in _PROPAGATION:
                self.propagation, self.deep_propagation = _PROPAGATION[name], deep
            elif word == "tmpcopyup":
                self.copy_up = True
            elif word not in ("bind", "rbind", "defaults"):
                self.data.append(word)

    def apply(self, tree: int) -> None:
        """To a detached bind mount. The kernel wants all of the access-time field cleared by whoever sets it."""
        for flags, set_, clear in (0, self.set, self.clear), (linux.AT_RECURSIVE, self.deep_set, self.deep_clear):
            atime = linux.MOUNT_ATTR__ATIME if set_ & linux.MOUNT_ATTR__ATIME else 0
            if set_ or clear:
                linux.mount_setattr(tree, "", linux.AT_EMPTY_PATH | flags, set_, clear & ~set_ | atime)


def mount(root: Root, entry: dict[str, Any], bundle: str, source: int | None, own_cgroups: bool) -> None:
    """Do one line of the `mounts` list. `source`: an already opened one; `own_cgroups`: with a cgroup namespace."""
    options = _Options(entry.get("options") or [])
    kind, path = entry.get("type") or "none", entry["destination"]
    if is_bind(entry):
        _bind(root, path, entry, bundle, options, source)
        return
    _check_proc(path, kind)
    if kind == "cgroup" and (own_cgroups or not os.path.exists("/sys/fs/cgroup")):
        _mount_cgroups(root.target(path, True), options.set)
        return
    if kind == "cgroup":
        _show_cgroups(root, path, options.set)
        return
    mode = _mode_below(root, path) if kind == "tmpfs" and not any("mode=" in word for word in options.data) else None
    tree = detached(kind, entry.get("source") or kind, options.data, options.set)
    if mode is not None:
        os.chmod(".", mode, dir_fd=tree)
    target = root.target(path, True)
    if options.copy_up:
        below = os.open(f"/proc/self/fd/{target}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _copy_up(below, tree)
        os.close(below)
    if options.propagation:
        linux.mount_setattr(tree, "", linux.AT_EMPTY_PATH, propagation=options.propagation)
    attach(tree, target)


def _mode_below(root: Root, path: str) -> int | None:
    """The mode of the directory that a tmpfs hides, which goes over to it, as runc and crun do it."""
    try:
        fd = root.open(path, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        return stat.S_IMODE(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def _bind(root: Root, path: str, entry: dict[str, Any], bundle: str, options: _Options, source: int | None) -> None:
    if options.data or options.copy_up:
        raise StartError(f"mount {path}: option {(options.data or ['tmpcopyup'])[0]!r} is not for a bind mount")
    recursive = linux.AT_RECURSIVE if "bind" not in (entry.get("options") or ()) else 0
    if source is None:
        place = os.path.join(bundle, entry.get("source") or "")
        source = linux.open_tree(-100, place, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | recursive)
    _check_proc(path, "proc" if linux.file_system(source) == _PROC_MAGIC else "bind")
    if options.propagation != linux.MS_SHARED:
        linux.mount_setattr(source, "", linux.AT_EMPTY_PATH | linux.AT_RECURSIVE, propagation=linux.MS_SLAVE)
    options.apply(source)
    deep = linux.AT_RECURSIVE if options.deep_propagation or not options.propagation else 0
    linux.mount_setattr(source, "", linux.AT_EMPTY_PATH | deep, propagation=options.propagation or linux.MS_PRIVATE)
    attach(source, root.target(path, stat.S_ISDIR(os.fstat(source).st_mode)))


def _check_proc(path: str, kind: str) -> None:
    """Nothing but a procfs may pose as one: later steps write into it and believe what they read (CVE-2019-16884)."""
    path = os.path.normpath(path)
    if (path == "/proc" and kind != "proc") or (path.startswith("/proc/") and path[6:] not in _OVER_PROC):
        raise StartError(f"mount {path}: cannot be mounted because it is inside /proc")


def _copy_up(source: int, target: int) -> None:
    """Copy what a fresh tmpfs is about to hide into it, by descriptors alone; no link is followed, no device copied."""
    for name in os.listdir(source):
        entry = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(entry.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=target)
            _copy_up(*inner)
            for fd in inner:
                os.close(fd)
        elif stat.S_ISREG(entry.st_mode):
            # Not to wait at a pipe, if somebody who shares the folder puts one there right now.
            reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
            writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
            while os.sendfile(writing, reading, None, 1 << 30):
                pass
            os.close(reading)
            os.close(writing)
        elif stat.S_ISLNK(entry.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            continue
        os.chown(name, entry.st_uid, entry.st_gid, dir_fd=target, follow_symlinks=False)
        if not stat.S_ISLNK(entry.st_mode):
            os.chmod(name, stat.S_IMODE(entry.st_mode), dir_fd=target)


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


def _show_cgroups(root: Root, path: str, attributes: int) -> None:
    """Without a cgroup namespace: the machine's cgroup2, or (v1) this container's group of each hierarchy."""
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        tree = linux.open_tree(-100, "/sys/fs/cgroup", linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
        linux.mount_setattr(tree, "", linux.AT_EMPTY_PATH, attributes, propagation=linux.MS_PRIVATE)
        attach(tree, root.target(path, True))
        return
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        groups = [line.rstrip("\n").split(":", 2)[1:] for line in file]
    top = detached("tmpfs", "tmpfs", ["mode=755"], attributes & ~linux.MOUNT_ATTR_RDONLY)
    linux.move_mount(top, root.target(path, True))
    for controllers, group in groups:
        name = controllers.removeprefix("name=")
        place = f"/sys/fs/cgroup/{name}{group}"
        if not name or not os.path.isdir(place):
            continue
        os.mkdir(name, 0o755, dir_fd=top)
        tree = linux.open_tree(-100, place, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
        linux.mount_setattr(tree, "", linux.AT_EMPTY_PATH, attributes, propagation=linux.MS_PRIVATE)
        attach(tree, os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=top))
        for alias in name.split(",") if "," in name else ():
            os.symlink(name, alias, dir_fd=top)
    linux.mount_setattr(top, "", linux.AT_EMPTY_PATH, attributes & linux.MOUNT_ATTR_RDONLY)
    os.close(top)


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
    entry = os.fstat(null)
    if not stat.S_ISCHR(entry.st_mode) or entry.st_rdev != os.makedev(1, 3):
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
