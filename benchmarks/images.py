"""Images of several shapes, made of this machine's own files and kept in the tests' cache folder: OCI image layouts.

Real programs, libraries and texts, because how well they compress decides much of a pull.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import realimages
from isal import igzip

_SMALL, _LARGE = 16_000, 400_000  # bytes: what counts as a small and as a large file here
_UNIT = 40_000_000, 1_800  # bytes and files of the 1x image


def shaped(shape: str, quick: bool = False) -> Path:
    """The layout of one image, named `latest`. Shapes: big, small-files, large-files, many-layers, one-layer, and 1x,
    4x, 16x; `quick` is a sixteenth of it."""
    with realimages.kept(f"benchmark-{shape}{'-quick' if quick else ''}") as path:
        if not path.exists():
            folder = Path(tempfile.mkdtemp(dir=realimages.CACHE))
            try:
                _write(folder, _layers(shape, 16 if quick else 1))
                os.rename(folder, path)
            except BaseException:
                shutil.rmtree(folder)
                raise
    return path


def _layers(shape: str, part: int) -> list[list[str]]:
    """The files of each layer."""
    if shape == "small-files":
        return _dealt(_files(24_000 // part, 10**12, 1, _SMALL), 4)
    if shape == "large-files":
        return _dealt(_files(600 // part, 480_000_000 // part, _LARGE, 1 << 40), 4)
    if shape == "many-layers":
        return _dealt(_files(6_000 // part, 150_000_000 // part, 1, 1 << 40), 60)
    if shape == "one-layer":
        return [_files(24_000 // part, 560_000_000 // part, 1, 1 << 40)]
    if shape == "big":
        return _dealt(_files(24_000 // part, 560_000_000 // part, 1, 1 << 40), 4)
    times = int(shape.removesuffix("x"))
    return [_files(_UNIT[1] * times // part, _UNIT[0] * times // part, 1, 1 << 40)]


def _files(count: int, size: int, least: int, most: int) -> list[str]:
    """So many files of this machine with at most so many bytes in all, evenly from everywhere, in order."""
    found: dict[str, int] = {}
    for folder, folders, _ in os.walk("/usr"):
        folders[:] = sorted(name for name in folders if name not in ("local", "src"))
        for entry in os.scandir(folder):
            if entry.is_file(follow_symlinks=False) and least <= (bytes_ := entry.stat(follow_symlinks=False).st_size):
                found |= {entry.path: bytes_} if bytes_ <= most else {}
    paths = sorted(found)
    chosen = [paths[number * len(paths) // count] for number in range(count)] if len(paths) > count else paths
    keep, whole = dict.fromkeys(chosen), sum(found[path] for path in chosen)
    for path in sorted(found, key=lambda path: -found[path]):
        if whole > size and path in keep:  # too much: leave the largest out
            whole -= found[path]
            del keep[path]
        elif path not in keep and whole + found[path] <= size < 10**12:  # too little: the largest that still go in
            whole += found[path]
            keep[path] = None
    return sorted(keep)


def _dealt(paths: list[str], count: int) -> list[list[str]]:
    """In runs of about equal work, a file being worth as much as 20 kB; folders stay together."""
    parts: list[list[str]] = [[] for _ in range(count)]
    whole, done = sum(os.path.getsize(path) + 20_000 for path in paths), 0
    for path in paths:
        parts[done * count // whole].append(path)
        done += os.path.getsize(path) + 20_000
    return [part for part in parts if part]


def _write(folder: Path, layers: list[list[str]]) -> None:
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    rows, diff_ids = [], []
    for paths in layers:
        plain = hashlib.sha256()
        with igzip.open(blobs / "layer", "wb", compresslevel=3) as packed:  # quick to make, hardly larger than gzip's
            for data in _tar(paths):
                plain.update(data)
                packed.write(data)
        rows.append(_named(blobs, "application/vnd.oci.image.layer.v1.tar+gzip"))
        diff_ids.append(f"sha256:{plain.hexdigest()}")
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = {"architecture": realimages.CPU, "os": "linux", "config": {}, "rootfs": rootfs}
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": _document(blobs, config, "application/vnd.oci.image.config.v1+json"),
        "layers": rows,
    }
    row = _document(blobs, manifest, kind) | {"annotations": {"org.opencontainers.image.ref.name": "latest"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [row]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _tar(paths: list[str]) -> Iterator[bytes]:
    """A tar stream of these files and the folders above them."""
    buffer, told = io.BytesIO(), set[str]()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            above = [str(parent) for parent in reversed(Path(path).parents)][1:]
            for name in [*(name for name in above if name not in told), path]:
                tar.add(name, arcname=name.lstrip("/"), recursive=False, filter=_in_seconds)
                told.add(name)
            if buffer.tell() > 1 << 20:
                yield buffer.getvalue()
                buffer.seek(0)
                buffer.truncate()
    yield buffer.getvalue()


def _in_seconds(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """As docker writes layers: times in whole seconds, which need no extended header."""
    entry.mtime = int(entry.mtime)
    return entry


def _document(blobs: Path, document: dict[str, Any], kind: str) -> dict[str, Any]:
    (blobs / "layer").write_text(json.dumps(document))
    return _named(blobs, kind)


def _named(blobs: Path, kind: str) -> dict[str, Any]:
    """Give what was just written its name; its descriptor."""
    with open(blobs / "layer", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = (blobs / "layer").stat().st_size
    (blobs / "layer").rename(blobs / digest)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}
