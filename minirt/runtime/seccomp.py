"""Seccomp: which of the kernel's doors are left open to a container (seccomp(2)).

A container shares the machine's kernel, and every request to it is a system call. A seccomp filter is a small program
that the kernel runs before each call of a process: it sees the call's number, the architecture it was made for and the
six arguments as plain numbers (not what they point to), and answers: allow, fail with an errno, or kill. A filter is
never taken off again, and children inherit it. So a hole in a call that few programs use is no way out of a container.

    default    docker's policy for a set of capabilities, as the runtime-spec's `linux.seccomp`: data anybody can read
    check      is this policy one we can keep to? Nothing in it is ever ignored
    compile    policy → program of the classic BPF machine, made by libseccomp
    Filter     the program, ready to be loaded with one system call, just before execve

The default policy refuses, with EPERM, what it does not list. The lists (seccomp.json) are docker 28.5's, but for
`socket` those of moby/profiles at 02e898b: it names the families, so that AF_ALG (CVE-2026-31431) and AF_VSOCK are
closed also to a number whose upper half the kernel drops. Some calls open with a capability: the kernel checks that one
itself. `clone` may make no namespace; `clone3` has its flags behind a pointer, so it answers ENOSYS and the C library
falls back to `clone`. A call newer than all that a policy names answers ENOSYS too: the program takes this for an old
kernel and uses the older call, where EPERM would end it. runc does the same (patchbpf).

Compiling takes milliseconds, so programs are kept in a folder, by everything that shapes them. A file there counts
only if it and the folder are ours, nobody else may write to them, and its checksum says that it is whole and for this
very policy: a wrong filter is worse than none, because one trusts it. Sources: runtime-spec config-linux.md "Seccomp";
moby/profiles seccomp; runc libcontainer/seccomp; seccomp(2), seccomp_rule_add(3). Taught in chapter 07.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from ctypes import addressof, create_string_buffer
from typing import Any

try:  # hashlib's own: without OpenSSL, which is 3 MB of each launcher
    from _sha256 import sha256
except ImportError:  # Python 3.12 has it elsewhere
    from hashlib import sha256

from minirt import linux
from minirt.errors import InvalidInput, Unsupported

LIBRARY = "libseccomp.so.2"
_FOLDERS = ("/usr/lib/{0}-linux-gnu", "/lib/{0}-linux-gnu", "/usr/lib64", "/lib64", "/usr/lib", "/lib")
_MAX_INSTRUCTIONS = 4096  # the kernel's BPF_MAXINSNS

ACTIONS = {
    "SCMP_ACT_KILL": 0, "SCMP_ACT_KILL_THREAD": 0, "SCMP_ACT_KILL_PROCESS": 0x80000000, "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_TRACE": 0x7FF00000, "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}  # fmt: skip
WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
OPERATORS = {f"SCMP_CMP_{name}": n for n, name in enumerate(("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"), 1)}
_ARCHITECTURES = [f"SCMP_ARCH_{name}" for name in (
    "X86", "X86_64", "X32", "ARM", "AARCH64", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64", "MIPSEL64N32",
    "PPC", "PPC64", "PPC64LE", "RISCV64", "S390", "S390X", "LOONGARCH64",
)]  # fmt: skip
_FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC": 1, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4}
_FIELDS = ("defaultAction", "defaultErrnoRet", "architectures", "flags", "syscalls", "listenerPath", "listenerMetadata")


def default(capabilities: Iterable[str]) -> dict[str, Any]:
    """docker's default policy on this machine for a container with these capabilities (`CAP_X`)."""
    with open(os.path.join(os.path.dirname(__file__), "seccomp.json"), encoding="ascii") as file:
        data = json.load(file)
    held, system = set(capabilities), os.uname()
    policy: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno.EPERM}
    if system.machine in data["architectures"]:
        policy["architectures"] = data["architectures"][system.machine]
    rules = [{"names": " ".join(data["allowed"])}, *data["rules"]]
    policy["syscalls"] = [entry for rule in rules if _applies(rule, held, system) for entry in _entries(rule)]
    return policy


def _applies(rule: dict[str, Any], held: set[str], system: os.uname_result) -> bool:
    return (
        rule.get("machine", system.machine) == system.machine
        and ("with" not in rule or f"CAP_{rule['with']}" in held)
        and ("without" not in rule or f"CAP_{rule['without']}" not in held)
        and ("kernel" not in rule or [int(n) for n in re.findall("[0-9]+", system.release)[:2]] >= rule["kernel"])
    )


def _entries(rule: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A rule of seccomp.json in the runtime-spec's words: one entry for each value that its argument may have."""
    entry: dict[str, Any] = {"names": rule["names"].split(), "action": "SCMP_ACT_ALLOW"}
    if "errno" in rule:
        entry |= {"action": "SCMP_ACT_ERRNO", "errnoRet": rule["errno"]}
    if "args" not in rule:
        yield entry
        return
    index, operator, values = rule["args"]
    for value in values:
        yield entry | {"args": [{"index": index, "value": value, "op": f"SCMP_CMP_{operator}"}]}


def check(policy: Any) -> None:
    """See that every field of this `linux.seccomp` is one we honour. Raises InvalidInput with the field's name."""
    where = "linux.seccomp"
    _fields(where, policy, _FIELDS, ("defaultAction",))
    for field in ("listenerPath", "listenerMetadata"):
        if policy.get(field):
            raise InvalidInput(f"{where}.{field}: seccomp notify is not supported")
    _check_action(where, policy, "defaultAction", "defaultErrnoRet")
    for field, known in (("architectures", _ARCHITECTURES), ("flags", list(_FLAGS))):
        for number, name in enumerate(_list(where, policy, field)):
            if name not in known:
                raise InvalidInput(f"{where}.{field}[{number}]: unknown {field[:-1]} {name!r}")
    for number, entry in enumerate(_list(where, policy, "syscalls")):
        place = f"{where}.syscalls[{number}]"
        _fields(place, entry, ("names", "action", "errnoRet", "args"), ("names", "action"))
        _check_action(place, entry, "action", "errnoRet")
        for name in _list(place, entry, "names"):
            if not isinstance(name, str) or not name or "\0" in name:
                raise InvalidInput(f"{place}.names: {name!r} is not the name of a system call")
        for index, argument in enumerate(_list(place, entry, "args")):
            _check_argument(f"{place}.args[{index}]", argument)


def _check_action(where: str, holder: dict[str, Any], field: str, errno_field: str) -> None:
    name = holder[field]
    if name == "SCMP_ACT_NOTIFY":
        raise InvalidInput(f"{where}.{field}: seccomp notify is not supported")
    if not isinstance(name, str) or name not in ACTIONS:
        raise InvalidInput(f"{where}.{field}: unknown action {name!r}")
    if holder.get(errno_field) is not None:
        if name not in WITH_ERRNO:
            raise InvalidInput(f"{where}.{errno_field}: {name} takes no errno")
        _number(where, holder, errno_field, 0xFFFF)


def _check_argument(where: str, argument: Any) -> None:
    _fields(where, argument, ("index", "value", "valueTwo", "op"), ("index", "value", "op"))
    _number(where, argument, "index", 5)
    for field in ("value", "valueTwo"):
        _number(where, argument, field, 2**64 - 1)
    if not isinstance(argument["op"], str) or argument["op"] not in OPERATORS:
        raise InvalidInput(f"{where}.op: unknown operator {argument['op']!r}")


def _fields(where: str, holder: Any, known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    if not isinstance(holder, dict):
        raise InvalidInput(f"{where}: must be an object")
    for field in holder:
        if field not in known:
            raise InvalidInput(f"{where}.{field}: unknown field")
    for field in needed:
        if field not in holder:
            raise InvalidInput(f"{where}.{field}: missing")


def _list(where: str, holder: dict[str, Any], field: str) -> list[Any]:
    value = holder.get(field)
    if value is not None and not isinstance(value, list):
        raise InvalidInput(f"{where}.{field}: must be a list")
    return value or []


def _number(where: str, holder: dict[str, Any], field: str, largest: int) -> None:
    value = holder.get(field, 0)
    if type(value) is not int or not 0 <= value <= largest:
        raise InvalidInput(f"{where}.{field}: {value!r} is not a number from 0 to {largest}")


_foreseen: tuple[dict[str, Any], str, bytes] | None = None


def foresee(policy: dict[str, Any], cache: str) -> None:
    """Compile it a moment before it is asked for."""
    global _foreseen
    _foreseen = policy, cache, compile(policy, cache)


def compile(policy: dict[str, Any], cache: str | None) -> bytes:
    """The BPF program for this policy, an array of `struct sock_filter`, kept in the folder `cache` (made 0700).

    Raises InvalidInput for a policy that `check` or libseccomp refuses, Unsupported where there is no libseccomp.
    """
    if _foreseen and _foreseen[:2] == (policy, cache):
        return _foreseen[2]
    path, version = _library()
    cache = cache if version else None
    shape = [policy, *os.uname()[2:], path, *version]
    key = sha256(json.dumps(shape, sort_keys=True).encode()).digest()
    program = _recall(cache, key) if cache else None
    if program is None:
        from minirt.runtime import libseccomp

        check(policy)
        program = libseccomp.translate(policy, path)
        if len(program) > 8 * _MAX_INSTRUCTIONS:
            raise InvalidInput(f"linux.seccomp: {len(program) // 8} instructions, the kernel takes {_MAX_INSTRUCTIONS}")
        if cache:
            _remember(cache, key, program)
    return program


def _library() -> tuple[str, tuple[int, ...]]:
    """libseccomp's path and what tells its version yet unloaded; a bare name and () if only the loader finds it."""
    for folder in _FOLDERS:
        path = os.path.join(folder.format(os.uname().machine), LIBRARY)
        with contextlib.suppress(OSError):
            found = os.stat(path)
            return path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return LIBRARY, ()


@contextlib.contextmanager
def _folder(cache: str) -> Iterator[int]:
    """The cache as a descriptor. OSError where it is not a folder of ours alone to write to."""
    fd = os.open(cache, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _ours(fd)
        yield fd
    finally:
        os.close(fd)


def _ours(fd: int) -> os.stat_result:
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write to it")
    return found


def _recall(cache: str, key: bytes) -> bytes | None:
    """The program kept under `key`: None where there is none, or none to be trusted."""
    try:
        with _folder(cache) as folder:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(key.hex(), flags, dir_fd=folder)
            with os.fdopen(fd, "rb") as file:
                if not stat.S_ISREG(_ours(fd).st_mode):
                    return None
                content = file.read(32 + 8 * _MAX_INSTRUCTIONS + 1)
    except OSError:
        return None
    checksum, program = content[:32], content[32:]
    return program if program and sha256(key + program).digest() == checksum else None


def _remember(cache: str, key: bytes, program: bytes) -> None:
    """Keep the program, by rename. Where that cannot be (full disk, foreign folder), the next run compiles again."""
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            os.mkdir(cache, 0o700)
        with _folder(cache) as folder:
            name = f"{key.hex()}.{os.getpid()}"
            try:
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
                with os.fdopen(fd, "wb") as file:
                    file.write(sha256(key + program).digest() + program)
                os.rename(name, key.hex(), src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                os.unlink(name, dir_fd=folder)
                raise


class Filter:
    """A program ready to be loaded: nothing is left to do but the one call, for what follows may be forbidden.

    `flags` are the policy's; None (it has none) means SPEC_ALLOW where the kernel knows it, as in runc and crun: a
    filter alone does not turn a slow Spectre mitigation on. Raises Unsupported for what the kernel does not know.
    """

    def __init__(self, program: bytes, flags: Iterable[str] | None = None) -> None:
        self._flags = 0
        if not _knows(0):
            raise Unsupported("this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)")
        for name in ("SECCOMP_FILTER_FLAG_SPEC_ALLOW",) if flags is None else flags:
            if _knows(_FLAGS[name]):
                self._flags |= _FLAGS[name]
            elif flags is not None:
                raise Unsupported(f"linux.seccomp.flags: this kernel does not know {name}")
        self._instructions = create_string_buffer(program, len(program))
        # struct sock_fprog, with C's own padding
        self._program = create_string_buffer(struct.pack("@HP", len(program) // 8, addressof(self._instructions)))

    def load(self) -> None:
        """Put this process under the filter, for ever. It needs no_new_privs or CAP_SYS_ADMIN (else OSError EACCES)."""
        if linux.seccomp(linux.SECCOMP_SET_MODE_FILTER, self._flags, self._program):
            raise OSError(errno.EBUSY, "another thread cannot take the seccomp filter")  # TSYNC answers its id


def _knows(flag: int) -> bool:
    """Whether the kernel knows the flag: it looks at flags before it looks at the program, which is not there."""
    try:
        linux.seccomp(linux.SECCOMP_SET_MODE_FILTER, flag, None)
    except OSError as error:
        return error.errno not in (errno.EINVAL, errno.ENOSYS)
    return False
