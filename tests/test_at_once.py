"""Two, ten, fifty pulls at once, of the same image and of images that share layers: each layer is downloaded once.

Through one daemon, whose client each has; and by processes that each have an engine of their own over one store, as a
container that shares its host's store has.
"""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from registries import Scripted
from tars import archive, entry

from minirt.client import Client
from minirt.image.platform import Platform

IMAGES = 5  # each has the base, a layer shared with the next one, and one of its own
# Words: root folder, how many threads, names. Begins when its input ends.
PROCESS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from minirt.engine import Engine
root, threads, *names = sys.argv[1:]
engine = Engine(Path(root), "embedded")
sys.stdin.read()
def pull(name):
    return [line["status"] for line in engine.pull(name) if line][-1]
with ThreadPoolExecutor(int(threads)) as pool:
    print("\\n".join(pool.map(pull, names)))
"""


def layer(name: str, size: int = 100_000) -> bytes:
    return gzip.compress(archive(entry(name, content=random.Random(name).randbytes(size))), mtime=0)


@pytest.fixture
def hub() -> Iterator[Scripted]:
    with Scripted(auth="none", redirects=False) as made:
        for number in range(IMAGES):
            shared = layer(f"shared-{number // 2}")
            layers = [layer("base", 1_000_000), shared, layer(f"own-{number}")]
            made.image("team/app", str(number), layers, (Platform.host().architecture,))
        yield made


def names(hub: Scripted, count: int, same: bool) -> list[str]:
    return [f"{hub.domain}/team/app:{0 if same else number % IMAGES}" for number in range(count)]


def downloads(hub: Scripted) -> list[int]:
    """How often each layer was asked for; without the images' configs, which are small."""
    asked = Counter(request.path.rpartition("/")[2] for request in hub.seen("registry", "/blobs/"))
    return [times for digest, times in asked.items() if len(hub.blobs[digest]) > 50_000]


def layers(count: int, same: bool) -> int:
    numbers = range(1 if same else min(count, IMAGES))
    return 1 + len({number // 2 for number in numbers}) + len(numbers)


@pytest.mark.parametrize("same", [True, False], ids=["the same", "overlapping"])
@pytest.mark.parametrize("count", [2, 10, pytest.param(50, marks=pytest.mark.slow)])
def test_through_one_daemon(root: Path, hub: Scripted, count: int, same: bool) -> None:
    def one(name: str) -> str:
        with Client(root) as client:
            return [line["status"] for line in client.pull(name)][-1]

    with Client(root) as first:
        assert first.images() == []  # the daemon runs
        begin = time.monotonic()
        with ThreadPoolExecutor(count) as pool:
            ends = list(pool.map(one, names(hub, count, same)))
        print(f"\n{count} pulls through one daemon: {time.monotonic() - begin:.2f} s")
        assert all(end.startswith("Status: ") for end in ends)
        assert downloads(hub) == [1] * layers(count, same)
        assert len(first.images()) == (1 if same else min(count, IMAGES))
        assert first.check() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "threads", "same"), [(2, 1, True), (10, 1, True), (10, 5, False)], ids=["2", "10", "50, overlapping"]
)
def test_by_several_processes(root: Path, hub: Scripted, processes: int, threads: int, same: bool) -> None:
    words = [sys.executable, "-c", PROCESS, str(root), str(threads)]
    wanted = names(hub, processes * threads, same)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    started = [
        subprocess.Popen(
            [*words, *wanted[number * threads : (number + 1) * threads]], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
        )
        for number in range(processes)
    ]  # fmt: skip
    time.sleep(1)  # so that they begin together
    for process in started:
        assert process.stdin
        process.stdin.close()
        process.stdin = None
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert [line[:8] for line in out.splitlines()] == ["Status: "] * threads, out
    assert downloads(hub) == [1] * layers(processes * threads, same)
    with Client(root) as client:
        assert client.check() == []
        assert len(client.images()) == len({*wanted})
