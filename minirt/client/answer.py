"""One request of the client's and its answer: errors become ours, connections are kept, the trace is told.

Sources: Engine API 1.44 reference, "Errors"; docker/cli cli/command/container/run.go (exit status by text).
"""

from __future__ import annotations

import os
import time

from minirt import trace
from minirt.client.http import Connection, Lost, Response
from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound, StartError, Unauthorized, Unsupported
from minirt.lean import dumps, loads, suppress

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any, BinaryIO

    from minirt.client import Client

_ERRORS: dict[int, type[MinirtError]] = {
    400: InvalidInput, 401: Unauthorized, 404: NotFound, 409: Conflict, 501: Unsupported
}  # fmt: skip
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")  # RFC 3986, 2.3
_CHUNK = 1 << 16
_AGAIN = 3  # times a request that nobody heard is said once more


class Answer:
    """A request on its way: its answer's head is there when it is made, its body to be read. A context manager.

    Raises what the daemon answered with.
    """

    def __init__(self, client: Client, method: str, target: str, headers: dict[str, str], data: Any) -> None:
        self._client, self._told = client, (method, target)
        self._tracer, self._number = client._told()
        self._start, self._ended = time.monotonic(), False
        if self._tracer:
            headers["X-Minirt-Trace"] = f"{self._tracer.tag}/{self._number}"
        trace.publish("client", "request", method=method, path=target)
        self._connection: Connection | None = client._taken()
        try:
            self.head: Response = self._asked(self._connection, method, target, headers, data)
            self._judge()
        except BaseException:
            self._end(getattr(self, "head", None) and self.head.status or 0)
            raise

    def _asked(self, connection: Connection, method: str, target: str, headers: dict[str, str], data: Any) -> Response:
        """The answer's head; asked again where a daemon was just being killed and had not read the request."""
        for _ in range(_AGAIN):
            try:
                return connection.request(method, target, headers, data)
            except Lost as error:
                if not error.unheard or not isinstance(data, bytes | None):
                    raise
                connection.close()
                time.sleep(0.05)
                self._connection = connection = self._client._connect()
        return connection.request(method, target, headers, data)

    def _judge(self) -> None:
        if self.head.status < 400:
            return
        try:
            message = str(self.head.json()["message"])
        except (MinirtError, ValueError, KeyError, TypeError):
            message = f"the daemon answers {self.head.status}"
        error = _ERRORS.get(self.head.status, MinirtError)(message)
        error.status = self.head.status
        raise error

    def _end(self, status: int) -> None:
        """Tell how it ended, and keep the connection where nothing is left in it."""
        if self._ended:
            return
        self._ended = True
        connection, self._connection = self._connection, None
        if connection is not None:
            head: Response | None = getattr(self, "head", None)
            if head is not None and head.reusable:
                self._client._given_back(connection)
            else:
                connection.close()
        if self._tracer:
            self._tracer.settle(self._number)
        method, target = self._told
        trace.publish("client", "response", method=method, path=target, status=status,
                      ms=(time.monotonic() - self._start) * 1000)  # fmt: skip

    def hand_over(self) -> Connection:
        """The connection is a bare stream now, and the caller's."""
        connection, self._connection = self._connection, None
        assert connection is not None
        self._tracer = None  # it ends when the stream does
        self._end(self.head.status)
        return connection

    def drop(self) -> None:
        """Ask no more for the rest."""
        self._tracer = None
        self._end(self.head.status)

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        status = error.status if isinstance(error, MinirtError) else self.head.status
        if kind is None:
            with suppress(MinirtError):
                self.head.read()
        self._end(status)


class Waiting:
    """Somebody waits for a container's end."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def result(self) -> int:
        """Its exit status. Raises MinirtError where what it wrote could not be kept."""
        with self._answer:
            found = self._answer.head.json()
        if found.get("Error"):
            raise MinirtError(found["Error"]["Message"])
        return int(found["StatusCode"])

    def close(self) -> None:
        """Wait no more."""
        self._answer.drop()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def spelled(query: dict[str, Any]) -> str:
    """The query of a target, `?name=value&…`; what is None, False or empty is left out."""
    words = []
    for name, value in query.items():
        for each in value if isinstance(value, list) else [value]:
            if each is None or each is False or each == "" or each == {}:
                continue
            text = "1" if each is True else dumps(each) if isinstance(each, dict) else str(each)
            words.append(f"{name}={quoted(text)}")
    return "?" + "&".join(words) if words else ""


def quoted(text: str) -> str:
    """`urllib.parse.quote` with nothing safe: loading that takes longer than the request."""
    if text.isascii() and text.replace("-", "").replace("_", "").replace(".", "").isalnum():
        return text
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in os.fsencode(text))


def part(name: str) -> str:
    """A name as part of a path; those of images keep their slashes."""
    if not name:
        raise InvalidInput("an empty name names nothing")
    return "/".join(map(quoted, name.split("/"))) if "/" in name else quoted(name)


def pieces(stream: BinaryIO) -> Iterator[bytes]:
    read = getattr(stream, "read1", stream.read)
    return iter(lambda: read(_CHUNK), b"")


def progress(head: Response) -> Iterator[dict[str, Any]]:
    """The objects of a progress stream; its `error` is raised."""
    for line in head.lines():
        if "error" in line:
            raise MinirtError(str(line["error"]))
        yield line


def login(domain: str) -> dict[str, str]:
    """The header that shows a daemon what `docker login` left here for a registry; none where nobody logged in."""
    from base64 import urlsafe_b64encode

    from minirt.registry.credentials import HUB_KEYS, Credentials

    found = Credentials().look_up(domain)
    if found is None:
        return {}
    shown = {
        "username": found.username,
        "password": found.password,
        "identitytoken": found.identity_token,
        "serveraddress": HUB_KEYS[0] if domain == "docker.io" else domain,
    }
    return {"X-Registry-Auth": urlsafe_b64encode(dumps(shown).encode()).decode()}


def path_stat(head: Response) -> dict[str, Any]:
    from base64 import b64decode

    return dict(loads(b64decode(head.headers["x-docker-container-path-stat"])))


def exec_body(detach: bool, tty: bool, size: tuple[int, int] | None) -> dict[str, Any]:
    body: dict[str, Any] = {"Detach": detach, "Tty": tty}
    return body | {"ConsoleSize": [size[1], size[0]]} if tty and size else body


def start_error(error: MinirtError) -> StartError:
    """docker tells why a start failed by the text alone (cli/command/container/run.go)."""
    text = str(error)
    code = 125
    if "executable file not found" in text or "no such file or directory" in text:
        code = 127
    elif "permission denied" in text:
        code = 126
    made = StartError(text, code)
    made.status = error.status
    return made
