"""The hub speaks: a read-only registry over HTTP/1.1, for any client of the OCI distribution-spec.

    GET /v2/                                  are you a registry?      GET /v2/_catalog           which repositories?
    GET /v2/<name>/manifests/<tag or digest>  what is it made of?      GET /v2/<name>/tags/list   which tags?
    GET /v2/<name>/blobs/<digest>             the bytes, also from the middle (Range)

HEAD asks the same without a body. `<name>` is `hello-world` or `library/hello-world`. Errors are the spec's JSON.
Invariants: a request becomes a file only through a name in REPOSITORIES or a well-formed Digest; a request meant for
another host (DNS rebinding from a web page) gets nothing. Source: distribution-spec, spec.md; RFC 9110. Chapter 04.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode

from minirt.errors import InvalidInput, MinirtError, NotFound, RegistryError, Unsupported
from minirt.hub import catalog
from minirt.hub.layout import Layout
from minirt.hub.names import REPOSITORIES
from minirt.image.descriptor import INDEX_TYPES, MANIFEST_TYPES
from minirt.image.digest import Digest
from minirt.image.manifest import MAX_DOCUMENT, encode, load_json

_ROUTE = re.compile(r"/v2/(.+)/(?:(manifests|blobs)/([^/]+)|tags/list)")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::\d+)?")
_JSON = "application/json"
_CHUNK = 1 << 16  # bytes


class Hub(socketserver.ThreadingTCPServer):
    """The registry, serving from `start()` to `close()`, a thread per connection; also a context manager.

    Images are made in `folder` on first request, and stay. `throttle` is in bytes per second, for all blobs together.
    Raises RegistryError where it cannot listen.
    """

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # there it would let two servers share a port
    request_queue_size = 64

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", port: int = 0, throttle: int | None = None) -> None:
        self.layout, self.host, self.throttle = Layout(folder), host.lower(), throttle
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._turn, self._free = threading.Lock(), 0.0  # when the throttled line is free again, monotonic seconds
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._connections: set[socket.socket] = set()
        try:
            super().__init__((host, port), _Exchange)
        except (OSError, OverflowError) as error:
            raise RegistryError(f"the hub cannot listen on {host}:{port}: {error}") from error

    @property
    def url(self) -> str:
        """Where it answers: `http://127.0.0.1:5000`."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.server_address[1]}"

    def start(self) -> Hub:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="hub", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving and drop all connections. May be called twice."""
        self._closing.set()
        if self._thread:
            self.shutdown()
            self._thread.join()
            self._thread = None
        self.server_close()
        for connection in list(self._connections):
            self.shutdown_request(connection)

    def __enter__(self) -> Hub:
        return self if self._thread else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def trusts(self, host: str) -> bool:
        """Is this Host header one of ours? A page that rebinds its DNS name to us still sends that name. Listening on
        all addresses, any address will do: an address cannot be rebound."""
        match = _HOST.fullmatch(host)
        name = (match[1] or match[2]).lower() if match else ""
        if match and name in ("localhost", self.host):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback or ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def pieces(self, path: Path, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a file from `start` up to `end`, as fast as the line allows."""
        rate = self.throttle
        chunk = max(1, min(_CHUNK, rate // 20)) if rate else _CHUNK  # a slow line flows, it does not come in lumps
        with open(path, "rb") as file:
            file.seek(start)
            for at in range(start, end, chunk):
                piece = file.read(min(chunk, end - at))
                if rate:
                    with self._turn:
                        free = self._free = max(self._free, time.monotonic()) + len(piece) / rate
                    if self._closing.wait(free - time.monotonic()):
                        raise ConnectionAbortedError("the hub closes")
                yield piece

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # OSError: the client went away, nobody is left to tell
            super().handle_error(request, client_address)


class _Refusal(MinirtError):
    """An answer that is an error: HTTP status, the spec's code, and a message."""

    def __init__(self, status: int, code: str, message: object, headers: dict[str, str] | None = None) -> None:
        super().__init__(str(message))
        self.status, self.code, self.headers = status, code, headers or {}


class _Exchange(BaseHTTPRequestHandler):
    """The requests of one connection. What answers one either sends all of the head, or raises before it."""

    server: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60  # seconds a connection may say nothing

    def do_GET(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body nobody reads must not pass for the next request
        try:
            hosts = self.headers.get_all("Host", [])
            if len(hosts) != 1 or not self.server.trusts(hosts[0]):
                raise _Refusal(403, "DENIED", "this registry does not answer for that host name")
            if self.command not in ("GET", "HEAD"):
                raise _Refusal(405, "UNSUPPORTED", "this registry is read-only", {"Allow": "GET, HEAD"})
            self._answer()
        except MinirtError as error:
            refusal = error
            if isinstance(error, Unsupported):  # this machine cannot make that image: asking again is no use
                refusal = _Refusal(404, "MANIFEST_UNKNOWN", error)
            elif not isinstance(error, _Refusal):
                refusal = _Refusal(500, "UNKNOWN", error)
            assert isinstance(refusal, _Refusal)
            body = encode({"errors": [{"code": refusal.code, "message": str(refusal)}]})
            self._send(refusal.status, _JSON, body, refusal.headers)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path in ("/v2", "/v2/"):
            return self._send(200, _JSON, b"{}")
        if path == "/v2/_catalog":
            return self._list({}, "repositories", REPOSITORIES)
        match = _ROUTE.fullmatch(path)
        name, kind, what = match.groups("") if match else (path, "", "")
        repository = next((known for known in (name, f"library/{name}") if known in REPOSITORIES), None)
        if match is None or repository is None:
            raise _Refusal(404, "NAME_UNKNOWN", f"repository {name[:255]!r} is not known to this registry")
        if not kind:
            return self._list({"name": name}, "tags", REPOSITORIES[repository])
        try:
            digest = Digest(what) if ":" in what or kind == "blobs" else None
            digest = digest or catalog.image(self.server.layout, repository, what).digest
            file = catalog.blob(self.server.layout, repository, digest)
            facts = {"Docker-Content-Digest": str(digest), "ETag": f'"{digest}"'}
            if kind == "blobs":
                return self._send_blob(file, facts)
            return self._send(200, _manifest_type(file), file.read_bytes(), facts)
        except InvalidInput as error:
            raise _Refusal(400, "DIGEST_INVALID", error) from error
        except NotFound as error:
            raise _Refusal(404, f"{kind[:-1].upper()}_UNKNOWN", error) from error

    def _list(self, document: dict[str, Any], key: str, values: Iterable[str]) -> None:
        """A list, `n` at a time, from after `last` on; a Link header leads to the rest."""
        path, _, query = self.path.partition("?")
        asked = parse_qs(query)
        values = sorted(value for value in values if value > asked.get("last", [""])[0])
        headers = {}
        if "n" in asked:
            if not re.fullmatch("[0-9]{1,9}", asked["n"][0]):
                raise _Refusal(400, "PAGINATION_NUMBER_INVALID", "n is not a number of entries")
            n = int(asked["n"][0])
            if 0 < n < len(values):
                headers["Link"] = f'<{path}?{urlencode({"n": n, "last": values[n - 1]})}>; rel="next"'
            values = values[:n]
        self._send(200, _JSON, encode({**document, key: values}), headers)

    def _send_blob(self, path: Path, headers: dict[str, str]) -> None:
        """A blob, or the range of it that was asked for (RFC 9110, 14.2); what is not one range is answered in full."""
        size = path.stat().st_size
        start, end, status = 0, size, 200
        match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", self.headers.get("Range", ""))
        first, last = match.groups() if match else ("", "")
        if first and not (last and int(last) < int(first)):
            start, end, status = int(first), min(size, int(last or size) + 1), 206
        elif last and not first:
            start, status = max(0, size - int(last)), 206
        if start >= size:
            raise _Refusal(
                416, "RANGE_INVALID", "the range starts behind the end", {"Content-Range": f"bytes */{size}"}
            )
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers["Accept-Ranges"] = "bytes"
        self._send(status, "application/octet-stream", self.server.pieces(path, start, end), headers, end - start)

    def _send(
        self,
        status: int,
        media_type: str,
        body: bytes | Iterator[bytes],
        headers: dict[str, str] | None = None,
        length: int = 0,
    ) -> None:
        """Send a whole answer; `length` in bytes where the body comes in pieces."""
        length, pieces = (len(body), iter([body])) if isinstance(body, bytes) else (length, body)
        self.send_response(status)
        fixed = {"Content-Type": media_type, "Content-Length": str(length), "X-Content-Type-Options": "nosniff"}
        fixed["Docker-Distribution-API-Version"] = "registry/2.0"
        if self.close_connection:
            fixed["Connection"] = "close"
        for name, value in (fixed | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        for piece in pieces if self.command != "HEAD" else ():
            self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: standard error belongs to the program the hub is embedded in."""


def _manifest_type(path: Path) -> str:
    """The media type of a manifest or index. Raises NotFound for any other blob."""
    try:
        stated = load_json(path.read_bytes(), "manifest").get("mediaType") if path.stat().st_size < MAX_DOCUMENT else ""
    except MinirtError:
        stated = ""
    if stated not in INDEX_TYPES | MANIFEST_TYPES:
        raise NotFound("that digest is not a manifest's")
    return str(stated)
