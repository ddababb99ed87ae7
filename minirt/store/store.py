"""The store as a whole: one root folder, what this machine lets us do with it, and the rules for letting go of content.

Invariant: content is removed only when no name and no container reaches it, under the exclusive side of `gc.lock`;
pulls and creates hold the shared side, so nothing vanishes between looking and using.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minirt.errors import MinirtError, StoreError
from minirt.image.config import ImageConfig
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import Index, Manifest, parse
from minirt.store.files import locked, write_atomic
from minirt.store.layers import Layers, work
from minirt.store.layout import Layout
from minirt.store.names import Named, Names
from minirt.store.tree import remove
from minirt.userns import IdMapping, detect

VERSION = "1"


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
        return list(zip(self.manifest.layers, self.config.diff_ids, strict=True))


class Store:
    """Opens (and on first use makes) the store in `root`. Raises StoreError where that is impossible."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.containers = root / "containers"
        self.layout = Layout(root / "oci")
        self.names = Names(self.layout)
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check_version()
            self.containers.mkdir(exist_ok=True, mode=0o700)
            self.layout.create()
        except OSError as error:
            hint = " (another MINIRT_ROOT can be set)" if isinstance(error, PermissionError) else ""
            raise StoreError(f"cannot use {root} as the store: {error.strerror}{hint}") from error

    def _check_version(self) -> None:
        marker = self.root / "version"
        try:
            version = marker.read_text().strip()
        except FileNotFoundError:
            write_atomic(marker, VERSION.encode() + b"\n", 0o644)
            version = VERSION
        if version != VERSION:
            raise StoreError(f"{self.root} was written by another minirt (format {version[:20]!r}, ours is {VERSION})")

    @cached_property
    def _rights(self) -> dict[str, Any]:
        """What was found out by trying, kept until the next boot or a change of the user's id ranges."""
        if sys.platform != "linux":
            return {"ids": None, "overlay": False, "reason": "containers run on Linux only"}
        stamps = [os.stat(path).st_mtime_ns if os.path.exists(path) else 0 for path in ("/etc/subuid", "/etc/subgid")]
        key = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.getuid(), stamps]
        record = self.root / "rights.json"
        with contextlib.suppress(FileNotFoundError, ValueError):
            known: dict[str, Any] = json.loads(record.read_bytes())
            if known.get("key") == key:
                return known
        ids = detect()
        overlay = {"works": False, "reason": "user namespaces are refused"}
        if ids is not None:
            trial = self.root / f".trial-{os.getpid()}"
            trial.mkdir()
            try:
                overlay = work({"action": "try-overlay", "path": str(trial)}, ids)
            finally:
                work({"action": "remove", "paths": [str(trial)]}, ids)
        found = {
            "key": key,
            "ids": ids.to_json() if ids else None,
            "overlay": overlay["works"],
            "reason": overlay["reason"],
        }
        write_atomic(record, json.dumps(found).encode())
        return found

    @cached_property
    def ids(self) -> IdMapping | None:
        """The mapping files are unpacked with; None where this machine can only keep layers packed."""
        ids = self._rights["ids"]
        return IdMapping.from_json(ids) if ids else None

    @property
    def overlay(self) -> tuple[bool, str]:
        """Does overlayfs work on this store's file system, and if not, what the kernel said."""
        return self._rights["overlay"], self._rights["reason"]

    @cached_property
    def layers(self) -> Layers:
        return Layers(self.root, self.layout, self.ids)

    def using(self) -> contextlib.AbstractContextManager[bool]:
        """Hold while looking content up and starting to depend on it."""
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
        """Blobs and DiffIDs that some name or container needs."""
        blobs: set[Digest] = set()
        diff_ids: set[Digest] = set()
        entries = [Descriptor.from_json(entry, "index.json") for entry in self.layout.index()]
        manifests = [entry.digest for entry in entries] + list(self.container_images().values())
        manifests += [named.manifest for named in self.names.all()]
        for digest in set(manifests):
            blobs.add(digest)
            if not self.layout.has(digest):
                continue
            content = self.layout.read(digest)
            document = parse(content, _media_type(content))
            if isinstance(document, Index):
                continue
            blobs |= {document.config.digest, *(layer.digest for layer in document.layers)}
            diff_ids |= set(ImageConfig.parse(self.layout.read(document.config.digest)).diff_ids)
        return blobs, diff_ids

    def sweep(self, unfinished: bool = False) -> tuple[list[Digest], int]:
        """Remove what nothing reaches, and with `unfinished` also downloads not completed.

        Returns DiffIDs removed and bytes freed; does nothing while another process pulls or creates.
        """
        with locked(self.root / "gc.lock", wait=False) as alone:
            if not alone:
                return [], 0
            blobs, diff_ids = self._reachable()
            freed = 0
            for digest in [d for d in self.layout.blobs() if d not in blobs]:
                freed += self.layout.blob(digest).stat().st_size
                self.layout.blob(digest).unlink()
            gone, paths = self._stale(diff_ids)
            if unfinished:
                for file in self._ingests():
                    freed += file.stat().st_size
                    file.unlink()
            for path in paths:
                freed += work({"action": "measure", "path": str(path)}, self.ids)["bytes"]
            if paths:
                work({"action": "remove", "paths": [str(path) for path in paths]}, self.ids)
            for path in paths:
                path.with_name(path.name + ".json").unlink(missing_ok=True)
            return gone, freed

    def _stale(self, diff_ids: set[Digest]) -> tuple[list[Digest], list[Path]]:
        """Layers no image names, and folders a killed worker left half unpacked."""
        gone, paths = [], []
        for path in self._layer_folders():
            if path.name.startswith("."):
                paths.append(path)
            elif (digest := Digest(f"sha256:{path.name}")) not in diff_ids:
                gone.append(digest)
                paths.append(path)
        return gone, paths

    def _layer_folders(self) -> Iterator[Path]:
        if self.layers.folder.is_dir():
            yield from sorted(path for path in self.layers.folder.iterdir() if path.is_dir())

    def _ingests(self) -> list[Path]:
        folder = self.root / "ingest"
        return [p for p in sorted(folder.iterdir()) if p.suffix != ".lock"] if folder.is_dir() else []

    def check(self) -> Iterator[dict[str, Any]]:
        """Verify everything; yields a row `{"what", "problem"}` for each thing that is not as it should be."""
        for digest in self.layout.blobs():
            hasher = digest.hasher()
            with open(self.layout.blob(digest), "rb") as file:
                while chunk := file.read(1 << 20):
                    hasher.update(chunk)
            if not digest.matches(hasher):
                yield {"what": f"blob {digest}", "problem": "its bytes do not match its digest"}
        for named in self.names.all():
            for problem in self._image_problems(named):
                yield {"what": f"image {named.reference.familiar}", "problem": problem}
        for path in self._layer_folders():
            if path.name.startswith("."):
                yield {"what": f"layer {path.name[1:13]}", "problem": "half unpacked: `minirt system prune` removes it"}
        for folder in sorted(self.containers.iterdir()):
            if not (folder / "container.json").exists():
                yield {
                    "what": f"container {folder.name[:12]}",
                    "problem": "half made: `minirt system prune` removes it",
                }

    def _image_problems(self, named: Named) -> Iterator[str]:
        try:
            image = self.image(named.manifest)
        except MinirtError as error:
            yield str(error)
            return
        for layer, diff_id in image.layers:
            if not self.layout.has(layer.digest):
                yield f"layer blob {layer.digest.short} is missing: pull the image again"
            if not self.layers.ready(diff_id):
                yield f"layer {diff_id.short} is not unpacked: pull the image again"

    def unfinished(self) -> int:
        """Bytes of downloads that can be resumed."""
        return sum(path.stat().st_size for path in self._ingests())

    def half_made(self) -> Iterable[Path]:
        """Container folders whose making or removal was cut short."""
        return [folder for folder in self.containers.iterdir() if not (folder / "container.json").exists()]

    def remove_folder(self, folder: Path, ids: IdMapping | None) -> None:
        """Remove a container's folder, whoever owns its files; its record goes first, so half a removal shows."""
        (folder / "container.json").unlink(missing_ok=True)
        if ids is not None and ids.rootless:
            work({"action": "remove", "paths": [str(folder)]}, ids)
        else:
            remove(str(folder))


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
