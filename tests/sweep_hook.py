"""Dies by SIGKILL at the n-th step: a copy of the package with this in it (sweep.py) is the package under test.

A step is the moment before a process of ours does anything that others could see: a kernel call of minirt/linux.py, a
file made, written, renamed or removed, a process born, signalled or replaced, a message sent. All processes count
together, in a page of memory that they share (it outlives pivot_root and closed descriptors): the number of steps so
far, the one to die at, words of another such, and which it was.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import struct
import sys
from typing import Any

PAGE = "MINIRT_SWEEP_PAGE"
WANTED, DIED, SIZE = 64, 128, 4096
_COUNTS = struct.Struct("=QQ")
_AUDITED = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.fork", "os.posix_spawn", "os.exec", "os.kill", "os.utime", "os.setxattr", "subprocess.Popen",
    "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "fcntl.flock",
}  # fmt: skip
# Nobody else can see these: to die before one of them is to die before the next step.
_INWARD = (
    "prctl", "default_action", "capset", "capget", "openat2", "getcwd", "file_system", "fsopen", "fsconfig_string",
    "fsconfig_flag", "fsconfig_create", "fsmount", "bpf_device_programs",
)  # fmt: skip
_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_page: Any = None


def step(what: str) -> None:
    count, target = _COUNTS.unpack_from(_page)
    _COUNTS.pack_into(_page, 0, count + 1, target)
    wanted = _page[WANTED:DIED].rstrip(b"\0").decode()
    if count + 1 != target and not (wanted and wanted in what):
        return
    _page[WANTED:DIED] = bytes(DIED - WANTED)
    words = f"{os.path.basename(' '.join(sys.argv[3:5]))} {what}".encode()[:1000]
    _page[DIED : DIED + len(words)] = words
    if os.getpid() != 1:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(137)  # to pid 1 of a namespace its own SIGKILL does not come


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _AUDITED or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _CHANGES):
        step(f"{event} {arguments[:2]!r}")


def _watched(name: str, function: Any) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        step(f"{name} {arguments[:3]!r}")
        return function(*arguments, **options)

    return call


def watch(module: dict[str, Any]) -> None:
    """Wrap the kernel calls of minirt/linux.py: it calls this at its end."""
    if _page is None:
        return
    for name, value in list(module.items()):
        if name[0] != "_" and name not in _INWARD and getattr(value, "__module__", "") == module["__name__"]:
            module[name] = _watched(name, value)


def begin() -> None:
    global _page
    with open(os.environ[PAGE], "r+b") as file:
        _page = mmap.mmap(file.fileno(), SIZE)
    for name in ("write", "setresuid", "setresgid", "setgroups"):
        setattr(os, name, _watched(name, getattr(os, name)))
    signal.pidfd_send_signal = _watched("pidfd_send_signal", signal.pidfd_send_signal)
    send = socket.socket.send
    socket.socket.send = lambda self, *rest: (step(f"send {rest[0][:60]!r}"), send(self, *rest))[1]  # type: ignore
    sys.addaudithook(_audit)


if PAGE in os.environ:
    begin()
