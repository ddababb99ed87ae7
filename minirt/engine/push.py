"""Push: what an image consists of to a registry, layers beside each other, and its name last.

What is pushed are the bytes that were pulled, so an image keeps its digest from registry to registry. Layers made here
(commit, import, load) lie unpacked in the store: no registry has seen them, and they are compressed first; the image's
ID, its config's digest, stays. A layer is sent only where the repository has not got it, nor another one of the same
registry that we know to have it. Progress is docker's JSON lines, as `POST /images/{name}/push` streams them.
Taught in chapter 04.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from minirt import trace
from minirt.engine.crew import Crew
from minirt.engine.pull import name_image
from minirt.errors import MinirtError, NotFound
from minirt.image.descriptor import FOREIGN_LAYERS, LAYER_TYPES, OCI_MANIFEST, Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import Manifest
from minirt.image.reference import Reference
from minirt.registry.patience import telling
from minirt.store.compress import compressed
from minirt.store.names import Named
from minirt.store.store import Image, Store

if TYPE_CHECKING:
    from minirt.engine.answers.images import ProgressDetail, PushImageInfo
    from minirt.registry.client import Registry
    from minirt.registry.upload import Upload

Tell = Callable[["PushImageInfo"], None]
_TICK = 0.1  # seconds between progress lines of one layer
_MOST = 5  # layers at once, as dockerd
_TRIES = 3  # other repositories a layer is asked to be taken over from


class Push:
    """The pushes of one repository; `registry` answers for it."""

    def __init__(self, store: Store, registry: Registry, reference: Reference) -> None:
        self._store, self._reference = store, reference
        self._upload: Upload = registry.upload(reference.path)

    def run(self, named: Named) -> Generator[PushImageInfo | None, None, None]:
        """Push one name, yielding progress, and None where there is none for a while. Raises MinirtError."""
        store = self._store
        with store.using():
            known, homes = self._known(named), self._homes()
            image = store.image(known.manifest)
            layers = dict.fromkeys(reversed(image.layers))  # the same one may stand twice in an image
            for _, diff_id in layers:
                yield _line("Preparing", diff_id)
            for _, diff_id in list(layers)[_MOST:]:
                yield _line("Waiting", diff_id)
            sent: dict[Descriptor, Descriptor] = {}

            def work(job: tuple[Descriptor, Digest], tell: Tell) -> None:
                layer, diff_id = job
                made_here = known.local and LAYER_TYPES[layer.media_type][0] == "none"
                sent[layer] = compressed(store.layout, layer) if made_here else layer
                with telling(lambda text: tell(_line(text, diff_id))):
                    self._layer(sent[layer], diff_id, homes, tell)

            yield from Crew(work, list(layers), _MOST).run()
            manifest, content = self._manifest(image, sent)
            tag = str(named.reference.tag)

            def name(config: Descriptor, tell: Tell) -> None:
                with telling(lambda text: tell({"status": text})):
                    if not self._upload.has(config):
                        self._upload.put(config, store.layout.blob(config.digest), lambda count: None)
                    self._upload.manifest(content, manifest.media_type, tag)

            yield from Crew(name, [manifest.config], 1).run()
            target = Descriptor(manifest.media_type, Digest.of(content), len(content))
            with contextlib.suppress(OSError):  # it is pushed; a store that we may only read cannot say so
                self._note(image, named, manifest, content, target)
        trace.publish("registry", "pushed", image=named.reference.familiar, digest=str(target.digest))
        yield {"status": f"{tag}: digest: {target.digest} size: {target.size}"}
        yield {"progressDetail": {}, "aux": {"Tag": tag, "Digest": str(target.digest), "Size": target.size}}

    def _known(self, named: Named) -> Named:
        """A name of the same image by which a registry knows it, else this one: then the bytes are a registry's."""
        family = [each for each in self._store.names.all() if each.id == named.id and not each.local]
        return next((each for each in (named, *family) if not each.local), named)

    def _homes(self) -> dict[Digest, list[str]]:
        """Other repositories of this registry, by the layers that they are known to have."""
        found: dict[Digest, list[str]] = {}
        for named in self._store.names.all():
            if named.local or named.reference.domain != self._reference.domain:
                continue
            if named.reference.path != self._reference.path:
                with contextlib.suppress(MinirtError):  # a damaged image tells nothing
                    for layer in self._store.image(named.manifest).manifest.layers:
                        found.setdefault(layer.digest, []).append(named.reference.path)
        return found

    def _layer(self, layer: Descriptor, diff_id: Digest, homes: dict[Digest, list[str]], tell: Tell) -> None:
        last = 0.0

        def sent(count: int) -> None:
            nonlocal last
            if time.monotonic() - last > _TICK:
                last = time.monotonic()
                tell(_line("Pushing", diff_id, (count, layer.size)))

        if layer.media_type in FOREIGN_LAYERS:
            tell(_line("Skipped foreign layer", diff_id))
            return
        if self._upload.has(layer):
            tell(_line("Layer already exists", diff_id))
            return
        for home in list(dict.fromkeys(homes.get(layer.digest, ())))[:_TRIES]:
            if self._upload.mount(layer.digest, home):
                tell(_line(f"Mounted from {home}", diff_id))
                return
        self._upload.put(layer, self._store.layout.blob(layer.digest), sent)
        tell(_line("Pushed", diff_id))

    def _manifest(self, image: Image, sent: dict[Descriptor, Descriptor]) -> tuple[Manifest, bytes]:
        """The image's own, byte by byte, or one of the layers as they were sent."""
        if all(layer == other for layer, other in sent.items()):
            return image.manifest, self._store.layout.read(image.manifest_digest)
        layers = tuple(sent[layer] for layer in image.manifest.layers)
        manifest = replace(image.manifest, media_type=OCI_MANIFEST, layers=layers)
        return manifest, manifest.as_oci()

    def _note(self, image: Image, named: Named, manifest: Manifest, content: bytes, target: Descriptor) -> None:
        """From now on the registry knows it by this digest."""
        if not named.local and named.target == target:
            return
        digest = self._store.layout.write(content)
        if named not in self._store.names.all():  # removed or moved meanwhile
            return
        new = name_image(self._store, named.reference, target, manifest, digest, image.config)
        self._store.names.set(new, manifest, len(content))


def names_to_push(store: Store, reference: Reference, all_tags: bool) -> list[Named]:
    """Which names are meant, in order. Raises NotFound, in dockerd's words."""
    mine = [n for n in store.names.all() if n.reference.name == reference.name and n.reference.tag]
    if not mine:
        raise NotFound(f"An image does not exist locally with the tag: {reference.familiar_name}")
    found = [n for n in mine if all_tags or n.reference.tag == reference.tag]
    if not found:
        raise NotFound(f"tag does not exist: {reference.familiar}")
    return sorted(found, key=lambda named: str(named.reference))


def _line(status: str, diff_id: Digest, count: tuple[int, int] | None = None) -> PushImageInfo:
    """One progress object; also told to the trace."""
    detail: ProgressDetail = {} if count is None else {"current": count[0], "total": count[1]}
    trace.publish("registry", "progress", id=diff_id.short, status=status, **detail)
    return {"status": status, "progressDetail": detail, "id": diff_id.short}
