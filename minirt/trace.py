"""What just happened, box by box of the lecture's picture: the events that drive the flow map of chapter 04.

Rooms publish, anyone may listen; with no listener a publish is one look at an empty list. Order is the order of
publishing, whatever the thread. Actions by box:

    client     request   method, path                  what the client asks the daemon, in Engine API terms
    client     response  method, path, status, ms      and what it answered (for a stream: when it ended)
    cache      look-up   image, found                  is the image in the local store?
    registry   exchange  method, url, status, ms, request, response    one HTTP exchange; credentials never appear
    registry   progress  id, status, current, total    one layer's progress, bytes
    cache      stored    image, digest, size           the image is whole, verified and named
    image      unpacked  layers                        every layer lies unpacked on disk
    container  create | start | exit                   id, name; pid; exit_code
"""

from __future__ import annotations

import time
from _contextvars import ContextVar

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import Token
    from types import TracebackType
    from typing import Any


class Event:
    """One event. `at` is in seconds of the monotonic clock."""

    __slots__ = ("action", "at", "box", "detail")

    def __init__(self, at: float, box: str, action: str, detail: dict[str, Any]) -> None:
        self.at, self.box, self.action, self.detail = at, box, action, detail


_ROOM = 100_000  # events that who listens may be behind: more are not kept
_listeners: list[Events] = []
_tag: ContextVar[str] = ContextVar("tag", default="")  # of the request we are at; a daemon has many at once


class tagged:
    """What is published here meanwhile belongs to the request of that tag (threads: `contextvars.copy_context`)."""

    def __init__(self, tag: str) -> None:
        self._wanted = tag

    def __enter__(self) -> None:
        self._token: Token[str] = _tag.set(self._wanted)

    def __exit__(self, *_: object) -> None:
        _tag.reset(self._token)


class Events:
    """A subscription: an iterator of events from its creation on, which ends after `close()`. A context manager.

    With a `tag` only what happens for requests of that tag (see `tagged`).
    """

    def __init__(self, tag: str = "") -> None:
        from queue import SimpleQueue

        self._tag = tag
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        _listeners.append(self)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._queue.get, None)

    def next(self, timeout: float) -> Event | None:
        """The next one; None where none comes within `timeout` seconds."""
        from queue import Empty

        try:
            return self._queue.get(timeout=timeout)
        except Empty:
            return None

    def close(self) -> None:
        """Stop listening; the iterator ends once what came before is read. May be called twice."""
        if self in _listeners:
            _listeners.remove(self)
            self._queue.put(None)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _put(self, event: Event) -> None:
        if (not self._tag or self._tag == _tag.get()) and self._queue.qsize() < _ROOM:
            self._queue.put(event)


def heard() -> bool:
    """Whether anybody listens."""
    return bool(_listeners)


def retell(event: Event) -> None:
    """Tell what happened in another process."""
    for listener in tuple(_listeners):
        listener._put(event)


def publish(box: str, action: str, **detail: Any) -> None:
    """Tell every listener; costs nothing when there is none."""
    if _listeners:
        retell(Event(time.monotonic(), box, action, detail))
