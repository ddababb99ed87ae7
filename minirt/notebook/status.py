"""One line that screen readers announce when it changes (`role="status"`), shown as plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anywidget import AnyWidget
from traitlets import Unicode

from minirt.notebook.markup import Shown, esc

STATIC = Path(__file__).with_name("static")


class Status(Shown, AnyWidget):  # type: ignore[misc]
    """`value` is the line, plain text; `fallback` what a stored page says in its place."""

    _esm = STATIC / "status.js"
    _css = STATIC / "status.css"
    value = Unicode("").tag(sync=True)

    def __init__(self, value: str = "", fallback: str = "", **options: Any) -> None:
        super().__init__(value=value, **options)
        self.plain, self.page = fallback, f"<p><em>{esc(fallback)}</em></p>"
