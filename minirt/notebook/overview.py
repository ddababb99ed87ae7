"""The index page's widget: what a learner has solved in each chapter, live, and a button to begin a chapter anew.

It looks at the record (`record.py`) once a second, for the chapters are other notebooks with kernels of their own.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipywidgets import HTML, Button, HBox, VBox

from minirt.errors import InvalidInput, MinirtError
from minirt.notebook import ability, chapters, lab, markup, record
from minirt.notebook.catalogue import Strings
from minirt.notebook.chapter import course
from minirt.notebook.markup import Shown, esc
from minirt.notebook.status import Status

_LOOK = 1.0  # seconds between two looks at the record


@dataclass(frozen=True)
class Row:
    """One chapter: of its exercises and of its questions, how many are solved and how many there are."""

    number: str
    title: str
    exercises: tuple[int, int]
    questions: tuple[int, int]

    @property
    def solved(self) -> tuple[int, int]:
        return self.exercises[0] + self.questions[0], self.exercises[1] + self.questions[1]


def rows(text: Strings, folder: Path) -> list[Row]:
    """The chapters that lie with this package, with what `folder`'s record says. Raises MinirtError, OSError."""
    solved, found = record.read(folder), []
    for number, path in lab.chapters(text.lang).items():
        tasks = {f"exercise.{name}" for name in chapters.chapter(number).EXERCISES}
        asked = {f"quiz.{count}" for count, _ in enumerate(text.table(f"{number}.quiz"), 1)}
        mine = set(solved.get(number, ()))
        counts = [(len(names & mine), len(names)) for names in (tasks, asked)]
        found.append(Row(number, lab.title(path), *counts))
    return found


def shown(text: Strings, folder: Path) -> str:
    """The chapters and what is solved of them as markup, or the line that says why that cannot be told."""
    try:
        found = rows(text, folder)
    except InvalidInput as error:
        return f"<p>{esc(text('lab.progress.damaged', error=error))}</p>"
    except (OSError, MinirtError) as error:
        return f"<p>{esc(text('lab.progress.failed', error=error))}</p>"
    heads = "".join(
        f'<th scope="col">{esc(text(f"lab.progress.{key}"))}</th>'
        for key in ("chapter", "exercises", "questions", "solved")
    )
    lines = "".join(_line(row, text) for row in found)
    return f"<table><caption>{esc(text('lab.progress.title'))}</caption><tr>{heads}</tr>{lines}</table>"


def _line(row: Row, text: Strings) -> str:
    done, whole = row.solved
    state = "whole" if done == whole else "some" if done else "none"
    words = [text("lab.progress.of", done=part[0], all=part[1]) for part in (row.exercises, row.questions)]
    cells = "".join(f"<td>{esc(word)}</td>" for word in (*words, text(f"lab.progress.{state}")))
    bar = f'<progress aria-label="{esc(text("lab.progress.bar", number=row.number, done=done, all=whole))}"'
    cells = f'{cells[:-5]} {bar} max="{whole}" value="{done}"></progress></td>'
    return f'<tr><th scope="row">{esc(row.title)}</th>{cells}</tr>'


class Overview(Shown, VBox):  # type: ignore[misc]
    """`mine` is the folder with the learner's copies: that of the page it stands on."""

    def __init__(self, lang: str = "en", mine: Path | None = None) -> None:
        text = self._text = Strings(lang)
        self._mine, self._folder = mine or Path.cwd(), course()
        self._seen = record.changed(self._folder)
        self._closed = threading.Event()
        self.machine, self._table = Status(), HTML()
        self.status = Status(text("lab.progress.ready"))
        self.anew = {number: self._button(number) for number in lab.chapters(lang)}
        buttons = HBox(list(self.anew.values()), layout={"flex_flow": "row wrap"})
        head = HTML(markup.style(text("again")))
        super().__init__([head, self.machine, self._table, buttons, self.status])
        self.add_class("mrt-panel")
        self.plain = text("lab.progress.fallback")
        self.page = f"<p><em>{esc(self.plain)}</em></p>"
        self.look()
        for work in (self._watch, self._try):
            threading.Thread(target=work, daemon=True).start()

    def _button(self, number: str) -> Button:
        button = Button(description=self._text("lab.progress.anew", number=number), layout={"width": "auto"})
        button.on_click(lambda _button: self._reset(number))
        return button

    def _reset(self, number: str) -> None:
        text = self._text
        try:
            if self._mine.resolve() == lab.chapters(text.lang)[number].parent:
                self.status.value = text("lab.progress.itself")
                return
            kept = lab.reset(number, text.lang, self._mine)
            key = "reset" if kept else "missing"
            self.status.value = text(f"lab.progress.{key}", number=number, kept=kept.name if kept else "")
        except (OSError, MinirtError) as error:
            self.status.value = text("lab.progress.failed", error=error)
        self.look()

    def look(self) -> None:
        """Read the record and show it."""
        self._table.value = f'<div class="mrt">{shown(self._text, self._folder)}</div>'

    def _try(self) -> None:
        self.machine.value = ability.line(self._text)

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK):
            if (seen := record.changed(self._folder)) != self._seen:
                self._seen = seen
                self.look()

    def close(self) -> None:
        self._closed.set()
        super().close()


def progress(lang: str = "en") -> Overview:
    """What you have solved in each chapter, kept up to date, and a button to begin one anew."""
    return Overview(lang)


def filled(notebook: dict[str, Any], text: Strings) -> None:
    """Put today's progress under the one code cell of the index page, in place: what stands there before it is run."""
    note = text("lab.progress.stored")
    page = f"<p>{esc(ability.line(text))}</p>{shown(text, course())}<p><em>{esc(note)}</em></p>"
    (code,) = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["outputs"] = [{"output_type": "display_data", "data": {"text/plain": note, "text/html": page}, "metadata": {}}]
