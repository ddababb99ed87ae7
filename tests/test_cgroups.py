"""Control groups for real: the same tests on v1 (hybrid) and on pure v2, as root; systemd's where it runs.

What a machine does not have is skipped with the reason. Every group lies below one with our pid in its name.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bundles
import pytest
from peers import require
from users import plain_user

from minirt import linux
from minirt.errors import Conflict, InvalidInput, MinirtError, Unsupported
from minirt.runtime import cgroups
from minirt.runtime.cgroups import Cgroup, devices

MIB = 1 << 20
DENY_ALL = {"allow": False, "access": "rwm"}
COUNT = itertools.count()
SPIN = "import time\nend = time.time() + 0.4\nwhile time.time() < end: pass"
TREES = cgroups.mounted()
PURE_V2 = bool(TREES) and all(not tree.controllers[0] or tree.controllers[0].startswith("name=") for tree in TREES)
UNIFIED = next((tree.point for tree in TREES if "" in tree.controllers), "")

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not TREES, reason="needs root and cgroups")
only_v1 = pytest.mark.skipif(PURE_V2, reason="the controllers are on v2 here")
only_v2 = pytest.mark.skipif(not PURE_V2, reason="the controllers are on v1 here")
with_systemd = pytest.mark.skipif(not os.path.isdir("/run/systemd/system"), reason="no systemd runs here")


@contextlib.contextmanager
def cleaned(group: Cgroup) -> Iterator[Cgroup]:
    try:
        yield group
    finally:
        if group.pids():
            group.kill(signal.SIGKILL)
        group.delete()
        for _, folder in group.folders():
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(folder))


def located(name: str = "box") -> Cgroup:
    path = f"/minirt-cgroups-test-{os.getpid()}-{next(COUNT)}/{name}"
    return cgroups.locate(path, "id", systemd=False, rootless=False)


@pytest.fixture
def group() -> Iterator[Cgroup]:
    with cleaned(located()) as found:
        yield found


@pytest.fixture
def v2_group() -> Iterator[Cgroup]:
    """A group in the v2 tree only: without its controllers on a hybrid machine."""
    if not UNIFIED:
        pytest.skip("no v2 tree is mounted")
    folder = f"{UNIFIED}/minirt-cgroups-test-{os.getpid()}-{next(COUNT)}/box"
    with cleaned(Cgroup({"": folder}, {"": UNIFIED}, rootless=False)) as found:
        yield found


def begin(group: Cgroup, script: str, **options: Any) -> subprocess.Popen[str]:
    """A Python of its own in the group; `options` for Popen."""
    argv = [sys.executable, "-I", "-S", "-c", script]
    return subprocess.Popen(argv, preexec_fn=group.enter, text=True, **options)


def result(group: Cgroup, script: str) -> tuple[int, str]:
    with begin(group, script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        out, _ = process.communicate(timeout=30)
    return process.returncode, out.strip()


def left(group: Cgroup) -> list[str]:
    """Folders of the group, or of the one around it, that are there."""
    return [path for _, folder in group.folders() for path in (folder, os.path.dirname(folder)) if os.path.exists(path)]


def test_memory_limit_kills(group: Cgroup) -> None:
    group.create({"memory": {"limit": 32 * MIB, "swap": 32 * MIB}})
    code, out = result(group, f"block = bytearray({64 * MIB}); print('still here')")
    assert (code, out) == (-signal.SIGKILL, "") and group.oom_kills() == 1
    memory = group.stats()["memory"]
    assert memory["limit"] == 32 * MIB and memory["usage"] <= 32 * MIB and "inactive_file" in memory["stat"]


def test_pids_limit(group: Cgroup) -> None:
    group.create({"pids": {"limit": 3}})
    script = "import os, time\nfor n in range(5):\n try: os.fork() or (time.sleep(0.3), os._exit(0))\n"
    assert result(group, script + " except OSError as error: print(n, error.errno); break") == (0, f"2 {errno.EAGAIN}")
    assert group.stats()["pids"]["limit"] == 3
    group.update({"pids": {"limit": -1}})
    assert group.stats()["pids"]["limit"] is None


def test_cpu_quota_throttles(group: Cgroup) -> None:
    group.create({"cpu": {"quota": 5000, "period": 50000, "shares": 512}})
    result(group, SPIN)
    cpu = group.stats()["cpu"]
    assert cpu["throttled_periods"] >= 4 and cpu["throttled"] > 100_000_000
    assert cpu["total"] > 10_000_000 and cpu["user"] > 0 and cpu["periods"] >= cpu["throttled_periods"]


def test_quota_and_period_change_in_any_order(group: Cgroup) -> None:
    group.create({"cpu": {"quota": 400_000, "period": 400_000}})
    group.update({"cpu": {"period": 10_000}})
    group.update({"cpu": {"quota": 2_000, "period": 1_000, "burst": 1_000}})
    text = "cpu.max" if group.v2 else "cpu.cfs_quota_us"
    assert (group._read(text) or "").split()[0] == "2000"
    group.update({"cpu": {"quota": -1, "burst": 0}})
    assert (group._read(text) or "").split()[0] == ("max" if group.v2 else "-1")


def test_cpuset(group: Cgroup) -> None:
    first = min(os.sched_getaffinity(0))
    group.create({"cpu": {"cpus": str(first), "mems": "0"}})
    assert result(group, "import os; print(os.sched_getaffinity(0))") == (0, f"{{{first}}}")


def test_forked_child_is_born_in_the_group(group: Cgroup) -> None:
    group.create({})
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(cgroups.__file__).parents[3])!r})
from minirt.runtime.cgroups import Cgroup
pid, enter = Cgroup.from_json({group.to_json()}).fork()
if pid == 0:
    enter()
    os._exit(3 if all("/minirt-cgroups-test" in line for line in open("/proc/self/cgroup")) else 4)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=20)
    assert done.stdout.strip() == "3", done.stderr


@pytest.mark.parametrize("tree", ["whole", "v2"])
def test_frozen_processes_stand_still_until_thawed_or_killed(tree: str, request: pytest.FixtureRequest) -> None:
    group: Cgroup = request.getfixturevalue("group" if tree == "whole" else "v2_group")
    group.create({"devices": [{"allow": True, "access": "rwm"}]})
    script = "import os, time, itertools\nfor n in itertools.count(): os.write(1, b'.'); time.sleep(0.001)"
    with begin(group, script, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.read(1) == "."
        os.set_blocking(process.stdout.fileno(), False)
        group.freeze()
        state = group._read("freezer.state") or group._read("cgroup.events") or ""
        assert group.frozen and ("FROZEN" in state or "frozen 1" in state)
        with contextlib.suppress(BlockingIOError):
            os.read(process.stdout.fileno(), 65536)
        time.sleep(0.05)
        with pytest.raises(BlockingIOError):
            os.read(process.stdout.fileno(), 1)
        with subprocess.Popen(["sleep", "9"]) as other:
            with pytest.raises(Conflict, match="paused"):
                group.add(other.pid)
            other.kill()
        group.kill(signal.SIGCONT)
        assert group.frozen
        group.thaw()
        assert not group.frozen
        os.set_blocking(process.stdout.fileno(), True)
        assert os.read(process.stdout.fileno(), 1) == b"."
        group.freeze()
        group.kill(signal.SIGKILL)
        assert process.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("by_hand", [False, True])
def test_kill_leaves_nobody_of_a_family_that_forks_on(group: Cgroup, by_hand: bool) -> None:
    group.create({"pids": {"limit": 40}})
    killer = group
    if by_hand:  # as on a machine without cgroup.kill: v1 without a v2 tree beside it
        if group.v2:
            pytest.skip("every v2 that we run on has cgroup.kill")
        killer = Cgroup(*({k: v for k, v in names.items() if k} for names in (group.groups, group.points)), False)
    script = "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('on', flush=True)\n"
    script += "while True:\n try: os.fork()\n except OSError: pass\n time.sleep(0.001)"
    with begin(group, script, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == "on\n"
        killer.kill(signal.SIGTERM)
        assert group.pids()
        killer.kill(signal.SIGKILL)
        process.wait(5)
        until = time.monotonic() + 5
        while group.pids() and time.monotonic() < until:
            time.sleep(0.01)
        assert not group.pids()


def test_delete_takes_sub_groups_and_waits_for_the_dying(group: Cgroup) -> None:
    group.create({})
    for _, folder in group.folders():
        os.makedirs(f"{folder}/made/inside")
    with begin(group, "import time; print('on', flush=True); time.sleep(9)", stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == "on\n"
        assert group.pids() == [process.pid]
        with pytest.raises(Conflict, match="already"):
            group.create({})
        os.kill(process.pid, signal.SIGKILL)
        group.delete()
    assert not any(os.path.exists(folder) for _, folder in group.folders())
    group.delete()


def test_delete_says_who_lives(group: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minirt.runtime.cgroups.group._DYING", 0.05)
    group.create({})
    with begin(group, "input()", stdin=subprocess.PIPE):
        with pytest.raises(Conflict, match="still live"):
            group.delete()
        group.kill(signal.SIGKILL)


def test_a_limit_that_is_refused_leaves_no_group(group: Cgroup) -> None:
    with pytest.raises(InvalidInput, match=r"cpuset.cpus to '4000'"):
        group.create({"memory": {"limit": 64 * MIB}, "cpu": {"cpus": "4000"}})
    with pytest.raises(InvalidInput, match="cannot deny c 1:3"):
        group.create({"devices": [DENY_ALL, _rule("c", 1, -1), _rule("c", 1, 3, allow=False)]})
    assert not left(group)


@pytest.mark.slow
def test_what_a_killed_create_left_is_deleted_by_name(group: Cgroup) -> None:
    record = json.dumps(group.to_json())
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(MinirtError):
                group.create({"memory": {"limit": 64 * MIB}, "cpu": {"shares": 100}})
            os._exit(0)
        time.sleep(0.003 * (next(COUNT) % 10) / 10)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        again = Cgroup.from_json(json.loads(record))
        again.delete()
        assert not any(os.path.exists(folder) for _, folder in again.folders())


def test_update_changes_what_it_names(group: Cgroup) -> None:
    group.create({"memory": {"limit": 32 * MIB, "swap": 48 * MIB}, "pids": {"limit": 7}})
    for limit, swap in ((256, 512), (64, 64), (100, 100)):
        group.update({"memory": {"limit": limit * MIB, "swap": swap * MIB}})
        assert group.stats()["memory"]["limit"] == limit * MIB
        swapped = group._read("memory.swap.max" if group.v2 else "memory.memsw.limit_in_bytes")
        assert int(swapped or 0) == (swap - limit if group.v2 else swap) * MIB
    group.update({"memory": {"limit": -1}, "cpu": {"shares": 0, "cpus": ""}})
    assert group.stats()["memory"]["limit"] is None and group.stats()["pids"]["limit"] == 7


def _rule(kind: str, major: int, minor: int, access: str = "rwm", allow: bool = True) -> dict[str, Any]:
    return {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}


@pytest.fixture
def node() -> Iterator[Callable[[int, int], str]]:
    """Makes character nodes in a folder where they can be opened."""
    folder = Path(f"/dev/minirt-cgroups-test-{os.getpid()}-{next(COUNT)}")
    folder.mkdir()

    def make(major: int, minor: int) -> str:
        path = folder / f"{major}-{minor}"
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
        return str(path)

    yield make
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("tree", ["whole", "v2"])
def test_device_rules_hold(tree: str, request: pytest.FixtureRequest, node: Callable[[int, int], str]) -> None:
    group: Cgroup = request.getfixturevalue("group" if tree == "whole" else "v2_group")
    kmsg, zero = node(1, 11), node(1, 5)

    def opens(path: str, mode: int) -> bool:
        script = f"import os\ntry: os.open({path!r}, {mode}); print(1)\nexcept PermissionError: print(0)"
        return bool(int(result(group, script)[1]))

    many = [_rule("c", 200, minor, "rw") for minor in range(100)]
    group.create({"devices": [DENY_ALL, *many, _rule("c", 1, 11, "r")]})
    assert opens(zero, os.O_RDWR) and opens(kmsg, os.O_RDONLY) and not opens(kmsg, os.O_RDWR)
    group.update({"pids": {"limit": 0}})
    assert not opens(kmsg, os.O_RDWR)
    group.update({"devices": [DENY_ALL]})
    assert opens(zero, os.O_RDWR) and not opens(kmsg, os.O_RDONLY)
    group.update({"devices": [{"allow": True, "access": "rwm"}, _rule("c", 1, 11, "w", allow=False)]})
    assert opens(kmsg, os.O_RDONLY) and not opens(kmsg, os.O_RDWR)
    group.update({"devices": [DENY_ALL]})
    made = f"import os\ntry: os.mknod({kmsg + 'x'!r}, 0o20600, {os.makedev(1, 11)}); print(1)\nexcept OSError: print(0)"
    assert result(group, made)[1] == "1"
    assert not opens(kmsg + "x", os.O_RDONLY)


def test_only_one_program_is_attached(v2_group: Cgroup) -> None:
    v2_group.create({})
    folder = os.open(v2_group.groups[""], os.O_RDONLY)
    for times in (0, 1, 2):
        for _ in range(times):  # someone else's program beside ours goes, too: the group is ours
            fd = linux.bpf_load_device_program(devices.program(devices.policy([])))
            linux.bpf_attach_device(folder, fd)
            os.close(fd)
        v2_group.update({"devices": [DENY_ALL]})
        fds = linux.bpf_device_programs(folder)
        assert len(fds) == 1
        os.close(fds[0])
    os.close(folder)


@only_v1
def test_v1_files_are_as_runc_writes_them(group: Cgroup, tmp_path: Path) -> None:
    runc = require("runc")
    listed = [DENY_ALL, _rule("c", 1, 11, "rm"), _rule("b", 8, -1, "r"), _rule("c", 200, 7)]
    limits = {
        "devices": listed,
        "memory": {"limit": 64 * MIB, "swap": 128 * MIB, "reservation": 32 * MIB, "disableOOMKiller": True},
        "cpu": {"shares": 333, "quota": 30000, "period": 60000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 77},
    }
    name = f"minirt-cgroups-test-{os.getpid()}"
    bundles.tree(tmp_path / "rootfs", require("busybox"))
    subprocess.run([runc, "spec", "--bundle", tmp_path], check=True)
    spec = json.loads((tmp_path / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": ["sleep", "9"]}
    spec["linux"] |= {"resources": limits, "cgroupsPath": f"/{name}/runc"}
    (tmp_path / "config.json").write_text(json.dumps(spec))
    theirs = cgroups.locate(f"/{name}/runc", "x", systemd=False, rootless=False)
    command = [runc, "--root", tmp_path / "state"]
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.run([*command, "create", "--bundle", tmp_path, name], check=True, **quiet)
    try:
        group.create(limits)
        for controller in ("memory", "cpu", "cpuset", "pids", "devices"):
            one, other = Path(theirs.groups[controller]), Path(group.groups[controller])
            for file in sorted(path.name for path in one.iterdir() if _is_setting(path.name)):
                text, ours = ((folder / file).read_text().split("\n") for folder in (one, other))
                if file == "devices.list":  # runc 1.1 still allows /dev/net/tun to everybody, and not /dev/console
                    text, ours = sorted({*text} - {"c 10:200 rwm"}), sorted({*ours} - {"c 5:1 rwm"})
                assert ours == text, file
    finally:
        subprocess.run([*command, "delete", "--force", name], check=True)
        for _, folder in theirs.folders():
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(os.path.dirname(folder))


def _is_setting(file: str) -> bool:
    words = ("limit_in_bytes", "swappiness", "oom_control", "shares", "quota", "period", "burst", "cpus", "mems")
    return file in ("pids.max", "devices.list") or file.endswith(words)


def test_paths(group: Cgroup) -> None:
    for bad in ("/a/../../b", "..", "/", "."):
        with pytest.raises(InvalidInput, match="cgroupsPath"):
            cgroups.locate(bad, "x", systemd=False, rootless=False)
    beside = cgroups.locate("beside-us", "x", systemd=False, rootless=False)
    assert all(folder.endswith("/beside-us") for _, folder in beside.folders())
    default = cgroups.locate("", "x7", systemd=False, rootless=False)
    assert {folder.removeprefix(point) for point, folder in default.folders()} == {"/minirt/x7"}
    assert Cgroup.from_json(json.loads(json.dumps(group.to_json()))) == group


def test_read_only_cgroups_are_said_so() -> None:
    """As in a default docker container; in a mount namespace of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount(None, "/", None, linux.MS_PRIVATE | linux.MS_REC)
            for tree in cgroups.mounted():
                linux.mount(None, tree.point, None, linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY)
            with pytest.raises(Unsupported, match="mounted read-only"):
                cgroups.locate("/minirt-cgroups-test/x", "x", systemd=False, rootless=False)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


@only_v1
def test_a_plain_user_is_told_why_not() -> None:
    script = "from minirt.runtime import cgroups\ntry: cgroups.locate('', 'x', systemd=False, rootless=True)\n"
    with plain_user(subuids=False) as user:
        said = user.python(script + "except cgroups.Unsupported as error: print(error)")
    assert "only root may write there" in said and said.count("\n") == 1


@only_v2
def test_unified_keys_and_missing_controllers(group: Cgroup) -> None:
    group.create({"unified": {"memory.high": str(64 * MIB), "pids.max": "9"}})
    assert (group._read("memory.high"), group.stats()["pids"]["limit"]) == (f"{64 * MIB}\n", 9)
    with pytest.raises(Unsupported, match="no nonsense controller"):
        group.update({"unified": {"nonsense.max": "1"}})


@only_v2
def test_a_group_with_processes_passes_no_controllers_on(group: Cgroup) -> None:
    group.create({})
    inner = Cgroup({"": f"{group.groups['']}/inner"}, group.points, rootless=False)
    with begin(group, "input()", stdin=subprocess.PIPE) as process:
        with pytest.raises(Unsupported, match="has processes of its own"):
            inner.create({"memory": {"limit": 64 * MIB}})
        assert not os.path.exists(inner.groups[""])
        process.communicate("\n")


@only_v2
def test_exec_into_a_group_that_passes_controllers_on(group: Cgroup) -> None:
    """A container with a systemd of its own: its processes sit in sub-groups, and so must those of exec."""
    group.create({})
    inner = Cgroup({"": f"{group.groups['']}/init"}, group.points, rootless=False)
    inner.create({"pids": {"limit": 9}})
    with begin(inner, "input()", stdin=subprocess.PIPE) as process:
        with begin(group, "input()", stdin=subprocess.PIPE) as second:
            time.sleep(0.1)
            assert sorted(inner.pids()) == sorted([process.pid, second.pid])
            second.communicate("\n")
        process.communicate("\n")


def test_systemd_is_asked_only_where_it_runs() -> None:
    with pytest.raises(InvalidInput, match="slice:prefix:name"):
        cgroups.locate("/docker/x", "x", systemd=True, rootless=False)
    if not os.path.isdir("/run/systemd/system"):
        with pytest.raises(Unsupported, match="no systemd"):
            cgroups.locate("system.slice:docker:x", "x", systemd=True, rootless=False)


@with_systemd
def test_systemd_scope_keeps_its_limits_over_a_reload() -> None:
    for _ in range(2):  # the same name again at once, as in a restart
        group = cgroups.locate(f"system.slice:minirt-cgroups-test:{os.getpid()}", "x", systemd=True, rootless=False)
        with subprocess.Popen(["sleep", "60"]) as sleeper:
            try:
                group.create(
                    {"memory": {"limit": 64 * MIB}, "pids": {"limit": 9}, "cpu": {"quota": 15500}}, sleeper.pid
                )
                assert group.pids() == [sleeper.pid] and group.groups[""].endswith(
                    f"minirt-cgroups-test-{os.getpid()}.scope"
                )
                group.update({"memory": {"limit": 96 * MIB}})
                subprocess.run(["systemctl", "daemon-reload"], check=True)
                assert group.stats()["memory"]["limit"] == 96 * MIB and group.stats()["pids"]["limit"] == 9
            finally:
                sleeper.kill()
        group.delete()
        assert not os.path.exists(group.groups[""])
