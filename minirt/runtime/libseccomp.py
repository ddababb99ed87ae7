"""Policy → program, by libseccomp: it knows each architecture's call numbers and orders the comparisons.

A rule of the policy names calls and conditions on their arguments: all must hold, but where two conditions look at the
same argument each becomes a rule of its own (any may hold), as in runc; libseccomp takes one comparison an argument. A
rule with the policy's default action says nothing new and is left out; so is a name that libseccomp does not know.
Only a miss of the cache in `seccomp` comes here. Sources: seccomp_rule_add(3), seccomp_attr_set(3); linux/filter.h,
linux/audit.h; runc libcontainer/seccomp, patchbpf. Taught in chapter 07.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from ctypes import CDLL, Structure, c_char_p, c_int, c_uint, c_uint32, c_uint64, c_void_p
from typing import Any

from minirt.errors import InvalidInput, Unsupported
from minirt.runtime.seccomp import ACTIONS, OPERATORS, WITH_ERRNO

_ATTRIBUTE_OPTIMIZE, _BINARY_TREE = 8, 2
_MANY_RULES = 32  # from here on a tree of calls pays; with no rule at all, libseccomp 2.5's tree is wrong
# Where an unknown call should just run, be logged or be seen by a tracer, there is no ENOSYS to put in its place.
_PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")

# The kernel has one architecture for both; a bit in the number tells an x32 call from an x86-64 one.
_X86_64, _X32, _X32_BIT = 0xC000003E, 0x4000003E, 1 << 30
_LOAD, _JUMP, _IF_EQUAL, _IF_GREATER, _IF_BITS, _RETURN = 0x20, 0x05, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data


class _Comparison(Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("arg", c_uint), ("op", c_int), ("datum_a", c_uint64), ("datum_b", c_uint64))


def translate(policy: dict[str, Any], path: str) -> bytes:
    """The program for a checked policy, made by the library at `path`. Raises Unsupported, InvalidInput."""
    library = _load(path)
    default = _action(policy["defaultAction"], policy.get("defaultErrnoRet"))
    context = library.seccomp_init(default)
    if not context:
        raise Unsupported(f"linux.seccomp.defaultAction: libseccomp cannot do {policy['defaultAction']} on this kernel")
    try:
        architectures = [_architecture(library, name) for name in policy.get("architectures") or ()]
        for architecture in architectures:
            _succeed("architectures", library.seccomp_arch_add(context, architecture), -errno.EEXIST)
        if _add_rules(library, context, policy, default) > _MANY_RULES:
            library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, _BINARY_TREE)  # refused by an old one: no harm
        program = _export(library, context)
    finally:
        library.seccomp_release(context)
    if policy["defaultAction"] in _PERMISSIVE:
        return program
    # The native architecture is always in the filter, listed or not.
    return _newer_calls(_newest(library, policy, {*architectures, library.seccomp_arch_native()})) + program


def _load(path: str) -> Any:
    try:
        library = CDLL(path)
    except OSError as error:
        raise Unsupported(
            "a seccomp policy needs libseccomp: install it with `sudo apt-get install libseccomp2`"
        ) from error
    for name, result, arguments in (
        ("init", c_void_p, (c_uint32,)),
        ("release", None, (c_void_p,)),
        ("arch_native", c_uint32, ()),
        ("arch_add", c_int, (c_void_p, c_uint32)),
        ("arch_resolve_name", c_uint32, (c_char_p,)),
        ("syscall_resolve_name", c_int, (c_char_p,)),
        ("syscall_resolve_name_arch", c_int, (c_uint32, c_char_p)),
        ("rule_add_array", c_int, (c_void_p, c_uint32, c_int, c_uint, c_void_p)),
        ("attr_set", c_int, (c_void_p, c_int, c_uint32)),
        ("export_bpf", c_int, (c_void_p, c_int)),
    ):
        function = getattr(library, f"seccomp_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _action(name: str, number: int | None) -> int:
    """The kernel's word for an action; ERRNO and TRACE carry a number, EPERM where the policy has none."""
    return ACTIONS[name] | (errno.EPERM if number is None else number) if name in WITH_ERRNO else ACTIONS[name]


def _architecture(library: Any, name: str) -> int:
    found = int(library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode()))
    if not found:
        raise Unsupported(f"linux.seccomp.architectures: this machine's libseccomp does not know {name}")
    return found


def _add_rules(library: Any, context: int, policy: dict[str, Any], default: int) -> int:
    """How many rules it became."""
    count = 0
    for entry in policy.get("syscalls") or ():
        action = _action(entry["action"], entry.get("errnoRet"))
        if action == default:
            continue
        groups = [_comparisons(group) for group in _groups(entry.get("args") or [])]
        for name in entry["names"]:
            number = library.seccomp_syscall_resolve_name(_c(name))
            if number == -1:
                continue
            for group in groups:
                result = library.seccomp_rule_add_array(context, action, number, len(group), group)
                _succeed(f"syscalls: {name} ({entry['action']})", result)
                count += 1
    return count


def _groups(conditions: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rules these conditions make: one, or one for each where two look at the same argument."""
    if len({condition["index"] for condition in conditions}) < len(conditions):
        return [[condition] for condition in conditions]
    return [conditions]


def _comparisons(conditions: list[dict[str, Any]]) -> Any:
    rows = [(c["index"], OPERATORS[c["op"]], c["value"], c.get("valueTwo", 0)) for c in conditions]
    return (_Comparison * len(rows))(*(_Comparison(*row) for row in rows))


def _export(library: Any, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _succeed("syscalls", library.seccomp_export_bpf(context, fd))
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _succeed(what: str, result: int, fine: int = 0) -> None:
    if result not in (0, fine):
        raise InvalidInput(f"linux.seccomp.{what}: refused by libseccomp: {os.strerror(-result)}")


def _c(name: str) -> bytes:
    return name.encode(errors="replace")  # no call has such a name


def _newest(library: Any, policy: dict[str, Any], architectures: Iterable[int]) -> dict[int, int]:
    """The largest call number that the policy names, for each architecture where there is one."""
    names = [_c(name) for entry in policy.get("syscalls") or () for name in entry["names"]]
    resolve = library.seccomp_syscall_resolve_name_arch
    largest = {a: max((resolve(a, name) for name in names), default=0) for a in sorted(architectures)}
    return {architecture: number for architecture, number in largest.items() if number > 0}


def _newer_calls(newest: dict[int, int]) -> bytes:
    """Instructions that answer ENOSYS to calls with larger numbers and let all others fall into what follows."""
    rows: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, _ARCHITECTURE)]
    for architecture in sorted({_X86_64 if a == _X32 else a for a in newest}):
        block = _limit(newest.get(architecture))
        if architecture == _X86_64:
            block = [(_IF_BITS, len(block), 0, _X32_BIT), *block, *_limit(newest.get(_X32))]
        rows += [(_IF_EQUAL, 0, 1 + len(block), architecture), (_LOAD, 0, 0, _NUMBER), *block]
    ends = [(code, yes, no, len(rows) - at - 1 if code == _JUMP else k) for at, (code, yes, no, k) in enumerate(rows)]
    return b"".join(struct.pack("@HBBI", *row) for row in ends) if newest else b""


def _limit(number: int | None) -> list[tuple[int, int, int, int]]:
    """Beyond `number` ENOSYS; else a jump to the end, whose length the caller fills in."""
    beyond = (
        []
        if number is None
        else [(_IF_GREATER, 0, 1, number), (_RETURN, 0, 0, ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS)]
    )
    return [*beyond, (_JUMP, 0, 0, 0)]
