"""runtime-spec `linux.resources` as the values of cgroup files, for v1 and for v2; nothing is written here.

0, "" and an absent field are the same: leave the file as it is. -1 lifts a limit. The v1 words of the spec become v2's
as runc turns them: shares 2…262144 to weight 1…10000 in proportion, swap as what `memory.swap` leaves over the limit.
`kernel` and `kernelTCP` are ignored, as runc ignores them: the kernel keeps no such limit any more.
Sources: config-linux.md "Control groups", cgroup-v2.rst, runc's libcontainer/cgroups. Taught in chapter 08.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from minirt.errors import InvalidInput, Unsupported

_INTEGERS = {
    "memory": ("limit", "reservation", "swap", "kernel", "kernelTCP", "swappiness"),
    "cpu": ("shares", "quota", "burst", "period", "realtimeRuntime", "realtimePeriod", "idle"),
    "pids": ("limit",),
}
_OTHERS: dict[str, dict[str, type]] = {
    "memory": {"disableOOMKiller": bool},
    "cpu": {"cpus": str, "mems": str},
    "pids": {},
}
_Read = Callable[[str], str | None]  # a file's text; None where there is no such file
Setting = tuple[str, str]  # file, value; the file's name up to the first dot is its controller


def check(resources: dict[str, Any]) -> None:
    """Refuse what we do not do, by its name. Raises Unsupported, and InvalidInput for values of the wrong kind."""
    for name, value in resources.items():
        place = f"linux.resources.{name}"
        if name in _INTEGERS:
            _check_section(place, value or {}, _INTEGERS[name], _OTHERS[name])
        elif name == "unified":
            for key, text in (value or {}).items():
                if not re.fullmatch(r"[a-z0-9_]+\.[A-Za-z0-9_.-]+", key) or not isinstance(text, str):
                    raise InvalidInput(f"{place}: {key!r}: {text!r} is not a cgroup file and its text")
                if key.startswith("cgroup.") and not key.startswith("cgroup.max."):
                    raise Unsupported(f"{place}: {key} is the runtime's own to write")
        elif name != "devices" and _says_something(value):
            raise Unsupported(f"{place} is not supported: leave it out")


def _check_section(place: str, section: dict[str, Any], integers: tuple[str, ...], others: dict[str, type]) -> None:
    for key, value in section.items():
        if key not in integers and key not in others:
            if _says_something(value):
                raise Unsupported(f"{place}.{key} is not supported: leave it out")
        elif value is not None and type(value) is not others.get(key, int):
            raise InvalidInput(f"{place}.{key}: {value!r} is not a {others.get(key, int).__name__}")
    for key in ("cpus", "mems"):
        if not re.fullmatch(r"[0-9,-]*", section.get(key) or ""):
            raise InvalidInput(f"{place}.{key}: {section[key]!r} is not a list such as 0-3,8")


def _says_something(value: Any) -> bool:
    """Whether anything in it is neither zero nor empty: docker sends `"blockIO": {"weight": 0}` for "nothing"."""
    if isinstance(value, dict | list):
        return any(map(_says_something, value.values() if isinstance(value, dict) else value))
    return bool(value)


def v1(resources: dict[str, Any], read: _Read) -> list[Setting]:
    """What to write in the v1 files."""
    memory, cpu, pids = (resources.get(name) or {} for name in ("memory", "cpu", "pids"))
    if resources.get("unified"):
        raise Unsupported("linux.resources.unified needs cgroup v2, and this machine's controllers are on v1")
    swap = memory.get("swap")
    if memory.get("limit") == -1 and not swap and read("memory.memsw.limit_in_bytes") is not None:
        swap = -1
    swappiness = memory.get("swappiness")
    wanted = {
        "memory.limit_in_bytes": memory.get("limit"),
        "memory.memsw.limit_in_bytes": swap,
        "memory.soft_limit_in_bytes": memory.get("reservation"),
        "memory.oom_control": 1 if memory.get("disableOOMKiller") else 0,
        "memory.swappiness": None if swappiness == -1 else "0" if swappiness == 0 else swappiness,
        "cpu.shares": cpu.get("shares"),
        "cpu.cfs_period_us": cpu.get("period"),
        "cpu.cfs_quota_us": cpu.get("quota"),
        "cpu.cfs_burst_us": cpu.get("burst"),
        "cpu.rt_period_us": cpu.get("realtimePeriod"),
        "cpu.rt_runtime_us": cpu.get("realtimeRuntime"),
        **_common(cpu, pids),
    }
    return [(file, str(value)) for file, value in wanted.items() if value]


def _common(cpu: dict[str, Any], pids: dict[str, Any]) -> dict[str, str | None]:
    idle = cpu.get("idle")
    return {
        "cpu.idle": None if idle is None else str(idle),
        "cpuset.cpus": cpu.get("cpus"),
        "cpuset.mems": cpu.get("mems"),
        "pids.max": _limit(pids.get("limit")),
    }


def v2(resources: dict[str, Any], read: _Read) -> list[Setting]:
    """What to write in the v2 files; `read` tells the values that the new ones go with."""
    memory, cpu, pids = (resources.get(name) or {} for name in ("memory", "cpu", "pids"))
    if memory.get("swappiness") not in (None, -1) or memory.get("disableOOMKiller"):
        raise Unsupported("linux.resources.memory: cgroup v2 has no swappiness and no disableOOMKiller")
    if cpu.get("realtimeRuntime") or cpu.get("realtimePeriod"):
        raise Unsupported("linux.resources.cpu: cgroup v2 has no realtimeRuntime and no realtimePeriod")
    wanted = {
        "memory.max": _limit(memory.get("limit")),
        "memory.low": _limit(memory.get("reservation")),
        "memory.swap.max": _swap(memory, read),
        "cpu.weight": weight(cpu.get("shares") or 0),
        "cpu.max": _bandwidth(cpu, read),
        "cpu.max.burst": cpu.get("burst"),
        **_common(cpu, pids),
        **(resources.get("unified") or {}),
    }
    return [(file, str(value)) for file, value in wanted.items() if value]


def _limit(number: int | None) -> str | None:
    return ("max" if number < 0 else str(number)) if number else None


def weight(shares: int) -> int:
    """cpu.weight for cpu.shares; 0 for 0."""
    return 1 + (min(max(shares, 2), 262144) - 2) * 9999 // 262142 if shares else 0


def _swap(memory: dict[str, Any], read: _Read) -> str | None:
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if swap < 0 or not swap and limit < 0:
        # Where swap is not accounted for there is no limit to lift.
        return "max" if read("memory.swap.max") is not None else None
    if not swap:
        return None
    if not limit:  # an update of swap alone goes with the limit that holds
        now = (read("memory.max") or "max").strip()
        limit = -1 if now == "max" else int(now)
    if limit < 0:
        raise InvalidInput("linux.resources.memory.swap: a swap limit needs a memory limit")
    if swap < limit:
        raise InvalidInput(f"linux.resources.memory.swap: {swap} counts memory and swap, so must be {limit} or more")
    return None if swap == limit and read("memory.swap.max") is None else str(swap - limit)


def _bandwidth(cpu: dict[str, Any], read: _Read) -> str | None:
    quota, period = _limit(cpu.get("quota")), cpu.get("period")
    if period:
        return f"{quota or (read('cpu.max') or 'max').split()[0]} {period}"
    return quota
