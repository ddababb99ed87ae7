"""Exercises: each sets its starting state, and a check that looks at the real state and answers with a message.

A check never raises, so a page runs to its end with every exercise undone.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ipywidgets import Button, VBox

from minirt.errors import MinirtError
from minirt.notebook.advice import advice
from minirt.notebook.markup import Shown, esc
from minirt.notebook.status import Status

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
        self._chapter, self._name = chapter, name
        self._thread: threading.Thread | None = None
        self.button = Button(
            description=chapter.text("exercise.check"), button_style="primary", layout={"width": "auto"}
        )
        self.button.on_click(self._press)
        self.status = Status()
        super().__init__([self.button, self.status])
        self.plain = chapter.text("exercise.fallback", name=name)
        self.page = f"<p><em>{esc(self.plain)}</em></p>"

    def _press(self, _button: Any) -> None:
        self.button.disabled = True
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        try:
            self.status.value = check(self._chapter, self._name)
        finally:
            self.button.disabled = False

    def wait(self, timeout: float | None = None) -> None:
        """Until the check at work, if any, has answered."""
        if self._thread:
            self._thread.join(timeout)
