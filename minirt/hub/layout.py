"""What the hub has made, kept: an OCI image layout (image-spec, image-layout.md).

    oci-layout, index.json, blobs/sha256/…      index.json names images `library/greeter:1.0`
    lock                                        held while an image is made

Invariants: a blob's file gets its name when it is complete; index.json names an image when all its blobs are there. So
readers need no lock, and any number of processes may share the folder. Taught in chapter 05.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minirt.errors import MinirtError, StoreError
from minirt.hub.layer import CREATED, Layer
from minirt.image.descriptor import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import Index, encode, load_json, parse
from minirt.image.platform import Platform

RECIPE = "1"  # raise it when any image is made differently: what an older minirt left is then made anew
_REF_NAME = "org.opencontainers.image.ref.name"
_RECIPE = "io.minirt.hub.recipe"


class Layout:
    """The folder. `add…` is for makers, under the lock that `image` holds. Raises StoreError where it cannot write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._threads = threading.RLock()
        self._depth = 0

    def image(self, name: str, make: Callable[[Layout], Descriptor]) -> Descriptor:
        """The image called `name` (`library/greeter:1.0`): its manifest or index; made by `make` if it is not here."""
        found = self._look_up(name)
        if found:
            return found
        with self._lock():
            found = self._look_up(name)  # another process may have made it while we waited
            if not found:
                try:
                    found = make(self)
                except OSError as error:
                    raise StoreError(f"the hub cannot make {name}: {error}") from error
                named = {**found.to_json(), "annotations": {_REF_NAME: name, _RECIPE: RECIPE}}
                others = [d.to_json() for d in self._index() if d.annotations.get(_REF_NAME) != name]
                index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*others, named]}
                self._write("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
                self._write("index.json", encode(index))
        return found

    def path(self, digest: Digest) -> Path:
        """Where that blob is, or would be. Safe for any digest: a `Digest` is well formed."""
        return self.folder / "blobs" / digest.algorithm / digest.hex

    def add(self, content: bytes, media_type: str, platform: Platform | None = None) -> Descriptor:
        """Keep a blob; what is already there is not written again."""
        descriptor = Descriptor(media_type, Digest.of(content), len(content), platform=platform)
        if not self._has(descriptor):
            self._write(f"blobs/sha256/{descriptor.digest.hex}", content)
        return descriptor

    def add_layer(self, layer: Layer) -> tuple[Descriptor, Digest]:
        """Keep a layer; returns how a manifest points to it, and the DiffID for the config."""
        return self.add(layer.content, f"{OCI_LAYER}+gzip"), layer.diff_id

    def add_image(
        self,
        platform: Platform,
        layers: Sequence[tuple[Descriptor, Digest]],
        settings: dict[str, Any],
        steps: Sequence[str],
    ) -> Descriptor:
        """Keep config and manifest of an image: `layers` and the `steps` that made them, base first; `settings` as in
        the config's `config` (Cmd, Env, Labels)."""
        history: list[dict[str, Any]] = [{"created": CREATED, "created_by": step} for step in steps]
        history.append({"created": CREATED, "created_by": f"CMD {json.dumps(settings['Cmd'])}", "empty_layer": True})
        config = {"created": CREATED, "architecture": platform.architecture, "os": platform.os}
        variant = {"variant": platform.variant} if platform.variant else {}
        rootfs = {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]}
        content = encode({**config, **variant, "config": settings, "rootfs": rootfs, "history": history})
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.add(content, OCI_CONFIG).to_json(),
            "layers": [descriptor.to_json() for descriptor, _ in layers],
        }
        return self.add(encode(manifest), OCI_MANIFEST, platform)

    def _index(self) -> list[Descriptor]:
        """What index.json names; nothing where it is absent or damaged: images can be made again."""
        with suppress(OSError, MinirtError, KeyError, TypeError):
            document = load_json((self.folder / "index.json").read_bytes(), "index.json")
            return [Descriptor.from_json(entry, "index.json") for entry in document["manifests"]]
        return []

    def _look_up(self, name: str) -> Descriptor | None:
        wanted = {_REF_NAME: name, _RECIPE: RECIPE}
        found = next((entry for entry in self._index() if entry.annotations == wanted), None)
        return found if found and self._whole(found) else None

    def _has(self, descriptor: Descriptor) -> bool:
        with suppress(OSError):
            return self.path(descriptor.digest).stat().st_size == descriptor.size
        return False

    def _whole(self, descriptor: Descriptor) -> bool:
        """Is it here, with everything below it? Someone may have swept the folder."""
        if not self._has(descriptor) or descriptor.media_type not in (OCI_INDEX, OCI_MANIFEST):
            return self._has(descriptor)
        document = parse(self.path(descriptor.digest).read_bytes(), descriptor.media_type)
        below = document.manifests if isinstance(document, Index) else (document.config, *document.layers)
        return all(self._whole(part) for part in below)

    def _write(self, name: str, content: bytes) -> None:
        """Write aside, sync, rename."""
        path, aside = self.folder / name, self.folder / f".new-{os.getpid()}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(aside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise StoreError(f"{error.strerror}: the hub cannot write {path}") from error

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One maker at a time, among threads and (but on Windows) processes; a maker may ask for another image."""
        with self._threads:
            if self._depth or os.name != "posix":
                yield
                return
            import fcntl

            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = open(self.folder / "lock", "w")  # noqa: SIM115 - the `with` below closes it
            except OSError as error:
                raise StoreError(f"{error.strerror}: the hub cannot write {self.folder}") from error
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)  # closing the file gives the lock back
                self._depth = 1
                try:
                    yield
                finally:
                    self._depth = 0
