"""The line to a shim: a unix socket in the container's folder, over which one asks it for what only it can do.

A request is one line of JSON, with file descriptors beside it (SCM_RIGHTS): `attach` and `exec` hand over the streams
themselves, so no byte of the container's passes through the asker. The answer is one line, `{}` or `{"error": …}`; an
`exec` or `attach` is told its end on the same connection, `{"exit_code": …}`, and ends by closing it. That a given
stdin closed says nothing, for an asker may die: `end_input` on the line, which has no answer, says that all is typed.
Source: unix(7). Taught in chapter 08.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minirt.errors import Conflict, StartError

if TYPE_CHECKING:
    from pathlib import Path

NAME = "shim.sock"
_MAX = 8 << 20  # bytes of a request: a command line has at most 2 MiB, execve(2), and so has its environment
_MAX_FDS = 8


class Connection:
    """One end of the line. `fds` are those that came with what was read last."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._buffer = b""
        self.fds: list[int] = []

    def fileno(self) -> int:
        return self._line.fileno()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one line. BrokenPipeError where nobody is there any more."""
        data = json.dumps(message).encode() + b"\n"
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self._line.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        self._line.sendall(data[sent:], socket.MSG_NOSIGNAL)

    def end_input(self) -> None:
        """Say that the stdin handed over on this line is at its end. The process may have ended, too."""
        with contextlib.suppress(OSError):
            self.send({"do": "end_input"})

    def read(self) -> bool:
        """Take what has arrived, once; False at the end. ValueError for more than any request needs."""
        data, ancillary, _, _ = self._line.recvmsg(65536, socket.CMSG_SPACE(4 * _MAX_FDS), socket.MSG_CMSG_CLOEXEC)
        for _, kind, raw in ancillary:
            if kind == socket.SCM_RIGHTS:
                self.fds += array.array("i", raw[: len(raw) // 4 * 4])
        self._buffer += data
        if len(self._buffer) > _MAX or len(self.fds) > _MAX_FDS:
            raise ValueError("a request is too long")
        return bool(data)

    def message(self) -> dict[str, Any] | None:
        """The next whole line that was read."""
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return None
        self._buffer = rest
        try:
            value = json.loads(line)
        except RecursionError as error:
            raise ValueError("a request is nested too deep") from error
        return value if isinstance(value, dict) else {}

    def wait(self) -> dict[str, Any] | None:
        """The next line, however long it takes; None at the end. Raises what the shim answered with."""
        while (message := self.message()) is None:
            try:
                if not self.read():
                    return None
            except ConnectionResetError:
                return None
        if "error" in message:
            kind = Conflict if message.get("conflict") else StartError
            error = kind(message["error"])
            error.exit_code = message.get("exit_code", 125)
            raise error
        return message

    def drop(self) -> None:
        """Close the descriptors that came and that nobody took."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def close(self) -> None:
        self.drop()
        self._line.close()


def listen(folder: str) -> socket.socket:
    """The shim's end."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with Place(folder) as place:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{place}/{NAME}")  # of an earlier life
        line.bind(f"{place}/{NAME}")
    line.listen(64)
    return line


def ask(folder: Path, request: dict[str, Any], fds: Sequence[int] = ()) -> tuple[Connection, dict[str, Any]]:
    """Send a request to the container's shim; the connection and its first answer. Raises Conflict without a shim."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection = Connection(line)
    try:
        with Place(str(folder)) as place:
            line.connect(f"{place}/{NAME}")
        connection.send(request, fds)
        answer = connection.wait()
    except (FileNotFoundError, ConnectionRefusedError, BrokenPipeError):
        answer = None
    except BaseException:
        connection.close()
        raise
    if answer is None:
        connection.close()
        raise Conflict("the container is not running")
    return connection, answer


class Place:
    """A short path of a folder, for a socket's 108 bytes."""

    def __init__(self, folder: str) -> None:
        self._fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
