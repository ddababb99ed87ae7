"""The unpack worker: a process of its own that turns one layer's bytes into a blob and an unpacked folder, in one pass.

    stdin → sha256 + ingest file → inflate → sha256 (the DiffID) │ tar applier → rename blob, rename folder
    └────────────────────── a thread (ahead.py) ────────────────┘

It holds no credentials, no network and no terminal, and for a plain user it is root only of that user's own ids. What
it read before (an ingest a crash left, or a blob that is already here) it takes from the file first. It answers with
JSON lines on stdout; the last is `{"done": …}` or `{"error": …}`. Nothing appears under its final name before both
digests matched; `syncfs` comes before the folder's rename, so a power cut leaves it complete or absent. Also done
here, because it needs the same rights over mapped ids: removing, measuring and copying trees.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minirt import errors, linux
from minirt.image.digest import Digest
from minirt.store import folders, shared, tar
from minirt.store.ahead import ahead
from minirt.store.applier import Applier, Owner
from minirt.store.files import locked, sync_directory, write_atomic
from minirt.store.inflate import inflate
from minirt.store.limits import Limits, OverLimit
from minirt.store.tree import remove, walk
from minirt.userns import IdMapping, become_root

_CHUNK = 1 << 20
_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # the disk's, whatever was asked of it


def main(job: str) -> int:
    """Do one job, a JSON object with `action`; the answer goes to stdout. The exit status is 0 if it could answer."""
    words = json.loads(job)
    try:
        ids = IdMapping.from_json(words["ids"])
        become_root(ids)
        answer = _ACTIONS[words["action"]](words, ids)
    except OverLimit as error:
        _say({"error": "UnpackError", "text": error.advice()})
    except errors.MinirtError as error:
        _say({"error": type(error).__name__, "text": str(error)})
    except OSError as error:
        where = f": {error.filename!r}" if isinstance(error.filename, str) else ""
        text = "no space left on device" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror)
        _say({"error": "StoreError", "text": f"cannot write to the store: {text}{where}"})
    else:
        _say({"done": answer})
    return 0


def _say(answer: dict[str, Any]) -> None:
    # The reader may be gone (kill -9): then there is no one to tell, and the work on disk stands as it is.
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(answer).encode() + b"\n")


class _Verified:
    """The compressed bytes: first what is on disk already, then stdin, hashed and (if new) kept as they pass."""

    def __init__(self, path: Path, digest: Digest, size: int, keep: bool) -> None:
        self._file = open(path, "r+b" if keep else "rb", buffering=0)  # noqa: SIM115 (closed by close)
        self._path, self._keep = path, keep
        self.damaged = False
        self._hasher = digest.hasher()
        self._digest, self._size = digest, size
        self._on_disk = os.fstat(self._file.fileno()).st_size
        self.position = 0

    def __call__(self) -> bytes:
        if self.position < self._on_disk:
            chunk = self._file.read(_CHUNK)
        else:
            chunk = os.read(0, _CHUNK) if self._keep and self.position < self._size else b""
            if not chunk and self.position < self._size and not self._keep:
                self.damaged = True
                raise errors.VerificationError(f"layer {self._digest.short} has only {self.position} of its bytes")
            if not chunk and self.position < self._size:
                raise errors.RegistryError(f"download stopped at {self.position} of {self._size} bytes")
            if self._keep:
                left = memoryview(chunk)
                while left:
                    left = left[self._file.write(left) :]
        self.position += len(chunk)
        if self.position > self._size:
            self.damaged = True
            raise errors.VerificationError(f"layer {self._digest.short} is longer than the {self._size} bytes promised")
        self._hasher.update(chunk)
        return chunk

    def finish(self) -> None:
        """Read to the end and check size and digest. Raises VerificationError."""
        while self():
            pass
        if not self._digest.matches(self._hasher):
            self.damaged = True
            raise errors.VerificationError(
                f"layer {self._digest.short} does not match its digest: the bytes received are not {self._digest}"
            )
        if self._keep:
            try:
                os.fsync(self._file.fileno())
            except OSError:
                self._write_anew()
                raise

    def _write_anew(self) -> None:
        """After a failed fsync the kernel takes the file's pages for written: they read well and may not be on the
        disk, whatever a later fsync says (fsync(2)). What was received is kept in pages that it does write."""
        anew = self._path.with_suffix(".anew")
        try:
            with open(anew, "wb") as file:
                os.lseek(self._file.fileno(), 0, os.SEEK_SET)
                while chunk := self._file.read(_CHUNK):
                    file.write(chunk)
            os.replace(anew, self._path)
        except OSError:  # then it is received again
            anew.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()


def _unpack(job: dict[str, Any], ids: IdMapping) -> dict[str, Any]:
    """Words: store, digest, size, ingest, blob (paths), other (path of an additional store's blob, which is only read);
    and to unpack too: diff_id, layer (path), plain, shared, limits."""
    with locked(Path(job["store"]) / "gc.lock", shared=True):  # who started us holds it too, but may be killed
        return _unpack_held(job, ids)


def _unpack_held(job: dict[str, Any], ids: IdMapping) -> dict[str, Any]:
    digest, blob, ingest = Digest(job["digest"]), Path(job["blob"]), Path(job["ingest"])
    other = Path(job["other"]) if job.get("other") else None
    keep = other is None and not blob.exists()
    if keep:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(ingest, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        source = _Verified(ingest if keep else other or blob, digest, job["size"], keep)
    except OSError as error:
        if other is None:
            raise
        why = f"cannot be read in the additional store ({error.strerror}): {other}"
        raise errors.NotFound(f"layer {digest.short} {why}") from error
    answer: dict[str, Any] = {}
    layer = Path(job["layer"]) if job.get("layer") else None
    # The same content may come as two blobs (gzip and zstd, say) at once: each has a folder of its own.
    aside = layer.with_name(f".{layer.name}.{digest.hex}") if layer else None
    try:
        if aside is None:
            source.finish()
        else:
            answer = _apply(job, aside, source, ids)
        if keep:
            os.chmod(ingest, 0o644)
            os.replace(ingest, blob)
            sync_directory(blob.parent)
        if layer and aside:
            _publish(aside, layer, answer, 0o644 if job.get("shared") else 0o600)
    except (errors.VerificationError, errors.UnpackError):
        if keep or source.damaged:  # bad bytes must not be resumed
            (ingest if keep else blob).unlink(missing_ok=True)
        raise
    finally:
        source.close()
        if aside:
            remove(str(aside))
    return answer


def _apply(job: dict[str, Any], aside: Path, source: _Verified, ids: IdMapping) -> dict[str, Any]:
    limits = Limits(**job.get("limits", {}))
    _bound(limits)
    remove(str(aside))
    aside.mkdir()
    aside.chmod(0o755)  # whatever our umask
    diff_id = Digest(job["diff_id"])
    hasher = diff_id.hasher()
    plain = inflate(source, limits.bytes_out, limits.ratio)

    def hashed() -> bytes:
        chunk = plain()
        hasher.update(chunk)
        return chunk

    root = not ids.rootless
    form = "plain" if job.get("plain") else "trusted" if root else "user"
    owner = Owner(not ids.single, mknod=root, xattr=form, closed=not ids.faked)
    if job.get("shared"):
        owner = Owner(chown=False, mknod=False, xattr="user", masked=True)
    applier = Applier(aside, owner, limits)
    try:
        with ahead(hashed) as pieces:
            problem = _apply_or_blame(applier, pieces)
    except MemoryError:
        raise OverLimit("memory", f"layer takes more than {limits.memory} bytes of memory to unpack") from None
    finally:
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)  # what follows is no work of the archive's making
    if problem:
        # A damaged download and a hostile archive look alike from here; the digest tells them apart.
        source.finish()
        raise problem
    source.finish()
    if not diff_id.matches(hasher):
        raise errors.VerificationError(
            f"layer {Digest(job['digest']).short} unpacks to other content than its DiffID says"
        )
    answer = {"size": applier.size, "entries": applier.entries, "notes": dict(applier.notes)}
    answer |= {"nobody": True} if applier.nobody else {}
    if job.get("shared"):
        few = len(applier.folders) <= folders.LIMIT
        answer["folders"] = sorted(map(os.fsdecode, applier.folders)) if few else None
    return answer


def _bound(limits: Limits) -> None:
    """Let the kernel hold what this process may take of memory and processor time: whatever the archive is."""
    import resource

    def out_of_time(*_: object) -> None:
        raise OverLimit("seconds", f"layer takes more than {limits.seconds} seconds of processor time to unpack")

    signal.signal(signal.SIGXCPU, out_of_time)
    # RLIMIT_DATA: since Linux 4.7 all private memory that can be written. Of time, a little is left to say so.
    for kind, soft, room in (
        (resource.RLIMIT_DATA, limits.memory, 0),
        (resource.RLIMIT_CPU, limits.seconds + int(time.process_time()), 600),
    ):
        most = resource.getrlimit(kind)[1]
        hard = soft + room if most == resource.RLIM_INFINITY else min(soft + room, most)
        resource.setrlimit(kind, (min(soft, hard), hard))


def _apply_or_blame(applier: Applier, source: Callable[[], bytes]) -> errors.UnpackError | None:
    reader = tar.Reader(source)
    try:
        applier.run(reader)
        reader.drain()
    except errors.UnpackError as error:
        return error
    return None


def _publish(aside: Path, layer: Path, answer: dict[str, Any], mode: int) -> None:
    fd = os.open(aside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        linux.syncfs(fd)
    finally:
        os.close(fd)
    write_atomic(layer.with_name(layer.name + ".json"), json.dumps(answer).encode(), mode)
    try:
        os.rename(aside, layer)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another blob of the same content won
            raise
    sync_directory(layer.parent)


def _remove(job: dict[str, Any], ids: IdMapping) -> dict[str, Any]:
    """Words: paths. Bytes of disk that were used."""
    used = _measure(job, ids)
    for path in job["paths"]:
        remove(path)
    return used


def _measure(job: dict[str, Any], ids: IdMapping) -> dict[str, Any]:
    """Words: paths. Bytes of disk used below them, hard links counted once; what is gone counts nothing."""
    seen, used = set(), 0
    for path in job["paths"]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for status in walk(path):
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    used += status.st_blocks * 512
    return {"bytes": used}


def _copy(job: dict[str, Any], ids: IdMapping) -> dict[str, Any]:
    """Words: lowers (top first), target. The merged view of overlay-form layers as a plain tree: the copy fallback."""
    from minirt.store.merge import merge

    merge(
        [Path(lower) for lower in reversed(job["lowers"])], Path(job["target"]), "user" if ids.rootless else "trusted"
    )
    return {}


def _folders(job: dict[str, Any], ids: IdMapping) -> dict[str, Any]:
    """Words: upper, lowers (top first), shared (those of them), folders (names in any of these)."""
    layers = [folders.Layer(os.fsencode(path), path in job["shared"]) for path in job["lowers"]]
    folders.make(os.fsencode(job["upper"]), layers, map(os.fsencode, job["folders"]), ids.single)
    return {}


def _try_overlay(job: dict[str, Any], ids: IdMapping) -> dict[str, Any]:
    """Words: path (an empty folder on the store's file system). Can overlayfs be mounted here, by us?"""
    folder = Path(job["path"])
    for name in ("lower", "upper", "work", "merged"):
        (folder / name).mkdir()
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    os.chdir(folder)  # so that no character of its path means anything in the options
    options = "lowerdir=lower,upperdir=upper,workdir=work" + (",userxattr" if ids.rootless else "")
    try:
        linux.mount("overlay", "merged", "overlay", 0, options)
        Path("merged/file").touch()
    except OSError as error:
        return {"works": False, "reason": str(error.strerror), "untried": error.errno in _TROUBLE}
    return {"works": True, "reason": ""}


def _try_fuse_overlayfs(job: dict[str, Any], ids: IdMapping) -> dict[str, Any]:
    """The same for fuse-overlayfs, a program that does in user space what the kernel refuses."""
    import shutil
    import subprocess

    folder, program = Path(job["path"]), shutil.which("fuse-overlayfs")
    if program is None:
        return {"works": False, "reason": "not installed"}
    for name in ("lower", "upper", "work", "merged"):
        (folder / name).mkdir()
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    words = [program, "-o", "lowerdir=lower,upperdir=upper,workdir=work", "merged"]
    trial = subprocess.run(words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if trial.returncode:
        return {"works": False, "reason": trial.stderr.strip()[-200:]}
    try:
        (folder / "merged/file").touch()
    except OSError as error:
        return {"works": False, "reason": str(error.strerror)}
    finally:
        linux.umount(str(folder / "merged"))
    return {"works": True, "reason": ""}


def _try_shared(job: dict[str, Any], ids: IdMapping) -> dict[str, Any]:
    """Words: path (an empty folder). Does a shared layer look here as it should, laid by fuse-overlayfs?"""
    import shutil
    import subprocess

    folder, program = Path(job["path"]), shutil.which("fuse-overlayfs")
    if program is None:
        return {"works": False, "reason": "fuse-overlayfs is not installed"}
    for name in ("lower", "upper", "work", "merged"):
        (folder / name).mkdir()
    file = folder / "lower/file"
    file.touch(0o644)
    for path, mode in (folder / "lower", 0o755), (file, 0o600):
        os.setxattr(path, shared.OVERRIDE, shared.record(0, 0, mode))
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    words = [program, "-o", f"lowerdir=lower,upperdir=upper,workdir=work,{shared.options(ids)}", "merged"]
    trial = subprocess.run(words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if trial.returncode:
        return {"works": False, "reason": trial.stderr.strip()[-200:]}
    status = os.stat(folder / "merged/file")
    linux.umount(str(folder / "merged"))
    fine = (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, 0o600)
    return {"works": fine, "reason": "" if fine else "this fuse-overlayfs does not show whose a shared file is"}


_ACTIONS: dict[str, Callable[[dict[str, Any], IdMapping], dict[str, Any]]] = {
    "unpack": _unpack,
    "remove": _remove,
    "measure": _measure,
    "copy": _copy,
    "folders": _folders,
    "try-overlay": _try_overlay,
    "try-fuse-overlayfs": _try_fuse_overlayfs,
    "try-shared": _try_shared,
}
