"""The pages around the chapters: the same in both languages, links that lead somewhere, commands that work, and error
lines that the program still says."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import require

from minirt.notebook import translation
from minirt.notebook.catalogue import Strings

TOP = Path(__file__).parent.parent
FOLDERS = {"en": TOP / "notebooks" / "pages", "ko": TOP / "notebooks" / "ko" / "pages"}
NAMES = ["cheat-sheet", "glossary", "teachers", "troubleshooting", "windows-and-macos"]
PAGES = [(lang, name) for lang in FOLDERS for name in NAMES]


def text(lang: str, name: str) -> str:
    return (FOLDERS[lang] / f"{name}.md").read_text(encoding="utf-8")


def code(page: str) -> list[str]:
    """Its blocks of code, without the option that says the language."""
    return [block.replace(" --lang ko", "") for block in re.findall(r"```\n(.*?)```", page, re.DOTALL)]


def rows(page: str) -> list[list[str]]:
    lines = [line for line in page.split("\n") if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_both_languages_have_the_same_pages() -> None:
    for folder in FOLDERS.values():
        assert sorted(path.name for path in folder.iterdir()) == [f"{name}.md" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_have_the_same_form(name: str) -> None:
    english, korean = text("en", name), text("ko", name)
    assert [h.count("#") for h in re.findall("^#+ ", english, re.M)] == [
        h.count("#") for h in re.findall("^#+ ", korean, re.M)
    ]
    assert [len(row) for row in rows(english)] == [len(row) for row in rows(korean)]
    assert code(english) == code(korean)


@pytest.mark.parametrize(("lang", "name"), PAGES)
def test_links_lead_somewhere(lang: str, name: str) -> None:
    page = text(lang, name)
    assert page.startswith("# ") and len(re.findall("^# ", page, re.M)) == 1
    links = re.findall(r"\]\(([^)]+)\)", page)
    other = f"../../pages/{name}.md" if lang == "ko" else f"../ko/pages/{name}.md"
    assert {"../index.ipynb", other} <= {*re.findall(r"\]\(([^)]+)\)", page.partition("\n## ")[0])}
    for link in links:
        assert (FOLDERS[lang] / link).resolve().is_file(), link


@pytest.mark.parametrize("lang", FOLDERS)
def test_the_index_leads_to_every_chapter_and_page(lang: str) -> None:
    folder = FOLDERS[lang].parent
    links = re.findall(r"\]\(([^)]+)\)", (folder / "index.ipynb").read_text(encoding="utf-8"))
    chapters = [f"{path.stem}.ipynb" for path in sorted((TOP / "notebooks").glob("[0-9][0-9]-*.ipynb"))]
    assert [link for link in links if re.match(r"\d\d-", link)] == chapters
    assert sorted(link for link in links if "pages/" in link) == [f"pages/{name}.md" for name in NAMES]
    for link in links:
        assert (folder / link).resolve().is_file(), link


# Error lines


@functools.cache
def said() -> list[str]:
    """All that the package can say: each string of its source, a field as `…`."""
    found = []
    for path in (TOP / "minirt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
    return found


def words(table: Any) -> Iterator[str]:
    """The texts of a catalogue, a field as `…`."""
    for value in table.values() if isinstance(table, dict) else table if isinstance(table, list) else ():
        yield from words(value)
    if isinstance(table, str):
        yield re.sub(r"\{[^}]*\}", "…", table)


def lines(lang: str) -> list[str]:
    found = re.findall("^### `(.*)`$", text(lang, "troubleshooting"), re.M)
    assert len(found) == text(lang, "troubleshooting").count("### ") > 15
    return [str(line) for line in found]


def stands(line: str, texts: list[str]) -> bool:
    """Whether one text holds the line: all its words in this order, where `…` may be anything."""
    parts = [part for part in line.split("…") if part.strip()]
    assert max(len(part) for part in parts) > 12, f"{line!r} could be anything"
    return any(re.search(".*".join(map(re.escape, parts)), one, re.DOTALL) for one in texts)


@pytest.mark.parametrize(("lang", "line"), [(lang, line) for lang in FOLDERS for line in lines(lang)])
def test_the_program_still_says_this_line(lang: str, line: str) -> None:
    assert stands(line, [*said(), *words(Strings(lang)._all)])


def test_a_line_that_nobody_says_is_found_out() -> None:
    assert not stands("repository … is not there: name unknown", said())
    assert not stands("manifest unknown … manifest for", said())


# Commands


@pytest.mark.parametrize("lang", FOLDERS)
def test_the_cheat_sheets_commands_are_dockers_and_there_is_a_line_for_each(lang: str) -> None:
    sheet = [row for row in rows(text(lang, "cheat-sheet")) if row[0].startswith("`docker ")]
    assert len(sheet) > 20
    for docker, here, what in sheet:
        assert here == docker.replace("`docker ", "`minirt ") and what


def test_the_cheat_sheet_works_from_top_to_bottom(tmp_path: Path) -> None:
    environment = {**os.environ, "MINIRT_ROOT": str(tmp_path / "root"), "MINIRT_HUB": "embedded"}
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "minirt"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m minirt "$@"\n')
    program.chmod(0o755)
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    environment["PYTHONPATH"] = str(TOP)
    try:
        for lang in FOLDERS:
            commands = [row[1].strip("`") for row in rows(text(lang, "cheat-sheet")) if row[1].startswith("`minirt ")]
            for command in commands:
                argv = shlex.split(command)
                if "-it" in argv:  # on a terminal, where the learner types exit
                    argv = [require("script"), "-qec", command, "/dev/null"]
                done = subprocess.run(
                    argv, cwd=tmp_path, env=environment, input="exit\n", capture_output=True, text=True, timeout=60
                )
                assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            assert (tmp_path / "new").exists() and (tmp_path / "greeter.tar").stat().st_size > 1000
            subprocess.run([program, "rm", "-f", "later"], env=environment, check=True, capture_output=True)
    finally:
        subprocess.run(
            ["sh", "-c", "minirt ps -aq | xargs -r minirt rm -f; minirt daemon stop"],
            env=environment, check=False, capture_output=True,
        )  # fmt: skip


@pytest.mark.parametrize("lang", FOLDERS)
def test_the_teachers_page_names_what_there_is(lang: str) -> None:
    page = text(lang, "teachers")
    for name in re.findall(r"`((?:tests|docs|minirt|notebooks)/[^`]*\.[a-z]+)`", page):
        if "NN" not in name and "08" not in name:
            assert (TOP / name).is_file(), name
    minutes = {row[0]: int(row[2]) for row in rows(page) if row[0] in ("1", "2", "3")}
    shown = {
        path.name[:2]: int(re.search(r"\*\*(\d+) minutes", path.read_text(encoding="utf-8"))[1])  # type: ignore[index]
        for path in translation.notebooks(TOP / "notebooks").values()
        if path.name[:2].isdigit()
    }
    assert minutes == {
        row[0]: sum(shown[number] for number in re.findall(r"\[(\d\d)\]", row[1]))
        for row in rows(page) if row[0] in minutes
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_course_installs_from_a_wheelhouse_without_a_network(tmp_path: Path) -> None:
    """The teachers' page's own lines: the first block where packages can be had, the second in an empty network."""
    prepare, install = (block for block in code(text("en", "teachers")) if "wheelhouse" in block)
    clone = tmp_path / "clone"
    ours = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=TOP, capture_output=True, text=True, check=True
    )
    for name in filter(lambda name: (TOP / name).is_file(), ours.stdout.split("\n")):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes((TOP / name).read_bytes())
    made = subprocess.run(["sh", "-ec", prepare], cwd=clone, timeout=250, capture_output=True, text=True, check=False)
    if made.returncode and os.environ.get("CI") != "true":
        pytest.skip(f"packages cannot be had here: {made.stderr[-300:]}")
    assert made.returncode == 0, made.stdout + made.stderr
    assert len(list((clone / "wheelhouse").glob("*.whl"))) > 50
    lines = [line for line in install.strip().split("\n") if not line.endswith("minirt lab")]
    root = f"MINIRT_ROOT={tmp_path}/root MINIRT_HUB=embedded"
    lines += [f"{root} .venv/bin/minirt run --rm hello-world", f"{root} .venv/bin/minirt daemon stop"]
    lines += [f"HOME={tmp_path}/home .venv/bin/minirt lab --lay"]
    words = [
        require("unshare"),
        "--user",
        "--map-root-user",
        "--net",
        "sh",
        "-ec",
        "\n".join(["ip link set lo up", *lines]),
    ]
    if os.geteuid() == 0:
        words = [words[0], *words[3:]]
    done = subprocess.run(words, cwd=clone, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0 and "Hello from a container!" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "home" / "minirt-course" / "index.ipynb").is_file()
