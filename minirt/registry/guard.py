"""Connections that hold a line: where they may lead, and how slowly an answer may come.

Where a redirect or a token realm leads is the registry's word. Loopback holds this machine's own services, link-local
the clouds' metadata services with their keys: only a registry that is there itself may name an address there.
A server that drips its headers, or chunk sizes, byte by byte would never meet a socket's timeout: here the timeout is
for the whole head of an answer, and then for each piece of its body.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from minirt.errors import RegistryError
from minirt.registry.settings import locality


class Adapter(HTTPAdapter):
    """Connections of ours. Given `near`, for hosts the registry names: a direct one is checked once it has an address,
    before a byte is sent. Through a proxy the proxy resolves and connects, so there only the URL is checked.

    `tls`: how to meet them, where it is by https.
    """

    def __init__(self, near: str | None, tls: ssl.SSLContext | None) -> None:
        self._tls = {"ssl_context": tls} if tls else {}
        self._near = near
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **self._tls, **options)
        self.poolmanager.pool_classes_by_scheme = _pools(self._near)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **self._tls, **options)
        manager.pool_classes_by_scheme = _pools(None)
        return manager


def _pools(near: str | None) -> dict[str, type]:
    mixed = {"near": near, "response_class": _Prompt}
    return {
        scheme: type("Pool", (pool,), {"ConnectionCls": type("Guarded", (_Guarded, connection), mixed)})
        for scheme, pool, connection in (
            ("http", urllib3.HTTPConnectionPool, HTTPConnection),
            ("https", urllib3.HTTPSConnectionPool, HTTPSConnection),
        )
    }


class _Guarded:
    near: str | None = None

    def _new_conn(self) -> socket.socket:
        connected: socket.socket = super()._new_conn()  # type: ignore[misc]
        if self.near is None:
            return connected
        try:
            keep_out(str(connected.getpeername()[0]), self.near)
        except BaseException:
            connected.close()
            raise
        return connected


class _Prompt(http.client.HTTPResponse):
    """An answer whose head comes within the socket's timeout, in all, and so does each piece of its body."""

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._hurried = _Hurried(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self._hurried)

    def read1(self, n: int = -1) -> bytes:
        self._hurried.begin()
        return super().read1(n)

    def read(self, amt: int | None = None) -> bytes:
        self._hurried.begin()
        return super().read(amt)


class _Hurried(io.RawIOBase):
    """A socket's bytes, until the time is up that `begin` set."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw, self._socket, self._timeout = raw, sock, sock.gettimeout()
        self.begin()

    def begin(self) -> None:
        self._until = time.monotonic() + self._timeout if self._timeout else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._until is None:
            return self._raw.readinto(buffer)
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)
        try:
            return self._raw.readinto(buffer)
        finally:
            self._socket.settimeout(self._timeout)

    def close(self) -> None:
        self._raw.close()
        super().close()


def keep_out(host: str, near: str) -> None:
    """Refuse loopback and link-local (which holds the clouds' metadata services), unless the registry is `near` too."""
    where = locality(host)
    if where and where != near:
        raise RegistryError(f"the registry sends us to {host}, a {where} address: refused")
