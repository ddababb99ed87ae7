"""A container's group as a scope of systemd, for those who asked for `--systemd-cgroup` and for plain users.

On a machine with systemd the tree of groups is its own, and only a unit with Delegate=yes is ours to write in. A scope
begins with a process in it and ends with its last one. The limits are also told to systemd as properties, since it
writes its own idea of them at every daemon-reload; device rules are not: a delegated scope keeps our program.
D-Bus is spoken by systemd's own `busctl`. Sources: org.freedesktop.systemd1(5), systemd.resource-control(5),
systemd.io/CGROUP_DELEGATION. Taught in chapter 08.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from minirt.errors import Conflict, InvalidInput, Unsupported
from minirt.runtime.cgroups.resources import Setting

_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_PATIENCE = 10  # seconds for systemd to move the process
_INFINITY = 2**64 - 1
_MOST_CPUS = 8192  # what a kernel can be built for
_NUMBERS = {
    "memory.max": "MemoryMax", "memory.low": "MemoryLow", "memory.swap.max": "MemorySwapMax", "pids.max": "TasksMax",
    "memory.limit_in_bytes": "MemoryLimit", "cpu.weight": "CPUWeight", "cpu.shares": "CPUShares",
}  # fmt: skip
_SETS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}


def address(rootless: bool) -> str:
    """The D-Bus address of the manager that is ours to ask. Raises Unsupported where there is none."""
    if not os.path.isdir("/run/systemd/system"):
        raise Unsupported("no systemd runs on this machine to make the group")
    if not rootless:
        return "unix:path=/run/dbus/system_bus_socket"
    given = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
    folder = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{_outer_uid()}"
    if not given and not os.path.exists(f"{folder}/bus"):
        raise Unsupported("this user has no systemd session: install dbus-user-session and log in anew (not with su)")
    return given or f"unix:path={folder}/bus"


def _outer_uid() -> int:
    """Who we are for systemd, outside the user namespace that we may be root of."""
    uid = os.geteuid()
    with open("/proc/self/uid_map", encoding="ascii") as file:
        for inside, outside, count in (map(int, line.split()) for line in file):
            if inside <= uid < inside + count:
                return outside + uid - inside
    return uid


def start(bus: str, unit: str, slice: str, pid: int, settings: Iterable[Setting]) -> str:
    """Make the scope with process `pid` (in the machine's numbers) in it; returns its cgroup, as /proc writes it."""
    fixed = [
        ("Description", "s", f"container {unit}"), ("Slice", "s", slice), ("Delegate", "b", "true"),
        ("DefaultDependencies", "b", "false"), ("CollectMode", "s", "inactive-or-failed"),
        ("PIDs", "au", "1", str(pid)),
        *((f"{what}Accounting", "b", "true") for what in ("Memory", "CPU", "Tasks")),
    ]  # fmt: skip
    words = _properties([*fixed, *_limits(settings)])
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            _call(bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", *words, "0")
            break
        except Conflict:  # the container's last scope is still on its way out
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            for line in file:
                _, names, group = line.rstrip("\n").split(":", 2)
                if names in ("", "name=systemd") and group.endswith("/" + unit):
                    return group
        time.sleep(0.002)
    raise Unsupported(f"systemd did not move the container into {unit} within {_PATIENCE} s")


def change(bus: str, unit: str, settings: Iterable[Setting]) -> None:
    """Tell systemd new limits, for as long as the scope lives."""
    words = _properties(_limits(settings))
    if words != ["0"]:
        _call(bus, "SetUnitProperties", "sba(sv)", unit, "true", *words)


def attach(bus: str, unit: str, pid: int) -> None:
    """Move one more process into the scope: for a plain user from outside their own part of the tree."""
    _call(bus, "AttachProcessesToUnit", "ssau", unit, "", "1", str(pid))


def stop(bus: str, unit: str) -> None:
    """End the scope; no error if it has ended."""
    _call(bus, "StopUnit", "ss", unit, "replace", gone_is_fine=True)


def _limits(settings: Iterable[Setting]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    quota, period = "", 100_000
    for file, value in settings:
        if file in _NUMBERS:
            found.append((_NUMBERS[file], "t", str(_INFINITY) if value in ("max", "-1") else value))
        elif file in _SETS:
            found.append((_SETS[file], "ay", *_mask(value)))
        elif file == "cpu.max":
            quota, period = value.split()[0], int((value.split() + ["100000"])[1])
        elif file == "cpu.cfs_quota_us":
            quota = value
        elif file == "cpu.cfs_period_us":
            period = int(value)
    if quota:
        # systemd counts in whole percents: up, so that its limit is not under ours.
        share = _INFINITY if quota in ("max", "-1") else -(-int(quota) * 100 // period) * 10_000
        found.append(("CPUQuotaPerSecUSec", "t", str(share)))
        if share != _INFINITY:
            found.append(("CPUQuotaPeriodUSec", "t", str(period)))
    return found


def _mask(text: str) -> list[str]:
    """`0-2,9` as D-Bus' array of bytes, lowest first: ["2", "7", "2"]."""
    bits = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if int(last or first) >= _MOST_CPUS:
            raise InvalidInput(f"linux.resources.cpu: there is no cpu or memory node {last or first}")
        for number in range(int(first), int(last or first) + 1):
            bits |= 1 << number
    raw = bits.to_bytes(max(1, (bits.bit_length() + 7) // 8), "little")
    return [str(len(raw)), *map(str, raw)]


def _properties(properties: Iterable[tuple[str, ...]]) -> list[str]:
    words = [tuple(entry) for entry in properties]
    return [str(len(words)), *(word for entry in words for word in entry)]


def _call(bus: str, method: str, signature: str, *words: str, gone_is_fine: bool = False) -> None:
    import subprocess

    argv = ["busctl", f"--address={bus}", "call", *_MANAGER, method, signature, *words]
    try:
        result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise Unsupported("systemd is asked through busctl, which is not installed") from error
    said = " ".join(result.stderr.split())
    if result.returncode and not (gone_is_fine and "not loaded" in said):
        kind = Conflict if "already exists" in said else Unsupported
        raise kind(f"systemd refuses {method}: {said.removeprefix('Call failed: ')}")
