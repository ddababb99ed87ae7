"""Reading a tar stream: header blocks in, entries out, in one pass and bounded memory.

Formats: v7, ustar, GNU (long names, base-256 numbers, sparse), PAX (records, sparse 0.0/0.1/1.0), star. Where formats
leave room we read as Go's `archive/tar` does, because that is what docker reads layers with: for instance links and
directories never have a body, and a global PAX header is passed over.
Invariant: after an entry is yielded, its body is whatever `body()` has not yet returned; the reader skips the rest.
Names are bytes: tar has no encoding. Source: POSIX pax(1), GNU tar manual "Basic Tar Format". Taught in chapter 05.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator

from minirt.errors import UnpackError

BLOCK = 512
MAX_EXTENSION = 1 << 20  # bytes of one PAX header or GNU long name
MAX_SPARSE = 1 << 16  # regions of one sparse file
MAX_SIZE = 1 << 62

REGULAR, HARDLINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_REGULAR_TYPES = frozenset((b"0", b"\0", b"7", b"S"))
_BODILESS = frozenset((HARDLINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))
HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")
_ZERO = bytes(BLOCK)


class Entry:  # no dataclass: loading those takes a worker 6 ms, a fifth of its start
    """One file of the archive. `size` in bytes as the file will have it; `mtime` in nanoseconds.

    `sparse` lists (offset, length) of the data regions where the archive left the holes out.
    """

    __slots__ = (
        "gid", "linkname", "major", "minor", "mode", "mtime", "name", "size", "sparse", "type", "uid", "xattrs"
    )  # fmt: skip

    def __init__(
        self,
        name: bytes,
        type: bytes,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        mtime: int,
        linkname: bytes,
        major: int = 0,
        minor: int = 0,
        xattrs: dict[str, bytes] | None = None,
        sparse: list[tuple[int, int]] | None = None,
    ) -> None:
        self.name, self.type, self.mode, self.uid, self.gid = name, type, mode, uid, gid
        self.size, self.mtime, self.linkname, self.major, self.minor = size, mtime, linkname, major, minor
        self.xattrs, self.sparse = {} if xattrs is None else xattrs, sparse


class Reader:
    """Entries of the tar stream that `source` returns chunk by chunk (empty bytes at its end)."""

    def __init__(self, source: Callable[[], bytes]) -> None:
        self._source = source
        self._buffer = b""
        self._position = 0
        self._left = 0  # bytes of the current entry's body not yet read
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        records: dict[bytes, bytes] = {}
        long_name = long_link = None
        while True:
            self._skip(self._left + self._padding)
            self._left = self._padding = 0
            block = self._exactly(BLOCK, at_end_ok=True)
            if not block:
                if records or long_name is not None or long_link is not None:
                    raise UnpackError("archive ends after an extended header")
                return
            if block == _ZERO:
                if self._exactly(BLOCK, at_end_ok=True) not in (b"", _ZERO):
                    raise UnpackError("archive has data after its first end block")
                return
            entry = _header(block)
            if entry.type in (b"x", b"L", b"K", b"g"):
                if entry.size > MAX_EXTENSION:
                    raise UnpackError(f"extended header of {entry.size} bytes is over the limit of {MAX_EXTENSION}")
                content = self._exactly(entry.size)
                self._skip(-entry.size % BLOCK)
                if entry.type == b"x":
                    records = _records(content)
                elif entry.type == b"L":
                    long_name = content.partition(b"\0")[0]
                elif entry.type == b"K":
                    long_link = content.partition(b"\0")[0]
                continue
            if long_name is not None:
                entry.name = long_name
            if long_link is not None:
                entry.linkname = long_link
            if records:
                _merge(entry, records)
            if entry.type == b"\0" and entry.name.endswith(b"/"):
                entry.type = DIRECTORY
            if entry.type in _BODILESS:
                entry.size = 0
            self._left = entry.size
            self._padding = -entry.size % BLOCK
            if entry.type == b"S":
                self._old_sparse(entry, block)
            elif records and any(key.startswith(b"GNU.sparse.") for key in records):
                self._pax_sparse(entry, records)
            if entry.type in _REGULAR_TYPES:
                entry.type = REGULAR
            if b"\0" in entry.name or b"\0" in entry.linkname:
                raise UnpackError(f"entry {entry.name[:80]!r} has a NUL byte in its name")
            records, long_name, long_link = {}, None, None
            yield entry

    def body(self) -> Iterator[memoryview]:
        """The current entry's stored bytes, in pieces of the source's own chunks (no copy)."""
        while self._left:
            if self._position == len(self._buffer):
                self._fill("a file's content")
            end = min(len(self._buffer), self._position + self._left)
            piece = memoryview(self._buffer)[self._position : end]
            self._left -= len(piece)
            self._position = end
            yield piece

    def drain(self) -> None:
        """Read the source to its end, so that digests cover every byte."""
        while self._source():
            pass

    def _fill(self, what: str) -> None:
        self._buffer, self._position = self._source(), 0
        if not self._buffer:
            raise UnpackError(f"archive ends in the middle of {what}")

    def _exactly(self, count: int, at_end_ok: bool = False) -> bytes:
        start = self._position
        if len(self._buffer) - start >= count:
            self._position = start + count
            return self._buffer[start : self._position]
        parts = [self._buffer[start:]]
        have = len(parts[0])
        self._buffer, self._position = b"", 0
        while have < count:
            chunk = self._source()
            if not chunk:
                if at_end_ok and not have:
                    return b""
                raise UnpackError("archive ends in the middle of a header")
            parts.append(chunk[: count - have])
            if len(chunk) > count - have:
                self._buffer, self._position = chunk, count - have
            have += len(parts[-1])
        return b"".join(parts)

    def _skip(self, count: int) -> None:
        while count:
            if self._position == len(self._buffer):
                self._fill("a file's content")
            step = min(count, len(self._buffer) - self._position)
            self._position += step
            count -= step

    def _old_sparse(self, entry: Entry, block: bytes) -> None:
        """GNU's old format: four regions in the header, more in blocks that follow it."""
        regions, more, table = [], block[482], block[386:482]
        while True:
            for at in range(0, len(table) - 23, 24):
                if table[at] == 0:
                    break
                regions.append((_number(table[at : at + 12], "offset"), _number(table[at + 12 : at + 24], "length")))
            if not more:
                break
            if len(regions) > MAX_SPARSE:
                raise UnpackError(f"sparse file {entry.name[:80]!r} has more than {MAX_SPARSE} regions")
            extension = self._exactly(BLOCK)
            table, more = extension[:504], extension[504]
        _set_sparse(entry, regions, _number(block[483:495], "real size"))

    def _pax_sparse(self, entry: Entry, records: dict[bytes, bytes]) -> None:
        major, minor = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
        if (major, minor) == (b"1", b"0"):
            numbers = self._sparse_map()
        elif b"GNU.sparse.map" in records:
            numbers = [_decimal(word, "sparse map") for word in records[b"GNU.sparse.map"].split(b",") if word]
        else:
            return
        entry.name = records.get(b"GNU.sparse.name", entry.name)
        real = records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size") or b""
        if len(numbers) % 2 or len(numbers) > 2 * MAX_SPARSE:
            raise UnpackError(f"sparse file {entry.name[:80]!r} has a malformed map")
        _set_sparse(entry, list(zip(numbers[::2], numbers[1::2], strict=True)), _decimal(real, "real size"))

    def _sparse_map(self) -> list[int]:
        """PAX sparse 1.0: the map stands before the data, decimal lines padded to a block; it is part of the size."""
        text = b""
        while True:
            words = text.split(b"\n")
            count = _decimal(words[0], "sparse map") if len(words) > 1 else None
            if count is not None and (count > MAX_SPARSE or len(words) > 2 * count + 1):
                break
            if self._left < BLOCK or len(text) > MAX_EXTENSION:
                raise UnpackError("sparse map is malformed")
            text += self._exactly(BLOCK)
            self._left -= BLOCK
        if count > MAX_SPARSE:
            raise UnpackError(f"sparse file has more than {MAX_SPARSE} regions")
        return [_decimal(word, "sparse map") for word in words[1 : 2 * count + 1]]


def _set_sparse(entry: Entry, regions: list[tuple[int, int]], real_size: int) -> None:
    if not 0 <= real_size <= MAX_SIZE:
        raise UnpackError(f"sparse file {entry.name[:80]!r} has an impossible size")
    end = 0
    for offset, length in regions:
        if offset < end or length < 0 or offset + length > real_size:
            raise UnpackError(f"sparse file {entry.name[:80]!r} has a malformed map")
        end = offset + length
    entry.sparse, entry.size = regions, real_size


def _header(block: bytes) -> Entry:
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, major, minor, prefix = HEADER.unpack(block)
    stated = _number(checksum, "checksum")
    if sum(block) - sum(checksum) + 256 != stated:
        signed = sum(b - 256 if b > 127 else b for b in block[:148] + block[156:]) + 256
        if signed != stated:
            raise UnpackError("not a tar archive (header checksum is wrong)")
    name = name.partition(b"\0")[0]
    if magic[:6] == b"ustar\0" and prefix[0]:
        if block[508:] == b"tar\0":  # star keeps times in the last 24 bytes of the prefix
            prefix = prefix[:131]
        name = prefix.partition(b"\0")[0] + b"/" + name
    entry = Entry(
        name, kind, _number(mode, "mode") & 0o7777, _number(uid, "uid"), _number(gid, "gid"), _number(size, "size"),
        _number(mtime, "mtime") * 1_000_000_000, link.partition(b"\0")[0],
    )  # fmt: skip
    if kind in (CHARACTER, BLOCK_DEVICE):
        entry.major, entry.minor = _number(major, "device"), _number(minor, "device")
    _check(entry)
    return entry


def _check(entry: Entry) -> None:
    if not 0 <= entry.size <= MAX_SIZE:
        raise UnpackError(f"entry {entry.name[:80]!r} has an impossible size")
    if not (0 <= entry.uid < 2**32 - 1 and 0 <= entry.gid < 2**32 - 1):
        raise UnpackError(f"entry {entry.name[:80]!r} has an impossible owner")
    if not -MAX_SIZE <= entry.mtime // 1_000_000_000 <= MAX_SIZE:
        raise UnpackError(f"entry {entry.name[:80]!r} has an impossible time")


@functools.lru_cache(4096)  # modes, owners and times are few
def _number(raw: bytes, what: str) -> int:
    """An octal field, or GNU's base-256 (high bit set, two's complement)."""
    text = raw.strip(b" \0")
    if not text:
        return 0
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ~(1 << (8 * len(raw) - 1))
        return value - (1 << (8 * len(raw) - 1)) if raw[0] & 0x40 else value
    text = text if text.isdigit() else text.partition(b"\0")[0].strip()
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise UnpackError(f"not a tar archive (bad {what} in a header)")
    return int(text, 8)


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 19:
        raise UnpackError(f"bad {what} in an extended header")
    return int(text)


def _records(content: bytes) -> dict[bytes, bytes]:
    """PAX records: `length key=value\\n`, the length counting the whole record. Later ones win."""
    records: dict[bytes, bytes] = {}
    at, sparse = 0, []
    while at < len(content):
        space = content.find(b" ", at, at + 20)
        length = _decimal(content[at:space] if space > 0 else b"", "record length")
        record = content[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n" or not key or at + length > len(content):
            raise UnpackError("malformed PAX record")
        at += length
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):  # 0.0: one pair of records a region
            sparse.append(value)
        else:
            records[key] = value
    if sparse:
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return records


def _merge(entry: Entry, records: dict[bytes, bytes]) -> None:
    """Let the records override the header; an empty value means the header's own."""
    for key, value in records.items():
        if key.startswith(b"SCHILY.xattr."):
            if b"\0" in key:
                raise UnpackError(f"entry {entry.name[:80]!r} has a NUL byte in the name of an xattr")
            entry.xattrs[key[13:].decode("utf-8", "surrogateescape")] = value
        elif not value:
            continue
        elif key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.linkname = value
        elif key == b"size":
            entry.size = _decimal(value, "size")
        elif key == b"uid":
            entry.uid = _decimal(value, "uid")
        elif key == b"gid":
            entry.gid = _decimal(value, "gid")
        elif key == b"mtime":
            entry.mtime = _nanoseconds(value)
    _check(entry)


def _nanoseconds(text: bytes) -> int:
    negative = text.startswith(b"-")
    whole, dot, fraction = text.lstrip(b"-").partition(b".")
    if dot and not (fraction.isdigit() or not fraction):
        raise UnpackError("bad mtime in an extended header")
    value = _decimal(whole, "mtime") * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") if fraction else 0)
    return -value if negative else value
