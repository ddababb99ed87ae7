"""Step mode: one real `docker run`, one stage a button, the container looked at after each, the pictures drawn live.

stages.py does it, pictures.py draws it; here are the buttons and the page. A press works in a thread (worker.py), and a
command that was started goes on between presses. Taught in chapter 06.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from ipywidgets import HTML, Button, HBox, VBox

from minirt.errors import MinirtError
from minirt.notebook import card, machine, markup, pictures, press, walk
from minirt.notebook.container import Container
from minirt.notebook.job import Command
from minirt.notebook.markup import Shown, esc
from minirt.notebook.place import Place
from minirt.notebook.stages import NAMES, Stage, Staged
from minirt.notebook.status import Status
from minirt.notebook.worker import Worker

_REDRAW = 0.1  # seconds between two drawings of a stage at work
_SIGNS = {"idle": "\u25cb", "now": "\u25b6", "done": "\u2713", "skipped": "\u2013", "failed": "\u2717"}


class Steps(Shown, VBox):  # type: ignore[misc]
    """`Steps("run greeter:1.0")`: the words after `docker`. `fresh` empties the place before the first stage; "Start
    over" removes the container and keeps the image. Raises InvalidInput for anything but a run."""

    def __init__(self, command: str, place: Place | None = None, fresh: bool = False) -> None:
        self._place, self._fresh = place or Place(), fresh
        text = self._text = self._place.text
        self.staged = Staged(self._place, Command.parse(command), self._changed)
        self.next = self._button(text("steps.next"), "primary")
        self.over = self._button(text("steps.over"))
        self.stop = self._button(text("panel.stop"), "danger")
        self.next.on_click(lambda _button: self._begin(self._advance))
        self.over.on_click(lambda _button: self._begin(self._undo))
        self.stop.on_click(lambda _button: self._stop())
        self.status = Status(text("steps.ready"))
        self._page, self._idle, self._drawn = HTML(), True, 0.0
        self._worker = Worker(text, self.status, self._enable)
        note = text("steps.fresh" if fresh else "steps.kept")
        intro = f'<p><span class="note">{esc(note)}</span></p><p>{card.code(self.staged.command)}</p>'
        head = HTML(f'<div class="mrt">{markup.style(text("again"))}{intro}</div>')
        super().__init__([head, HBox([self.next, self.over, self.stop]), self.status, self._page])
        self.add_class("mrt-panel")
        self._enable(True)
        self._draw()
        names = [text(f"steps.stage.{name}") for name in NAMES]
        self.plain = "\n".join([note, str(self.staged.command), *names, text("steps.fallback")])
        items = "".join(f"<li>{esc(name)}</li>" for name in names)
        self.page = f"{intro}<ol>{items}</ol><p><em>{esc(text('steps.fallback'))}</em></p>"

    @staticmethod
    def _button(label: str, style: str = "") -> Button:
        return Button(description=label, button_style=style, layout={"width": "auto"})

    def _begin(self, action: Callable[[], str]) -> None:
        self._worker.begin(action)

    def wait(self, timeout: float | None = None) -> None:
        """Until the press at work, if any, has ended. Raises TimeoutError."""
        self._worker.wait(timeout)

    def _enable(self, idle: bool) -> None:
        self._idle = idle
        self.next.disabled = not idle or self.staged.next is None
        self.over.disabled = not idle
        self.stop.disabled = idle and not self.staged.running

    def _changed(self) -> None:
        """Something new: from the stage at work, or from a command that goes on between presses."""
        if self._idle:
            self._enable(True)
            self._draw()
        elif time.monotonic() - self._drawn > _REDRAW:
            self._draw()

    def _advance(self) -> str:
        if self._fresh:
            self._place.empty()
            self._fresh = False
        stage = self.staged.advance(self._worker.halt)
        self._draw()
        return self._outcome(stage)

    def _outcome(self, stage: Stage) -> str:
        text, number = self._text, NAMES.index(stage.name) + 1
        if stage.state == "failed":
            return text("steps.failed", number=number, error=stage.error)
        if stage.state == "idle":
            return text("steps.halted", number=number)
        line = text("steps.did", number=number, ms=f"{stage.ms:.0f}", came=self._came(stage))
        if stage.recorded:
            line = f"{text('recording.shown', date=stage.recorded)} {line}"
        return line if self.staged.next else f"{line} {text('steps.all')}"

    def _came(self, stage: Stage) -> str:
        return self._text(f"steps.came.{stage.came}", code=self.staged.code)

    def _undo(self) -> str:
        try:
            self.staged.undo()
        except MinirtError as error:
            return self._text("worker.failed", error=error)
        self._draw()
        return self._text("steps.ready")

    def _stop(self) -> None:
        """A stage at work ends as soon as it can; a command that runs between presses is stopped, which is stage 5."""
        if self._idle and self.staged.running:
            self._worker.begin(self._advance)
        else:
            self._worker.halt.set()
            self.status.value = self._text("panel.stopping")

    # The page

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        staged, text = self.staged, self._text
        recorded = [stage.recorded for stage in staged.stages if stage.recorded]
        note = f'<p><span class="note">{esc(text("recording.shown", date=recorded[0]))}</span></p>' if recorded else ""
        parts = [note, self._stages(), *self._pictures()]
        if staged.layers and not staged["create"].over:
            parts.append(press.bars(dict(staged.layers), text))
        if staged.output:
            label = esc(text("panel.output"))
            parts.append(f'<pre tabindex="0" role="group" aria-label="{label}">{esc(staged.output)}</pre>')
        parts.append(self._inspected())
        self._page.value = f'<div class="mrt">{"".join(parts)}</div>'

    def _stages(self) -> str:
        text, rows = self._text, []
        for number, stage in enumerate(self.staged.stages, 1):
            title = f"<strong>{number}. {esc(text(f'steps.stage.{stage.name}'))}</strong>"
            state = esc(f"{_SIGNS[stage.state]} {text(f'steps.state.{stage.state}')}")
            came = [esc(self._came(stage) if stage.over else stage.error)]
            came += [card.code(self._exchange(*exchange)) for exchange in stage.exchanges]
            known = number <= 2 or self.staged.identity
            typed = card.code(self.staged.typed(stage.name)) if known else ""
            rows.append([f"{title}<br>{state}", typed, "<br>".join(filter(None, came))])
        heads = [text(f"steps.head.{key}") for key in ("stage", "docker", "came")]
        return card.table(text("steps.caption"), heads, rows)

    def _exchange(self, method: str, target: str, status: int) -> str:
        """As it was said, but that the long id is cut as docker cuts it, and the question is left out."""
        path, identity = target.partition("?")[0], self.staged.identity
        path = path.replace(identity, identity[:12]) if identity else path
        return self._text("steps.exchange", method=method, path=path, status=status)

    def _pictures(self) -> list[str]:
        staged, text, now = self.staged, self._text, machine.look(self._place.root)
        seen, last = staged.seen, self._last()
        made = "idle"
        if staged["remove"].over:
            made = "gone"
        elif staged.identity:
            made = "now" if last in ("ask", "create") else "done"
        lives = "idle"
        if staged["end"].over:
            lives = "ended"
        elif staged["start"].over:
            lives = "now" if staged.running or (seen and seen.process) else "ended"
        drawn = {
            "machine": pictures.machine(now, text, os.getpid(), seen if lives == "now" else None, lives == "now"),
            "disk": pictures.disk(staged.command.image, staged.image, seen, text, made),
            "fence": pictures.fence(now, seen, text, lives, staged.code),
        }
        return [
            f"<p><strong>{esc(text(f'steps.picture.{name}'))}</strong></p>{picture}" for name, picture in drawn.items()
        ]

    def _last(self) -> str:
        """The stage that was done last."""
        done = [stage.name for stage in self.staged.stages if stage.state == "done"]
        return done[-1] if done else ""

    def _inspected(self) -> str:
        """The container as it is now: state, files, process."""
        text, seen = self._text, self.staged.seen
        if seen is None:
            return f"<p>{esc(text('steps.none'))}</p>"
        files = ", ".join(seen.files()) or text("steps.hidden")
        shown = "".join(_file(seen, name, self._text) for name in walk.FILES)
        parts = [card.facts(seen, text), card.heading(text("steps.folder")), f"<p>{card.code(seen.folder or '?')}</p>"]
        return "".join([*parts, f"<p>{esc(files)}</p>", shown])


def _file(seen: Container, name: str, text: Any) -> str:
    """A file of the container's folder, to be opened."""
    try:
        data = seen.read(name)
    except OSError as error:
        return f"<p>{esc(text('steps.unread', name=name, why=error.strerror))}</p>"
    summary = esc(text(f"steps.file.{name.partition('.')[0]}", name=name))
    return f'<details><summary>{summary}</summary><pre tabindex="0">{esc(data)}</pre></details>'
