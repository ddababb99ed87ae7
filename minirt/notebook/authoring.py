"""`python -m minirt.notebook.authoring NOTEBOOK…`: execute notebooks and save them in the repository's form.

Authors write in JupyterLab; this makes what they wrote ready to commit. Each runs in a fresh kernel with a store of its
own. With `--check` nothing is written, and a notebook whose outputs are not what it stores fails.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from minirt.notebook.normal import normalise


def execute(path: Path) -> tuple[str, str]:
    """The notebook's text as it lies and as it comes out, both as JSON. Raises nbclient's CellExecutionError."""
    stored = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(stored, as_version=4)  # type: ignore[no-untyped-call]
    fresh = copy.deepcopy(notebook)
    with tempfile.TemporaryDirectory(prefix="minirt-course-", ignore_cleanup_errors=True) as folder:
        os.environ["MINIRT_COURSE"] = folder
        try:
            client = NotebookClient(fresh, timeout=120, kernel_name="python3", store_widget_state=False)
            client.execute(cwd=str(path.parent))
        finally:
            del os.environ["MINIRT_COURSE"]
    normalise(fresh)
    nbformat.validate(fresh)
    return stored, nbformat.writes(fresh) + "\n"  # type: ignore[no-untyped-call]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minirt.notebook.authoring", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    parser.add_argument("notebooks", nargs="+", type=Path)
    options = parser.parse_args(argv)
    failed = 0
    for path in options.notebooks:
        before, after = execute(path)
        same = before == after
        print(f"{path}: {'unchanged' if same else 'differs' if options.check else 'written'}")
        if options.check:
            failed |= not same
        elif not same:
            path.write_text(after, encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
