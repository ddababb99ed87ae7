"""The chapters as they lie in the repository, and what makes, copies and saves them."""

from __future__ import annotations

import copy
import json
import re
import string
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import pytest

from minirt.errors import InvalidInput
from minirt.notebook import flow, normal
from minirt.notebook.catalogue import Strings, languages
from minirt.notebook.markup import VIEW, esc, image
from minirt.trace import Event

FOLDER = Path(__file__).parent.parent / "notebooks"
CHAPTERS = sorted([*FOLDER.glob("[0-9][0-9]-*.ipynb"), *FOLDER.glob("ko/[0-9][0-9]-*.ipynb")])
# The course's files, those still to come among them: a chapter's links may name one before it is there.
NAMES = (
    "00-first-run", "01-why-docker", "02-what-is-docker", "03-images-and-containers", "04-docker-run",
    "05-what-an-image-contains", "06-from-image-to-container", "07-a-container-by-hand",
)  # fmt: skip


def called(path: Path) -> str:
    return f"{path.stem} {path.parent.name}"


HOSTILE = "<script>alert(1)</script>&\"'\0\x1b[31m"


def read(path: Path) -> dict[str, Any]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(notebook, dict)
    return notebook


@pytest.mark.parametrize("path", CHAPTERS, ids=called)
class TestStoredForm:
    def test_is_executed_and_a_fixed_point(self, path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        again = copy.deepcopy(notebook)
        normal.normalise(again)
        assert again == notebook

    def test_cells_keep_the_rules(self, path: Path) -> None:
        cells = read(path)["cells"]
        assert "".join(cells[0]["source"]).startswith("# ")
        headings = [
            line for c in cells if c["cell_type"] == "markdown" for line in c["source"] if line.startswith("# ")
        ]
        assert len(headings) == 1
        ids = [cell["id"] for cell in cells]
        assert len(set(ids)) == len(ids)
        for before, cell in zip(cells, cells[1:], strict=False):
            assert re.fullmatch("[a-z]+(-[a-z]+)*", cell["id"])
            if cell["cell_type"] == "code":
                assert before["cell_type"] == "markdown", f"{cell['id']} has no sentence before it"
                assert len(cell["source"]) <= 15
                assert not re.search(r"with Output\(|clear_output|display_id", "".join(cell["source"]))

    def test_holds_no_dead_buttons_and_no_errors(self, path: Path) -> None:
        notebook = read(path)
        assert VIEW not in json.dumps(notebook) and "widgets" not in notebook["metadata"]
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
        assert outputs and not any(output["output_type"] == "error" for output in outputs)
        for output in outputs:
            assert not re.search("/tmp/|/home/|/root/", json.dumps(output)), "a path of one machine"


@pytest.mark.parametrize("path", CHAPTERS, ids=called)
def test_the_line_under_the_title_leads_on(path: Path) -> None:
    """Minutes and level; the chapters before and after, all chapters, and the same page in the other language."""
    assert path.stem in NAMES
    title, promise, line = "".join(read(path)["cells"][0]["source"]).split("\n\n")
    assert re.match(r"# \d\d · ", title) and promise
    assert re.match(r"\*\*\d+분 · " if path.parent.name == "ko" else r"\*\*\d+ minutes · ", line)
    links = re.findall(r"\[([^]]+)\]\(([^)]+)\)", line)
    at = NAMES.index(path.stem)
    around = [name for name in (*NAMES[max(0, at - 1) : at], *NAMES[at + 1 : at + 2])]
    other = ("English", f"../{path.name}") if path.parent.name == "ko" else ("한국어", f"ko/{path.name}")
    assert [target for _, target in links] == [*(f"{name}.ipynb" for name in around), "index.ipynb", other[1]]
    assert links[-1] == other and (path.parent / other[1]).is_file()
    for words, target in links[:-2]:
        assert words.startswith(f"{target[:2]} · ")


@pytest.mark.parametrize("path", [path for path in CHAPTERS if path.name.startswith("04-")], ids=called)
def test_chapter_04_has_the_whole_template(path: Path) -> None:
    ids = {cell["id"] for cell in read(path)["cells"]}
    rounds = {
        f"{n}-{part}" for n in ("first", "second", "third") for part in ("predict", "run", "call", "explain", "inside")
    }
    rest = {"title", "objectives", "begin", "map", "break-run", "stop-run", "exercise", "exercise-hints", "quiz"}
    assert not (rounds | rest | {"today", "recap", "cleanup", "next"}) - ids


@pytest.mark.parametrize("lang", languages())
def test_every_language_has_the_same_texts(lang: str) -> None:
    def keys(table: Any, path: str = "") -> set[str]:
        if isinstance(table, dict):
            return {key for name, value in table.items() for key in keys(value, f"{path}.{name}")}
        return {path} | ({f"{path}[{len(table)}]"} if isinstance(table, list) else set())

    assert keys(Strings(lang)._all) == keys(Strings("en")._all)

    def fields(table: Any) -> list[Any]:
        """What is not words, in order: fields of texts, and the verdict of each option of a quiz."""
        if isinstance(table, dict | list):
            parts = [table[key] for key in sorted(table)] if isinstance(table, dict) else table
            return [fields(part) for part in parts]
        if not isinstance(table, str):
            return [table]
        return sorted({field for _, field, *_ in string.Formatter().parse(table) if field is not None})

    assert fields(Strings(lang)._all) == fields(Strings("en")._all)


def test_catalogue_refuses_what_is_not_there() -> None:
    with pytest.raises(InvalidInput, match="no text for 'flow.nowhere'"):
        Strings()("flow.nowhere")
    with pytest.raises(InvalidInput, match="no course in 'xx': there is en"):
        Strings("xx")


def test_text_cannot_become_markup() -> None:
    assert esc(HOSTILE) == "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;\ufffd\ufffd[31m"
    assert esc(b"a\r\n\tb\xff") == "a\n\tb\ufffd"
    assert "<script" not in image("<svg/>", HOSTILE)


def _flow(*events: tuple[str, str, dict[str, Any]], error: str = "") -> flow.Flow:
    return flow.fold([Event(10 + n, *event) for n, event in enumerate(events)], 10.0, Strings(), error)


def test_map_tells_a_first_run_from_a_cached_and_a_failed_one() -> None:
    asked, missing, found = (
        ("client", "request", {"method": "POST", "path": "/containers/create"}),
        ("cache", "look-up", {"image": "x", "found": False}),
        ("cache", "look-up", {"image": "x", "found": True}),
    )
    exchange = ("registry", "exchange", {"method": "GET", "url": HOSTILE, "status": 200})
    ran = [
        ("container", "create", {}),
        ("container", "start", {"pid": 7}),
        ("container", "exit", {"exit_code": HOSTILE}),
    ]
    first = _flow(asked, missing, exchange, ("cache", "stored", {}), ("image", "unpacked", {}), found, *ran)
    assert [first.step(n) for n in range(1, 5)] == ["done"] * 4 and first.found is False
    assert {"ask", "keep", "files"} <= first.walked and "yes" not in first.walked
    second = _flow(asked, found, *ran)
    assert [second.step(n) for n in range(1, 5)] == ["done", "done", "skipped", "done"]
    assert second.walked == {"request", "look-up", "yes", "create", "files"}
    failed = _flow(asked, missing, exchange, error=HOSTILE)
    assert [failed.step(n) for n in range(1, 5)] == ["done", "done", "failed", "idle"]
    assert failed.box["registry"] == "failed" and failed.box["container"] == "idle"
    for state in (first, second, failed):
        drawing = ElementTree.fromstring(flow.draw(state, Strings(), ("cache",)))
        assert not [e for e in drawing.iter() if "script" in e.tag]
        assert all(line in drawing.attrib["aria-label"] for line in flow.steps(state, Strings()))


def test_a_learners_save_keeps_the_work_and_drops_dead_buttons() -> None:
    output = {"output_type": "execute_result", "data": {VIEW: {"model_id": "1"}, "text/plain": "x"}, "metadata": {}}
    content = {
        "metadata": {"widgets": {"state": {}}, "mine": 1},
        "cells": [{"cell_type": "code", "source": "1", "metadata": {}, "execution_count": 7, "outputs": [output]}],
    }
    normal.pre_save(model={"type": "notebook", "content": content}, path="x", contents_manager=None)
    assert content["metadata"] == {"mine": 1}
    assert content["cells"][0]["outputs"][0]["data"] == {"text/plain": "x"}
    assert content["cells"][0]["execution_count"] == 7
    normal.pre_save(model={"type": "file", "content": "text"}, path="x", contents_manager=None)
