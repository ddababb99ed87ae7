"""The daemon's half of one conversation, in the client's own process: for Windows, whose Python has no unix sockets."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minirt.engine import Engine

_engines: dict[tuple[str, str], Engine] = {}
_lock = threading.Lock()


def converse(root: str, hub: str, connection: socket.socket) -> None:
    """Serve this connection until its other end closes it."""
    from minirt.daemon.server import Handler, Server
    from minirt.engine import Engine

    with _lock:
        engine = _engines.get((root, hub)) or _engines.setdefault((root, hub), Engine(Path(root), hub))
    try:
        Handler(connection, ("pair", 0), Server(engine, connection))
    finally:
        connection.close()
