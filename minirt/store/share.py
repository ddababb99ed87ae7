"""Opening a store to other users of the machine: what they may read, in the form they can use (shared.py).

From then on a pull unpacks every layer in the shared form; what containers of this store's own need is unpacked when
one is made. Open are the blobs, the names and the shared layers; containers, volumes and downloads stay their owner's.
Only root's store can be shared: others trust nobody else's (additional.py). Taught in chapter 06.
"""

from __future__ import annotations

import contextlib
import os

from minirt.errors import InvalidInput, StoreError
from minirt.store import additional, shared
from minirt.store.store import Store

_OPEN = ("", "oci", "oci/blobs", "oci/blobs/sha256", "oci/blobs/sha512", "layers", f"layers/{shared.FORM}")


def share(store: Store) -> tuple[int, int]:
    """Open it, and unpack what is there for others: so many images and layers. Raises InvalidInput, StoreError."""
    root = store.root
    if store.ids is None or store.ids.rootless:
        raise InvalidInput("only root's store can be shared: others would have to trust who can change it")
    if found := additional.exposed_above(root):
        raise InvalidInput(f"others would not use this store: {found}")
    with store.using():
        for path in root.iterdir():
            if path.name not in ("oci", "layers", "version") and not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o700)
        for name in _OPEN:
            (root / name).mkdir(exist_ok=True)
            (root / name).chmod(0o755)
        try:
            shared.mask(str(root / "layers" / shared.FORM), 0, 0, 0o755, directory=True)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.rmdir(root / "layers" / shared.FORM)
            raise StoreError(f"the file system of {root} holds no xattrs of users: {error.strerror}") from error
        store.__dict__.pop("pulled", None)
        images = {named.id: store.image(named.manifest) for named in store.names.own()}
        layers = dict(pair for image in images.values() for pair in image.layers)
        for layer, diff_id in layers.items():
            store.pulled.fetch(layer, diff_id)
    return len(images), len(layers)
