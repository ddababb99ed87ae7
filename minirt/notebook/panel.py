"""A panel: buttons that really carry out a docker command, and what it did: map, layers, output, your presses.

A press works in threads of its own (worker.py), so the page stays alive and Stop can be pressed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from ipywidgets import HTML, Button, HBox, VBox

from minirt.client import Client
from minirt.errors import MinirtError
from minirt.notebook import markup, press, take
from minirt.notebook.job import Command, Job, Spoken, Work
from minirt.notebook.markup import Shown, esc
from minirt.notebook.place import Place
from minirt.notebook.press import Press
from minirt.notebook.status import Status
from minirt.notebook.worker import Worker
from minirt.trace import Events

_REDRAW = 0.1  # seconds between two drawings
_PAUSE = 0.9  # seconds a step of the slow replay stays


class Panel(Shown, VBox):  # type: ignore[misc]
    """`commands` are the words after `docker`, one button each. `fresh` empties the place before the first
    press; `slow` pulls from a throttled hub, labelled so."""

    def __init__(self, place: Place, *commands: str, fresh: bool = False, slow: bool = False) -> None:
        self._place, self._text, self._slow, self._fresh = place, place.text, slow, fresh
        self._watchers: list[Callable[[Press], None]] = []
        self._job: Work | None = None
        self.presses: list[Press] = []

        text = self._text
        notes = [text("panel.fresh" if fresh else "panel.kept")]
        notes += [text("panel.slow", rate=place.SLOW // 1000)] * slow
        intro = "".join(f'<p><span class="note">{esc(note)}</span></p>' for note in notes)
        self.commands = commands
        parsed = [Command.parse(words) for words in commands]
        self.run = [self._button(self._label(command), self._presser(command), "primary") for command in parsed]
        self.stop = self._button(text("panel.stop"), self._stop, "danger")
        self.over = self._button(text("panel.over"), self._reset)
        self.replay = self._button(text("panel.replay"), lambda: self._worker.begin(self._replay))
        self.status = Status(text("panel.ready"))
        self._worker = Worker(text, self.status, self._enable)
        self._map, self._story = HTML(), HTML()
        rows = [HBox([b, _html(f"<code>{esc(c)}</code>")]) for b, c in zip(self.run, parsed, strict=True)]
        self._mapped = any(command.followed for command in parsed)
        controls = HBox([self.stop, self.over, *[self.replay] * self._mapped])
        head = _html(markup.style(text("again")) + intro)
        super().__init__([head, *rows, controls, self.status, *[self._map] * self._mapped, self._story])
        self.add_class("mrt-panel")
        self._enable(True)
        self._draw()

        fallback = text("panel.fallback", buttons=", ".join(button.description for button in self.run))
        self.plain = "\n".join([*notes, *map(str, parsed), fallback])
        code = "".join(f"<p><code>{esc(command)}</code></p>" for command in parsed)
        self.page = f"{intro}{code}<p><em>{esc(fallback)}</em></p>"

    def _label(self, command: Command) -> str:
        if command.options or not command.followed:
            return str(command)
        return self._text(f"panel.{command.verb}", what=" ".join([command.image, *command.arguments]))

    def _presser(self, command: Command) -> Callable[[], None]:
        return lambda: self._worker.begin(lambda: self._carry_out(command))

    @staticmethod
    def _button(label: str, action: Callable[[], None], style: str = "") -> Button:
        button = Button(description=label, button_style=style, layout={"width": "auto"})
        button.on_click(lambda _button: action())
        return button

    def watch(self, watcher: Callable[[Press], None]) -> None:
        """Have `watcher` called with each press that has ended."""
        self._watchers.append(watcher)

    def wait(self, timeout: float | None = None) -> None:
        """Until what is at work, if anything, has ended. Raises TimeoutError."""
        self._worker.wait(timeout)

    def _enable(self, idle: bool) -> None:
        for button in (*self.run, self.over):
            button.disabled = not idle
        self.stop.disabled = idle
        self.replay.disabled = not (idle and any(this.command.followed for this in self.presses[-1:]))

    def _stop(self) -> None:
        self._worker.halt.set()
        self.status.value = self._text("panel.stopping")
        if self._job:
            threading.Thread(target=_stop, args=(self._job,), daemon=True).start()

    def _reset(self) -> None:
        self._fresh = self._place.ours
        self.presses.clear()
        self.status.value = self._text("panel.ready")
        self._enable(True)
        self._draw()

    def _carry_out(self, command: Command) -> str:
        if self._fresh:
            self._place.empty()
            self._fresh = False
        this = Press(command, self._place.images())
        self._way = self._place.way()  # asked here, before the events of the press
        self.presses.append(this)
        try:
            listener = self._follow(command, this)
        finally:
            self._job = None
        listener.join()
        self._draw()
        for watcher in self._watchers:
            watcher(this)
        return press.outcome(this, self._text)

    def _follow(self, command: Command, this: Press) -> threading.Thread:
        """Do it, and show it as it goes; who listens ends when all that came of it was told."""
        with self._place.client(self._slow) as client, Events() as events:
            listener = threading.Thread(target=this.listen, args=(events,), daemon=True)
            listener.start()
            job = self._job = self._work(client, command, this)
            this.started = time.monotonic()
            worker = threading.Thread(target=this.carry_out, args=(job,), daemon=True)
            worker.start()
            if self._worker.halt.is_set():  # Stop was pressed before there was a job
                _stop(job)
            while worker.is_alive():
                worker.join(_REDRAW)
                self._draw()
        return listener

    def _work(self, client: Client, command: Command, this: Press) -> Work:
        if self._way == "refused" and command.verb not in take.REAL:
            found = take.find(self._place.number, self.commands, command)
            this.recorded = found.made if found else ""
            if found or command.followed:
                return take.Played(found, client, command, this.say, this.progress)
        if command.followed:
            return Job(client, command, this.say, this.progress, self._way)
        return Spoken(self._place, command, this.say)

    def _replay(self) -> str:
        """Show the last press again, event by event, slowly; the times told are the real ones."""
        this = self.presses[-1]
        shown = {press.picture(this, end, self._place): end for end in range(len(this.events), 0, -1)}
        for number, (picture, end) in enumerate(reversed(shown.items()), 1):
            at = (this.events[end - 1].at - this.started) * 1000
            self._map.value = picture
            self.status.value = self._text("panel.replaying", step=number, steps=len(shown), ms=f"{at:.1f}")
            if self._worker.halt.wait(_PAUSE):
                break
        self._draw()
        return self._text("panel.replayed", ms=this.ms)

    def _draw(self) -> None:
        this = self.presses[-1] if self.presses else None
        self._map.value = press.picture(this, None, self._place)
        self._story.value = press.story(self.presses, self._text)


class RunPanel(Panel):
    """`RunPanel("hello-world")`: a panel of its own, where the `minirt` command works; each word is what to run."""

    def __init__(self, *runs: str, place: Place | None = None) -> None:
        super().__init__(place or Place(), *(f"run {words}" for words in runs))


def _html(value: str) -> HTML:
    return HTML(f'<div class="mrt">{value}</div>')


def _stop(job: Work) -> None:
    with contextlib.suppress(MinirtError):  # a container that has just ended by itself cannot be stopped: as wanted
        job.stop()
