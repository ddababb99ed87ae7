"""What tests of the notebook's widgets share: a chapter of their own, and learners whose machine gives less."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import users
from peers import require
from test_rootless import CONFINE

from minirt.client import place as places
from minirt.notebook import Chapter, Place, begin

HOSTILE = "<script>alert(1)</script>"
# What a machine gives: a range of ids, one id, no namespaces (proot), nothing.
MACHINES = ["subuids", "single id", "proot", "refused"]


@contextlib.contextmanager
def a_chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chapter]:
    """Chapter 04 in a folder of the test's own, emptied at the end."""
    for name in ("MINIRT_ROOT", "MINIRT_HUB", "PATH"):  # begin() sets them: have them put back
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("MINIRT_COURSE", str(tmp_path / "course"))
    chapter = begin("04")
    yield chapter
    chapter.empty()


def answer_all(spoken: Chapter) -> None:
    """Each option of each question of a chapter's quiz has its verdict and its reason, and one of them is right."""
    quiz = spoken.quiz()
    assert len(quiz.questions) == 3
    for question, entry in zip(quiz.questions, spoken.text.table(f"{spoken.number}.quiz"), strict=True):
        verdicts = []
        for index, (_option, right, reason) in enumerate(entry["options"]):
            question.chosen = index
            question.click()
            assert question.answer == spoken.text(f"choice.{'right' if right else 'wrong'}", reason=reason)
            assert len(reason) > 20
            verdicts.append(question.verdict)
        assert sorted(verdicts) == ["right", "wrong", "wrong"]


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def kill_daemon(place: Place) -> int:
    """End the daemon of this place as a crash does; its pid."""
    pid = places.peer(places.told(place.root))
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())
    return pid


def start(place: Place, name: str, *words: str, **host: Any) -> None:
    """A container of the toolbox that runs."""
    with place.client() as client:
        for _message in client.pull("toolbox"):
            pass
        network = "default" if place.way() == "proot" else "none"
        client.create({"Image": "toolbox", "Cmd": list(words), "HostConfig": {"NetworkMode": network, **host}}, name)
        client.start(name)


@contextlib.contextmanager
def a_learner(machine: str) -> Iterator[Callable[[str], str]]:
    """Gives what a script prints where the machine gives only that much; its `chapter` is begun, and emptied after."""
    if machine == "proot":
        require("proot")
    with users.plain_user(machine == "subuids") as user:
        (user.home / "bin").mkdir()
        for name in ("sh", "busybox"):
            (user.home / "bin" / name).symlink_to(require(name))

        def run(script: str) -> str:
            path = str(user.home / "bin") if machine == "refused" else os.environ["PATH"]
            head = f"import os; os.environ |= {{'PATH': {path!r}, 'MINIRT_DAEMON_IDLE': '1'}}\n"
            head += "from minirt.notebook import begin\nchapter = begin('04')\ntry:\n"
            whole = head + "".join(f"    {line}\n" for line in script.splitlines()) + "finally:\n    chapter.empty()\n"
            confined = [user.interpreter, "-c", CONFINE] if machine in ("proot", "refused") else []
            return user.run([*confined, user.interpreter, "-c", whole], timeout=120).stdout

        yield run
