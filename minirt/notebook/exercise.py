"""Exercises: each sets its starting state, and a check that looks at the real state and answers with a message.

A check never raises, so a page runs to its end with every exercise undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipywidgets import HTML, Button, VBox

from minirt.errors import MinirtError
from minirt.notebook import markup
from minirt.notebook.advice import advice
from minirt.notebook.markup import Shown, esc
from minirt.notebook.status import Status
from minirt.notebook.worker import Worker

if TYPE_CHECKING:
    from minirt.notebook.chapter import Chapter


def check(chapter: Chapter, name: str) -> str:
    """What the check of exercise `name` finds, as a message. Never raises for the state it looks at."""
    text = chapter.text
    try:
        with chapter.client() as client:
            answer = chapter.tasks[name].check(client)
    except MinirtError as error:
        return text("exercise.failed", error=error) + advice(str(error), text)
    found, fields = answer if isinstance(answer, tuple) else (answer, {})
    reason = text(f"{chapter.number}.exercise.{name}.{found}", **fields)
    if found != "right":
        return text("exercise.wrong", reason=reason)
    return chapter.solved(f"exercise.{name}", text("exercise.right", reason=reason))


class Exercise(Shown, VBox):  # type: ignore[misc]
    """Sets the stage when made; its button runs the check in a thread."""

    def __init__(self, chapter: Chapter, name: str) -> None:
        with chapter.client() as client:
            chapter.tasks[name].stage(client)
        self._check = lambda: check(chapter, name)
        text = chapter.text
        self.button = Button(description=text("exercise.check"), button_style="primary", layout={"width": "auto"})
        self.button.on_click(lambda _button: self._begin())
        self.status = Status()
        self._worker = Worker(text, self.status, self._enable, listens=False)
        super().__init__([HTML(markup.style(text("again"))), self.button, self.status])
        self.add_class("mrt-panel")
        self.plain = text("exercise.fallback", name=name)
        self.page = f"<p><em>{esc(self.plain)}</em></p>"

    def _begin(self) -> None:
        self._worker.begin(self._check)

    def _enable(self, idle: bool) -> None:
        self.button.disabled = not idle

    def wait(self, timeout: float | None = None) -> None:
        """Until the check at work, if any, has answered. Raises TimeoutError."""
        self._worker.wait(timeout)
