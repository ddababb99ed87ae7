"""A tree as a tar stream: the applier's way back, in bounded memory.

Every file is held by a descriptor before anything is asked of it, so a tree that changes meanwhile (a running
container's) leads nowhere else; what has become shorter is filled up with zeros. Headers are ustar, with PAX records
where that has no room. Times are whole seconds, as docker writes them, unless asked otherwise. Of several names of one
file the first has its content. Sockets are left out: there is no tar of them.
Source: POSIX pax(1); moby pkg/archive. Taught in chapter 05.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator

from minirt.errors import StoreError
from minirt.store import tar
from minirt.store.applier import REFUSED_XATTRS

END = bytes(2 * tar.BLOCK)
_CHUNK = 1 << 18
_DEPTH = 400  # levels, each with a descriptor open
_OCTAL7, _OCTAL11 = 8**7 - 1, 8**11 - 1
_BODY = os.O_RDONLY | os.O_CLOEXEC if hasattr(os, "O_CLOEXEC") else 0
_HOLD = getattr(os, "O_PATH", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_KINDS = {
    stat.S_IFREG: tar.REGULAR, stat.S_IFLNK: tar.SYMLINK, stat.S_IFDIR: tar.DIRECTORY, stat.S_IFIFO: tar.FIFO,
    stat.S_IFCHR: tar.CHARACTER, stat.S_IFBLK: tar.BLOCK_DEVICE,
}  # fmt: skip

Owners = Callable[[int, int], tuple[int, int]]


def header(entry: tar.Entry) -> bytes:
    """The blocks before the entry's body."""
    records = {b"SCHILY.xattr." + os.fsencode(key): value for key, value in entry.xattrs.items()}
    for key, text in (b"path", entry.name), (b"linkpath", entry.linkname):
        if len(text) > 100:
            records[key] = text
    fields = []
    for key, number, most in (
        (b"uid", entry.uid, _OCTAL7),
        (b"gid", entry.gid, _OCTAL7),
        (b"size", entry.size, _OCTAL11),
    ):
        fields.append(number if number <= most else 0)
        if number > most:
            records[key] = b"%d" % number
    seconds, rest = divmod(entry.mtime, 10**9)
    if rest or not 0 <= seconds <= _OCTAL11:
        whole, part = divmod(abs(entry.mtime), 10**9)
        records[b"mtime"] = b"%s%d.%09d" % (b"-" if entry.mtime < 0 else b"", whole, part)
    blocks = b""
    if records:
        content = b"".join(_record(key, value) for key, value in records.items())
        blocks = _ustar(b"PaxHeaders.0/" + entry.name[-80:], b"x", 0o644, (0, 0, len(content)), 0, b"", 0, 0)
        blocks += content + bytes(-len(content) % tar.BLOCK)
    mtime = min(max(seconds, 0), _OCTAL11)
    uid, gid, size = fields
    return blocks + _ustar(
        entry.name[:100],
        entry.type,
        entry.mode,
        (uid, gid, size),
        mtime,
        entry.linkname[:100],
        entry.major,
        entry.minor,
    )


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, the length counting itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _ustar(
    name: bytes, kind: bytes, mode: int, numbers: tuple[int, int, int], mtime: int, link: bytes, major: int, minor: int
) -> bytes:
    uid, gid, size = numbers
    block = tar.HEADER.pack(
        name, b"%07o" % mode, b"%07o" % uid, b"%07o" % gid, b"%011o" % size, b"%011o" % mtime, b" " * 8, kind, link,
        b"ustar\00000", b"", b"", b"%07o" % major, b"%07o" % minor, b"",
    )  # fmt: skip
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


class Packer:
    """Yields the archive in pieces, none empty; END is the caller's. `owners` turns the disk's ids into the archive's.

    `precise`: times to the nanosecond.
    """

    def __init__(self, owners: Owners = lambda uid, gid: (uid, gid), precise: bool = False) -> None:
        self._owners, self._precise = owners, precise
        self._names: dict[tuple[int, int], bytes] = {}

    def tree(self, parent: int, name: bytes, path: bytes, depth: int = _DEPTH) -> Iterator[bytes]:
        """`name` in the directory `parent` and all below it, as `path`; what vanishes meanwhile is passed over.

        An empty `name` is `parent` itself.
        """
        try:
            held = os.open(name, _HOLD, dir_fd=parent) if name else os.dup(parent)
        except FileNotFoundError:
            return
        try:
            yield from self._one(held, path)
            if stat.S_ISDIR(os.fstat(held).st_mode):
                if not depth:
                    raise StoreError(f"{os.fsdecode(path[:200])!r} lies deeper than {_DEPTH} directories")
                for below in names(held):
                    yield from self.tree(held, below, (path.rstrip(b"/") + b"/" if path else b"") + below, depth - 1)
        finally:
            os.close(held)

    def one(self, parent: int, name: bytes, path: bytes) -> Iterator[bytes]:
        """The same without what is below."""
        with contextlib.suppress(FileNotFoundError):
            held = os.open(name, _HOLD, dir_fd=parent)
            try:
                yield from self._one(held, path)
            finally:
                os.close(held)

    def _one(self, held: int, path: bytes) -> Iterator[bytes]:
        status = os.fstat(held)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None or not path:
            return
        mtime = status.st_mtime_ns if self._precise else status.st_mtime_ns // 10**9 * 10**9
        uid, gid = self._owners(status.st_uid, status.st_gid)
        entry = tar.Entry(path, kind, stat.S_IMODE(status.st_mode), uid, gid, 0, mtime, b"")
        if kind == tar.DIRECTORY:
            entry.name = path.rstrip(b"/") + b"/"
        elif status.st_nlink > 1:
            known = self._names.setdefault((status.st_dev, status.st_ino), path)
            if known != path:
                entry.type, entry.linkname = tar.HARDLINK, known
                yield header(entry)
                return
        if kind == tar.SYMLINK:
            entry.linkname = os.fsencode(os.readlink(b"", dir_fd=held))
        elif kind in (tar.CHARACTER, tar.BLOCK_DEVICE):
            entry.major, entry.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        else:
            entry.xattrs = _xattrs(f"/proc/self/fd/{held}")
        if kind != tar.REGULAR:
            yield header(entry)
            return
        entry.size = status.st_size
        body = os.open(f"/proc/self/fd/{held}", _BODY)
        try:
            yield header(entry)
            left = entry.size
            while left and (piece := os.read(body, min(_CHUNK, left))):
                left -= len(piece)
                yield piece
        finally:
            os.close(body)
        left += -entry.size % tar.BLOCK
        while left:
            yield bytes(min(_CHUNK, left))
            left -= min(_CHUNK, left)


def whiteout(path: bytes) -> bytes:
    """The entry that hides `path` of the layers below (image-spec layer.md)."""
    above, slash, name = path.rpartition(b"/")
    return header(tar.Entry(above + slash + b".wh." + name, tar.REGULAR, 0, 0, 0, 0, 0, b""))


def names(fd: int) -> list[bytes]:
    """What is in the directory behind an O_PATH descriptor, sorted."""
    return sorted(os.fsencode(name) for name in os.listdir(f"/proc/self/fd/{fd}"))


def _xattrs(place: str) -> dict[str, bytes]:
    """Those that are the file's own, none of the machine's or the overlay's."""
    found = {}
    with contextlib.suppress(OSError):  # a file system without any
        for key in os.listxattr(place):
            mine = key.startswith(("user.", "system.posix_acl_")) and not key.startswith(REFUSED_XATTRS)
            if mine or key == "security.capability":
                with contextlib.suppress(OSError):
                    found[key] = os.getxattr(place, key)
    return found
