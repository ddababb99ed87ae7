"""Pull, in one pass: manifest → platform → config → every missing layer in parallel → one named image.

Each layer in flight has a thread (its HTTP stream) and an unpack worker (a process); there are as many as cores. The
biggest layers start first, so that none is left running alone at the end. Progress is docker's JSON lines (`status`,
`id`, `progressDetail`), as `POST /images/create` streams them. A pull that ends early, by error, Ctrl-C or a reader
that goes away, keeps the bytes it has; the name appears only when everything is verified. Taught in chapter 04.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

from minirt import trace
from minirt.engine.crew import Crew, Stopped
from minirt.errors import MinirtError, NotFound, VerificationError
from minirt.image.config import ImageConfig
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import Index, Manifest, parse
from minirt.image.platform import Platform
from minirt.image.reference import Reference
from minirt.store.names import Named
from minirt.store.store import Store, pairs

if TYPE_CHECKING:
    from minirt.engine.answers.images import CreateImageInfo, ProgressDetail
    from minirt.engine.sources import Sources
    from minirt.registry.client import Registry

T = TypeVar("T")
_TICK = 0.1  # seconds between progress lines of one layer
_LOOK = 0.5  # seconds between looks whether anybody still wants it
_AHEAD = 16  # chunks of a blob that wait to be unpacked, 4 MB: on a busy machine each hand-over waits its turn


class Pull:
    """One pull of one reference. `newer`: afterwards, whether its name now means something else than before."""

    def __init__(self, store: Store, sources: Sources, reference: Reference, wanted: Platform | None) -> None:
        self._store, self._sources = store, sources
        self._reference = reference.with_digest(reference.digest) if reference.digest else reference
        self._wanted, self.newer = wanted, False
        self._events: queue.SimpleQueue[CreateImageInfo | BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()

    def run(self) -> Generator[CreateImageInfo | None, None, Digest]:
        """Do it, yielding progress, and None where there is none for a while; returns the image's ID (its name may
        be removed before anybody looks). Raises MinirtError."""
        reference, store = self._reference, self._store
        registry, found, note = yield from self._meanwhile(
            lambda: self._sources.ask(reference, lambda r: r.manifest(reference.path, reference.target))
        )
        for path, why in store.additional.refused():
            note += f"{'; ' if note else ''}additional store {path} is not used: {why}"
        if note:
            yield {"status": note}
        with store.using():
            yield {"status": f"Pulling from {reference.path}", "id": reference.tag or reference.familiar}
            target, manifest, content, config = yield from self._meanwhile(lambda: self._resolve(registry, *found))
            layers = _unique(manifest, config)
            yield from self._layers(registry, layers)
            store.layout.write(content)
            named = name_image(store, reference, target, manifest, Digest.of(content), config)
            before = {n.reference: n.target.digest for n in store.names.all()}.get(reference)
            store.names.set(named, manifest, len(content))
        trace.publish("cache", "stored", image=reference.familiar, digest=str(target.digest), size=named.size)
        yield {"status": f"Digest: {target.digest}"}
        self.newer = before != target.digest
        return named.id

    def _meanwhile(self, action: Callable[[], T]) -> Generator[CreateImageInfo | None, None, T]:
        """Do it in a thread; yield what is waited for meanwhile."""
        from minirt.registry.client import telling

        done: list[T] = []

        def work(job: None, tell: Callable[[CreateImageInfo], None]) -> None:
            with telling(lambda text: tell({"status": text})):
                done.append(action())

        yield from Crew(work, [None], 1).run()
        return done[0]

    def _resolve(
        self, registry: Registry, content: bytes, media_type: str, digest: Digest
    ) -> tuple[Descriptor, Manifest, bytes, ImageConfig]:
        """From what the name points to, to one platform's manifest and config, kept and verified."""
        target = Descriptor(media_type, digest, len(content))
        document = parse(content, media_type)
        if isinstance(document, Index):
            self._store.layout.write(content)
            chosen = document.choose(self._wanted or Platform.host())
            content, media_type, _ = registry.manifest(self._reference.path, chosen.digest)
            if len(content) != chosen.size or media_type != chosen.media_type:
                raise VerificationError(f"manifest {chosen.digest} is not what its index says (size or media type)")
            document = parse(content, media_type)
        if isinstance(document, Index):
            raise VerificationError("an index inside an index is not supported")
        config = ImageConfig.parse(self._config(registry, document.config))
        if self._wanted and config.platform not in self._wanted.acceptable() and config.platform.architecture:
            raise NotFound(
                f"image with reference {self._reference.familiar} was found but does not match the specified platform: "
                f"wanted {self._wanted}, actual: {config.platform}"
            )
        return target, document, content, config

    def _config(self, registry: Registry, descriptor: Descriptor) -> bytes:
        with contextlib.suppress(NotFound, VerificationError):  # a damaged one is asked for again
            content = self._store.layout.read(descriptor.digest)
            self._store.layout.keep(descriptor.digest, content)
            return content
        while True:
            content = b"".join(registry.blob(self._reference.path, descriptor))
            hasher = descriptor.digest.hasher()
            hasher.update(content)
            if descriptor.digest.matches(hasher):
                break
            if not registry.distrust(descriptor.digest):
                raise VerificationError(f"image config does not match its digest {descriptor.digest}")
        self._store.layout.keep(descriptor.digest, content)
        return content

    def _layers(self, registry: Registry, layers: list[tuple[Descriptor, Digest]]) -> Iterator[CreateImageInfo | None]:
        missing = []
        for layer, diff_id in layers:
            here = self._store.pulled.complete(layer, diff_id)
            yield _line("Already exists" if here else "Pulling fs layer", layer)
            if not here:
                missing.append((layer, diff_id))
        missing.sort(key=lambda pair: -pair[0].size)
        count = os.cpu_count() or 1
        crew = Crew(lambda pair, tell: self._layer(registry, *pair), missing, count, self._events, self._stop)
        with self._store.layers.staffed() if missing else contextlib.nullcontext():
            yield from crew.run()
        for layer, diff_id in layers:
            for note, times in self._store.pulled.facts(diff_id).get("notes", {}).items():
                yield {"status": f"{layer.digest.short}: {note} ({times})"}
        trace.publish("image", "unpacked", layers=len(layers))

    def _layer(self, registry: Registry, layer: Descriptor, diff_id: Digest) -> None:
        def feed(offset: int) -> Iterator[bytes]:
            last = 0.0
            for chunk in self._chunks(registry, layer, offset):
                offset += len(chunk)
                if time.monotonic() - last > _TICK or offset == layer.size:
                    last = time.monotonic()
                    self._events.put(_line("Downloading", layer, offset))
                yield chunk
            self._events.put(_line("Download complete", layer))
            self._events.put(_line("Extracting", layer, layer.size))

        if self._store.layout.has(layer.digest):
            self._events.put(_line("Extracting", layer, 0))
        try:
            fetched = self._store.pulled.fetch(layer, diff_id, feed)
        except VerificationError:
            if not registry.distrust(layer.digest):
                raise  # else a mirror sent something wrong: once more, all of it, and from elsewhere
            self._events.put(_line("Verification failed, downloading again", layer))
            fetched = self._store.pulled.fetch(layer, diff_id, feed)
        self._events.put(_line("Pull complete" if fetched else "Already exists", layer))

    def _chunks(self, registry: Registry, layer: Descriptor, offset: int) -> Iterator[bytes]:
        """A blob's bytes. A thread reads them: it alone waits for a silent server when the pull has ended, and not we,
        who hold the layer's lock."""
        line: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)

        def put(item: bytes | BaseException | None) -> bool:
            while not self._stop.is_set():
                with contextlib.suppress(queue.Full):
                    line.put(item, timeout=_LOOK)
                    return True
            return False

        def read() -> None:
            from minirt.registry.client import telling

            try:
                with telling(lambda text: self._events.put(_line(text, layer))):
                    for chunk in registry.blob(self._reference.path, layer, offset):
                        if not put(chunk):
                            return
                put(None)
            except BaseException as error:
                put(error)

        threading.Thread(target=copy_context().run, args=(read,), daemon=True).start()
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                item = line.get(timeout=_LOOK)
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        raise Stopped


def name_image(
    store: Store,
    reference: Reference,
    target: Descriptor,
    manifest: Manifest,
    digest: Digest,
    config: ImageConfig,
    local: bool = False,
) -> Named:
    """The name's record; its size is that of the unpacked files (of the blobs, where layers stay packed)."""
    size = sum(store.pulled.facts(diff_id).get("size", layer.size) for layer, diff_id in pairs(manifest, config))
    image = manifest.config.digest
    return Named(reference, target, digest, image, config.created, size, str(config.platform), local)


def _unique(manifest: Manifest, config: ImageConfig) -> list[tuple[Descriptor, Digest]]:
    """Each layer once, base first: the same one may stand twice in an image."""
    found: dict[Digest, tuple[Descriptor, Digest]] = {}
    for layer, diff_id in pairs(manifest, config):
        known = found.setdefault(layer.digest, (layer, diff_id))
        if known[1] != diff_id:
            raise VerificationError(f"layer {layer.digest.short} is listed with two different DiffIDs")
    return list(found.values())


def _line(status: str, layer: Descriptor, current: int | None = None) -> CreateImageInfo:
    """One progress object; also told to the trace."""
    detail: ProgressDetail = {} if current is None else {"current": current, "total": layer.size}
    trace.publish("registry", "progress", id=layer.digest.short, status=status, **detail)
    return {"status": status, "progressDetail": detail, "id": layer.digest.short}


def failed(error: MinirtError) -> CreateImageInfo:
    """The last line of a stream that failed after it began."""
    return {"errorDetail": {"message": str(error)}, "error": str(error)}
