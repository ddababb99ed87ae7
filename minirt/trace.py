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

import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Event:
    """One event. `at` is in seconds of the monotonic clock."""

    at: float
    box: str
    action: str
    detail: dict[str, Any]


_listeners: list[Events] = []


class Events:
    """A subscription: an iterator of events from its creation on, which ends after `close()`. A context manager."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        _listeners.append(self)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._queue.get, None)

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
        self._queue.put(event)


def publish(box: str, action: str, **detail: Any) -> None:
    """Tell every listener; costs nothing when there is none."""
    if _listeners:
        event = Event(time.monotonic(), box, action, detail)
        for listener in tuple(_listeners):
            listener._put(event)
