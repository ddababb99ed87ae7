"""Who is attached to a container before it runs: kept until its start, handed to the shim before the command begins.

So no byte is lost, however many are attached. Each gets one end of a line whose other end goes to the shim with the
streams: closing it detaches, as for one who is attached later. Taught in chapter 08.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

from minirt.errors import Conflict
from minirt.runtime.container import Attached, Streams
from minirt.runtime.control import Connection

_MOST = 60  # one message takes 253 descriptors, SCM_MAX_FD of unix(7), and each has up to four


class Attachment(Connection):
    """Tells `{"exit_code"}` at the end of the container; closing it detaches. Owns the streams until the start."""

    def __init__(self, streams: Streams, forget: Callable[[Attachment], None]) -> None:
        ours, self._theirs = socket.socketpair()
        super().__init__(ours)
        self._streams, self._forget = streams, forget

    @property
    def attached(self) -> Attached:
        """What the shim is given."""
        return self._streams, self._theirs.fileno()

    def hand_over(self) -> None:
        """The shim has them (or nobody will): close ours. Who reads them meets their end then."""
        close(self._streams)
        self._theirs.close()

    def close(self) -> None:
        self._forget(self)
        super().close()


class Attachments:
    """All that wait for a start, by the id of their container."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Attachment]] = {}

    def add(self, identity: str, streams: Streams) -> Attachment:
        """Takes the descriptors over. Raises Conflict where too many wait."""
        attachment = Attachment(streams, lambda gone: self._forget(identity, gone))
        with self._lock:
            waiting = self._waiting.setdefault(identity, [])
            if len(waiting) < _MOST:
                waiting.append(attachment)
                return attachment
        attachment.hand_over()
        attachment.close()
        raise Conflict(f"Container {identity} has {_MOST} attached already: it has to be started first")

    def take(self, identity: str) -> list[Attachment]:
        """Those of this container; whoever takes them hands them over."""
        with self._lock:
            return self._waiting.pop(identity, [])

    def drop(self, identity: str) -> None:
        """There will be no start."""
        for attachment in self.take(identity):
            attachment.hand_over()

    def _forget(self, identity: str, attachment: Attachment) -> None:
        with self._lock:
            waiting = self._waiting.get(identity, [])
            if attachment not in waiting:
                return
            waiting.remove(attachment)
            if not waiting:
                del self._waiting[identity]
        attachment.hand_over()


def close(streams: Streams) -> None:
    """Let go of what was given: somebody else has it now."""
    for fd in streams:
        if fd is not None:
            os.close(fd)


def copied(streams: Streams) -> Streams:
    """Descriptors of our own for the same."""
    stdin, stdout, stderr = (fd if fd is None else os.dup(fd) for fd in streams)
    return stdin, stdout, stderr
