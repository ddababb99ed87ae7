"""One real `docker run`, carried out in stages: each is the call that the client makes at that point, and no more.

    ask      POST /containers/create    404: the image is not here; 201: it is, and the container is made already
    pull     POST /images/create        only after a 404
    create   POST /containers/create    again, after a pull; the layers are laid under an empty write layer
    start    attach, wait, start        the daemon makes the walls and runs the command in them
    end      wait, or stop              the exit code
    remove   DELETE /containers/ID

After each the container, its image and the machine are looked at. A stage that failed can be done again. Between start
and end nothing waits for us: the command runs, or has ended. Taught in chapter 06.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minirt.client import Client
from minirt.errors import InvalidInput, MinirtError, NotFound
from minirt.notebook import container, press, walk
from minirt.notebook.container import Container
from minirt.notebook.job import Command, Stopped
from minirt.notebook.place import Place
from minirt.trace import Event, Events

NAMES = ("ask", "pull", "create", "start", "end", "remove")
_OUTPUT = 16384  # bytes of output kept for showing
_SHORT = 0.3  # seconds in which a command that ends at once has ended
_PATIENCE = 10.0  # seconds for the daemon to tell the end of what it has just stopped


@dataclass
class Stage:
    """`state` is idle, now, done, skipped or failed; `came` the key of what came of it, `error` what went wrong,
    `seen` the container right after it. `recorded` is the day of the walk that was played instead, "" for the real
    thing."""

    name: str
    state: str = "idle"
    came: str = ""
    error: str = ""
    ms: float = 0.0
    exchanges: list[tuple[str, str, int]] = field(default_factory=list)
    seen: Container | None = None
    recorded: str = ""

    @property
    def over(self) -> bool:
        return self.state in ("done", "skipped")


class Staged:
    """`changed` is called when there is something new to draw. Only `advance` and `undo` do anything; one at a time."""

    def __init__(self, place: Place, command: Command, changed: Callable[[], None]) -> None:
        if command.verb != "run":
            raise InvalidInput(f"step mode shows a run, not {str(command)!r}")
        self._place, self.command, self._changed = place, command, changed
        self.reset()

    def reset(self) -> None:
        """As before the first stage; nothing is removed."""
        self.stages = [Stage(name) for name in NAMES]
        self.name = str(self.command.options.get("name") or "")
        self.identity, self.output, self.code = "", b"", None  # type: tuple[str, bytes, int | None]
        self.layers: dict[str, dict[str, Any]] = {}
        self.image: dict[str, Any] = {}
        self.seen: Container | None = None
        self._walk: walk.Walk | None = None
        self._ended = threading.Event()
        self._ended.set()

    def __getitem__(self, name: str) -> Stage:
        return self.stages[NAMES.index(name)]

    @property
    def next(self) -> Stage | None:
        """The stage to come; None when all are over."""
        return next((stage for stage in self.stages if not stage.over), None)

    @property
    def running(self) -> bool:
        """Whether the command was started, and has not ended as far as we heard."""
        return self["start"].over and not self["end"].over and not self._ended.is_set()

    # What each stage does

    def advance(self, halt: threading.Event) -> Stage:
        """Do the next stage. `halt` ends a pull, and a stage that waits. What went wrong stands in the stage."""
        stage = self.next
        if stage is None:
            raise InvalidInput("all stages are over")
        way = self._place.way() if stage.name in ("ask", "create") and not self.identity else ""
        stage.state, stage.error = "now", ""
        self._changed()
        heard: list[Event] = []
        begun = time.monotonic()
        with Events() as events:
            try:
                with self._place.client() as client:
                    stage.came = self._do(stage, client, way, halt)
                stage.state = "done"
            except Stopped:
                stage.state = "idle"
            except MinirtError as error:
                stage.state, stage.error = "failed", str(error)
            events.close()
            heard.extend(events)
        if not stage.recorded:
            stage.ms = (time.monotonic() - begun) * 1000
            stage.exchanges = [
                (str(event.detail.get("method")), str(event.detail.get("path")), int(event.detail.get("status") or 0))
                for event in heard
                if (event.box, event.action) == ("client", "response")
            ]
        if stage.came == "found":  # the same answer made the container
            self["pull"].state, self["pull"].came = "skipped", "skipped"
        if stage.came == "runs" and not stage.recorded and self._ended.wait(_SHORT):
            stage.came = "ended"
        self._see(stage)
        return stage

    def _do(self, stage: Stage, client: Client, way: str, halt: threading.Event) -> str:
        if stage.name in ("ask", "create") and not self.identity:  # where nothing can run, as it was recorded
            self._walk = walk.find(self.command.words) if way == "refused" else None
        if stage.name == "ask" and self._walk:
            try:
                self.image = client.inspect_image(self.command.image)
            except NotFound:
                return "missing"
        if stage.name != "pull" and self._walk:
            return self._play(stage)
        match stage.name:
            case "ask":
                try:
                    self._create(client, way)
                except NotFound:
                    return "missing"
                return "found"
            case "pull":
                self.layers.clear()
                for message in client.pull(self.command.image):
                    if halt.is_set():
                        raise Stopped("stopped")
                    press.take(message, self.layers)
                    self._changed()
                return "pulled"
            case "create":
                if self.identity:
                    return "made"
                self._create(client, way)
                return "created"
            case "start":
                return self._start()
            case "end":
                return self._end(client)
        with contextlib.suppress(NotFound):
            client.remove(self.identity)
            return "removed"
        return "gone"

    def _play(self, stage: Stage) -> str:
        """The stage as it went where it was recorded."""
        assert self._walk
        stage.recorded = self._walk.made
        done = self._walk["create" if stage.name == "ask" else stage.name]
        stage.seen = done.seen
        if stage.name == "create" and self.identity:  # the answer to `ask` made it
            return "made"
        time.sleep(done.ms / 1000)
        stage.ms, stage.exchanges = done.ms, list(done.exchanges)
        self.output, self.code = done.output.encode(), done.code
        if done.seen:
            self.identity = str(done.seen.inspected["Id"])
        (self._ended.clear if done.came == "runs" else self._ended.set)()
        return "found" if stage.name == "ask" else done.came

    def _create(self, client: Client, way: str) -> None:
        body, name = self.command.request(way)
        self.identity = str(client.create(body, name)["Id"])

    def _start(self) -> str:
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(self._place.client())
            attached = stack.enter_context(client.attach(self.identity, tty=False))
            waiting = stack.enter_context(client.waiting(self.identity, self.command.until))
            client.start(self.identity)
            held = stack.pop_all()  # it stays, until the command has ended
        ended = self._ended = threading.Event()

        def follow() -> None:
            with held, contextlib.suppress(MinirtError):  # the daemon went away: the next one is asked by `end`
                for _stream, chunk in attached.output():
                    self.output = (self.output + chunk)[-_OUTPUT:]
                    self._changed()
                self.code = waiting.result()
            ended.set()
            self._changed()

        threading.Thread(target=follow, daemon=True).start()
        return "runs"

    def _end(self, client: Client) -> str:
        came = "itself"
        if self.running or (self.code is None and self._runs(client)):
            client.stop(self.identity, timeout=1)
            came = "stopped"
            self._ended.wait(_PATIENCE)
        if self.code is None:  # who was to tell us went away
            self.code = client.wait(self.identity)
        return came

    def _runs(self, client: Client) -> bool:
        return bool(client.inspect_container(self.identity)["State"]["Running"])

    # What there is to see

    def _see(self, stage: Stage) -> None:
        """Look at the container and its image as they are now."""
        self.seen = None
        with self._place.client() as client:
            with contextlib.suppress(MinirtError):  # not here yet, or no more
                self.image = client.inspect_image(self.command.image)
            if stage.recorded:
                self.seen = stage.seen
            elif self.identity:
                with contextlib.suppress(MinirtError):
                    self.seen = container.look(client, self.identity)
        if self.seen:
            self.name = self.seen.name
        stage.seen = self.seen
        self._changed()

    def undo(self) -> None:
        """Remove the container, whatever it does, and begin anew; the image stays. Raises MinirtError."""
        if self.identity and not self._walk:
            with self._place.client() as client, contextlib.suppress(NotFound):
                client.remove(self.identity, force=True)
        self.reset()

    def typed(self, name: str) -> str:
        """The docker command that does a stage alone."""
        command, options = self.command, len(self.command.words) - len(self.command.arguments) - 1
        given = [word for word in command.words[1:options] if word not in ("-d", "--detach")]
        known = self.name or self.identity[:12] or "CONTAINER"
        attach = [] if command.options.get("detach") else ["-a"]
        words = {
            "ask": list(command.words),
            "pull": ["pull", command.image],
            "create": ["create", *given, command.image, *command.arguments],
            "start": ["start", *attach, known],
            "end": ["stop", "-t", "1", known] if self["end"].came == "stopped" or self.running else ["wait", known],
            "remove": ["rm", known],
        }[name]
        return shlex.join(["docker", *words])
