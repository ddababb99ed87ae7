"""Hundreds of runs through the API, many at once, with execs and logs: what is there afterwards is what was there
before. No process, descriptor, thread, mount, control group, network link or file stays.

MINIRT_SOAK=500x50 sets how many, and how many at once; in CI it is 100x20.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_daemon_hostile import Daemon, begun, everything, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="containers of root"),
]
MADE: set[str] = set()  # the ids of all: other tests have containers at the same time
SECONDS = 300  # the bar for 500 runs on a quiet machine


def amounts() -> tuple[int, int]:
    runs, _, together = os.environ.get("MINIRT_SOAK", "100x20" if os.environ.get("CI") else "500x50").partition("x")
    return int(runs), int(together)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    assert daemon.ask("POST", "/images/create?fromImage=toolbox&tag=latest")[0] == 200
    yield daemon
    daemon.close()


def run(daemon: Daemon, number: int) -> None:
    """One run as `docker run` does it, and beside it what a busy user does."""
    auto, network = number % 3 == 0, "bridge" if number % 5 == 0 else "none"
    words = ["sh", "-c", f"echo out {number}; echo err {number} >&2; read line; echo $line; exit {number % 7}"]
    host = {"AutoRemove": auto, "NetworkMode": network}
    identity = daemon.create(words, OpenStdin=True, StdinOnce=True, HostConfig=host, Volumes={"/data": {}})
    MADE.add(identity)
    at = f"/containers/{identity}"
    upgrade = ("Connection: Upgrade", "Upgrade: tcp", "Content-Length: 0")
    with contextlib.ExitStack() as lines:
        attached = lines.enter_context(
            begun(daemon, "POST", f"{at}/attach?stream=1&stdin=1&stdout=1&stderr=1", b"", *upgrade, seconds=120)
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += attached.recv(1)
        waiting = lines.enter_context(
            begun(daemon, "POST", f"{at}/wait?condition={'removed' if auto else 'next-exit'}", b"",
                  "Content-Length: 0", "Connection: close", seconds=120)
        )  # fmt: skip
        assert waiting.recv(12) == b"HTTP/1.1 200"
        assert daemon.ask("POST", f"{at}/start") == (204, None)
        if number % 2:
            status, made = daemon.ask("POST", f"{at}/exec", {"Cmd": ["echo", "in", str(number)], "AttachStdout": True})
            assert status == 201, made
            with begun(daemon, "POST", f"/exec/{made['Id']}/start", b"{}", "Connection: Upgrade", "Upgrade: tcp",
                       "Content-Type: application/json", "Content-Length: 2", seconds=120) as line:  # fmt: skip
                assert b"in %d\n" % number in everything(line)
            assert daemon.ask("GET", f"/exec/{made['Id']}/json")[1]["ExitCode"] == 0
        followed = begun(daemon, "GET", f"{at}/logs?follow=1&stdout=1&stderr=1", b"", "Connection: close", seconds=120)
        lines.enter_context(followed)
        if number % 4 == 0:  # one that leaves
            lines.enter_context(begun(daemon, "GET", f"{at}/stats")).recv(12)
        attached.sendall(b"typed %d\n" % number)
        attached.shutdown(1)
        said = everything(attached)
        for word in (b"out %d\n", b"err %d\n", b"typed %d\n"):
            assert word % number in said, said
        assert b'"StatusCode": %d' % (number % 7) in everything(waiting)
        if not auto:  # a log of one that removes itself may be gone before its end
            assert b"typed %d\n" % number in everything(followed)
    if not auto:
        assert daemon.ask("DELETE", f"{at}?v=1") == (204, None)


def machine(daemon: Daemon) -> dict[str, Any]:
    """What runs could leave."""
    ours = os.fsencode(daemon.root)
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if ours in path.read_bytes() and path.parent.name != str(daemon.process.pid):
                processes.append((path.parent.name, path.read_bytes()))
    root = daemon.root
    tops = list(Path("/sys/fs/cgroup").glob("**/minirt"))
    leases = (json.loads((root / "network.json").read_bytes()) if (root / "network.json").exists() else {}).get(
        "leases"
    )
    return {
        "processes": processes,
        "descriptors": daemon.fds(),
        "threads": daemon.field("Threads"),
        "children": daemon.children(),
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(root) in line],
        "groups": [name for top in tops if top.exists() for name in os.listdir(top) if name in MADE],
        "containers": os.listdir(root / "containers"),
        "volumes": os.listdir(root / "volumes") if (root / "volumes").exists() else [],
        "files": sorted(name for name in os.listdir(root) if name not in ("network.json", "volumes", "volumes.lock")),
        "links": leases or [],  # of what is left of them in the kernel /minirt/check tells
    }


def many(daemon: Daemon, count: int, together: int) -> list[str]:
    """So many runs, so many of them at once; what failed."""
    numbers, lock = iter(range(count)), threading.Lock()
    failures: list[str] = []

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None or len(failures) > 5:
                return
            try:
                run(daemon, number)
            except BaseException as error:
                failures.append(f"run {number}: {type(error).__name__}: {error}")

    workers = [threading.Thread(target=work) for _ in range(together)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return failures


def test_a_soak_leaves_nothing(daemon: Daemon) -> None:
    count, together = amounts()
    # Whatever stays from the first on: pools of threads, the bridge, a cached filter.
    assert many(daemon, 2 * together, together) == []
    wait_for(lambda: daemon.children() <= 1)
    before, memory = machine(daemon), daemon.field("Pss", "smaps_rollup")
    began = time.monotonic()
    failures = many(daemon, count, together)
    took = time.monotonic() - began
    assert not failures, failures
    with contextlib.suppress(AssertionError):
        wait_for(lambda: all(now <= was for now, was in pairs(machine(daemon), before)), 20)
    after = machine(daemon)
    grown = {name: (before[name], after[name]) for name in before if not size(after[name]) <= size(before[name])}
    assert not grown, grown
    assert "Traceback" not in daemon.said(), daemon.said()[-3000:]
    assert daemon.ask("GET", "/minirt/check")[1] == []
    more = daemon.field("Pss", "smaps_rollup") - memory
    print(
        f"{count} runs, {together} at once: {took:.0f} s, {count / took:.1f} a second; memory {memory} kB, {more:+} kB"
    )
    assert took < SECONDS * (1 if count <= 500 else count / 500)
    assert more < 20_000, "kB"


def size(what: Any) -> int:
    return what if isinstance(what, int) else len(what)


def pairs(now: dict[str, Any], was: dict[str, Any]) -> list[tuple[int, int]]:
    return [(size(now[name]), size(was[name])) for name in was]


def test_an_idle_daemon_is_small(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    try:
        daemon.ask("GET", "/_ping")
        kilobytes = daemon.field("Pss", "smaps_rollup")
        print(json.dumps({"idle daemon, PSS kB": kilobytes}))
        assert kilobytes < 60_000
    finally:
        daemon.close()
