"""cgroups: where, which values, device rules, update, pause, ps (runtime-spec config-linux.md#control-groups).

Values are read back from the kernel's own files, those of v1 or v2, whichever the machine has.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ociruntime import cgroups, hierarchies, raised, until

V2 = "memory" not in hierarchies()
SLEEP = ("sleep", "60")
# what: (v1 controller, v1 file, v2 file)
FILES = {
    "memory": ("memory", "memory.limit_in_bytes", "memory.max"),
    "reservation": ("memory", "memory.soft_limit_in_bytes", "memory.low"),
    "pids": ("pids", "pids.max", "pids.max"),
    "shares": ("cpu", "cpu.shares", "cpu.weight"),
    "quota": ("cpu", "cpu.cfs_quota_us", "cpu.max"),
    "period": ("cpu", "cpu.cfs_period_us", "cpu.max"),
    "cpus": ("cpuset", "cpuset.cpus", "cpuset.cpus"),
    "mems": ("cpuset", "cpuset.mems", "cpuset.mems"),
}


def value(one: Any, what: str) -> str:
    """What the kernel has for this container, in v1's terms."""
    controller, old, new = FILES[what]
    if not V2:
        return (hierarchies()[controller] / one.cgroup / old).read_text().strip()
    text = (hierarchies()[""] / one.cgroup / new).read_text().strip()
    if what in ("quota", "period"):
        return text.split()[what == "period"]
    return str(1 + (int(text) - 1) * 262142 // 9999 + 1) if what == "shares" else text


def limited(box: Any, resources: dict[str, Any]) -> Any:
    one = box(*SLEEP)
    one.linux["resources"] = resources
    return one.up()


def test_the_container_is_in_the_cgroup_named(box: Any) -> None:
    one = box(*SLEEP).up()
    found = cgroups(one)
    assert found
    assert str(one.pid) in Path(found[0], "cgroup.procs").read_text().split()
    rows = Path(f"/proc/{one.pid}/cgroup").read_text().splitlines()
    names = {"memory", "pids", "devices", "cpu", "freezer"} if not V2 else {""}
    assert {row.split(":")[1] for row in rows if row.endswith(f"/{one.cgroup}")} >= names


def test_a_path_with_folders(box: Any) -> None:
    one = box(*SLEEP)
    one.linux["cgroupsPath"] = f"/{one.cgroup}/deep/er"
    one.up()
    (row,) = (row for row in Path(f"/proc/{one.pid}/cgroup").read_text().splitlines() if ":pids:" in row or V2)
    assert row.endswith(f"/{one.cgroup}/deep/er")
    one.delete("--force")
    one.wait()
    for folder in cgroups(one):  # the container's own is gone; the parents may stay, as they do with runc
        assert not (folder / "deep/er").exists()
        for path in (folder / "deep", folder):
            if path.exists():
                path.rmdir()


def test_without_a_path_it_gets_one(box: Any) -> None:
    one = box(*SLEEP)
    del one.linux["cgroupsPath"]
    one.up()
    assert one.id in Path(f"/proc/{one.pid}/cgroup").read_text()


@pytest.mark.parametrize(
    ("what", "resources", "wanted"),
    [
        ("memory", {"memory": {"limit": 64 << 20}}, str(64 << 20)),
        ("reservation", {"memory": {"limit": 64 << 20, "reservation": 32 << 20}}, str(32 << 20)),
        ("pids", {"pids": {"limit": 33}}, "33"),
        ("shares", {"cpu": {"shares": 512}}, "512"),
        ("quota", {"cpu": {"quota": 50000, "period": 100000}}, "50000"),
        ("period", {"cpu": {"quota": 50000, "period": 200000}}, "200000"),
        ("cpus", {"cpu": {"cpus": "0"}}, "0"),
        ("mems", {"cpu": {"mems": "0"}}, "0"),
    ],
)
def test_a_value_is_in_its_file(box: Any, what: str, resources: dict[str, Any], wanted: str) -> None:
    if V2 and what == "shares":
        pytest.skip("v2 rounds shares to a weight; see test_shares_become_a_weight")
    assert value(limited(box, resources), what) == wanted


@pytest.mark.skipif(not V2, reason="v1 has shares")
def test_shares_become_a_weight(box: Any) -> None:
    one = limited(box, {"cpu": {"shares": 512}})
    assert (hierarchies()[""] / one.cgroup / "cpu.weight").read_text() == "20\n"


@pytest.mark.skipif(not V2, reason="only v2 is unified")
def test_unified_values_are_written_as_they_are(box: Any) -> None:
    one = limited(box, {"unified": {"memory.high": "50331648"}})
    assert (hierarchies()[""] / one.cgroup / "memory.high").read_text() == "50331648\n"


@pytest.mark.skipif(V2, reason="v2 has it")
def test_unified_values_on_v1_are_refused(box: Any) -> None:
    one = box("true")
    one.linux["resources"] = {"unified": {"memory.high": "50331648"}}
    if one.runtime.name == "runc" and "" in hierarchies():
        pytest.skip("runc 1.1 on hybrid: not looked at")
    assert raised(one.create(ok=False), "unified", "cgroup")


def test_no_limit(box: Any, runtime: Any) -> None:
    if runtime.name == "crun":
        pytest.skip("crun 1.8 writes -1, which the kernel refuses")
    one = limited(box, {"pids": {"limit": -1}})
    assert value(one, "pids") == "max"


def test_a_limit_on_processes_holds(box: Any) -> None:
    one = box("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo all")
    one.linux["resources"] = {"pids": {"limit": 4}}
    result = one.run()
    assert result.out == "" and "fork" in result.err


def test_a_limit_on_memory_holds(box: Any) -> None:
    """The command that wants more is killed, and its parent sees 128 + 9."""
    one = box("sh", "-c", "x=x; while :; do x=$x$x; done")
    one.linux["resources"] = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    one.up()
    assert one.wait() == 137


def test_a_cpu_set_holds(box: Any) -> None:
    one = box("grep", "Cpus_allowed_list", "/proc/self/status")
    one.linux["resources"] = {"cpu": {"cpus": "0"}}
    assert one.output().split()[1] == "0"


def test_a_wrong_value_is_refused(box: Any) -> None:
    one = box("true")
    one.linux["resources"] = {"cpu": {"cpus": "4000-5000"}}
    assert raised(one.create(ok=False))


DENY_ALL = {"allow": False, "access": "rwm"}


def char(path: str, minor: int) -> dict[str, Any]:
    """One of the memory devices, under a name that no default rule knows."""
    return {"path": path, "type": "c", "major": 1, "minor": minor, "fileMode": 0o666}


def rule(minor: int, access: str) -> dict[str, Any]:
    return {"allow": True, "type": "c", "major": 1, "minor": minor, "access": access}


@pytest.mark.parametrize("word", ["cat /dev/log0", "echo x > /dev/log0"], ids=["read", "write"])
def test_a_device_that_is_not_allowed_cannot_be_opened(box: Any, word: str) -> None:
    """The node is the kernel's log, 1:11, made as asked for; only the cgroup stands before it."""
    one = box("sh", "-c", f"ls /dev/log0; timeout 1 {word}" if word[0] == "c" else f"ls /dev/log0; {word}")
    one.linux["devices"] = [char("/dev/log0", 11)]
    one.linux["resources"] = {"devices": [DENY_ALL, rule(11, "m")]}
    result = one.run()
    assert result.status != 0 and result.out == "/dev/log0\n"
    assert "not permitted" in result.err


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no /dev/fuse")
def test_a_rule_gives_reading_alone(box: Any) -> None:
    one = box("sh", "-c", "(: < /dev/made) && echo read; : > /dev/made")
    one.linux["devices"] = [char("/dev/made", 229) | {"major": 10}]
    one.linux["resources"] = {"devices": [DENY_ALL, rule(229, "rm") | {"major": 10}]}
    result = one.run()
    assert result.out == "read\n"
    assert "not permitted" in result.err


def test_a_node_made_inside_cannot_be_opened(box: Any) -> None:
    """Making nodes is allowed (runtimes add `c *:* m` and `b *:* m`), so the rule is what holds."""
    one = box("sh", "-c", "mknod /tmp/x c 1 11 && cat /tmp/x")
    for kind in ("bounding", "effective", "permitted"):
        one.process["capabilities"][kind].append("CAP_MKNOD")
    one.linux["resources"] = {"devices": [DENY_ALL]}
    result = one.run()
    assert result.status != 0 and "/tmp/x" in result.err and "not permitted" in result.err


def test_the_usual_devices_work_whatever_the_rules(box: Any) -> None:
    """runtime-spec: /dev/null, zero, full, random, urandom, tty, console, ptmx are supplied and allowed."""
    names = ["null", "zero", "full", "random", "urandom"]
    one = box("sh", "-c", "".join(f"head -c 1 /dev/{name} >/dev/null && echo {name}; " for name in names))
    one.linux["resources"] = {"devices": [DENY_ALL]}
    assert one.output().split() == names


def test_the_usual_devices_and_links_are_there(box: Any) -> None:
    names = ["null", "zero", "full", "random", "urandom", "tty"]
    one = box("sh", "-c", "stat -c '%n %a %t:%T' " + " ".join(f"/dev/{name}" for name in names))
    numbers = {"null": "1:3", "zero": "1:5", "full": "1:7", "random": "1:8", "urandom": "1:9", "tty": "5:0"}
    assert one.output().splitlines() == [f"/dev/{name} 666 {numbers[name]}" for name in names]
    two = box("sh", "-c", "for n in fd stdin stdout stderr ptmx; do readlink /dev/$n; done")
    links = two.output().split()
    assert links[:4] == ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"]
    assert links[4] in ("pts/ptmx", "/dev/pts/ptmx")


def test_devices_listed_are_made(box: Any) -> None:
    one = box("stat", "-c", "%F %a %u:%g %t:%T", "/dev/deep/one", "/dev/pipe")
    one.linux["devices"] = [
        {"path": "/dev/deep/one", "type": "c", "major": 10, "minor": 200, "fileMode": 0o640, "uid": 7, "gid": 8},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600},
    ]
    first, second = one.output().splitlines()
    assert first == "character special file 640 7:8 a:c8"
    assert second.startswith("fifo 600 0:0")


def test_update_from_a_file_and_from_stdin(box: Any) -> None:
    one = limited(box, {"memory": {"limit": 64 << 20, "swap": 64 << 20}})
    resources = {"memory": {"limit": 96 << 20, "swap": 96 << 20}, "pids": {"limit": 50}, "cpu": {"shares": 2048}}
    (one.bundle / "update.json").write_text(json.dumps(resources))
    one.verb("update", "--resources", one.bundle / "update.json", one.id)
    assert (value(one, "memory"), value(one, "pids")) == (str(96 << 20), "50")
    if one.runtime.name == "crun":
        return  # crun 1.8 reads a file only
    resources["pids"]["limit"] = 60
    one.verb("update", "--resources", "-", one.id, stdin=json.dumps(resources))
    assert value(one, "pids") == "60"


def test_update_joined_to_its_option(box: Any) -> None:
    """podman writes --resources=FILE."""
    one = box(*SLEEP).up()
    (one.bundle / "update.json").write_text('{"pids": {"limit": 51}}')
    one.verb("update", f"--resources={one.bundle}/update.json", one.id)
    assert value(one, "pids") == "51"


@pytest.mark.parametrize(
    ("what", "words", "wanted"),
    [
        ("memory", ["--memory", str(80 << 20), "--memory-swap", str(80 << 20)], str(80 << 20)),
        ("reservation", ["--memory-reservation", str(16 << 20)], str(16 << 20)),
        ("pids", ["--pids-limit", "44"], "44"),
        ("shares", ["--cpu-share", "256"], "256"),
        ("quota", ["--cpu-period", "100000", "--cpu-quota", "20000"], "20000"),
        ("cpus", ["--cpuset-cpus", "0"], "0"),
    ],
)
def test_update_by_options(box: Any, what: str, words: list[str], wanted: str) -> None:
    if V2 and what == "shares":
        pytest.skip("v2 rounds shares to a weight")
    one = box(*SLEEP).up()
    one.verb("update", *words, one.id)
    assert value(one, what) == wanted


def test_update_leaves_the_rest(box: Any) -> None:
    one = limited(box, {"memory": {"limit": 64 << 20}, "cpu": {"shares": 512}})
    one.verb("update", "--pids-limit", "44", one.id)
    assert value(one, "memory") == str(64 << 20)
    assert V2 or value(one, "shares") == "512"


def test_update_refuses_broken_input(box: Any) -> None:
    one = box(*SLEEP).up()
    (one.bundle / "broken").write_text("{")
    assert raised(one.verb("update", "--resources", one.bundle / "broken", one.id, ok=False))
    assert raised(one.verb("update", "--resources", one.bundle / "nosuch", one.id, ok=False), "no such file")
    assert one.status == "running"


def test_pause_stops_it_and_resume_goes_on(box: Any) -> None:
    one = box("sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done").up()
    until(lambda: "3\n" in one.printed, "it to count")
    one.verb("pause", one.id)
    assert one.status == "paused"
    before = one.printed
    time.sleep(0.05)
    assert one.printed == before
    one.verb("resume", one.id)
    assert one.status == "running"
    until(lambda: len(one.printed) > len(before), "it to count again")


def test_pause_is_only_for_the_running(box: Any) -> None:
    one = box("true").up()
    one.wait()
    assert raised(one.verb("pause", one.id, ok=False))
    assert raised(one.verb("resume", one.id, ok=False))


def test_resume_of_what_is_not_paused_is_refused(box: Any) -> None:
    one = box(*SLEEP).up()
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 lets it be")
    assert raised(one.verb("resume", one.id, ok=False), "paused")


def test_delete_by_force_of_a_paused_one(box: Any) -> None:
    one = box(*SLEEP).up()
    one.verb("pause", one.id)
    one.delete("--force")
    assert one.wait() == 137


def test_kill_of_a_paused_one_takes_effect_when_resumed(box: Any) -> None:
    one = box(*SLEEP).up()
    one.verb("pause", one.id)
    one.kill("KILL")
    if Path(f"/proc/{one.pid}/stat").read_text().split()[2] != "Z":
        one.runtime.call("resume", one.id)  # runc thaws it for SIGKILL by itself
    assert one.wait() == 137


def test_ps_lists_the_processes(box: Any) -> None:
    one = box("sh", "-c", "sleep 60 & sleep 61 & echo up; wait").up()
    until(lambda: one.printed == "up\n", "both")
    pids = json.loads(one.verb("ps", "--format", "json", one.id).out)
    assert len(pids) == 3 and one.pid in pids
    table = one.verb("ps", one.id).out.splitlines()
    assert "PID" in table[0]
    assert {int(word) for row in table[1:] for word in row.split() if word.isdigit()} >= {one.pid}
    assert len(table) == 4


def test_ps_of_a_stopped_one_is_empty_or_refused(box: Any) -> None:
    one = box("true").up()
    one.wait()
    result = one.verb("ps", "--format", "json", one.id, ok=False)
    assert result.status != 0 or json.loads(result.out) in ([], None)


def test_delete_takes_the_cgroup_away(box: Any) -> None:
    one = box("true").up()
    assert cgroups(one)
    one.wait()
    one.delete()
    assert cgroups(one) == []


def test_a_cgroup_below_made_by_the_container_goes_too(box: Any) -> None:
    one = box(*SLEEP).up()
    for folder in cgroups(one):
        (folder / "below").mkdir()
    one.delete("--force")
    one.wait()
    assert cgroups(one) == []


def test_a_cgroup2_mount_shows_the_containers_own_group(runtime: Any) -> None:
    """Its cgroup namespace is there before it is mounted: the machine's groups are not to be seen."""
    if runtime.name == "crun":
        pytest.skip("crun 1.8 shows the machine's")
    one = runtime.box("sh", "-c", "cat /proc/self/cgroup; ls /groups")
    one.config["mounts"].insert(0, {"destination": "/groups", "type": "cgroup2", "source": "cgroup2"})
    if not any(entry["type"] == "cgroup" for entry in one.linux["namespaces"]):
        one.linux["namespaces"].append({"type": "cgroup"})
    result = one.run()
    assert "cgroup.procs" in result.out and not {"minirt", "docker", "init.scope"} & set(result.out.split())
