"""What a killed shim leaves: `system check` lists it, `system prune` and `rm` take it away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minirt.client import Client
from minirt.runtime import container, state

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


def test_a_container_begins_again_over_what_a_killed_shim_left(root: Path) -> None:
    minirt("pull", "-q", "toolbox")
    identity = minirt("run", "-d", "--network=none", "--name=again", "toolbox", "sleep", "1000")
    kill_the_shim(root / "containers" / identity)
    assert minirt("start", "again") == "again"
    assert Client(root).check() == []
    minirt("rm", "-f", "again")
