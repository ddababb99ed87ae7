"""A nursery that forks ahead: whoever was forked takes the request it was announced, or goes; no request is lost."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minirt.nursery import Nursery

pytestmark = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="for Linux")
_NEST = """
import os
from minirt import nursery
said = []
def become(text, kind):
    os.write(0, f"{text} {os.getpid()} {' '.join(said)}".encode())
    return 0
def rehearse(word):
    said.append(word)
    yield
    said.append("twice")
def main(seconds):
    nursery._AHEAD = float(seconds)
    nursery.serve(become, rehearse=rehearse, ahead=("", "usual"))
"""


@pytest.fixture
def nest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], Nursery]]:
    (tmp_path / "nest.py").write_text(_NEST)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def nest(seconds: float = 10) -> Nursery:
        made.append(Nursery("nest", str(seconds), kind="usual"))
        return made[-1]

    yield nest
    for nursery in made:
        nursery.close()


def ask(nursery: Nursery, kind: str = "usual") -> tuple[int, list[str]]:
    """Who served the request, and what it had rehearsed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        nursery.spawn(["hello", kind], [theirs.fileno()])
        ours.settimeout(10)
        text, pid, *said = ours.recv(100).decode().split()
    assert text == "hello"
    return int(pid), said


def waiting(nursery: Nursery) -> list[int]:
    """The children that were forked ahead and wait."""
    children = Path(f"/proc/{nursery._pid}/task/{nursery._pid}/children").read_text().split()
    return [int(pid) for pid in children if _name(pid) == "minirt-ahead"]


def _name(pid: str | int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def until(ready: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_who_was_forked_ahead_takes_the_request(nest: Callable[..., Nursery]) -> None:
    nursery = nest()
    for _ in range(3):
        nursery.ahead("word")
        until(lambda: waiting(nursery))
        [pid] = waiting(nursery)
        time.sleep(0.1)
        assert ask(nursery) == (pid, ["word", "twice"])
        assert ask(nursery)[1] == []  # not announced: forked when asked for


def test_one_waits_at_a_time(nest: Callable[..., Nursery]) -> None:
    nursery = nest()
    for _ in range(3):
        nursery.ahead("word")
    until(lambda: waiting(nursery))
    time.sleep(0.1)
    assert len(waiting(nursery)) == 1


def test_a_request_of_another_kind_is_not_for_it(nest: Callable[..., Nursery]) -> None:
    nursery = nest()
    nursery.ahead("word")
    until(lambda: waiting(nursery))
    [pid] = waiting(nursery)
    other, said = ask(nursery, "another")
    assert other != pid and said == []
    assert ask(nursery)[0] == pid


def test_it_does_not_wait_for_ever(nest: Callable[..., Nursery]) -> None:
    nursery = nest(0.2)
    nursery.ahead("word")
    until(lambda: waiting(nursery))
    until(lambda: not waiting(nursery))
    assert ask(nursery)[1] == []
    nursery.ahead("word")  # another may be forked
    until(lambda: waiting(nursery))


def test_one_that_was_killed_is_done_without(nest: Callable[..., Nursery]) -> None:
    nursery = nest()
    nursery.ahead("word")
    until(lambda: waiting(nursery))
    os.kill(waiting(nursery)[0], signal.SIGKILL)
    until(lambda: not waiting(nursery))
    assert ask(nursery)[1] == []


def test_a_request_that_came_in_time_is_not_lost(nest: Callable[..., Nursery]) -> None:
    """It stands still, its request comes, and then its time is over."""
    nursery = nest(0.3)
    nursery.ahead("word")
    until(lambda: waiting(nursery))
    [pid] = waiting(nursery)
    os.kill(pid, signal.SIGSTOP)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        nursery.spawn(["hello", "usual"], [theirs.fileno()])
        time.sleep(0.5)
        os.kill(pid, signal.SIGCONT)
        ours.settimeout(10)
        assert ours.recv(100).decode().split()[:2] == ["hello", str(pid)]


def test_requests_at_the_end_of_its_time_are_all_served(nest: Callable[..., Nursery]) -> None:
    nursery = nest(0.02)
    served = []
    for number in range(60):
        nursery.ahead("word")
        time.sleep(0.015 + number % 10 * 0.001)
        served.append(ask(nursery)[1])
    assert [] in served and any(served)  # some by one forked ahead, some by another


def test_it_outlives_a_nursery_that_dies_and_goes_with_who_asked_for_it(nest: Callable[..., Nursery]) -> None:
    nursery = nest()
    nursery.ahead("word")
    until(lambda: waiting(nursery))
    [pid] = waiting(nursery)
    os.kill(nursery._pid, signal.SIGKILL)
    os.waitid(os.P_PID, nursery._pid, os.WEXITED | os.WNOWAIT)
    assert ask(nursery)[0] == pid
    assert ask(nursery)[1] == []  # another nursery is made
    nursery.ahead("word")
    until(lambda: waiting(nursery))
    [pid] = waiting(nursery)
    nursery.close()
    until(lambda: _name(pid) != "minirt-ahead")
    nursery._begin()  # to be closed again
    nursery._spare = None
