"""System call filters (runtime-spec config-linux.md#seccomp): actions, arguments, flags, and when they hold."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ociruntime import raised

ARCHES = {"x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]}
ALLOW, ERRNO, KILL = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL"
# What a runtime itself must be able to do between loading the filter and execve(2) is its own affair: any policy holds.
MKDIR = ["mkdir", "mkdirat"]


def policy(*rows: dict[str, Any], default: str = ALLOW, **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "architectures": ARCHES.get(os.uname().machine, []), "syscalls": [*rows], **more}


def row(names: list[str], action: str, **more: Any) -> dict[str, Any]:
    return {"names": names, "action": action, **more}


def under(box: Any, script: str, *rows: dict[str, Any], **more: Any) -> Any:
    one = box("sh", "-c", script)
    one.linux["seccomp"] = policy(*rows, **more)
    return one


def test_no_filter_when_none_is_asked(box: Any) -> None:
    assert box("grep", "Seccomp:", "/proc/self/status").output().split()[1] == "0"


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_a_filter_is_loaded(box: Any, no_new_privileges: bool) -> None:
    """Without no_new_privs it takes CAP_SYS_ADMIN to load one: it must be loaded before that is dropped."""
    one = under(box, "grep Seccomp: /proc/self/status", row(MKDIR, ERRNO))
    one.process["noNewPrivileges"] = no_new_privileges
    assert one.output().split()[1] == "2"


def test_a_forbidden_call_fails_as_not_permitted(box: Any) -> None:
    result = under(box, "mkdir /tmp/x", row(MKDIR, ERRNO)).run()
    assert result.status == 1 and "Operation not permitted" in result.err


def test_another_error_number(box: Any) -> None:
    result = under(box, "mkdir /tmp/x", row(MKDIR, ERRNO, errnoRet=errno.ENOSPC)).run()
    assert "No space left on device" in result.err


def test_a_default_error_number(box: Any) -> None:
    """docker's policy: all that is not listed."""
    more = {"default": ERRNO, "defaultErrnoRet": errno.ENOSYS}
    names = sorted(set(_all_calls()) - set(MKDIR))
    result = under(box, "mkdir /tmp/x", row(names, ALLOW), **more).run()
    assert "Function not implemented" in result.err


def _all_calls() -> list[str]:
    """The names of the system calls of this machine, as its C headers have them."""
    for header in Path("/usr/include").glob("**/asm/unistd_64.h"):
        words = header.read_text().split()
        return [word.removeprefix("__NR_") for word in words if word.startswith("__NR_")]
    pytest.skip("the C library's headers are not installed")


@pytest.mark.parametrize("action", ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD"])
def test_a_call_can_kill(box: Any, action: str) -> None:
    one = under(box, "mkdir /tmp/x; echo $?", row(MKDIR, action))
    assert one.output() == f"{128 + signal.SIGSYS}\n"


def test_a_trap_is_a_signal(box: Any) -> None:
    one = under(box, "mkdir /tmp/x; echo $?", row(MKDIR, "SCMP_ACT_TRAP"))
    assert one.output() == f"{128 + signal.SIGSYS}\n"


def test_a_logged_call_goes_on(box: Any) -> None:
    assert under(box, "mkdir /tmp/x && echo made", row(MKDIR, "SCMP_ACT_LOG")).output() == "made\n"


def test_an_argument_decides(box: Any) -> None:
    """kill(pid, 10) is forbidden, kill(pid, 0) is not."""
    args = [{"index": 1, "value": int(signal.SIGUSR1), "op": "SCMP_CMP_EQ"}]
    one = under(box, "kill -0 $$ && echo zero; kill -USR1 $$ || echo refused", row(["kill"], ERRNO, args=args))
    assert one.output() == "zero\nrefused\n"


@pytest.mark.parametrize(
    ("op", "value", "two", "refused"),
    [
        ("SCMP_CMP_NE", 0, 0, [10, 28]), ("SCMP_CMP_LT", 10, 0, [0]), ("SCMP_CMP_LE", 10, 0, [0, 10]),
        ("SCMP_CMP_GE", 10, 0, [10, 28]), ("SCMP_CMP_GT", 10, 0, [28]), ("SCMP_CMP_MASKED_EQ", 8, 8, [10, 28]),
    ],
)  # fmt: skip
def test_comparisons(box: Any, op: str, value: int, two: int, refused: list[int]) -> None:
    args = [{"index": 1, "value": value, "op": op} | ({"valueTwo": two} if two else {})]
    script = "sleep 60 & for n in 0 28 10; do kill -$n $! 2>/dev/null || echo $n; done; kill -9 $!; true"
    one = under(box, script, row(["kill"], ERRNO, args=args))
    assert sorted(map(int, one.run().out.split())) == refused


def test_several_arguments_must_all_match(box: Any) -> None:
    args = [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 28, "op": "SCMP_CMP_EQ"}]
    script = "kill -28 1 || echo both; kill -0 1 && echo one"
    assert under(box, script, row(["kill"], ERRNO, args=args)).output() == "both\none\n"


def test_execve_forbidden_still_lets_the_command_begin_or_fails_cleanly(box: Any) -> None:
    """The filter is loaded before execve(2): the command does not run, and no host code in its place."""
    result = under(box, "echo ran", row(["execve", "execveat"], ERRNO)).run()
    assert raised(result, "not permitted")
    assert "ran" not in result.out


def test_a_call_forbidden_to_the_command_is_allowed_before(box: Any) -> None:
    """What setting up needs (mount, pivot_root, sethostname, capset …) is not held against the policy."""
    names = ["mount", "umount2", "pivot_root", "sethostname", "unshare", "setns", "mknod", "mknodat", "chroot"]
    names += ["open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "mount_setattr", "keyctl", "bpf"]
    one = under(box, "mount -t tmpfs x /tmp || hostname other || echo refused", row(names, KILL))
    for kind in ("bounding", "effective", "permitted"):
        one.process["capabilities"][kind].append("CAP_SYS_ADMIN")
    assert "refused" in one.run().out


def test_unknown_calls_are_passed_over(box: Any) -> None:
    """A policy made for a newer kernel: names that libseccomp does not know."""
    assert under(box, "echo fine", row(["no_such_call_ever", *MKDIR], ERRNO)).output() == "fine\n"


@pytest.mark.parametrize(
    "broken",
    [
        {"default": "SCMP_ACT_NOSUCH"},
        {"architectures": ["SCMP_ARCH_NOSUCH"]},
        {"flags": ["SECCOMP_FILTER_FLAG_NOSUCH"]},
        {"rows": [row(MKDIR, "SCMP_ACT_NOSUCH")]},
        {"rows": [row(["kill"], ERRNO, args=[{"index": 1, "value": 1, "op": "SCMP_CMP_NOSUCH"}])]},
    ],
    ids=["default", "architecture", "flag", "action", "comparison"],
)
def test_a_policy_that_is_not_understood_is_refused(box: Any, broken: dict[str, Any]) -> None:
    """Never run without the filter, or with another."""
    broken = dict(broken)
    one = under(box, "echo ran", *broken.pop("rows", []), **broken)
    if one.runtime.name == "crun" and "architectures" in broken:
        pytest.skip("crun 1.8 passes over architectures it does not know")
    result = one.run()
    assert raised(result)
    assert "ran" not in result.out


@pytest.mark.parametrize(
    "flag", ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]
)
def test_flags(box: Any, flag: str) -> None:
    one = under(box, "mkdir /tmp/x || grep Seccomp: /proc/self/status", row(MKDIR, ERRNO), flags=[flag])
    if one.runtime.name == "runc":
        pytest.skip("runc 1.1 refuses flags")
    assert one.output().split()[1] == "2"


def test_exec_gets_the_filter_too(box: Any) -> None:
    one = under(box, "sleep 60", row(MKDIR, ERRNO)).up()
    result = one.exec(one.id, "mkdir", "/tmp/x")
    assert result.status == 1 and "Operation not permitted" in result.err


def test_children_have_it(box: Any) -> None:
    result = under(box, "sh -c 'sh -c \"mkdir /tmp/x\"'", row(MKDIR, ERRNO)).run()
    assert "Operation not permitted" in result.err
