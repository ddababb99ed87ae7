"""`daemon`: the other side of the wall, in the foreground; and ending the one that runs (chapter 04)."""

from __future__ import annotations

import os
import select
import signal
import sys

from minirt import child
from minirt.cli.console import Console
from minirt.cli.flags import UsageError, Values, command
from minirt.client.place import given_host, peer, socket_path, told
from minirt.errors import InvalidInput, NotFound

_PATIENCE = 10  # seconds


@command(
    "[stop]",
    """
        --idle int   End after so many seconds with no client and no running container
    """,
)
def daemon(console: Console, values: Values, arguments: list[str]) -> int:
    """Serve the Docker Engine API on a unix socket, until interrupted. Containers go on without it."""
    root = console.client.root
    if arguments == ["stop"]:
        return _stop(console)
    if arguments:
        raise UsageError(f"unknown word {arguments[0]!r}: minirt daemon [stop]", 1)
    if sys.platform == "win32":
        raise InvalidInput("there is no daemon on Windows: each command does its own work")
    path = given_host(console.host) or socket_path(root)
    idle = "" if values["idle"] is None else str(values["idle"])
    hub = os.environ.get("MINIRT_HUB") or "auto"
    os.execv(sys.executable, child.command("minirt.daemon", str(root), path, hub, idle, ""))


def _stop(console: Console) -> int:
    root = console.client.root
    try:
        pid = peer(told(root))
        fd = os.pidfd_open(pid)
    except OSError as error:
        raise NotFound(f"no daemon runs for {root}") from error
    signal.pidfd_send_signal(fd, signal.SIGTERM)
    select.select([fd], [], [], _PATIENCE)
    return 0
