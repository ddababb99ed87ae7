"""The daemon's front: HTTP on a unix socket, a thread per connection, each request handed to its route.

Only the owner of the socket (and root) is answered. Whatever a request is, the answer is docker's shape and the next
request works. Sources: RFC 9112; Engine API 1.44 reference, "Versioning", "Errors"; SO_PEERCRED of unix(7).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import socketserver
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, cast

from minirt import __version__, trace
from minirt.daemon import containers, images, processes, system  # noqa: F401  (they fill the table of routes)
from minirt.daemon.exchange import Exchange, Gone, Head, split, told
from minirt.daemon.routes import find
from minirt.errors import InvalidInput, MinirtError

if TYPE_CHECKING:
    from minirt.engine import Engine

MAX_API, MIN_API = (1, 44), (1, 24)
_PATIENCE = 300  # seconds for the next request, or the next piece of one
_DRAIN = 1 << 20  # bytes of a body nobody asked for that are still taken, to keep the connection
_LINGER = 10.0  # seconds that an archive nobody asked for is still taken: docker's command reads no answer before
_MOST = 4000  # connections at once; more wait at the door
_VERSIONED = re.compile(r"/v(\d{1,3})\.(\d{1,3})(/.*)")


@contextlib.contextmanager
def _traced(words: str) -> Iterator[None]:
    """`TAG/NUMBER` of a client that listens: what is done for it is told under its tag, and the request's end too."""
    if not words:
        yield
        return
    tag, _, number = words.partition("/")
    with trace.tagged(tag):
        try:
            yield
        finally:
            trace.publish("daemon", "answered", request=number)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = f"minirt/{__version__}", ""
    timeout = _PATIENCE
    server: Server

    def serve(self) -> None:
        exchange = None
        try:
            path, query = split(self.path)
            exchange, error = self._exchange(path, query)
            if error:
                raise error
            with _traced(self.headers.get("X-Minirt-Trace", "")):
                find(exchange)(self.server.engine, exchange)
        except Gone:
            self.close_connection = True
        except Exception as error:  # the process boundary: this request fails, the daemon goes on
            self._fail(exchange, error)
        if exchange and not self.close_connection:
            self._rest(exchange)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def _exchange(self, path: str, query: str) -> tuple[Exchange, MinirtError | None]:
        """The request, and what is wrong with its head."""
        version, error = MAX_API, None
        if found := _VERSIONED.fullmatch(path):
            version, path = (int(found[1]), int(found[2])), found[3]
            text = f"{version[0]}.{version[1]}"
            if version > MAX_API:
                error = InvalidInput(f"client version {text} is too new. Maximum supported API version is 1.44")
            if version < MIN_API:
                error = InvalidInput(
                    f"client version {text} is too old. Minimum supported API version is 1.24, "
                    "please upgrade your client to a newer version"
                )
        if self.headers.get("Origin"):
            error = InvalidInput("web pages are not answered")
            error.status = 403
        return Exchange(self, version, path, query), error

    def _fail(self, exchange: Exchange | None, error: Exception) -> None:
        if isinstance(error, MinirtError | OSError):
            status, message = getattr(error, "status", 500), told(error)
        else:
            status, message = 500, f"internal error: {type(error).__name__}: {error}"
            traceback.print_exc(file=sys.stderr)  # into the daemon's log: a bug of ours
        if exchange is None or exchange.answered:
            self.close_connection = True  # the answer has begun: its missing end tells
            if exchange is None:
                self.send_error(status, message)
            return
        try:
            exchange.reply({"message": message}, status) if status != 304 else exchange.nothing(304)
        except Gone:
            self.close_connection = True

    def _rest(self, exchange: Exchange) -> None:
        """Go past what the handler left of the body, so that the next request is found."""
        try:
            if not exchange.body.drain(_DRAIN):
                self.close_connection = True
                end = time.monotonic() + (0 if exchange.is_json else _LINGER)
                while time.monotonic() < end and not exchange.body.drain(_DRAIN):
                    continue
        except (InvalidInput, Gone):
            self.close_connection = True

    def parse_request(self) -> bool:
        whole, self.rfile = self.rfile, cast(Any, Head(self.rfile))
        try:
            return super().parse_request()
        finally:
            self.rfile = whole

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses: a head that is malformed or too long."""
        data = b'{"message":"%s"}\n' % re.sub(r"[^ !#-\[\]-~]", "?", message or "bad request")[:200].encode()
        with contextlib.suppress(OSError):
            self.close_connection, self.request_version = True, "HTTP/1.1"  # else an answer to HTTP/0.9 has no head
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Connection", "close")
            self.end_headers()
            if getattr(self, "command", "") != "HEAD":
                self.wfile.write(data)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: who asks what is in `/events` and the trace."""


class Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """Accepts on a listening socket until `shutdown`. `idle` tells for how many seconds nobody was connected."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, engine: Engine, listener: socket.socket) -> None:
        super().__init__(("", 0), Handler)
        self.engine, self._listener = engine, listener
        self._seats = threading.Semaphore(_MOST)
        self._guests, self._left, self._lock = 0, time.monotonic(), threading.Lock()

    def fileno(self) -> int:
        return self._listener.fileno()

    @property
    def idle(self) -> float:
        with self._lock:
            return 0 if self._guests else time.monotonic() - self._left

    def get_request(self) -> tuple[socket.socket, Any]:
        if not self._seats.acquire(timeout=0.5):
            raise OSError  # they wait at the door, and we can be told to end
        try:
            connection, _ = self._listener.accept()
        except OSError:
            self._seats.release()
            time.sleep(0.05)  # no descriptor is left: others end meanwhile
            raise
        with self._lock:
            self._guests += 1
        return connection, ("unix", 0)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Only this user and root: the socket's mode says so already, unless somebody changes it."""
        if not hasattr(socket, "SO_PEERCRED"):
            return True
        size = struct.calcsize("3i")
        _, uid, _ = struct.unpack("3i", request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        return uid in (0, os.geteuid())

    def shutdown_request(self, request: Any) -> None:
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        request.close()
        self._seats.release()
        with self._lock:
            self._guests -= 1
            self._left = time.monotonic()

    def handle_error(self, request: Any, client_address: Any) -> None:
        traceback.print_exc(file=sys.stderr)
