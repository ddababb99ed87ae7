"""docs/lecture.md: each thing the lecture says has a cell where the learner sees it, in each language there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

TOP = Path(__file__).parent.parent
NOTEBOOKS = TOP / "notebooks"
# Of each section of the lecture: its title, how many things it says, how many pictures it has. Counted in the lecture,
# which does not lie here. One is a sentence, a step, a line of arrows, a heading of a list item that says something.
SECTIONS = {
    1: ("도커를 쓰는 이유", 5, 0),
    2: ("도커란?", 6, 1),
    3: ("도커 이미지와 도커 컨테이너의 정의", 8, 1),
    4: ("도커 사용 흐름", 9, 2),
    5: ("이미지가 포함하는 것", 7, 0),
    6: ("이미지로 컨테이너를 만드는 순서", 6, 4),
}
# The chapter that teaches a section.
CHAPTERS = {1: "01", 2: "02", 3: "03", 4: "04", 5: "05", 6: "06"}


class Row(NamedTuple):
    section: int
    title: str
    number: str
    words: str
    chapter: str
    cells: tuple[str, ...]


def rows() -> list[Row]:
    """The table's rows, in its order."""
    found = []
    for line in (TOP / "docs" / "lecture.md").read_text(encoding="utf-8").splitlines():
        parts = [part.strip() for part in line.strip("|").split("|")]
        if line.startswith("| ") and parts[0][:1].isdigit():
            section, _, title = parts[0].partition(" ")
            assert re.fullmatch("`[a-z-]+`(, `[a-z-]+`)*", parts[4]), line
            found.append(Row(int(section), title, parts[1], parts[2], parts[3], tuple(re.findall("`(.+?)`", parts[4]))))
    return found


def kinds(path: Path) -> dict[str, str]:
    """The cells of a notebook by id, each with its kind."""
    return {cell["id"]: cell["cell_type"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}


@pytest.mark.parametrize("section", SECTIONS)
def test_everything_the_section_says_has_a_row(section: int) -> None:
    title, said, pictures = SECTIONS[section]
    there = [row for row in rows() if row.section == section]
    numbers = [*(str(n) for n in range(1, said + 1)), *(f"picture {n}" for n in range(1, pictures + 1))]
    assert {row.number for row in there} == {*numbers}
    places = [numbers.index(row.number) for row in there]  # one that says several things has several rows
    assert places == sorted(places)
    assert {row.title for row in there} == {title} and {row.chapter for row in there} == {CHAPTERS[section]}


def test_rows_stand_in_the_lectures_order_and_in_words_of_their_own() -> None:
    table = rows()
    assert [row.section for row in table] == sorted(row.section for row in table)
    assert len({row.words for row in table}) == len(table) and all(len(row.words) > 12 for row in table)
    assert not [row for row in table if re.search("[가-힣]", row.words)], "a paraphrase, not the lecture's own sentence"


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.section}-{row.number}".replace(" ", "-"))
def test_the_cells_of_a_row_are_there(row: Row) -> None:
    books = [*NOTEBOOKS.glob(f"{row.chapter}-*.ipynb"), *NOTEBOOKS.glob(f"*/{row.chapter}-*.ipynb")]
    assert books, f"there is no chapter {row.chapter}"
    for path in books:
        cells = kinds(path)
        assert not [cell for cell in row.cells if cell not in cells], path
        assert "code" in {cells[cell] for cell in row.cells}, f"{path}: only said, and not shown"
