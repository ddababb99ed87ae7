"""Images as one tar file: what `docker save` writes and `docker load` reads, and OCI archives.

We write both at once, as docker 25 does: an OCI layout, and `manifest.json` beside it whose layers are the same
blobs. We read either; docker's older form (`<id>/layer.tar`) as well, whose layers become plain tar blobs. Every file
of an archive is spooled and digested as it streams by; names in it are only keys of a table, never paths on this
disk. Source: OCI image-spec image-layout.md; the Docker image specification v1.2, "Combined Image JSON + Filesystem
Changeset".
"""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from minirt.errors import StoreError, UnpackError, VerificationError
from minirt.image.config import ImageConfig
from minirt.image.descriptor import INDEX_TYPES, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import MAX_DOCUMENT, Index, Manifest, parse
from minirt.image.platform import Platform
from minirt.image.reference import Reference
from minirt.store import tar
from minirt.store.files import sync_directory
from minirt.store.inflate import inflate, sniff
from minirt.store.layout import Layout
from minirt.store.limits import Limits, OverLimit

if TYPE_CHECKING:
    from minirt.store.store import Image, Store

_CHUNK = 1 << 20
_MAX_FILES = 100_000
_MAX_NAME = 4096  # bytes, a link's target counted


def save(layout: Layout, images: list[tuple[Image, Reference | None]]) -> Iterator[bytes]:
    """The archive of `images`, each under the name given or none, in pieces."""
    blobs: dict[Digest, int] = {}
    index, docker = [], []
    for image, reference in images:
        manifest, size = image.manifest, image.manifest_size
        digest = image.manifest_digest
        if manifest.media_type != OCI_MANIFEST:  # docker's loader wants OCI types inside an OCI layout
            twin = manifest.as_oci()
            digest, size = layout.write(twin), len(twin)
        notes = {}
        if reference:
            notes = {
                "io.containerd.image.name": str(reference),
                "org.opencontainers.image.ref.name": reference.familiar,
            }
        index.append(Descriptor(OCI_MANIFEST, digest, size, notes).to_json())
        blobs[digest] = size
        blobs |= {d.digest: d.size for d in (manifest.config, *manifest.layers)}
        docker.append(
            {
                "Config": _blob_name(image.id),
                "RepoTags": [reference.familiar] if reference else None,
                "Layers": [_blob_name(layer.digest) for layer in manifest.layers],
            }
        )
    for digest, size in blobs.items():
        if not layout.has(digest) or layout.blob(digest).stat().st_size != size:
            raise StoreError(f"blob {digest.short} is missing or damaged: run `minirt system check`")
    documents = {
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
        "index.json": {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": _unique(index)},
        "manifest.json": _merged(docker),
    }
    # Listed, because readers without root cannot make an implied directory root's.
    for folder in ("blobs", *sorted({f"blobs/{digest.algorithm}" for digest in blobs})):
        yield _head(folder, 0, tarfile.DIRTYPE)
    for digest, size in blobs.items():
        yield _head(_blob_name(digest), size)
        with open(layout.blob(digest), "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
        yield bytes(-size % tar.BLOCK)
    for name, document in documents.items():
        content = json.dumps(document, separators=(",", ":")).encode()
        yield _head(name, len(content)) + content + bytes(-len(content) % tar.BLOCK)
    yield bytes(2 * tar.BLOCK)


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _head(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode = size, kind, 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _unique(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(entry): entry for entry in entries}.values())


def _merged(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry an image, with all its tags: docker's loader takes the last of two with one config."""
    merged: dict[str, dict[str, Any]] = {}
    for entry in entries:
        known = merged.setdefault(entry["Config"], entry)
        if known is not entry and entry["RepoTags"]:
            known["RepoTags"] = sorted({*(known["RepoTags"] or []), *entry["RepoTags"]})
    return list(merged.values())


def load(store: Store, stream: BinaryIO) -> Iterator[tuple[Image, list[Reference]]]:
    """Read an archive into the blobs; yields each image with its names. Raises UnpackError, VerificationError."""
    with tempfile.TemporaryDirectory(prefix=".load-", dir=store.root) as folder:
        try:
            files = _Spool(Path(folder), stream)
        except OverLimit as error:
            raise UnpackError(error.advice()) from None
        if "manifest.json" in files.sizes:
            yield from _docker(store, files)
        elif "index.json" in files.sizes:
            yield from _oci(store, files)
        else:
            raise UnpackError("this archive is not an image: it has neither manifest.json nor index.json")


class _Spool:
    """The archive's files by name, each in a numbered file of `folder`; links resolved by name."""

    def __init__(self, folder: Path, stream: BinaryIO) -> None:
        self._folder = folder
        self._links: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self._paths: dict[str, Path] = {}
        self._digests: dict[str, Digest] = {}
        limits = Limits.load()
        reader = tar.Reader(inflate(lambda: stream.read(_CHUNK), limits.bytes_out, limits.ratio))
        for count, entry in enumerate(reader):
            if count > _MAX_FILES:
                raise UnpackError(f"archive has more than {_MAX_FILES} files")
            if len(entry.name) + len(entry.linkname) > _MAX_NAME:
                raise UnpackError(f"archive has a file whose name is longer than {_MAX_NAME} bytes")
            name = _key(entry.name)
            if entry.type == tar.REGULAR:
                self._take(name, reader, count)
            elif entry.type in (tar.SYMLINK, tar.HARDLINK):
                base = posixpath.dirname(name) if entry.type == tar.SYMLINK else ""
                self._links[name] = _key(os.fsencode(posixpath.join(base, os.fsdecode(entry.linkname))))

    def _take(self, name: str, reader: tar.Reader, number: int) -> None:
        import hashlib

        hasher, size = hashlib.sha256(), 0
        path = self._folder / str(number)
        with open(path, "xb") as file:
            for piece in reader.body():
                hasher.update(piece)
                size += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        self._paths[name], self.sizes[name] = path, size
        self._digests[name] = Digest("sha256:" + hasher.hexdigest())

    def _find(self, name: object) -> str:
        found = _key(os.fsencode(name)) if isinstance(name, str) else ""
        found = self._links.get(found, found)
        if found not in self._paths:
            raise UnpackError(f"this archive is damaged: {str(name)[:120]!r} is not in it")
        return found

    def document(self, name: object) -> bytes:
        """A small file, whole."""
        with open(self._paths[self._find(name)], "rb") as file:
            return file.read(MAX_DOCUMENT + 1)

    def keep(self, layout: Layout, name: object) -> Descriptor:
        """Move a file into the layout's blobs; returns it as a layer descriptor of the type its bytes are."""
        found = self._find(name)
        path, digest = self._paths[found], self._digests[found]
        if path.exists() and not layout.has(digest):
            with open(path, "rb") as file:
                kind = sniff(file.read(4).ljust(4, b"\0"))
            os.chmod(path, 0o644)
            os.replace(path, layout.place(digest))
            sync_directory(layout.place(digest).parent)
        else:
            with open(layout.blob(digest), "rb") as file:
                kind = sniff(file.read(4).ljust(4, b"\0"))
        # The spec has no names for the others.
        return Descriptor(OCI_LAYER + (f"+{kind}" if kind in ("gzip", "zstd") else ""), digest, self.sizes[found])


def _key(name: bytes) -> str:
    return posixpath.normpath(os.fsdecode(name).lstrip("/"))


def _docker(store: Store, files: _Spool) -> Iterator[tuple[Image, list[Reference]]]:
    from minirt.store.store import Image

    try:
        entries = json.loads(files.document("manifest.json"))
        wanted = [(e["Config"], e.get("Layers") or [], e.get("RepoTags") or []) for e in entries]
        if not wanted:
            raise ValueError("it lists no image")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnpackError(f"this archive's manifest.json is damaged: {error!r}") from error
    for config_name, layer_names, tags in wanted:
        content = files.document(config_name)
        config = ImageConfig.parse(content)
        if len(layer_names) != len(config.diff_ids):
            raise VerificationError("this archive is damaged: its config lists another number of layers")
        layers = tuple(files.keep(store.layout, name) for name in layer_names)
        described = Descriptor(OCI_CONFIG, store.layout.write(content), len(content))
        manifest = Manifest(OCI_MANIFEST, described, layers, {})
        written = manifest.as_oci()
        image = Image(manifest, store.layout.write(written), len(written), config)
        yield image, [Reference.parse(str(tag)) for tag in tags]


def _oci(store: Store, files: _Spool) -> Iterator[tuple[Image, list[Reference]]]:
    from minirt.store.store import Image

    index = parse(files.document("index.json"), OCI_INDEX)
    assert isinstance(index, Index)
    for entry in index.manifests:
        content, digest, media_type = files.document(_blob_name(entry.digest)), entry.digest, entry.media_type
        while media_type in INDEX_TYPES:
            inner = parse(content, media_type)
            assert isinstance(inner, Index)
            chosen = inner.choose(Platform.host())
            media_type, digest, content = chosen.media_type, chosen.digest, files.document(_blob_name(chosen.digest))
            if media_type in INDEX_TYPES:
                raise VerificationError("an index inside an index is not supported")
        manifest = parse(content, media_type)
        assert isinstance(manifest, Manifest)
        for layer in manifest.layers:
            if files.keep(store.layout, _blob_name(layer.digest)).digest != layer.digest:
                raise VerificationError(f"layer {layer.digest.short} in this archive does not match its digest")
        config = files.document(_blob_name(manifest.config.digest))
        if store.layout.write(config) != manifest.config.digest:
            raise VerificationError("the image config in this archive does not match its digest")
        if store.layout.write(content) != digest:
            raise VerificationError(f"manifest {digest.short} in this archive does not match its digest")
        names = [entry.annotations.get(k) for k in ("io.containerd.image.name", "org.opencontainers.image.ref.name")]
        found = next((name for name in names if name), None)
        yield (
            Image(manifest, digest, len(content), ImageConfig.parse(config)),
            [Reference.parse(found)] if found else [],
        )
