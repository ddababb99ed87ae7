"""One docker command as its client carries it out: what `docker run` asks the daemon for, in its order and its words.

run: create; on "no such image" pull, then create again; start; pass the output on; wait. Any other command is given to
the `minirt` command itself, in a process of its own. The panel and its Stop button see the same job from two threads.
Taught in chapter 04.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from minirt.client import Client
from minirt.errors import InvalidInput, MinirtError, NotFound
from minirt.image.reference import Reference
from minirt.notebook.place import Place

# Of `docker run`: what the map of a panel can follow. Each with the field of the request it sets.
_FLAGS = {"-d": "detach", "--detach": "detach", "--rm": "rm"}
_VALUES = {"--name": "name", "-e": "Env", "--env": "Env", "-w": "WorkingDir", "--workdir": "WorkingDir"}
_VALUES |= {"-u": "User", "--user": "User", "--entrypoint": "Entrypoint", "-h": "Hostname", "--hostname": "Hostname"}
_VERBS = {"create", "start", "stop", "kill", "rm", "ps", "logs", "exec", "wait", "inspect", "top", "diff", "cp"}
_VERBS |= {"images", "rmi", "tag", "save", "load", "history", "commit"}


@dataclass(frozen=True)
class Command:
    """The words after `docker`. Of `run [OPTIONS] IMAGE [COMMAND…]` and `pull IMAGE` the panel knows each part."""

    words: tuple[str, ...]
    verb: str
    image: str = ""
    arguments: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, words: str) -> Command:
        """Raises InvalidInput for anything a panel cannot do."""
        try:
            whole = tuple(shlex.split(words))
        except ValueError as error:
            raise InvalidInput(f"the command {words!r} cannot be split into words: {error}") from error
        verb, rest = (whole or ("",))[0], list(whole[1:])
        if verb in _VERBS:
            return cls(whole, verb)
        options = _options(rest) if verb == "run" else {}
        if verb not in ("run", "pull") or not rest or rest[0].startswith("-") or (verb == "pull" and len(rest) > 1):
            raise InvalidInput(f"a panel can run an image or pull one, not {words!r}")
        return cls(whole, verb, rest[0], tuple(rest[1:]), options)

    @property
    def followed(self) -> bool:
        """Whether the flow map shows what it does."""
        return bool(self.image)

    def request(self, way: str) -> tuple[dict[str, Any], str | None]:
        """Of a run: the create request's body, and the container's name. `way`: by proot no network is walled off."""
        options = {key: value for key, value in self.options.items() if key not in ("detach", "rm", "name")}
        host = {"NetworkMode": "default" if way == "proot" else "none", "AutoRemove": self.removes}
        body = {"Image": self.image, "Cmd": list(self.arguments) or None, "HostConfig": host, **options}
        return body, self.options.get("name")

    @property
    def removes(self) -> bool:
        """Whether the container goes when it ends."""
        return bool(self.options.get("rm"))

    @property
    def until(self) -> str:
        """What to wait for until a run is over, in the Engine API's words."""
        return "removed" if self.removes else "next-exit"

    def __str__(self) -> str:
        return shlex.join(["docker", *self.words])


def _options(rest: list[str]) -> dict[str, Any]:
    """Take the options from before the image."""
    found: dict[str, Any] = {}
    while rest and rest[0].startswith("-"):
        if rest[0] in _FLAGS:
            found[_FLAGS[rest.pop(0)]] = True
        elif rest[0] in _VALUES and len(rest) > 1:
            key, value = _VALUES[rest.pop(0)], rest.pop(0)
            found[key] = [*found.get(key, ()), value] if key == "Env" else [value] if key == "Entrypoint" else value
        else:
            break
    return found


class Stopped(MinirtError):
    """The learner pressed Stop before the container ran."""


class Work(Protocol):
    """What a press carries out: `run` gives the exit code, `stop` ends it from another thread."""

    stopping: bool

    def run(self) -> int: ...

    def stop(self) -> None: ...


class Job:
    """One carrying-out of a run or pull. `say` gets the output, `progress` each progress object of a pull."""

    def __init__(
        self,
        client: Client,
        command: Command,
        say: Callable[[bytes], None],
        progress: Callable[[dict[str, Any]], None],
        way: str = "",
    ) -> None:
        self._client, self._command, self._say, self._progress = client, command, say, progress
        self._way = way
        self._container = ""
        self.stopping = False

    def run(self) -> int:
        """Do it; the exit code of the container, 0 for a pull. Raises MinirtError, Stopped among them."""
        command = self._command
        if command.verb == "pull":
            self._pull()
            return 0
        body, name = command.request(self._way)
        try:
            made = self._client.create(body, name)
        except NotFound:
            self._fetch()
            made = self._client.create(body, name)
        self._check()
        if command.options.get("detach"):
            self._client.start(str(made["Id"]))
            self._say(f"{made['Id']}\n".encode())
            return 0
        return self._follow(str(made["Id"]), command.until)

    def _follow(self, container: str, until: str) -> int:
        client = self._client
        with client.attach(container, tty=False) as attached, client.waiting(container, until) as waiting:
            client.start(container)
            self._container = container
            if self.stopping:
                self.stop()
            for _stream, chunk in attached.output():
                self._say(chunk)
            return waiting.result()

    def _fetch(self) -> None:
        """Pull what was found missing, with docker's words."""
        self._say(f"Unable to find image '{Reference.parse(self._command.image).familiar}' locally\n".encode())
        self._pull()

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


class Spoken:
    """Any other command, as it is typed in a terminal: the `minirt` command's own process."""

    def __init__(self, place: Place, command: Command, say: Callable[[bytes], None]) -> None:
        self._command, self._say, self.stopping = command, say, False
        environment = {**os.environ, "MINIRT_ROOT": str(place.root)} | ({"MINIRT_HUB": place.hub} if place.hub else {})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "minirt", *command.words],
            cwd=place.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    def run(self) -> int:
        """Its exit status, when all its output was said."""
        assert self._process.stdout
        with self._process:
            while data := os.read(self._process.stdout.fileno(), 65536):
                self._say(data)
        return self._process.returncode

    def stop(self) -> None:
        """As Ctrl-C does."""
        self.stopping = True
        self._process.send_signal(signal.SIGINT)
