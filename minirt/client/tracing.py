"""What the daemon does for our requests, told in this process' trace: one list, in order, of both sides of the wall.

While somebody listens to `minirt.trace` a second connection carries the daemon's events for our tag, each with the time
it happened (one clock for the machine). Before a request is told as answered, all that came of it has been: the daemon
tells its end in the same stream. Without a listener nothing of this is there. Taught in chapter 04.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from contextlib import suppress

from minirt import trace
from minirt.client.http import Connection
from minirt.errors import MinirtError

_PATIENCE = 5.0  # seconds for the daemon's last word on a request


class Tracer:
    """The second connection. `tag` goes with each request."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self.tag = secrets.token_hex(8)
        self._ends: set[str] = set()
        self._changed = threading.Condition()
        self._over = False
        self._connection = connect()
        answer = self._connection.request("GET", f"/minirt/trace?tag={self.tag}", {})
        if answer.status != 200:  # a real dockerd tells nothing
            self._connection.close()
            self._over = True
            return
        lines = answer.lines()
        next(lines)  # it listens
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()

    def _listen(self, lines: object) -> None:
        with suppress(MinirtError, OSError, ValueError):
            for line in lines:  # type: ignore[attr-defined]
                if line["box"] == "daemon":
                    with self._changed:
                        self._ends.add(line["detail"]["request"])
                        self._changed.notify_all()
                else:
                    trace.retell(trace.Event(line["at"], line["box"], line["action"], line["detail"]))
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def settle(self, request: str) -> None:
        """Wait until all that came of a request has been told."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or request in self._ends, _PATIENCE)
            self._ends.discard(request)

    def close(self) -> None:
        with suppress(OSError):
            self._connection.socket.shutdown(2)
