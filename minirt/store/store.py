"""The store as a whole: one root folder, what this machine lets us do with it, and the rules for letting go of content.

Invariant: content is removed only when no name and no container reaches it, under the exclusive side of `gc.lock`;
pulls and creates hold the shared side, so nothing vanishes between looking and using.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minirt.errors import InvalidInput, MinirtError, NotFound, StoreError, VerificationError
from minirt.image.config import ImageConfig
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import Manifest, load_json, parse
from minirt.store import shared
from minirt.store.additional import Additional
from minirt.store.files import locked, write_atomic
from minirt.store.format import settle
from minirt.store.layers import Layers, remove_tree, take, work
from minirt.store.layout import Layout
from minirt.store.names import Named, Names
from minirt.userns import IdMapping, detect

_AGAIN = 5.0  # seconds
_BATCH = 50  # paths one worker is told to remove: an argument has at most 128 KiB


@dataclass(frozen=True)
class Image:
    """One stored image: its platform's manifest and its config. `manifest_size` in bytes."""

    manifest: Manifest
    manifest_digest: Digest
    manifest_size: int
    config: ImageConfig

    @property
    def id(self) -> Digest:
        return self.manifest.config.digest

    @property
    def layers(self) -> list[tuple[Descriptor, Digest]]:
        """(blob, DiffID) of each layer, base first."""
        return pairs(self.manifest, self.config)


def pairs(manifest: Manifest, config: ImageConfig) -> list[tuple[Descriptor, Digest]]:
    """(blob, DiffID) of each layer, base first. Raises VerificationError where manifest and config disagree."""
    if len(manifest.layers) != len(config.diff_ids):
        raise VerificationError(
            f"image has {len(manifest.layers)} layers but its config lists {len(config.diff_ids)} DiffIDs"
        )
    return list(zip(manifest.layers, config.diff_ids, strict=True))


class Store:
    """Opens (and on first use makes) the store in `root`. Raises StoreError where that is impossible."""

    def __init__(self, root: Path, additional: Callable[[], Iterable[Path]] = tuple) -> None:
        """`additional` tells the folders of additional stores; whoever asks again may be told others."""
        self.root = root
        self.containers = root / "containers"
        self.additional = Additional(additional, root)
        self.layout = Layout(root / "oci", self.additional)
        self._tried = 0.0
        self.names = Names(self.layout)
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            settle(root)
            with self._held():
                self.containers.mkdir(exist_ok=True, mode=0o700)
                self.layout.create()
        except OSError as error:
            hint = " (another MINIRT_ROOT can be set)" if isinstance(error, PermissionError) else ""
            raise StoreError(f"cannot use {root} as the store: {error.strerror}{hint}") from error

    @cached_property
    def _rights(self) -> dict[str, Any]:
        """What was found out by trying. What works is remembered, until the next boot or a change of the user's ids;
        what does not is tried again by each process, and after `again`: the user may just have mended it."""
        if sys.platform != "linux":
            return {"ids": None, "overlay": False, "reason": "containers run on Linux only"}
        stamps = [os.stat(path).st_mtime_ns if os.path.exists(path) else 0 for path in ("/etc/subuid", "/etc/subgid")]
        spaces = [os.readlink(f"/proc/self/ns/{name}") for name in ("user", "mnt")]  # a container may share our store
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        key = [boot, os.getuid(), stamps, spaces, shutil.which("newuidmap")]
        record = self.root / "rights.json"
        with contextlib.suppress(FileNotFoundError, ValueError):
            known: dict[str, Any] = json.loads(record.read_bytes())
            if known.get("key") == key:
                return known
        self._tried = time.monotonic()
        ids = detect()
        overlay: dict[str, Any] = {"works": False, "reason": "this machine refuses namespaces"}
        fuse = False
        if ids is not None and not ids.faked:
            with self._held():
                overlay = self._try(ids, "try-overlay")
                fuse = not overlay["works"] and self._try(ids, "try-fuse-overlayfs")["works"]
        found = {
            "key": key,
            "ids": ids.to_json() if ids else None,
            "overlay": overlay["works"],
            "reason": overlay["reason"],
            "fuse": fuse,
            "untried": overlay.get("untried", False),  # then layers have the form that others gave them
        }
        if overlay["works"]:
            with self._held():
                write_atomic(record, json.dumps(found).encode())
        return found

    def again(self) -> None:
        """Forget what did not work, where that is a while ago."""
        rights = self.__dict__.get("_rights")
        if rights and not rights["overlay"] and time.monotonic() - self._tried > _AGAIN:
            for name in ("layers", "pulled", "shares", "ids", "_rights"):
                self.__dict__.pop(name, None)

    def _try(self, ids: IdMapping, action: str) -> dict[str, Any]:
        try:
            trial = tempfile.mkdtemp(prefix=".trial-", dir=self.root)
        except OSError as error:  # read-only or full: what is there can still be looked at
            return {"works": False, "reason": error.strerror, "untried": True}
        try:
            return work({"action": action, "path": trial}, ids)
        finally:
            work({"action": "remove", "paths": [trial]}, ids)

    @cached_property
    def ids(self) -> IdMapping | None:
        """The mapping files are unpacked with; None where this machine can only keep layers packed."""
        ids = self._rights["ids"]
        return IdMapping.from_json(ids) if ids else None

    @property
    def overlay(self) -> tuple[bool, str]:
        """Does overlayfs work on this store's file system, and if not, what the kernel said."""
        return self._rights["overlay"], self._rights["reason"]

    @property
    def driver(self) -> str:
        """What a container's disk is made of: overlay, fuse-overlayfs or copy, the first that works."""
        rights = self._rights
        return "overlay" if rights["overlay"] else "fuse-overlayfs" if rights.get("fuse") else "copy"

    @cached_property
    def layers(self) -> Layers:
        plain = self.driver != "overlay" and not self._rights.get("untried")
        return Layers(self.root, self.layout, self.ids, plain, lambda: not self.shares)

    @cached_property
    def pulled(self) -> Layers:
        """What a pull unpacks: the layers containers here stand on, or those of a store that is for others.

        There a container of this store's own has its layers unpacked once more, when it is made.
        """
        return Layers(self.root, self.layout, self.ids, shared=True) if self.is_shared else self.layers

    @property
    def is_shared(self) -> bool:
        """Has its owner opened it to others (share.py)?"""
        return (self.root / "layers" / shared.FORM).is_dir()

    @cached_property
    def shares(self) -> str:
        """Why others' shared layers cannot be laid here, found out by trying; empty where they can.

        Asked only where there is one; what works is remembered with the other rights.
        """
        ids, rights = self.ids, self._rights
        if ids is None or not shared.possible(ids):
            return "root has its own form of layers" if ids and not ids.rootless else "there are too few ids"
        if not rights.get("shares"):
            with self.using():
                tried = self._try(ids, "try-shared")
                if not tried["works"]:
                    return str(tried["reason"])
                rights["shares"] = True
                if rights["overlay"]:
                    write_atomic(self.root / "rights.json", json.dumps(rights).encode())
        return ""

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Hold while looking content up and starting to depend on it. Where that fails, nothing stays half written."""
        try:
            with self._held():
                yield
        except (OSError, StoreError):  # a disk that is full or broken, a worker that was killed
            self.mend()
            raise

    def _held(self) -> contextlib.AbstractContextManager[int | None]:
        return locked(self.root / "gc.lock", shared=True)

    def image(self, manifest: Digest) -> Image:
        """Read an image back by its manifest. Raises NotFound, VerificationError."""
        content = self.layout.read(manifest)
        document = parse(content, _media_type(content))
        if not isinstance(document, Manifest):
            raise StoreError(f"{manifest} is an index, not one image")
        return Image(document, manifest, len(content), ImageConfig.parse(self.layout.read(document.config.digest)))

    def container_images(self) -> dict[str, Digest]:
        """Manifest of each container's image, by container id: these are kept whatever the names say."""
        found = {}
        for record in self.containers.glob("*/container.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):  # being removed right now
                found[record.parent.name] = Digest(json.loads(record.read_bytes())["manifest"])
        return found

    def _reachable(self) -> tuple[set[Digest], set[Digest]]:
        """Blobs and DiffIDs that some name or container needs. Raises VerificationError where one is damaged."""
        names = self.names.own()
        blobs = {named.target.digest for named in names}
        diff_ids: set[Digest] = set()
        for manifest in {*self.container_images().values(), *(named.manifest for named in names)}:
            blobs.add(manifest)
            with contextlib.suppress(NotFound):
                image = self.image(manifest)
                blobs |= {image.id, *(layer.digest for layer in image.manifest.layers)}
                diff_ids |= set(image.config.diff_ids)
        # What other tools put into the layout is theirs, whatever it is: all that it names stays.
        pending: list[Any] = list(self.layout.index())
        while pending:
            with contextlib.suppress(MinirtError):  # not here, or no document: then it names nothing more
                digest = Descriptor.from_json(pending.pop(), "index.json").digest
                if digest not in blobs:
                    blobs.add(digest)
                    document = load_json(self.layout.read(digest), "manifest")
                    for below in (document.get(key) for key in ("manifests", "layers", "config")):
                        pending += below if isinstance(below, list) else [below]
        return blobs, diff_ids

    def sweep(self, unfinished: bool = False) -> tuple[list[Digest], int]:
        """Remove what nothing reaches, and with `unfinished` also downloads not completed.

        Returns DiffIDs removed and bytes freed; does nothing while another process pulls or creates.
        """
        try:
            return self._sweep(unfinished)
        except (OSError, StoreError):  # as in `using`
            self.mend()
            raise

    def _sweep(self, unfinished: bool) -> tuple[list[Digest], int]:
        # Before the lock: trying what this machine can do holds its other side.
        folders, ids = {self.layers.folder, self.pulled.folder}, self.ids
        with locked(self.root / "gc.lock", wait=False) as alone:
            if alone is None:
                return [], 0
            blobs, diff_ids = self._reachable()
            freed, gone = 0, dict[Digest, None]()
            files = [self.layout.blob(digest) for digest in self.layout.blobs() if digest not in blobs]
            for file in files + (self._ingests() if unfinished else []):
                freed += file.stat().st_size
                file.unlink()
            for layers in folders:
                for path in layers.glob("[0-9a-f]*[0-9a-f]"):
                    with contextlib.suppress(InvalidInput):  # not a layer's name: not ours
                        digest = Digest(f"sha{4 * len(path.name)}:{path.name}")
                        if digest not in diff_ids and take(path):
                            gone[digest] = None
            freed += self._remove(self._leftovers(*(layers.name for layers in folders)), ids)
            for layers in folders:
                for file in layers.glob("*.json"):
                    if not file.with_suffix("").exists():
                        file.unlink()
            return list(gone), freed

    def _leftovers(self, *forms: str) -> list[Path]:
        """What killed processes left half written; only true while no other process writes (see `gc.lock`).

        Of unpacked layers those of these forms: others may have owners that we are not.
        """
        half = [".*.new", ".load-*", ".trial-*", "oci/.*.new", "oci/blobs/*/.*.new"]
        half += [f"layers/{form}/.*" for form in forms]
        return [path for pattern in half for path in sorted(self.root.glob(pattern))]

    def mend(self) -> None:
        """Take away what killed processes left half written, where nobody is at work; `check` tells what stays."""
        if not self._leftovers("*"):  # a daemon's start waits for this
            return
        with contextlib.suppress(OSError, StoreError):  # it may be read-only, full or broken
            forms, ids = {self.layers.folder.name, self.pulled.folder.name}, self.ids  # before the lock, as in `sweep`
            with locked(self.root / "gc.lock", wait=False) as alone:
                if alone is not None:
                    self._remove(self._leftovers(*forms), ids)

    @staticmethod
    def _remove(paths: Iterable[Path], ids: IdMapping | None) -> int:
        """Remove trees, whoever owns their files; bytes freed."""
        words, freed = [str(path) for path in paths], 0
        for start in range(0, len(words), _BATCH):
            freed += work({"action": "remove", "paths": words[start : start + _BATCH]}, ids)["bytes"]
        return freed

    def _ingests(self) -> list[Path]:
        folder = self.root / "ingest"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def check(self) -> Iterator[dict[str, Any]]:
        """Verify everything; yields a row `{"what", "problem"}` for each thing that is not as it should be."""
        for layout in (self.layout, *self.layout.others()):
            yield from self._damaged(layout)
        for named in self.names.all():
            for problem in self._image_problems(named):
                yield {"what": f"image {named.reference.familiar}", "problem": problem}
        for other in self.layout.others():
            try:
                other.index()
            except StoreError as error:
                yield {
                    "what": f"additional store {other.path.parent}",
                    "problem": f"none of its images is seen: {error}",
                }
        for path, why in self.additional.refused():
            yield {"what": f"additional store {path}", "problem": f"not used: {why}"}
        for name in self.names.damaged():
            yield {"what": f"name {name[:200]}", "problem": "its entry in index.json is damaged"}
        left = []
        forms = {self.layers.folder.name, self.pulled.folder.name}  # before the lock, as in `sweep`
        with contextlib.suppress(OSError), locked(self.root / "gc.lock", wait=False) as alone:  # a read-only store
            if alone is not None:  # else they may be what another process is at right now
                left = [f"{path.name[:13]} in {path.parent.name}" for path in self._leftovers(*forms)]
                left += [f"container {folder.name[:12]}" for folder in self.half_made()]
        for what in left:
            yield {"what": what, "problem": "half made: `minirt system prune` removes it"}

    def _damaged(self, layout: Layout) -> Iterator[dict[str, Any]]:
        for digest in layout.blobs():
            hasher = digest.hasher()
            with contextlib.suppress(FileNotFoundError), open(layout.place(digest), "rb") as file:
                while chunk := file.read(1 << 20):
                    hasher.update(chunk)
                if not digest.matches(hasher):
                    problem = "its bytes do not match its digest: remove its image and pull it again"
                    where = "" if layout is self.layout else f" in {layout.path.parent}"
                    yield {"what": f"blob {digest}{where}", "problem": problem}

    def _image_problems(self, named: Named) -> Iterator[str]:
        try:
            image = self.image(named.manifest)
        except MinirtError as error:
            yield str(error)
            return
        for layer, diff_id in image.layers:
            if not self.layout.has(layer.digest):
                yield f"layer blob {layer.digest.short} is missing: pull the image again"
            if not named.store and not self.pulled.ready(diff_id):
                yield f"layer {diff_id.short} is not unpacked: pull the image again"

    def unfinished(self) -> int:
        """Bytes of downloads that can be resumed."""
        return sum(path.stat().st_size for path in self._ingests())

    def half_made(self) -> list[Path]:
        """Container folders whose making or removal was cut short."""
        folders = (path for path in sorted(self.containers.iterdir()) if path.is_dir())
        return [folder for folder in folders if not (folder / "container.json").exists()]

    def remove_folder(self, folder: Path, ids: IdMapping | None) -> None:
        """Remove a container's folder, whoever owns its files; its record goes first, so half a removal shows."""
        (folder / "container.json").unlink(missing_ok=True)
        remove_tree(folder, ids)


def _media_type(content: bytes) -> str:
    """The media type of a stored manifest, which may leave it to its descriptor."""
    document = json.loads(content)
    stated = document.get("mediaType")
    if isinstance(stated, str):
        return stated
    return (
        "application/vnd.oci.image.index.v1+json"
        if "manifests" in document
        else "application/vnd.oci.image.manifest.v1+json"
    )
