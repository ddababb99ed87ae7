"""A hijacked connection: a client's socket on one side, a process' streams on the other, and docker's frames between.

Without a terminal what goes out is framed: one byte 1 (stdout) or 2 (stderr), three zeros, the length in big endian,
the bytes. What comes in is raw. A client that ends its half still listens; one that is gone is detached, and the
process goes on. Nothing is kept without bound: a source is read only once what it gave is on its way.
Source: Engine API 1.44 reference, "ContainerAttach". Taught in chapters 04 and 08.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minirt.keys import Keys

if TYPE_CHECKING:
    from minirt.runtime.control import Connection

STDOUT, STDERR = 1, 2
NUMBERS = {"stdout": STDOUT, "stderr": STDERR}
_CHUNK = 32768


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


@dataclass
class Ends:
    """Pipes to a process: `theirs` go to the engine, as (stdin, stdout, stderr); ours are `stdin` and `outputs`.

    `line` is the engine's answer: whom to tell that all has been typed.
    """

    theirs: list[int | None]
    stdin: int | None
    outputs: dict[int, int] = field(default_factory=dict)  # a descriptor, and its stream's number
    line: Connection | None = None

    @classmethod
    def make(cls, stdin: bool, stdout: bool, stderr: bool) -> Ends:
        ends = cls([None, None, None], None)
        if stdin:
            ends.theirs[0], ends.stdin = os.pipe()
        for number, wanted in ((STDOUT, stdout), (STDERR, stderr)):
            if wanted:
                ours, ends.theirs[number] = os.pipe()
                ends.outputs[ours] = number
        return ends

    @property
    def triple(self) -> tuple[int | None, int | None, int | None]:
        return (self.theirs[0], self.theirs[1], self.theirs[2])

    def give(self) -> tuple[int | None, int | None, int | None]:
        """Theirs, to who takes them over."""
        given, self.theirs = self.triple, [None, None, None]
        return given

    def close_theirs(self) -> None:
        for fd in self.theirs:
            if fd is not None:
                os.close(fd)
        self.theirs = [None, None, None]

    def end_input(self) -> None:
        """All has been typed."""
        if self.stdin is not None:
            os.close(self.stdin)
            self.stdin = None
            if self.line:
                self.line.end_input()

    def close(self) -> None:
        self.close_theirs()
        self.end_input()
        for fd in self.outputs:
            os.close(fd)
        self.outputs = {}

    def hang_up(self) -> None:
        """Detach, whatever is left."""
        self.close()
        if self.line:
            self.line.close()
            self.line = None


def carry(client: socket.socket, first: bytes, ends: Ends, framed: bool, keys: Keys | None = None) -> str:
    """Carry bytes until the process' outputs end (`ended`), the client is `gone`, or its keys `detached` it.

    `first` are bytes that came with the request. Closes our ends.
    """
    try:
        return _Carrier(client, first, ends, framed, keys).run()
    finally:
        ends.close()
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


class _Carrier:
    def __init__(self, client: socket.socket, first: bytes, ends: Ends, framed: bool, keys: Keys | None) -> None:
        self._client, self._ends, self._framed, self._keys = client, ends, framed, keys
        self._typed, self._said = b"", b""
        self._listens = True  # more may come from the client
        self._detached = False
        client.setblocking(False)
        if ends.stdin is not None:
            os.set_blocking(ends.stdin, False)
        if first:
            self._take(first)

    def run(self) -> str:
        ends = self._ends
        while ends.outputs or self._said:
            if self._detached and not self._typed:
                return "detached"
            ready = self._ready()
            if (ends.stdin is not None and ends.stdin in ready) or (self._typed and ends.stdin is None):
                self._type(ready.get(ends.stdin or -1, 0))
            events = ready.get(self._client.fileno(), 0)
            if events & select.POLLOUT and not self._show():
                return "gone"
            if events & select.POLLIN and self._reads and not self._receive():
                self._listens = False
            if events & (select.POLLHUP | select.POLLERR) and not (self._reads and events & select.POLLIN):
                return self._leave()
            for fd in [fd for fd in ready if fd in ends.outputs]:
                self._read(fd)
                break  # what it gave goes first
            self._end_input()
        return "ended"

    @property
    def _reads(self) -> bool:
        return self._listens and not self._typed and self._ends.stdin is not None and not self._detached

    def _ready(self) -> dict[int, int]:
        poll, ends = select.poll(), self._ends
        mask = (select.POLLIN if self._reads else 0) | (select.POLLOUT if self._said else 0)
        poll.register(self._client, mask)
        if ends.stdin is not None:
            poll.register(ends.stdin, select.POLLOUT if self._typed else 0)
        for fd in ends.outputs if not self._said else ():
            poll.register(fd, select.POLLIN)
        return dict(poll.poll())

    def _receive(self) -> bool:
        """What the client typed; False at its end."""
        try:
            data = self._client.recv(_CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._take(data)
        return bool(data)

    def _take(self, data: bytes) -> None:
        if self._keys:
            data, self._detached = self._keys.take(data)
        self._typed += data

    def _type(self, events: int) -> None:
        """Pass on what was typed; nobody may be there to read it."""
        stdin = self._ends.stdin
        try:
            if stdin is not None and self._typed:
                self._typed = self._typed[os.write(stdin, self._typed) :]
            if events & select.POLLERR:
                raise BrokenPipeError
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._close_input()

    def _end_input(self) -> None:
        if not self._listens and not self._typed:
            self._close_input()

    def _close_input(self) -> None:
        self._ends.end_input()
        self._typed, self._listens = b"", False

    def _show(self) -> bool:
        try:
            self._said = self._said[self._client.send(self._said, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def _read(self, fd: int) -> None:
        data = os.read(fd, _CHUNK)
        if data:
            self._said = frame(self._ends.outputs[fd], data) if self._framed else data
        else:
            os.close(fd)
            del self._ends.outputs[fd]

    def _leave(self) -> str:
        """The client is gone; what it typed still arrives, if it is taken at once."""
        if self._typed and self._ends.stdin is not None:
            with contextlib.suppress(OSError):
                os.write(self._ends.stdin, self._typed)
        return "gone"
