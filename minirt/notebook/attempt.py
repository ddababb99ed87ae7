"""An installation by hand that is really tried: the commands one types, a button that runs them, what the machine says.

A try works in a scratch folder that is gone afterwards: nothing is installed on the learner's machine. Its steps run in
turn until one fails; what a step prints, and whether it succeeds, is the machine's own word. Taught in chapter 01.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ipywidgets import HTML, Button, HBox, VBox

from minirt.errors import MinirtError
from minirt.notebook import markup
from minirt.notebook.catalogue import Strings
from minirt.notebook.markup import Shown, esc
from minirt.notebook.status import Status
from minirt.notebook.worker import Worker

_OUTPUT = 16384  # bytes of output kept for showing
_SIGNS = {"done": "\u2713", "failed": "\u2717", "idle": "\u2013", "now": "\u25b6"}


@dataclass(frozen=True)
class Step:
    """One command. `kind` is its part in an installation: get, install or start; `env` what is set for it."""

    kind: str
    words: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """As one types it."""
        return " ".join([*(f"{name}={value}" for name, value in self.env), *map(_typed, self.words)])


def _typed(word: str) -> str:
    return word if "*" in word else shlex.quote(word)  # a shell would make names of `*`, as `_names` does


@dataclass(frozen=True)
class Recipe:
    """`shop(folder)` fills the folder one downloads from; `telling(output)` picks the lines that say why it failed.
    Where `foreign`, the program is for another CPU: if it runs, an emulator of this machine has translated it."""

    shop: Callable[[Path], object]
    steps: tuple[Step, ...]
    telling: Callable[[str], Sequence[str]] = lambda output: output.splitlines()[-1:]
    foreign: bool = False


@dataclass
class Outcome:
    """What became of a try: the exit status of each step that was begun (None: stopped), and all they printed."""

    recipe: Recipe
    codes: list[int | None] = field(default_factory=list)
    output: bytes = b""

    @property
    def emulated(self) -> bool:
        return self.recipe.foreign and self.codes == [0] * len(self.recipe.steps)

    @property
    def done(self) -> bool:
        """Installed, and running by itself."""
        return self.codes == [0] * len(self.recipe.steps) and not self.recipe.foreign

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")

    @property
    def error(self) -> str:
        """The lines that tell why it failed; "" if it did not."""
        return "" if self.done or self.emulated else "\n".join(self.recipe.telling(self.text))


class Try:
    """One carrying-out of a recipe; `stop` ends it from another thread. `say` is called after each piece of news."""

    def __init__(self, recipe: Recipe, folder: Path, say: Callable[[Outcome], None] = lambda outcome: None) -> None:
        self._recipe, self._folder, self._say = recipe, folder, say
        self._process: subprocess.Popen[bytes] | None = None
        self.stopping = False

    def run(self) -> Outcome:
        """Do it, in a scratch folder below `folder`. Raises MinirtError where this machine cannot try that."""
        outcome = Outcome(self._recipe)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="by-hand-", dir=self._folder) as scratch:
                self._recipe.shop(Path(scratch) / "shop")
                for step in self._recipe.steps:
                    code = None if self.stopping else self._do(step, scratch, outcome)
                    outcome.codes.append(None if self.stopping else code)
                    self._say(outcome)
                    if outcome.codes[-1] != 0:
                        break
        except OSError as error:
            raise MinirtError(f"cannot use the scratch folder: {error}") from error
        return outcome

    def _do(self, step: Step, scratch: str, outcome: Outcome) -> int:
        names = [name for word in step.words for name in (_names(word, scratch) if "*" in word else [word])]
        program = [sys.executable, "-m", "pip"] if names[0] == "pip" else names[:1]  # the pip of this Python
        # As it comes: neither this user's settings nor a look for a newer pip, and no colours, which a page has not.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "FORCE_COLOR"))}
        own = {"LC_ALL": "C", "NO_COLOR": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        own |= {"PIP_ROOT_USER_ACTION": "ignore", "PIP_NO_CACHE_DIR": "1", "PYTHONNOUSERSITE": "1"}
        own["TMPDIR"] = scratch  # what a stopped command leaves goes with it
        try:
            process = subprocess.Popen(
                [*program, *names[1:]],
                cwd=scratch,
                env={**kept, **own, **dict(step.env)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:  # the kernel refuses: a shell prints the same words
            outcome.output += f"{names[0]}: {error.strerror}\n".encode()
            return 126
        self._process = process
        if self.stopping:
            self.stop()
        assert process.stdout
        with process:
            while data := os.read(process.stdout.fileno(), 65536):
                outcome.output = (outcome.output + data)[-_OUTPUT:]
        return process.returncode

    def stop(self) -> None:
        """End it from another thread."""
        self.stopping = True
        if self._process and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)


def _names(pattern: str, scratch: str) -> list[str]:
    """What a shell makes of `*`."""
    return sorted(str(path.relative_to(scratch)) for path in Path(scratch).glob(pattern)) or [pattern]


class Attempt(Shown, VBox):  # type: ignore[misc]
    """The try with its words at catalogue key `key`, as steps with a button. `folder` gets the scratch folders."""

    def __init__(self, text: Strings, key: str, recipe: Recipe, folder: Path) -> None:
        self._text, self._recipe, self._folder = text, recipe, folder
        self._try: Try | None = None
        self.outcome: Outcome | None = None
        note = text("attempt.scratch")
        self.button = self._button(text(f"{key}.button"), lambda: self._worker.begin(self._carry_out), "primary")
        self.stop = self._button(text("panel.stop"), self._stop, "danger")
        self.status = Status(text("panel.ready"))
        self._worker = Worker(text, self.status, self._enable, listens=False)
        self._steps, self._output = HTML(), HTML()
        head = HTML(f'<div class="mrt">{markup.style(text("again"))}<p><span class="note">{esc(note)}</span></p></div>')
        super().__init__([head, self._steps, HBox([self.button, self.stop]), self.status, self._output])
        self.add_class("mrt-panel")
        self._enable(True)
        self._draw([])

        fallback = text("panel.fallback", buttons=self.button.description)
        self.plain = "\n".join([note, *map(str, recipe.steps), fallback])
        rows = "".join(f"<li><code>{esc(step)}</code></li>" for step in recipe.steps)
        self.page = f"<p>{esc(note)}</p><ol>{rows}</ol><p><em>{esc(fallback)}</em></p>"

    @staticmethod
    def _button(label: str, action: Callable[[], None], style: str) -> Button:
        button = Button(description=label, button_style=style, layout={"width": "auto"})
        button.on_click(lambda _button: action())
        return button

    def install(self) -> Outcome:
        """What the button does, as a plain call. Raises MinirtError."""
        return Try(self._recipe, self._folder).run()

    @property
    def commands(self) -> list[str]:
        """What one types, step by step."""
        return [str(step) for step in self._recipe.steps]

    def download(self, name: str) -> bytes:
        """One file of those that step 1 gets. Raises MinirtError, OSError."""
        with tempfile.TemporaryDirectory() as folder:
            self._recipe.shop(Path(folder) / "shop")
            return (Path(folder) / "shop" / name).read_bytes()

    def wait(self, timeout: float | None = None) -> None:
        """Until the try at work, if any, has ended. Raises TimeoutError."""
        self._worker.wait(timeout)

    def _enable(self, idle: bool) -> None:
        self.button.disabled, self.stop.disabled = not idle, idle

    def _stop(self) -> None:
        self._worker.halt.set()
        self.status.value = self._text("panel.stopping")
        if self._try:
            self._try.stop()

    def _carry_out(self) -> str:
        self._try = Try(self._recipe, self._folder, self._tell)
        if self._worker.halt.is_set():  # Stop was pressed before there was a try
            self._try.stop()
        self._draw([], at_work=True)
        self._output.value = ""
        try:
            self.outcome = self._try.run()
        except MinirtError as error:
            return self._text("attempt.cannot", error=error)
        return self._told(self.outcome)

    def _told(self, outcome: Outcome) -> str:
        """The line that closes a try."""
        text, code, step = self._text, outcome.codes[-1], str(len(outcome.codes))
        if code is None:
            return text("attempt.stopped", step=step)
        if outcome.emulated:
            return text("attempt.emulated")
        if "No module named pip" in outcome.text:
            return text("attempt.no_pip")
        return text("attempt.done") if outcome.done else text("attempt.failed", step=step, code=code)

    def _tell(self, outcome: Outcome) -> None:
        self._draw(outcome.codes, at_work=outcome.codes[-1] == 0)
        label = esc(self._text("panel.output"))
        shown = f'<pre tabindex="0" role="group" aria-label="{label}">{esc(outcome.output)}</pre>'
        self._output.value = f'<div class="mrt">{shown}</div>' if outcome.output else ""

    def _draw(self, codes: Sequence[int | None], at_work: bool = False) -> None:
        rows = []
        for number, step in enumerate(self._recipe.steps):
            state = "idle"
            if number < len(codes):
                state = "done" if codes[number] == 0 else "failed"
            elif number == len(codes) and at_work:
                state = "now"
            kind, told = self._text(f"attempt.{step.kind}"), self._text(f"attempt.state.{state}")
            rows.append(
                f'<tr><td>{number + 1}</td><th scope="row">{esc(kind)}</th><td><code>{esc(step)}</code></td>'
                f'<td class="short">{_SIGNS[state]} {esc(told)}</td></tr>'
            )
        caption = esc(self._text("attempt.steps"))
        self._steps.value = f'<div class="mrt"><table><caption>{caption}</caption>{"".join(rows)}</table></div>'
