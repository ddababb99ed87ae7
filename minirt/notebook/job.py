"""One docker command as its client carries it out: what `docker run` asks the daemon for, in its order and its words.

run: create; on "no such image" pull, then create again; start; pass the output on; wait. The panel and its Stop button
see the same job from two threads. Taught in chapter 04.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minirt.client import Client
from minirt.errors import InvalidInput, MinirtError, NotFound
from minirt.image.reference import Reference


@dataclass(frozen=True)
class Command:
    """`run IMAGE [COMMAND…]` or `pull IMAGE`: the words after `docker`."""

    verb: str
    image: str
    arguments: tuple[str, ...] = ()

    @classmethod
    def parse(cls, words: str) -> Command:
        """Raises InvalidInput for anything a panel cannot do."""
        verb, *rest = shlex.split(words) or [""]
        if verb not in ("run", "pull") or not rest or (verb == "pull" and len(rest) > 1):
            raise InvalidInput(f"a panel can run an image or pull one, not {words!r}")
        return cls(verb, rest[0], tuple(rest[1:]))

    def __str__(self) -> str:
        return shlex.join(["docker", self.verb, self.image, *self.arguments])


class Stopped(MinirtError):
    """The learner pressed Stop before the container ran."""


class Job:
    """One carrying-out of a command. `say` gets the output, `progress` each progress object of a pull."""

    def __init__(
        self, client: Client, command: Command, say: Callable[[bytes], None], progress: Callable[[dict[str, Any]], None]
    ) -> None:
        self._client, self._command, self._say, self._progress = client, command, say, progress
        self._container = ""
        self.stopping = False

    def run(self) -> int:
        """Do it; the exit code of the container, 0 for a pull. Raises MinirtError, Stopped among them."""
        command = self._command
        if command.verb == "pull":
            self._pull()
            return 0
        body = {"Image": command.image, "Cmd": list(command.arguments) or None, "HostConfig": {"NetworkMode": "none"}}
        try:
            made = self._client.create(body)
        except NotFound:
            self._say(f"Unable to find image '{Reference.parse(command.image).familiar}' locally\n".encode())
            self._pull()
            made = self._client.create(body)
        self._check()
        return self._follow(str(made["Id"]))

    def _follow(self, container: str) -> int:
        read, write = os.pipe()
        with os.fdopen(read, "rb", buffering=0) as output:
            try:
                self._client.start(container, None, write, write)
            finally:
                os.close(write)
            self._container = container
            if self.stopping:
                self.stop()
            while chunk := output.read(65536):
                self._say(chunk)
        return self._client.wait(container)

    def _pull(self) -> None:
        for message in self._client.pull(self._command.image):
            self._check()
            self._progress(message)
            if not message.get("progressDetail"):
                prefix = f"{message['id']}: " if message.get("id") else ""
                self._say(f"{prefix}{message.get('status', '')}\n".encode())

    def _check(self) -> None:
        if self.stopping:
            raise Stopped("stopped")

    def stop(self) -> None:
        """End it from another thread: a pull at its next message, a container as `docker stop -t 1` does."""
        self.stopping = True
        if self._container:
            self._client.stop(self._container, timeout=1)
