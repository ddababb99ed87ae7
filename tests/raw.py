"""A server that says what no HTTP server would: each request is answered by bytes, piece by piece, or never."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

Speech = Callable[[], Iterator[bytes]]


class Raw:
    """On loopback. `/v2/` is answered as by a registry; anything else by the pieces of `speech`, then the end."""

    def __init__(self, speech: Speech) -> None:
        self._speech, self._closing = speech, threading.Event()
        self.heads: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.domain = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection, contextlib.suppress(OSError):
            while head := self._head(connection):
                self.heads.append(head)
                if head.split(b" ", 2)[1].endswith(b"/v2/"):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                    continue
                for piece in self._speech():
                    if self._closing.is_set():
                        return
                    connection.sendall(piece)
                return

    def _head(self, connection: socket.socket) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            more = connection.recv(65536)
            if not more or more[:1] == b"\x16":  # TLS, which is tried first: there is none
                return b""
            head += more
        return head


def dripping(first: bytes, then: bytes, pause: float = 0.02) -> Speech:
    """`first` at once, then `then` byte by byte, again and again."""

    def speech() -> Iterator[bytes]:
        yield first
        while True:
            for byte in then:
                time.sleep(pause)
                yield bytes([byte])

    return speech


def flooding(first: bytes, then: bytes) -> Speech:
    """`first`, then `then` without end, as fast as it is read."""

    def speech() -> Iterator[bytes]:
        yield first
        while True:
            yield then * max(1, 65536 // len(then))

    return speech


def saying(content: bytes) -> Speech:
    return lambda: iter([content])
