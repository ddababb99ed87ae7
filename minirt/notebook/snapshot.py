"""An image as the local cache keeps it: name, index, manifest, config, layers, and the files these add up to.

Read from the store's folder, an OCI image layout, and not asked of the daemon: `inspect` gives neither index nor
manifest, and `save` writes the index anew, for one platform. Layers are read from their blobs, as the registry served
them, and not from their unpacked folders: these may hold files that only root may open, other owners and no whiteouts,
and a machine without namespaces has none. Nothing is changed here.
Layers count from 1, the lowest. A whiteout hides what lower layers have, an opaque folder all that they have in it;
else a file replaces the lower one of its path. Source: OCI image-spec, layer.md. Taught in chapter 05.
"""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minirt.config import additional_stores
from minirt.errors import MinirtError, StoreError, UnpackError
from minirt.image.config import ImageConfig
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import Index, Manifest, parse
from minirt.notebook import kinds
from minirt.store import tar
from minirt.store.additional import Additional
from minirt.store.applier import OPAQUE, WHITEOUT, clean
from minirt.store.inflate import inflate
from minirt.store.layout import Layout
from minirt.store.limits import Limits
from minirt.store.names import Named, Names

_CHUNK = 1 << 20
MAX_ENTRIES = 500_000  # of one image: more would fill a notebook's memory
TYPES = {
    tar.REGULAR: "file", tar.HARDLINK: "hardlink", tar.SYMLINK: "symlink", tar.FIFO: "pipe", tar.CHARACTER: "device",
    tar.BLOCK_DEVICE: "device",
}  # fmt: skip


@dataclass(frozen=True)
class File:
    """One file a container of the image sees. `layer` (1 = lowest) brought it; `kind` is one of `kinds.KINDS`.

    `path` is absolute; bytes in it that are not UTF-8 are written `\\xNN`. `size` in bytes; `target` of a link;
    `covers`: lower layers whose file of this path is hidden behind it.
    """

    path: str
    layer: int
    kind: str
    type: str = field(default="file", repr=False)
    size: int = field(default=0, repr=False)
    target: str = field(default="", repr=False)
    covers: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Gone:
    """A file of layer `layer` that no container sees: layer `by` took it away. `how`: whiteout, opaque, replaced."""

    path: str
    layer: int
    by: int
    how: str


@dataclass(frozen=True)
class Layer:
    """One layer: its blob as the manifest names it, the DiffID of what is inside, the step it comes from, and the
    other names in the cache that have it too."""

    number: int
    blob: Descriptor
    diff_id: Digest
    made_by: str
    also: tuple[str, ...]


@dataclass(frozen=True)
class Snapshot:
    """What the cache holds under one name. `index` is None where the name leads straight to a manifest; `documents` are
    the original bytes of index, manifest and config."""

    layout: Layout
    named: Named
    index: Index | None
    manifest: Manifest
    config: ImageConfig
    documents: dict[str, bytes]
    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        return self.named.reference.familiar

    @classmethod
    def read(cls, root: Path, name: str) -> Snapshot:
        """Of the store in `root`. Raises NotFound for an image that is not here, VerificationError, StoreError."""
        try:
            return cls._read(Layout(root / "oci", Additional(additional_stores, root)), name)
        except OSError as error:
            raise StoreError(f"the local cache in {root} cannot be read: {error.strerror}") from error

    @classmethod
    def _read(cls, layout: Layout, name: str) -> Snapshot:
        names = Names(layout)
        named = names.find(name)
        documents, index = {}, None
        content = layout.read(named.target.digest)
        document = parse(content, named.target.media_type)
        if isinstance(document, Index):
            index, documents["index"] = document, content
            chosen = next((d for d in index.manifests if d.digest == named.manifest), None)
            content = layout.read(named.manifest)
            document = parse(content, chosen.media_type if chosen else "")
        if not isinstance(document, Manifest):
            raise StoreError(f"{name} is an index of indexes, which is not an image")
        documents |= {"manifest": content, "config": layout.read(document.config.digest)}
        config = ImageConfig.parse(documents["config"])
        return cls(layout, named, index, document, config, documents, _layers(names, layout, named, document, config))


def _layers(names: Names, layout: Layout, named: Named, manifest: Manifest, config: ImageConfig) -> tuple[Layer, ...]:
    if len(manifest.layers) != len(config.diff_ids):
        raise StoreError(f"{named.reference.familiar} is damaged: manifest and config disagree about its layers")
    others: dict[Digest, list[str]] = {}
    for other in names.all():
        if other.id != named.id:
            for diff_id in _diff_ids(layout, other):
                others.setdefault(diff_id, []).append(other.reference.familiar)
    steps = [str(step.get("created_by", "")) for step in config.history if not step.get("empty_layer")]
    steps = steps if len(steps) == len(manifest.layers) else [""] * len(manifest.layers)
    return tuple(
        Layer(number, blob, diff_id, step, tuple(sorted({*others.get(diff_id, ())})))
        for number, (blob, diff_id, step) in enumerate(zip(manifest.layers, config.diff_ids, steps, strict=True), 1)
    )


def _diff_ids(layout: Layout, named: Named) -> tuple[Digest, ...]:
    """Of another image; none where it is damaged: that is told when it is looked at itself."""
    try:
        return ImageConfig.parse(layout.read(named.id)).diff_ids
    except MinirtError:
        return ()


@dataclass(frozen=True)
class Content:
    """What one layer's archive lists: entries by cleaned path, in its order; hidden paths; folders made opaque."""

    entries: list[tuple[bytes, tar.Entry]]
    whiteouts: list[bytes]
    opaques: list[bytes]
    size: int

    @property
    def files(self) -> int:
        return sum(entry.type != tar.DIRECTORY for _, entry in self.entries)


def content(layout: Layout, layer: Layer, tick: Callable[[int], None] = lambda number: None) -> Content:
    """Read a layer's blob through. `tick` is called with its number again and again, and may raise to end it.

    Raises UnpackError, StoreError.
    """
    limits = Limits()
    found = Content([], [], [], 0)
    size = 0
    try:
        with open(layout.blob(layer.blob.digest), "rb", buffering=0) as file:

            def source() -> bytes:
                tick(layer.number)
                return file.read(_CHUNK)

            for entry in tar.Reader(inflate(source, limits.bytes_out, limits.ratio)):
                size += entry.size
                _take(found, clean(entry.name), entry)
    except OSError as error:
        raise StoreError(f"layer {layer.number} cannot be read: {error.strerror}: pull the image again") from error
    return Content(found.entries, found.whiteouts, found.opaques, size)


def _take(found: Content, path: bytes, entry: tar.Entry) -> None:
    above, _, name = path.rpartition(b"/")
    if name == OPAQUE:
        found.opaques.append(above)
    elif name.startswith(WHITEOUT):
        if not name.startswith(WHITEOUT * 2):  # AUFS's own bookkeeping, which unpacking leaves out too
            found.whiteouts.append(posixpath.join(above, name[len(WHITEOUT) :]))
    elif path:
        found.entries.append((path, entry))
        if len(found.entries) > MAX_ENTRIES:
            raise UnpackError(f"the layer has more than {MAX_ENTRIES} files: too many to show here")


@dataclass(frozen=True)
class Files:
    """The files of an image, by path, and those that a higher layer took away."""

    there: list[File]
    gone: list[Gone]


def merge(contents: list[Content], config: ImageConfig) -> Files:
    """Lay the layers over each other, base first. Raises UnpackError for too many files."""
    tree = _Tree()
    for number, layer in enumerate(contents, 1):
        tree.apply(number, layer)
    starts = kinds.started(config)
    there = [_file(path, kept, starts) for path, kept in tree.walk(tree.root, b"")]
    gone = [Gone(_text(path), lost.layer, by, how) for path, lost, by, how in tree.gone]
    return Files(sorted(there, key=lambda f: f.path), sorted(gone, key=lambda g: (g.path, g.layer)))


@dataclass
class _Kept:
    """A file in the tree: the layer it is from, and the lower ones it covers."""

    layer: int
    entry: tar.Entry
    covers: tuple[int, ...] = ()


_Folder = dict[bytes, Any]  # name → _Folder or _Kept


class _Tree:
    def __init__(self) -> None:
        self.root: _Folder = {}
        self.gone: list[tuple[bytes, _Kept, int, str]] = []
        self._count = 0

    def apply(self, number: int, layer: Content) -> None:
        lost: dict[bytes, tuple[_Kept, str]] = {}  # by this layer, unless it brings the path again
        for path in layer.opaques:
            folder = self._find(path)
            if isinstance(folder, dict):
                lost |= {where: (kept, "opaque") for where, kept in self.walk(folder, path)}
                folder.clear()
        for path in layer.whiteouts:
            lost |= self._remove(path, "whiteout")
        for path, entry in layer.entries:
            self._add(number, path, entry, lost)
        self.gone += [(path, kept, number, how) for path, (kept, how) in lost.items()]

    def _add(self, number: int, path: bytes, entry: tar.Entry, lost: dict[bytes, tuple[_Kept, str]]) -> None:
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise UnpackError(f"the image has more than {MAX_ENTRIES} files: too many to show here")
        *above, name = path.split(b"/")
        folder = self.root
        for depth, part in enumerate([*above, name] if entry.type == tar.DIRECTORY else above, 1):
            below = folder.get(part)
            if not isinstance(below, dict):
                if below is not None and below.layer != number:
                    lost[b"/".join([*above, name][:depth])] = (below, "replaced")
                below = folder[part] = {}
            folder = below
        if entry.type == tar.DIRECTORY:
            return
        old = folder.get(name)
        covers: tuple[int, ...] = ()
        if isinstance(old, dict):
            lost |= {where: (kept, "replaced") for where, kept in self.walk(old, path) if kept.layer != number}
        elif old is not None:
            covers = old.covers if old.layer == number else (*old.covers, old.layer)
        if path in lost:  # hidden and brought again by one layer: replaced
            before, _ = lost.pop(path)
            covers = (*before.covers, before.layer)
        folder[name] = _Kept(number, entry, covers)

    def _find(self, path: bytes) -> Any:
        here: Any = self.root
        for part in path.split(b"/") if path else ():
            here = here.get(part) if isinstance(here, dict) else None
        return here

    def _remove(self, path: bytes, how: str) -> dict[bytes, tuple[_Kept, str]]:
        above, _, name = path.rpartition(b"/")
        folder = self._find(above)
        old = folder.pop(name, None) if isinstance(folder, dict) else None
        found = self.walk(old, path) if isinstance(old, dict) else [(path, old)] if old else ()
        return {where: (kept, how) for where, kept in found}

    @staticmethod
    def walk(folder: _Folder, path: bytes) -> Iterator[tuple[bytes, _Kept]]:
        """All files below `folder`, which lies at `path`; however deep, without recursion."""
        pending = [(path, folder)]
        while pending:
            above, here = pending.pop()
            for name, below in here.items():
                where = above + b"/" + name if above else name
                if isinstance(below, dict):
                    pending.append((where, below))
                else:
                    yield where, below


def _file(path: bytes, kept: _Kept, starts: frozenset[str]) -> File:
    entry, where = kept.entry, _text(path)
    program = entry.type in (tar.REGULAR, tar.HARDLINK) and bool(entry.mode & 0o111)
    target = entry.linkname.decode("utf-8", "backslashreplace")
    kind = kinds.kind(where, program, starts)
    return File(where, kept.layer, kind, TYPES.get(entry.type, "file"), entry.size, target, kept.covers)


def _text(path: bytes) -> str:
    return "/" + path.decode("utf-8", "backslashreplace")


def files(root: Path, name: str) -> list[File]:
    """All files a container of the image sees, by path. Raises as Snapshot.read and content do."""
    image = Snapshot.read(root, name)
    read = functools.partial(content, image.layout)
    return merge([read(layer) for layer in image.layers], image.config).there
