"""The client's end of a hijacked connection: what we type goes in, what the container writes comes out.

Without a terminal docker frames what comes: one byte 1 (stdout) or 2 (stderr), three zeros, the length in big endian,
the bytes. Source: Engine API 1.44 reference, "ContainerAttach". Taught in chapters 04 and 08.
"""

from __future__ import annotations

import _socket

from minirt.lean import suppress

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Iterator

    from minirt.client.http import Connection

_CHUNK = 65536
_NAMES = {1: "stdout", 2: "stderr"}


class Frames:
    """Takes docker's frames apart, however they were cut on the way."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """What is whole now, and of the last frame as much as is there."""
        self._buffer += data
        while len(self._buffer) > 8:
            stream, size = self._buffer[0], int.from_bytes(self._buffer[4:8], "big")
            part = self._buffer[8 : 8 + size]
            left = size - len(part)
            # The rest of a frame is a frame of its own, whose head we write.
            head = self._buffer[:4] + left.to_bytes(4, "big") if left else b""
            self._buffer = head + self._buffer[8 + size :]
            if part:
                yield _NAMES.get(stream, "stdout"), part


class Attached:
    """A process' streams. Closing it detaches; the process goes on."""

    def __init__(self, connection: Connection, tty: bool) -> None:
        self._connection, self._first = connection, connection.taken()
        self._frames = None if tty else Frames()
        self.socket = connection.socket
        self._taking = True

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def waiting(self) -> bool:
        """Whether something came before one could poll for it: read at once."""
        return bool(self._first)

    def read(self) -> list[tuple[str, bytes]] | None:
        """What has arrived, as ("stdout" | "stderr", bytes) in order; None at the end."""
        data, self._first = self._first, b""
        if not data:
            try:
                data = self.socket.recv(_CHUNK)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
        return list(self._frames.feed(data)) if self._frames else [("stdout", data)]

    def output(self) -> Iterator[tuple[str, bytes]]:
        """All that comes, until the process ends or detaches us."""
        while (found := self.read()) is not None:
            yield from found

    def send(self, data: bytes, wait: bool = False) -> int:
        """Type as much of it as is taken now, or with `wait` all; how many bytes. What nobody takes any more is."""
        try:
            if not self._taking:
                return len(data)
            if wait:
                self.socket.sendall(data)
                return len(data)
            return self.socket.send(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            self._taking = False
            return len(data)

    def end_input(self) -> None:
        """Nothing more will be typed; what is written still comes."""
        with suppress(OSError):
            self.socket.shutdown(_socket.SHUT_WR)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
