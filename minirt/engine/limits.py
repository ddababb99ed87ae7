"""Resource limits: docker's words for them, its rules about them, and the runtime-spec's `linux.resources`.

What a machine cannot count (swap, out-of-memory off on cgroup v2) is left away with a warning, as docker does; what
makes no sense is refused in docker's words. Sources: moby daemon/daemon_unix.go; runtime-spec config-linux.md "Control
groups"; the kernel's cgroup-v1 and cgroup-v2 documents. Taught in chapter 07.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from minirt.errors import InvalidInput

CGROUPS = Path("/sys/fs/cgroup")
_MINIMUM = 6 << 20  # bytes: what a runtime itself needs to start
_PERIOD = 100_000  # microseconds, of --cpus


def unified() -> bool:
    """Whether this machine has cgroup v2 alone."""
    return (CGROUPS / "cgroup.controllers").exists()


def devices_confined() -> bool:
    """Whether we may make device rules: root in a container has its cgroups read-only, or none at all."""
    return os.access(CGROUPS if unified() else CGROUPS / "devices", os.W_OK)


def adapt(host: dict[str, Any]) -> list[str]:
    """Complete and check HostConfig's limits in place; what to warn of. Raises InvalidInput."""
    warnings = _memory(host)
    if (host.get("CpuShares") or 0) > 0:
        host["CpuShares"] = min(max(host["CpuShares"], 2), 262144)
    _cpu(host)
    _cpuset(host, "CpusetCpus", "CPUs", "cpus", "/sys/devices/system/cpu/online")
    _cpuset(host, "CpusetMems", "memory nodes", "mems", "/sys/devices/system/node/online")
    score = host.get("OomScoreAdj") or 0
    if not -1000 <= score <= 1000:
        raise InvalidInput(f"Invalid value {score}, range for oom score adj is [-1000, 1000]")
    return warnings


def _memory(host: dict[str, Any]) -> list[str]:
    memory, swap, soft = (host.get(key) or 0 for key in ("Memory", "MemorySwap", "MemoryReservation"))
    warnings = []
    if memory and memory < _MINIMUM:
        raise InvalidInput("Minimum memory limit allowed is 6MB")
    if memory and swap != -1 and not (unified() or (CGROUPS / "memory/memory.memsw.limit_in_bytes").exists()):
        warnings.append("This kernel does not count swap: memory is limited without swap")
        swap = host["MemorySwap"] = -1
    if memory and 0 < swap < memory:
        raise InvalidInput("Minimum memoryswap limit should be larger than memory limit, see usage")
    if not memory and swap > 0:
        raise InvalidInput("You should always set the Memory limit when using Memoryswap limit, see usage")
    swappiness = host.get("MemorySwappiness")
    if swappiness == -1:
        host["MemorySwappiness"] = swappiness = None
    if swappiness is not None and not 0 <= swappiness <= 100:
        raise InvalidInput(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    if soft and soft < _MINIMUM:
        raise InvalidInput("Minimum memory reservation allowed is 6MB")
    if memory and soft > memory:
        raise InvalidInput("Minimum memory limit can not be less than memory reservation limit, see usage")
    if unified() and swappiness is not None:
        warnings.append("cgroup v2 has no memory swappiness: it is left away")
        host["MemorySwappiness"] = None
    if unified() and host.get("OomKillDisable"):
        warnings.append("cgroup v2 cannot switch the OOM killer off: it stays on")
        host["OomKillDisable"] = None
    if host.get("OomKillDisable") and not memory:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system "
            "running out of resources."
        )
    if memory and not swap:
        host["MemorySwap"] = 2 * memory
    return warnings


def _cpu(host: dict[str, Any]) -> None:
    nano, shares, period, quota = (host.get(key) or 0 for key in ("NanoCpus", "CpuShares", "CpuPeriod", "CpuQuota"))
    for name, value in ("CPU Period", period), ("CPU Quota", quota):
        if nano > 0 and value > 0:
            raise InvalidInput(f"Conflicting options: Nano CPUs and {name} cannot both be set")
    there = os.cpu_count() or 1
    if not 0 <= nano <= there * 10**9:
        raise InvalidInput(f"Range of CPUs is from 0.01 to {there}.00, as there are only {there} CPUs available")
    if shares < 0:
        raise InvalidInput("shares: invalid argument")
    if period and not 1000 <= period <= 1_000_000:
        raise InvalidInput("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < quota < 1000:
        raise InvalidInput("CPU cfs quota can not be less than 1ms (i.e. 1000)")


def _cpuset(host: dict[str, Any], key: str, what: str, file: str, online: str) -> None:
    asked = host.get(key) or ""
    try:
        there = Path(online).read_text().strip()
    except OSError:
        there = "0"  # a kernel without NUMA has one node
    try:
        wanted = numbers(asked)
    except ValueError:
        raise InvalidInput(f"Invalid value {asked} for cpuset {file}: invalid format: {asked}") from None
    if not wanted <= numbers(there):
        raise InvalidInput(f"Requested {what} are not available - requested {asked}, available: {there}")


def numbers(text: str) -> set[int]:
    """A list of numbers and ranges, `0-3,7`. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.partition("-")
        if not re.fullmatch("[0-9]{1,5}", first) or (dash and not re.fullmatch("[0-9]{1,5}", last)):
            raise ValueError(text)
        if dash and int(last) < int(first):
            raise ValueError(text)
        found |= set(range(int(first), int(last if dash else first) + 1))
    return found


def resources(host: dict[str, Any]) -> dict[str, Any]:
    """`linux.resources` but for devices, for an adapted HostConfig; empty where nothing is limited."""
    nano = host.get("NanoCpus") or 0
    period = _PERIOD if nano else host.get("CpuPeriod")
    pids = host.get("PidsLimit")
    sections: dict[str, dict[str, Any]] = {
        "memory": {
            "limit": host.get("Memory"),
            "reservation": host.get("MemoryReservation"),
            "swap": host["MemorySwap"] if (host.get("MemorySwap") or 0) > 0 else None,
            "swappiness": host.get("MemorySwappiness"),
            "disableOOMKiller": host.get("OomKillDisable"),
        },
        "cpu": {
            "shares": host.get("CpuShares"),
            "period": period,
            "quota": nano * _PERIOD // 10**9 if nano else host.get("CpuQuota"),
            "cpus": host.get("CpusetCpus"),
            "mems": host.get("CpusetMems"),
        },
        "pids": {"limit": max(pids, -1) if pids else None},
    }
    # Nothing is 0 but a swappiness.
    kept = {
        name: {key: value for key, value in section.items() if value or (key == "swappiness" and value is not None)}
        for name, section in sections.items()
    }
    return {name: section for name, section in kept.items() if section}
