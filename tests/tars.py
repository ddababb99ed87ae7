"""Making tar archives that no honest tool would make: each entry's header is written here, byte by byte."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from typing import Any

FILE, HARDLINK, SYMLINK, CHAR, BLOCK, DIR, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"


def entry(name: str | bytes, kind: bytes = FILE, content: bytes = b"", **fields: Any) -> bytes:
    """One entry, in PAX form: `linkname mode uid gid mtime devmajor devminor pax_headers` as in TarInfo."""
    info = tarfile.TarInfo(name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
    info.type, info.size = kind, len(content)
    info.mode = 0o755 if kind == DIR else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    raw = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    if kind == DIR and not info.name.endswith("/"):
        raw = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return raw + content + bytes(-len(content) % 512)


def pax(records: dict[str, bytes]) -> bytes:
    """An extended header with these records, values as raw bytes (xattrs are binary)."""
    body = b""
    for key, value in records.items():
        text = key.encode() + b"=" + value + b"\n"
        length = len(text) + 3
        while len(str(length)) + 1 + len(text) != length:
            length = len(str(length)) + 1 + len(text)
        body += str(length).encode() + b" " + text
    info = tarfile.TarInfo("pax")
    info.type, info.size = b"x", len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)


def archive(*entries: bytes) -> bytes:
    return b"".join(entries) + bytes(1024)


def chunks(content: bytes, size: int) -> Iterable[bytes]:
    stream = io.BytesIO(content)
    return iter(lambda: stream.read(size), b"")
