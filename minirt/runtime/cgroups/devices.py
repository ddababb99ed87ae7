"""Which device nodes a group may open or make: runtime-spec rules, in order, and what the kernel is given for them.

The rules boil down to a policy, as the kernel's own v1 controller keeps one: allow or deny by default, and exceptions
by (type, major, minor), -1 for any number. v1 takes it as lines in devices.allow and devices.deny. v2 has no file: a
small eBPF program is asked at every open(2) and mknod(2), one block of compare-and-jump per exception, and a new
program takes the old one's place as one step. Under a default of deny a request must lie wholly inside one exception;
under a default of allow, one that touches an exception is refused (the kernel's devcgroup does both so).
Rules hold in their order, a later one over an earlier. Where that needs an exception to an exception with wildcards,
which v1 would silently ignore, the rules are refused (by runc too). Tighter than runc, as the rules' words say: a wide
rule also takes back the narrow ones before it, and type `a` with numbers means both types, not everything.
Sources: config-linux.md "Allowed Device list", cgroup-v1/devices.rst, bpf(2). Taught in chapter 08.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from minirt import linux
from minirt.errors import InvalidInput

Device = tuple[str, int, int]
_MKNOD, _READ, _WRITE = 1, 2, 4  # <linux/bpf.h> BPF_DEVCG_ACC_*
_LETTERS = {"r": _READ, "w": _WRITE, "m": _MKNOD}
_TYPES = {"b": 1, "c": 2}
_ALL = 7
# What every container may use whatever its rules say, as with runc: making any node, the default devices, terminals.
_BASE: tuple[tuple[Device, int], ...] = (
    (("c", -1, -1), _MKNOD), (("b", -1, -1), _MKNOD),
    *((("c", major, minor), _ALL) for major, minor in (
        (1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, -1))),
)  # fmt: skip


class Policy(NamedTuple):
    """`default`: allow what no exception names. `exceptions`: access bits by device, each the default's contrary."""

    default: bool
    exceptions: dict[Device, int]

    def allows(self, kind: str, major: int, minor: int, access: int) -> bool:
        """What the kernel will say to a request; the eBPF program is held to this in the tests."""
        found = [
            bits
            for (type_, *numbers), bits in self.exceptions.items()
            if type_ == kind and numbers[0] in (-1, major) and numbers[1] in (-1, minor)
        ]
        if self.default:
            return not any(access & bits for bits in found)
        return any(not access & ~bits for bits in found)


def policy(rules: Iterable[dict[str, Any]]) -> Policy:
    """The policy for runtime-spec `devices` rules, the devices every container has included. Raises InvalidInput."""
    default, exceptions = False, dict[Device, int]()
    for rule in rules:
        kinds, major, minor, bits = _parsed(rule)
        allow = rule["allow"]
        if (kinds, major, minor, bits) == ("bc", -1, -1, _ALL):
            default, exceptions = allow, {}
            continue
        for kind in kinds:
            _apply(default, exceptions, allow, (kind, major, minor), bits)
    for device, bits in () if default else _BASE:
        _apply(default, exceptions, True, device, bits)
    return Policy(default, exceptions)


def _parsed(rule: dict[str, Any]) -> tuple[str, int, int, int]:
    kind, access = rule.get("type") or "a", rule.get("access") or ""
    numbers = [-1 if number is None else number for number in (rule.get("major"), rule.get("minor"))]
    if kind == "a" and not access and numbers == [-1, -1]:
        access = "rwm"
    bits = sum(_LETTERS.get(letter, 0) for letter in set(access))
    known = set(rule) <= {"allow", "type", "major", "minor", "access"} and isinstance(rule.get("allow"), bool)
    known = known and kind in ("a", "b", "c") and set(access) <= set("rwm") and bits > 0
    if not known or not all(type(number) is int and -1 <= number < 2**31 for number in numbers):
        raise InvalidInput(f"linux.resources.devices: {rule} is not a rule")
    return "bc" if kind == "a" else kind, numbers[0], numbers[1], bits


def _apply(default: bool, exceptions: dict[Device, int], allow: bool, device: Device, bits: int) -> None:
    if allow != default:
        exceptions[device] = exceptions.get(device, 0) | bits
        return
    for other, had in list(exceptions.items()):
        pairs = tuple(zip(device, other, strict=True))
        if not had & bits or not all(new == old or -1 in (new, old) for new, old in pairs):
            continue
        if not all(new in (-1, old) for new, old in pairs):
            hole = f"{'allow' if allow else 'deny'} {_line(device, bits)} within {_line(other, had)}"
            raise InvalidInput(f"linux.resources.devices: cannot {hole}: the kernel keeps no exceptions to exceptions")
        del exceptions[other]
        if had & ~bits:
            exceptions[other] = had & ~bits


def _line(device: Device, bits: int) -> str:
    kind, *numbers = device
    places = ":".join("*" if number < 0 else str(number) for number in numbers)
    return f"{kind} {places} " + "".join(letter for letter, bit in _LETTERS.items() if bits & bit)


def v1_changes(current: str, target: Policy) -> list[tuple[str, str]]:
    """(file, line) to write, in order, where devices.list reads `current`; refuses as little as possible meanwhile."""
    give, take = ("devices.deny", "devices.allow") if target.default else ("devices.allow", "devices.deny")
    had = dict[Device, int]()
    changes = []
    if target.default or current.startswith("a"):  # a default of allow does not list its exceptions: start anew
        changes = [(take, "a")]
    else:
        for line in current.splitlines():
            kind, place, access = line.split()
            major, minor = (-1 if number == "*" else int(number) for number in place.split(":"))
            had[kind, major, minor] = sum(_LETTERS[letter] for letter in access)
    for old, new, file in ((had, target.exceptions, take), (target.exceptions, had, give)):
        gone = ((device, bits & ~new.get(device, 0)) for device, bits in old.items())
        changes += [(file, _line(device, bits)) for device, bits in gone if bits]
    return changes


def program(target: Policy) -> bytes:
    """eBPF for the policy: r2 type, r3 access, r4 major, r5 minor; leaves 1 (allow) or 0 in r0."""
    code = [_op(0x61, 2, 1, 0), _op(0x61, 4, 1, 4), _op(0x61, 5, 1, 8)]  # bpf_cgroup_dev_ctx
    code += [_op(0xBF, 3, 2), _op(0x77, 3, value=16), _op(0x57, 2, value=0xFFFF)]
    for (kind, major, minor), bits in target.exceptions.items():
        tests = [(2, _TYPES[kind]), *((reg, number) for reg, number in ((4, major), (5, minor)) if number >= 0)]
        verdict = [_op(0xB7, 0, value=int(not target.default)), _op(0x95)]
        access = []
        if bits != _ALL:  # the bits that count, then on to the next exception if there are none (or any)
            wanted, jump = (bits, 0x15) if target.default else (_ALL & ~bits, 0x55)
            access = [_op(0xBF, 0, 3), _op(0x57, 0, value=wanted), _op(jump, 0, offset=len(verdict))]
        rest = len(access) + len(verdict)
        code += [_op(0x55, reg, offset=len(tests) - i - 1 + rest, value=n) for i, (reg, n) in enumerate(tests)]
        code += access + verdict
    return b"".join([*code, _op(0xB7, 0, value=int(target.default)), _op(0x95)])


def _op(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, target | source << 4, offset, value)


def attach(group: str, target: Policy) -> None:
    """Hold the v2 group at path `group` to the policy from now on. Raises OSError."""
    fds = [os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        fds.append(linux.bpf_load_device_program(program(target)))
        fds += linux.bpf_device_programs(fds[0])
        old = fds[2:]
        linux.bpf_attach_device(fds[0], fds[1], old[0] if len(old) == 1 else None)
        for fd in old if len(old) > 1 else ():
            linux.bpf_detach_device(fds[0], fd)
    finally:
        for fd in fds:
            os.close(fd)
