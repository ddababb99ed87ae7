"""Where a machine gives no walls, or can run nothing: a cell that fails for it shows what it gave where the course was
made, with a line that says so. Run All goes on.

Only a cell that stands as the course brought it is replayed: it fails for the machine's sake. A learner's own code is
left alone. What is shown are the outputs that the repository's notebook stores, which its tests hold.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from IPython.display import display

from minirt.notebook.catalogue import Strings
from minirt.notebook.markup import esc
from minirt.notebook.normal import source

_NAME = "_minirt_replay"
# How a cell is carried out: its last expression shows itself, and an error is answered.
_FRAME = f"try:\n pass\nexcept Exception as _minirt_error:\n {_NAME}.play(_minirt_error)"


class Replay:
    """The cells of one notebook; `visit` is called by IPython with each cell's tree (`ast_transformers`)."""

    def __init__(self, text: Strings, notebook: Path) -> None:
        self._text, self._now = text, ""
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        self._outputs = {source(cell).strip(): cell["outputs"] for cell in cells if cell["cell_type"] == "code"}

    def install(self, shell: Any) -> None:
        """From the next cell of this kernel on. `shell` is IPython's InteractiveShell."""
        for other in [each for each in shell.ast_transformers if isinstance(each, Replay)]:
            shell.ast_transformers.remove(other)
        shell.ast_transformers.append(self)
        shell.events.register("pre_run_cell", self.begins)
        shell.user_ns[_NAME] = self

    def begins(self, info: Any) -> None:
        """A cell is about to run: IPython's event."""
        self._now = str(info.raw_cell).strip()

    def visit(self, tree: ast.Module) -> ast.Module:
        """The cell in its frame, where it is one of ours."""
        if self._now not in self._outputs or not tree.body:
            return tree
        frame = ast.parse(_FRAME)
        body, last = list(tree.body), tree.body[-1]
        if isinstance(last, ast.Expr):
            show = ast.Attribute(ast.Name(_NAME, ast.Load()), "show", ast.Load())
            body[-1] = ast.Expr(ast.Call(show, [last.value], []))
        (framed,) = frame.body
        assert isinstance(framed, ast.Try)
        framed.body = body
        return ast.fix_missing_locations(ast.copy_location(frame, tree) if hasattr(tree, "lineno") else frame)

    @staticmethod
    def show(value: Any) -> None:
        """As a cell shows its last value."""
        if value is not None:
            display(value)  # type: ignore[no-untyped-call]

    def play(self, error: Exception) -> None:
        """Say why, and show what is stored."""
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        line = self._text("replay.shown", error=reason)
        note = f'<p style="background:#fff3cd;color:#533f03;padding:4px 8px">{esc(line)}</p>'
        display({"text/plain": line, "text/html": note}, raw=True)  # type: ignore[no-untyped-call]
        for output in self._outputs[self._now]:
            if output["output_type"] == "stream":
                print("".join(output["text"]), end="")
            elif "data" in output:
                data = {kind: "".join(part) for kind, part in output["data"].items()}
                display(data, raw=True)  # type: ignore[no-untyped-call]
