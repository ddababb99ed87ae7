"""`minirt lab`: what this machine can show, clean copies, progress that is kept, chapters begun anew."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("playwright.sync_api")
from browsers import TOKEN, calm, expect, open_chapter, page, run_all, running_lab, violations

from minirt import userns
from minirt.errors import InvalidInput, NotFound
from minirt.notebook import ability, begin, lab, overview, progress, record
from minirt.notebook.catalogue import Strings, languages
from minirt.notebook.markup import VIEW
from minirt.notebook.overview import Overview

__all__ = ["page"]
LANGS = languages()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for copies; the record is kept beside it."""
    for name in ("MINIRT_ROOT", "MINIRT_HUB", "PATH"):  # begin() sets them: have them put back
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("MINIRT_COURSE", str(tmp_path / "course"))
    monkeypatch.setattr(lab, "_lab", lambda *arguments: 0)
    return tmp_path / "mine"


@pytest.fixture
def shown(home: Path) -> Iterator[Callable[[str], Overview]]:
    """Makes overviews of the learner's folder, and ends their threads."""
    made: list[Overview] = []

    def make(lang: str) -> Overview:
        lab.main([f"--folder={home}"])
        made.append(Overview(lang, lab.within(home, lang)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def read(path: Path) -> dict[str, Any]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(notebook, dict)
    return notebook


# The copies


@pytest.mark.parametrize("lang", LANGS)
def test_copies_cleared_keeps_work_and_resets(
    lang: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[tuple[Any, ...]] = []
    monkeypatch.setattr(lab, "_lab", lambda *arguments: opened.append(arguments) or 0)
    words = [f"--folder={home}", f"--lang={lang}"]
    lab.main([*words, "--no-browser", "--port=8123"])
    mine = lab.within(home, lang)
    assert opened == [(home, mine / "index.ipynb", 8123, True)]
    assert capsys.readouterr().out == ability.line(Strings(lang)) + "\n"
    for each in LANGS:  # a page's link to the other language leads somewhere
        theirs = lab.within(home, each)
        assert {path.name for path in theirs.glob("*.ipynb")} == {
            path.name for path in lab.within(lab.TOP, each).glob("*.ipynb")
        }
        for path in theirs.glob("[0-9][0-9]-*.ipynb"):
            code = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
            assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
            assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    chapter = next(mine.glob("04-*.ipynb"))
    chapter.write_text("{}")
    lab.main(words)
    assert chapter.read_text() == "{}"
    capsys.readouterr()
    lab.main([*words, "--reset=04"])
    kept = next(path for path in mine.glob("04-*.ipynb") if path != chapter)
    assert kept.read_text() == "{}" and len(read(chapter)["cells"]) > 20
    assert str(kept) in capsys.readouterr().out
    chapter.write_text("[]")
    lab.main([*words, "--reset=04"])  # within the same second, it may be: nothing is overwritten
    assert sorted(path.read_text() for path in mine.glob("04-*.ipynb") if path != chapter) == ["[]", "{}"]
    assert not list(home.rglob(".*"))


def test_mistakes_and_a_full_disk_get_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="no chapter '99'"):
        lab.main([f"--folder={home}", "--reset=99"])
    with pytest.raises(NotFound, match="the course is not there in 'xx' yet"):
        lab.main([f"--folder={home}", "--lang=xx"])
    with pytest.raises(InvalidInput, match=r"cannot lay the course in /dev/null/x \(see --folder\): Not a directory"):
        lab.main(["--folder=/dev/null/x"])
    assert not home.exists()
    monkeypatch.setattr(lab, "TOP", home / "site-packages")
    with pytest.raises(NotFound, match="install minirt from a clone"):
        lab.main([f"--folder={home}"])


@pytest.mark.parametrize("lang", LANGS)
def test_the_index_is_renewed_with_what_is_solved_and_nothing_of_the_learner_is_lost(lang: str, home: Path) -> None:
    lab.main([f"--folder={home}"])
    mine, text = lab.within(home, lang), Strings(lang)
    index, page = mine / "index.ipynb", next(mine.glob("pages/*.md"))

    def outputs() -> list[Any]:
        return [output for cell in read(index)["cells"] for output in cell.get("outputs", ())]

    (output,) = outputs()
    said = output["data"]["text/html"]
    assert ability.line(text) in said and text("lab.progress.none") in said and VIEW not in output["data"]
    record.solve(overview.course(), "04", "quiz.2")
    lab.main([f"--folder={home}"])
    assert text("lab.progress.of", done=1, all=3) in outputs()[0]["data"]["text/html"]
    assert len(list(mine.glob("index*"))) == 1 and len(list(mine.glob("pages/*"))) == len(list(lab.TOP.glob("pages/*")))
    notebook = read(index)
    notebook["cells"][0]["source"] = ["mine"]
    index.write_text(json.dumps(notebook))
    page.write_text("mine too")
    lab.main([f"--folder={home}"])
    kept = next(path for path in mine.glob("index.*.ipynb"))
    assert read(kept)["cells"][0]["source"] == ["mine"] and "mine" not in read(index)["cells"][0]["source"]
    assert next(mine.glob(f"pages/{page.stem}.*.md")).read_text() == "mine too"
    assert page.read_bytes() == (lab.within(lab.TOP, lang) / "pages" / page.name).read_bytes()
    index.write_text("not a notebook")
    lab.main([f"--folder={home}"])
    assert len(read(index)["cells"]) > 3


# The machine


def test_the_machine_is_told_in_one_line_and_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    text = Strings()
    assert ability.kind() == ("root" if os.geteuid() == 0 else ability.kind()) != "unknown"
    forms = {
        "root": userns.IdMapping(),
        "subuids": userns.IdMapping(((0, 7, 1), (1, 100, 9)), ((0, 7, 1), (1, 100, 9))),
        "single": userns.IdMapping(((0, 7, 1),), ((0, 7, 1),)),
        "faked": userns.IdMapping(((0, 7, 1),), ((0, 7, 1),), faked=True),
        "pull": None,
    }
    lines = set()
    for name, ids in forms.items():
        monkeypatch.setattr(userns, "detect", lambda ids=ids: ids)
        assert ability.line(text) == text(f"lab.machine.{name}") and "\n" not in ability.line(text)
        lines.add(ability.line(text))
    monkeypatch.setattr(userns, "detect", lambda: os.stat("/nowhere"))
    assert ability.line(text) == text("lab.machine.unknown")
    monkeypatch.setattr(userns, "detect", lambda: time.sleep(3))
    monkeypatch.setattr(ability, "_PATIENCE", 0.05)
    begun = time.monotonic()
    assert ability.line(text) == text("lab.machine.unknown") and time.monotonic() - begun < 2
    monkeypatch.setattr(sys, "platform", "darwin")
    assert ability.line(text) == text("lab.machine.other")
    assert len(lines | {text("lab.machine.unknown"), text("lab.machine.other")}) == 7


# What is solved


def test_a_record_is_kept_by_several_writers_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "course"
    script = (
        "import sys; from pathlib import Path; from minirt.notebook import record\n"
        "print(flush=True); sys.stdin.read()\n"
        "for n in range(25): record.solve(Path(sys.argv[1]), '04', f'{sys.argv[2]}.{n}')"
    )
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writers = [subprocess.Popen([sys.executable, "-c", script, folder, name], **pipe) for name in ("a", "b")]
    for writer in writers:
        writer.stdout.readline()
    for writer in writers:  # both are ready: now they begin at one moment
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert record.read(folder) == {"04": sorted(f"{name}.{n}" for name in ("a", "b") for n in range(25))}
    assert sorted(path.name for path in folder.iterdir()) == [f".{record.FILE}.lock", record.FILE]


@given(st.lists(st.tuples(st.sampled_from(["00", "04"]), st.sampled_from(["exercise.a", "quiz.1", "quiz.2"]))))
def test_what_is_solved_is_read_again(tmp_path_factory: pytest.TempPathFactory, solved: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("record")
    for number, name in solved:
        record.solve(folder, number, name)
    assert record.read(folder) == {n: sorted({name for m, name in solved if m == n}) for n in {n for n, _ in solved}}


@pytest.mark.parametrize("bad", ["", "{", "[]", '{"04": "quiz.1"}', '{"04": [1]}', "\0"])
def test_a_damaged_record_is_told_and_put_aside_not_overwritten(tmp_path: Path, bad: str) -> None:
    (tmp_path / record.FILE).write_text(bad)
    with pytest.raises(InvalidInput, match=f"{record.FILE} is damaged"):
        record.read(tmp_path)
    record.solve(tmp_path, "04", "quiz.1")
    assert record.read(tmp_path) == {"04": ["quiz.1"]}
    assert next(tmp_path.glob("progress.*.json")).read_text() == bad


@pytest.mark.parametrize("lang", LANGS)
def test_right_answers_are_kept_and_wrong_ones_are_not(lang: str, home: Path) -> None:
    chapter = begin("04", lang)
    try:
        quiz, folder = chapter.quiz(), overview.course()
        entries = chapter.text.table("04.quiz")
        for question, entry in zip(quiz.questions, entries, strict=True):
            question.chosen = next(n for n, option in enumerate(entry["options"]) if not option[1])
            question.click()
        chapter.exercise("refresh")
        assert chapter.check("refresh").startswith(chapter.text("exercise.wrong", reason=""))
        assert record.read(folder) == {}
        quiz.questions[1].chosen = next(n for n, option in enumerate(entries[1]["options"]) if option[1])
        quiz.questions[1].click()
        assert record.read(folder) == {"04": ["quiz.2"]}
        with chapter.client() as client:
            client.remove_image("greeter:1.0")
        right = chapter.text("exercise.right", reason=chapter.text("04.exercise.refresh.right"))
        assert chapter.check("refresh") == right
        assert record.read(folder) == {"04": ["exercise.refresh", "quiz.2"]}
        # A disk that takes nothing: the answer is still the answer, and says so.
        (folder / record.FILE).unlink()
        (folder / record.FILE).mkdir()
        answer = chapter.check("refresh")
        assert answer == chapter.text("lab.progress.unsaved", answer=right, error="Is a directory")
        quiz.questions[1].click()
        assert quiz.questions[1].verdict == "right" and "Is a directory" in quiz.questions[1].answer
    finally:
        chapter.empty()


# The index page's widget


@pytest.mark.parametrize("lang", LANGS)
def test_progress_is_live(lang: str, shown: Callable[[str], Overview]) -> None:
    one = shown(lang)
    text = Strings(lang)
    assert text("lab.progress.none") in one._table.value and text("lab.progress.of", done=0, all=3) in one._table.value
    until(lambda: one.machine.value == ability.line(text))
    record.solve(overview.course(), "04", "quiz.1")
    until(lambda: text("lab.progress.of", done=1, all=3) in one._table.value, 5)
    assert text("lab.progress.some") in one._table.value
    for name in ("quiz.2", "quiz.3", "quiz.4", "exercise.refresh", "exercise.nowhere"):  # not all of them are ours
        record.solve(overview.course(), "04", name)
    until(lambda: text("lab.progress.whole") in one._table.value, 5)
    assert f'aria-label="{text("lab.progress.bar", number="04", done=4, all=4)}" max="4" value="4"' in one._table.value
    (overview.course() / record.FILE).write_text("<script>")
    until(lambda: "is damaged" in one._table.value, 5)
    assert "<script>" not in one._table.value


@pytest.mark.parametrize("lang", LANGS)
def test_a_chapter_begins_anew_by_its_button_and_the_old_copy_is_kept(
    lang: str, home: Path, shown: Callable[[str], Overview]
) -> None:
    one, text, mine = shown(lang), Strings(lang), lab.within(home, lang)
    record.solve(overview.course(), "04", "quiz.1")
    chapter = next(mine.glob("04-*.ipynb"))
    chapter.write_text("mine")
    assert one.anew["04"].description == text("lab.progress.anew", number="04")
    one.anew["04"].click()
    kept = next(path for path in mine.glob("04-*.ipynb") if path != chapter)
    assert kept.read_text() == "mine" and len(read(chapter)["cells"]) > 20
    assert one.status.value == text("lab.progress.reset", number="04", kept=kept.name)
    assert text("lab.progress.none") in one._table.value
    solved = record.read(overview.course())
    assert [names for name, names in solved.items() if name.startswith("04.")] == [["quiz.1"]] and "04" not in solved
    chapter.unlink()
    one.anew["04"].click()
    assert one.status.value == text("lab.progress.missing", number="04") and chapter.exists()
    source = Overview(lang, lab.within(lab.TOP, lang))  # the course itself is not to be touched
    try:
        before = sorted(lab.within(lab.TOP, lang).iterdir())
        source.anew["04"].click()
        assert source.status.value == text("lab.progress.itself")
        assert sorted(lab.within(lab.TOP, lang).iterdir()) == before
    finally:
        source.close()
    one._mine = Path("/dev/null/nowhere")
    one.anew["04"].click()
    assert one.status.value.startswith(text("lab.progress.failed", error="")) and "Not a directory" in one.status.value


def test_the_widget_has_stable_forms_for_a_page_without_kernel(home: Path) -> None:
    one, two = progress(), progress("ko")
    try:
        bundle = one._repr_mimebundle_()
        assert bundle.pop(VIEW) and bundle["text/plain"] == Strings()("lab.progress.fallback")
        assert two.plain == Strings("ko")("lab.progress.fallback")
    finally:
        one.close()
        two.close()


# The real thing


def get(address: str) -> Any:
    """What stands there, asked from where the server and the browser are."""
    code = "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(r.Request(sys.argv[1], headers={"
    code += "'Authorization': 'token ' + sys.argv[2]}), timeout=30).read())"
    words = [*calm(), sys.executable, "-c", code, address, TOKEN]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("lang", LANGS)
def test_a_real_jupyterlab_opens_at_the_index(lang: str, tmp_path: Path) -> None:
    with running_lab(tmp_path / "learner", lang) as started:
        index = lab.within(started.folder, lang) / "index.ipynb"
        name = index.relative_to(started.folder)
        log = tmp_path / "learner" / "server.log"
        until(lambda: "is running at" in log.read_text())
        assert ability.line(Strings(lang)) in log.read_text() and f"/lab/tree/{name}?token=" in log.read_text()
        assert '"baseUrl"' in get(started.address(index))
        content = json.loads(get(f"{started.url}/api/contents/{name}"))["content"]
        assert content["cells"][0]["cell_type"] == "markdown"
        settings = json.loads(get(f"{started.url}/lab/api/settings/@jupyterlab/docmanager-extension:plugin"))
        assert settings["schema"]["properties"]["defaultViewers"]["default"] == {"markdown": "Markdown Preview"}


@pytest.mark.slow
def test_a_learner_finds_the_chapters_the_pages_and_the_progress(tmp_path: Path, page: Any) -> None:
    with running_lab(tmp_path / "learner", "ko") as started:
        text, index = Strings("ko"), started.folder / "ko" / "index.ipynb"
        open_chapter(page, started.address(index))
        expect(page.locator(".jp-CodeCell")).to_contain_text(text("lab.progress.stored"))
        run_all(page)
        shown = page.locator(".jp-CodeCell .jp-OutputArea")
        row = shown.get_by_role("row", name=re.compile("^04 · "))
        expect(row).to_contain_text(text("lab.progress.none"))
        record.solve(started.course, "04", "quiz.1")
        expect(row).to_contain_text(text("lab.progress.of", done=1, all=3))
        shown.get_by_role("button", name=text("lab.progress.anew", number="04"), exact=True).click()
        expect(shown.get_by_role("status").last).to_contain_text("04-docker-run.20")
        expect(row).to_contain_text(text("lab.progress.none"))
        assert len(list(index.parent.glob("04-*.ipynb"))) == 2
        assert violations(page) == []
        page.locator(".jp-MarkdownCell").get_by_role("link", name="용어 사전").click()
        expect(page.locator(".jp-MarkdownViewer").get_by_role("heading", level=1)).to_be_visible()
        page.get_by_role("tab", name="index.ipynb").click()
        page.locator(".jp-MarkdownCell").get_by_role("link", name=re.compile("^04 · ")).click()
        title = page.locator(".jp-MarkdownCell:visible", has_text="04 · docker run을 입력하면 생기는 일")
        title.get_by_role("link", name="English").click()
        title = page.locator(".jp-MarkdownCell:visible", has_text="04 · What happens when you type docker run")
        expect(title.get_by_role("link", name="한국어")).to_be_visible()
