"""Recordings: made from real presses, and played where no container can run; pulls are real there, too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import learners
import pytest

from minirt.errors import MinirtError
from minirt.notebook import Chapter, take, walk
from minirt.notebook.job import Command, Stopped
from minirt.notebook.press import Press, outcome, story
from minirt.notebook.take import Played, Take
from minirt.trace import Events

FILES = sorted(take.FOLDER.glob("*.json"))
WALKS = sorted(walk.FOLDER.glob("*.json"))


@pytest.fixture
def chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chapter]:
    with learners.a_chapter(tmp_path, monkeypatch) as chapter:
        yield chapter


def facts(found: list[Take]) -> list[tuple[object, ...]]:
    """What of takes is the same at each recording."""
    return [
        (each.panel, each.command, each.code, each.error, each.stopped >= 0,
         [event[:2] for _at, event, _data in each.moments if event and event[0] in ("cache", "container")])
        for each in found
    ]  # fmt: skip


def play(chapter: Chapter, words: str, found: Take | None) -> tuple[Played, bytearray]:
    said = bytearray()
    return Played(found, chapter.client(), Command.parse(words), said.extend, lambda message: None), said


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recording_is_whole_and_tells_no_machines_paths(path: Path) -> None:
    found = take.read(path)
    assert found and not re.search("/(home|root|tmp|dev/shm|opt)/", path.read_text())
    for each in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", each.made) and (each.code is None) == bool(each.error)
        assert [at for at, *_ in each.moments] == sorted(at for at, *_ in each.moments)
        assert take.find(path.stem, each.panel, Command.parse(each.command)) is not None


@pytest.mark.parametrize("path", WALKS, ids=lambda path: path.stem)
def test_a_walk_is_whole_and_tells_no_machines_paths(path: Path) -> None:
    found = walk.read(path)
    assert found and not re.search("/(home|root|tmp|opt)/", path.read_text())
    for each in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", each.made) and walk.find(each.command) is not None
        assert [stage.name for stage in each.stages] == ["create", "start", "end", "remove"]
        assert each["create"].seen and each["create"].seen.read("config.json").startswith("{")
        assert each["remove"].seen is None and each["end"].code is not None


def test_cards_that_were_recorded() -> None:
    assert {path.stem for path in walk.CARDS.glob("*.json")} == {"03", "06"}
    for number in ("03", "06"):
        made, box = walk.card(number, "box") or pytest.fail("not recorded")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", made) and box.process and box.process.inside == 1
        assert box.process.apart("pid") and box.figures and box.upper
        assert not re.search("/(home|root|tmp|opt)/", (walk.CARDS / f"{number}.json").read_text())
    assert walk.card("03", "nobody") is None and walk.card("04", "box") is None and walk.card("", "box") is None


def same(found: list[walk.Walk]) -> list[tuple[object, ...]]:
    """What of walks is the same at each recording."""
    return [
        (each.command, [(stage.name, stage.came, stage.output, stage.code) for stage in each.stages]) for each in found
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recording_a_chapter_again_gives_the_same(path: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "minirt.notebook.recording", f"--into={tmp_path}", path.stem]
    result = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert facts(take.read(tmp_path / path.name)) == facts(take.read(path))
    walks = "walks/" + path.name
    assert (tmp_path / walks).exists() == (take.FOLDER / walks).exists()
    cards = "cards/" + path.name
    assert (tmp_path / cards).exists() == (take.FOLDER / cards).exists()
    if (tmp_path / walks).exists():
        assert same(walk.read(tmp_path / walks)) == same(walk.read(take.FOLDER / walks))


def test_the_recorder_says_what_it_cannot_do() -> None:
    words = [sys.executable, "-m", "minirt.notebook.recording", "99"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and result.stderr.startswith("no chapter '99'") and result.stdout == ""


def test_a_take_is_played_in_its_time_after_a_real_pull(chapter: Chapter) -> None:
    found = take.find("04", ("run hello-world",), Command.parse("run hello-world"))
    assert found and chapter.images() == []
    played, said = play(chapter, "run hello-world", found)
    begun = time.monotonic()
    with Events() as events:
        assert played.run() == 0
        events.close()
        heard = list(events)
    assert time.monotonic() - begun >= found.moments[-1][0]
    assert chapter.images() == ["hello-world:latest"]
    assert (
        said.startswith(b"Unable to find image 'hello-world:latest' locally\n") and b"Hello from a container!" in said
    )
    kinds = [(event.box, event.action) for event in heard]
    assert (
        kinds.index(("cache", "look-up")) < kinds.index(("registry", "exchange")) < kinds.index(("container", "start"))
    )
    again, said = play(chapter, "run hello-world", found)
    again.run()
    assert said.startswith(b"Hello from a container!")


def test_stop_ends_a_take(chapter: Chapter) -> None:
    learners.start(chapter, "pulls", "true")
    found = take.find("04", (), Command.parse("run toolbox sleep 60"))
    assert found and found.stopped > 0
    played, _said = play(chapter, "run toolbox sleep 60", found)
    threading.Timer(found.moments[found.stopped - 1][0] + 0.5, played.stop).start()
    assert played.run() == 137 and played.stopping
    moments = ((0.0, None, "YQ=="), (60.0, None, "Yg=="))
    short, said = play(chapter, "ps", Take((), "ps", "2026-01-01", 0, "", -1, moments))
    threading.Timer(0.2, short.stop).start()
    with pytest.raises(Stopped):
        short.run()
    assert said == b"a"


def test_an_image_that_a_take_made_is_in_no_registry(chapter: Chapter) -> None:
    made = Take((), "run made-here", "2026-01-01", 4, "", -1, ((0.0, None, "YQ=="),))
    played, said = play(chapter, "run made-here", made)
    assert played.run() == 4 and b"made-here not found" in said and said.endswith(b"\na")
    with pytest.raises(MinirtError, match="made-here not found"):
        play(chapter, "run made-here", None)[0].run()


def test_a_take_that_failed_fails(chapter: Chapter) -> None:
    with pytest.raises(MinirtError, match="it was so"):
        play(chapter, "ps", Take((), "ps", "2026-01-01", None, "it was so", -1, ()))[0].run()


def test_what_needs_no_container_is_never_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ["pull hello-world", "images", "rmi hello-world", "history hello-world"]
    rows = [asdict(Take((), words, "2026-01-01", 0, "", -1, ())) for words in [*real, "ps"]]
    (tmp_path / "04.json").write_text(json.dumps(rows))
    monkeypatch.setattr(take, "FOLDER", tmp_path)
    for words in real:
        assert take.find("04", (), Command.parse(words)) is None
    assert take.find("04", (), Command.parse("ps")) and take.find("04", (), Command.parse("top nobody")) is None


def test_the_page_says_that_it_is_a_recording(chapter: Chapter) -> None:
    made = Press(Command.parse("ps"), [], ended=1.0, code=0, recorded="2026-01-02<b>")
    line = "This machine cannot run containers: you see a recording made on 2026-01-02"
    assert outcome(made, chapter.text).startswith(line)
    assert f"{line}&lt;b&gt;" in story([made], chapter.text) and "<b>" not in story([made], chapter.text)
    made.recorded = ""
    assert "recording" not in outcome(made, chapter.text) + story([made], chapter.text)


def test_a_damaged_recording_is_named(tmp_path: Path) -> None:
    for text in ("", "[{}]", '[{"panel": []}]', '[{"command": ["run"], "made": "", "stages": [{}]}]', "7"):
        (tmp_path / "04.json").write_text(text)
        for read in (take.read, walk.read):
            with pytest.raises(MinirtError, match="the recording 04.json cannot be read"):
                read(tmp_path / "04.json")


PLAY = """
import json, time
def press(words, stop=False):
    panel = chapter.panel(words)
    panel.run[0].click()
    while stop and "running" not in panel._map.value:
        time.sleep(0.05)
    if stop:
        panel.stop.click()
    panel.wait(60)
    this = panel.presses[-1]
    boxes = sorted({event.box for event in this.events})
    print(json.dumps([panel.status.value, this.output.decode(), this.code, boxes, panel._story.value]))
    assert not panel.run[0].disabled and panel.stop.disabled
press("run hello-world")
press("run hello-world")
press("run toolbox sleep 60", stop=True)
press("run hello-wrold")
press("pull greeter:1.0")
press("images --format {{.Repository}}")
press("run greeter:1.0 nobody-recorded")
"""


@pytest.mark.slow
def test_a_panel_where_nothing_can_run() -> None:
    with learners.a_learner("refused") as run:
        first, second, sleeper, typo, pulled, images, other = map(json.loads, run(PLAY).splitlines())
    note = "This machine cannot run containers: you see a recording made on "
    assert first[0].startswith(note) and "Done: exit code 0" in first[0] and note in first[4]
    assert "HTTP exchanges with the registry" in first[0] and "Pull complete" in first[4]
    assert "Unable to find image" in first[1] and "Hello from a container!" in first[1]
    assert {"cache", "container", "registry"} <= set(first[3])
    assert "everything came from the local cache" in second[0] and "registry" not in second[3]
    assert "Stopped by you" in sleeper[0] and sleeper[2] == 137
    assert "hello-wrold not found" in typo[0] and note not in typo[0]
    assert pulled[2] == 0 and note not in pulled[0] and images[1].split() == ["greeter", "hello-world", "toolbox"]
    assert "this machine cannot run containers" in other[0] and other[2] is None


STEPS = """
import json, time
def through(steps, last="remove"):
    lines = []
    while not steps.staged[last].over:
        steps.next.click()
        steps.wait(60)
        lines.append(steps.status.value)
    return [lines, steps._page.value, steps.staged.output.decode(), steps.staged.code]
first = chapter.steps("run greeter:1.0", fresh=True)
print(json.dumps(through(first)))
first.over.click()
first.wait(20)
print(json.dumps([stage.state for stage in first.staged.stages]))
print(json.dumps(through(first)))
sleeper = chapter.steps("run toolbox sleep 60")
print(json.dumps(through(sleeper, "start")))
assert not sleeper.stop.disabled
sleeper.stop.click()
sleeper.wait(20)
print(json.dumps([sleeper.status.value, sleeper.stop.disabled, sleeper.next.disabled]))
card = begin("03").card("box", "nobody")
card.wait(20)
print(json.dumps([card.status.value, card._card.value]))
other = chapter.steps("run toolbox nobody-recorded")
other.next.click()
other.wait(20)
print(json.dumps(other.status.value))
"""


@pytest.mark.slow
def test_step_mode_where_nothing_can_run() -> None:
    with learners.a_learner("refused") as run:
        first, again, second, sleeper, stopped, card, other = map(json.loads, run(STEPS).splitlines())
    note = "This machine cannot run containers: you see a recording made on "
    lines, page, output, code = first
    assert [line.startswith(note) for line in lines] == [False, False, True, True, True, True]
    assert "404" in lines[0] and "exit code 0" in lines[4] and "All stages are over" in lines[5]
    assert output == "greeter 1.0 with greetlib 1.0.0: Hello, world\n" and code == 0
    assert note in page and "POST /containers/create gave 201" in page
    assert again == ["idle"] * 6
    assert second[0][0].startswith(note) and "201: the image is in the local cache" in second[0][0]
    assert "made it already" in second[0][1] and len(second[0]) == 5
    assert "The command runs." in sleeper[0][-1] and "sleep 60 pid 1 inside" in sleeper[1]
    assert "&quot;namespaces&quot;" in sleeper[1] and "overlay" in sleeper[1]
    assert (
        stopped[0].startswith(note) and "It was stopped: exit code 137" in stopped[0] and stopped[1:] == [True, False]
    )
    assert card[0].startswith(note) and note in card[1] and "nobody: there is no container of this name" in card[1]
    assert "pid:[" in card[1] and "sleep" in card[1]
    assert "failed" in other and "this machine cannot run containers" in other


def test_where_containers_run_nothing_is_played(chapter: Chapter) -> None:
    panel = chapter.panel("run hello-world")
    panel.run[0].click()
    panel.wait(60)
    assert panel.presses[-1].recorded == "" and panel.presses[-1].code == 0
    with chapter.client() as client:
        assert len(client.containers(all=True)) == 1
    assert os.environ["MINIRT_HUB"] == "embedded"
