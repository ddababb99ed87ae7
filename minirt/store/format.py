"""The format of what lies on the disk: a number in the file `version`. Older formats are brought up to ours, newer ones
refused.

    0   no number yet; unpacked layers directly in `layers/`, in the form of whoever owned the store
    1   `layers/<form>/`: the same layer for several rights

Invariant: the number is written after what it stands for, so a migration that was cut short is done again; nobody is at
work meanwhile (`gc.lock`). A change that an older minirt would misread takes a new number and a step here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from minirt.errors import StoreError
from minirt.store.files import locked, sync_directory, write_atomic
from minirt.userns import mapping

VERSION = 1


def settle(root: Path) -> None:
    """Make the store in `root`, new or not, one of our format. Raises StoreError for one that is no older; OSError."""
    if _found(root) == VERSION:
        return
    with locked(root / "gc.lock"):
        while (found := _found(root)) != VERSION:
            new = not (root / "oci").exists() and not (root / "version").exists()
            if not new:
                _STEPS[found](root)
            write_atomic(root / "version", f"{VERSION if new else found + 1}\n".encode(), 0o644)


def _found(root: Path) -> int:
    """The number of the store that is there; 0 where it has none."""
    try:
        text = (root / "version").read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return 0
    if not re.fullmatch("[0-9]{1,9}", text):
        raise StoreError(f"{root} is not a store of ours: its format is {text[:20]!r} (another MINIRT_ROOT can be set)")
    if int(text) > VERSION:
        raise StoreError(
            f"{root} was written by a newer minirt (its format is {int(text)}, ours {VERSION}): "
            "use that one, or set another MINIRT_ROOT"
        )
    return int(text)


def _give_layers_a_form(root: Path) -> None:
    """0 → 1. Where the form is not the one that we would give, the layer is unpacked again when it is needed."""
    layers = root / "layers"
    formless = [path for path in layers.glob("*") if re.fullmatch(r"[0-9a-f]{64,128}(\.json)?", path.name)]
    if formless:
        form = layers / mapping().form
        form.mkdir(exist_ok=True, mode=0o700)
        for path in sorted(formless, reverse=True):  # what is known of a layer before the layer
            if not (form / path.name).exists():
                os.replace(path, form / path.name)
        sync_directory(form)
        sync_directory(layers)


_STEPS: dict[int, Callable[[Path], None]] = {0: _give_layers_a_form}
