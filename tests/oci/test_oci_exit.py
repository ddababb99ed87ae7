"""How a command ends, as its parent sees it; and a command that cannot begin, which create and run must say themselves.

docker and podman read these errors: "executable file not found in $PATH" or "no such file or directory" is their exit
status 127, "permission denied" is 126.
"""

from __future__ import annotations

import signal
from typing import Any

import pytest
from ociruntime import raised, until

FOUND_NOT = ("executable file not found in $path", "executable file `nosuch` not found", "no such file or directory")


@pytest.mark.parametrize("status", [0, 1, 42, 126, 127, 255])
def test_the_exit_status_is_the_commands(box: Any, status: int) -> None:
    one = box("sh", "-c", f"exit {status}")
    assert one.run().status == status
    one.up()
    assert one.wait() == status


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV", "USR1"])
def test_a_signal_is_128_more(box: Any, name: str) -> None:
    """The shell in the middle: the first process of a pid namespace cannot kill itself."""
    one = box("sh", "-c", f"(kill -{name} $(exec sh -c 'echo $PPID')); exit $?")
    assert one.run().status == 128 + getattr(signal, f"SIG{name}")


def test_run_tells_that_its_container_was_killed(box: Any) -> None:
    one = box("sh", "-c", "sleep 60 & echo up; wait")
    one.write()
    running = one.runtime.begin("run", "-b", one.bundle, "--pid-file", one.pid_file, one.id)
    until(lambda: one.pid_file.exists() and one.runtime.call("state", one.id).out.find("running") > 0, "it to run")
    one.kill("KILL")
    assert running.wait(20) == 128 + signal.SIGKILL


def test_run_passes_signals_on(box: Any) -> None:
    one = box("sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done")
    one.write()
    with open(one.bundle / "out", "wb") as out:
        running = one.runtime.begin("run", "-b", one.bundle, one.id, stdout=out)
    until(lambda: one.printed == "ready\n", "the trap")
    running.terminate()
    assert running.wait(20) == 9


def test_arguments_arrive_as_they_are(box: Any) -> None:
    words = ["a b", "", "$HOME", "*", "'\"\\", "ü\n", "--", "-n"]
    one = box("sh", "-c", 'printf "%s|" "$@"', "sh", *words)
    assert one.output() == "".join(f"{word}|" for word in words)


def test_the_command_gets_the_standard_files_of_run(box: Any) -> None:
    one = box("sh", "-c", "cat; echo wrong >&2")
    result = one.run(stdin="typed\n")
    assert (result.out, result.err) == ("typed\n", "wrong\n")


def test_the_command_is_looked_up_in_its_own_path(box: Any) -> None:
    one = box("tool")
    (one.rootfs / "opt").mkdir()
    (one.rootfs / "opt" / "tool").write_text("#!/bin/sh\necho found $0\n")
    (one.rootfs / "opt" / "tool").chmod(0o755)
    one.process["env"] = ["PATH=/nowhere:/opt:/bin"]
    assert one.output() == "found /opt/tool\n"


def test_a_file_in_path_that_may_not_run_is_passed_over(box: Any) -> None:
    one = box("tool")
    for name, mode in (("first", 0o644), ("second", 0o755)):
        (one.rootfs / name).mkdir()
        (one.rootfs / name / "tool").write_text(f"#!/bin/sh\necho {name}\n")
        (one.rootfs / name / "tool").chmod(mode)
    one.process["env"] = ["PATH=/first:/second:/bin"]
    assert one.output() == "second\n"


def test_a_name_with_a_slash_is_relative_to_the_working_directory(box: Any) -> None:
    one = box("./busybox", "echo", "here")
    one.process["cwd"] = "/bin"
    assert one.output() == "here\n"


@pytest.mark.parametrize("verb", ["create", "run"])
@pytest.mark.parametrize(
    ("word", "texts"),
    [
        ("nosuch", FOUND_NOT),
        ("/bin/nosuch", FOUND_NOT[2:]),
        ("/etc/plain", ("permission denied",)),
        ("/etc", ("permission denied", "is a directory", "not permitted")),
    ],
)
def test_a_command_that_cannot_run_is_refused_in_dockers_words(box: Any, verb: str, word: str, texts: Any) -> None:
    one = box(word)
    result = one.create(ok=False) if verb == "create" else one.run()
    assert raised(result, *texts)
    assert result.status == 1
    assert raised(one.runtime.call("state", one.id)), "nothing may be left of it"


@pytest.mark.parametrize("word", ["/bin/orphan", "/bin/garbage"])
def test_a_command_that_the_kernel_refuses_does_not_run(box: Any, word: str) -> None:
    """Only execve(2) can tell. runc has answered start by then, and its container ends with status 1."""
    one = box(word)
    (one.rootfs / "bin" / "garbage").write_bytes(b"\0garbage")
    (one.rootfs / "bin" / "garbage").chmod(0o755)
    result = one.run()
    assert raised(result, "no such file or directory", "exec format error")
    assert result.status in (1, 126, 127)


def test_an_empty_command_is_refused(box: Any) -> None:
    one = box()
    assert raised(one.create(ok=False))


def test_a_command_that_is_only_a_symlink_to_nothing_is_refused(box: Any) -> None:
    one = box("/bin/dangling")
    (one.rootfs / "bin" / "dangling").symlink_to("/no/where")
    assert raised(one.create(ok=False), "no such file or directory")


def test_a_command_of_the_host_is_not_seen(box: Any) -> None:
    """/usr/bin/env is on this machine, not in the root file system."""
    assert raised(box("/usr/bin/env").create(ok=False), "no such file or directory")
