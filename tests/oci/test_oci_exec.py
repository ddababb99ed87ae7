"""exec: another command in a running container, as docker and podman ask for it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ociruntime import PATH, cgroups, children, raised, reap, until

SLEEP = ("sleep", "60")


def test_it_runs_and_its_status_is_ours(box: Any) -> None:
    one = box(*SLEEP).up()
    assert one.exec(one.id, "echo", "hello") == (0, "hello\n", "")
    assert one.exec(one.id, "sh", "-c", "exit 42").status == 42
    assert one.exec(one.id, "sh", "-c", "kill -9 $$").status == 128 + signal.SIGKILL


def test_its_standard_files_are_ours(box: Any) -> None:
    one = box(*SLEEP).up()
    assert one.exec(one.id, "sh", "-c", "cat; echo wrong >&2", stdin="typed\n") == (0, "typed\n", "wrong\n")


def test_options_end_at_the_id(box: Any) -> None:
    one = box(*SLEEP).up()
    assert one.exec(one.id, "echo", "-e", "--tty", "-u").out == "--tty -u\n"


def test_it_joins_every_namespace_and_the_cgroup(box: Any) -> None:
    one = box(*SLEEP)
    one.namespace("cgroup")
    one.up()
    kinds = ["pid", "net", "mnt", "ipc", "uts", "cgroup"]
    text = one.sh("".join(f"readlink /proc/self/ns/{kind}; " for kind in kinds))
    assert text.split() == [os.readlink(f"/proc/{one.pid}/ns/{kind}") for kind in kinds]
    mine = one.sh("cat /proc/self/cgroup")
    assert mine == one.sh("cat /proc/1/cgroup")


def test_it_is_in_the_cgroup_while_it_runs(box: Any) -> None:
    one = box(*SLEEP).up()
    one.exec("--detach", "--pid-file", one.bundle / "exec", one.id, "sleep", "60", ok=True)
    other = int((one.bundle / "exec").read_text())
    for folder in cgroups(one):
        procs = set((folder / "cgroup.procs").read_text().split())
        assert str(other) in procs or not procs
    os.kill(other, signal.SIGKILL)
    reap(other)


def test_user_and_group(box: Any) -> None:
    one = box(*SLEEP).up()
    script = "id -u; id -g; echo $HOME"
    assert one.sh(script, "-u", "1000:1001").split() == ["1000", "1001", "/home/web"]
    assert one.sh(script, "--user", "1000").split()[0] == "1000"


def test_the_environment(box: Any) -> None:
    one = box(*SLEEP)
    one.process["env"] = [PATH, "COLOR=green", "SIZE=big"]
    one.up()
    lines = one.exec("-e", "COLOR=red", "-e", "MORE=a=b", one.id, "/bin/env").out.splitlines()
    assert {"COLOR=red", "MORE=a=b"} <= set(lines)
    assert {"SIZE=big", PATH} <= set(lines) or one.runtime.name == "crun"  # crun 1.8 lets the config's go
    assert "COLOR=green" not in lines


def test_the_working_directory(box: Any) -> None:
    one = box(*SLEEP)
    one.process["cwd"] = "/etc"
    one.up()
    assert one.exec(one.id, "pwd").out == "/etc\n" or one.runtime.name == "crun"  # crun 1.8 begins at /
    assert one.exec("--cwd", "/bin", one.id, "pwd").out == "/bin\n"


@pytest.mark.parametrize("number", [3, 5, 6, 7, 8, 9, 10])
def test_a_working_directory_behind_a_descriptor_gives_nothing_of_the_host(box: Any, number: int) -> None:
    """CVE-2024-21626."""
    one = box(*SLEEP).up()
    result = one.exec("--cwd", f"/proc/self/fd/{number}", one.id, "sh", "-c", "ls -a ../../../..")
    assert result.status != 0 or not {"boot", "var", "minirt"} & set(result.out.split())


def test_a_process_file(box: Any) -> None:
    """What containerd's shim and conmon send: all of it counts, nothing is taken from the config."""
    one = box(*SLEEP)
    one.process["env"] = [PATH, "COLOR=green"]
    one.up()
    wanted = "NoNewPrivs|CapBnd|Groups"
    process = {
        "args": ["sh", "-c", f"id -u; pwd; echo $COLOR $SIZE; grep -E '{wanted}' /proc/self/status; ulimit -n; umask"],
        "env": [PATH, "SIZE=big"],
        "cwd": "/etc",
        "user": {"uid": 1000, "gid": 1000, "additionalGids": [2000], "umask": 0o077},
        "capabilities": {"bounding": ["CAP_KILL"], "effective": [], "permitted": []},
        "noNewPrivileges": True,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 99}],
    }  # fmt: skip
    (one.bundle / "process.json").write_text(json.dumps(process))
    result = one.exec("--process", one.bundle / "process.json", one.id, ok=True)
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[:3] == [["1000"], ["/etc"], ["big"]]
    facts = {row[0]: row[1] for row in lines[3:] if len(row) > 1}
    assert facts["NoNewPrivs:"] == "1" and int(facts["CapBnd:"], 16) == 1 << 5 and facts["Groups:"] == "2000"
    assert lines[-2] == ["99"]
    assert lines[-1] == ["0077"] or one.runtime.name == "runc"  # runc 1.1 leaves it


def test_a_broken_process_file_is_refused(box: Any) -> None:
    one = box(*SLEEP).up()
    for text in ("{", '{"args": 1}', '{"cwd": "/"}'):
        (one.bundle / "process.json").write_text(text)
        assert raised(one.exec("--process", one.bundle / "process.json", one.id))
    assert raised(one.exec("--process", one.bundle / "nosuch", one.id), "no such file")
    assert one.status == "running"


def test_detached(box: Any) -> None:
    one = box(*SLEEP).up()
    file = one.bundle / "exec"
    assert one.exec("-d", "--pid-file", file, one.id, "sh", "-c", "sleep 0.05; exit 9", ok=True).out == ""
    assert reap(int(file.read_text())) == 9


@pytest.mark.parametrize(
    ("word", "texts"),
    [
        ("nosuch", ("executable file not found in $path", "executable file `nosuch` not found", "no such file")),
        ("/bin/nosuch", ("no such file or directory",)),
        ("/etc/plain", ("permission denied",)),
    ],
)
@pytest.mark.parametrize("detached", [False, True], ids=["foreground", "detached"])
def test_a_command_that_cannot_run(box: Any, word: str, texts: tuple[str, ...], detached: bool) -> None:
    """docker's 127 and 126 come from these words."""
    one = box(*SLEEP).up()
    words = ["--detach", "--pid-file", one.bundle / "exec"] if detached else []
    result = one.exec(*words, one.id, word)
    assert raised(result, *texts)
    assert result.status in (1, 126, 127, 255)
    assert one.status == "running"


def test_into_a_container_that_is_created_works(box: Any) -> None:
    one = box(*SLEEP)
    one.create()
    assert one.exec(one.id, "echo", "in").out == "in\n"


def test_into_a_stopped_one_is_refused(box: Any) -> None:
    one = box("true").up()
    one.wait()
    assert raised(one.exec(one.id, "echo", "in"), "stopped", "not running")


def test_into_a_paused_one_is_refused(box: Any) -> None:
    one = box(*SLEEP).up()
    one.verb("pause", one.id)
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 waits until it goes on")
    assert raised(one.exec(one.id, "echo", "in"), "paused")
    one.verb("resume", one.id)
    assert one.exec(one.id, "echo", "in").out == "in\n"


def capabilities(text: str) -> int:
    return int(text.partition("CapEff:")[2].split()[0], 16)


def test_capabilities_are_the_containers(box: Any) -> None:
    one = box(*SLEEP).up()
    inside = one.sh("grep ^Cap /proc/self/status")
    assert inside == one.sh("grep ^Cap /proc/1/status")


def test_a_capability_can_be_added(box: Any) -> None:
    one = box(*SLEEP).up()
    before = capabilities(one.exec(one.id, "cat", "/proc/self/status").out)
    after = capabilities(one.exec("-c", "CAP_NET_RAW", one.id, "cat", "/proc/self/status").out)
    assert after == before | 1 << 13 or (one.runtime.name == "crun" and after == 1 << 13)  # crun 1.8 gives that alone


def test_no_new_privileges_can_be_added(box: Any) -> None:
    one = box(*SLEEP)
    one.process["noNewPrivileges"] = False
    one.up()
    assert one.sh("grep NoNewPrivs /proc/self/status").split()[1] == "0"
    assert one.sh("grep NoNewPrivs /proc/self/status", "--no-new-privs").split()[1] == "1"


def test_it_cannot_see_the_runtime(box: Any) -> None:
    """CVE-2016-9962, CVE-2019-5736: nothing of the host's behind /proc/PID/exe, root, cwd or fd of what joins."""
    one = box(*SLEEP)
    for kind in ("bounding", "effective", "permitted"):
        one.process["capabilities"][kind].append("CAP_SYS_PTRACE")
    one.up()
    text = one.sh("readlink /proc/self/exe; ls -l /proc/self/fd; readlink /proc/self/cwd")
    assert text.splitlines()[0] == "/bin/busybox"
    assert str(one.bundle) not in text


def test_a_child_it_leaves_behind_is_the_containers(box: Any) -> None:
    one = box("sh", "-c", "while :; do sleep 0.05; done").up()
    before = set(children())
    text = one.sh("sleep 60 >/dev/null 2>&1 & echo $!")
    assert one.sh(f"cat /proc/{int(text)}/comm") == "sleep\n"
    assert set(children()) <= before | {one.pid}


def test_many_at_once(box: Any) -> None:
    one = box(*SLEEP).up()
    running = [one.runtime.begin("exec", one.id, "sh", "-c", f"exit {number}") for number in range(8)]
    assert [process.wait(20) for process in running] == list(range(8))


def test_it_ends_when_the_container_is_killed(box: Any) -> None:
    one = box(*SLEEP).up()
    with open(one.bundle / "second", "wb") as out:
        other = one.runtime.begin("exec", one.id, "sh", "-c", "echo up; sleep 60", stdout=out)
    until(lambda: Path(one.bundle / "second").read_text() == "up\n", "exec to begin")
    one.kill("KILL")
    assert other.wait(20) == 128 + signal.SIGKILL


def test_without_words_it_is_refused(box: Any) -> None:
    one = box(*SLEEP).up()
    assert raised(one.exec(one.id))
