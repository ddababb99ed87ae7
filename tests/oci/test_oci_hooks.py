"""Hooks: when, where, with what on stdin, and what if one fails (runtime-spec config.md#posix-platform-hooks)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ociruntime import cgroups, raised, until

BEFORE = ["prestart", "createRuntime", "createContainer"]
STAGES = [*BEFORE, "startContainer", "poststart", "poststop"]
IN_CONTAINER = {"startContainer"}


def hook(one: Any, stage: str, script: str, **more: Any) -> None:
    shell = "/bin/sh"  # the host's, or, for startContainer, the container's
    one.config.setdefault("hooks", {}).setdefault(stage, []).append(
        {"path": shell, "args": ["sh", "-c", script], **more}
    )


def writes(one: Any, stage: str, script: str, **more: Any) -> Path:
    """A hook that writes into a file, which is there before: in the container the folder is at /hooks."""
    folder = one.bundle / "hooks"
    if not folder.exists():
        folder.mkdir()
        one.mount("/hooks", folder, "bind")
    # /hooks is only there inside, and the host's path only outside (createContainer sees the host's still)
    hook(one, stage, f"cd {'/hooks' if stage in IN_CONTAINER else folder} && ( {script} ) >> {stage}", **more)
    return Path(folder / stage)


def test_each_stage_runs_in_its_order(box: Any) -> None:
    one = box("sh", "-c", "echo command >> /hooks/order; sleep 60")
    for stage in STAGES:
        writes(one, stage, f"echo {stage} >> order")
    order = one.bundle / "hooks" / "order"
    if one.runtime.name == "runc":
        del one.config["hooks"]["poststart"]  # runc 1.1 runs it at the end of create
    one.create()
    assert order.read_text().split() == BEFORE
    one.start()
    after = {"command", *(["poststart"] if "poststart" in one.config["hooks"] else [])}
    until(lambda: after <= set(order.read_text().split()), "the command and poststart")
    words = order.read_text().split()
    assert sorted(words[3:]) == sorted({"startContainer", *after})
    assert words.index("startContainer") < words.index("command")
    one.kill("KILL")
    one.wait()
    assert order.read_text().split() == words
    one.delete()
    assert order.read_text().split() == [*words, "poststop"]


def test_run_runs_them_all(box: Any) -> None:
    one = box("true")
    for stage in STAGES:
        writes(one, stage, f"cat >/dev/null; echo {stage} >> order")  # crun minds one that does not read its state
    one.output()
    assert sorted((one.bundle / "hooks/order").read_text().split()) == sorted(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_the_state_is_on_stdin(box: Any, stage: str) -> None:
    one = box("sleep", "60")
    one.config["annotations"] = {"org.example.color": "green"}
    path = writes(one, stage, "cat")
    one.up()
    pid = one.pid
    if stage == "poststop":
        one.kill("KILL")
        one.wait()
        one.delete()
    until(lambda: path.exists() and path.read_text().endswith("}"), f"the state at {stage}")
    state = json.loads(path.read_text())
    assert state["id"] == one.id
    # crun 1.8 says where it stands
    assert Path(state["bundle"]) == one.bundle or (one.runtime.name == "crun" and stage == "startContainer")
    assert state["ociVersion"].startswith("1.")
    assert state["annotations"] == {"org.example.color": "green"}
    wanted = {"poststart": {"running"}, "poststop": {"stopped"}}.get(stage, {"creating", "created"})
    if (one.runtime.name, stage) not in [("runc", "poststart"), ("crun", "startContainer")]:  # "created", "starting"
        assert state["status"] in wanted
    if stage in ("prestart", "createRuntime", "poststart"):
        assert state["pid"] == pid
    if stage == "poststop":
        assert state.get("pid", 0) == 0 or state["pid"] == pid


def test_they_get_their_own_arguments_and_environment_alone(box: Any) -> None:
    one = box("true")
    path = one.bundle / "seen"
    script = f'printf "%s|" "$0" "$@" > {path}; tr "\\0" "\\n" < /proc/self/environ >> {path}'
    one.config["hooks"] = {
        "createRuntime": [{"path": "/bin/sh", "args": ["ignored", "-c", script, "zero", "one two"], "env": ["A=b"]}]
    }
    os.environ["MINIRT_TEST_LEAK"] = "1"
    try:
        one.output()
    finally:
        del os.environ["MINIRT_TEST_LEAK"]
    text = path.read_text()
    assert text.startswith("zero|one two|")
    assert "A=b" in text and "LEAK" not in text


@pytest.mark.parametrize("stage", ["prestart", "createRuntime", "poststart", "poststop"])
def test_outside_ones_are_in_the_runtimes_namespaces(box: Any, stage: str) -> None:
    one = box("true")
    path = writes(one, stage, "readlink /proc/self/ns/pid /proc/self/ns/net")
    one.up()
    one.wait()
    one.delete()
    names = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net")]
    assert path.read_text().split() == names


def test_create_container_is_in_the_containers_namespaces_over_the_hosts_files(box: Any) -> None:
    """The path is the host's, the mount namespace the container's, before pivot_root."""
    one = box("sleep", "60")
    path = writes(one, "createContainer", "readlink /proc/self/ns/net /proc/self/ns/mnt")
    one.create()
    assert path.read_text().split() == [os.readlink(f"/proc/{one.pid}/ns/{kind}") for kind in ("net", "mnt")]


def test_start_container_is_the_containers_own_program(box: Any) -> None:
    one = box("sleep", "60")
    (one.rootfs / "bin" / "only-inside").write_text("#!/bin/sh\nhostname > /hooks/name; pwd >> /hooks/name\n")
    (one.rootfs / "bin" / "only-inside").chmod(0o755)
    path = writes(one, "startContainer", "true")
    one.config["hooks"]["startContainer"].append({"path": "/bin/only-inside"})
    one.up()
    if one.runtime.name == "crun":  # its `start` does not wait for them
        until(lambda: (path.parent / "name").exists() and (path.parent / "name").read_text(), "the hook")
    assert (path.parent / "name").read_text().split()[0] == "box"


@pytest.mark.parametrize("strict", [True, False])
def test_start_container_is_under_the_containers_filter(box: Any, strict: bool) -> None:
    """It is a program of the image's, like the command."""
    one = box("sleep", "60")
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}
    one.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    one.process["noNewPrivileges"] = strict
    path = writes(one, "startContainer", "grep Seccomp: /proc/self/status; mkdir made 2>&1; :")
    one.up()
    until(lambda: path.exists() and "made" in path.read_text(), "the hook")
    assert path.read_text().split()[1] == "2" and "Permission denied" in path.read_text()
    assert not (path.parent / "made").exists()


def test_a_hook_may_move_a_network_device_in(box: Any) -> None:
    """What network plugins do: a prestart hook that enters the container's network by the pid it is told."""
    one = box("ls", "/sys/class/net")
    find = "pid=$(tr -d '\\n' | sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/')"
    hook(one, "createRuntime", f"{find}; nsenter -t $pid -n ip link add type veth", env=[f"PATH={os.environ['PATH']}"])
    assert len(one.output().split()) > 1


@pytest.mark.parametrize("stage", [*BEFORE, "startContainer"])
def test_a_failing_one_stops_everything(box: Any, stage: str) -> None:
    one = box("sh", "-c", "echo ran > /hooks/ran")
    writes(one, stage, "echo failed; exit 7")
    after = writes(one, stage, "echo too late")
    result = one.run()
    assert raised(result)
    assert after.read_text() == "failed\n"
    assert not (after.parent / "ran").exists()
    assert raised(one.runtime.call("state", one.id))
    assert one.runtime.name == "crun" or cgroups(one) == []


@pytest.mark.parametrize("stage", BEFORE)
def test_a_failing_one_fails_create(box: Any, stage: str) -> None:
    one = box("true")
    hook(one, stage, "echo the reason >&2; exit 7")
    result = one.create(ok=False)
    assert raised(result, "exit status 7", "hook", "error executing")


def test_a_failing_start_container_fails_start(box: Any) -> None:
    one = box("sh", "-c", "echo ran")
    hook(one, "startContainer", "exit 7")
    one.create()
    result = one.start(ok=False)
    assert one.wait() != 0
    assert one.printed == ""
    assert result.status != 0 or one.runtime.name in ("runc", "crun")  # theirs have answered before it runs


def test_a_missing_one_stops_everything(box: Any) -> None:
    one = box("true")
    one.config["hooks"] = {"createRuntime": [{"path": "/no/such/hook"}]}
    assert raised(one.create(ok=False), "no such file", "hook")


def test_a_failing_poststop_only_warns(box: Any) -> None:
    """runtime-spec: a warning, and the rest goes on."""
    one = box("true")
    hook(one, "poststop", "exit 7")
    one.up()
    one.wait()
    one.delete()
    assert raised(one.runtime.call("state", one.id))


def test_a_slow_one_is_ended_after_its_time(box: Any) -> None:
    one = box("true")
    hook(one, "createRuntime", "exec sleep 30", timeout=1)
    result = one.create(ok=False)
    assert raised(result)


def test_a_relative_path_is_refused(box: Any) -> None:
    one = box("true")
    one.config["hooks"] = {"createRuntime": [{"path": "bin/true"}]}
    assert raised(one.create(ok=False))
