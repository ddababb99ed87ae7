"""The file worker: a process of its own that sees a container's files as the container does, and is not in it.

It stands where the container's shim does (of a running one in its very namespaces, for the rest in new ones of the same
mapping), in a mount namespace that ends with it. There it lays the container's binds and volumes over the root file
system, but no /proc, /sys, /dev or tmpfs, as docker does for `cp`. The root is a descriptor, under which the kernel
looks every path up (openat2, RESOLVE_IN_ROOT, no magic links): no link of the image's or of a running command's leads
out, and nothing that lies there is loaded or executed, for our own root stays the machine's (CVE-2018-15664,
CVE-2019-14271).

Data goes by stdin and stdout; answers by the descriptor `answer`, JSON lines: perhaps `{"stat"}`, last `{"done"}` or
`{"error", "text"}`. Sources: moby daemon/archive.go, openat2(2), setns(2). Taught in chapter 06.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import signal
import stat
from collections.abc import Callable, Iterable
from typing import Any

from minirt import errors, linux
from minirt.runtime import mounts, prepare, rootfs, state, user
from minirt.store import pack, shared, tar
from minirt.store.applier import Owner
from minirt.store.diff import DELETED, Diff
from minirt.store.extract import Extractor
from minirt.store.inflate import inflate
from minirt.store.tree import Tree
from minirt.userns import IdMapping, become_root

_CHUNK = 1 << 18
_HOLD = os.O_PATH | os.O_CLOEXEC if hasattr(os, "O_PATH") else 0
_KERNEL_TREES = ("/proc", "/sys", "/dev")
_OVERFLOW = 65534  # who has no id here, user_namespaces(7)
# What the runtime makes in the root file system to mount on; docker keeps its own in a layer that it never shows.
STUBS = frozenset(
    {b"dev", b"dev/console", b"dev/pts", b"dev/shm", b"dev/mqueue", b"proc", b"sys", b"etc", b"etc/hosts",
     b"etc/hostname", b"etc/resolv.conf"}
)  # fmt: skip
# Go's os.FileMode beside the permissions.
_GO_KINDS = {
    stat.S_IFDIR: 1 << 31, stat.S_IFLNK: 1 << 27, stat.S_IFIFO: 1 << 25, stat.S_IFSOCK: 1 << 24,
    stat.S_IFCHR: 1 << 26 | 1 << 21, stat.S_IFBLK: 1 << 26,
}  # fmt: skip
_GO_BITS = {stat.S_ISUID: 1 << 23, stat.S_ISGID: 1 << 22, stat.S_ISVTX: 1 << 20}


def main(job: str) -> int:
    """Do one job, a JSON object with `action`. The exit status is 0 if it could answer."""
    words = json.loads(job)
    answer: dict[str, Any]
    try:
        view = View(words)
        answer = {"done": _ACTIONS[words["action"]](view, words)}
    except errors.MinirtError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    except BrokenPipeError:
        return 1  # nobody listens any more
    except OSError as error:
        answer = {"error": "StoreError", "text": _text(error)}
        if error.errno == errno.ENOENT and "path" in words:
            answer["error"] = "FileNotFoundError"
    _say(words, answer)
    return 0


def _text(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on device"
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    return f"{where}: {(error.strerror or str(error)).lower()}".removeprefix(": ")


def _say(words: dict[str, Any], answer: dict[str, Any]) -> None:
    os.write(words["answer"], json.dumps(answer).encode() + b"\n")


def _send(pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        left = memoryview(piece)
        while left:
            left = left[os.write(1, left) :]


class View:
    """The container in `folder`. `root` is its root, `config` its config.json.

    Words: folder, ids, binds (its binds and volumes are to be seen), and what the action wants.
    """

    def __init__(self, words: dict[str, Any]) -> None:
        self.folder: str = words["folder"]
        self.ids = IdMapping.from_json(words["ids"])
        config, snapshot = (state.read_json(os.path.join(self.folder, f"{name}.json")) for name in ("config", "rootfs"))
        if not os.path.exists(self.folder):  # removed since we were asked
            raise errors.NotFound(f"No such container: {os.path.basename(self.folder)}")
        if config is None or snapshot is None:
            raise errors.StoreError("config.json or rootfs.json of the container is missing or torn")
        self.config, self.snapshot = config, snapshot
        if not self.ids.faked:
            self._enter()
            linux.prctl(linux.PR_SET_DUMPABLE, 0)
        self.root = mounts.Root(os.path.join(self.folder, "rootfs"))
        if words.get("binds"):
            for entry in config.get("mounts") or ():
                if mounts.is_bind(entry) and not entry["source"].startswith("/proc/"):
                    self._bind(entry, words["path"])

    def _enter(self) -> None:
        run = state.read_json(os.path.join(self.folder, "run.json"))
        shim = state.open_process(run, "shim") if run else None
        if shim is None or run is None:
            become_root(self.ids)
            if self.snapshot["kind"] == "fuse-overlayfs":
                _end_with_us()
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
            rootfs.mount(self.folder, self.snapshot, prepare.mapping(self.config))
            return
        kinds = {"user": linux.CLONE_NEWUSER} if self.ids.rootless else {}
        kinds["mnt"] = linux.CLONE_NEWNS
        fds = {kind: os.open(f"/proc/{run['shim']['pid']}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds}
        if state.ended(shim, 0):  # then these may be of another process that got its number
            raise errors.Conflict("the container ended this moment: try again")
        for kind, flag in kinds.items():
            linux.setns(fds[kind], flag)
            if kind == "user":
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)

    def _bind(self, entry: dict[str, Any], path: str) -> None:
        target = posixpath.normpath(entry["destination"])
        if any(target == tree or target.startswith(tree + "/") for tree in _KERNEL_TREES):
            return
        if not self.ids.faked:
            mounts.mount(self.root, entry, self.folder, None, False)
        elif (posixpath.normpath("/" + path.lstrip("/")) + "/").startswith(target + "/"):
            raise errors.Unsupported(f"{target} is a mount, which can be copied only where namespaces are allowed")

    def owners(self, uid: int, gid: int) -> tuple[int, int]:
        """The container's numbers for those on disk, where no user namespace does that for us."""
        rows = self._rows()
        return (_shifted(uid, rows.uids, 1), _shifted(gid, rows.gids, 1)) if rows.uids else (uid, gid)

    def outside(self, uid: int, gid: int) -> tuple[int, int]:
        """The other way round. Raises InvalidInput for a number that the container has not."""
        rows = self._rows()
        if not rows.uids or self.ids.single:
            return uid, gid
        found = _shifted(uid, rows.uids, 0), _shifted(gid, rows.gids, 0)
        if _OVERFLOW in found and _OVERFLOW not in (uid, gid):
            raise errors.InvalidInput(f"owner {uid}:{gid} does not exist in this container's user namespace")
        return found

    def _rows(self) -> IdMapping:
        if self.snapshot.get("idmap"):
            return prepare.mapping(self.config)
        return self.ids if self.ids.faked else IdMapping()

    def owner(self) -> Owner:
        """What we may do to files here."""
        return Owner(not self.ids.single, mknod=not self.ids.rootless, closed=not self.ids.faked)

    def find(self, path: str) -> tuple[int, bytes, str]:
        """What a path of the container means, as docker reads it: the directory it is in, its name there (empty for
        that directory itself), and what an archive calls it. Raises OSError."""
        full = posixpath.normpath("/" + path.lstrip("/"))
        if posixpath.basename(path) == ".":
            full = full.rstrip("/") + "/."
        elif path.endswith("/") and full != "/":
            full += "/"
        above, _, name = full.rpartition("/")
        name = "" if name == "." else name
        parent = self.root.open(above or "/", _HOLD)
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return parent, os.fsencode(name), posixpath.basename(full.rstrip("/")) or "/"

    def where(self, fd: int) -> str:
        """The path in the container of what a descriptor holds."""
        base, real = (os.readlink(f"/proc/self/fd/{number}") for number in (self.root.fd, fd))
        return "/" + real.removeprefix(base.rstrip("/")).lstrip("/")

    def stat(self, parent: int, name: bytes, called: str) -> dict[str, Any]:
        """docker's ContainerPathStat."""
        status = os.stat(name, dir_fd=parent, follow_symlinks=False) if name else os.fstat(parent)
        mode = status.st_mode & 0o777 | _GO_KINDS.get(stat.S_IFMT(status.st_mode), 0)
        link = ""
        if stat.S_ISLNK(status.st_mode):
            above, target = self.where(parent), os.readlink(name, dir_fd=parent)
            link = posixpath.normpath(posixpath.join(above, os.fsdecode(target)))
            try:
                end = self.root.open(posixpath.join(above, os.fsdecode(name)), _HOLD)
            except FileNotFoundError:
                pass  # a dangling one: what it says is all there is
            else:
                link = self.where(end)
                os.close(end)
        return {
            "name": called,
            "size": status.st_size,
            "mode": mode | sum(go for bit, go in _GO_BITS.items() if status.st_mode & bit),
            "mtime": status.st_mtime_ns,
            "linkTarget": link,
        }


def _shifted(number: int, rows: tuple[tuple[int, int, int], ...], column: int) -> int:
    """From one column of a mapping (0 inside, 1 outside) to the other."""
    found = (row[1 - column] + number - row[column] for row in rows if 0 <= number - row[column] < row[2])
    return next(found, _OVERFLOW)


def _same(uid: int, gid: int) -> tuple[int, int]:
    return uid, gid


def _end_with_us() -> None:
    """Go on in a pid namespace, so that the program that mounts for us is gone when we are, also by kill -9."""
    linux.unshare(linux.CLONE_NEWPID)
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


def _stat(view: View, words: dict[str, Any]) -> dict[str, Any]:
    """Words: path."""
    return view.stat(*view.find(words["path"]))


def _get(view: View, words: dict[str, Any]) -> dict[str, Any]:
    """Words: path."""
    parent, name, called = view.find(words["path"])
    _say(words, {"stat": view.stat(parent, name, called)})
    _send(pack.Packer(view.owners).tree(parent, name, os.fsencode(called)))
    _send([pack.END])
    return {}


def _put(view: View, words: dict[str, Any]) -> dict[str, Any]:
    """Words: path, kinds_stay, user (whose everything is to be; None: as the archive says)."""
    place = view.root.open("/" + words["path"].lstrip("/"), _HOLD)
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        raise errors.InvalidInput("extraction point is not a directory")
    owners = view.outside
    if words["user"]:
        who = user.resolve(view.root, words["user"])
        owner = view.outside(who["uid"], who["gid"])

        def owners(uid: int, gid: int) -> tuple[int, int]:
            return owner

    extractor = Extractor(place, view.owner(), owners, words["kinds_stay"], view.where(place))
    reader = tar.Reader(inflate(lambda: os.read(0, _CHUNK), 1 << 44, 1000))
    extractor.run(reader)
    reader.drain()
    return {"notes": dict(extractor.notes)}


def _export(view: View, words: dict[str, Any]) -> dict[str, Any]:
    """The whole tree; first `{"stat"}`, when it is in sight."""
    _say(words, {"stat": {}})
    _send(pack.Packer(view.owners).tree(view.root.fd, b"", b""))
    _send([pack.END])
    return {}


def _diff(view: View, words: dict[str, Any]) -> list[Any]:
    lowers = [os.fsencode(path) for path in words["lowers"]]
    upper = view.snapshot.get("upper")
    opened = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if upper else None
    owners = view.owners if view.snapshot.get("idmap") else _same  # else the layers' owners are as the tree's
    prefix = "user.overlay." if view.ids.rootless else "trusted.overlay."
    others = tuple(os.fsencode(path) + b"/" for path in view.snapshot.get("shared", ()))

    def seen(path: bytes) -> os.stat_result | shared.Seen:
        return shared.seen(path, view.ids.single) if path.startswith(others) else os.lstat(path)

    diff = Diff(prefix, owners, STUBS, words["action"] == "layer", seen if others else os.lstat)
    tree = os.open(f"/proc/self/fd/{view.root.fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return diff.run(tree, lowers, opened)


def _changes(view: View, words: dict[str, Any]) -> list[dict[str, Any]]:
    """Words: lowers (top first)."""
    return [{"Path": "/" + os.fsdecode(change.path), "Kind": change.kind} for change in _diff(view, words)]


def _layer(view: View, words: dict[str, Any]) -> dict[str, Any]:
    """Words: lowers. What changed, as a layer's archive; first `{"stat"}`, as above."""
    changes, packer = _diff(view, words), pack.Packer(view.owners)
    _say(words, {"stat": {}})
    tree = Tree(f"/proc/self/fd/{view.root.fd}")
    for kind, path in changes:
        if kind == DELETED:
            _send([pack.whiteout(path)])
            continue
        above, _, name = path.rpartition(b"/")
        try:
            parent = tree.directory(above)
        except (FileNotFoundError, NotADirectoryError):  # gone since we looked
            continue
        _send(packer.one(parent, name, path))
    _send([pack.END])
    return {}


def _populate(view: View, words: dict[str, Any]) -> dict[str, Any]:
    """Words: volumes, [destination, folder] of each. What the image has there goes into a volume that is empty."""
    for destination, folder in words["volumes"]:
        target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            source = view.root.open(destination, _HOLD)
        except FileNotFoundError:
            if view.snapshot.get("idmap") and not os.listdir(target):
                os.chown(target, *view.outside(0, 0))  # or it would be nobody's in there
            continue
        status = os.fstat(source)
        if not stat.S_ISDIR(status.st_mode):
            raise errors.InvalidInput(f"cannot mount volume over existing file, file exists {destination}")
        if os.listdir(target):
            continue
        pieces = pack.Packer(precise=True).tree(source, b"", b"")
        extractor = Extractor(target, view.owner(), _same, False)
        extractor.run(tar.Reader(_source(pieces)))
        if not view.ids.single:
            os.chown(target, status.st_uid, status.st_gid)
        os.chmod(target, stat.S_IMODE(status.st_mode))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    return {}


def _source(pieces: Iterable[bytes]) -> Callable[[], bytes]:
    rest = iter(pieces)
    return lambda: next(rest, b"")


_ACTIONS: dict[str, Callable[[View, dict[str, Any]], Any]] = {
    "stat": _stat,
    "get": _get,
    "put": _put,
    "export": _export,
    "changes": _changes,
    "layer": _layer,
    "populate": _populate,
}
