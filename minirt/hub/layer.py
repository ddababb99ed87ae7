"""A layer, being made: files in, a tar archive out, byte for byte the same wherever it is made.

Nothing of this machine gets in: entries are sorted, owners are numbers, every date is MTIME. `tarfile` and `gzip` would
do, but their bytes differ between Python and zlib versions, and a digest shows it. So the ustar header is written here
(POSIX.1-2017, pax, "ustar Interchange Format"), and the gzip of small layers holds stored blocks (RFC 1951, 3.2.4).
Invariant: parents come before children, and a hard link after the file it names. Taught in chapter 05.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass

from minirt.errors import Unsupported
from minirt.image.digest import Digest

MTIME = 1704067200  # seconds: 2024-01-01T00:00:00Z, the date of everything the hub makes
CREATED = "2024-01-01T00:00:00Z"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # docker's, in every sample image
_BLOCK = 512
_FILE, _HARDLINK, _SYMLINK, _FOLDER = b"0", b"1", b"2", b"5"


@dataclass(frozen=True)
class Layer:
    """`content`: the gzip archive, as a registry serves it. `diff_id`: the digest of the tar inside."""

    content: bytes
    diff_id: Digest


class Tree:
    """The files of one layer. Paths have no leading slash; missing parents become folders of root, 0755."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[bytes, int, int, str, bytes]] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def folder(self, path: str, mode: int = 0o755, owner: int = 0) -> None:
        self._put(path, _FOLDER, mode, owner)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._put(path, _FILE, mode, content=content)

    def symlink(self, path: str, target: str) -> None:
        self._put(path, _SYMLINK, 0o777, target=target)

    def hardlink(self, path: str, target: str) -> None:
        """`target` is a file of this tree, by its path in it."""
        self._put(path, _HARDLINK, 0o755, target=target)

    def _put(self, path: str, kind: bytes, mode: int, owner: int = 0, target: str = "", content: bytes = b"") -> None:
        parent = path.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.folder(parent)
        self._entries[path] = (kind, mode, owner, target, content)

    def tar(self) -> bytes:
        """The archive. Raises Unsupported for a name the format has no room for."""
        out = []
        for path, (kind, mode, owner, target, content) in sorted(
            self._entries.items(), key=lambda item: (item[1][0] == _HARDLINK, item[0])
        ):
            name = path + "/" if kind == _FOLDER else path
            out += [_header(name, kind, mode, owner, target, len(content)), content, bytes(-len(content) % _BLOCK)]
        return b"".join([*out, bytes(2 * _BLOCK)])

    def layer(self, compress: bool = False) -> Layer:
        """The finished layer; `compress` saves space where the digest is this machine's own anyway."""
        archive = self.tar()
        return Layer(gzip.compress(archive, 6, mtime=0) if compress else _stored(archive), Digest.of(archive))


def _header(path: str, kind: bytes, mode: int, owner: int, target: str, size: int) -> bytes:
    """One ustar header: 512 bytes; numbers are octal text; a name over 100 bytes is cut at a slash."""
    name, prefix = path.encode(), b""
    if len(name) > 100:
        cut = name.find(b"/", len(name) - 101)
        name, prefix = name[cut + 1 :], name[: max(cut, 0)]
    if not 0 < len(name) <= 100 or len(prefix) > 155 or len(target.encode()) > 100:
        raise Unsupported(f"a file name is too long for the sample image: {path[:200]!r}")
    fields = [name, b"%07o" % mode, b"%07o" % owner, b"%07o" % owner, b"%011o" % size, b"%011o" % MTIME, b" " * 8]
    fields += [kind, target.encode(), b"ustar", b"00", b"", b"", b"", b"", prefix]
    header = struct.pack("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x", *fields)
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _stored(archive: bytes) -> bytes:
    """`archive` as gzip that is not squeezed: no compressor, so no compressor's version shows in the bytes."""
    step = 0xFFFF
    blocks = []
    for at in range(0, len(archive), step):
        block = archive[at : at + step]
        last = at + step >= len(archive)
        blocks.append(struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF) + block)
    end = struct.pack("<II", zlib.crc32(archive), len(archive) & 0xFFFFFFFF)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"".join(blocks) + end
