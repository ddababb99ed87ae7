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
    """Our side: `module.main(*arguments)` is to call `serve`. `sealed`: from an interpreter no child overwrites.
    `kind`: requests that end with this word are for the child that was forked ahead."""

    def __init__(self, module: str, *arguments: str, sealed: bool = False, kind: str = "") -> None:
        self._words, self._sealed, self._kind = child.command(module, *arguments), sealed, kind
        self._lock = threading.Lock()
        self._spare: socket.socket | None = None  # the line to it
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
        with self._lock, contextlib.suppress(OSError):  # whatever it is, the request itself will say so
            if not self._kind or (self._spare and not _ready(self._spare, 0, 0)):  # it hangs up as it goes
                return
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._spare = ours
                self._send({"ahead": arguments}, [theirs.fileno()])

    def spawn(self, arguments: list[str], fds: list[int]) -> None:
        """Have a child made, with these descriptors as its 0, 1, 2… They stay the caller's."""
        with self._lock:
            if self._spare and arguments[-1] == self._kind:
                spare, self._spare = self._spare, None
                with spare, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it waited in vain, and went
                    socket.send_fds(spare, [json.dumps(arguments).encode()], fds)
                    return
            self._send(arguments, fds)

    def _send(self, request: Any, fds: list[int]) -> None:
        message = [json.dumps(request).encode()]
        try:
            socket.send_fds(self._line, message, fds)
        except (BrokenPipeError, ConnectionResetError):  # it died
            self._end()
            self._begin()
            socket.send_fds(self._line, message, fds)

    def close(self) -> None:
        """Its children go on."""
        with self._lock:
            if self._spare:
                self._spare.close()
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

    A child ahead is forked with the arguments `ahead`, and does `rehearse` step by step until its request comes.
    """
    os.setsid()
    os.chdir("/")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a child ended: the kernel reaps it
    line = socket.socket(fileno=0)
    gc.freeze()  # what is there stays: a collection would write to every object, and so copy every page of a child's
    while True:
        message, fds, _, _ = socket.recv_fds(line, _MESSAGE, _MOST, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        arguments = json.loads(message)
        if isinstance(arguments, list):
            if fork(*arguments) == 0:
                _become(become, arguments, fds)
        elif ahead:
            with contextlib.suppress(OSError):  # no process is left: the request will say so
                if fork(*ahead) == 0:
                    _wait(become, socket.socket(fileno=fds[0]), rehearse(*arguments["ahead"]))
        for fd in fds:
            os.close(fd)


def _wait(become: Callable[..., int], line: socket.socket, rehearsal: Iterator[None]) -> NoReturn:
    """The child ahead."""
    try:
        os.close(0)  # the nursery's line
        child.name("minirt-ahead")
        with contextlib.suppress(Exception):  # whatever it is, the request itself meets it and says so
            while not _ready(line, 0) and next(rehearsal, rehearsal) is None:
                pass
        if not _ready(line, _AHEAD):
            line.shutdown(socket.SHUT_RD)  # what comes from here on is refused, what has come is not
        message, fds, _, _ = socket.recv_fds(line, _MESSAGE, _MOST, socket.MSG_CMSG_CLOEXEC)
        line.close()
        if message:
            child.name("minirt")
            _become(become, json.loads(message), fds)
    finally:
        os._exit(0)


def _ready(line: socket.socket, seconds: float, events: int = select.POLLIN) -> bool:
    poll = select.poll()
    poll.register(line, events)
    return bool(poll.poll(seconds * 1000))


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
