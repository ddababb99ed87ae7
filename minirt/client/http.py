"""HTTP over a unix socket, as much as the Engine API needs: one request, its answer, or the bare stream behind it.

Small, because it is on the way of every `minirt run`: http.client alone loads for longer than a container starts, and
socket for as long as half the interpreter; `_socket` is the part of it in C.
Source: RFC 9112. Taught in chapter 04.
"""

from __future__ import annotations

import _socket
import select

from minirt.errors import MinirtError
from minirt.lean import loads

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator
    from io import BufferedReader
    from typing import Any

_LINE = 1 << 16


class Lost(MinirtError):
    """The daemon went away in the middle of an answer, or `unheard`: before it had read the request."""

    def __init__(self, unheard: bool = False) -> None:
        super().__init__("the daemon went away: containers go on, ask again")
        self.unheard = unheard


class Response:
    """An answer's head, and its body to be read once. `headers` have lower-case names."""

    def __init__(self, connection: Connection, method: str) -> None:
        self._connection = connection
        self._file = connection.file
        words = self._line().split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise MinirtError("what answers on the socket does not speak HTTP")
        self.status = int(words[1])
        self.headers: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.strip().lower()] = value.strip()
        if 100 <= self.status < 200 and self.status != 101:  # an interim answer
            self.__init__(connection, method)  # type: ignore[misc]
            return
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        length = self.headers.get("content-length")
        self._left = int(length) if length and length.isdigit() else None
        if method == "HEAD" or self.status in (204, 304):
            self._left, self._chunked = 0, False
        self._over = self._left == 0

    def _line(self) -> bytes:
        line = self._file.readline(_LINE)
        if not line.endswith(b"\n"):
            raise Lost
        return line.rstrip(b"\r\n")

    @property
    def reusable(self) -> bool:
        """Whether the body is read and the connection stays."""
        return self._over and self.headers.get("connection", "").lower() != "close"

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes. Raises Lost where it is cut off."""
        while not self._over:
            if self._chunked and not self._left:
                self._left = int(self._line().partition(b";")[0], 16)
                if not self._left:
                    while self._line():
                        continue
                    self._over = True
                    return
            data = self._file.read1(_LINE if self._left is None else min(self._left, _LINE))
            if not data:
                self._over = True
                if self._left is not None:
                    raise Lost
                return
            if self._left is not None:
                self._left -= len(data)
                if not self._left:
                    if self._chunked:
                        self._line()
                    else:
                        self._over = True
            yield data

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def json(self) -> Any:
        data = self.read()
        try:
            return loads(data) if data.strip() else None
        except ValueError as error:
            raise MinirtError(f"the daemon's answer is not JSON: {data[:80]!r}") from error

    def lines(self) -> Iterator[dict[str, Any]]:
        """JSON objects, one a line, as they come."""
        rest = b""
        for data in self.chunks():
            *lines, rest = (rest + data).split(b"\n")
            yield from (loads(line) for line in lines if line.strip())
        if rest.strip():
            yield loads(rest)


class Connection:
    """One connection to a daemon."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            self.socket.connect(path)
        except BaseException:
            self.socket.close()
            raise
        self.file: BufferedReader = open(self.socket.fileno(), "rb", closefd=False)  # noqa: SIM115  ours until `close`

    @classmethod
    def over(cls, line: socket.socket) -> Connection:
        """On a socket that is connected already."""
        made = cls.__new__(cls)
        made.socket, made.file = line, line.makefile("rb")
        return made

    @property
    def stale(self) -> bool:
        """Whether the daemon has closed it meanwhile."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def request(
        self, method: str, target: str, headers: dict[str, str], body: bytes | Iterable[bytes] | None = None
    ) -> Response:
        """Ask; the answer's head. A body of unknown length goes in chunks. Raises Lost."""
        lines = [
            f"{method} {target} HTTP/1.1",
            "Host: minirt",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        if isinstance(body, bytes):
            lines.append(f"Content-Length: {len(body)}")
        elif body is not None:
            lines.append("Transfer-Encoding: chunked")
        elif method not in ("GET", "HEAD"):
            lines.append("Content-Length: 0")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        cut = False
        try:
            self.socket.sendall(head + body if isinstance(body, bytes) else head)
            if body is not None and not isinstance(body, bytes):
                for data in body:
                    if data:
                        self.socket.sendall(b"%x\r\n%s\r\n" % (len(data), data))
                self.socket.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            cut = True  # it answers before it has read all, when it refuses: the answer says why
        try:
            return Response(self, method)
        except (OSError, Lost) as error:  # reset: what we sent was not read (unix(7))
            raise Lost(cut or isinstance(error, ConnectionResetError)) from error

    def taken(self) -> bytes:
        """What of a bare stream came with the answer's head; the rest is to be read from `socket`."""
        self.socket.setblocking(False)
        first = self.file.peek(_LINE)
        self.socket.setblocking(True)
        return bytes(first)

    def close(self) -> None:
        self.file.close()
        self.socket.close()
