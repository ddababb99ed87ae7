"""A nursery: a small process that has some code loaded and forks a child a request.

    we ──requests──▶ nursery ──fork──▶ child

So a child costs a fork, not an interpreter and its modules (34 ms for an unpack worker, more for a shim), and what is
forked has one thread and none of our descriptors. It is exec'ed once, is made again when it died, and ends when its
line does. A request is one message on fd 0, the child's arguments in JSON, with the descriptors that become its 0, 1,
2… One may be announced: then a child is forked ahead, which rehearses what it will be asked for, so that its pages are
copied and its code is quick before it counts. For Linux.
Sources: unix(7), SCM_RIGHTS. Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from minirt import child

_MESSAGE, _MOST = 65536, 253  # bytes and descriptors of a request; SCM_MAX_FD
_AHEAD = 10  # seconds that a child waits for its request


class Nursery:
    """Our side: `module.main(*arguments)` is to call `serve`. `sealed`: from an interpreter no child overwrites."""

    def __init__(self, module: str, *arguments: str, sealed: bool = False) -> None:
        self._words, self._sealed = child.command(module, *arguments), sealed
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = child.sealed_interpreter() if self._sealed else -1
        try:
            self._pid = os.posix_spawn(
                f"/proc/self/fd/{program}" if self._sealed else self._words[0],
                self._words,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                ],
            )
        finally:
            if self._sealed:
                os.close(program)
            theirs.close()

    def ahead(self, *arguments: str) -> None:
        """A request will come soon: have a child made for it, which rehearses with these arguments."""
        with contextlib.suppress(OSError):  # whatever it is, the request itself will say so
            self._send({"ahead": arguments}, [])

    def spawn(self, arguments: list[str], fds: list[int]) -> None:
        """Have a child made, with these descriptors as its 0, 1, 2… They stay the caller's."""
        self._send(arguments, fds)

    def _send(self, request: Any, fds: list[int]) -> None:
        message = [json.dumps(request).encode()]
        with self._lock:
            try:
                socket.send_fds(self._line, message, fds)
            except (BrokenPipeError, ConnectionResetError):  # it died
                self._end()
                self._begin()
                socket.send_fds(self._line, message, fds)

    def close(self) -> None:
        """Its children go on."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._line.close()
        os.waitpid(self._pid, 0)


def serve(
    become: Callable[..., int],
    fork: Callable[..., int] = lambda *arguments: os.fork(),
    rehearse: Callable[..., Iterator[None]] = lambda *arguments: iter(()),
    ahead: tuple[str, ...] = (),
) -> None:
    """`fork` a child for each request until the line ends; `become` gets its arguments, and gives its exit status.

    A child ahead is forked with the arguments `ahead`, does `rehearse` step by step until its request comes, and takes
    one whose last argument is the same.
    """
    os.setsid()
    os.chdir("/")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a child ended: the kernel reaps it
    line = socket.socket(fileno=0)
    spare: socket.socket | None = None
    gc.freeze()  # what is there stays: a collection would write to every object, and so copy every page of a child's
    while True:
        message, fds, _, _ = socket.recv_fds(line, _MESSAGE, _MOST, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        arguments = json.loads(message)
        if isinstance(arguments, dict):
            if ahead and (spare is None or _ready(spare, 0, 0)):  # it hung up as it went
                with contextlib.suppress(OSError):  # no process, no descriptor is left: the request will say so
                    spare = _ahead(become, lambda: fork(*ahead), rehearse(*arguments["ahead"]))
            continue
        taken = False
        if spare and ahead[-1] == arguments[-1]:
            taken, spare = _hand_over(spare, message, fds), None
        if not taken and fork(*arguments) == 0:
            _become(become, arguments, fds)
        for fd in fds:
            os.close(fd)


def _ahead(become: Callable[..., int], fork: Callable[[], int], rehearsal: Iterator[None]) -> socket.socket:
    """Fork a child ahead: our end of the line to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if fork():
        theirs.close()
        return ours
    try:
        os.close(0)  # the line is the nursery's alone: its end is ours
        ours.close()
        child.name("minirt-ahead")
        with contextlib.suppress(Exception):  # whatever it is, the request itself meets it and says so
            while not _ready(theirs, 0) and next(rehearsal, rehearsal) is None:
                pass
        if not _ready(theirs, _AHEAD):
            theirs.shutdown(socket.SHUT_RD)  # what comes from here on is refused, what has come is not
        message, fds, _, _ = socket.recv_fds(theirs, _MESSAGE, _MOST, socket.MSG_CMSG_CLOEXEC)
        theirs.close()
        if message:
            child.name("minirt")
            _become(become, json.loads(message), fds)
    finally:
        os._exit(0)


def _ready(line: socket.socket, seconds: float, events: int = select.POLLIN) -> bool:
    poll = select.poll()
    poll.register(line, events)
    return bool(poll.poll(seconds * 1000))


def _hand_over(spare: socket.socket, message: bytes, fds: list[int]) -> bool:
    """Whether the child ahead could still be given the request."""
    with spare, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it went, after waiting in vain
        return bool(socket.send_fds(spare, [message], fds))
    return False


def _become(become: Callable[..., int], arguments: list[str], fds: list[int]) -> NoReturn:
    status = 125
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # First out of the way of where they go, then into place.
        away = max(fds) + len(fds)
        for number, fd in enumerate([os.dup2(fd, away + number) for number, fd in enumerate(fds)]):
            os.dup2(fd, number)
            os.close(fd)
        status = become(*arguments)
    finally:
        os._exit(status)
