"""Keeping a registry from sending us into this machine or its link (server-side request forgery).

Where a redirect or a token realm leads is the registry's word. Loopback holds this machine's own services, link-local
the clouds' metadata services with their keys: only a registry that is there itself may name an address there.
"""

from __future__ import annotations

import socket
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from minirt.errors import RegistryError
from minirt.registry.settings import locality


class AwayAdapter(HTTPAdapter):
    """For hosts the registry names: a direct connection is checked once it has an address, before a byte is sent.

    Through a proxy the proxy resolves and connects, so there only the URL is checked.
    """

    def __init__(self, near: str) -> None:
        self._near = near
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **options)
        self.poolmanager.pool_classes_by_scheme = {
            scheme: type(
                "Pool", (pool,), {"ConnectionCls": type("Guarded", (_Guarded, connection), {"near": self._near})}
            )
            for scheme, pool, connection in (
                ("http", urllib3.HTTPConnectionPool, HTTPConnection),
                ("https", urllib3.HTTPSConnectionPool, HTTPSConnection),
            )
        }


class _Guarded:
    near = ""

    def _new_conn(self) -> socket.socket:
        connected: socket.socket = super()._new_conn()  # type: ignore[misc]
        try:
            keep_out(str(connected.getpeername()[0]), self.near)
        except BaseException:
            connected.close()
            raise
        return connected


def keep_out(host: str, near: str) -> None:
    """Refuse loopback and link-local (which holds the clouds' metadata services), unless the registry is `near` too."""
    where = locality(host)
    if where and where != near:
        raise RegistryError(f"the registry sends us to {host}, a {where} address: refused")
