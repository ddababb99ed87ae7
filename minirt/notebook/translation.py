"""`python -m minirt.notebook.translation NN…`: write `notebooks/ko/NN-name.ipynb` from the English notebook and its
Korean prose. `index` names the page that lists the chapters.

The prose lives in `notebooks/ko/NN-name.md`, one entry a Markdown cell, headed by the cell's id and the hashes of the
English cell it translates and of the code cell after it:

    <!-- cell: objectives en: 1f2e3d4c5b6a code: 0a1b2c3d4e5f -->

An entry whose hashes are not those of today's English notebook is stale, a cell without one is missing, one without a
cell is orphaned: each is an error. Whoever has brought an entry up to date says so with `--accept CELL` (or `all`),
which writes today's hashes. Code cells are taken as they are but for one token, `begin("NN", lang="ko")` (of the index:
`progress(lang="ko")`). With `--check` nothing is written, and a notebook that differs from what would be written in
more than its outputs has drifted.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minirt.errors import InvalidInput
from minirt.notebook.normal import drift, source

_HEAD = re.compile(r"^<!-- cell: (?P<cell>[a-z0-9-]+)(?: en: (?P<en>[0-9a-f]*))?(?: code: (?P<code>[0-9a-f]*))? -->$")
_TOKEN = re.compile(r'\b(begin\("\d\d"|progress\()\)')


@dataclass
class Entry:
    """One cell's prose, and the hashes of the English text and of the code after it ("" where there is none)."""

    cell: str
    en: str
    code: str
    text: str


def read(path: Path) -> list[Entry]:
    """The entries of a prose file, in its order. Raises InvalidInput for text before the first, or a cell twice."""
    entries: list[Entry] = []
    lines: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if head := _HEAD.match(line):
            entries.append(Entry(head["cell"], head["en"] or "", head["code"] or "", ""))
            lines = []
        elif not entries and line.strip():
            raise InvalidInput(f"{path.name}:{number}: text before the first cell")
        lines += [] if head else [line]
        if entries:
            entries[-1].text = "\n".join(lines).strip()
    names = [entry.cell for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInput(f"{path.name}: cell {twice[0]} is there twice")
    return entries


def write(path: Path, entries: list[Entry]) -> None:
    """The file of these entries. Raises InvalidInput for a text that holds the head of an entry."""
    for entry in entries:
        if any(_HEAD.match(line) for line in entry.text.split("\n")):
            raise InvalidInput(f"cell {entry.cell}: its text holds the head of another entry")
    parts = [f"<!-- cell: {e.cell} en: {e.en} code: {e.code} -->\n{e.text}\n" for e in entries]
    path.write_text("\n".join(parts), encoding="utf-8")


def hashes(notebook: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Of each Markdown cell, in order: the hash of its text and of the code cell right after it ("" where none is)."""
    cells = notebook["cells"]
    found = {}
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if cell["cell_type"] == "markdown":
            code = _hash(source(after)) if after and after["cell_type"] == "code" else ""
            found[cell["id"]] = _hash(source(cell)), code
    return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def problems(notebook: dict[str, Any], entries: list[Entry]) -> list[str]:
    """What keeps these entries from being the notebook's translation, a line each; empty when it is whole."""
    wanted, lines = hashes(notebook), []
    there = {entry.cell: entry for entry in entries}
    lines += [f"missing: {cell}" for cell in wanted if cell not in there]
    lines += [f"orphaned: {cell}" for cell in there if cell not in wanted]
    for cell, (text, code) in wanted.items():
        if entry := there.get(cell):
            what = [name for name, old, new in (("text", entry.en, text), ("code", entry.code, code)) if old != new]
            lines += [f"stale: {cell} (its English {' and '.join(what)} changed)"] * bool(what)
            lines += [f"empty: {cell}"] * (not entry.text)
    return lines


def translated(notebook: dict[str, Any], entries: list[Entry], lang: str) -> dict[str, Any]:
    """The notebook with these entries as its prose; outputs as they were."""
    texts, made = {entry.cell: entry.text for entry in entries}, copy.deepcopy(notebook)
    for cell in made["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = texts[cell["id"]].splitlines(keepends=True)
        else:
            cell["source"] = _TOKEN.sub(functools.partial(_speaking, lang), source(cell)).splitlines(keepends=True)
    return made


def _speaking(lang: str, found: re.Match[str]) -> str:
    return f'{found[1]}{"" if found[1].endswith("(") else ", "}lang="{lang}")'


def main(argv: list[str] | None = None) -> int:
    """Check, and write the notebooks; 1 where an entry is stale, missing or orphaned, or a notebook has drifted."""
    parser = argparse.ArgumentParser(prog="python -m minirt.notebook.translation", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("notebooks"), help="the course (%(default)s)")
    parser.add_argument("--lang", default="ko")
    parser.add_argument("--accept", action="append", default=[], metavar="CELL", help="write today's hashes for it")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("chapters", nargs="*", help="numbers, or index; all when not given")
    options = parser.parse_args(argv)
    try:
        lines = _course(options)
    except InvalidInput as error:
        lines = [str(error)]
    for line in lines:
        print(line, file=sys.stderr)
    return int(bool(lines))


def notebooks(folder: Path) -> dict[str, Path]:
    """The English notebooks by what names them here: the chapter's number, or `index`."""
    paths = [*folder.glob("[0-9][0-9]-*.ipynb"), *folder.glob("index.ipynb")]
    return {path.stem[:2] if path.stem[:2].isdigit() else path.stem: path for path in sorted(paths)}


def _course(options: argparse.Namespace) -> list[str]:
    """Do what was asked for; what is wrong, a line each. Raises InvalidInput."""
    there, beside = notebooks(options.folder), options.folder / options.lang
    if unknown := sorted(set(options.chapters) - set(there)):
        raise InvalidInput(f"no chapter {unknown[0]!r} in {options.folder}: there is {', '.join(there) or 'none'}")
    lines, accepted = [], set()
    for path in [path for name, path in there.items() if name in (options.chapters or there)]:
        target, prose = beside / path.name, beside / f"{path.stem}.md"
        notebook = json.loads(path.read_text(encoding="utf-8"))
        entries = read(prose) if prose.exists() else []
        accepted |= {entry.cell for entry in entries} | {"all"}
        if options.accept and entries:
            _accept(notebook, entries, options.accept)
            write(prose, entries)
        wrong = problems(notebook, entries)
        if not wrong:
            made = translated(notebook, entries, options.lang)
            if not options.check:
                _execute(target, made)
            elif not target.exists():
                wrong = [f"not written yet: {target.name}"]
            else:
                wrong = drift(made, json.loads(target.read_text(encoding="utf-8")))
        lines += [f"{prose}: {line}" for line in wrong]
    lines += [f"no cell {cell!r} to accept" for cell in options.accept if cell not in accepted]
    known = {path.stem for path in there.values()}
    strays = [path for path in sorted(beside.glob("*")) if path.suffix in (".md", ".ipynb") and path.stem not in known]
    return lines + [f"{path}: orphaned: no English notebook of this name" for path in strays]


def _accept(notebook: dict[str, Any], entries: list[Entry], cells: list[str]) -> None:
    today = hashes(notebook)
    for entry in entries:
        if entry.cell in today and (entry.cell in cells or "all" in cells):
            entry.en, entry.code = today[entry.cell]
    order = list(today)
    entries.sort(key=lambda entry: order.index(entry.cell) if entry.cell in today else len(order))


def _execute(target: Path, notebook: dict[str, Any]) -> None:
    """Write it and run it, as authoring does; a notebook that is as it was is not written."""
    from minirt.notebook import authoring

    before = target.read_text(encoding="utf-8") if target.exists() else ""
    target.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    try:
        after = authoring.execute(target)[1]
    except BaseException:
        target.write_text(before, encoding="utf-8") if before else target.unlink()
        raise
    target.write_text(after, encoding="utf-8")
    print(f"{target}: {'unchanged' if after == before else 'written'}")


if __name__ == "__main__":
    sys.exit(main())
