"""`minirt --trace VERB …`: after it ran, the ordered list of what was said: between us and the daemon, between the
daemon and registries, and what the engine did, each with its time and how it ended (chapter 04)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minirt.cli.console import Console
from minirt.trace import Event, Events

# action: the words of it, from its details
_SAID: dict[tuple[str, str], Callable[[dict[str, Any]], str]] = {
    ("client", "request"): lambda d: f"{d['method']} {d['path']}",
    ("client", "response"): lambda d: f"{d['status']} {d['method']} {d['path']} ({d['ms']:.1f} ms)",
    ("cache", "look-up"): lambda d: f"{d['image']}: {'found' if d['found'] else 'not here'}",
    ("cache", "stored"): lambda d: f"{d['image']}, {d['size']} bytes, {d['digest'][:19]}",
    ("registry", "exchange"): lambda d: f"{d['method']} {d['url']}: {d['status']} ({d['ms']:.1f} ms)",
    ("registry", "progress"): lambda d: f"{d['id']}: {d['status']}",
    ("image", "unpacked"): lambda d: f"{d['layers']} layer(s)",
}


def traced(console: Console, act: Callable[[], int]) -> int:
    """Do it, and then tell the list on standard error; the exit status of `act`."""
    with Events() as events:
        try:
            return act()
        finally:
            events.close()
            found = sorted(events, key=lambda event: event.at)
            for event in found:
                console.warn(_line(event, found[0].at))


def _line(event: Event, begin: float) -> str:
    words = _SAID.get((event.box, event.action))
    known = ", ".join(f"{key} {str(value)[:64]}" for key, value in event.detail.items())
    said = words(event.detail) if words else known
    return f"{(event.at - begin) * 1000:9.1f} ms  {event.box:<9} {event.action:<9} {said}"
