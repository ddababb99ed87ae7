"""How we start a process of our own (unpack worker, shim): exec'ed, never forked from a program with threads.

The child gets this interpreter, isolated (`-I -S`: no environment, no site start-up, 8 ms less), and this program's
module path, so that it runs the same `minirt` wherever that was installed. It calls `main(*arguments)` of a module.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from typing import NoReturn

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_BOOT = "import sys; sys.path[:0] = [sys.argv[1]]; sys.path += sys.argv[2].split('\\n'); import importlib; \
sys.exit(importlib.import_module(sys.argv[3]).main(*sys.argv[4:]))"
_MFD_EXEC = 0x10  # memfd_create(2): needed where sysctl vm.memfd_noexec is 1


def command(module: str, *arguments: str) -> list[str]:
    """The argv that runs `module.main(*arguments)` in a fresh interpreter; its result is the exit status."""
    path = "\n".join(entry for entry in sys.path if entry and entry != _HERE)
    return [sys.executable, "-I", "-S", "-c", _BOOT, _HERE, path, module, *arguments]


def oci_runtime() -> NoReturn:
    """The installed command `minirt-oci`: go on without site packages, from a sealed interpreter: a user's own too."""
    os.execve(sealed_interpreter(), command("minirt.runtime.command", *sys.argv[1:]), os.environ)


def sealed_interpreter() -> int:
    """A sealed copy of this interpreter in memory, to be executed: what a hostile image can reach by /proc/PID/exe of
    a process of ours (CVE-2019-5736)."""
    import fcntl

    with open(sys.executable, "rb") as file:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            copy = os.memfd_create("python", flags | _MFD_EXEC)
        except OSError:  # before kernel 6.3 every memfd may be executed
            copy = os.memfd_create("python", flags)
        while os.sendfile(copy, file.fileno(), None, 1 << 30):
            pass
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    return copy
