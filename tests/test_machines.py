"""Run All of every chapter on machines that give less: no namespaces but proot, and nothing at all.

No cell ends in an error. What the machine cannot do is shown as it was where the course was made, and says so.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pytest
import users
from peers import require
from test_rootless import CONFINE

from minirt.notebook.catalogue import Strings
from minirt.notebook.replay import Replay

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parent.parent / "notebooks"
CHAPTERS = sorted(path.relative_to(FOLDER) for path in FOLDER.glob("**/[0-9][0-9]-*.ipynb"))
SHOWN = {lang: Strings(lang)("replay.shown", error="\n").partition("\n")[2] for lang in ("en", "ko")}

# Executes the notebooks given, and prints for each: the cells that ended in an error, and those that were replayed.
RUN_ALL = f"""
import json, os, sys
import nbformat
from nbclient import NotebookClient
found = {{}}
for path in sys.argv[1:]:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True).execute(cwd=os.path.dirname(path))
    errors, replayed = {{}}, []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error":
                errors[cell["id"]] = "\\n".join(output["traceback"])[-1500:]
            elif any(words in output.get("data", {{}}).get("text/plain", "") for words in {list(SHOWN.values())!r}):
                replayed.append(cell["id"])
    found[path] = [errors, replayed]
print(json.dumps(found))
"""


@pytest.mark.parametrize("machine", ["proot", "refused"])
def test_run_all_goes_to_its_end(machine: str) -> None:
    if machine == "proot":
        require("proot")
    with users.plain_user(False) as user:
        tools = user.home / "tools"
        tools.mkdir()
        for name in ("sh", "env", "busybox"):
            (tools / name).symlink_to(require(name))
        subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", user.home], check=True)
        paths = [
            str(user.home / "notebooks" / path) for path in CHAPTERS if machine == "refused" or len(path.parts) == 1
        ]
        # Without the usual folders there is no proot; the interpreter's own stays.
        path = os.pathsep.join(
            [str(Path(user.interpreter).parent), str(tools) if machine == "refused" else os.environ["PATH"]]
        )
        words = ["env", f"PATH={path}", "MINIRT_DAEMON_IDLE=1", user.interpreter, "-c", RUN_ALL, *paths]
        result = user.run([user.interpreter, "-c", CONFINE, *words], timeout=800)
        found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert {path: errors for path, (errors, _) in found.items() if errors} == {}
    replayed = {os.path.relpath(path, user.home / "notebooks"): cells for path, (_, cells) in found.items()}
    if machine == "refused":
        assert "first-call" in replayed["04-docker-run.ipynb"] and "first-call" in replayed["ko/04-docker-run.ipynb"]
        assert "first-inside" not in replayed["05-what-an-image-contains.ipynb"], "an image can be looked at everywhere"
    else:
        assert replayed["04-docker-run.ipynb"] == [], "all of it runs without walls"


def test_only_what_the_course_brought_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    output = nbformat.v4.new_output("stream", name="stdout", text="<what it gave>\n")
    cells = [
        nbformat.v4.new_code_cell("x = 1\n1 / 0", outputs=[output]),
        nbformat.v4.new_code_cell("x + 41"),
        nbformat.v4.new_code_cell("%%sh\nexit 3", outputs=[output]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "one.ipynb")
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    for _ in range(2):  # a chapter may be begun again
        Replay(Strings(), tmp_path / "one.ipynb").install(shell)
    assert shell.run_cell("x = 1\n1 / 0").success and capsys.readouterr().out.count("<what it gave>") == 1
    assert shell.run_cell("x + 41").success and "42" in capsys.readouterr().out
    assert shell.run_cell("%%sh\nexit 3").success and "<what it gave>" in capsys.readouterr().out
    assert not shell.run_cell("x = 1\n1 / 0 # mine").success and "<what it gave>" not in capsys.readouterr().out
    assert shell.user_ns["x"] == 1
