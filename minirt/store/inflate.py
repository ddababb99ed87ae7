"""Decompression as a stream: gzip (several members), zstd (several frames), xz, bzip2 or none, with a limit on what
comes out.

What the media type promises is not trusted: the first bytes decide, as docker does. After the last gzip member only
zero padding may follow. Memory is bounded whatever the data: no step returns more than a megabyte. Libraries: isal
(four times zlib's speed; the standard zlib where it is missing) and zstandard. Source: RFC 1952, RFC 8878.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from minirt.errors import UnpackError
from minirt.store.limits import OverLimit

PIECE = 1 << 20
_FREE = 1 << 30  # bytes out before the ratio is looked at: small layers may be as empty as they like
_XZ_MEMORY = 128 << 20  # bytes: what its strongest setting needs is half of it

Source = Callable[[], bytes]


def sniff(first: bytes) -> str:
    """`gzip`, `zstd`, `xz`, `bzip2` or `none`, by the first four bytes."""
    if first[:2] == b"\x1f\x8b":
        return "gzip"
    if first[:4] == b"\x28\xb5\x2f\xfd" or (first[1:4] == b"\x2a\x4d\x18" and first[0] & 0xF0 == 0x50):
        return "zstd"
    if first[:4] == b"\xfd7zX":
        return "xz"
    return "bzip2" if first[:3] == b"BZh" else "none"


def inflate(source: Source, max_bytes: int, max_ratio: int) -> Source:
    """A source of the plain bytes behind `source`; both return chunks, and empty bytes at their end.

    Raises UnpackError for corrupt, truncated or trailing data, and OverLimit for more than `max_bytes` or `max_ratio`
    times the input coming out.
    """
    counted = _Counted(source)
    first = b""
    while len(first) < 4 and (chunk := counted()):
        first += chunk
    pieces = {"gzip": _gzip, "zstd": _zstd, "xz": _xz, "bzip2": _bzip2, "none": _plain}[sniff(first)](first, counted)
    out = 0

    def plain() -> bytes:
        nonlocal out
        piece = next(pieces, b"")
        out += len(piece)
        if out > max_bytes:
            raise OverLimit("bytes_out", f"layer unpacks to more than the limit of {max_bytes} bytes")
        if out > _FREE and out > max_ratio * counted.total:
            raise OverLimit("ratio", f"layer unpacks to more than {max_ratio} times its size: a decompression bomb")
        return piece

    return plain


class _Counted:
    def __init__(self, source: Source) -> None:
        self._source = source
        self.total = 0

    def __call__(self) -> bytes:
        chunk = self._source()
        self.total += len(chunk)
        return chunk


def _plain(first: bytes, source: Source) -> Iterator[bytes]:
    while first:
        yield first
        first = source()


def _gzip(data: bytes, source: Source) -> Iterator[bytes]:
    while data:
        engine, damaged = _gzip_engine()
        while not engine.eof:
            if not data and not (data := source()):
                raise UnpackError("layer's gzip stream is truncated")
            try:
                piece = engine.decompress(data, PIECE)
            except damaged as error:
                raise UnpackError(f"layer's gzip stream is corrupt: {error}") from error
            data = engine.unused_data if engine.eof else engine.unconsumed_tail
            if piece:
                yield piece
        while not (data := data.lstrip(b"\0")) and (data := source()):
            pass
        while data and len(data) < 4 and (more := source()):
            data += more
        if data and sniff(data) != "gzip":
            raise UnpackError("layer has trailing data after its gzip stream")


def _gzip_engine() -> tuple[Any, Any]:
    """A decompressor for one member, and what it raises for bytes that are none."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib.decompressobj(wbits=31), zlib.error
    return isal_zlib.decompressobj(wbits=31), isal_zlib.error


def _zstd(first: bytes, source: Source) -> Iterator[bytes]:
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
        cast(IO[bytes], _Readable(first, source)), read_size=PIECE, read_across_frames=True
    )
    while True:
        try:
            piece = reader.read(PIECE)
        except zstandard.ZstdError as error:
            raise UnpackError(f"layer's zstd stream is corrupt: {error}") from error
        if not piece:
            return
        yield piece


def _xz(first: bytes, source: Source) -> Iterator[bytes]:
    import lzma

    return _streams(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), "xz", first, source)


def _bzip2(first: bytes, source: Source) -> Iterator[bytes]:
    import bz2

    return _streams(bz2.BZ2Decompressor, "bzip2", first, source)


def _streams(make: Callable[[], Any], name: str, data: bytes, source: Source) -> Iterator[bytes]:
    """Streams one after the other; nothing may follow but zeros. These engines keep what they have not used."""
    while data:
        engine = make()
        while not engine.eof:
            if engine.needs_input and not data and not (data := source()):
                raise UnpackError(f"layer's {name} stream is truncated")
            try:
                piece = engine.decompress(data, PIECE)
            except (MemoryError, UnpackError):  # a limit of the worker's, which has its own words
                raise
            except Exception as error:  # each library has its own class
                raise UnpackError(f"layer's {name} stream is corrupt: {error}") from error
            data = b""
            if piece:
                yield piece
        data = engine.unused_data
        while not (data := data.lstrip(b"\0")) and (data := source()):
            pass


class _Readable(io.RawIOBase):
    """The `read` that zstandard asks for, over a source."""

    def __init__(self, first: bytes, source: Source) -> None:
        self._pending, self._source = first, source

    def read(self, size: int = -1) -> bytes:
        chunk = self._pending or self._source()
        self._pending = b"" if size < 0 else chunk[size:]
        return chunk if size < 0 else chunk[:size]
