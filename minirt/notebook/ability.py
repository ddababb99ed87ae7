"""What this machine can show of the course, in one line, found out by trying; `minirt doctor` tells the rest.

It never holds anybody up: what takes too long or fails is told as not known.
"""

from __future__ import annotations

import sys
import threading

from minirt import userns
from minirt.errors import MinirtError
from minirt.notebook.catalogue import Strings

_PATIENCE = 10  # seconds


def kind() -> str:
    """root, subuids, single, faked (by proot), pull (nothing can run), other (not Linux) or unknown."""
    if sys.platform != "linux":
        return "other"
    try:
        ids = userns.detect()
    except (OSError, MinirtError):
        return "unknown"
    if ids is None:
        return "pull"
    return "faked" if ids.faked else "root" if not ids.rootless else "single" if ids.single else "subuids"


def line(text: Strings) -> str:
    """The line, plain text, within ten seconds."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(kind()), daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return text(f"lab.machine.{found[0] if found else 'unknown'}")
