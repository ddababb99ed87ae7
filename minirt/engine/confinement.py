"""How tightly a container is held: capabilities, security options, seccomp profiles, devices.

docker's words and rules. Where we cannot do what was asked for (SELinux labels, an AppArmor profile on a machine
without AppArmor) we say so: a container must never be looser than its command line reads.
Sources: moby oci/caps, daemon/daemon_unix.go, oci/devices_linux.go, profiles/seccomp. Taught in chapter 07.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from minirt.errors import InvalidInput, Unsupported
from minirt.runtime import capabilities

_RULE = r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})"
_KINDS = {stat.S_IFBLK: "b", stat.S_IFCHR: "c", stat.S_IFIFO: "p"}
# Folders of /dev that hold no devices of the machine but somebody's own view of some.
_NOT_DEVICES = ("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev")
_APPARMOR = "/sys/module/apparmor/parameters/enabled"
_ARCHITECTURES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}


def tweak(adds: Iterable[str], drops: Iterable[str], privileged: bool = False) -> tuple[str, ...]:
    """docker's 14 capabilities, or all this process can give, without `drops` and with `adds`.

    Raises InvalidInput for an unknown name, Unsupported for one that is not ours to give.
    """
    plus, minus = _names(adds, "CapAdd"), _names(drops, "CapDrop")
    ours = _ours()
    if privileged:
        return ours
    if "ALL" in plus:
        return tuple(name for name in ours if name not in minus)
    for name in plus:
        if name not in ours:
            raise Unsupported(f"--cap-add {name}: this machine does not give us that capability")
    base = () if "ALL" in minus else tuple(name for name in capabilities.DEFAULT if name not in minus)
    return tuple(dict.fromkeys((*base, *plus)))


def _names(words: Iterable[str], field: str) -> list[str]:
    made = []
    for word in words:
        name = word.upper()
        if name != "ALL" and not name.startswith("CAP_"):
            name = f"CAP_{name}"
        if name != "ALL" and name not in capabilities.NAMES:
            raise InvalidInput(f'invalid {field}: unknown capability: "{name}"')
        made.append(name)
    return made


def _ours() -> tuple[str, ...]:
    """What our bounding set holds: all that a child of ours can ever have."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        mask = int(next(line for line in file if line.startswith("CapBnd:")).split()[1], 16)
    return tuple(name for number, name in enumerate(capabilities.NAMES) if mask >> number & 1)


def security(words: Iterable[str], names: tuple[str, ...], privileged: bool) -> dict[str, Any]:
    """SecurityOpt as ContainerOptions' `no_new_privileges`, `seccomp`, `apparmor`; the last of a kind counts.

    noNewPrivileges is on unless switched off, stricter than docker's default: set-uid programs in an image are seldom
    wanted. Raises InvalidInput, Unsupported.
    """
    made: dict[str, Any] = {"no_new_privileges": not privileged, "seccomp": None if privileged else "default"}
    for word in words:
        name, equals, value = word.partition("=") if "=" in word else word.partition(":")
        if name == "no-new-privileges":
            if equals and value not in ("true", "false", "1", "0"):
                raise InvalidInput(f'invalid --security-opt 2: "{word[:80]}"')
            made["no_new_privileges"] = value in ("", "true", "1")
        elif word == "disable" or (name, value) == ("label", "disable"):
            continue  # no SELinux label: there is none
        elif not equals:
            raise InvalidInput(f'invalid --security-opt 1: "{word[:80]}"')
        elif name == "seccomp":
            made["seccomp"] = {"unconfined": None, "builtin": "default"}.get(value, value)
            if made["seccomp"] == value:
                made["seccomp"] = profile(value, names)
        elif name == "apparmor":
            made["apparmor"] = _apparmor(value)
        elif name == "label":
            raise Unsupported(f"--security-opt {word[:80]}: SELinux labels are not supported")
        else:
            raise InvalidInput(f'invalid --security-opt 2: "{word[:80]}"')
    return made


def has_apparmor() -> bool:
    """Whether the kernel asks AppArmor."""
    try:
        with open(_APPARMOR, encoding="ascii") as file:
            return file.read(1) == "Y"
    except OSError:
        return False


def _apparmor(name: str) -> str:
    enabled = has_apparmor()
    if not enabled and name != "unconfined":
        raise Unsupported(f"--security-opt apparmor={name[:80]}: this machine has no AppArmor")
    return name if enabled else ""


def profile(text: str, names: tuple[str, ...]) -> dict[str, Any] | None:
    """A seccomp profile as `linux.seccomp`; None for one that says nothing. Raises InvalidInput.

    docker's form says for which machines and capabilities a rule counts (`archMap`, `includes`, `excludes`); the
    runtime-spec's form is its result, and passes through.
    """
    import json

    try:
        document = json.loads(text)
        if not document.get("defaultAction") and not document.get("syscalls"):
            return None
        if document.get("architectures") and document.get("archMap"):
            raise InvalidInput("a seccomp profile has either 'architectures' or 'archMap'")
        system = os.uname()
        machine, native = _ARCHITECTURES.get(system.machine, (system.machine, ""))
        made = {key: value for key, value in document.items() if key not in ("archMap", "syscalls")}
        for entry in document.get("archMap") or ():
            if entry["architecture"] == native:
                made["architectures"] = [native, *(entry.get("subArchitectures") or ())]
        made["syscalls"] = []
        for rule in document.get("syscalls") or ():
            wanted, barred = rule.get("includes") or {}, rule.get("excludes") or {}
            if _all(wanted, machine, names, system.release) and not _any(barred, machine, names, system.release):
                kept = {key: value for key, value in rule.items() if key in ("names", "action", "args", "errnoRet")}
                if rule.get("name"):
                    kept["names"] = [rule["name"]]
                made["syscalls"].append({key: value for key, value in kept.items() if value is not None})
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInput(f"Decoding seccomp profile failed: {error}") from error
    return made


def _all(wanted: dict[str, Any], machine: str, names: tuple[str, ...], release: str) -> bool:
    arches = wanted.get("arches")
    kernel = wanted.get("minKernel")
    return (
        (not arches or machine in arches)
        and all(name in names for name in wanted.get("caps") or ())
        and (not kernel or _version(release) >= _version(kernel))
    )


def _any(barred: dict[str, Any], machine: str, names: tuple[str, ...], release: str) -> bool:
    kernel = barred.get("minKernel")
    return bool(
        machine in (barred.get("arches") or ())
        or any(name in names for name in barred.get("caps") or ())
        or (kernel and _version(release) >= _version(kernel))
    )


def _version(text: str) -> list[int]:
    return [int(part) for part in re.findall("[0-9]+", text)[:2]]


def devices(
    mappings: Iterable[dict[str, Any]], rules: Iterable[str], all_of_them: bool
) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    """The devices a container gets beside the default ones, and the rules that open them. Raises InvalidInput.

    A device is the runtime-spec's object, and `source`: where the machine has it.
    """
    nodes = list(_below("/dev", "/dev")) if all_of_them else []
    allowed = []
    for mapping in mappings:
        host = mapping.get("PathOnHost") or ""
        inside = mapping.get("PathInContainer") or host
        if not host:
            raise InvalidInput('error gathering device information while adding custom device "": it has no PathOnHost')
        if all_of_them and host == inside:
            continue
        found = list(_found(host, inside))
        nodes += found
        access = mapping.get("CgroupPermissions") or "rwm"
        allowed += [{"allow": True, **{k: n[k] for k in ("type", "major", "minor")}, "access": access} for n in found]
    for rule in rules:
        match = re.fullmatch(_RULE, rule, re.ASCII)
        if not match:
            raise InvalidInput(f"invalid device cgroup rule format: '{rule}'")
        major, minor = (-1 if number == "*" else int(number) for number in match.group(2, 3))
        allowed.append({"allow": True, "type": match[1], "major": major, "minor": minor, "access": match[4]})
    return tuple(nodes), tuple(allowed)


def _found(host: str, inside: str) -> list[dict[str, Any]]:
    """A device, or all below a folder."""
    real = os.path.realpath(host)
    try:
        node = _node(real, inside)
    except OSError as error:
        reason = f"{(error.strerror or '').lower()}"
        raise InvalidInput(
            f'error gathering device information while adding custom device "{host}": {reason}'
        ) from error
    found = [node] if node else list(_below(real, inside))
    if not found:
        raise InvalidInput(f'error gathering device information while adding custom device "{host}": not a device node')
    return found


def _node(path: str, inside: str) -> dict[str, Any] | None:
    about = os.lstat(path)
    kind = _KINDS.get(stat.S_IFMT(about.st_mode))
    if kind is None:
        return None
    return {
        "type": kind,
        "path": inside,
        "source": path,
        "major": os.major(about.st_rdev),
        "minor": os.minor(about.st_rdev),
        "fileMode": stat.S_IMODE(about.st_mode) & 0o777,
        "uid": about.st_uid,
        "gid": about.st_gid,
    }


def _below(folder: str, inside: str) -> Iterator[dict[str, Any]]:
    """Character and block devices in a folder and its folders, but for what belongs to others."""
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in sorted(folders) if name not in _NOT_DEVICES]
        for name in sorted(names):
            path = os.path.join(top, name)
            try:
                node = _node(path, inside + path.removeprefix(folder))
            except OSError:
                continue  # it has just gone
            if node and node["type"] != "p" and name != "console":
                yield node
