"""The launcher: a small process that has the shim's code loaded and forks a shim a request.

    daemon ──requests──▶ launcher ──fork──▶ entry ──fork──▶ shim

So a start costs a fork, not an interpreter, and what is forked has one thread and none of the daemon's descriptors. It
is exec'ed once, from the sealed interpreter, is started again when it died, and ends when its line does. A request is
one message on fd 0, `[folder, options]` in JSON, with the descriptors that become the shim's 0, 1, 2… (see shim.py).
Sources: unix(7), SCM_RIGHTS. Taught in chapter 08.
"""

from __future__ import annotations

import codecs
import fcntl
import gc
import json
import os
import resource
import signal
import socket
import threading
from typing import NoReturn

from minirt import child

_MESSAGE, _MOST = 65536, 253  # bytes and descriptors of a request; SCM_MAX_FD


class Launcher:
    """The daemon's side of it. What it launches has this moment's limit of open files."""

    def __init__(self) -> None:
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = child.sealed_interpreter()
        try:
            self._pid = os.posix_spawn(
                f"/proc/self/fd/{program}",
                child.command("minirt.runtime.launcher", *map(str, self._files)),
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                ],
            )
        finally:
            os.close(program)
            theirs.close()

    def spawn(self, arguments: list[str], fds: list[int]) -> None:
        """As `container.spawn`."""
        message = [json.dumps(arguments).encode()]
        with self._lock:
            try:
                socket.send_fds(self._line, message, fds)
            except (BrokenPipeError, ConnectionResetError):  # it died
                self._end()
                self._begin()
                socket.send_fds(self._line, message, fds)

    def close(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._line.close()
        os.waitpid(self._pid, 0)


def main(soft: str, hard: str) -> None:
    """Serve until the line ends (`child.command` calls this)."""
    # Loaded and asked once here, not once a container.
    from minirt.runtime import entry, state  # noqa: F401

    codecs.lookup("ascii")
    state.boot_id()

    if os.geteuid() == 0:
        from minirt.runtime.network import bridge  # noqa: F401

    os.setsid()
    os.chdir("/")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how an entry ended: the kernel reaps it
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))
    line = socket.socket(fileno=0)
    gc.freeze()  # what is there stays: a collection would write to every object, and so copy every page of a child's
    while True:
        message, fds, _, _ = socket.recv_fds(line, _MESSAGE, _MOST, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        if os.fork() == 0:
            _become(message, fds)
        for fd in fds:
            os.close(fd)


def _become(message: bytes, fds: list[int]) -> NoReturn:
    from minirt.runtime import entry

    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # First out of the way of where they go, then into place.
        for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, len(fds)) for fd in fds]):
            os.dup2(fd, number)
        entry.main(*json.loads(message))
    finally:
        os._exit(125)
