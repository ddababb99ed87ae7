"""What the chapters' widgets do when they are pressed, without a browser: real pulls, real containers."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import minirt
from minirt.client import Client
from minirt.errors import InvalidInput, NotFound
from minirt.notebook import Chapter, begin, panel
from minirt.notebook.choice import Questions
from minirt.notebook.job import Command
from minirt.notebook.markup import VIEW
from minirt.notebook.panel import Panel
from minirt.notebook.press import Press, story
from minirt.notebook.transcript import Transcript
from minirt.trace import Event

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chapter]:
    for name in ("MINIRT_ROOT", "MINIRT_HUB", "PATH"):  # begin() sets them: have them put back
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("MINIRT_COURSE", str(tmp_path / "course"))
    chapter = begin("04")
    yield chapter
    chapter.empty()


def press(panel: Panel, index: int = 0) -> Press:
    panel.run[index].click()
    panel.wait(60)
    return panel.presses[-1]


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def idle(panel: Panel) -> bool:
    return not any(b.disabled for b in (*panel.run, panel.over)) and panel.stop.disabled


def test_first_press_pulls_and_the_second_does_not(chapter: Chapter) -> None:
    minirt.run("hello-world")  # what the page did before must not spoil the first press
    panel = chapter.panel("run hello-world", fresh=True)
    seen = chapter.transcript(panel)
    assert panel.run[0].description == "Run hello-world" and idle(panel) and panel.replay.disabled
    first = press(panel)
    assert (first.before, first.code, first.error) == ([], 0, "")
    assert b"Unable to find image 'hello-world:latest' locally\nlatest: Pulling from" in first.output
    assert b"Hello from a container!" in first.output
    assert "Done: exit code 0" in panel.status.value and "HTTP exchanges with the registry" in panel.status.value
    assert "Local cache before this press: empty." in panel._story.value and "Pull complete" in panel._story.value
    assert "POST /containers/create gave 404" in seen.value and "/manifests/latest gave 200" in seen.value
    second = press(panel)
    assert second.before == ["hello-world:latest"] and "everything came from the local cache" in panel.status.value
    assert "not needed" in panel._map.value and "Nothing was sent." in seen.value
    assert second.output.startswith(b"Hello from a container!")
    assert panel._story.value.count("<code>docker run hello-world</code>") == 2
    assert idle(panel) and not panel.replay.disabled
    panel.over.click()
    assert panel.replay.disabled and press(panel).before == []


def test_a_layer_of_both_images_already_exists(chapter: Chapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chapter, "SLOW", 1_500_000)
    panel = chapter.panel("run greeter:1.0", "run greeter:2.0", fresh=True, slow=True)
    assert press(panel).code == 0
    second = press(panel, 1)
    assert sorted(layer["status"] for layer in second.layers.values()) == ["Already exists", "Pull complete"]
    assert b"greeter 2.0" in second.output and second.before == ["greeter:1.0"]


def test_stop_ends_a_container_and_one_panel_works_at_a_time(chapter: Chapter) -> None:
    sleeper = chapter.panel("run toolbox sleep 60")
    sleeper.run[0].click()
    until(lambda: "running" in sleeper._map.value)
    assert sleeper.run[0].disabled and not sleeper.stop.disabled
    other = chapter.panel("run hello-world")
    other.run[0].click()
    assert other.status.value == chapter.text("panel.busy") and idle(other)
    sleeper.stop.click()
    sleeper.wait(20)
    assert sleeper.presses[-1].code == 137 and "Stopped by you" in sleeper.status.value and idle(sleeper)


def test_a_slow_pull_fills_its_bars_and_stop_ends_it(chapter: Chapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chapter, "SLOW", 200_000)
    slow = chapter.panel("pull greeter:1.0", fresh=True, slow=True)
    slow.run[0].click()
    until(lambda: re.search(r'max="\d+" value="[1-9]\d*"></progress></td><td>Downloading<', slow._story.value), 8)
    slow.stop.click()
    slow.wait(20)
    assert slow.presses[-1].code is None and "Stopped by you" in slow.status.value and idle(slow)
    assert chapter.images() == []


def test_failure_is_shown_and_the_buttons_come_back(chapter: Chapter, monkeypatch: pytest.MonkeyPatch) -> None:
    typo = chapter.panel("run hello-wrold")
    failed = press(typo)
    assert "hello-wrold not found" in typo.status.value and failed.error in failed.output.decode() and idle(typo)
    assert "failed here" in typo._map.value
    missing = chapter.panel("run toolbox no-such-command")
    assert "executable file not found" in press(missing).error and idle(missing)
    monkeypatch.setattr(Chapter, "images", lambda self: 1 / 0)  # a mistake of ours must not leave dead buttons
    typo.run[0].click()
    typo.wait(20)
    assert "division by zero" in typo.status.value and idle(typo)


def test_replay_tells_the_real_times_and_can_be_stopped(chapter: Chapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel, "_PAUSE", 0.01)
    shown = chapter.panel("run hello-world", fresh=True)
    press(shown)
    lines: list[str] = []
    shown.status.observe(lambda change: lines.append(change["new"]), "value")
    shown.replay.click()
    shown.wait(20)
    steps = [line for line in lines if line.startswith("Slow replay, step")]
    assert len(steps) >= 6 and f"step {len(steps)} of {len(steps)}" in steps[-1] and "Real time" in steps[0]
    assert lines[-1] == chapter.text("panel.replayed", ms=shown.presses[-1].ms) and idle(shown)
    monkeypatch.setattr(panel, "_PAUSE", 60)
    shown.replay.click()
    until(lambda: "step 1 of" in shown.status.value)
    shown.stop.click()
    shown.wait(5)
    assert idle(shown) and not any("step 2 of" in line for line in lines[len(steps) + 2 :])


def test_exercise_check_looks_at_the_real_cache(chapter: Chapter) -> None:
    exercise = chapter.exercise("refresh")
    assert chapter.images() == ["greeter:1.0", "greeter:2.0"]

    def ask() -> str:
        exercise.button.click()
        exercise.wait(20)
        assert exercise.status.value == chapter.check("refresh") and not exercise.button.disabled
        return str(exercise.status.value)

    assert ask() == "Not yet. " + chapter.text("04.exercise.refresh.cached")
    with chapter.client() as client:
        client.remove_image("greeter:1.0")
        assert ask() == "Right. " + chapter.text("04.exercise.refresh.right")
        client.remove_image("greeter:2.0")
    assert ask() == "Not yet. " + chapter.text("04.exercise.refresh.gone")
    broken = Chapter("04", "en")
    broken.root = Path("/dev/null/nowhere")
    assert broken.check("refresh").startswith("The check could not look:")


def test_every_option_of_the_quiz_has_its_reason(chapter: Chapter) -> None:
    quiz = chapter.quiz()
    assert isinstance(quiz, Questions) and len(quiz.questions) == 3
    for question, entry in zip(quiz.questions, chapter.text.table("04.quiz"), strict=True):
        question.click()
        assert question.answer == "Choose one first."
        verdicts = []
        for index, (_option, right, reason) in enumerate(entry["options"]):
            question.chosen = index
            question.click()
            assert question.answer == f"{'Right.' if right else 'Not this one.'} {reason}" and len(reason) > 30
            verdicts.append(question.verdict)
        assert sorted(verdicts) == ["right", "wrong", "wrong"]


@pytest.mark.parametrize("name", ["first", "second", "shared"])
def test_prediction_is_noted_and_not_judged(chapter: Chapter, name: str) -> None:
    (question,) = chapter.predict(name).questions
    for index, option in enumerate(question.options):
        question.chosen = index
        question.click()
        assert option in question.answer and question.verdict == ""
    question.chosen = 99  # a page can send anything
    question.click()
    assert question.answer == "Choose one first."


def test_nothing_from_outside_becomes_markup(chapter: Chapter) -> None:
    echo = chapter.panel(f"run toolbox echo '{HOSTILE}'")
    assert press(echo).output.endswith(f"{HOSTILE}\n".encode())
    name = chapter.panel(f"run '{HOSTILE}'")
    assert HOSTILE in press(name).error
    seen = Transcript(chapter.text, echo)
    detail = dict.fromkeys(("method", "url", "path", "status"), HOSTILE)
    event = Event(0, "registry", "exchange", detail | {"request": {HOSTILE: HOSTILE}, "response": {HOSTILE: HOSTILE}})
    made = Press(Command("run", HOSTILE), [HOSTILE], ended=1.0, events=[event], output=HOSTILE.encode())
    made.progress({"id": HOSTILE, "status": HOSTILE, "progressDetail": {"current": 1, "total": 2}})
    seen._show(made)
    shown = [echo.page, echo._map.value, echo._story.value, name.page, name._map.value, name._story.value]
    shown += [
        seen.value,
        story([made], chapter.text),
        *(child.value for row in name.children[1:2] for child in row.children[1:]),
    ]
    for markup in shown:
        assert "<script" not in markup.lower()
    assert "&lt;script&gt;" in seen.value and "&lt;script&gt;" in echo._story.value


def test_every_widget_has_stable_forms_for_a_page_without_kernel(chapter: Chapter) -> None:
    def make() -> list[Any]:
        first = chapter.panel("run hello-world", fresh=True, slow=True)
        parts = [first, chapter.transcript(first), chapter.predict("first"), chapter.quiz(), chapter.machine()]
        return [*parts, chapter.exercise("refresh")]

    for one, two in zip(make(), make(), strict=True):
        bundle, again = one._repr_mimebundle_(), two._repr_mimebundle_()
        assert bundle.pop(VIEW)["model_id"] != again.pop(VIEW)["model_id"]
        assert bundle == again and bundle["text/plain"] and bundle["text/html"].startswith("<p>")
        assert "jupyter" in bundle["text/plain"].lower() or "Run this cell" in bundle["text/plain"]
    page = chapter.map()._repr_html_()
    assert page.startswith('<img alt="Flow map') and "data:image/svg+xml;base64," in page


def test_begin_clears_only_what_the_chapter_made(chapter: Chapter, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    minirt.run("hello-world", root=mine)
    with Client() as client:
        client.create({"Image": (minirt.pull("hello-world").name)})
    assert begin("04").images() == []
    with Client() as client:
        assert client.containers(all=True) == []
    assert [image.name for image in minirt.images(root=mine)] == ["hello-world:latest"]
    assert os.environ["MINIRT_ROOT"] == str(chapter.root) and os.environ["MINIRT_HUB"] == "embedded"
    assert chapter.clean_up() == []
    with pytest.raises(InvalidInput, match="no chapter '99': there is 04"):
        begin("99")
    with pytest.raises(InvalidInput, match="no course in 'xx'"):
        begin("04", lang="xx")


def test_a_panel_refuses_what_it_cannot_do(chapter: Chapter) -> None:
    for words in ("rm x", "run", "pull a b", ""):
        with pytest.raises(InvalidInput):
            chapter.panel(words)
    with chapter.client() as client, pytest.raises(NotFound):
        client.inspect_image("hello-world")
