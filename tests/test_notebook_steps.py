"""Step mode: one real run, one stage a press; what it shows after each, and what happens when it is disturbed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import learners
import pytest
from learners import HOSTILE, until

from minirt.errors import InvalidInput
from minirt.notebook import Chapter, Place, Steps, pictures, stages
from minirt.notebook.container import Container
from minirt.notebook.machine import Machine
from minirt.notebook.markup import VIEW


@pytest.fixture
def chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chapter]:
    with learners.a_chapter(tmp_path, monkeypatch) as chapter:
        yield chapter


def step(steps: Steps) -> str:
    """Press Next step; the line that closes it. The buttons must be back."""
    assert not steps.next.disabled
    steps.next.click()
    steps.wait(60)
    assert not steps.over.disabled and steps.next.disabled == (steps.staged.next is None)
    return str(steps.status.value)


def go(steps: Steps, name: str) -> str:
    """Press Next step until stage `name` is over; the line that closes it."""
    line = ""
    while not steps.staged[name].over:
        line = step(steps)
        assert "failed" not in line
    return line


def states(steps: Steps) -> list[str]:
    return [stage.state for stage in steps.staged.stages]


def drawn(steps: Steps) -> list[ElementTree.Element]:
    """The three pictures, as they are in the page now."""
    return [ElementTree.fromstring(svg) for svg in re.findall("<svg.*?</svg>", steps._page.value, re.DOTALL)]


def labels(steps: Steps) -> list[str]:
    return [picture.attrib["aria-label"] for picture in drawn(steps)]


def test_a_run_that_ends_at_once_stage_by_stage(chapter: Chapter) -> None:
    steps = chapter.steps("run greeter:1.0", fresh=True)
    with chapter.client() as client:
        assert "is not in the local cache" in labels(steps)[1] and states(steps) == ["idle"] * 6
        assert "Stage 1 done" in step(steps) and "404: no such image here" in steps.status.value
        assert "<code>POST /containers/create gave 404</code>" in steps._page.value
        assert client.images() == [] and client.containers(all=True) == []
        assert "Stage 2 done" in step(steps) and chapter.images() == ["greeter:1.0"]
        assert "<code>docker pull greeter:1.0</code>" in steps._page.value
        assert "The image greeter:1.0 is in the local cache. layer 1" in labels(steps)[1]
        assert "not yet" in labels(steps)[1] and client.containers(all=True) == []

        assert "Stage 3 done" in step(steps)
        (made,) = client.containers(all=True)
        assert made["State"] == "created" and "created, not started yet" in steps._page.value
        assert "laid under it, not copied" in labels(steps)[1] and "no process" in labels(steps)[2]
        assert "its own write layer: 0B" in labels(steps)[1]
        assert "rootfs.json, rootfs, upper" not in steps._page.value and "rootfs.json" in steps._page.value
        assert "&quot;lowers&quot;" in steps._page.value and "&quot;namespaces&quot;" in steps._page.value

        assert "Stage 4 done" in step(steps) and "has ended already" in steps.status.value
        assert steps.staged.output == b"greeter 1.0 with greetlib 1.0.0: Hello, world\n"
        assert "greetlib 1.0.0: Hello, world" in steps._page.value
        assert "exited with code 0" in steps._page.value and steps.stop.disabled
        assert "Stage 5 done" in step(steps) and "ended by itself: exit code 0" in steps.status.value
        assert "Stage 6 done" in step(steps) and "All stages are over" in steps.status.value
        assert client.containers(all=True) == [] and chapter.images() == ["greeter:1.0"]
        assert "removed" in re.sub("<[^>]*>", " ", steps._page.value) and steps.next.disabled
        assert "no longer" in labels(steps)[1] and "not yet" not in labels(steps)[1]
        name = made["Names"][0].removeprefix("/")
        for words in (f"start -a {name}", f"wait {name}", f"rm {name}", "create greeter:1.0"):
            assert f"<code>docker {words}</code>" in steps._page.value

        steps.over.click()  # the image stays: the second time nothing is pulled
        steps.wait(20)
        assert states(steps) == ["idle"] * 6 and chapter.images() == ["greeter:1.0"]
        assert "201: the image is in the local cache" in step(steps)
        assert states(steps)[:3] == ["done", "skipped", "idle"] and len(client.containers(all=True)) == 1
        assert "Stage 3 done" in step(steps) and "made it already" in steps.status.value
        assert steps.staged["create"].exchanges == []


def test_a_command_that_stays_is_seen_from_both_sides_and_stopped(chapter: Chapter) -> None:
    steps = chapter.steps("run --name box toolbox sleep 60")
    go(steps, "start")
    with chapter.client() as client:
        pid = client.inspect_container("box")["State"]["Pid"]
        assert "The command runs." in steps.status.value and not steps.stop.disabled
        machine, disk, fence = labels(steps)
        assert f"kernel: {os.uname().sysname} {os.uname().release}" in machine
        assert f"sleep 60 pid 1 inside, pid {pid} outside fenced off" in fence
        assert (
            f"pid {pid}" in "".join(drawn(steps)[0].itertext()) and f"process number (pid) {pid}" in steps._page.value
        )
        assert "in use:" in fence and "Network its own lo" in fence and "RAM" in machine and "free of" in machine
        assert "<code>docker stop -t 1 box</code>" in steps._page.value
        steps.stop.click()
        steps.wait(20)
        assert "Stage 5 done" in steps.status.value and "It was stopped: exit code 137" in steps.status.value
        assert steps.stop.disabled and "the process has ended: exit code 137" in labels(steps)[2]
        assert client.inspect_container("box")["State"]["ExitCode"] == 137
        step(steps)
        assert client.containers(all=True) == []


def test_a_command_that_ends_between_presses(chapter: Chapter) -> None:
    steps = chapter.steps("run toolbox sh -c 'echo begun; sleep 1; echo over; exit 3'")
    go(steps, "start")
    assert "The command runs." in steps.status.value and b"begun" in steps.staged.output
    until(lambda: steps.stop.disabled)
    assert "begun\nover\n" in steps._page.value
    assert "ended by itself: exit code 3" in step(steps)


def test_start_over_and_rm_and_detached(chapter: Chapter) -> None:
    steps = chapter.steps("run -d --name box toolbox sleep 60")
    go(steps, "start")
    assert "<code>docker create --name box toolbox sleep 60</code>" in steps._page.value
    steps.over.click()
    steps.wait(20)
    with chapter.client() as client:
        assert client.containers(all=True) == [] and states(steps) == ["idle"] * 6 and steps.stop.disabled
        going = chapter.steps("run --rm --name box toolbox sleep 60")
        go(going, "start")
        assert "stopped: exit code 137" in step(going) and client.containers(all=True) == []
        assert "was gone already" in step(going)


def test_what_fails_is_told_and_can_be_tried_again(chapter: Chapter) -> None:
    typo = chapter.steps("run hello-wrold")
    step(typo)
    assert "Stage 2 failed: " in step(typo) and "hello-wrold not found" in typo.status.value
    assert states(typo)[:3] == ["done", "failed", "idle"] and "✗ failed" in typo._page.value
    assert "Stage 2 failed" in step(typo)
    missing = chapter.steps("run toolbox nope")
    while "failed" not in missing.status.value:
        step(missing)
    assert "Stage 4 failed: " in missing.status.value and "executable file not found" in missing.status.value
    assert missing.stop.disabled
    nowhere = Steps("run toolbox", place=Place(Path("/dev/null/nowhere"), "embedded"))
    assert "/dev/null/nowhere" in step(nowhere)
    for words in ("pull toolbox", "ps", "run"):
        with pytest.raises(InvalidInput):
            chapter.steps(words)


def test_pressed_twice_and_while_another_works(chapter: Chapter, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = chapter.steps("run toolbox sleep 60", fresh=True)
    steps.next.click()
    steps.next.click()  # a page can send what the disabled button would not
    steps.wait(20)
    assert states(steps) == ["done", *["idle"] * 5]
    sleeper = chapter.panel("run toolbox sleep 60")
    sleeper.run[0].click()
    until(lambda: "running" in sleeper._map.value)
    steps.next.click()
    assert steps.status.value == chapter.text("panel.busy") and states(steps)[1] == "idle"
    sleeper.stop.click()
    sleeper.wait(20)
    assert not steps.next.disabled
    with monkeypatch.context() as broken:  # a mistake of ours must not leave dead buttons
        broken.setattr(stages.Staged, "advance", lambda self, halt: 1 / 0)
        assert step(steps).startswith("It failed: division by zero Press the button again.")


def test_a_pull_can_be_stopped(chapter: Chapter, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Chapter.client
    monkeypatch.setattr(Chapter, "SLOW", 200_000)
    monkeypatch.setattr(Chapter, "client", lambda self, slow=True: fast(self, slow=True))
    steps = chapter.steps("run toolbox", fresh=True)
    step(steps)
    steps.next.click()
    until(lambda: "Downloading" in steps._page.value and not steps.stop.disabled)
    steps.stop.click()
    steps.wait(20)
    assert steps.status.value == chapter.text("steps.halted", number=2) and states(steps)[1] == "idle"
    assert not steps.next.disabled and chapter.images() == []


def test_a_daemon_that_is_killed_between_stages_and_under_one(chapter: Chapter) -> None:
    steps = chapter.steps("run --name box toolbox sleep 60", fresh=True)
    go(steps, "start")
    learners.kill_daemon(chapter)
    until(lambda: steps.stop.disabled)  # nobody tells us any more
    assert "It was stopped: exit code 137" in step(steps)  # containers go on, and the next daemon knows them
    learners.kill_daemon(chapter)
    line = step(steps)
    if "failed" in line:  # it was asked in the moment of its death
        assert "the daemon went away: containers go on, ask again" in line
        line = step(steps)
    assert "Stage 6 done" in line
    again = chapter.steps("run --name box toolbox sh -c 'trap \"\" TERM; sleep 60'")
    go(again, "start")
    again.next.click()  # it takes a second to stop: kill the daemon meanwhile
    until(lambda: again.staged["end"].state == "now")
    learners.kill_daemon(chapter)
    again.wait(40)
    assert again.staged["end"].over or again.status.value.startswith("Stage 5 failed: the daemon went away")
    if not again.staged["end"].over:
        assert "exit code" in step(again)
    assert "Stage 6 done" in step(again)


def test_nothing_from_outside_becomes_markup(chapter: Chapter) -> None:
    steps = chapter.steps(f"run -e 'A={HOSTILE}' toolbox sh -c 'echo \"$A\"; sleep 60' '{HOSTILE}'")
    go(steps, "start")
    until(lambda: HOSTILE.encode() in steps.staged.output)
    name = chapter.steps(f"run '{HOSTILE}'")
    step(name)
    for widget in (steps, name):
        for markup in (widget._page.value, widget.page, widget.children[0].value):
            assert not re.search("<script", markup)
        drawn(widget)  # the pictures are well-formed
    assert "&lt;script&gt;" in steps._page.value and "&lt;script&gt;" in name._page.value


def test_pictures_of_a_hostile_image_and_of_many_layers(chapter: Chapter) -> None:
    text, now = chapter.text, Machine("<x>", 2, 10**9, 10**8, 10**10, 10**9, ("lo", HOSTILE))
    image = {
        "Config": {"Cmd": [HOSTILE], "Entrypoint": None},
        "RootFS": {"Layers": ["x"] * 40},
        "Blobs": [{"size": 1000 * n} for n in range(40)],
    }
    for lang in ("en", "ko"):
        text = type(text)(lang) if lang in ("en",) else text
        drawing = ElementTree.fromstring(pictures.disk(HOSTILE, image, None, text, "idle"))
        assert "37 more layers" in "".join(drawing.itertext()) and not [e for e in drawing.iter() if "script" in e.tag]
    assert "script" not in {e.tag for e in ElementTree.fromstring(pictures.machine(now, text, 1, None, False)).iter()}
    assert pictures.cut("가나다라마바사", 6) == "가나…" and pictures.cut("plain", 6) == "plain"


def test_limits_are_told_from_the_words_of_the_request() -> None:
    def limits(**host: int) -> tuple[int, float, int]:
        return Container({"Name": "/x", "HostConfig": host, "State": {"Status": "created"}}).limits

    assert limits() == (0, 0, 0) and limits(Memory=1 << 26, NanoCpus=1_500_000_000, PidsLimit=9) == (1 << 26, 1.5, 9)
    assert limits(CpuQuota=50_000, CpuPeriod=100_000, PidsLimit=-1) == (0, 0.5, 0) and limits(CpuQuota=-1) == (0, 0, 0)


def test_stable_forms_for_a_page_without_kernel(chapter: Chapter) -> None:
    one, two = (chapter.steps("run greeter:1.0", fresh=True)._repr_mimebundle_() for _ in range(2))
    assert one.pop(VIEW)["model_id"] != two.pop(VIEW)["model_id"] and one == two
    assert one["text/html"].startswith("<p>") and "Run this cell in JupyterLab" in one["text/plain"]
    assert "docker run greeter:1.0" in one["text/plain"] and one["text/html"].count("<li>") == 6


RUN = """
import re
steps = chapter.steps("run toolbox sh -c 'echo hi; sleep 60'", fresh=True)
print(chapter.way())
while steps.staged.next:
    steps.next.click()
    steps.wait(60)
    print(steps.status.value)
    if "failed" in steps.status.value:
        break
    if steps.staged.running:
        print(*re.findall('aria-label="([^"]*)"', steps._page.value), sep=chr(10))
print(steps.staged.output, steps.next.disabled, steps.over.disabled)
"""


@pytest.mark.slow
@pytest.mark.parametrize("machine", learners.MACHINES)
def test_as_a_plain_user(machine: str) -> None:
    with learners.a_learner(machine) as run:
        lines = run(RUN).splitlines()
    assert lines[0] == machine
    if machine == "refused":
        assert "Stage 1 failed: this machine cannot run containers" in lines[1] and lines[-1] == "b'' False False"
        return
    assert "404" in lines[1] and "It was stopped: exit code" in "".join(lines) and "All stages are over" in lines[-2]
    assert lines[-1] == r"b'hi\n' True False"
    fence = next(line for line in lines if line.startswith("The process, fenced off"))
    if machine == "proot":
        assert "the fence has gaps" in fence and "Network the machine" in fence
        assert "copied" in next(line for line in lines if line.startswith("The snapshot"))
    else:
        assert "pid 1 inside" in fence and "Network its own lo" in fence
