"""A panel: buttons that really carry out a docker command, and what it did: map, layers, output, your presses.

A press works in threads of its own, so the page stays alive and Stop can be pressed. The buttons are disabled
meanwhile and always come back. Events are the whole program's, so one panel works at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ipywidgets import HTML, Button, HBox, VBox

from minirt.errors import MinirtError
from minirt.notebook import markup, press
from minirt.notebook.job import Command, Job
from minirt.notebook.markup import Shown, esc
from minirt.notebook.press import Press
from minirt.notebook.status import Status
from minirt.trace import Events

if TYPE_CHECKING:
    from minirt.notebook.chapter import Chapter

_AT_WORK = threading.Lock()
_REDRAW = 0.1  # seconds between two drawings
_PAUSE = 0.9  # seconds a step of the slow replay stays


class Panel(Shown, VBox):  # type: ignore[misc]
    """`commands` are the words after `docker`, one button each. `fresh` empties the chapter's cache before the first
    press; `slow` pulls from a throttled hub, labelled so."""

    def __init__(self, chapter: Chapter, *commands: str, fresh: bool = False, slow: bool = False) -> None:
        self._chapter, self._text, self._slow, self._fresh = chapter, chapter.text, slow, fresh
        self._watchers: list[Callable[[Press], None]] = []
        self._job: Job | None = None
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None
        self.presses: list[Press] = []

        text = self._text
        notes = [text("panel.fresh" if fresh else "panel.kept")]
        notes += [text("panel.slow", rate=chapter.SLOW // 1000)] * slow
        intro = "".join(f'<p><span class="note">{esc(note)}</span></p>' for note in notes)
        parsed = [Command.parse(words) for words in commands]
        self.run = [self._button(self._label(command), self._presser(command), "primary") for command in parsed]
        self.stop = self._button(text("panel.stop"), self._stop, "danger")
        self.over = self._button(text("panel.over"), self._reset)
        self.replay = self._button(text("panel.replay"), lambda: self._begin(self._replay))
        self.status = Status(text("panel.ready"))
        self._map, self._story = HTML(), HTML()
        rows = [HBox([b, _html(f"<code>{esc(c)}</code>")]) for b, c in zip(self.run, parsed, strict=True)]
        controls = HBox([self.stop, self.over, self.replay])
        head = _html(markup.style(text("again")) + intro)
        super().__init__([head, *rows, controls, self.status, self._map, self._story])
        self.add_class("mrt-panel")
        self._enable(True)
        self._draw()

        fallback = text("panel.fallback", buttons=", ".join(button.description for button in self.run))
        self.plain = "\n".join([*notes, *map(str, parsed), fallback])
        code = "".join(f"<p><code>{esc(command)}</code></p>" for command in parsed)
        self.page = f"{intro}{code}<p><em>{esc(fallback)}</em></p>"

    def _label(self, command: Command) -> str:
        return self._text(f"panel.{command.verb}", what=" ".join([command.image, *command.arguments]))

    def _presser(self, command: Command) -> Callable[[], None]:
        return lambda: self._begin(lambda: self._carry_out(command))

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
        if self._thread:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise TimeoutError("the panel is still at work")

    def _begin(self, action: Callable[[], str]) -> None:
        """Do `action` in a thread, unless a panel is at work; it returns the line that closes it."""
        if not _AT_WORK.acquire(blocking=False):
            self.status.value = self._text("panel.busy")
            return
        self._halt.clear()
        self._enable(False)
        self.status.value = self._text("panel.working")
        self._thread = threading.Thread(target=self._guarded, args=(action,), daemon=True)
        self._thread.start()

    def _guarded(self, action: Callable[[], str]) -> None:
        try:
            line = action()
        except Exception as error:  # whatever it was, the learner reads it and the buttons come back
            line = self._text("panel.failed", ms=0, error=error)
        self._job = None
        _AT_WORK.release()
        self._enable(True)
        self.status.value = line

    def _enable(self, idle: bool) -> None:
        for button in (*self.run, self.over):
            button.disabled = not idle
        self.stop.disabled = idle
        self.replay.disabled = not (idle and self.presses)

    def _stop(self) -> None:
        self._halt.set()
        self.status.value = self._text("panel.stopping")
        if self._job:
            threading.Thread(target=_stop, args=(self._job,), daemon=True).start()

    def _reset(self) -> None:
        self._fresh = True
        self.presses.clear()
        self.status.value = self._text("panel.ready")
        self._enable(True)
        self._draw()

    def _carry_out(self, command: Command) -> str:
        if self._fresh:
            self._chapter.empty()
            self._fresh = False
        this = Press(command, self._chapter.images())
        self.presses.append(this)
        with self._chapter.client(self._slow) as client, Events() as events:
            listener = threading.Thread(target=this.listen, args=(events,), daemon=True)
            listener.start()
            job = self._job = Job(client, command, this.say, this.progress)
            this.started = time.monotonic()
            worker = threading.Thread(target=this.carry_out, args=(job,), daemon=True)
            worker.start()
            if self._halt.is_set():  # Stop was pressed before there was a job
                _stop(job)
            while worker.is_alive():
                worker.join(_REDRAW)
                self._draw()
        listener.join()
        self._draw()
        for watcher in self._watchers:
            watcher(this)
        return press.outcome(this, self._text)

    def _replay(self) -> str:
        """Show the last press again, event by event, slowly; the times told are the real ones."""
        this = self.presses[-1]
        shown = {
            press.picture(this, end, self._text, self._chapter.here): end for end in range(len(this.events), 0, -1)
        }
        for number, (picture, end) in enumerate(reversed(shown.items()), 1):
            at = (this.events[end - 1].at - this.started) * 1000
            self._map.value = picture
            self.status.value = self._text("panel.replaying", step=number, steps=len(shown), ms=f"{at:.1f}")
            if self._halt.wait(_PAUSE):
                break
        self._draw()
        return self._text("panel.replayed", ms=this.ms)

    def _draw(self) -> None:
        this = self.presses[-1] if self.presses else None
        self._map.value = press.picture(this, None, self._text, self._chapter.here)
        self._story.value = press.story(self.presses, self._text)


def _html(value: str) -> HTML:
    return HTML(f'<div class="mrt">{value}</div>')


def _stop(job: Job) -> None:
    with contextlib.suppress(MinirtError):  # a container that has just ended by itself cannot be stopped: as wanted
        job.stop()
