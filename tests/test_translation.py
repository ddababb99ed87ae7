"""The translation tool: whole prose passes, prose that lags behind is named, and the code stays the same."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirt.errors import InvalidInput
from minirt.notebook import normal, translation
from minirt.notebook.translation import Entry

FOLDER = Path(__file__).parent.parent / "notebooks"
STORED = translation.notebooks(FOLDER)


def markdown(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}


def code(name: str, text: str) -> dict[str, Any]:
    cell = markdown(name, text)
    return cell | {"cell_type": "code", "execution_count": None, "outputs": []}


def notebook(*cells: dict[str, Any]) -> dict[str, Any]:
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return {"cells": list(cells), "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def english() -> dict[str, Any]:
    return notebook(
        markdown("title", "# Title\n\nFirst."), markdown("sum-intro", "One and one."), code("sum", "1 + 1"),
        markdown("end", "The end."),
    )  # fmt: skip


@pytest.fixture
def korean(english: dict[str, Any]) -> list[Entry]:
    return [Entry(cell, *hashes, f"글 {cell}") for cell, hashes in translation.hashes(english).items()]


def test_prose_that_is_up_to_date_has_no_problems(english: dict[str, Any], korean: list[Entry]) -> None:
    assert translation.problems(english, korean) == []
    assert [entry.code for entry in korean if entry.code] == [korean[1].code]


def test_stale_text_and_code_are_told_apart(english: dict[str, Any], korean: list[Entry]) -> None:
    english["cells"][0]["source"] = ["# Another"]
    english["cells"][2]["source"] = ["1 + 2"]
    assert translation.problems(english, korean) == [
        "stale: title (its English text changed)",
        "stale: sum-intro (its English code changed)",
    ]
    english["cells"][1]["source"] = ["One and two."]
    assert translation.problems(english, korean)[1] == "stale: sum-intro (its English text and code changed)"


def test_missing_orphaned_and_empty_are_named(english: dict[str, Any], korean: list[Entry]) -> None:
    assert translation.problems(english, korean[1:]) == ["missing: title"]
    assert translation.problems(english, [*korean, Entry("gone", "", "", "글")]) == ["orphaned: gone"]
    korean[2].text = ""
    assert translation.problems(english, korean) == ["empty: end"]


def test_a_prose_file_is_refused_where_it_cannot_be_read_in_one_way(tmp_path: Path) -> None:
    path = tmp_path / "04-x.md"
    path.write_text("\n<!-- cell: title -->\n글\n<!-- cell: title -->\n글\n")
    with pytest.raises(InvalidInput, match="04-x.md: cell title is there twice"):
        translation.read(path)
    path.write_text("\n글\n<!-- cell: title -->\n")
    with pytest.raises(InvalidInput, match="04-x.md:2: text before the first cell"):
        translation.read(path)
    with pytest.raises(InvalidInput, match="cell title: its text holds the head of another entry"):
        translation.write(path, [Entry("title", "", "", "글\n<!-- cell: end en: 0a code:  -->")])


HASHES = st.text("0123456789abcdef", max_size=12)
# A prose file is text: its lines end as this system's do.
TEXTS = st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])).map(str.strip)
ENTRIES = st.lists(
    st.builds(Entry, st.from_regex("[a-z]+(-[a-z]+)*", fullmatch=True), HASHES, HASHES, TEXTS),
    unique_by=lambda entry: entry.cell,
)


@given(ENTRIES)
def test_what_was_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, entries: list[Entry]) -> None:
    path = tmp_path_factory.getbasetemp() / "prose.md"
    translation.write(path, entries)
    assert translation.read(path) == entries
    before = path.read_bytes()
    translation.write(path, translation.read(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "spoken"),
    [
        ('chapter = begin("04")\n1', 'chapter = begin("04", lang="ko")\n1'),
        ("progress()", 'progress(lang="ko")'),
        ('begin(number)\nwe_begin("04")\nbegin("4")\nprogress(1)', None),
    ],
)
def test_code_is_the_same_but_for_one_token(line: str, spoken: str | None) -> None:
    english = notebook(markdown("a", "A"), code("b", line))
    made = translation.translated(english, [Entry("a", "", "", "가")], "ko")
    assert "".join(made["cells"][1]["source"]) == (spoken or line)
    assert made["cells"][0]["source"] == ["가"]
    assert "".join(english["cells"][1]["source"]) == line, "the English notebook was changed"


def test_drift_is_found_in_prose_code_and_order_and_not_in_outputs(
    english: dict[str, Any], korean: list[Entry]
) -> None:
    wanted = translation.translated(english, korean, "ko")
    stored = copy.deepcopy(wanted)
    stored["cells"][2] |= {"execution_count": 1, "outputs": [{"output_type": "stream", "name": "stdout", "text": "2"}]}
    assert normal.drift(wanted, stored) == []
    stored["cells"][2]["source"] = ["1 + 3"]
    stored["cells"][0]["source"] = ["by hand"]
    del stored["cells"][3]
    stored["cells"].append(markdown("extra", "x"))
    named = [line.split()[1] for line in normal.drift(wanted, stored)]
    assert named == ["title", "sum", "end", "extra"]
    turned = {**wanted, "cells": wanted["cells"][::-1]}
    assert normal.drift(wanted, turned) == ["drifted: its cells are in another order"]


def test_the_command_writes_executes_and_checks(
    tmp_path: Path, english: dict[str, Any], korean: list[Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    def tool(*words: str) -> tuple[int, str, str]:
        code = translation.main([f"--folder={tmp_path}", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    (tmp_path / "ko").mkdir()
    (tmp_path / "04-x.ipynb").write_text(json.dumps(english))
    prose, target = tmp_path / "ko" / "04-x.md", tmp_path / "ko" / "04-x.ipynb"
    code, _, err = tool("04")
    assert code == 1 and f"{prose}: missing: title\n" in err and not target.exists()
    translation.write(prose, [Entry(entry.cell, "", "", entry.text) for entry in korean[::-1]])
    code, _, err = tool("--accept=title", "--accept=nowhere", "04")
    assert code == 1 and "stale: title" not in err and "stale: sum-intro" in err
    assert "no cell 'nowhere' to accept" in err and not target.exists()
    assert tool("--accept=all", "--check") == (1, "", f"{prose}: not written yet: 04-x.ipynb\n")
    assert translation.read(prose) == korean  # today's hashes, in the order of the notebook
    assert tool()[:2] == (0, f"{target}: written\n")
    made = json.loads(target.read_text())
    assert made["cells"][2]["outputs"][0]["data"]["text/plain"] == ["2"] and made["cells"][2]["execution_count"] == 1
    assert tool("--check") == (0, "", "")
    made["cells"][3]["source"] = ["by hand"]
    target.write_text(json.dumps(made))
    assert tool("--check") == (1, "", f"{prose}: drifted: end (write it again)\n")
    assert tool()[:2] == (0, f"{target}: written\n") and tool()[:2] == (0, f"{target}: unchanged\n")
    (tmp_path / "ko" / "05-gone.md").write_text("")
    assert "05-gone.md: orphaned: no English notebook" in tool("--check")[2]
    assert tool("99") == (1, "", f"no chapter '99' in {tmp_path}: there is 04\n")
    english["cells"][2]["source"] = ["1 / 0"]  # what does not run leaves the notebook as it was
    (tmp_path / "04-x.ipynb").write_text(json.dumps(english))
    before = target.read_text()
    with pytest.raises(Exception, match="division by zero"):
        tool("--accept=all", "04")
    assert target.read_text() == before


def test_the_course_is_translated_and_nothing_has_drifted(capsys: pytest.CaptureFixture[str]) -> None:
    code = translation.main([f"--folder={FOLDER}", "--check"])
    assert (code, capsys.readouterr().err) == (0, "")


@pytest.mark.parametrize("name", STORED)
def test_stored_code_is_byte_identical_but_for_the_token(name: str) -> None:
    """Said without the tool's own words: whoever reads both notebooks finds the same code."""

    def cells(path: Path) -> list[tuple[str, str]]:
        return [
            (cell["id"], normal.source(cell))
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code"
        ]

    ours, theirs = cells(STORED[name]), cells(FOLDER / "ko" / STORED[name].name)
    token = r'(?:, )?lang="ko"'
    assert [(cell, re.sub(token, "", text)) for cell, text in theirs] == ours
    assert sum(len(re.findall(token, text)) for _cell, text in theirs) == 1
