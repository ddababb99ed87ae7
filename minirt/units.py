"""Sizes and ages as docker writes them (docker/go-units): decimal sizes, ages of one unit."""

from __future__ import annotations

import time

from minirt.errors import InvalidInput

DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(count: float, digits: int = 4, units: tuple[str, ...] = DECIMAL) -> str:
    """Bytes for people: `13.26kB`; `digits` significant ones. Binary units count by 1024."""
    base = 1024 if units is BINARY else 1000
    index = 0
    # Where docker's rounding gives "1e+03kB" we take the next unit.
    while float(f"{count:.{digits}g}") >= base and index < len(units) - 1:
        count /= base
        index += 1
    number = f"{count:.{digits}g}"
    return (f"{count:.0f}" if "e" in number else number) + units[index]


def age(seconds: float) -> str:
    """How long, in one unit: `About a minute`, `2 weeks`."""
    hours = int(seconds / 3600 + 0.5)
    if seconds < 60:
        whole = int(seconds)
        return "Less than a second" if whole < 1 else "1 second" if whole == 1 else f"{whole} seconds"
    if seconds < 3600:
        minutes = int(seconds / 60)
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for unit, length, until in ("days", 24, 2 * 7 * 24), ("weeks", 7 * 24, 60 * 24), ("months", 30 * 24, 2 * 365 * 24):
        if hours < until:
            return f"{hours // length} {unit}"
    return f"{int(seconds / 3600) // 24 // 365} years"


def ago(created: float) -> str:
    """How long since a moment, in seconds of the epoch: `2 weeks ago`."""
    return age(time.time() - created) + " ago"


def parse_size(text: str) -> int:
    """Bytes from `500k`, `1.5MB`, `2GiB`. Raises InvalidInput."""
    import re

    match = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]+)?) ?([kmgt]?)(i?)b?", text.strip().lower(), re.ASCII)
    if not match:
        raise InvalidInput(f"{text!r} is not a size: write 500k, 1.5MB, 2GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


def moment(seconds: float, rfc3339: bool = False) -> str:
    """A moment of the epoch in local time, as Go prints it: `2026-11-08 18:05:35 +0000 UTC`, or by RFC 3339."""
    local = time.localtime(seconds)
    if not rfc3339:
        return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", local)
    zone = time.strftime("%z", local)
    return time.strftime("%Y-%m-%dT%H:%M:%S", local) + ("Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}")
