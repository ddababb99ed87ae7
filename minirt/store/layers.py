"""Unpacked layers: `layers/<form>/<DiffID>/`, complete or absent, shared by every image that names the DiffID.

The *form* is what the same archive looks like for different rights: overlay's xattr namespace, the id mapping, and
how a whiteout looks. One form, `shared`, is for other users of this machine (shared.py).
A layer that is not here may lie in an additional store: in our own form, or in the shared one where we can mount that.
Beside each folder `<DiffID>.json` holds what unpacking found (bytes, entries, what was left out). Invariant: one
process at a time works on a layer, under its lock; a folder is never changed after it got its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt import child, errors
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest
from minirt.store.additional import exposed
from minirt.store.files import locked, try_lock
from minirt.store.layout import Layout
from minirt.store.limits import Limits
from minirt.store.shared import FORM
from minirt.store.tree import remove
from minirt.userns import IdMapping

if TYPE_CHECKING:
    from minirt.nursery import Nursery

Feed = Callable[[int], Iterable[bytes]]
_PIPE_SIZE = 1 << 20


@dataclass(frozen=True)
class Place:
    """Where an unpacked layer lies. `store`: the additional store; `shared`: only fuse-overlayfs shows it as it is, and
    then `folders` are those that folders.py has to make."""

    path: Path
    store: Path | None = None
    shared: bool = False
    folders: tuple[str, ...] = ()


class Layers:
    """`ids` None means layers are kept packed: this machine cannot hold their owners (see `Store.ids`).

    `plain`: whiteouts stay the archive's own `.wh.` files, for where the kernel's overlay will not lie over them: any
    file system holds those, while the kernel's marks (device 0:0, xattr) are refused on another overlay, say.
    `shares()`: whether we can lay others' shared layers. `shared`: these are the shared layers of our own store.
    """

    def __init__(
        self,
        root: Path,
        layout: Layout,
        ids: IdMapping | None,
        plain: bool = False,
        shares: Callable[[], bool] = bool,
        shared: bool = False,
    ) -> None:
        self._root, self._layout, self.ids, self._plain = root, layout, ids, plain
        self._shares, self._shared = shares, shared
        self._staff: Nursery | None = None
        self._busy, self._lock = 0, threading.Lock()
        form = ids.form + ("-plain" if plain else "") if ids else "packed"
        self.folder = root / "layers" / (FORM if shared else form)

    def find(self, diff_id: Digest, direct: bool = False) -> Place | None:
        """Where the layer lies unpacked, here first; with `direct` not where only fuse-overlayfs could lay it."""
        own = self.folder / diff_id.hex
        if own.is_dir():
            return Place(own)
        if self.ids is None or self._shared:
            return None
        for other in self._layout.others():
            store = other.path.parent
            place = store / "layers" / self.folder.name / diff_id.hex
            if _safe(place, shared=False):
                return Place(place, store)
            place = store / "layers" / FORM / diff_id.hex
            if not direct and _safe(place, shared=True) and self._shares():
                folders = _facts(place).get("folders")
                if isinstance(folders, list):
                    return Place(place, store, True, tuple(map(str, folders)))
        return None

    def path(self, diff_id: Digest) -> Path:
        """The layer's folder, an overlayfs lower: where it lies, or would lie here."""
        found = self.find(diff_id)
        return found.path if found else self.folder / diff_id.hex

    def ready(self, diff_id: Digest, direct: bool = False) -> bool:
        return self.ids is None or self.find(diff_id, direct) is not None

    def complete(self, layer: Descriptor, diff_id: Digest, direct: bool = False) -> bool:
        """Both the blob and its unpacked form are here, or in an additional store."""
        return self._layout.has(layer.digest) and self.ready(diff_id, direct)

    def facts(self, diff_id: Digest) -> dict[str, Any]:
        """`size` in bytes, `entries`, `notes` (what was left out: how often); empty where it is not unpacked."""
        return _facts(self.path(diff_id))

    def received(self, layer: Descriptor) -> int:
        """Bytes of the blob that an earlier, unfinished download left."""
        try:
            return min(os.stat(self._ingest(layer.digest)).st_size, layer.size)
        except FileNotFoundError:
            return 0

    def fetch(self, layer: Descriptor, diff_id: Digest, feed: Feed | None = None, direct: bool = False) -> bool:
        """Make the layer complete: `feed(offset)` gives its blob's bytes from `offset` on. False if it already was.

        Without `feed` the blob must be here, else NotFound; an additional store's is used where it lies. Raises
        VerificationError, UnpackError, StoreError, and whatever `feed` raises; received bytes are kept.
        """
        (self._root / "ingest").mkdir(exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self._ingest(layer.digest).with_suffix(".lock")
        with locked(lock) as held:
            try:
                if self.complete(layer, diff_id, direct):
                    return False
                where = self._layout.blob(layer.digest)
                if where != self._layout.place(layer.digest):
                    try:
                        self._work(layer, diff_id, held, where, direct=direct)
                        return True
                    except (errors.NotFound, errors.VerificationError, errors.UnpackError):  # gone, or damaged
                        if feed is None:
                            raise
                self._work(layer, diff_id, held, None, feed, direct)
                return True
            finally:
                lock.unlink(missing_ok=True)

    def _work(
        self,
        layer: Descriptor,
        diff_id: Digest,
        held: int | None,
        other: Path | None,
        feed: Feed | None = None,
        direct: bool = False,
    ) -> None:
        """Have the layer unpacked: from the blob that `other` is, else from our own and what `feed` brings of it."""
        blob = self._layout.place(layer.digest)
        job = {
            "action": "unpack",
            "digest": layer.digest,
            "size": layer.size,
            "blob": str(blob),
            "ingest": str(self._ingest(layer.digest)),
            "store": str(self._root),
            "other": str(other) if other else None,
        }
        blob.parent.mkdir(exist_ok=True)
        if not self.ready(diff_id, direct):
            target = str(self.folder / diff_id.hex)
            job |= {"diff_id": diff_id, "layer": target, "plain": self._plain, "shared": self._shared}
            job["limits"] = vars(Limits.load())
        have = layer.size if other or blob.is_file() else self.received(layer)
        if have < layer.size and feed is None:
            raise errors.NotFound(f"layer {layer.digest.short} is not in the store: pull the image again")
        try:
            work(job, self.ids, feed(have) if feed and have < layer.size else (), held, self._staff)
        except errors.VerificationError:
            if feed is None or not have:
                raise
            # What lay here was damaged, by a power cut say: now it is gone.
            work(job, self.ids, feed(0), held, self._staff)

    @contextlib.contextmanager
    def staffed(self) -> Iterator[None]:
        """For who will fetch several: meanwhile a worker is forked from one that has its code loaded."""
        if sys.platform == "linux":
            from minirt.nursery import Nursery

            with self._lock:
                self._busy += 1
                self._staff = self._staff or Nursery("minirt.store.workers")
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                if self._staff and self._busy <= 0:
                    self._staff.close()
                    self._staff = None

    def _ingest(self, digest: Digest) -> Path:
        return self._root / "ingest" / f"{digest.algorithm}-{digest.hex}"


def _facts(place: Path) -> dict[str, Any]:
    try:
        facts = json.loads(place.with_name(place.name + ".json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _safe(place: Path, shared: bool) -> bool:
    """Is there a layer in an additional store that nobody but its owner and we could write to?

    A shared layer is wholly its owner's. In our own form files belong to whom the image says: there the folder above
    has to shut others out, as `layers/trusted` and a user's own do.
    """
    try:
        if not stat.S_ISDIR(os.lstat(place).st_mode) or exposed(place.parent.parent) or exposed(place.parent):
            return False
        return not exposed(place) if shared else not os.lstat(place.parent).st_mode & 0o077
    except OSError:
        return False


def work(
    job: dict[str, Any],
    ids: IdMapping | None,
    feed: Iterable[bytes] = (),
    held: int | None = None,
    staff: Nursery | None = None,
) -> dict[str, Any]:
    """Run one job in a worker process, feeding its stdin; returns its answer. Raises what the worker reports.

    The worker inherits the lock `held`: when we are killed, it holds on until it has stopped writing. It is one of
    `staff`, or a new one.
    """
    words, status = json.dumps(job | {"ids": (ids or IdMapping()).to_json()}), "unknown"
    with tempfile.TemporaryFile() as trouble:
        if staff:
            answers = _forked(staff, words, feed, trouble.fileno(), held)
        else:
            process = subprocess.Popen(
                child.command("minirt.store.worker", words),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=trouble,
                start_new_session=True,  # a Ctrl-C is for us; the worker sees its input end
                cwd="/" if os.name == "posix" else None,
                pass_fds=() if held is None or os.name != "posix" else (held,),
            )
            assert process.stdin and process.stdout
            try:
                _feed(process.stdin.fileno(), feed)
            finally:
                process.stdin.close()
                answers = process.stdout.read().splitlines()
                process.stdout.close()
                status = str(process.wait())
        trouble.seek(0)
        why = trouble.read().decode(errors="replace").strip().splitlines()[-1:]
    last: dict[str, Any] = json.loads(answers[-1]) if answers else {}
    if "done" in last:
        done: dict[str, Any] = last["done"]
        return done
    if "error" in last:
        raise getattr(errors, last["error"])(last["text"])
    raise errors.StoreError(f"the unpack worker died (status {status}): {''.join(why) or 'it was killed'}")


def _forked(staff: Nursery, words: str, feed: Iterable[bytes], trouble: int, held: int | None) -> list[bytes]:
    """The lines a worker of the nursery answers with. Its end is the end of its output: it is not our child."""
    (theirs, ours), (answer, told) = os.pipe(), os.pipe()
    with os.fdopen(answer, "rb") as output:
        try:
            try:
                staff.spawn([words], [theirs, told, trouble, *([] if held is None else [held])])
            finally:
                os.close(theirs)
                os.close(told)
            _feed(ours, feed)
        finally:
            os.close(ours)
        return output.read().splitlines()


def remove_tree(path: Path, ids: IdMapping | None) -> None:
    """Remove a tree, whoever owns its files: those of a plain user's subordinate ids need a worker's rights."""
    if ids is not None and ids.rootless and not ids.single:
        work({"action": "remove", "paths": [str(path)]}, ids)
    else:
        remove(str(path))


def take(layer: Path) -> bool:
    """Take a layer's name away, at once: what is half removed is no layer, also if we are killed. False where a
    container of another user stands on it: those lock its folder (runtime/rootfs.py), all that they can do to it."""
    try:
        fd = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:  # an id of ours owns it, and closed it to all others
        fd = -1
    try:
        if fd < 0 or try_lock(fd, shared=False):
            os.rename(layer, layer.with_name(f".{layer.name}.{time.time_ns()}"))
            return True
    finally:
        if fd >= 0:
            os.close(fd)
    return False


def _feed(pipe: int, feed: Iterable[bytes]) -> None:
    """Write all of `feed` into the pipe; stop where the worker stopped reading (it says why)."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # a wish: the user's pipes may be at their limit
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    for chunk in feed:
        left = memoryview(chunk)
        try:
            while left:
                left = left[os.write(pipe, left) :]
        except BrokenPipeError:
            return
