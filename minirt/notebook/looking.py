"""A widget that looks at something when a button is pressed, again and again; Stop ends a long look.

The work is done by a `Worker`; here is what such widgets share: their buttons, the status line, and how what they find
is laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ipywidgets import HTML, Button, VBox

from minirt.errors import MinirtError
from minirt.notebook.catalogue import Strings
from minirt.notebook.markup import Shown, style
from minirt.notebook.status import STATIC, Status
from minirt.notebook.worker import Worker


class Halted(MinirtError):
    """The learner pressed Stop."""


class Looking(Shown, VBox):  # type: ignore[misc]
    """`status` tells what happens, and how it ended; `stop` is the button that ends a look."""

    def __init__(self, text: Strings) -> None:
        self.text, self.status = text, Status()
        self._buttons: list[Button] = []
        self._worker = Worker(text, self.status, self._enable, listens=False)
        self.wait = self._worker.wait
        self.stop = Button(
            description=text("panel.stop"), button_style="danger", disabled=True, layout={"width": "auto"}
        )
        self.stop.on_click(lambda _button: self._stop())
        super().__init__()
        self.add_class("mrt-panel")
        self.add_class("mrt-looking")

    def head(self, markup: str) -> HTML:
        """What stands on top, with the look of all that follows."""
        sheet = (STATIC / "looking.css").read_text(encoding="utf-8")
        return HTML(f"{block(style(self.text('again')) + markup)}<style>{sheet}</style>")

    def button(self, label: str, action: Callable[[], str], style: str = "") -> Button:
        """A button that does `action` in a thread; the line that it returns ends in `status`."""
        made = Button(description=label, button_style=style, layout={"width": "auto"})
        made.on_click(lambda _button: self._worker.begin(lambda: self.attempt(action)))
        self._buttons.append(made)
        return made

    def attempt(self, action: Callable[[], str]) -> str:
        """The line that `action` returns, or what hindered it as a line."""
        try:
            return action()
        except Halted:
            return self.text("looking.stopped")
        except MinirtError as error:
            return self.text("worker.failed", error=error)

    def halted(self) -> None:
        """For a long look to call now and then. Raises Halted where Stop was pressed."""
        if self._worker.halt.is_set():
            raise Halted("stopped")

    def _enable(self, idle: bool) -> None:
        for button in self._buttons:
            button.disabled = not idle
        self.stop.disabled = idle

    def _stop(self) -> None:
        self._worker.halt.set()
        self.status.value = self.text("panel.stopping")


def block(markup: str) -> str:
    """Markup in the course's look."""
    return f'<div class="mrt">{markup}</div>'


def show(widget: HTML, markup: str) -> None:
    """Put markup into an HTML widget in the course's look; empty markup leaves no trace of it."""
    widget.value = block(markup) if markup else ""


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table: `caption` (empty: none) and `heads` are markup, as are the cells."""
    title = f"<caption>{caption}</caption>" if caption else ""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{title}<tr>{head}</tr>{body}</table>"
