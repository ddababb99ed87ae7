"""What the command gets: environment, folder, user, umask, limits, names (runtime-spec config.md#process)."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest
from ociruntime import PATH, raised


def test_the_environment_is_the_configs_and_home(box: Any) -> None:
    one = box("env")
    one.process["env"] = [PATH, "COLOR=green", "EMPTY=", "TWO=a=b", "TEXT=ü \n."]
    os.environ["MINIRT_TEST_LEAK"] = "1"
    try:
        text = one.output()
    finally:
        del os.environ["MINIRT_TEST_LEAK"]
    assert set(text.replace("TEXT=ü \n.", "TEXT").split()) == {
        PATH,
        "COLOR=green",
        "EMPTY=",
        "TWO=a=b",
        "TEXT",
        "HOME=/root",
    }


@pytest.mark.parametrize(
    ("user", "home"),
    [({"uid": 0, "gid": 0}, "/root"), ({"uid": 1000, "gid": 1000}, "/home/web"), ({"uid": 7, "gid": 7}, "/")],
    ids=["root", "web", "unknown"],
)
def test_home_is_the_users(box: Any, user: dict[str, int], home: str) -> None:
    one = box("sh", "-c", "echo $HOME")
    one.process["user"] = user
    text = one.output()
    assert text == f"{home}\n" or (one.runtime.name == "crun" and home == "/" and text == "\n")  # crun 1.8: no HOME


def test_a_home_given_stays(box: Any) -> None:
    one = box("sh", "-c", "echo $HOME")
    one.process["env"].append("HOME=/mine")
    assert one.output() == "/mine\n"


def test_the_working_directory(box: Any) -> None:
    one = box("pwd")
    one.process["cwd"] = "/etc"
    assert one.output() == "/etc\n"


def test_a_missing_working_directory_is_made(box: Any) -> None:
    one = box("stat", "-c", "%a %u %g", ".")
    one.process["cwd"] = "/srv/deep/er"
    assert one.output() == "755 0 0\n"
    assert (one.rootfs / "srv/deep/er").is_dir()


def test_a_working_directory_that_is_a_file_is_refused(box: Any) -> None:
    one = box("pwd")
    one.process["cwd"] = "/etc/plain"
    assert raised(one.create(ok=False), "not a directory")


def test_a_relative_working_directory_is_refused(box: Any) -> None:
    one = box("pwd")
    one.process["cwd"] = "etc"
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 takes it as one from /")
    assert raised(one.create(ok=False), "absolute", "no such file")


@pytest.mark.parametrize("number", [3, 5, 7, 8, 9, 10, 12])
def test_a_working_directory_behind_a_descriptor_gives_nothing_of_the_host(box: Any, number: int) -> None:
    """CVE-2024-21626: a descriptor of the runtime's that leads to the host, as WORKDIR /proc/self/fd/N."""
    one = box("sh", "-c", "cd ../../../..; ls -a; cat etc/plain")
    one.process["cwd"] = f"/proc/self/fd/{number}"
    result = one.run()
    assert result.status != 0 or "not a program" in result.out
    for name in ("minirt-oci", "minirt", "boot", "var"):
        assert name not in result.out.split()


def test_the_user_and_groups(box: Any) -> None:
    one = box("sh", "-c", "id -u; id -g; grep Groups: /proc/self/status")
    one.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [2000, 5]}
    assert one.output().split() == ["1000", "1001", "Groups:", "5", "2000"]


def test_no_groups_of_the_callers_are_left(box: Any) -> None:
    one = box("grep", "Groups:", "/proc/self/status")
    os.setgroups([*os.getgroups(), 4242])
    try:
        text = one.output()
    finally:
        os.setgroups([group for group in os.getgroups() if group != 4242])
    assert "4242" not in text


def test_the_largest_ids(box: Any) -> None:
    one = box("sh", "-c", "id -u; id -g")
    one.process["user"] = {"uid": 2**31 - 1, "gid": 2**31 - 1}
    assert one.output().split() == [str(2**31 - 1)] * 2


@pytest.mark.parametrize("uid", [-1, 2**32, "root", 1.5])
def test_ids_that_are_none_are_refused(box: Any, uid: Any) -> None:
    """CVE-2024-40635: a number too large must not become root."""
    one = box("id", "-u")
    one.process["user"] = {"uid": uid, "gid": 0}
    if one.runtime.name == "crun":
        pytest.skip("crun 1.8 takes what is left of the number")
    assert raised(one.run())


@pytest.mark.parametrize(("given", "seen"), [(None, "0022"), (0o077, "0077"), (0, "0000"), (0o27, "0027")])
def test_the_umask(box: Any, given: int | None, seen: str) -> None:
    one = box("sh", "-c", "umask")
    if given is not None:
        one.process["user"]["umask"] = given
    old = os.umask(0o002)
    try:
        text = one.output()
    finally:
        os.umask(old)
    if given is None and one.runtime.name == "crun":
        assert text in ("0022\n", "0002\n")  # crun leaves the caller's; the spec says nothing
    else:
        assert text == f"{seen}\n"


@pytest.mark.parametrize("given", [True, False])
def test_no_new_privileges(box: Any, given: bool) -> None:
    one = box("grep", "NoNewPrivs", "/proc/self/status")
    one.process["noNewPrivileges"] = given
    assert one.output().split()[1] == str(int(given))


def test_limits_are_set(box: Any) -> None:
    one = box("sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hu")
    one.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_NPROC", "soft": 60, "hard": 70},
    ]
    one.process["user"] = {"uid": 1000, "gid": 1000}
    assert one.output().split() == ["100", "200", "0", "70"]


def test_limits_not_named_are_the_callers(box: Any) -> None:
    one = box("sh", "-c", "ulimit -Sn; ulimit -Hn")
    assert one.output().split() == [str(value) for value in resource.getrlimit(resource.RLIMIT_NOFILE)]


def test_a_limit_above_ours_needs_a_capability(box: Any) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    one = box("sh", "-c", "ulimit -Hn")
    one.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": hard + 1, "hard": hard + 1}]
    effective = int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16)
    if effective >> 24 & 1:
        assert one.output() == f"{hard + 1}\n"
    else:
        assert raised(one.create(ok=False), "operation not permitted", "not permitted")


@pytest.mark.parametrize("name", ["RLIMIT_NOSUCH", "NOFILE", ""])
def test_an_unknown_limit_is_refused(box: Any, name: str) -> None:
    one = box("true")
    one.process["rlimits"] = [{"type": name, "soft": 1, "hard": 1}]
    assert raised(one.create(ok=False))


def test_the_same_limit_twice_is_refused(box: Any) -> None:
    """config.md: an error MUST be generated."""
    one = box("true")
    one.process["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 0, "hard": number} for number in (0, 1)]
    if one.runtime.name in ("runc", "crun"):
        pytest.skip("runc 1.1 and crun 1.8 do not look")
    assert raised(one.create(ok=False), "RLIMIT_CORE")


def test_the_oom_score(box: Any) -> None:
    one = box("cat", "/proc/self/oom_score_adj")
    one.process["oomScoreAdj"] = 500
    assert one.output() == "500\n"


def test_an_oom_score_not_given_is_the_callers(box: Any) -> None:
    assert box("cat", "/proc/self/oom_score_adj").output() == Path("/proc/self/oom_score_adj").read_text()


def test_the_command_is_the_first_process_and_leads_a_session(box: Any) -> None:
    one = box("sh", "-c", "cat /proc/self/stat | cut -d' ' -f 5,6; echo $$ $PPID")
    text = one.output().split()
    assert text[2:] == ["1", "0"]
    assert text[1] == "1"


def test_signals_are_as_usual(box: Any) -> None:
    """Nothing blocked and nothing ignored is left over from the runtime (a Go or Python program ignores SIGPIPE)."""
    rows = dict(row.split() for row in box("grep", "Sig[BI]", "/proc/self/status").output().splitlines())
    assert int(rows["SigBlk:"], 16) == 0
    assert int(rows["SigIgn:"], 16) == 0
