"""Nothing is left: after many runs, after failures at every step, after kill -9 in the middle of create.

The fixture `runtime` looks for mounts, cgroups, processes and state after every test; here are those that try hard.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from typing import Any

import pytest
from ociruntime import Runtime, cgroups, children, gather, hierarchies, mounts, raised, states, until


def count(runtime: Runtime) -> dict[str, int]:
    """What a leak would make more of. Other programs mount and make cgroups meanwhile: only ours count."""
    folders = [folder for root in set(hierarchies().values()) for folder in root.glob(f"minirt-test-{os.getpid()}-*")]
    return {
        "mounts": len(mounts(runtime.home)),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": sum(state != "Z" for state in children().values()),
        "cgroups": len(folders),
        "states": len(states(runtime)),
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_runs(box: Any, runtime: Runtime) -> None:
    """MINIRT_RUNS: how many."""
    one = box("true")
    one.output()
    before = count(runtime)
    for _ in range(int(os.environ.get("MINIRT_RUNS", "100"))):
        assert one.run().status == 0
    assert count(runtime) == before


def test_many_execs(box: Any, runtime: Runtime) -> None:
    one = box("sleep", "60").up()
    one.exec(one.id, "true")
    before = count(runtime)
    inside = set(os.listdir(f"/proc/{one.pid}/fd"))
    for _ in range(20):
        assert one.exec(one.id, "true").status == 0
    assert count(runtime) == before
    assert set(os.listdir(f"/proc/{one.pid}/fd")) == inside
    assert json.loads(one.verb("ps", "--format", "json", one.id).out) == [one.pid]


FAILURES = {
    "command": lambda one: one.process.update(args=["nosuch"]),
    "cwd": lambda one: one.process.update(cwd="/etc/plain"),
    "source": lambda one: one.mount("/mnt", "/no/such/source", "bind"),
    "file system": lambda one: one.mount("/mnt", "x", kind="nosuchfs"),
    "last mount": lambda one: (one.mount("/mnt", "tmpfs", kind="tmpfs"), one.mount("/etc/plain", "/tmp", "bind")),
    "namespace": lambda one: one.namespace("network", "/no/such"),
    "sysctl": lambda one: one.linux.update(sysctl={"vm.swappiness": "1"}),
    "cgroup": lambda one: one.linux.update(resources={"cpu": {"cpus": "4000"}}),
    "hook": lambda one: one.config.update(hooks={"createContainer": [{"path": "/bin/false"}]}),
    "filter": lambda one: one.linux.update(seccomp={"defaultAction": "SCMP_ACT_NOSUCH"}),
    "limit": lambda one: one.process.update(rlimits=[{"type": "RLIMIT_NOSUCH", "soft": 1, "hard": 1}]),
    "device": lambda one: one.linux.update(devices=[{"path": "/dev/x", "type": "?", "major": 1, "minor": 1}]),
}


@pytest.mark.parametrize("verb", ["create", "run"])
@pytest.mark.parametrize("what", FAILURES)
def test_a_failure_leaves_nothing(box: Any, runtime: Runtime, what: str, verb: str) -> None:
    one = box("true")
    if (runtime.name, what) == ("crun", "device"):
        pytest.skip("crun 1.8 does not look")
    FAILURES[what](one)
    before = count(runtime)
    result = one.create(ok=False) if verb == "create" else one.run()
    assert result.status != 0
    after = count(runtime)
    if runtime.name == "crun":
        after["cgroups"] = before["cgroups"]  # crun 1.8 leaves those
    assert after == before


def test_a_failure_leaves_no_zombie(box: Any) -> None:
    """Not every first process of a machine asks how its orphans ended."""
    one = box("true")
    FAILURES["source"](one)
    before = set(children())
    assert one.create(ok=False).status != 0
    assert set(children()) == before


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 4, 6, 8, 11, 15, 20, 30, 45, 70])
def test_kill_9_in_the_middle_of_create(box: Any, runtime: Runtime, milliseconds: int) -> None:
    """Whatever was made by then, `delete --force` takes away; and the id can be used again."""
    one = box("sleep", "60")
    one.mount("/mnt", "tmpfs", kind="tmpfs")
    one.write()
    before = set(children())
    creating = runtime.begin("create", "--bundle", one.bundle, "--pid-file", one.pid_file, one.id)
    time.sleep(milliseconds / 1000)
    creating.send_signal(signal.SIGKILL)
    creating.wait(20)
    runtime.call("delete", "--force", one.id)
    if runtime.name in ("runc", "crun"):
        return _sweep(one, before)  # they leave a half-made one behind at some moments
    end = time.monotonic() + 5
    while not gather(before) and time.monotonic() < end:
        time.sleep(0.005)
    assert children().keys() - before == set()
    assert cgroups(one) == [] and not mounts(one.bundle)
    assert runtime.call("list", "-q").out == ""
    one.process["args"] = ["echo", "again"]
    assert one.output() == "again\n"


def _sweep(one: Any, before: set[int]) -> None:
    """What the other runtimes left of a create that was killed: our children, and the state."""
    for pid in children().keys() - before:
        os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 5
    while not gather(before) and time.monotonic() < end:
        time.sleep(0.005)
    one.runtime.call("delete", "--force", one.id)
    shutil.rmtree(one.runtime.home / "root", ignore_errors=True)
    for folder in cgroups(one):
        folder.rmdir()


def test_the_state_follows_the_process_and_not_the_start_that_was_killed(box: Any, runtime: Runtime) -> None:
    """What a `start` has done that was killed before it took its socket away; and one killed before it said a word."""
    if runtime.name != "ours":
        pytest.skip("how `start` reaches the process is each runtime's own")
    one = box("sleep", "60")
    one.create()
    for words in (b"", b"start"):
        assert one.status == "created"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gate:
            gate.connect(str(runtime.home / "root" / one.id / "start.sock"))
            if words:
                gate.send(words)
                assert gate.recv(1) == b""  # it became its command
    assert one.status == "running"
    assert raised(one.start(ok=False), "already started")
    assert one.exec(one.id, "true").status == 0
    one.kill("KILL")
    assert one.wait() == 137
    one.delete()


def test_kill_9_of_run_leaves_what_delete_can_take_away(box: Any, runtime: Runtime) -> None:
    one = box("sleep", "60")
    one.write()
    running = runtime.begin("run", "--bundle", one.bundle, "--pid-file", one.pid_file, one.id)
    until(lambda: "running" in runtime.call("state", one.id).out, "it to run")
    running.send_signal(signal.SIGKILL)
    running.wait(20)
    one.delete("--force")
    assert one.wait() == 137
    assert cgroups(one) == []


def test_a_container_whose_process_was_killed_by_others_can_be_deleted(box: Any) -> None:
    one = box("sleep", "60").up()
    os.kill(one.pid, signal.SIGKILL)
    assert one.wait() == 137
    assert one.status == "stopped"
    one.delete()
