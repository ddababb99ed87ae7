"""Unpacked layers: `layers/<form>/<DiffID>/`, complete or absent, shared by every image that names the DiffID.

The *form* is what the same archive looks like for different rights: overlay's xattr namespace, the id mapping, and
how a whiteout looks.
Beside each folder `<DiffID>.json` holds what unpacking found (bytes, entries, what was left out). Invariant: one
process at a time works on a layer, under its lock; a folder is never changed after it got its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from minirt import child, errors
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest
from minirt.store.files import locked
from minirt.store.layout import Layout
from minirt.store.limits import Limits
from minirt.store.tree import remove
from minirt.userns import IdMapping

Feed = Callable[[int], Iterable[bytes]]
_PIPE_SIZE = 1 << 20


class Layers:
    """`ids` None means layers are kept packed: this machine cannot hold their owners (see `Store.ids`).

    `plain`: whiteouts stay the archive's own `.wh.` files, for where the kernel's overlay will not lie over them: any
    file system holds those, while the kernel's marks (device 0:0, xattr) are refused on another overlay, say.
    """

    def __init__(self, root: Path, layout: Layout, ids: IdMapping | None, plain: bool = False) -> None:
        self._root, self._layout, self.ids, self._plain = root, layout, ids, plain
        self.folder = root / "layers" / (ids.form + ("-plain" if plain else "") if ids else "packed")

    def path(self, diff_id: Digest) -> Path:
        """The layer's folder, an overlayfs lower."""
        return self.folder / diff_id.hex

    def ready(self, diff_id: Digest) -> bool:
        return self.ids is None or self.path(diff_id).is_dir()

    def complete(self, layer: Descriptor, diff_id: Digest) -> bool:
        """Both the blob and its unpacked form are here."""
        return self._layout.has(layer.digest) and self.ready(diff_id)

    def facts(self, diff_id: Digest) -> dict[str, Any]:
        """`size` in bytes, `entries`, `notes` (what was left out: how often); empty where it is not unpacked."""
        try:
            facts = json.loads(self.path(diff_id).with_name(diff_id.hex + ".json").read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def received(self, layer: Descriptor) -> int:
        """Bytes of the blob that an earlier, unfinished download left."""
        try:
            return min(os.stat(self._ingest(layer.digest)).st_size, layer.size)
        except FileNotFoundError:
            return 0

    def fetch(self, layer: Descriptor, diff_id: Digest, feed: Feed | None = None) -> bool:
        """Make the layer complete: `feed(offset)` gives its blob's bytes from `offset` on. False if it already was.

        Without `feed` the blob must be here, else NotFound. Raises VerificationError, UnpackError, StoreError, and
        whatever `feed` raises; received bytes are kept.
        """
        (self._root / "ingest").mkdir(exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self._ingest(layer.digest).with_suffix(".lock")
        with locked(lock) as held:
            try:
                if self.complete(layer, diff_id):
                    return False
                job = {
                    "action": "unpack",
                    "digest": layer.digest,
                    "size": layer.size,
                    "blob": str(self._layout.blob(layer.digest)),
                    "ingest": str(self._ingest(layer.digest)),
                    "store": str(self._root),
                }
                self._layout.blob(layer.digest).parent.mkdir(exist_ok=True)
                if not self.ready(diff_id):
                    job |= {"diff_id": diff_id, "layer": str(self.path(diff_id)), "plain": self._plain}
                    job["limits"] = vars(Limits.load())
                have = layer.size if self._layout.has(layer.digest) else self.received(layer)
                if have < layer.size and feed is None:
                    raise errors.NotFound(f"layer {layer.digest.short} is not in the store: pull the image again")
                try:
                    work(job, self.ids, feed(have) if feed and have < layer.size else (), held)
                except errors.VerificationError:
                    if feed is None or not have:
                        raise
                    work(job, self.ids, feed(0), held)  # what lay here was damaged, by a power cut say: now it is gone
                return True
            finally:
                lock.unlink(missing_ok=True)

    def _ingest(self, digest: Digest) -> Path:
        return self._root / "ingest" / f"{digest.algorithm}-{digest.hex}"


def work(
    job: dict[str, Any], ids: IdMapping | None, feed: Iterable[bytes] = (), held: int | None = None
) -> dict[str, Any]:
    """Run one job in a worker process, feeding its stdin; returns its answer. Raises what the worker reports.

    The worker inherits the lock `held`: when we are killed, it holds on until it has stopped writing.
    """
    words = job | {"ids": (ids or IdMapping()).to_json()}
    with tempfile.TemporaryFile() as trouble:
        process = subprocess.Popen(
            child.command("minirt.store.worker", json.dumps(words)),
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
            process.wait()
        trouble.seek(0)
        why = trouble.read().decode(errors="replace").strip().splitlines()[-1:]
    last: dict[str, Any] = json.loads(answers[-1]) if answers else {}
    if "done" in last:
        done: dict[str, Any] = last["done"]
        return done
    if "error" in last:
        raise getattr(errors, last["error"])(last["text"])
    raise errors.StoreError(f"the unpack worker died (status {process.returncode}): {''.join(why) or 'it was killed'}")


def remove_tree(path: Path, ids: IdMapping | None) -> None:
    """Remove a tree, whoever owns its files: those of a plain user's subordinate ids need a worker's rights."""
    if ids is not None and ids.rootless and not ids.single:
        work({"action": "remove", "paths": [str(path)]}, ids)
    else:
        remove(str(path))


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
