"""A disk that fails or is full, and SIGKILL, at every step by which the store changes: nothing is lost, nothing stays.

faults.py tells how a sweep is done and what has to hold. Here each verb meets a fault at each *role* (a system call and
what it is done to) once; MINIRT_SWEEP=all takes every call of every thread, with each of SIGKILL, EIO and ENOSPC, and
prints what was swept (an hour of an idle machine): `MINIRT_SWEEP=all pytest -s --timeout 0 tests/test_faults.py`.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import sys
from collections.abc import Iterator

import faults
import pytest
from peers import require
from tars import DIR, HARDLINK, SYMLINK, archive, entry
from users import plain_user

from minirt.image.platform import Platform

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="strace is Linux's"),
    pytest.mark.timeout(0 if os.environ.get("MINIRT_SWEEP") == "all" else 600),
]
EVERY = os.environ.get("MINIRT_SWEEP") == "all"


def layer(name: str) -> bytes:
    """One of each kind of entry."""
    entries = [
        entry(f"{name}dir", DIR), entry(f"{name}dir/file", content=random.Random(name).randbytes(3000)),
        entry(f"{name}hard", HARDLINK, linkname=f"{name}dir/file"), entry(f"{name}soft", SYMLINK, linkname="nowhere"),
        entry(f".wh.{name}"),
    ]  # fmt: skip
    return gzip.compress(archive(*entries), mtime=0)


@pytest.fixture(scope="module", params=["as we are", "plain user"])
def bench(request: pytest.FixtureRequest) -> Iterator[faults.Bench]:
    require("strace")
    with contextlib.ExitStack() as held:
        user = held.enter_context(plain_user(subuids=True)) if request.param == "plain user" else None
        yield held.enter_context(faults.bench(user, [layer(name) for name in "abc"], Platform.host().architecture))


@pytest.mark.parametrize("name", faults.SCENARIOS)
def test_a_fault_at_every_step(bench: faults.Bench, name: str) -> None:
    if bench.user and not EVERY and name not in ("pull", "rmi"):
        pytest.skip("what differs for a plain user, the workers in a user namespace, is in two of them")
    plan = bench.plan(name, EVERY, "worker" if bench.user and not EVERY else "engine layer worker")
    tally = faults.Tally()
    bench.sweep(name, plan, tally)
    print(f"\n{name}: {tally}")
    assert tally.problems == []
