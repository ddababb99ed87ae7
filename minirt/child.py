"""How we start a process of our own (unpack worker, shim): exec'ed, never forked from a program with threads.

The child gets this interpreter, isolated (`-I -S`: no environment, no site start-up, 8 ms less), and this program's
module path, so that it runs the same `minirt` wherever that was installed. It calls `main(*arguments)` of a module.
"""

from __future__ import annotations

import os
import sys

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_BOOT = "import sys; sys.path[:0] = [sys.argv[1]]; sys.path += sys.argv[2].split('\\n'); import importlib; \
sys.exit(importlib.import_module(sys.argv[3]).main(*sys.argv[4:]))"


def command(module: str, *arguments: str) -> list[str]:
    """The argv that runs `module.main(*arguments)` in a fresh interpreter; its result is the exit status."""
    path = "\n".join(entry for entry in sys.path if entry and entry != _HERE)
    return [sys.executable, "-I", "-S", "-c", _BOOT, _HERE, path, module, *arguments]
