"""What a container inherits: descriptors, LISTEN_FDS, the session keyring (CVE-2024-21626; sd_listen_fds(3))."""

from __future__ import annotations

import fcntl
import os
import subprocess
from typing import Any

import pytest
from ociruntime import command, raised

LIST = "for f in /proc/self/fd/*; do echo ${f##*/} $(readlink $f); done"


def numbers(text: str) -> set[int]:
    """The descriptors in a listing by `ls /proc/self/fd`, but for the one that reads the folder."""
    return {int(word) for word in text.split()}


def test_only_the_standard_three(box: Any) -> None:
    """`ls` itself opens the folder: 3."""
    assert numbers(box("ls", "/proc/self/fd").output()) == {0, 1, 2, 3}


def test_descriptors_of_the_caller_do_not_come_along(box: Any) -> None:
    one = box("ls", "/proc/self/fd")
    folder = os.open(one.bundle, os.O_RDONLY)
    high = fcntl.fcntl(folder, fcntl.F_DUPFD, 77)
    try:
        assert numbers(one.output(pass_fds=(folder, high))) == {0, 1, 2, 3}
    finally:
        os.close(folder)
        os.close(high)


def test_nor_into_what_exec_runs(box: Any) -> None:
    one = box("sleep", "60").up()
    folder = os.open(one.bundle, os.O_RDONLY)
    high = fcntl.fcntl(folder, fcntl.F_DUPFD, 77)
    try:
        assert numbers(one.exec(one.id, "ls", "/proc/self/fd", pass_fds=(folder, high)).out) == {0, 1, 2, 3}
    finally:
        os.close(folder)
        os.close(high)


def test_nor_into_the_created_process(box: Any) -> None:
    """What waits for start holds nothing of the host's open that the command would get."""
    one = box("sleep", "60").up()
    assert set(os.listdir(f"/proc/{one.pid}/fd")) == {"0", "1", "2"}


def test_those_asked_for_are_passed(box: Any) -> None:
    """--preserve-fds N: the N after the standard three."""
    one = box("sh", "-c", "cat <&3; cat <&4; ls /proc/self/fd")
    texts = []
    for text in ("first\n", "second\n"):
        read, write = os.pipe()
        os.write(write, text.encode())
        os.close(write)
        texts.append(read)
    result = _with_descriptors(one, texts, "--preserve-fds", "2")
    assert result[:2] == ["first", "second"]
    assert numbers(" ".join(result[2:])) == {0, 1, 2, 3, 4, 5}


def _with_descriptors(one: Any, given: list[int], *options: str, before: str = "") -> list[str]:
    """Run with these descriptors as 3, 4, …: a shell in between moves them there (and does `before`)."""
    one.write()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 60) for fd in given]
    moves = "".join(f"exec {3 + index}<&{fd} {fd}<&-; " for index, fd in enumerate(high))
    words = [*command(one.runtime.name), "--root", str(one.runtime.home / "root")]
    words += ["run", "--bundle", str(one.bundle), *options, one.id]
    argv = ["bash", "-c", f'{moves} {before} exec "$@"', "bash", *words]
    try:
        result = subprocess.run(argv, pass_fds=high, capture_output=True, text=True, timeout=20, check=False)
    finally:
        for fd in [*high, *given]:
            os.close(fd)
    assert result.returncode == 0, result
    return result.stdout.splitlines()


def test_sockets_of_the_service_manager_are_passed(box: Any) -> None:
    """LISTEN_FDS in the runtime's environment: so many more, and the variable, with the command's own pid."""
    one = box("sh", "-c", "echo $LISTEN_FDS $LISTEN_PID; cat <&3")
    read, write = os.pipe()
    os.write(write, b"listening\n")
    os.close(write)
    first, second = _with_descriptors(one, [read], before="export LISTEN_FDS=1 LISTEN_PID=$$;")
    assert first.split()[0] == "1" and first.split()[1:] in ([], ["1"])
    assert second == "listening"


def test_more_than_there_are_is_refused(box: Any) -> None:
    one = box("true")
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 passes what there is")
    assert raised(one.run("--preserve-fds", "5"))


def test_a_new_session_keyring(box: Any) -> None:
    """/proc/keys of the container shows a keyring of its own, unless --no-new-keyring leaves the caller's."""
    one = box("true")
    if not os.path.exists("/proc/keys"):
        pytest.skip("this kernel has no keyrings")
    assert one.run().status == 0
    assert one.run("--no-new-keyring").status == 0


def test_links_of_descriptors_show_no_path_of_the_host(box: Any) -> None:
    one = box("sh", "-c", LIST)
    text = one.output()
    assert str(one.runtime.home) not in text and "runc" not in text and "minirt" not in text
