"""What happens to containers, images, volumes and networks, told to whoever listens.

In memory only: an event is news, and what it tells of is on disk. A listener that is slow misses events rather than
holding up a container. Sources: Engine API 1.44 reference "SystemEvents"; moby daemon/events. Taught in chapter 04.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minirt.engine.answers.system import EventMessage, OldEvent

_KEPT = 256  # past events, for `since`
_ROOM = 1024  # events that a listener may be behind
_STARTS = frozenset(("health_status", "exec_create", "exec_start"))  # these actions go on with a colon and words


class Events:
    """Many publish, many listen, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._past: deque[EventMessage] = deque(maxlen=_KEPT)
        self._listeners: set[queue.Queue[EventMessage]] = set()

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return len(self._listeners)

    def publish(self, type: str, action: str, id: str, /, **attributes: str) -> None:
        """Tell that `action` (`start`, `pull`) happened to the container, image, volume or network `id`."""
        old: OldEvent = {}
        if type in ("container", "image"):  # the fields of API 1.21 and older, which clients still read
            old["status"] = action
            if id:
                old["id"] = id
            if attributes.get("image") and type == "container":
                old["from"] = attributes["image"]
        with self._lock:  # so that times are in order
            now = time.time_ns()
            event: EventMessage = {
                **old,
                "Type": type,
                "Action": action,
                "Actor": {"ID": id, "Attributes": attributes},
                "scope": "local",
                "time": now // 10**9,
                "timeNano": now,
            }
            self._past.append(event)
            for listener in self._listeners:
                if not listener.full():
                    listener.put(event)

    def subscribe(
        self, since: float | None = None, until: float | None = None, filters: Mapping[str, list[str]] | None = None
    ) -> Iterator[EventMessage | None]:
        """GET /events: docker's objects from now on, and None about once a second, to look who still listens.

        With `since` (seconds of the epoch) those kept from then on come first; it ends at `until`. Closing it ends it.
        """
        stream = self._follow(since, until, filters or {})
        next(stream)  # from here on nothing is missed
        return stream

    def _follow(
        self, since: float | None, until: float | None, filters: Mapping[str, list[str]]
    ) -> Iterator[EventMessage | None]:
        mine: queue.Queue[EventMessage] = queue.Queue(_ROOM)
        with self._lock:
            past = [] if since is None and until is None else list(self._past)
            self._listeners.add(mine)
        try:
            yield None
            for event in past:
                at = event["timeNano"] / 1e9
                if (since or 0) <= at and (until is None or at <= until) and _passes(event, filters):
                    yield event
            while (left := 1.0 if until is None else until - time.time()) > 0:
                try:
                    event = mine.get(timeout=min(1.0, left))
                except queue.Empty:
                    yield None
                else:
                    yield event if _passes(event, filters) else None
        finally:
            with self._lock:
                self._listeners.discard(mine)


def _passes(event: EventMessage, filters: Mapping[str, list[str]]) -> bool:
    return all(_match(event, key, values) for key, values in filters.items() if values)


def _match(event: EventMessage, key: str, values: list[str]) -> bool:
    """moby daemon/events/filter.go: values are alternatives, but for labels, which must all be there."""
    id, attributes = event["Actor"]["ID"], event["Actor"]["Attributes"]
    if key == "event":
        begins = not _STARTS.isdisjoint(values)
        return any(event["Action"].startswith(value) if begins else event["Action"] == value for value in values)
    if key in ("type", "scope"):
        return (event["Type"] if key == "type" else event["scope"]) in values
    if key == "label":
        pairs = (value.partition("=") for value in values)
        return all(name in attributes and (not sign or attributes[name] == value) for name, sign, value in pairs)
    if key == "image":
        names = (id, attributes.get("name" if event["Type"] == "image" else "image", ""))
        return any(name in values or _untagged(name) in values for name in names)
    if key in ("container", "volume", "network", "daemon", "plugin"):
        return any(name.startswith(value) for name in (id, attributes.get("name", "")) for value in values)
    return True


def _untagged(name: str) -> str:
    before, colon, tag = name.rpartition(":")
    return before if colon and "/" not in tag else name
