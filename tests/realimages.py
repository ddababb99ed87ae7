"""Real images, made once on this machine and kept in a cache folder: a Debian by debootstrap, and a big one.

Debian comes from whatever mirror this machine's apt uses. The big image (about 600 MB, 27,000 files) is that Debian and
three layers of this machine's own /usr on top: programs, libraries and texts, as images hold them.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from peers import require

# Read when the run starts: tests change HOME and XDG_CACHE_HOME.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minirt-tests"
BIG_LAYERS, BIG_FILES, BIG_BYTES = 4, 27_000, 600_000_000
LARGE = 100_000  # bytes: from here on a file counts as large
CPU = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def debian() -> Path:
    """A tar of a minimal Debian or Ubuntu root file system, this machine's release, with owners and xattrs. As root."""
    require("debootstrap")
    suite, mirror = apt_source()
    with kept(f"{suite}-{CPU}.tar") as path:
        if not path.exists():
            folder = Path(tempfile.mkdtemp(dir=CACHE))
            try:
                run("debootstrap", "--variant=minbase", suite, str(folder / "root"), mirror)
                for package in (folder / "root/var/cache/apt/archives").glob("*.deb"):
                    package.unlink()
                run(
                    "tar",
                    "--create",
                    "--numeric-owner",
                    "--xattrs",
                    f"--file={folder}/tar",
                    f"--directory={folder}/root",
                    ".",
                )
                os.rename(folder / "tar", path)
            finally:
                shutil.rmtree(folder)
    return path


def big() -> Path:
    """An OCI image layout with the big image, named `latest`."""
    with kept(f"big-{CPU}-{BIG_FILES}-{BIG_BYTES}") as path:
        if not path.exists():
            folder = Path(tempfile.mkdtemp(dir=CACHE))
            try:
                _write_layout(folder)
                folder.chmod(0o755)
                os.rename(folder, path)
            except BaseException:
                shutil.rmtree(folder)
                raise
    return path


@contextlib.contextmanager
def kept(name: str) -> Iterator[Path]:
    """The path of a cache entry, under a lock: of several test processes one makes it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield CACHE / name


def apt_source() -> tuple[str, str]:
    """(suite, mirror) of the release this machine runs, as apt knows them; AssertionError where it knows none."""
    rows = run("apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI) $(COMPONENT) $(CREATED_BY)")
    system = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = system.get("VERSION_CODENAME", "").strip('"')
    for row in rows.splitlines():
        if row.split()[0] == suite and row.endswith("main Packages"):
            return suite, row.split()[1]
    raise AssertionError(f"apt knows no source for {suite or 'this release'}: run apt-get update")


def run(*command: str) -> str:
    """What a command prints; AssertionError with the end of it all where it fails."""
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode:
        raise AssertionError(f"{command[0]}: {result.returncode}: {(result.stdout + result.stderr)[-2000:]}")
    return result.stdout


def _machine_files(count: int, size: int) -> list[str]:
    """Files of this machine, about so many and so many bytes: small ones for the count, large ones for the size."""
    found = []
    for top in ("/usr/lib", "/usr/share"):
        for folder, folders, names in os.walk(top):
            folders.sort()
            found += [os.path.join(folder, name) for name in sorted(names)]
    sizes = {path: os.lstat(path).st_size for path in found if os.access(path, os.R_OK)}
    small = [path for path in sizes if sizes[path] < LARGE]
    # Evenly from everywhere, so that no one folder makes the image.
    chosen = [small[number * len(small) // count] for number in range(min(count, len(small)))]
    room = size - sum(sizes[path] for path in chosen)
    large = [path for path in sizes if LARGE <= sizes[path] < size // 20]
    step = max(1, sum(sizes[path] for path in large) // max(room, 1))
    for path in large[::step]:
        if sizes[path] <= room:
            chosen.append(path)
            room -= sizes[path]
    return sorted(chosen)


def _write_layout(folder: Path) -> None:
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    base = debian()
    with tarfile.open(base) as tar:
        members = tar.getmembers()
    paths = _machine_files(BIG_FILES - 400 - len(members), BIG_BYTES - sum(member.size for member in members))
    # Three layers of about equal work, a file being worth as much as 20 kB; folders stay together.
    parts: list[list[str]] = [[] for _ in range(BIG_LAYERS - 1)]
    whole = sum(os.lstat(path).st_size + 20_000 for path in paths)
    done = 0
    for path in paths:
        parts[done * len(parts) // whole].append(path)
        done += os.lstat(path).st_size + 20_000
    rows = [_write_layer(blobs, base), *(_write_layer(blobs, part) for part in parts)]
    layers, diff_ids = [row[0] for row in rows], [row[1] for row in rows]
    config = {"architecture": CPU, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _blob(blobs, config, "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    }
    row = _blob(blobs, manifest, str(manifest["mediaType"]))
    row["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [row]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


class _Hashing:
    """A writer that passes on and hashes."""

    def __init__(self, target: IO[bytes]) -> None:
        self.target, self.hash = target, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.target.write(data)


def _write_layer(blobs: Path, content: Path | list[str]) -> tuple[dict[str, Any], str]:
    """Write one gzipped layer, of a tar or of files; (descriptor, DiffID)."""
    whole = blobs / "layer"
    with gzip.open(whole, "wb", compresslevel=6) as packed:
        inner = _Hashing(packed)  # type: ignore[arg-type]
        if isinstance(content, Path):
            with open(content, "rb") as file:
                shutil.copyfileobj(file, inner, 1 << 20)
        else:
            with tarfile.open(fileobj=inner, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
                for path in content:
                    tar.add(path, arcname=path.lstrip("/"), recursive=False)
    with open(whole, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = whole.stat().st_size
    whole.rename(blobs / digest)
    media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}, f"sha256:{inner.hash.hexdigest()}"


def _blob(blobs: Path, document: dict[str, Any], media_type: str) -> dict[str, Any]:
    content = json.dumps(document).encode()
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}
