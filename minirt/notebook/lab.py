"""`minirt lab`: JupyterLab on a learner's own copy of the course, opened at its index page.

The chapters' outputs are cleared in the copy, for they would spoil the predictions. A chapter that is there already is
kept; `--reset 04` puts it aside under a name with the time and makes a new one. The index and the pages around the
chapters are renewed, and what differed from ours is put aside too. Both languages are copied, so that a page's link to
the other one leads somewhere.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from minirt.errors import InvalidInput, NotFound
from minirt.notebook import ability, normal, record
from minirt.notebook.catalogue import Strings, languages
from minirt.notebook.status import STATIC

TOP = Path(__file__).resolve().parents[2] / "notebooks"


def chapters(lang: str = "en") -> dict[str, Path]:
    """The course's notebooks by chapter number, as they came with this checkout. Raises NotFound when they did not."""
    found = {path.name[:2]: path for path in sorted(within(TOP, lang).glob("[0-9][0-9]-*.ipynb"))}
    if not found and lang != "en" and any(TOP.glob("[0-9][0-9]-*.ipynb")):
        raise NotFound(f"the course is not there in {lang!r} yet: leave out --lang for English")
    if not found:
        raise NotFound(
            f"no notebooks in {TOP}: install minirt from a clone of its repository, `pip install -e .`,"
            " so that the course lies beside the package"
        )
    return found


def within(folder: Path, lang: str) -> Path:
    """Where a copy of the course has this language."""
    return folder if lang == "en" else folder / lang


def title(path: Path) -> str:
    """A notebook's heading, plain text."""
    return normal.source(_read(path)["cells"][0]).partition("\n")[0].removeprefix("# ").replace("`", "")


def copy(source: Path, target: Path) -> bool:
    """Make the learner's copy, outputs cleared; False if there is one, which is left as it is."""
    if target.exists():
        return False
    notebook = _read(source)
    normal.clear(notebook)
    _write(target, _text(notebook))
    return True


def reset(number: str, lang: str, folder: Path) -> Path | None:
    """Put the chapter's notebook in `folder`, and what is solved of it, aside and make a new copy; where the old one is
    now, None if there was none. Raises NotFound, OSError."""
    from minirt.notebook.chapter import course

    source = chapters(lang)[number]
    kept = record.aside(folder / source.name)
    copy(source, folder / source.name)
    record.put_aside(course(), number)
    return kept


def renew(target: Path, text: str) -> Path | None:
    """Have `text` in a file of ours; where another text that stood there is now, None if there was none."""
    if target.exists() and target.read_text(encoding="utf-8", errors="replace") == text:
        return None
    kept = record.aside(target)
    _write(target, text)
    return kept


def lay(folder: Path, lang: str) -> list[Path]:
    """Copy what `folder` has not, index and pages among it; what was put aside. Raises NotFound, OSError."""
    from minirt.notebook import overview

    top, mine, kept = within(TOP, lang), within(folder, lang), []
    for source in chapters(lang).values():
        copy(source, mine / source.name)
    for page in sorted(top.glob("pages/*.md")):
        kept.append(renew(mine / "pages" / page.name, page.read_text(encoding="utf-8")))
    for source in top.glob("index.ipynb"):
        notebook, target = _read(source), mine / source.name
        if not _ours(notebook, target):
            kept.append(record.aside(target))
        normal.clear(notebook)
        overview.filled(notebook, Strings(lang))
        _write(target, _text(notebook))
    return [path for path in kept if path]


def _ours(notebook: dict[str, Any], target: Path) -> bool:
    """Whether the learner's page is ours in all but its outputs."""
    try:
        return not normal.drift(notebook, _read(target))
    except (OSError, ValueError, LookupError, TypeError):  # not there, or no notebook
        return False


def _read(path: Path) -> dict[str, Any]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(notebook, dict)
    return notebook


def _text(notebook: dict[str, Any]) -> str:
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def _write(target: Path, text: str) -> None:
    """The whole file or none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Say what this machine can show, copy, then be JupyterLab until it is closed. Raises InvalidInput, NotFound."""
    parser = argparse.ArgumentParser(prog="minirt lab", description="Open the course in JupyterLab.")
    parser.add_argument("--folder", type=Path, default=Path.home() / "minirt-course", help="your copy (%(default)s)")
    parser.add_argument("--lang", default="en", help="language of the course (%(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument("--port", type=int, help="port to listen on (Jupyter's choice)")
    parser.add_argument("--lay", action="store_true", help="only make your copy: another program opens it")
    parser.add_argument(
        "--reset", metavar="NN", action="append", default=[], help="a new copy of a chapter; the old is kept"
    )
    options = parser.parse_args(argv)
    folder, names = options.folder.absolute(), chapters(options.lang)
    if unknown := sorted(set(options.reset) - set(names)):
        raise InvalidInput(f"no chapter {unknown[0]!r}: there is {', '.join(names)}")
    text, mine = Strings(options.lang), within(folder, options.lang)
    print(ability.line(text))
    try:
        kept = [reset(number, options.lang, mine) for number in options.reset]
        for lang in languages():
            if any(within(TOP, lang).glob("[0-9][0-9]-*.ipynb")):
                kept += lay(folder, lang)
    except OSError as error:
        raise InvalidInput(f"cannot lay the course in {folder} (see --folder): {error.strerror or error}") from error
    for path in filter(None, kept):
        print(text("lab.kept", path=path))
    if options.lay:
        return 0
    first = mine / "index.ipynb"
    first = first if first.exists() else mine / next(iter(names.values())).name
    return _lab(folder, first, options.port, options.no_browser)


def _lab(folder: Path, first: Path, port: int | None, no_browser: bool) -> int:
    from jupyterlab.labapp import LabApp

    # Pages open as they are read, not as they are written, and nobody is asked about news: settings beside the user's
    # own, which go before them.
    paths = [os.environ.get("JUPYTER_CONFIG_PATH", ""), str(STATIC / "jupyter")]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, paths))
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
