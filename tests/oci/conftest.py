"""What the black-box tests of OCI runtimes share: the runtimes, a container maker, and proof that nothing is left.

Every test here is a leak test too: after it no mount, cgroup, process, zombie or state of its containers may be there.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ociruntime import NAMES, Box, Console, Runtime, children, cleaned, fill, gather, mounts, until

from minirt import linux


@pytest.fixture(scope="session")
def image() -> Iterator[Path]:
    """The root file system all containers start from; each gets its own folders with the same files linked in."""
    if os.geteuid() != 0:
        pytest.skip("the runtimes are tested as root")
    folder = Path(tempfile.mkdtemp(prefix="minirt-oci-"))
    fill(folder / "rootfs")
    yield folder / "rootfs"
    shutil.rmtree(folder)


@pytest.fixture(params=NAMES)
def runtime(request: pytest.FixtureRequest, image: Path) -> Iterator[Runtime]:
    """The runtime under test. Whatever its containers leave behind fails the test, and is taken away."""
    with_state = Runtime(request.param, Path(tempfile.mkdtemp(prefix="minirt-oci-")), image)
    before = set(children())
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield with_state
    finally:
        gather(before)  # a container whose last process waits for us to ask how it ended does not end
        left = cleaned(with_state)
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)
        end = time.monotonic() + (2 if with_state.name == "crun" else 0)  # it does not wait for those it kills
        while not gather(before) and time.monotonic() < end:
            time.sleep(0.01)
        for pid in children().keys() - before:
            left.append(f"process {pid}: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
            os.kill(pid, signal.SIGKILL)
        until(lambda: gather(before), "the processes that were left")
        if not mounts(with_state.home):
            shutil.rmtree(with_state.home)
        assert left == []


@pytest.fixture
def box(runtime: Runtime) -> Callable[..., Box]:
    """`box(*args)`: a container of the runtime under test."""
    return runtime.box


@pytest.fixture
def terminal(runtime: Runtime) -> Iterator[Console]:
    """A socket that waits for a terminal."""
    waiting = Console(runtime.home)
    yield waiting
    waiting.close()
