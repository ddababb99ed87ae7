"""The tar reader and the inflater against what other programs write, and against bytes that nobody should write."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import require
from tars import archive, chunks, entry, pax

from minirt.errors import UnpackError
from minirt.store.inflate import inflate
from minirt.store.tar import MAX_EXTENSION, Entry, Reader


def read(content: bytes, size: int = 4096) -> list[tuple[Entry, bytes]]:
    pieces = iter(chunks(content, size))
    reader = Reader(lambda: next(pieces, b""))
    return [(e, b"".join(bytes(piece) for piece in reader.body())) for e in reader]


_name = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(_name, st.binary(max_size=1500), st.integers(0, 2**33), st.integers(0, 2**31)), max_size=5),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.sampled_from([7, 512, 1 << 20]),
)
def test_reads_what_tarfile_writes(files: list[tuple[str, bytes, int, int]], form: int, size: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content, mtime, uid in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid, info.gid = len(content), mtime, uid, uid
            tar.addfile(info, io.BytesIO(content))
    found = [(e.name.decode(), c, e.mtime, e.uid, e.gid) for e, c in read(buffer.getvalue(), size)]
    assert found == [(name, content, mtime * 10**9, uid, uid) for name, content, mtime, uid in files]


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=2048)
    | st.builds(lambda a, b: archive(entry("x", content=a))[: -len(b) or None] + b, st.binary(), st.binary())
)
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(UnpackError):
        read(content)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_pax_records_are_read_or_refused(body: bytes) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = b"x", len(body)
    with contextlib.suppress(UnpackError):
        read(archive(info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512), entry("x")))


@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "posix", "oldgnu"])
@pytest.mark.parametrize(
    "sparse", [(), ("--sparse",), ("--sparse", "--sparse-version=0.1"), ("--sparse", "--sparse-version=0.0")]
)
def test_reads_what_gnu_tar_writes(tmp_path: Path, form: str, sparse: tuple[str, ...]) -> None:
    if sparse and form in ("v7", "ustar"):
        pytest.skip("these formats have no sparse files")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "plain").write_bytes(b"content")
    with open(tmp_path / "d" / "holes", "wb") as file:
        for n in range(9):  # more regions than the old header holds
            file.seek(n * 100_000)
            file.write(b"island %d" % n)
        file.truncate(2_000_000)
    (tmp_path / "d" / "link").symlink_to("plain")
    if form not in ("v7", "ustar"):
        (tmp_path / "d" / ("long" * 60)).write_bytes(b"l")
    content = subprocess.run(
        [require("tar"), "-C", tmp_path, f"--format={form}", *sparse, "-cf", "-", "d"], check=True, capture_output=True
    ).stdout
    found = {e.name.decode().rstrip("/"): (e, c) for e, c in read(content)}
    assert found["d"][0].type == b"5" and found["d/plain"][1] == b"content"
    assert found["d/link"][0].linkname == b"plain"
    holes, data = found["d/holes"]
    whole = bytearray(holes.size)
    at = 0
    for offset, length in holes.sparse if holes.sparse is not None else [(0, len(data))]:
        whole[offset : offset + length] = data[at : at + length]
        at += length
    assert bytes(whole) == (tmp_path / "d" / "holes").read_bytes()
    assert bool(sparse) == (len(data) < 1_000_000)


def test_base_256_and_fractions_and_prefix() -> None:
    big = bytearray(entry("x"))
    big[108:116] = struct.pack(">Q", 1 << 63 | 70_000)
    big[148:156] = b" " * 8
    big[148:156] = b"%06o\0 " % sum(big[:512])
    ((found, _),) = read(archive(bytes(big)))
    assert found.uid == 70_000
    ((found, _),) = read(
        archive(pax({"mtime": b"1.000000001", "path": b"\xff\xfe", "SCHILY.xattr.user.a": b"\0=\n"}), entry("y"))
    )
    assert found.mtime == 1_000_000_001 and found.name == b"\xff\xfe" and found.xattrs == {"user.a": b"\0=\n"}
    info = tarfile.TarInfo("a" * 90 + "/" + "b" * 60)
    ((found, _),) = read(archive(info.tobuf(tarfile.USTAR_FORMAT)))
    assert found.name.decode() == info.name


def _sparse(content: bytes, **records: bytes) -> bytes:
    return archive(pax(records), entry("a", content=content))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"x" * 512, "not a tar"),
        (b"<html>" + b" " * 600, "not a tar"),
        (archive(entry("a", content=b"x" * 600))[:700], "middle"),
        (entry("a")[:100], "middle of a header"),
        (pax({"path": b"a"}), "after an extended header"),
        (entry("a") + bytes(512) + entry("b"), "after its first end block"),
        (archive(pax({"path": b"x" * (MAX_EXTENSION + 1)}), entry("a")), "over the limit"),
        (archive(pax({"size": b"-1"}), entry("a")), "bad size"),
        (archive(pax({"uid": b"4294967295"}), entry("a")), "impossible owner"),
        (archive(pax({"path": b"a\0b"}), entry("a")), "NUL"),
        (_sparse(b"ab", **{"GNU.sparse.map": b"5,1,0,1", "GNU.sparse.size": b"9"}), "malformed map"),
        (_sparse(b"abcde", **{"GNU.sparse.map": b"0,5", "GNU.sparse.size": b"4"}), "malformed map"),
        (
            _sparse(
                b"9999999\n" + bytes(504),
                **{"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"9"},
            ),
            "regions",
        ),
    ],
)  # fmt: skip
def test_malformed_archives_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(UnpackError, match=reason):
        read(content)


def test_an_archive_may_end_without_its_end_blocks_as_docker_allows() -> None:
    assert [c for _, c in read(entry("a", content=b"1"))] == [b"1"]


def plain(content: bytes, size: int = 1000, max_bytes: int = 1 << 24, max_ratio: int = 500) -> bytes:
    pieces = iter(chunks(content, size))
    source = inflate(lambda: next(pieces, b""), max_bytes, max_ratio)
    return b"".join(iter(source, b""))


def _zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(max_size=4000).map(lambda b: b * 3), max_size=3),
    st.sampled_from([gzip.compress, _zstd, lzma.compress, bz2.compress]),
    st.sampled_from([1, 100, 1 << 20]),
)
def test_members_and_frames_are_joined(parts: list[bytes], compress: Callable[[bytes], bytes], size: int) -> None:
    assert plain(b"".join(compress(part) for part in parts), size) == b"".join(parts)


@pytest.mark.parametrize("size", [1, 3, 1000, 1 << 20])
def test_gzip_may_end_in_zero_padding(size: int) -> None:
    assert plain(gzip.compress(b"abc") + bytes(700), size) == b"abc"
    assert plain(gzip.compress(b"abc") + bytes(7) + gzip.compress(b"def"), size) == b"abcdef"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(b"abc" * 999, mtime=0)[:-9], "truncated"),
        (gzip.compress(b"abc", mtime=0)[:9], "truncated"),
        (gzip.compress(b"abc", mtime=0)[:-8] + bytes(8), "corrupt"),
        (gzip.compress(b"abc", mtime=0) + b"garbage", "trailing data"),
        (gzip.compress(b"abc", mtime=0) + b"g", "trailing data"),
        (b"\x1f\x8b" + b"\xff" * 99, "corrupt"),
        (_zstd(b"abc")[:4] + b"\xff" * 50, "corrupt"),
        (_zstd(b"abc") + b"garbage", "corrupt"),
        *((compress(b"abc" * 999)[:-9], "truncated") for compress in (lzma.compress, bz2.compress)),
        *((compress(b"abc" * 999) + b"garbage" * 99, "corrupt") for compress in (lzma.compress, bz2.compress)),
        (lzma.compress(b"abc", preset=9 | lzma.PRESET_EXTREME, filters=None)[:20] + b"\xff" * 50, "corrupt"),
        (
            lzma.compress(
                b"abc",
                filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28, "mf": lzma.MF_HC3, "mode": lzma.MODE_FAST}],
            ),
            "corrupt: Memory usage",
        ),
    ],
)
def test_damaged_compression_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(UnpackError, match=reason):
        plain(content)


@pytest.mark.parametrize("compress", [lambda b: zlib.compress(b, wbits=31), _zstd, lzma.compress, bz2.compress])
def test_a_bomb_is_stopped_in_bounded_memory(compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(bytes(64 << 20))
    pieces = iter(chunks(bomb, 1 << 20))
    source = inflate(lambda: next(pieces, b""), 32 << 20, 500)
    largest = total = 0
    with pytest.raises(UnpackError, match="limit"):
        while piece := source():
            largest, total = max(largest, len(piece)), total + len(piece)
    assert largest <= 1 << 20 and total <= 32 << 20


def test_a_ratio_no_honest_layer_has_is_refused() -> None:
    with pytest.raises(UnpackError, match="bomb"):
        frame = _zstd(bytes(1 << 24))
        plain_source = iter([frame] * 80)
        source = inflate(lambda: next(plain_source, b""), 1 << 40, 500)
        while source():
            pass
