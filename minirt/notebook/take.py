"""A take: one press of a panel that was recorded on a machine where containers run, played where none can.

`recordings/NN.json` holds a chapter's takes (recording.py makes them), one a line. Only what needs a container is
played: the image is looked up and pulled for real first, so the way to the registry is never a recording.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minirt import trace
from minirt.client import Client
from minirt.errors import MinirtError, NotFound
from minirt.notebook.job import Command, Job, Stopped

FOLDER = Path(__file__).with_name("recordings")
_PATIENCE = 60.0  # seconds a take that was stopped waits for the learner's Stop
# What needs no container is done for real everywhere.
REAL = {"pull", "images", "rmi", "tag", "save", "load", "history"}
Moment = tuple[float, tuple[str, str, dict[str, Any]] | None, str]


@dataclass(frozen=True)
class Take:
    """`moments` are (seconds since the container was asked for, event or None, output in base64); what came after the
    recorder's Stop is from index `stopped` on (-1: it was not stopped). `error` is how it failed, else `code` how it
    ended. `panel` are the commands of its panel, `made` is a day as YYYY-MM-DD."""

    panel: tuple[str, ...]
    command: str
    made: str
    code: int | None
    error: str
    stopped: int
    moments: tuple[Moment, ...]


def read(path: Path) -> list[Take]:
    """The takes of one file. Raises MinirtError where it is damaged."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [
            Take(**{
                **row,
                "panel": tuple(row["panel"]),
                "moments": tuple((at, tuple(event) if event else None, data) for at, event, data in row["moments"]),
            })
            for row in rows
        ]  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MinirtError(f"the recording {path.name} cannot be read: {error}") from error


def find(number: str, panel: Sequence[str], command: Command) -> Take | None:
    """The take to play for a panel's command: of that panel, else of that chapter, else of any; None for what is done
    for real, or was not recorded."""
    if command.verb in REAL:
        return None
    files = sorted(FOLDER.glob("*.json"), key=lambda path: (path.stem != number, path.stem))
    takes = [take for path in files for take in read(path) if Command.parse(take.command).words == command.words]
    exact = [take for take in takes if take.panel == tuple(panel)]
    return next(iter(exact or takes), None)


class Played(Job):
    """Carries out a press with a take instead of a container; an image that is missing is pulled for real. Without a
    take the container is asked for all the same, and the daemon's answer is the error."""

    def __init__(
        self,
        take: Take | None,
        client: Client,
        command: Command,
        say: Callable[[bytes], None],
        progress: Callable[[dict[str, Any]], None],
    ) -> None:
        super().__init__(client, command, say, progress)
        self._take, self._halt = take, threading.Event()

    def run(self) -> int:
        """The recorded exit code. Raises MinirtError, Stopped among them."""
        if self._command.followed:
            try:
                self._client.inspect_image(self._command.image)
            except NotFound:
                trace.publish("cache", "look-up", image=self._command.image, found=False)
                self._fetched()
        begun = time.monotonic()
        take = self._take
        if take is None:  # the daemon says why it cannot be done
            return super().run()
        for index, (at, event, data) in enumerate(take.moments):
            if index == take.stopped:
                self._halt.wait(_PATIENCE)
                begun = time.monotonic() - at
            if self._halt.wait(max(0.0, begun + at - time.monotonic())) and not 0 <= take.stopped <= index:
                raise Stopped("stopped")
            if event:
                trace.publish(event[0], event[1], **event[2])
            if data:
                self._say(base64.b64decode(data))
        if take.error:
            raise MinirtError(take.error)
        return int(take.code or 0)

    def _fetched(self) -> None:
        """Pull it; an image that an earlier take made (by commit) is in no registry, and its take is played all the
        same."""
        try:
            self._fetch()
        except Stopped:
            raise
        except MinirtError as error:
            if self._take is None:
                raise
            self._say(f"{error}\n".encode())

    def stop(self) -> None:
        self.stopping = True
        self._halt.set()
