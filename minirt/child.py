"""How we start a process of our own (unpack worker, shim): exec'ed, never forked from a program with threads.

The child gets this interpreter, isolated (`-I -S`: no environment, no site start-up, 8 ms less), and this program's
module path, so that it runs the same `minirt` wherever that was installed. It calls `main(*arguments)` of a module.
"""

from __future__ import annotations

import contextlib
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


def seal() -> None:
    """Go on in a sealed interpreter, as a process that `command` started: those it starts then share its pages, which
    is 3 MB less of a daemon with its launcher. It is called `minirt`, where an executed descriptor has but a number."""
    if sys.platform != "linux":
        return
    try:
        if (own := _sealed()) is not None:
            os.close(own)
        elif sys.orig_argv[1:3] == ["-I", "-S"]:
            os.execve(sealed_interpreter(), sys.orig_argv, os.environ)
        name("minirt")
    except OSError:  # a machine that executes nothing from memory: its containers are what cannot be started
        return


def name(text: str) -> None:
    """What `ps` calls this process, proc(5) comm."""
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(text)


def _sealed() -> int | None:
    """The interpreter we run from, opened, where it is sealed."""
    import fcntl

    try:
        own = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no /proc
        return None
    with contextlib.suppress(OSError):  # it lies on a disk
        if fcntl.fcntl(own, fcntl.F_GET_SEALS) & _seals() == _seals():
            return own
    os.close(own)
    return None


def _seals() -> int:
    import fcntl

    return fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def sealed_interpreter() -> int:
    """A sealed copy of this interpreter in memory, to be executed: what a hostile image can reach by /proc/PID/exe of
    a process of ours (CVE-2019-5736). Our own, where we run from one."""
    import fcntl

    if (own := _sealed()) is not None:
        return own
    with open(sys.executable, "rb") as file:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            copy = os.memfd_create("python", flags | _MFD_EXEC)
        except OSError:  # before kernel 6.3 every memfd may be executed
            copy = os.memfd_create("python", flags)
        while os.sendfile(copy, file.fileno(), None, 1 << 30):
            pass
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _seals())
    return copy
