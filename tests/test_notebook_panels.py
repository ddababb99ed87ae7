"""What the chapters' widgets do when they are pressed, in both languages and without a browser: real pulls, real
containers."""

from __future__ import annotations

import html
import os
import re
import signal
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

import minirt
from minirt import linux
from minirt.client import Client
from minirt.errors import InvalidInput, NotFound
from minirt.notebook import Chapter, Place, RunPanel, begin, panel
from minirt.notebook.catalogue import languages
from minirt.notebook.choice import Questions
from minirt.notebook.job import Command
from minirt.notebook.markup import VIEW
from minirt.notebook.panel import Panel
from minirt.notebook.press import Press, story
from minirt.notebook.transcript import Transcript
from minirt.trace import Event

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(params=languages())
def chapter(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chapter]:
    for name in ("MINIRT_ROOT", "MINIRT_HUB", "PATH"):  # begin() sets them: have them put back
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("MINIRT_COURSE", str(tmp_path / "course"))
    chapter = begin("04", request.param)
    yield chapter
    chapter.empty()


def opening(chapter: Chapter, key: str, **fields: Any) -> str:
    """A text of the catalogue up to its first field that is not given."""
    words = ""
    for literal, name, _form, _conversion in string.Formatter().parse(chapter.text.table(key)):
        words += literal + (str(fields[name]) if name in fields else "")
        if name is not None and name not in fields:
            break
    assert len(words) > 3, f"{key} opens with a field"
    return words


def exchanges(chapter: Chapter, press: Press) -> str:
    count = sum((event.box, event.action) == ("registry", "exchange") for event in press.events)
    assert count
    return chapter.text("panel.from_registry", count=count)


def press(panel: Panel, index: int = 0) -> Press:
    panel.run[index].click()
    panel.wait(60)
    return panel.presses[-1]


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def daemons(folder: Path) -> list[int]:
    """The daemons of the stores in `folder`."""
    words = ((int(path.parent.name), path.read_bytes()) for path in Path("/proc").glob("[0-9]*/cmdline"))
    return [pid for pid, line in words if b"\0minirt.daemon\0" in line and os.fsencode(folder) in line]


def idle(panel: Panel) -> bool:
    return not any(b.disabled for b in (*panel.run, panel.over)) and panel.stop.disabled


def test_first_press_pulls_and_the_second_does_not(chapter: Chapter) -> None:
    minirt.run("hello-world")  # what the page did before must not spoil the first press
    panel = chapter.panel("run hello-world", fresh=True)
    seen = chapter.transcript(panel)
    text, done = chapter.text, opening(chapter, "panel.done", code=0)
    assert panel.run[0].description == text("panel.run", what="hello-world") and idle(panel) and panel.replay.disabled
    first = press(panel)
    assert (first.before, first.code, first.error) == ([], 0, "")
    assert b"Unable to find image 'hello-world:latest' locally\nlatest: Pulling from" in first.output
    assert b"Hello from a container!" in first.output
    assert panel.status.value.startswith(done) and exchanges(chapter, first) in panel.status.value
    assert text("panel.empty") in panel._story.value and "Pull complete" in panel._story.value
    for method, target, status in (("POST", "/containers/create", 404), ("GET", "/manifests/latest", 200)):
        line = html.escape(text("transcript.line", method=method, target="|", status=status)).split("|")
        assert re.search(rf"{re.escape(line[0])}\S*{target}{re.escape(line[1])}", seen.value)
    second = press(panel)
    assert second.before == ["hello-world:latest"] and text("panel.from_cache") in panel.status.value
    assert text("flow.state.skipped") in panel._map.value and text("transcript.none") in seen.value
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
    until(lambda: chapter.text("flow.note.running") in sleeper._map.value)
    assert sleeper.run[0].disabled and not sleeper.stop.disabled
    other = chapter.panel("run hello-world")
    other.run[0].click()
    assert other.status.value == chapter.text("panel.busy") and idle(other)
    sleeper.stop.click()
    sleeper.wait(20)
    told = chapter.text("panel.stopped_code", ms=sleeper.presses[-1].ms, code=137)
    assert sleeper.presses[-1].code == 137 and sleeper.status.value == told and idle(sleeper)


def test_a_panel_takes_the_options_of_a_run_and_other_commands(chapter: Chapter) -> None:
    words = (
        "run -d --name box -e A=b -w /tmp toolbox sleep 60",
        "exec box sh -c 'echo $A; pwd'",
        "ps --format '{{.Names}}'",
    )
    shown, done = chapter.panel(*words, "rm -f box", "logs nobody", "wait box"), opening(chapter, "panel.done", code=0)
    assert [button.description for button in shown.run][:2] == [f"docker {word}" for word in words[:2]]
    assert re.fullmatch(rb"(?s).*\n[0-9a-f]{64}\n", press(shown).output) and shown.status.value.startswith(done)
    assert press(shown, 1).output == b"b\n/tmp\n" and shown.replay.disabled and idle(shown)
    assert press(shown, 2).output == b"box\n" and shown.status.value.startswith(done)
    shown.run[5].click()  # it waits for what does not end: Stop is Ctrl-C
    until(lambda: shown._job and shown.run[5].disabled and not shown.stop.disabled)
    time.sleep(0.5)
    shown.stop.click()
    shown.wait(20)
    stopped = shown.presses[-1]
    assert stopped.code and shown.status.value == chapter.text("panel.stopped_code", ms=stopped.ms, code=stopped.code)
    assert idle(shown)
    assert press(shown, 3).output == b"box\n"
    failed = press(shown, 4)
    assert failed.code == 1 and b"No such container: nobody" in failed.output
    assert shown.status.value == chapter.text("panel.ended", code=1, ms=failed.ms)
    gone = chapter.panel("run --rm --name box -u 7 -h inside --entrypoint sh toolbox -c 'id -u; hostname'")
    assert press(gone).output == b"7\ninside\n"
    with chapter.client() as client:
        assert client.containers(all=True) == []


def test_a_slow_pull_fills_its_bars_and_stop_ends_it(chapter: Chapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chapter, "SLOW", 200_000)
    slow = chapter.panel("pull greeter:1.0", fresh=True, slow=True)
    slow.run[0].click()
    until(lambda: re.search(r'max="\d+" value="[1-9]\d*"></progress></td><td>Downloading<', slow._story.value), 8)
    slow.stop.click()
    slow.wait(20)
    stopped = slow.presses[-1]
    assert stopped.code is None and slow.status.value == chapter.text("panel.stopped", ms=stopped.ms) and idle(slow)
    assert chapter.images() == []


def test_failure_is_shown_and_the_buttons_come_back(chapter: Chapter, monkeypatch: pytest.MonkeyPatch) -> None:
    typo = chapter.panel("run hello-wrold")
    failed = press(typo)
    assert "hello-wrold not found" in typo.status.value and failed.error in failed.output.decode() and idle(typo)
    assert chapter.text("flow.note.failed") in typo._map.value
    missing = chapter.panel("run toolbox no-such-command")
    assert "executable file not found" in press(missing).error and idle(missing)
    monkeypatch.setattr(Chapter, "images", lambda self: 1 / 0)  # a mistake of ours must not leave dead buttons
    typo.run[0].click()
    typo.wait(20)
    assert "division by zero" in typo.status.value and idle(typo)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
@pytest.mark.parametrize("room", [0, 16 << 10], ids=["for nothing", "for the registry's image"])
def test_a_full_disk_is_named_and_what_to_press(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chapter: Chapter, room: int
) -> None:
    """The registry cannot make its image, or the cache cannot keep it: both say so. With room again it runs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    linux.mount("tmpfs", str(disk), "tmpfs", 0, "size=4m")
    try:
        monkeypatch.setenv("MINIRT_COURSE", str(disk))
        small = begin("04", chapter.text.lang)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(free - room))
        run = small.panel("run hello-world")
        assert press(run).error
        assert "No space left on device".lower() in run.status.value.lower()
        assert run.status.value.endswith(small.text("advice.full")) and idle(run)
        (disk / "filler").unlink()
        assert press(run).code == 0
        small.empty()
    finally:
        for pid in daemons(disk):
            os.kill(pid, signal.SIGKILL)
        linux.umount(str(disk), linux.MNT_DETACH)


def test_a_daemon_that_went_away_comes_back_with_the_next_press(chapter: Chapter) -> None:
    run = chapter.panel("run toolbox sleep 60")
    run.run[0].click()
    until(lambda: run.presses and any(event.action == "start" for event in run.presses[-1].events))
    for pid in daemons(chapter.root):
        os.kill(pid, signal.SIGKILL)
    run.wait(20)
    assert run.status.value.endswith(chapter.text("advice.gone")) and idle(run)
    assert press(chapter.panel("run hello-world")).code == 0


def test_in_a_notebook_a_failure_is_one_line(chapter: Chapter) -> None:
    shell = InteractiveShell()
    with capture_output() as shown:
        shell.run_cell("import minirt; minirt.run('hello-wrold')")
    lines = [line for line in shown.stdout.splitlines() if line.strip()]
    assert lines == ["NotFound: repository hello-wrold not found: name unknown"]


def test_replay_tells_the_real_times_and_can_be_stopped(chapter: Chapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel, "_PAUSE", 0.01)
    shown = chapter.panel("run hello-world", fresh=True)
    press(shown)
    lines: list[str] = []
    shown.status.observe(lambda change: lines.append(change["new"]), "value")
    shown.replay.click()
    shown.wait(20)

    def step(number: int) -> str:
        return opening(chapter, "panel.replaying", step=number, steps=total)

    total = len(lines) - 2  # before them "working", after them "finished"
    assert total >= 6 and all(line.startswith(step(n)) for n, line in enumerate(lines[1:-1], 1))
    assert lines[-1] == chapter.text("panel.replayed", ms=shown.presses[-1].ms) and idle(shown)
    monkeypatch.setattr(panel, "_PAUSE", 60)
    shown.replay.click()
    until(lambda: shown.status.value.startswith(step(1)))
    shown.stop.click()
    shown.wait(5)
    assert idle(shown) and not any(line.startswith(step(2)) for line in lines[total + 2 :])


def test_exercise_check_looks_at_the_real_cache(chapter: Chapter) -> None:
    exercise = chapter.exercise("refresh")
    assert chapter.images() == ["greeter:1.0", "greeter:2.0"]

    def ask() -> str:
        exercise.button.click()
        exercise.wait(20)
        assert exercise.status.value == chapter.check("refresh") and not exercise.button.disabled
        return str(exercise.status.value)

    assert ask() == chapter.text("exercise.wrong", reason=chapter.text("04.exercise.refresh.cached"))
    with chapter.client() as client:
        client.remove_image("greeter:1.0")
        assert ask() == chapter.text("exercise.right", reason=chapter.text("04.exercise.refresh.right"))
        client.remove_image("greeter:2.0")
    assert ask() == chapter.text("exercise.wrong", reason=chapter.text("04.exercise.refresh.gone"))
    broken = Chapter("04", chapter.text.lang)
    broken.root = Path("/dev/null/nowhere")
    assert broken.check("refresh").startswith(opening(chapter, "exercise.failed"))


def test_every_option_of_the_quiz_has_its_reason(chapter: Chapter) -> None:
    quiz = chapter.quiz()
    assert isinstance(quiz, Questions) and len(quiz.questions) == 3
    for question, entry in zip(quiz.questions, chapter.text.table("04.quiz"), strict=True):
        question.click()
        assert question.answer == chapter.text("choice.none")
        verdicts = []
        for index, (_option, right, reason) in enumerate(entry["options"]):
            question.chosen = index
            question.click()
            verdict = "right" if right else "wrong"
            assert question.answer == chapter.text(f"choice.{verdict}", reason=reason) and len(reason) > 30
            assert question.verdict == verdict
            verdicts.append(verdict)
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
    assert question.answer == chapter.text("choice.none")


def test_nothing_from_outside_becomes_markup(chapter: Chapter) -> None:
    echo = chapter.panel(f"run toolbox echo '{HOSTILE}'")
    assert press(echo).output.endswith(f"{HOSTILE}\n".encode())
    name = chapter.panel(f"run '{HOSTILE}'")
    assert HOSTILE in press(name).error
    seen = Transcript(chapter.text, echo)
    detail = dict.fromkeys(("method", "url", "path", "status"), HOSTILE)
    event = Event(0, "registry", "exchange", detail | {"request": {HOSTILE: HOSTILE}, "response": {HOSTILE: HOSTILE}})
    made = Press(
        Command(("run", HOSTILE), "run", HOSTILE), [HOSTILE], ended=1.0, events=[event], output=HOSTILE.encode()
    )
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
        assert "JupyterLab" in bundle["text/plain"] or bundle["text/plain"] == chapter.text("begin.fallback")
    page = chapter.map()._repr_html_()
    assert page.startswith(f'<img alt="{chapter.text("flow.title")}') and "data:image/svg+xml;base64," in page


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
    with pytest.raises(InvalidInput, match="no chapter '99': there is .*04"):
        begin("99")
    with pytest.raises(InvalidInput, match="no course in 'xx'"):
        begin("04", lang="xx")
    assert begin("04").text.lang == "en"


def test_a_panel_refuses_what_it_cannot_do(chapter: Chapter) -> None:
    for words in ("lab", "run", "run --nope x", "run -e", "run 'x", "pull a b", ""):
        with pytest.raises(InvalidInput):
            chapter.panel(words)
    with chapter.client() as client, pytest.raises(NotFound):
        client.inspect_image("hello-world")


def test_a_run_panel_stands_alone(chapter: Chapter) -> None:
    alone = RunPanel("hello-world", place=Place(chapter.root, "embedded", chapter.text.lang))
    assert alone.run[0].description == chapter.text("panel.run", what="hello-world")
    assert b"Hello from a container!" in press(alone).output
    alone.over.click()  # this store is the user's own: nothing of it goes
    assert press(alone).before == ["hello-world:latest"]
    with pytest.raises(InvalidInput, match="your own store"):
        Place(chapter.root).empty()
