"""The benchmark still runs, and the bars that no noise on the machine can hide: fsyncs, and what an engine weighs.

That the run path loads nothing slow is in test_project.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import require

TOP = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "minirt"]
MB = 1e6


def test_one_case_with_a_report(tmp_path: Path) -> None:
    """The smallest: ours and runc in turns, with the registry and all that is set up around them."""
    if os.geteuid() != 0:
        pytest.skip("the benchmark needs root")
    for peer in ("docker-registry", "skopeo", "runc", "ip"):
        require(peer)
    page = tmp_path / "report.md"
    words = ["--quick", "--only=run", "--only=pull-small-files", "--peers=runc", "--rounds=1", f"--report={page}"]
    command = [sys.executable, "-m", "benchmarks", *words, f"--python={sys.executable}"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {case["name"]: case for case in json.loads(page.with_suffix(".json").read_text())["cases"]}
    assert set(found) == {"run", "run-alone", "pull-small-files"}
    assert found["run"]["ratio"]["runc"] > 0 and found["run"]["cpu"]["minirt"] > 0
    assert found["pull-small-files"]["peak_bytes"]["minirt"] < 150 * MB
    assert "| minirt |" in page.read_text() and "<rect" in (tmp_path / "run.svg").read_text()


def test_a_case_that_is_not_there_is_told() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only=nosuch"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr == "there is no case nosuch\n"


@pytest.fixture
def daemon(root: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in the foreground, under strace where that is here; what it syncs is in `syncs`."""
    trace = [require("strace"), "-f", "-q", "-e", "trace=fsync,fdatasync,syncfs", "-o", str(tmp_path / "syncs")]
    with subprocess.Popen([*trace, *COMMAND, "daemon"], stdout=subprocess.PIPE) as process:
        assert process.stdout and b"listening" in process.stdout.readline()
        yield process
        subprocess.run([*COMMAND, "daemon", "stop"], check=False)


def test_a_warm_run_syncs_twice(daemon: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """What makes a container durable: its record, and the folder that names it. Nothing else waits for the disk."""
    run = [*COMMAND, "run", "--rm", "hello-world"]
    subprocess.run(run, check=True, capture_output=True)
    before = (tmp_path / "syncs").read_text().count("sync")
    assert before > 2  # the pull: blobs, layer, names
    subprocess.run(run, check=True, capture_output=True)
    assert (tmp_path / "syncs").read_text().count("sync") - before == 2


def test_weights(root: Path) -> None:
    """The daemon at rest after a pull and a run, its launcher with it; and what one more container brings."""
    run = [*COMMAND, "run", "--detach", "--network=none", "toolbox", "sleep", "1000"]
    subprocess.run(run, check=True, capture_output=True)
    daemon = _listener(root)
    time.sleep(0.5)
    own = [daemon, *_children(daemon)]
    weights = {pid: _pss(pid) for pid in own}
    assert len(own) == 2 and sum(weights.values()) < 40 * MB, weights
    shims = _shims(root)
    before = sum(map(_pss, [*own, *shims]))
    for _ in range(2):
        subprocess.run(run, check=True, capture_output=True)
    shims = _shims(root)
    assert len(shims) == 3
    more = sum(map(_pss, [*own, *shims])) - before  # what they share with others is counted once
    assert 2 * MB < more < 2 * 8 * MB


def _shims(root: Path) -> list[int]:
    return [json.loads(path.read_text())["shim"]["pid"] for path in root.glob("containers/*/run.json")]


def _listener(root: Path) -> int:
    from minirt.client.place import peer, told

    return peer(told(root))


def _children(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _pss(pid: int) -> int:
    """Bytes, what is shared in parts. Source: proc(5), smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
