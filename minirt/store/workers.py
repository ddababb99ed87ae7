"""The nursery of unpack workers, for a pull of several layers: `worker.py` is loaded once, and forked for each."""

from __future__ import annotations

import contextlib

from minirt.nursery import serve
from minirt.store import worker


def main() -> None:
    """Serve until the line ends (`child.command` calls this)."""
    with contextlib.suppress(ImportError):
        from isal import isal_zlib  # noqa: F401  (loaded here, not once a layer)
    serve(worker.main)
