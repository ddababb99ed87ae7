"""One request and its answer, as the Docker Engine API has them: queries, bodies, errors, streams.

What comes is bounded and may be wrong in any way; what goes out is JSON, a chunked stream, or the bare socket (a
hijack). A handler raises `MinirtError`; server.py answers with its status and `{"message": …}`.
Sources: Engine API 1.44 reference; RFC 9112 (chunked bodies); moby api/server/httputils.
"""

from __future__ import annotations

import io
import json
import os
import re
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from minirt.errors import InvalidInput, MinirtError

if TYPE_CHECKING:
    from minirt.engine.answers import Answer

MAX_BODY = 4 << 20  # bytes of JSON: a command line and its environment have 2 MiB together, execve(2)
_MAX_VALUES = 1 << 18  # in it: an empty list takes three bytes here, and sixty once it is read
MAX_HEAD = 1 << 17  # bytes of a request's head
_MAX_LINE = 1024  # bytes of a chunk's head
_DEPTH = 100  # objects in objects
_HEAD_SECONDS = 0.5  # a client may take to read the head of a stream
_FALSE = ("", "0", "no", "false", "none")
RAW, MULTIPLEXED = "application/vnd.docker.raw-stream", "application/vnd.docker.multiplexed-stream"


class Head:
    """A request's head, to be read line by line: all of it has at most MAX_HEAD bytes."""

    def __init__(self, source: Any) -> None:
        self._source, self._left = source, MAX_HEAD

    def readline(self, size: int) -> bytes:
        """As of a file. Raises LineTooLong, which http.server answers with 431."""
        line: bytes = self._source.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise LineTooLong("header")
        return line


class Gone(Exception):
    """The client went away: nobody is left to answer."""


class Body(io.RawIOBase):
    """The bytes of a request's body, by its length or in chunks; `read` as of a file. Raises InvalidInput."""

    def __init__(self, source: Any, length: int | None, chunked: bool) -> None:
        super().__init__()
        self._source, self._chunked = source, chunked
        self._left = 0 if chunked else (length or 0)
        self.over = not chunked and not length

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all that is left below 0; empty at the end only."""
        out = bytearray()  # a list of pieces would be many times as large where chunks are small
        while size and not self.over:
            if self._chunked and not self._left:
                self._left = self._chunk()
                if not self._left:
                    self.over = True
                    break
            wanted = min(self._left, 1 << 16) if size < 0 else min(self._left, size)
            data = self._take(self._source.read, wanted)
            if not data:
                raise InvalidInput("the request's body ended too early")
            out += data
            self._left -= len(data)
            size -= len(data) if size > 0 else 0
            if not self._left:
                if not self._chunked:
                    self.over = True
                elif self._take(self._source.readline, 3).strip():
                    raise InvalidInput("malformed chunk in the request's body")
        return bytes(out)

    def _take(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except OSError as error:
            raise Gone from error

    def _chunk(self) -> int:
        """Bytes of the next chunk; 0 at the last, with its trailers."""
        head = self._take(self._source.readline, _MAX_LINE).partition(b";")[0].strip()
        if not head or not all(byte in b"0123456789abcdefABCDEF" for byte in head) or len(head) > 15:
            raise InvalidInput("malformed chunk in the request's body")
        size = int(head, 16)
        while not size and self._take(self._source.readline, _MAX_LINE).strip():
            continue
        return size

    def drain(self, most: int) -> bool:
        """Take what is left, up to `most` bytes; whether that was all."""
        while not self.over and most > 0:
            most -= len(self.read(min(most, 1 << 16)))
        return self.over


class Exchange:
    """A request, and the means to answer it. `version` is the client's, (1, 44) where it names none."""

    def __init__(self, handler: BaseHTTPRequestHandler, version: tuple[int, int], path: str, query: str) -> None:
        self._handler = handler
        self.method, self.path, self.version = handler.command, path, version
        try:
            self.query = {k: v for k, v in parse_qs(query, keep_blank_values=True, max_num_fields=1000).items()}
        except ValueError as error:
            raise InvalidInput(f"malformed query: {error}") from error
        self.headers = handler.headers
        self.body = self._body()
        self.answered = False  # the head of the answer is out
        self._chunked = False

    # what is asked

    def _body(self) -> Body:
        lengths = self.headers.get_all("Content-Length") or []
        # What the parser could not read, or would read otherwise than others: nothing behind it is sure.
        if self.headers.defects or self.headers.get_payload() or any(name[-1:].isspace() for name in self.headers):
            raise InvalidInput("malformed header of the request")
        chunked = ", ".join(self.headers.get_all("Transfer-Encoding") or []).strip().lower()
        if chunked not in ("", "chunked", "identity") or (chunked == "chunked" and lengths) or len(set(lengths)) > 1:
            raise InvalidInput("the request's length is not clear")
        if lengths and not (lengths[0].isascii() and lengths[0].isdecimal() and len(lengths[0]) < 19):
            raise InvalidInput(f"invalid Content-Length {lengths[0][:40]!r}")
        return Body(self._handler.rfile, int(lengths[0]) if lengths else None, chunked == "chunked")

    def text(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]

    def flag(self, name: str, default: bool = False) -> bool:
        """True but for docker's words of no."""
        return self.query[name][0].strip().lower() not in _FALSE if name in self.query else default

    def number(self, name: str, default: int | None = None) -> int | None:
        """Raises InvalidInput."""
        text = self.text(name)
        if not text:
            return default
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text, re.ASCII):
            raise InvalidInput(f'strconv.Atoi: parsing "{text[:40]}": invalid syntax')
        return int(text)

    def moment(self, name: str) -> float:
        """Seconds of the epoch, with a fraction; 0 where none is given. Raises InvalidInput."""
        text = self.text(name) or "0"
        if not re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]*)?", text, re.ASCII):
            raise InvalidInput(f'invalid value for "{name}": {text[:40]!r} is no UNIX time')
        return float(text)

    def filters(self) -> dict[str, list[str]]:
        """`filters` as {name: [value, …]}; old clients send {name: {value: true}}. Raises InvalidInput."""
        text = self.text("filters")
        if not text:
            return {}
        try:
            found = json.loads(text)
            if not all(isinstance(values, dict | list) for values in found.values()):
                raise TypeError
            return {str(name): [str(value) for value in values] for name, values in found.items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidInput(f"invalid filter: {text[:80]!r} is not a map of lists") from error

    @property
    def is_json(self) -> bool:
        """Whether the body says that it is."""
        return bool(self.headers.get("Content-Type", "").partition(";")[0].strip() == "application/json")

    def json(self) -> dict[str, Any]:
        """The body's JSON object; empty where there is no body. Raises InvalidInput."""
        data = self.body.read(MAX_BODY + 1)
        if len(data) > MAX_BODY:
            raise InvalidInput(f"http: request body too large: more than {MAX_BODY >> 20} MiB")
        if not data:
            return {}
        if not self.is_json:
            kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
            raise InvalidInput(f"Content-Type specified ({kind}) must be 'application/json'")
        if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_VALUES:
            raise InvalidInput(f"http: request body too large: more than {_MAX_VALUES} values")
        try:
            found = json.loads(data, parse_constant=int)
            _plain(found)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"invalid JSON: {error}") from error
        if found is not None and not isinstance(found, dict):
            raise InvalidInput(f"json: cannot unmarshal {type(found).__name__} into an object")
        return found or {}

    # the answer

    def head(self, status: int, **headers: str) -> None:
        """Send the head of the answer; raises Gone."""
        handler = self._handler
        self.answered = True
        handler.send_response(status)
        handler.send_header("Api-Version", "1.44")
        handler.send_header("Ostype", "linux")
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        try:
            handler.end_headers()
        except OSError as error:
            raise Gone from error

    def reply(self, value: Answer | Sequence[Answer] | None, status: int = 200, **headers: str) -> None:
        data = json.dumps(value).encode() + b"\n"
        self.plain(data, status, Content_Type="application/json", **headers)

    def plain(self, data: bytes = b"", status: int = 200, **headers: str) -> None:
        """An answer of known length; 204 and 304 have none, and to HEAD goes no body."""
        if status not in (204, 304):
            headers["Content_Length"] = str(len(data))
        self.head(status, **headers)
        if data and self.method != "HEAD" and status not in (204, 304):
            self._send(data)

    def nothing(self, status: int = 204) -> None:
        self.plain(b"", status)

    def stream(self, content_type: str, **headers: str) -> None:
        """Begin an answer of unknown length: `write` its pieces, then `finish`. It may take for ever."""
        self._chunked = self._handler.request_version == "HTTP/1.1"
        framing = {"Transfer_Encoding": "chunked"} if self._chunked else {"Connection": "close"}
        self._handler.connection.settimeout(None)
        self.head(200, Content_Type=content_type, **framing, **headers)

    def write(self, data: bytes) -> None:
        """Raises Gone."""
        if data:
            self._send(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)

    def finish(self) -> None:
        if self._chunked:
            self._send(b"0\r\n\r\n")
            self._handler.connection.settimeout(self._handler.timeout)  # who says nothing from now on is not waited for
        else:
            self._handler.close_connection = True

    def lines(self, objects: Iterator[Answer | None]) -> None:
        """A stream of JSON objects, a line each; None only asks whether the client is still there."""
        try:
            for each in objects:
                if each is None:
                    self.check()
                    continue
                self._begin()
                self.write(json.dumps(each).encode() + b"\r\n")
        except (MinirtError, OSError) as error:
            if not self.answered:
                raise
            text = told(error)
            said: Answer = {"errorDetail": {"message": text}, "error": text}
            self.write(json.dumps(said).encode() + b"\r\n")
        finally:
            close = getattr(objects, "close", None)
            if close:
                close()  # what is done for nobody stops
        self._begin()
        self.finish()

    def _begin(self) -> None:
        if not self.answered:
            self.stream("application/json")

    def tar(self, headers: dict[str, str]) -> None:
        """Begin a tar of unknown length."""
        self.stream("application/x-tar", **{k: v for k, v in headers.items() if k != "Content_Type"})

    def send(self, data: bytes) -> None:
        """Bytes as they are, after a hijack."""
        self._send(data)

    def _send(self, data: bytes) -> None:
        try:
            self._handler.wfile.write(data)
        except OSError as error:
            raise Gone from error

    @property
    def socket(self) -> socket.socket:
        found: socket.socket = self._handler.connection
        return found

    def check(self) -> None:
        """Raises Gone where the client has closed its end."""
        poll = select.poll()
        poll.register(self.socket, 0)
        if poll.poll(0):
            raise Gone

    def hijack(self, content_type: str = RAW) -> bytes:
        """Make the connection a bare stream; what the client had sent already. It ends with the handler."""
        handler = self._handler
        self.answered = handler.close_connection = True
        if self.headers.get("Upgrade"):
            head = "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        else:
            head = "HTTP/1.1 200 OK\r\n"
        head += f"Content-Type: {content_type}\r\nApi-Version: 1.44\r\nOstype: linux\r\n\r\n"
        handler.connection.settimeout(None)
        self._send(head.encode())
        self._head_taken()
        handler.connection.setblocking(False)
        return bytes(handler.rfile.peek(1 << 16))  # type: ignore[attr-defined]

    def _head_taken(self) -> None:
        """Wait until the client has read the head: docker-py loses what comes with it."""
        if sys.platform != "linux":
            return
        import fcntl
        import termios

        end = time.monotonic() + _HEAD_SECONDS
        while time.monotonic() < end and any(fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))):
            time.sleep(0.0002)


def told(error: MinirtError | OSError) -> str:
    """In one line; of an OSError what the machine says, and of what file."""
    if isinstance(error, MinirtError):
        return str(error)
    where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
    return f"{(error.strerror or str(error)).lower()}{where}"


def _plain(found: Any) -> None:
    """Texts that can be names and words, numbers of 64 bits, no endless depth. Raises ValueError."""
    level, depth = [found], 0
    while level:
        if (depth := depth + 1) > _DEPTH:
            raise ValueError("too deep")
        inner: list[Any] = []
        for each in level:
            if isinstance(each, str) and "\0" in each:
                raise ValueError("a text holds a NUL byte")
            if isinstance(each, str):
                each.encode(errors="surrogateescape")
            elif isinstance(each, int) and not -(1 << 63) <= each < 1 << 63:
                raise ValueError("a number is too large")
            elif isinstance(each, dict):
                inner += [*each, *each.values()]
            elif isinstance(each, list):
                inner += each
        level = inner


def split(target: str) -> tuple[str, str]:
    """Path and query of a request's target; some clients send it whole, as to a proxy."""
    if not target.startswith("/"):
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query = target.partition("#")[0].partition("?")
    return path, query


def unquoted(text: str) -> str:
    """A part of a path in plain letters. Raises InvalidInput."""
    found = unquote(text, errors="surrogateescape")
    if "\0" in found:
        raise InvalidInput("a name holds a NUL byte")
    return found
