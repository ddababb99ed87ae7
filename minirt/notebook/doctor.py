"""The doctor: what this machine can do, found by trying, as a table behind a button.

The rows are those of `minirt doctor`; the words beside them say what each is for, and what a learner misses without it.
Taught in chapter 00.
"""

from __future__ import annotations

import re
from typing import Any

from ipywidgets import HTML, Button, HBox, VBox

from minirt.notebook import markup
from minirt.notebook.card import code, table
from minirt.notebook.markup import Shown, esc
from minirt.notebook.place import Place
from minirt.notebook.status import Status
from minirt.notebook.worker import Worker


class Doctor(Shown, VBox):  # type: ignore[misc]
    """`Doctor()`: nothing is tried before its button `ask` is pressed."""

    def __init__(self, place: Place | None = None) -> None:
        self._place = place or Place()
        text = self._text = self._place.text
        self.ask = Button(description=text("doctor.ask"), button_style="primary", layout={"width": "auto"})
        self.ask.on_click(lambda _button: self.click())
        self.status = Status(text("doctor.ready"))
        self._table = HTML()
        self._worker = Worker(text, self.status, self._enable, listens=False)
        super().__init__([HTML(markup.style(text("again"))), HBox([self.ask]), self.status, self._table])
        self.add_class("mrt-panel")
        self.plain = text("doctor.fallback")
        self.page = f"<p><em>{esc(self.plain)}</em></p>"

    def _enable(self, idle: bool) -> None:
        self.ask.disabled = not idle

    def click(self) -> None:
        """Try it, as the button does."""
        self._worker.begin(self._examine)

    def wait(self, timeout: float | None = None) -> None:
        """Until what is at work, if anything, has ended. Raises TimeoutError."""
        self._worker.wait(timeout)

    def _examine(self) -> str:
        text = self._text
        with self._place.client() as client:
            rows = client.doctor()
        heads = [text(f"doctor.head.{key}") for key in ("what", "works", "tried", "cost", "hint")]
        self._table.value = f'<div class="mrt">{table(text("doctor.caption"), heads, map(self._row, rows))}</div>'
        works = sum(bool(row["works"]) for row in rows)
        outcome = "no" if not rows[0]["works"] else "proot" if rows[0]["cost"] else "yes"
        return f"{text(f'doctor.outcome.{outcome}')} {text('doctor.count', works=works, all=len(rows))}"

    def _row(self, row: dict[str, Any]) -> list[str]:
        """The words of a row of `minirt doctor`: the catalogue's, or the probe's own where that has none."""
        text, name = self._text, str(row["capability"])
        known = text.table("doctor.row").get(name.strip("/").replace(" ", "-").replace("/", "-"), {})
        cost = known.get("cost", row["cost"]) if row["cost"] else ""
        if name == "containers" and row["works"] and row["cost"]:
            cost = text("doctor.without-walls")
        return [
            f"<strong>{esc(known.get('name', name))}</strong><br>{esc(known.get('is', ''))}",
            esc(text("doctor.works" if row["works"] else "doctor.fails")),
            f"{esc(self._said(row['tried']))}<br>{esc(self._said(row['detail']))}",
            esc(cost),
            code(self._said(row["hint"])) if row["hint"] else "",
        ]

    def _said(self, sentence: str) -> str:
        """A sentence of the probe in this language. The catalogue has it under its letters, joined by `-`."""
        known = self._text.table("doctor.said").get(re.sub("[^a-z]+", "-", sentence.lower()).strip("-"), "{sentence}")
        number = re.search(r"\d[\d.]*(?<!\.)", sentence)
        return str(known).format(sentence=sentence, n=number.group() if number else "")
