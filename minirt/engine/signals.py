"""Signals as docker names them, and how a container is ended by them.

Source: moby/sys/signal (a name with or without SIG, a number, RTMIN+n, RTMAX-n), signal(7). Taught in chapter 04.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from pathlib import Path

from minirt.errors import Conflict, InvalidInput
from minirt.runtime import container as runtime

KILL = 9  # Windows, where this is only imported, has no name for it
_REAL_TIME = {"RTMIN": 34, "RTMAX": 64}  # libc keeps 32 and 33 for itself
SURE = 10  # seconds for SIGKILL


def number(text: int | str) -> int:
    """A signal's number from 9, "9", "KILL", "sigkill", "RTMIN+3". Raises InvalidInput."""
    name = str(text).upper().removeprefix("SIG")
    found = re.fullmatch(r"(RTMIN|RTMAX)(?:([+-])(\d{1,2}))?", name, re.ASCII)
    if found:
        value = _REAL_TIME[found[1]] + int(f"{found[2] or '+'}{found[3] or 0}")
        inside = _REAL_TIME["RTMIN"] <= value <= _REAL_TIME["RTMAX"]
    elif re.fullmatch(r"\d{1,3}", name, re.ASCII):
        value = int(name)
        inside = 0 < value <= 64
    else:
        value = int(getattr(signal, f"SIG{name}", 0)) if f"SIG{name}" in signal.Signals.__members__ else 0
        inside = value > 0
    if not inside:
        raise InvalidInput(f"Invalid signal: {str(text)[:40]}")
    return value


def send(folder: Path, value: int, ends: bool) -> None:
    """Send it; where it `ends` the container, a paused one is let go on, for it could not even die."""
    runtime.signal(folder, value)
    if ends and runtime.status(folder).state == "paused":
        with contextlib.suppress(Conflict):  # it has just ended, or goes on already
            runtime.ask(folder, "resume")


def ended(folder: Path, seconds: float | None) -> bool:
    """Whether the container ends in time (None: wait for ever).

    Its shim may stay longer, for a reader slow with the last output.
    """
    until = None if seconds is None else time.monotonic() + seconds
    while (runs := runtime.status(folder).runs) and (until is None or time.monotonic() < until):
        with contextlib.suppress(TimeoutError):
            runtime.wait(folder, 0.05 if seconds is None else min(seconds, 0.05))
    return not runs
