"""The life cycle: create, start, state, kill, delete, and what each refuses (runtime-spec runtime.md)."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ociruntime import Runtime, raised, until

SLEEP = ("sleep", "60")


def test_a_created_container_has_a_process_that_has_not_begun(box: Any) -> None:
    one = box("sh", "-c", "echo begun")
    one.create()
    state = one.state()
    assert (state["status"], state["pid"]) == ("created", one.pid)
    os.kill(one.pid, 0)
    assert one.printed == ""
    one.start()
    assert one.wait() == 0
    assert one.printed == "begun\n"


def test_state_says_what_the_spec_asks(box: Any) -> None:
    one = box(*SLEEP)
    one.config["annotations"] = {"org.example.color": "green"}
    one.up()
    state = one.state()
    assert state["ociVersion"].startswith("1.")
    assert state["id"] == one.id
    assert state["status"] == "running"
    assert state["pid"] == one.pid
    assert Path(state["bundle"]) == one.bundle
    assert state["annotations"]["org.example.color"] == "green"


def test_a_stopped_container_stays_until_deleted(box: Any) -> None:
    one = box("true").up()
    assert one.wait() == 0
    state = one.state()
    assert state["status"] == "stopped"
    assert state.get("pid", 0) in (0, one.pid)  # runc says 0, crun the number it had
    one.delete()
    assert raised(one.runtime.call("state", one.id), "does not exist", "no such file")


def test_the_pid_file_is_the_containers_process_in_our_namespace(box: Any) -> None:
    one = box(*SLEEP).up()
    assert one.pid_file.read_text().strip().isdigit()
    until(lambda: Path(f"/proc/{one.pid}/comm").read_text() == "sleep\n", "the command to begin")
    assert Path(f"/proc/{one.pid}/root/etc/plain").exists()


@pytest.mark.parametrize("words", [[], ["TERM"], ["SIGTERM"], ["15"]], ids=["usual", "name", "SIGname", "number"])
def test_kill_sends_a_signal(box: Any, words: list[str]) -> None:
    one = box("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done").up()
    until(lambda: one.printed == "ready\n", "the trap")
    one.kill(*words)
    assert one.wait() == 7


def test_kill_can_send_any_signal(box: Any) -> None:
    numbers = {"HUP": 1, "USR1": 10, "WINCH": 28, "35": 35}
    script = "".join(f"trap 'echo {number}' {number}; " for number in numbers.values())
    one = box("sh", "-c", f"{script} trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done").up()
    until(lambda: "ready\n" in one.printed, "the traps")
    for name, number in numbers.items():
        one.kill(name)
        until(lambda number=number: f"{number}\n" in one.printed, f"signal {name}")
    one.kill("TERM")
    assert one.wait() == 0


def test_kill_9_ends_a_process_that_handles_nothing(box: Any) -> None:
    one = box(*SLEEP).up()
    one.kill("KILL")
    assert one.wait() == 128 + signal.SIGKILL


def test_kill_in_the_created_state_is_allowed(box: Any) -> None:
    one = box(*SLEEP)
    one.create()
    one.kill("KILL")
    assert one.wait() == 128 + signal.SIGKILL
    assert one.status == "stopped"


@pytest.mark.parametrize("word", ["NOSUCH", "SIGNOSUCH", "0x", "999"])
def test_kill_refuses_what_is_no_signal(box: Any, word: str) -> None:
    one = box(*SLEEP).up()
    result = one.kill(word, ok=False)
    assert (one.runtime.name == "crun" and result.status == 0) or raised(
        result
    )  # crun 1.8 sends signal 0, which is none
    assert one.status == "running"


def test_kill_of_a_stopped_container_is_refused(box: Any) -> None:
    one = box("true").up()
    one.wait()
    assert raised(one.kill("KILL", ok=False), "not running", "no such process")  # docker looks for these words


def test_kill_all_reaches_every_process_of_a_shared_pid_namespace(box: Any, runtime: Runtime) -> None:
    if runtime.name == "crun":
        pytest.skip("crun 1.8 has no --all")
    one = box("sh", "-c", "sleep 60 & echo $!; sleep 60")
    one.without("pid")
    one.up()
    until(lambda: one.printed.endswith("\n"), "the number of the other process")
    other = int(one.printed)
    runtime.call("kill", "--all", one.id, "KILL")
    assert one.wait() == 128 + signal.SIGKILL
    until(lambda: not Path(f"/proc/{other}/exe").exists() or _zombie(other), "the other process to end")


def _zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_delete_of_a_running_container_is_refused(box: Any) -> None:
    one = box(*SLEEP).up()
    assert raised(one.delete(ok=False), "not stopped", "`stopped` state")
    assert one.status == "running"


@pytest.mark.parametrize("started", [True, False], ids=["running", "created"])
def test_delete_by_force_ends_it_first(box: Any, started: bool) -> None:
    one = box(*SLEEP)
    one.create()
    if started:
        one.start()
    one.delete("--force")
    assert one.wait() == 128 + signal.SIGKILL
    assert raised(one.runtime.call("state", one.id))


def test_delete_by_force_of_the_unknown_is_no_error(runtime: Runtime) -> None:
    assert runtime.call("delete", "--force", "nobody").status == 0


@pytest.mark.parametrize("verb", ["start", "state", "delete", "pause", "resume", "ps", "kill", "exec", "update"])
def test_verbs_refuse_an_unknown_container(runtime: Runtime, verb: str) -> None:
    more = {"kill": ["TERM"], "exec": ["true"], "update": ["--memory", "64000000"]}.get(verb, [])
    words = ["update", *more, "nobody"] if verb == "update" else [verb, "nobody", *more]
    result = runtime.call(*words)
    assert raised(result, "does not exist", "no such file")  # docker looks for "does not exist"
    assert result.out == ""


def test_start_twice_is_refused(box: Any) -> None:
    one = box(*SLEEP).up()
    assert raised(one.start(ok=False), "already running", "start a container", "not in", "no such file", "is not")
    assert one.status == "running"


def test_start_of_a_stopped_one_is_refused(box: Any) -> None:
    one = box("true").up()
    one.wait()
    assert raised(one.start(ok=False))


def test_delete_twice_is_refused(box: Any) -> None:
    one = box("true").up()
    one.wait()
    one.delete()
    assert raised(one.delete(ok=False), "does not exist", "no such file")


def test_an_id_is_taken_until_deleted(box: Any) -> None:
    one, two = box("true"), box("true")
    two.id = one.id
    one.up()
    one.wait()
    assert raised(two.create(ok=False), "already exists", "exist", "in use")
    assert one.status == "stopped"
    one.delete()
    two.up()
    assert two.wait() == 0


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", "."])
def test_an_id_that_is_a_path_is_refused(box: Any, runtime: Runtime, name: str) -> None:
    one = box("true")
    one.write()
    assert raised(runtime.call("create", "--bundle", one.bundle, "--pid-file", one.pid_file, name))
    assert not one.pid_file.exists()
    assert not (runtime.home / "up").exists()


@pytest.mark.parametrize("name", ["a", "A.b_c-d+e", "0" * 64])
def test_ids_may_be_what_docker_and_podman_make(box: Any, name: str) -> None:
    one = box("true")
    one.id = name
    assert one.run().status == 0


def test_run_deletes_what_it_ran(box: Any) -> None:
    one = box("true")
    assert one.run().status == 0
    assert raised(one.runtime.call("state", one.id))


def test_run_detached_leaves_it_running(box: Any) -> None:
    one = box(*SLEEP)
    one.run("--detach", "--pid-file", str(one.pid_file), ok=True)
    assert one.status == "running"
    one.kill("KILL")
    assert one.wait() == 128 + signal.SIGKILL
    assert one.status == "stopped"


def test_the_bundle_is_where_we_stand_when_not_named(box: Any, runtime: Runtime) -> None:
    one = box("echo", "here")
    one.write()
    assert runtime.call("run", one.id, cwd=one.bundle).out == "here\n"


def test_the_bundle_may_be_a_relative_path(box: Any, runtime: Runtime) -> None:
    one = box(*SLEEP)
    one.write()
    runtime.call("run", "-d", "-b", one.bundle.name, "--pid-file", "pid", one.id, cwd=runtime.home)
    assert Path(one.state()["bundle"]) == one.bundle
    where = one.bundle if runtime.name == "crun" else runtime.home  # crun 1.8 has gone to the bundle by then
    assert (where / "pid").read_text().strip() == str(one.state()["pid"])


def test_errors_go_to_stderr_and_into_the_log(runtime: Runtime) -> None:
    plain = runtime.call("state", "nobody")
    assert (plain.status, plain.out) == (1, "")
    assert plain.err.strip()
    log = runtime.home / "log"
    logged = runtime.call("state", "nobody", options=("--log", str(log), "--log-format", "json"))
    assert logged.status == 1
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    (row,) = (row for row in rows if row["level"] == "error")
    assert "does not exist" in row["msg"] or "nobody" in row["msg"]
    assert row["time"][:2] == "20"


def test_the_log_of_a_failed_create_tells_why(box: Any) -> None:
    """docker shows its user the last line of this log."""
    one = box("nosuch")
    log = one.bundle / "log"
    assert one.create(ok=False, options=("--log", str(log), "--log-format", "json")).status == 1
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert "executable file" in [row["msg"] for row in rows if row["level"] == "error"][-1]


def test_the_log_may_be_text_and_is_added_to(runtime: Runtime) -> None:
    log = runtime.home / "log"
    for name in ("first", "second"):
        runtime.call("state", name, options=("--log", str(log)))
    assert len(log.read_text().splitlines()) == 2


def test_success_says_nothing(box: Any) -> None:
    one = box(*SLEEP)
    assert one.create()[1:] == ("", "")
    assert one.start()[1:] == ("", "")
    assert one.kill("KILL")[1:] == ("", "")
    one.wait()
    assert one.delete()[1:] == ("", "")
