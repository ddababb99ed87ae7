"""What kill -9 leaves: `system check` lists it, `system prune` and `rm` take it away.

The sweep kills one process of ours, whichever it is, at a step of a command's way; sweep.py tells how. CI takes some
steps of each scenario, evenly spread. MINIRT_SWEEP=all takes every one (half an hour or more), MINIRT_SWEEP=N so many.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sweep
from peers import require

from minirt.client import Client
from minirt.runtime import container, state

# Scenario: the command that dies on its way, and before it what it needs. {group} keeps cgroups apart from others'.
AS_ROOT = {
    "daemon": sweep.Scenario("run --rm --network=none {group} toolbox true", ("daemon stop",)),
    "run": sweep.Scenario("run --rm --network=none {group} toolbox true"),
    "run -d, bridge": sweep.Scenario("run -d --network=bridge -p 8080:80 {group} toolbox sleep 1000"),
    "run -d --pid=host": sweep.Scenario("run -d --network=none --pid=host {group} toolbox sleep 1000"),
    "exec": sweep.Scenario("exec box true", ("run -d --network=none --name=box {group} toolbox sleep 1000",)),
    "start": sweep.Scenario(
        "start box", ("run -d --network=bridge --name=box {group} toolbox sleep 1000", "stop -t 0 box")
    ),
    "stop": sweep.Scenario("stop -t 0 box", ("run -d --network=bridge --name=box {group} toolbox sleep 1000",)),
    "rm -f": sweep.Scenario("rm -f box", ("run -d --network=bridge --name=box {group} toolbox sleep 1000",)),
}
AS_USER = {
    "daemon": sweep.Scenario("run --rm --network=none toolbox true", ("daemon stop",)),
    "run": sweep.Scenario("run --rm --network=none toolbox true"),
    "run -d, pasta": sweep.Scenario("run -d --network=pasta toolbox sleep 1000"),
    "run -d, slirp4netns": sweep.Scenario("run -d --network=slirp4netns toolbox sleep 1000"),
    "exec": sweep.Scenario("exec box true", ("run -d --network=none --name=box toolbox sleep 1000",)),
    "rm -f": sweep.Scenario("rm -f box", ("run -d --network=pasta --name=box toolbox sleep 1000",)),
}
WISH = os.environ.get("MINIRT_SWEEP", "8")
COMMAND = [sys.executable, "-m", "minirt"]


def minirt(*words: str) -> str:
    result = subprocess.run([*COMMAND, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def kill_the_shim(folder: Path) -> None:
    run = state.read_json(str(folder / "run.json"))
    assert run is not None
    fd = state.open_process(run, "shim")
    assert fd is not None
    os.kill(run["shim"]["pid"], signal.SIGKILL)
    assert state.ended(fd, 10)
    os.close(fd)


@pytest.fixture(scope="module")
def root_machine() -> Iterator[sweep.Machine]:
    if os.geteuid() != 0:
        pytest.skip("the sweep needs root")
    for program in ("unshare", "nsenter", "setpriv", "ip", "nft"):
        require(program)
    with sweep.root_machine() as machine:
        yield machine


@pytest.fixture(scope="module")
def user_machine() -> Iterator[sweep.Machine]:
    for program in ("unshare", "nsenter", "setpriv", "ip", "nft", "pasta", "slirp4netns"):
        require(program)
    with sweep.user_machine() as machine:
        yield machine


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_ROOT)
def test_kill_9_at_every_step_as_root(root_machine: sweep.Machine, name: str) -> None:
    assert list(sweep.sweep(root_machine, AS_ROOT[name], None if WISH == "all" else int(WISH))) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_USER)
def test_kill_9_at_every_step_as_a_plain_user(user_machine: sweep.Machine, name: str) -> None:
    assert list(sweep.sweep(user_machine, AS_USER[name], None if WISH == "all" else int(WISH))) == []


def many_runs(machine: sweep.Machine, network: str) -> None:
    """All kinds in turn: in the foreground, removed while it runs, with an exec, failing, and from Python."""
    again = [
        [("run --rm --network=none toolbox true", 0)],
        [(f"run -d --network={network} -p 8080:80 --name=box {{group}} toolbox sleep 1000", 0), ("rm -f box", 0)],
        [
            ("run -d --network=none --name=box {group} toolbox sleep 1000", 0),
            ("exec box sh -c ls", 0), ("exec box nosuch", 127), ("exec -d box sleep 5", 0), ("rm -f box", 0),
        ],
        [(f"run --rm --network={network} {{group}} toolbox nosuch", 127)],
    ]  # fmt: skip

    def one(number: int) -> None:
        for words, status in again[number % 5] if number % 5 < 4 else []:
            done = machine.run(*machine.words(words))
            assert done.returncode == status, done.stdout
        if number % 5 == 4:
            assert machine.ask("run", "true") == 0

    for number in range(5):
        one(number)
    files, descriptors = machine.files(), machine.descriptors()
    for number in range(int(os.environ.get("MINIRT_RUNS", "50"))):
        one(number)
        if number % 50 == 49:
            assert list(sweep.problems(machine, files)) == []
    assert list(sweep.problems(machine, files)) == []
    assert sweep.soon(lambda: machine.descriptors() <= descriptors)  # a thread of the daemon's may be at its end


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_runs_as_root(root_machine: sweep.Machine) -> None:
    """MINIRT_RUNS: how many."""
    many_runs(root_machine, "bridge")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_runs_as_a_plain_user(user_machine: sweep.Machine) -> None:
    many_runs(user_machine, "pasta")


def test_whoever_starts_a_container_is_not_held_up_by_what_its_killed_shim_left(root_machine: sweep.Machine) -> None:
    """In a pid namespace that goes on init is left standing, and had the line by which the shim was to answer."""
    words = root_machine.words("run -d --network=none --pid=host --name=box {group} toolbox sleep 1000")
    result = root_machine.run(*words, at="send b'start'")
    assert "send b'start'" in root_machine.died_at
    assert result.returncode == 125 and "the shim died before the command ran" in result.stdout
    assert any(row.startswith("container box: process") for row in root_machine.ask("check"))
    root_machine.ask("prune")
    assert root_machine.ask("check") == [] and root_machine.look() == []


def test_an_exec_whose_middle_process_was_killed_does_not_keep_the_container(root_machine: sweep.Machine) -> None:
    """Its child, in the container's pid namespace, is an orphan that only the shim can reap."""
    machine = root_machine
    assert machine.run(*machine.words("run -d --network=none --name=box {group} toolbox sleep 1000")).returncode == 0
    assert machine.run("exec", "box", "true", at='send b\'{"pid"').returncode == 126
    assert 'send b\'{"pid"' in machine.died_at
    assert machine.run("exec", "box", "true").returncode == 0
    done = machine.run("rm", "-f", "box")
    assert done.returncode == 0, done.stdout
    assert machine.ask("check") == [] and machine.look() == []


@pytest.mark.parametrize("options", [["--network=none"], ["--network=none", "--pid=host"]])
@pytest.mark.parametrize("remedy", [["system", "prune", "-f"], ["rm", "victim"]])
def test_a_killed_shim(root: Path, options: list[str], remedy: list[str]) -> None:
    minirt("pull", "-q", "toolbox")
    identity = minirt("run", "-d", "--name=victim", *options, "toolbox", "sleep", "1000")
    folder = root / "containers" / identity
    run = json.loads((folder / "run.json").read_text())
    group = container.cgroup(folder)
    places = [place for _, place in group.folders()] if group else []
    assert Client(root).check() == []
    kill_the_shim(folder)
    problems = " ".join(row["problem"] for row in Client(root).check())
    assert ("its control group" in problems) == bool(places)
    assert (f"process {run['init']['pid']}" in problems) == ("--pid=host" in options)
    minirt(*remedy)
    assert Client(root).check() == [] and not folder.exists()
    assert [place for place in places if os.path.exists(place)] == []
    assert state.open_process(run, "init") is None


def test_a_removal_of_the_control_groups_that_was_cut_short(root: Path) -> None:
    minirt("pull", "-q", "toolbox")
    identity = minirt("run", "-d", "--network=none", "--name=victim", "toolbox", "sleep", "1000")
    group = container.cgroup(root / "containers" / identity)
    if group is None:
        pytest.skip("no control groups here")
    kill_the_shim(root / "containers" / identity)
    *first, _ = [place for _, place in group.folders()]
    for place in first:
        os.rmdir(place)
    assert len(Client(root).check()) == 1
    minirt("rm", "victim")
    assert [place for _, place in group.folders() if os.path.exists(place)] == []


def test_a_container_begins_again_over_what_a_killed_shim_left(root: Path) -> None:
    minirt("pull", "-q", "toolbox")
    identity = minirt("run", "-d", "--network=none", "--name=again", "toolbox", "sleep", "1000")
    kill_the_shim(root / "containers" / identity)
    assert minirt("start", "again") == "again"
    assert Client(root).check() == []
    minirt("rm", "-f", "again")
