"""A container's state in docker's words: the STATUS column, and inspect's `State`.

Source: moby container/state.go. Taught in chapter 04.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from minirt.engine.images import epoch
from minirt.errors import Conflict
from minirt.runtime.container import Status
from minirt.units import age

if TYPE_CHECKING:
    from minirt.engine.answers.containers import ContainerState

_NEVER = "0001-01-01T00:00:00Z"


def name(status: Status) -> str:
    """The STATE column. One whose command never started is created still, as docker has it."""
    return "created" if status.state == "exited" and not status.started else status.state


def text(status: Status) -> str:
    """The STATUS column: `Up 2 minutes (Paused)`, `Exited (0) 3 hours ago`."""
    if status.runs:
        return f"Up {age(time.time() - epoch(status.started))}" + " (Paused)" * (status.state == "paused")
    if name(status) == "exited":
        return f"Exited ({status.exit_code}) {age(time.time() - epoch(status.finished))} ago"
    return "Dead" if status.state == "dead" else "Created"


def state(status: Status) -> ContainerState:
    """`State` of GET /containers/{id}/json. A paused container runs, too, as docker has it."""
    return {
        "Status": name(status),
        "Running": status.runs,
        "Paused": status.state == "paused",
        "Restarting": False,
        "OOMKilled": status.oom_killed,
        "Dead": status.state == "dead",
        "Pid": status.pid,
        "ExitCode": status.exit_code,
        "Error": status.error,
        "StartedAt": status.started or _NEVER,
        "FinishedAt": (status.started and status.finished) or _NEVER,
    }


def must_run(identity: str, status: Status) -> None:
    """Raises Conflict in docker's words."""
    if not status.runs:
        raise Conflict(f"Container {identity} is not running")
