"""Applying a layer's tar to an empty folder, in overlay form: the folder can be an overlayfs lower as it is.

A whiteout `.wh.x` becomes a character device 0:0 named `x`; `.wh..wh..opq` becomes the xattr `overlay.opaque=y` on its
directory; both only ever hide names of *lower* layers (image-spec layer.md, "Whiteouts"; kernel overlayfs.rst). So each
layer unpacks alone, in any order. Later entries replace earlier ones of the same name, whatever their types.
Safe by construction: parents are opened beneath the folder without following links, entries are created O_EXCL, links
are made between two such parents. What an image may not bring: devices where it is not root, overlay's own xattrs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from minirt.errors import UnpackError
from minirt.store import shared, tar
from minirt.store.limits import Limits, OverLimit
from minirt.store.tree import Tree, remove

OPAQUE = b".wh..wh..opq"
WHITEOUT = b".wh."
MAX_PATH = 4096
_NOTES = 20  # kinds of them
REFUSED_XATTRS = (
    "trusted.",
    "user.overlay.",
    "user.fuseoverlayfs.",
    "user.containers.",
    "system.nfs4",
    "security.ima",
    "security.evm",
    "security.selinux",
)


class Owner(NamedTuple):
    """What this process may do to files: `chown` to any id (else all files are ours), `mknod`, and its xattr prefix.

    With the prefix `plain` whiteouts stay `.wh.` files. Not `closed`: what shuts its owner out is opened for them, for
    without a user namespace we have no rights over our own files but those their modes give. `masked`: owners and modes
    are only recorded, for the layer is other users' too (shared.py).
    """

    chown: bool = True
    mknod: bool = True
    xattr: str = "trusted"
    closed: bool = True
    masked: bool = False


class Applier:
    """Applies entries one by one to `root`. `size` sums regular files, in bytes; `notes` what was left out."""

    def __init__(self, root: str | os.PathLike[str], owner: Owner, limits: Limits) -> None:
        self._tree = Tree(root)
        self._owner = owner
        self._limits = limits
        self._made: dict[bytes, int] = {}  # directories of this layer: path → mtime, set last (children change it)
        self._whiteouts: set[bytes] = set()
        self.nobody = False  # has it something of that user's, or group's?
        self.folders: set[bytes] = set()  # where masked: those that are not root's with 0755
        self.size = 0
        self.entries = 0
        self.notes: Counter[str] = Counter()
        self._plain = owner.xattr == "plain"
        self._opened = (0, 0) if owner.closed else (0o600, 0o700)  # for files, for directories
        if owner.masked:  # what the archive does not list, too
            self._tree.made = lambda fd: shared.mask(f"/proc/self/fd/{fd}", 0, 0, 0o755, directory=True)
            self._tree.made(self._tree.root)

    def run(self, reader: tar.Reader) -> None:
        """Apply everything `reader` yields, then set the directories' times. Raises UnpackError naming the entry."""
        before = os.umask(0)
        entry: tar.Entry | None = None
        try:
            for entry in reader:
                self.entries += 1
                if self.entries > self._limits.entries:
                    raise OverLimit("entries", f"layer has more than {self._limits.entries} entries")
                self._apply(entry, reader)
            entry = None
            self._finish()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS) or entry is None:
                raise
            raise UnpackError(f"cannot unpack {_shown(entry.name)}: {_reason(error)}") from error
        finally:
            self._tree.close()
            os.umask(before)

    def _apply(self, entry: tar.Entry, reader: tar.Reader) -> None:
        path = clean(entry.name)
        if path.count(b"/") > self._limits.depth:
            raise OverLimit("depth", f"entry {_shown(entry.name)} lies deeper than {self._limits.depth} directories")
        above, _, name = path.rpartition(b"/")
        if name.startswith(WHITEOUT):
            self._whiteout(above, name)
            return
        if b"/" + WHITEOUT in b"/" + above:
            raise UnpackError(f"entry {_shown(entry.name)} lies inside a whiteout")
        parent = self._tree.directory(above, create=True)
        self.nobody = self.nobody or shared.NOBODY in (entry.uid, entry.gid)
        if self._plain and path in self._whiteouts:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(WHITEOUT + name, dir_fd=parent)
        self._make(entry, path, parent, reader)

    def _make(self, entry: tar.Entry, path: bytes, parent: int, reader: tar.Reader) -> None:
        """Make the entry, in place of what has its name."""
        above, _, name = path.rpartition(b"/")
        if entry.type == tar.DIRECTORY:
            self._directory(entry, path, name, parent)
            return
        if not path:
            raise UnpackError(f"entry {_shown(entry.name)} would replace the layer's root")
        maker = self._MAKERS.get(entry.type)
        if maker is None:
            raise UnpackError(f"entry {_shown(entry.name)} has the unknown type {entry.type!r}")
        try:
            maker(self, entry, name, parent, reader)
        except FileExistsError:
            self._replace(path, name, parent)
            maker(self, entry, name, self._tree.directory(above), reader)

    def _replace(self, path: bytes, name: bytes, parent: int) -> None:
        """Make room for an entry of another kind; what stood there came from this layer too."""
        remove(name, parent)
        self._tree.forget()
        for made in [made for made in self._made if made == path or made.startswith(path + b"/")]:
            del self._made[made]

    def _whiteout(self, above: bytes, name: bytes) -> None:
        if name == OPAQUE:
            self._set_opaque(self._tree.directory(above, create=True))
            return
        hidden = name[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise UnpackError(f"whiteout {_shown(above + b'/' + name)} names nothing that can be hidden")
        if hidden.startswith(WHITEOUT):  # AUFS's own bookkeeping, which docker leaves out too
            self.notes["AUFS metadata left out"] += 1
            return
        if b"/" + WHITEOUT in b"/" + above:
            raise UnpackError(f"entry {_shown(above + b'/' + name)} lies inside a whiteout")
        parent = self._tree.directory(above, create=True)
        path = above + b"/" + hidden if above else hidden
        try:
            if self._plain:
                _leave(name, hidden, parent)
            else:
                os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)
            self._whiteouts.add(path)
        except FileExistsError:
            # Whiteouts hide lower layers only, so what this layer made stays; a directory must not merge with below.
            if stat.S_ISDIR(os.stat(hidden, dir_fd=parent, follow_symlinks=False).st_mode):
                self._set_opaque(self._tree.directory(path))

    def _set_opaque(self, fd: int) -> None:
        if self._plain:
            with contextlib.suppress(FileExistsError):
                _leave(OPAQUE, OPAQUE, fd)
            return
        os.setxattr(f"/proc/self/fd/{fd}", f"{self._owner.xattr}.overlay.opaque", b"y")

    def _directory(self, entry: tar.Entry, path: bytes, name: bytes, parent: int) -> None:
        if path:
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    self._replace(path, name, parent)
                    parent = self._tree.directory(path.rpartition(b"/")[0])
                    os.mkdir(name, 0o700, dir_fd=parent)
            if path in self._whiteouts:
                self._set_opaque(self._tree.directory(path))
        self._made[path] = entry.mtime
        target = self._tree.directory(path)
        via = f"/proc/self/fd/{target}"  # O_PATH descriptors take no fchmod; this magic link is ours, not the image's
        self._chown(via, entry)
        self._chmod(via, entry, self._opened[1])
        if path and self._owner.masked and (entry.uid, entry.gid, entry.mode & 0o7777) != (0, 0, 0o755):
            self.folders.add(path)
        self._set_xattrs(via, entry)

    def _regular(self, entry: tar.Entry, name: bytes, parent: int, reader: tar.Reader) -> None:
        if entry.size > self._limits.file_size:
            size = self._limits.file_size
            raise OverLimit("file_size", f"file {_shown(entry.name)} is larger than the limit of {size} bytes")
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        try:
            if entry.sparse is None:
                for piece in reader.body():
                    _write(fd, piece)
            else:
                _write_sparse(fd, entry, reader)
            self.size += entry.size
            self._chown(fd, entry)
            self._chmod(fd, entry, self._opened[0])
            self._set_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _hardlink(self, entry: tar.Entry, name: bytes, parent: int, reader: tar.Reader) -> None:
        above, _, target = clean(entry.linkname).rpartition(b"/")
        try:
            source = self._tree.directory(above)
            os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise UnpackError(
                f"hard link {_shown(entry.name)} points to {_shown(entry.linkname)}, which is not in this layer"
            ) from None

    def _symlink(self, entry: tar.Entry, name: bytes, parent: int, reader: tar.Reader) -> None:
        os.symlink(entry.linkname, name, dir_fd=parent)
        self._metadata(entry, name, parent)

    def _fifo(self, entry: tar.Entry, name: bytes, parent: int, reader: tar.Reader) -> None:
        os.mkfifo(name, 0o600, dir_fd=parent)
        self._metadata(entry, name, parent)

    def _device(self, entry: tar.Entry, name: bytes, parent: int, reader: tar.Reader) -> None:
        if not 0 <= entry.major < 1 << 12 or not 0 <= entry.minor < 1 << 20:
            raise UnpackError(f"device {_shown(entry.name)} has numbers out of range ({entry.major}, {entry.minor})")
        if entry.type == tar.CHARACTER and entry.major == entry.minor == 0:
            raise UnpackError(f"device {_shown(entry.name)} is 0:0, which is overlay's own mark of a whiteout")
        if not self._owner.mknod:
            self.notes["device nodes left out (only root can make them)"] += 1
            return
        kind = stat.S_IFCHR if entry.type == tar.CHARACTER else stat.S_IFBLK
        os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=parent)
        self._metadata(entry, name, parent)

    _MAKERS: dict[bytes, Callable[[Applier, tar.Entry, bytes, int, tar.Reader], None]] = {
        tar.REGULAR: _regular,
        tar.HARDLINK: _hardlink,
        tar.SYMLINK: _symlink,
        tar.FIFO: _fifo,
        tar.CHARACTER: _device,
        tar.BLOCK_DEVICE: _device,
    }

    def _metadata(self, entry: tar.Entry, name: bytes, parent: int) -> None:
        """Owner, mode, xattrs, mtime of something that must not be opened. It was just made here: none can swap it."""
        if self._owner.chown:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.type != tar.SYMLINK:
            os.chmod(name, 0o644 if self._owner.masked else entry.mode | self._opened[0], dir_fd=parent)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _chmod(self, file: int | str, entry: tar.Entry, opened: int) -> None:
        if self._owner.masked:
            shared.mask(file, entry.uid, entry.gid, entry.mode, entry.type == tar.DIRECTORY)
        else:
            os.chmod(file, entry.mode | opened)

    def _chown(self, file: int | str, entry: tar.Entry) -> None:
        if self._owner.masked:
            return
        if self._owner.chown:
            os.chown(file, entry.uid, entry.gid)
        elif entry.uid or entry.gid:
            self.notes["owners left out (only one user id exists here)"] += 1

    def _set_xattrs(self, file: int | str, entry: tar.Entry) -> None:
        for key, value in entry.xattrs.items():
            if key.startswith(REFUSED_XATTRS) or (self._owner.masked and not key.startswith("user.")):
                self._leave_out(key, "")
                continue
            try:
                os.setxattr(file, key, value)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                    raise
                self._leave_out(key, f" ({_reason(error)})")

    def _leave_out(self, key: str, why: str) -> None:
        """Names of xattrs are the image's words: on one line, and not more of them than anybody reads."""
        shown = "".join(letter if letter.isprintable() else "?" for letter in key[:60])
        note = f"xattr {shown} left out{why}"
        self.notes[note if note in self.notes or len(self.notes) < _NOTES else "other xattrs left out"] += 1

    def _finish(self) -> None:
        for path, mtime in self._made.items():
            os.utime(f"/proc/self/fd/{self._tree.directory(path)}", ns=(mtime, mtime))


def clean(name: bytes) -> bytes:
    """The entry's path under the root: lexically normal, relative, without `..`; empty for the root itself.

    Raises UnpackError for a path that leaves the root, as docker does; an absolute path starts at the root.
    """
    if not name:
        raise UnpackError("entry has an empty name")
    path = posixpath.normpath(b"/" + name if name.startswith(b"/") else name).lstrip(b"/")
    if path == b".." or path.startswith(b"../"):
        raise UnpackError(f"entry {_shown(name)} is outside of the layer")
    if len(path) >= MAX_PATH:
        raise UnpackError(f"entry {_shown(name)} has a path of over {MAX_PATH - 1} bytes")
    return b"" if path == b"." else path


def _leave(name: bytes, hidden: bytes, parent: int) -> None:
    """Keep a plain whiteout of `hidden`. FileExistsError where that came in this layer too."""
    try:
        os.stat(hidden, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o600, dir_fd=parent))
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), hidden)


def _write(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece) :]


def _write_sparse(fd: int, entry: tar.Entry, reader: tar.Reader) -> None:
    regions = iter(entry.sparse or [])
    offset, length = next(regions, (0, 0))
    for piece in reader.body():
        while piece:
            while not length:
                try:
                    offset, length = next(regions)
                except StopIteration:
                    raise UnpackError(f"sparse file {_shown(entry.name)} has more data than its map") from None
            written = os.pwrite(fd, piece[:length], offset)
            piece, offset, length = piece[written:], offset + written, length - written
    if length or any(rest for _, rest in regions):
        raise UnpackError(f"sparse file {_shown(entry.name)} has less data than its map")
    os.ftruncate(fd, entry.size)


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "a symbolic link stands in its path"
    if error.errno == errno.EINVAL:
        return "its owner or mode does not exist here (for a plain user: outside the range in /etc/subuid)"
    return error.strerror or str(error)


def _shown(name: bytes) -> str:
    return repr(name[:200].decode("utf-8", "replace"))
