"""Questions with options: a prediction (noted, not judged), and a quiz (every option has its reason)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from anywidget import AnyWidget
from ipywidgets import VBox
from traitlets import Int, List, Unicode, observe

from minirt.notebook.catalogue import Strings
from minirt.notebook.markup import Shown, esc
from minirt.notebook.status import STATIC


class Choice(Shown, AnyWidget):  # type: ignore[misc]
    """One question. `chosen` is the option's index, -1 for none; `click()` is the button, as in a browser."""

    _esm = STATIC / "choice.js"
    _css = STATIC / "choice.css"
    question, button, again = (Unicode("").tag(sync=True) for _ in range(3))
    options = List(Unicode()).tag(sync=True)
    chosen = Int(-1).tag(sync=True)
    asked = Int(0).tag(sync=True)
    answer, verdict = (Unicode("").tag(sync=True) for _ in range(2))

    def __init__(
        self, text: Strings, question: str, options: Sequence[str], button: str, reply: Callable[[int], tuple[str, str]]
    ) -> None:
        self._text, self._reply = text, reply
        super().__init__(question=question, options=list(options), button=button, again=text("again"))
        note = text("choice.fallback")
        self.plain = "\n".join([question, *(f"- {option}" for option in options), note])
        items = "".join(f"<li>{esc(option)}</li>" for option in options)
        self.page = f"<p><strong>{esc(question)}</strong></p><ul>{items}</ul><p><em>{esc(note)}</em></p>"

    def click(self) -> None:
        """Press the button."""
        self.asked += 1

    @observe("asked")
    def _on_asked(self, _change: Any) -> None:
        known = 0 <= self.chosen < len(self.options)
        self.answer, self.verdict = self._reply(self.chosen) if known else (self._text("choice.none"), "")


class Questions(Shown, VBox):  # type: ignore[misc]
    """Questions under each other. The box around them is what is marked when the kernel is gone."""

    def __init__(self, questions: Sequence[Choice]) -> None:
        self.questions = list(questions)
        super().__init__(self.questions)
        self.plain = "\n\n".join(question.plain for question in self.questions)
        self.page = "".join(question.page for question in self.questions)


def prediction(text: Strings, key: str) -> Questions:
    """The prediction at catalogue key `NN.predict.NAME`: it is noted and not yet judged; the run is the judge."""
    table = text.table(key)
    options = list(table["options"])

    def reply(index: int) -> tuple[str, str]:
        return text("choice.noted", option=options[index]), ""

    return Questions([Choice(text, table["question"], options, text("choice.predict"), reply)])


Solved = Callable[[str, str], str]


def quiz(text: Strings, key: str, solved: Solved) -> Questions:
    """The questions at catalogue key `NN.quiz`, each option with its verdict and reason. `solved("quiz.1", answer)` is
    called for each right answer and gives what is shown."""
    return Questions([_question(text, number, entry, solved) for number, entry in enumerate(text.table(key), 1)])


def _question(text: Strings, number: int, entry: dict[str, Any], solved: Solved) -> Choice:
    def reply(index: int) -> tuple[str, str]:
        _option, right, reason = entry["options"][index]
        verdict = "right" if right else "wrong"
        answer = text(f"choice.{verdict}", reason=reason)
        return solved(f"quiz.{number}", answer) if right else answer, verdict

    options = [option for option, _right, _reason in entry["options"]]
    return Choice(text, f"{number}. {entry['question']}", options, text("choice.check", number=number), reply)
