"""A layer that lies unpacked in the store, as gzip: how registries keep layers.

The same bytes come out each time on one machine (no name, no time in the header), so that a registry recognises them;
the DiffID, of what comes out of it, stays. Library: isal, else the standard zlib. Source: RFC 1952.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from minirt.errors import StoreError
from minirt.image.descriptor import OCI_LAYER, Descriptor
from minirt.store.layout import Layout

_CHUNK = 1 << 20


def compressed(layout: Layout, layer: Descriptor) -> Descriptor:
    """The layer's compressed twin, kept beside it. Raises StoreError."""
    try:
        digest, size = layout.take(_pieces(layout, layer))
    except OSError as error:
        raise StoreError(f"cannot compress layer {layer.digest.short}: {error.strerror}") from error
    return Descriptor(f"{OCI_LAYER}+gzip", digest, size)


def _pieces(layout: Layout, layer: Descriptor) -> Iterator[bytes]:
    engine, hasher = _engine(), layer.digest.hasher()
    with open(layout.blob(layer.digest), "rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
            yield engine.compress(chunk)
    if not layer.digest.matches(hasher):
        raise StoreError(f"blob {layer.digest.short} in the local store is damaged: run `minirt system check`")
    yield engine.flush()


def _engine() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib.compressobj(wbits=31)
    return isal_zlib.compressobj(level=2, wbits=31)
