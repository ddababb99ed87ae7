"""`minirt lab`: JupyterLab on a learner's own copy of the course.

The copy's outputs are cleared, for they would spoil the predictions. Work that is there already is kept; `--reset 04`
puts it aside under a name with the time and makes a new copy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from minirt.errors import InvalidInput, NotFound
from minirt.notebook import normal

_FIRST = "04"  # the chapter that opens


def chapters(lang: str = "en") -> dict[str, Path]:
    """The course's notebooks by chapter number, as they came with this checkout. Raises NotFound when they did not."""
    top = Path(__file__).resolve().parents[2] / "notebooks"
    found = {path.name[:2]: path for path in sorted((top if lang == "en" else top / lang).glob("[0-9][0-9]-*.ipynb"))}
    if not found and lang != "en" and any(top.glob("[0-9][0-9]-*.ipynb")):
        raise NotFound(f"the course is not there in {lang!r} yet: leave out --lang for English")
    if not found:
        raise NotFound(
            f"no notebooks in {top}: install minirt from a clone of its repository, `pip install -e .`,"
            " so that the course lies beside the package"
        )
    return found


def copy(source: Path, target: Path) -> bool:
    """Make the learner's copy, outputs cleared; False if there is one, which is left as it is."""
    if target.exists():
        return False
    notebook = json.loads(source.read_text(encoding="utf-8"))
    normal.clear(notebook)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    aside.replace(target)
    return True


def put_aside(target: Path) -> Path | None:
    """Rename a learner's notebook so that a new copy can take its place; where it is now, None if there was none."""
    if not target.exists():
        return None
    kept = target.with_name(f"{target.stem}.{time.strftime('%Y-%m-%d-%H%M%S')}{target.suffix}")
    return target.rename(kept)


def main(argv: list[str] | None = None) -> int:
    """Copy, then become JupyterLab until it is closed. Raises InvalidInput, NotFound."""
    parser = argparse.ArgumentParser(prog="minirt lab", description="Open the course in JupyterLab.")
    parser.add_argument("--folder", type=Path, default=Path.home() / "minirt-course", help="your copy (%(default)s)")
    parser.add_argument("--lang", default="en", help="language of the course (%(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument("--port", type=int, help="port to listen on (Jupyter's choice)")
    parser.add_argument(
        "--reset", metavar="NN", action="append", default=[], help="a new copy of a chapter; the old is kept"
    )
    options = parser.parse_args(argv)
    folder = options.folder.absolute()
    names = chapters(options.lang)
    if unknown := sorted(set(options.reset) - set(names)):
        raise InvalidInput(f"no chapter {unknown[0]!r}: there is {', '.join(names)}")
    targets = {
        number: (folder if options.lang == "en" else folder / options.lang) / path.name
        for number, path in names.items()
    }
    for number, source in names.items():
        if number in options.reset and (kept := put_aside(targets[number])):
            print(f"kept: {kept}")
        if copy(source, targets[number]):
            print(f"new: {targets[number]}")
    first = targets.get(_FIRST, next(iter(targets.values())))
    return _lab(folder, first, options.port, options.no_browser)


def _lab(folder: Path, first: Path, port: int | None, no_browser: bool) -> int:
    from jupyterlab.labapp import LabApp

    words = [
        f"--ServerApp.root_dir={folder}",
        f"--LabApp.default_url=/lab/tree/{first.relative_to(folder).as_posix()}",
        "--FileContentsManager.pre_save_hook=minirt.notebook.normal.pre_save",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.news_url=None",
    ]
    words += [f"--ServerApp.port={port}"] if port else []
    words += ["--no-browser"] if no_browser else []
    words += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    LabApp.launch_instance(argv=words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
