"""Seccomp policies and their programs: against the policy's own words, runc's program in the kernel, and real calls."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import bpf
import pytest
from dockerd import Dockerd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import require

from minirt import linux
from minirt.errors import InvalidInput, Unsupported
from minirt.hub import elf
from minirt.runtime import capabilities, seccomp
from minirt.runtime.seccomp import Filter, check, default

PODMAN = Path("/usr/share/containers/seccomp.json")
NUMBERS = range(601)
PRIVATE = range(0xF0000, 0xF0010)  # 32-bit arm's own calls; they count as its newest, in runc too
DEFAULT_ERRNO = bpf.ERRNO | errno.EPERM
NO_SUCH_CALL = bpf.ERRNO | errno.ENOSYS
# libseccomp's tokens; to the kernel x32 is x86-64 with a bit in the number
TOKENS = {"SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_X32": 0x4000003E}
TOKENS |= {"SCMP_ARCH_AARCH64": 0xC00000B7, "SCMP_ARCH_ARM": 0x40000028}
ALL_X86 = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
# Calls that the 32-bit x86 can also make through socketcall(2) and ipc(2): libseccomp adds rules for those.
MULTIPLEXED = {
    *("accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recv", "recvfrom"),
    *("recvmmsg", "recvmsg", "send", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socket", "socketpair"),
    *("socketcall", "ipc", "semop", "semget", "semctl", "semtimedop", "msgsnd", "msgrcv", "msgget", "msgctl"),
    *("shmat", "shmdt", "shmget", "shmctl"),
}
CLONE_NEWUSER = 0x10000000
# Around every value that a rule of the policies here compares with.
VALUES = (
    *(0, 1, 2, 7, 8, 9, 11, 12, 13, 15, 16, 17, 34, 38, 39, 40, 41, 45, 46, 0x20000, 0x20008, 0x7E020000),
    *(0xFFFFFFFE, 0xFFFFFFFF, CLONE_NEWUSER, CLONE_NEWUSER | signal.SIGCHLD),
)
WIDE = (2**32, 2**32 + 8, 2**32 + 38, 2**32 + 40, 2**63 + 39, 2**64 - 1)


@pytest.fixture(scope="module")
def library() -> Any:
    """libseccomp's way from a number to a name, which the package does not use."""
    path, version = seccomp._library()
    assert version, "libseccomp2 is not installed"
    library = ctypes.CDLL(path)
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    library.seccomp_syscall_resolve_num_arch.argtypes = [ctypes.c_uint32, ctypes.c_int]
    return library


class Oracle:
    """What the words of a policy mean for one call; written against the runtime-spec, with nothing of the package."""

    _names: dict[tuple[int, int], str] = {}

    def __init__(self, library: Any, policy: dict[str, Any], native: str = "SCMP_ARCH_X86_64") -> None:
        self._library, self._policy = library, policy
        self._default = self._action(policy["defaultAction"], policy.get("defaultErrnoRet"))
        self._known = {TOKENS[name] for name in (native, *(policy.get("architectures") or []))}
        named = [name for entry in policy.get("syscalls") or [] for name in entry["names"]]
        self._entries: dict[str, list[dict[str, Any]]] = {name: [] for name in named}
        for entry in policy.get("syscalls") or []:
            for name in entry["names"]:
                self._entries[name].append(entry)
        self._newest = {
            token: max(
                (number for number in (*NUMBERS, *PRIVATE) if self.name(token, number) in self._entries), default=-1
            )
            for token in self._known
        }

    def name(self, token: int, number: int) -> str:
        if (token, number) not in self._names:
            raw = number | bpf.X32 if token == TOKENS["SCMP_ARCH_X32"] else number
            found = self._library.seccomp_syscall_resolve_num_arch(token, raw)
            text = ctypes.string_at(found).decode() if found else ""
            ctypes.CDLL(None).free(ctypes.c_void_p(found))
            Oracle._names[token, number] = text
        return self._names[token, number]

    @staticmethod
    def _action(name: str, number: int | None) -> int:
        word = {"KILL": 0, "KILL_THREAD": 0, "KILL_PROCESS": 2**31, "TRAP": 3 << 16, "ERRNO": 5 << 16}
        word |= {"TRACE": 0x7FF00000, "LOG": 0x7FFC0000, "ALLOW": 0x7FFF0000}
        data = (1 if number is None else number) if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") else 0
        return word[name.removeprefix("SCMP_ACT_")] | data

    def answer(self, token: int, number: int, args: tuple[int, ...]) -> int:
        """`number` without x32's bit."""
        if token not in self._known:
            return bpf.KILL
        refusing = self._policy["defaultAction"] not in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
        some = self._newest[token] > (
            -1 if token == TOKENS["SCMP_ARCH_X32"] else 0
        )  # 0 alone counts as none, as in runc
        if refusing and some and number > self._newest[token]:
            return NO_SUCH_CALL
        for entry in self._entries.get(self.name(token, number), []):
            action = self._action(entry["action"], entry.get("errnoRet"))
            if action != self._default and self._matches(entry.get("args") or [], args):
                return action
        return self._default

    @staticmethod
    def _matches(conditions: list[dict[str, Any]], args: tuple[int, ...]) -> bool:
        found = []
        for condition in conditions:
            # of what is compared under a mask, libseccomp drops the bits that the mask hides
            have, value, other = args[condition["index"]], condition["value"], condition.get("valueTwo", 0)
            found.append(
                {
                    "NE": have != value, "LT": have < value, "LE": have <= value, "EQ": have == value,
                    "GE": have >= value, "GT": have > value, "MASKED_EQ": have & value == other & value,
                }[condition["op"].removeprefix("SCMP_CMP_")]
            )  # fmt: skip
        repeated = len({condition["index"] for condition in conditions}) < len(conditions)
        return any(found) if repeated else all(found)


class Call(NamedTuple):
    token: int
    number: int
    args: tuple[int, ...]

    def run(self, program: bytes) -> int:
        if self.token == TOKENS["SCMP_ARCH_X32"]:
            return bpf.answer(program, bpf.X86_64, self.number | bpf.X32, self.args)
        return bpf.answer(program, self.token, self.number, self.args)


def calls(oracle: Oracle, policy: dict[str, Any], tokens: list[str]) -> Iterator[Call]:
    """Every number on every architecture; those with conditions, with many values in each argument they look at."""
    looked_at: dict[str, set[int]] = {}
    for entry in policy.get("syscalls") or []:
        for name in entry["names"]:
            looked_at.setdefault(name, set()).update(c["index"] for c in entry.get("args") or [])
    for token in (TOKENS[name] for name in tokens):
        wide = WIDE if token in (bpf.X86_64, bpf.AARCH64) else ()
        for number in NUMBERS:
            name = oracle.name(token, number)
            if token in (bpf.I386, bpf.ARM) and name in MULTIPLEXED:
                continue
            yield Call(token, number, (0,) * 6)
            for index in looked_at.get(name, ()):
                for value in (*VALUES, *wide):
                    for rest in (0, 9, 41):
                        args = [rest] * 6
                        args[index] = value
                        yield Call(token, number, tuple(args))


def compare(library: Any, policy: dict[str, Any], program: bytes, tokens: list[str], native: str = ALL_X86[0]) -> int:
    """The program answers every call as the policy says. Returns how many were tried."""
    oracle, count = Oracle(library, policy, native), 0
    for call in calls(oracle, policy, tokens):
        expected, found = oracle.answer(*call), call.run(program)
        assert found == expected, f"{oracle.name(call.token, call.number)} {call}: {found:#x}, not {expected:#x}"
        count += 1
    return count


def docker_format(path: Path, caps: tuple[str, ...]) -> dict[str, Any]:
    """A profile with `archMap`, `includes`, `excludes` as docker and podman turn it into the runtime-spec's."""
    profile = json.loads(path.read_text())
    (row,) = (row for row in profile["archMap"] if row["architecture"] == "SCMP_ARCH_X86_64")
    entries = []
    for entry in profile["syscalls"]:
        with_, without = entry.get("includes") or {}, entry.get("excludes") or {}
        right = "arches" not in with_ or "amd64" in with_["arches"]
        if right and set(with_.get("caps", ())) <= set(caps) and not set(without.get("caps", ())) & set(caps):
            entries.append({key: entry[key] for key in ("names", "action", "errnoRet", "args") if key in entry})
    return {
        "defaultAction": profile["defaultAction"], "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [row["architecture"], *row["subArchitectures"]], "syscalls": entries,
    }  # fmt: skip


def rule(
    names: str, action: str = "ALLOW", *args: tuple[int, str, int] | tuple[int, str, int, int], **more: Any
) -> dict[str, Any]:
    rows = [
        {"index": row[0], "op": f"SCMP_CMP_{row[1]}", "value": row[2], **({"valueTwo": row[3]} if row[3:] else {})}
        for row in args
    ]
    return {"names": names.split(), "action": f"SCMP_ACT_{action}", **({"args": rows} if rows else {}), **more}


def policies() -> dict[str, dict[str, Any]]:
    odd = [
        rule("swapon", "ERRNO", (0, "EQ", 8), (1, "EQ", 9), errnoRet=77),  # both
        rule("swapoff", "ERRNO", (0, "EQ", 8), (0, "EQ", 40), (1, "EQ", 41), errnoRet=78),  # any: one index twice
        rule("acct", "ERRNO", (0, "NE", 39), errnoRet=79),
        rule("vhangup", "ERRNO", (5, "LT", 12), errnoRet=80),
        rule("pivot_root", "ERRNO", (4, "LE", 12), errnoRet=81),
        rule("quotactl", "ERRNO", (3, "GE", 2**32 + 38), errnoRet=82),
        rule("sethostname", "ERRNO", (2, "GT", 38), errnoRet=83),
        rule("setdomainname", "ERRNO", (1, "MASKED_EQ", CLONE_NEWUSER | 0xFF, CLONE_NEWUSER | signal.SIGCHLD)),
        rule("settimeofday", "TRAP"),
        rule("clock_settime", "KILL_PROCESS"),
        rule("iopl", "KILL_THREAD"),
        rule("ioperm", "KILL"),
        rule("create_module", "TRACE"),
        rule("delete_module", "TRACE", errnoRet=5),
        rule("reboot", "LOG"),
        rule("not_a_call nor_this_one", "ERRNO"),
        rule("socketcall readdir", "ERRNO", errnoRet=90),  # known to 32 bits only
    ]
    docker = default(capabilities.DEFAULT)
    listed = {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ALL_X86}
    wide = [entry for entry in odd if entry["names"][0] != "quotactl"]
    return {
        "docker": docker,
        "docker-nothing": default([]),
        "docker-all": default(capabilities.NAMES),
        "allow-odd": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": odd},
        "allow-odd-32": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ALL_X86, "syscalls": wide},
        "deny-odd": {
            **listed,
            "defaultErrnoRet": 95,
            "syscalls": [*docker["syscalls"][:1], rule("clone arch_prctl"), *wide[:-1]],
        },
        "kill": {
            **listed,
            "defaultAction": "SCMP_ACT_KILL_PROCESS",
            "syscalls": [*docker["syscalls"][:1], rule("clone arch_prctl")],
        },
        "redundant": {**docker, "syscalls": [*docker["syscalls"], rule("mount", "ERRNO"), rule("statmount", "ERRNO")]},
        "log": {"defaultAction": "SCMP_ACT_LOG", "syscalls": [rule("mount", "ERRNO", errnoRet=0)]},
        "native": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": docker["syscalls"]},
        "read": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("read")]},  # x86-64's number 0 is no newest call
        "no-x32": {**docker, "architectures": ALL_X86[:2]},
        "only-x32": {**docker, "architectures": ["SCMP_ARCH_X32"]},
    }


@pytest.fixture(scope="module")
def programs() -> dict[str, bytes]:
    return {name: seccomp.compile(policy, None) for name, policy in policies().items()}


@pytest.mark.parametrize("name", list(policies()))
def test_program_answers_every_call_as_the_policy_says(library: Any, programs: dict[str, bytes], name: str) -> None:
    assert compare(library, policies()[name], programs[name], ALL_X86) > 3 * 550
    for number in NUMBERS:  # no policy here lists arm64
        assert bpf.answer(programs[name], bpf.AARCH64, number) == bpf.KILL


def test_podmans_policy(library: Any) -> None:
    if not PODMAN.exists():
        pytest.skip(f"{PODMAN}: no podman here")
    policy = docker_format(PODMAN, capabilities.DEFAULT)
    check(policy)
    program = seccomp.compile(policy, None)
    assert compare(library, policy, program, ALL_X86) > 3 * 550
    assert bpf.answer(program, bpf.X86_64, 600) == NO_SUCH_CALL


def test_another_machine(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """arm64 with 32-bit arm. No such machine here: only what `uname` answers is played, libseccomp knows them all."""
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*real[:4], "aarch64")))
    policy = default(capabilities.DEFAULT)
    assert policy["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    names = {name for entry in policy["syscalls"] for name in entry["names"]}
    assert "cacheflush" in names and not names & {"arch_prctl", "modify_ldt", "riscv_flush_icache"}
    compare(library, policy, seccomp.compile(policy, None), ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*real[:2], "4.4.0-generic", *real[3:])))
    assert "ptrace" not in {name for entry in default([])["syscalls"] for name in entry["names"]}
    assert "ptrace" in {name for entry in default(["CAP_SYS_PTRACE"])["syscalls"] for name in entry["names"]}


OPERATORS = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]
NAMES = "mount umount2 swapon swapoff acct vhangup quotactl iopl ioperm chroot mkdir rmdir futex ptrace no_such_call"
ACTIONS = ["ALLOW", "ERRNO", "TRAP", "TRACE", "LOG", "KILL", "KILL_PROCESS", "KILL_THREAD"]


@st.composite
def made_policies(draw: st.DrawFn) -> dict[str, Any]:
    """Small policies, one entry a call.

    Of several entries libseccomp 2.5 makes nonsense now and then, as in runc (`ptrace` is to fail for arg0 < 1, and
    for arg0 != 0 and arg1 != 0: then it fails for 1, 0 too). Those are held against runc's own program instead.
    """
    actions = {name: draw(st.sampled_from(ACTIONS)) for name in NAMES.split()}
    operators, values = st.sampled_from(OPERATORS), st.sampled_from(VALUES)
    conditions = st.lists(st.tuples(st.integers(0, 5), operators, values, values), max_size=3)
    entries = []
    for name in draw(st.lists(st.sampled_from(NAMES.split()), max_size=6, unique=True)):
        more = {"errnoRet": 7} if actions[name] in ("ERRNO", "TRACE") else {}
        args = [row if row[1] == "MASKED_EQ" else row[:3] for row in draw(conditions)]
        entries.append(rule(name, actions[name], *args, **more))
    architectures = draw(st.lists(st.sampled_from(ALL_X86), unique=True, max_size=3))
    action = draw(st.sampled_from(ACTIONS))
    policy = {"defaultAction": f"SCMP_ACT_{action}", "architectures": architectures, "syscalls": entries}
    return policy | ({"defaultErrnoRet": 33} if action in ("ERRNO", "TRACE") and draw(st.booleans()) else {})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made_policies())
def test_made_policies(library: Any, policy: dict[str, Any]) -> None:
    program = seccomp.compile(policy, None)
    oracle = Oracle(library, policy)
    for call in calls(oracle, policy, ALL_X86):
        named = oracle.name(call.token, call.number) in NAMES
        if named or call.number % 50 == 0:
            assert call.run(program) == oracle.answer(*call), (oracle.name(call.token, call.number), call)


def test_the_default_closes_what_it_must(programs: dict[str, bytes]) -> None:
    """By number, with no table of ours or libseccomp's between: x86-64."""
    program = programs["docker"]
    socket, personality, clone, clone3, unshare, mount, keyctl, io_uring_setup = 41, 135, 56, 435, 272, 165, 250, 425

    def allowed(number: int, *args: int) -> bool:
        return bpf.answer(program, bpf.X86_64, number, (*args, *(0,) * (6 - len(args)))) == bpf.ALLOW

    assert [family for family in range(50) if allowed(socket, family)] == [
        *range(12), *range(13, 19), 21, 22, 24, *range(26, 34), 35, 36, 39, *range(41, 46),
    ]  # fmt: skip
    # socket(2) takes an int: the kernel sees AF_ALG and AF_VSOCK in these too
    assert not any(allowed(socket, high << 32 | family) for high in (1, 2**31) for family in (38, 40))
    assert [value for value in (*VALUES, *WIDE) if allowed(personality, value)] == [0, 8, 0x20000, 0x20008, 0xFFFFFFFF]
    assert allowed(clone, signal.SIGCHLD)
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert not allowed(clone, flag | signal.SIGCHLD)
    assert bpf.answer(program, bpf.X86_64, clone3) == NO_SUCH_CALL
    assert not any(allowed(number) for number in (unshare, mount, keyctl, io_uring_setup))
    assert {bpf.answer(programs["docker-all"], bpf.X86_64, number) for number in (mount, clone3)} == {bpf.ALLOW}
    assert not [entry for entry in default(capabilities.NAMES)["syscalls"] if "errnoRet" in entry]


# --- runc, dockerd


@contextlib.contextmanager
def container(folder: Path, policy: dict[str, Any]) -> Iterator[int]:
    """The pid of a process that runc runs under the policy."""
    runc, busybox = require("runc"), require("busybox")
    (folder / "rootfs" / "proc").mkdir(parents=True)
    shutil.copy(busybox, folder / "rootfs" / "sh")
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ["/sh", "-c", "read line"], "cwd": "/", "noNewPrivileges": True,
            "capabilities": {kind: list(capabilities.DEFAULT) for kind in ("bounding", "effective", "permitted")},
        },
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")], "seccomp": policy},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    name = f"minirt-seccomp-{os.getpid()}"
    words = [runc, "--root", str(folder / "state")]
    start = [*words, "run", "--bundle", str(folder), "--pid-file", str(folder / "pid"), name]
    process = subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 20
        while not _waits_for_input(folder / "pid"):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, "runc's container does not start"
            time.sleep(0.01)
        yield int((folder / "pid").read_text())
    finally:
        subprocess.run([*words, "delete", "--force", name], check=False, capture_output=True)
        process.kill()
        process.communicate()


def _waits_for_input(file: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        pid = int(file.read_text())
        return (
            Path(f"/proc/{pid}/comm").read_text() == "sh\n" and "State:\tS" in Path(f"/proc/{pid}/status").read_text()
        )
    return False


@pytest.mark.skipif(os.geteuid() != 0, reason="runc here, and reading another process's filter, need root")
@pytest.mark.parametrize("name", ["docker", "allow-odd", "allow-odd-32", "deny-odd", "kill", "redundant", "log"])
def test_runc_makes_a_program_that_answers_the_same(
    library: Any, programs: dict[str, bytes], name: str, tmp_path: Path
) -> None:
    policy = policies()[name]
    with container(tmp_path, policy) as pid:
        theirs = bpf.loaded(pid)
    oracle, ours = Oracle(library, policy), programs[name]
    count = 0
    for call in calls(oracle, policy, ALL_X86):
        assert call.run(ours) == call.run(theirs), (oracle.name(call.token, call.number), call)
        count += 1
    assert count > 3 * 550


@pytest.mark.skipif(os.geteuid() != 0, reason="runc here, and reading another process's filter, need root")
def test_two_answers_for_one_call_are_runcs_answer(library: Any, tmp_path: Path) -> None:
    """What libseccomp makes of it is nowhere written: the rules and their order must be runc's."""
    rules = [
        rule("mount"),
        rule("mount", "TRAP"),
        rule("swapon", "LOG"),
        rule("swapon", "ERRNO", (0, "LT", 12), errnoRet=9),
    ]
    rules += [rule("acct", "ERRNO", (0, "GT", 8), errnoRet=7), rule("acct", "ERRNO", (0, "LT", 40), errnoRet=8)]
    docker = policies()["docker"]
    policy = {**docker, "syscalls": [*docker["syscalls"], *rules]}
    with container(tmp_path, policy) as pid:
        theirs = bpf.loaded(pid)
    ours = seccomp.compile(policy, None)
    for call in calls(Oracle(library, policy), policy, ALL_X86):
        assert call.run(ours) == call.run(theirs), call


@pytest.mark.skipif(os.geteuid() != 0, reason="runc here needs root")
def test_a_real_container_has_the_same_filter_mode_as_ours(programs: dict[str, bytes], tmp_path: Path) -> None:
    with container(tmp_path, policies()["docker"]) as pid:
        theirs = _status(Path(f"/proc/{pid}/status").read_text())
    ours = _status(confined(programs["docker"], "print(open('/proc/self/status').read())").stdout)
    assert ours == theirs == {"NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1"}


def _status(text: str) -> dict[str, str]:
    rows = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    return {key: rows[key] for key in ("NoNewPrivs", "Seccomp", "Seccomp_filters")}


@pytest.mark.slow
def test_the_default_is_what_a_real_dockerd_sends(dockerd: Dockerd, tmp_path: Path) -> None:
    """Call by call, for three sets of capabilities; every difference is one that a later docker made, listed here."""
    with _spy(dockerd, tmp_path) as capture:
        for words, caps in (
            ([], capabilities.DEFAULT),
            (["--cap-add", "SYS_ADMIN"], (*capabilities.DEFAULT, "CAP_SYS_ADMIN")),
            (["--cap-drop", "ALL"], ()),
            (["--cap-add", "ALL"], capabilities.NAMES),
        ):
            theirs, ours = capture(words), default(caps)
            check(theirs)
            for field in ("defaultAction", "architectures"):
                assert ours[field] == theirs[field]
            assert ours["defaultErrnoRet"] == theirs.get("defaultErrnoRet", errno.EPERM)
            mine, real = _by_name(ours), _by_name(theirs)
            differ = {name for name in mine.keys() | real.keys() if mine.get(name) != real.get(name)}
            known = {
                name
                for names, _, held, missing in DIFFERENCES
                if (not held or held in caps) and missing not in caps
                for name in names.split()
            }
            assert differ <= known, words
            if dockerd.docker("version", "--format", "{{.Server.Version}}").stdout.startswith(b"20.10."):
                assert differ == known, words  # none is listed in vain


# What docker 20.10 has otherwise: the calls, why, with which capability only, without which only.
DIFFERENCES = [
    ("io_uring_setup io_uring_enter io_uring_register", "docker 25 closed it: too many holes", "", ""),
    (
        "socket",
        "docker 23 closed AF_VSOCK, 29.4.2 AF_ALG (CVE-2026-31431); then families are listed one by one",
        "",
        "",
    ),
    ("pkey_alloc pkey_free pkey_mprotect", "opened by a later docker: a process's own memory", "", ""),
    ("name_to_handle_at", "opened to all; it is open_by_handle_at that reaches files", "", "CAP_SYS_ADMIN"),
    ("process_vm_readv process_vm_writev", "opened with ptrace, safe from Linux 4.8 on", "", "CAP_SYS_PTRACE"),
    ("set_mempolicy_home_node", "Linux 5.17", "CAP_SYS_NICE", ""),
    ("cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue", "Linux 6.5 to 6.7", "", ""),
    ("listmount statmount mseal uretprobe riscv_hwprobe", "Linux 6.8 to 6.12", "", ""),
    ("lsm_get_self_attr lsm_set_self_attr lsm_list_modules", "Linux 6.8", "CAP_SYS_ADMIN", ""),
    ("getxattrat setxattrat listxattrat removexattrat", "Linux 6.13", "", ""),
    ("clock_settime64", "the 32-bit form of what CAP_SYS_TIME opens, forgotten before", "CAP_SYS_TIME", ""),
]


def _by_name(policy: dict[str, Any]) -> dict[str, set[str]]:
    """Each call's rules, without their order."""
    found: dict[str, set[str]] = {}
    for entry in policy["syscalls"]:
        rest = json.dumps({key: value for key, value in entry.items() if key != "names"}, sort_keys=True)
        for name in entry["names"]:
            found.setdefault(name, set()).add(rest)
    return found


@contextlib.contextmanager
def _spy(dockerd: Dockerd, folder: Path) -> Iterator[Any]:
    """A function: options of `docker run` → the seccomp section that dockerd hands to its runtime."""
    spy, settings = folder / "spy", dockerd.folder / "daemon.json"
    spy.write_text(
        f"""#!/bin/sh
for word; do [ "$last" = --bundle ] && cp "$word/config.json" {folder}; last=$word; done
exec {require("runc")} "$@"
"""
    )
    spy.chmod(0o755)
    tree = folder / "tree"
    tree.mkdir()
    shutil.copy(require("busybox"), tree / "sh")
    subprocess.run(["tar", "-C", tree, "-cf", folder / "tree.tar", "."], check=True)
    dockerd.docker("import", "-", "spied", stdin=(folder / "tree.tar").read_bytes())

    def capture(options: list[str]) -> Any:
        (folder / "config.json").unlink(missing_ok=True)
        words = ["--rm", "--network=none", "--runtime=spy", *options, "spied", "/sh", "-c", ":"]
        dockerd.docker("run", *words, check=False)  # not every machine has all capabilities to give
        return json.loads((folder / "config.json").read_text())["linux"]["seccomp"]

    settings.write_text(json.dumps({"runtimes": {"spy": {"path": str(spy)}}}))
    dockerd.process.send_signal(signal.SIGHUP)
    try:
        end = time.monotonic() + 20
        while b"spy" not in dockerd.docker("info", "--format", "{{json .Runtimes}}").stdout:
            assert time.monotonic() < end, "dockerd does not take the new runtime"
            time.sleep(0.05)
        yield capture
    finally:
        settings.write_text("{}")
        dockerd.process.send_signal(signal.SIGHUP)
        dockerd.docker("rmi", "--force", "spied", check=False)


# --- loading

CONFINED = """
import sys
from minirt import linux
from minirt.runtime.seccomp import Filter
filter = Filter(open(sys.argv[1], "rb").read(), eval(sys.argv[2]))
linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
filter.load()
exec(sys.argv[3])
"""


def confined(program: bytes, script: str, flags: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code under the filter; a machine's name that it sets is its own."""
    alone = ["unshare", "--uts"] if os.geteuid() == 0 else []
    with os.fdopen(os.memfd_create("program"), "w+b") as file:
        file.write(program)
        file.flush()
        words = [*alone, sys.executable, "-c", CONFINED, f"/proc/{os.getpid()}/fd/{file.fileno()}", repr(flags), script]
        return subprocess.run(words, capture_output=True, text=True, check=False)


# x86-64 numbers
REAL_CALLS = {
    "swapon": (167, [(8, 9), (8, 8), (9, 9)]),
    "swapoff": (168, [(8, 0), (40, 0), (1, 41), (1, 1)]),
    "acct": (163, [(1,), (40,)]),
    "vhangup": (153, [(0,) * 6, (0, 0, 0, 0, 0, 11)]),
    "pivot_root": (155, [(1, 1, 0, 0, 12), (1, 1, 0, 0, 13)]),
    "quotactl": (179, [(0, 1, 0, 2**32 + 38), (0, 1, 0, 38)]),
    "sethostname": (170, [(1, 2**40, 39), (1, 2**40, 38)]),
    "setdomainname": (171, [(1, CLONE_NEWUSER | signal.SIGCHLD)]),
    "create_module": (174, [(0,)]),
    "delete_module": (176, [(0,)]),
    "getpid": (39, [()]),
    "no such call": (600, [()]),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")
def test_the_kernel_answers_as_our_reading_of_the_program(programs: dict[str, bytes]) -> None:
    """The interpreter of these tests against the kernel's own: what is refused, and that the rest is not."""
    rows = [(number, args) for number, lists in REAL_CALLS.values() for args in lists]
    script = f"""
import ctypes, json
call = ctypes.CDLL(None, use_errno=True).syscall
answers = []
for number, args in {rows!r}:
    ctypes.set_errno(0)
    call(*(ctypes.c_long(value) for value in (number, *args, *(0,) * (6 - len(args)))))
    answers.append(ctypes.get_errno())
print(json.dumps(answers))
"""
    result = confined(programs["allow-odd"], script)
    assert result.returncode == 0, result.stderr
    refused = 0
    for (number, args), found in zip(rows, json.loads(result.stdout), strict=True):
        word = bpf.answer(programs["allow-odd"], bpf.X86_64, number, (*args, *(0,) * (6 - len(args))))
        if word & 0xFFFF0000 == bpf.ERRNO:
            refused += 1
            assert found == word & 0xFFFF, (number, args)
        elif word & 0xFFFF0000 == 0x7FF00000:  # to a tracer: there is none
            assert found == errno.ENOSYS
        else:
            assert word == bpf.ALLOW and found < 77, (number, args, found)
    assert refused >= 10


@pytest.mark.parametrize("number", [164, 227, 172, 173], ids=["trap", "kill process", "kill thread", "kill"])
def test_deadly_actions(programs: dict[str, bytes], number: int) -> None:
    result = confined(
        programs["allow-odd"], f"import ctypes; ctypes.CDLL(None).syscall({number}, 0, 0, 0); print('alive')"
    )
    assert (result.returncode, result.stdout) == (-signal.SIGSYS, "")


def test_nothing_happens_between_load_and_execve(tmp_path: Path) -> None:
    """Any call but these kills (openat2 only to be the newest: beyond that is ENOSYS); the program needs no more."""
    hello = tmp_path / "hello"
    hello.write_bytes(elf.program({"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine], b"still here\n"))
    hello.chmod(0o755)
    policy = {"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [rule("execve write exit openat2")]}
    # Compile the code before the filter: reading a file is already too much.
    early = CONFINED.replace(
        "filter.load()\nexec(sys.argv[3])", "import os\nfilter.load()\nos.execve(sys.argv[3], ['hello'], {})"
    )
    (tmp_path / "program").write_bytes(seccomp.compile(policy, None))
    words = [sys.executable, "-c", early, str(tmp_path / "program"), "None", str(hello)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "still here\n"), result.stderr
    broken = subprocess.run(
        [*words[:2], early.replace("os.execve", "os.getppid();os.execve"), *words[3:]], capture_output=True, check=False
    )
    assert broken.returncode == -signal.SIGSYS  # the policy is as strict as this test thinks


@pytest.mark.parametrize(
    "flags", [None, [], list(seccomp._FLAGS), *([name] for name in seccomp._FLAGS)], ids=lambda flags: str(flags)
)
def test_flags(programs: dict[str, bytes], flags: list[str] | None) -> None:
    result = confined(programs["docker"], "print(open('/proc/self/status').read())", flags)
    assert result.returncode == 0, result.stderr
    assert _status(result.stdout)["Seccomp_filters"] == "1"


def test_flags_reach_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """They leave no trace that could be read afterwards: the real calls are watched, not replaced."""
    seen: list[tuple[int, int]] = []
    real = linux.seccomp
    monkeypatch.setattr(linux, "seccomp", lambda *words: (seen.append(words[:2]), real(*words))[1])
    for flags, expected in ((None, 4), ([], 0), (list(seccomp._FLAGS), 7), (["SECCOMP_FILTER_FLAG_LOG"], 2)):
        with pytest.raises(OSError, match="Invalid argument"):
            Filter(b"\x06\0\0\0\0\0\0\0" * 4097, flags).load()  # one too many: refused, this process stays free
        assert seen[-1] == (linux.SECCOMP_SET_MODE_FILTER, expected)


def test_a_flag_the_kernel_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(seccomp._FLAGS, "SECCOMP_FILTER_FLAG_OF_TOMORROW", 1 << 30)
    with pytest.raises(Unsupported, match="linux.seccomp.flags: this kernel does not know SECCOMP_FILTER_FLAG_OF_TOM"):
        Filter(b"", ["SECCOMP_FILTER_FLAG_OF_TOMORROW"])


def test_loading_needs_no_new_privs_or_the_capability(programs: dict[str, bytes], tmp_path: Path) -> None:
    script = CONFINED.replace("linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)", "linux.capset(0, 0, 0)")
    (tmp_path / "program").write_bytes(programs["docker"])
    words = [sys.executable, "-c", script, str(tmp_path / "program"), "None", "print('loaded')"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "PermissionError: [Errno 13]" in result.stderr


# --- what a user may get wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defaultAction": "SCMP_ACT_MAYBE"}, "linux.seccomp.defaultAction: unknown action 'SCMP_ACT_MAYBE'"),
        ({"defaultAction": 5}, "linux.seccomp.defaultAction: unknown action 5"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "linux.seccomp.defaultAction: seccomp notify is not supported"),
        ({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}, "linux.seccomp.defaultErrnoRet: .* takes no errno"),
        ({"defaultErrnoRet": -1}, "linux.seccomp.defaultErrnoRet: -1 is not a number from 0 to 65535"),
        ({"defaultErrnoRet": True}, "linux.seccomp.defaultErrnoRet: True is not a number"),
        ({"listenerPath": "/run/agent.sock"}, "linux.seccomp.listenerPath: seccomp notify is not supported"),
        ({"listenerMetadata": "x"}, "linux.seccomp.listenerMetadata: seccomp notify is not supported"),
        ({"archMap": []}, "linux.seccomp.archMap: unknown field"),
        ({"architectures": ["SCMP_ARCH_Z80"]}, r"seccomp.architectures\[0\]: unknown architecture 'SCMP_ARCH_Z80'"),
        ({"architectures": "SCMP_ARCH_X86"}, "linux.seccomp.architectures: must be a list"),
        ({"flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}, r"linux.seccomp.flags\[0\]: unknown flag 'SECCOMP"),
        ({"syscalls": {}}, "linux.seccomp.syscalls: must be a list"),
        ({"syscalls": ["mount"]}, r"linux.seccomp.syscalls\[0\]: must be an object"),
        ({"syscalls": [{"action": "SCMP_ACT_ALLOW"}]}, r"linux.seccomp.syscalls\[0\].names: missing"),
        ({"syscalls": [{"names": ["mount"]}]}, r"linux.seccomp.syscalls\[0\].action: missing"),
        ({"syscalls": [rule("mount"), rule("mount", "NOTIFY")]}, r"syscalls\[1\].action: seccomp notify is not"),
        ({"syscalls": [rule("mount", "DENY")]}, r"linux.seccomp.syscalls\[0\].action: unknown action 'SCMP_ACT_DENY'"),
        ({"syscalls": [rule("mount", errnoRet=1)]}, r"syscalls\[0\].errnoRet: SCMP_ACT_ALLOW takes no errno"),
        ({"syscalls": [rule("mount", "ERRNO", errnoRet="1")]}, r"syscalls\[0\].errnoRet: '1' is not a number"),
        ({"syscalls": [rule("mount", name="x")]}, r"linux.seccomp.syscalls\[0\].name: unknown field"),
        ({"syscalls": [rule("mount") | {"names": [""]}]}, r"syscalls\[0\].names: '' is not the name of a system call"),
        ({"syscalls": [rule("mount", "ALLOW", (6, "EQ", 0))]}, r"args\[0\].index: 6 is not a number from 0 to 5"),
        ({"syscalls": [rule("mount", "ALLOW", (0, "EQ", 2**64))]}, r"args\[0\].value: .* is not a number from 0 to"),
        ({"syscalls": [rule("mount", "ALLOW", (0, "IN", 1))]}, r"args\[0\].op: unknown operator 'SCMP_CMP_IN'"),
        ({"syscalls": [rule("mount") | {"args": [{"index": 0}]}]}, r"syscalls\[0\].args\[0\].value: missing"),
    ],
)  # fmt: skip
def test_bad_policies_are_refused_by_the_fields_name(change: dict[str, Any], message: str) -> None:
    policy = {"defaultAction": "SCMP_ACT_ERRNO", **change}
    for verb in (check, lambda policy: seccomp.compile(policy, None)):
        with pytest.raises(InvalidInput, match=message):
            verb(policy)


@pytest.mark.parametrize("policy", [None, [], "unconfined", {}])
def test_not_a_policy(policy: Any) -> None:
    with pytest.raises(InvalidInput, match="linux.seccomp"):
        check(policy)


def test_all_that_is_supported_passes() -> None:
    for policy in policies().values():
        check(policy | {"flags": list(seccomp._FLAGS), "listenerPath": ""})
    check({"defaultAction": "SCMP_ACT_TRACE", "architectures": None, "syscalls": None, "defaultErrnoRet": None})


def test_what_libseccomp_refuses() -> None:
    """A big-endian architecture beside a little-endian one."""
    policy = {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_PPC"]}
    with pytest.raises(InvalidInput, match="linux.seccomp.architectures: refused by libseccomp: .* domain"):
        seccomp.compile(policy, None)


def test_an_architecture_that_libseccomp_does_not_know_yet(library: Any) -> None:
    if library.seccomp_arch_resolve_name(b"loongarch64"):
        pytest.skip("this libseccomp knows them all")
    with pytest.raises(Unsupported, match="libseccomp does not know SCMP_ARCH_LOONGARCH64"):
        seccomp.compile({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_LOONGARCH64"]}, None)


def test_a_policy_too_large_for_the_kernel() -> None:
    entries = [rule("mount", "ERRNO", (0, "EQ", number * 2**32 + number)) for number in range(2500)]
    with pytest.raises(InvalidInput, match="linux.seccomp: [0-9]+ instructions, the kernel takes 4096"):
        seccomp.compile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": entries}, None)


def test_no_libseccomp(tmp_path: Path) -> None:
    script = f"""
from minirt.errors import Unsupported
from minirt.runtime import seccomp
seccomp.LIBRARY = "libseccomp-missing.so.2"
try:
    seccomp.compile(seccomp.default([]), {str(tmp_path / "cache")!r})
except Unsupported as error:
    print(error)
"""
    seccomp.compile(default([]), str(tmp_path / "cache"))  # kept, but for another libseccomp
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout == "a seccomp policy needs libseccomp: install it with `sudo apt-get install libseccomp2`\n"


# --- the cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def _kept(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("read")]}


def test_a_hit_needs_no_library_and_little_time(cache: Path) -> None:
    policy = default(capabilities.DEFAULT)
    program = seccomp.compile(policy, str(cache))
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700 and stat.S_IMODE(_kept(cache).stat().st_mode) == 0o600
    script = f"""
import sys, time
from minirt.runtime import capabilities, seccomp
policy = seccomp.default(capabilities.DEFAULT)
times = []
for _ in range(20):
    start = time.perf_counter()
    program = seccomp.compile(policy, {str(cache)!r})
    times.append(time.perf_counter() - start)
print(min(times), "libseccomp" in open("/proc/self/maps").read(), "minirt.runtime.libseccomp" in sys.modules)
sys.stdout.write(program.hex())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    report, found = result.stdout.split("\n")
    seconds, mapped, imported = report.split()
    assert (mapped, imported, bytes.fromhex(found)) == ("False", "False", program)
    assert float(seconds) < 0.001


def test_what_only_the_loader_finds_is_not_cached(
    cache: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version cannot be told without loading it."""
    program = seccomp.compile(small, None)
    monkeypatch.setattr(seccomp, "_FOLDERS", [])
    assert seccomp.compile(small, str(cache)) == program and not cache.exists()


def test_every_policy_has_its_own_program(cache: Path, small: dict[str, Any]) -> None:
    other = {**small, "syscalls": [rule("write")]}
    first, second = seccomp.compile(small, str(cache)), seccomp.compile(other, str(cache))
    assert first != second and len(list(cache.iterdir())) == 2
    assert (seccomp.compile(small, str(cache)), seccomp.compile(other, str(cache))) == (first, second)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("what", ["machine", "release", "version"])
def test_another_kernel_machine_or_library_compiles_anew(
    cache: Path, small: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seccomp.compile(small, str(cache))
    if what == "version":
        path, version = seccomp._library()
        monkeypatch.setattr(seccomp, "_library", lambda: (path, (*version[:-1], version[-1] + 1)))
    else:
        words = {"machine": (4, "i686"), "release": (2, "9.9.9")}[what]
        uname = list(os.uname())
        uname[words[0]] = words[1]
        monkeypatch.setattr(seccomp, "_FOLDERS", [os.path.dirname(seccomp._library()[0])])
        monkeypatch.setattr(os, "uname", lambda: os.uname_result(uname))
    seccomp.compile(small, str(cache))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "checksum", "cut", "bit", "longer", "another's", "pipe", "folder"])
def test_a_damaged_file_is_not_used(cache: Path, small: dict[str, Any], damage: str) -> None:
    program = seccomp.compile(small, str(cache))
    file = _kept(cache)
    content = file.read_bytes()
    writer = -1
    if damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "pipe":
        file.unlink()
        os.mkfifo(file, 0o600)
        writer = os.open(file, os.O_RDWR)  # nothing to read, and no end
    elif damage == "another's":  # whole, but for another policy
        seccomp.compile({**small, "syscalls": [rule("write")]}, str(cache))
        (other,) = set(cache.iterdir()) - {file}
        other.rename(file)
    else:
        file.write_bytes(
            {
                "empty": b"", "checksum": content[:32], "cut": content[:-8], "longer": content + content[-8:],
                "bit": content[:-1] + bytes([content[-1] ^ 1]),
            }[damage]
        )  # fmt: skip
    assert seccomp.compile(small, str(cache)) == program
    assert list(cache.iterdir()) == [file]
    if damage == "folder":
        assert list(file.iterdir()) == []
    else:
        assert file.read_bytes() == content  # and mended
    if writer >= 0:
        os.close(writer)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("way", ["owner", "group", "others", "link", "folder owner", "folder group", "folder link"])
def test_what_others_could_have_written_is_not_used(
    cache: Path, small: dict[str, Any], way: str, tmp_path: Path
) -> None:
    """The file allows everything, and its checksum is right: whoever could write it could work that out."""
    program = seccomp.compile(small, str(cache))
    file = _kept(cache)
    allow = b"\x06\0\0\0\0\0\xff\x7f"
    file.write_bytes(seccomp.sha256(bytes.fromhex(file.name) + allow).digest() + allow)
    assert seccomp.compile(small, str(cache)) == allow  # so the forgery is a good one
    place = cache if way.startswith("folder") else file
    match way.removeprefix("folder "):
        case "owner":
            os.chown(place, 65534, -1)
        case "group":
            place.chmod(0o770)
        case "others":
            place.chmod(0o602)
        case "link":
            place.rename(tmp_path / "elsewhere")
            place.symlink_to(tmp_path / "elsewhere")
    assert seccomp.compile(small, str(cache)) == program
    if place is cache:
        assert file.read_bytes().endswith(allow)  # nothing written there either


@pytest.mark.parametrize("place", ["a/b", "file", "file/cache"])
def test_no_cache_is_no_failure(tmp_path: Path, small: dict[str, Any], place: str) -> None:
    (tmp_path / "file").write_text("")
    assert seccomp.compile(small, str(tmp_path / place)) == seccomp.compile(small, None)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["file"]


def test_many_at_once_share_the_cache(cache: Path) -> None:
    policy = default([])
    expected = seccomp.compile(policy, None)
    pids = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if seccomp.compile(policy, str(cache)) == expected else 1)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 8
    assert len(list(cache.iterdir())) == 1
