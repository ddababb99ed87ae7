"""What a container uses: docker's stats object from the cgroup's raw figures, a new one each second.

The object holds two looks, `cpu_stats` and the one before it, `precpu_stats`; from these a client reckons a share of
the CPU time that the whole machine spent between them. Sources: Engine API 1.44 reference "ContainerStats"; moby
daemon/stats, daemon/daemon_unix.go; proc_stat(5), proc_pid_net_dev(5). Taught in chapter 07.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt.engine.containers import Containers
from minirt.errors import NotFound, Unsupported
from minirt.runtime import container as runtime
from minirt.runtime.state import now

if TYPE_CHECKING:
    from minirt.engine.answers.containers import ContainerStats, CPUStats, Figures, NetworkStats

_NEVER = "0001-01-01T00:00:00Z"
_SECOND = 1.0
_NOTHING: CPUStats = {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
                      "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0}}  # fmt: skip
_NO_FIGURES: Figures = {"cpu_stats": _NOTHING, "memory_stats": {}, "pids_stats": {},
                        "blkio_stats": {"io_service_bytes_recursive": None}}  # fmt: skip


class Stats:
    """The verb on figures."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers

    def stream(self, name: str, stream: bool = True) -> Iterator[ContainerStats]:
        """GET /containers/{id}/stats: one object a second until it is removed; without `stream`, one of two looks.

        One that does not run has an object without figures. Raises NotFound, Unsupported without a cgroup.
        """
        record = self._containers.find(name)
        folder = self._containers.folder(record)
        before = _NOTHING
        last = _NEVER
        if not stream and runtime.status(folder).runs:
            before, last = self._look(record, folder)["cpu_stats"], now()
            time.sleep(_SECOND)
        while folder.exists():
            runs = runtime.status(folder).runs
            found: ContainerStats = {
                "name": f"/{record['Name']}",
                "id": record["Id"],
                "preread": last,
                "read": now() if runs else _NEVER,
                "precpu_stats": before if runs else _NOTHING,
                **(self._look(record, folder) if runs else _NO_FIGURES),
            }
            yield found
            if not stream:
                return
            before, last = found["cpu_stats"], found["read"]
            time.sleep(_SECOND)
        if not stream:
            raise NotFound(f"No such container: {name}")  # gone between the two looks

    def _look(self, record: dict[str, Any], folder: Path) -> Figures:
        """The figures of now."""
        group = runtime.cgroup(folder)
        if group is None:
            raise Unsupported(f"no figures of container {record['Id'][:12]}: it has no cgroup, see `minirt doctor`")
        raw, limit = group.stats(), _machine_memory()
        cpu, memory, pids = raw.get("cpu") or {}, raw.get("memory") or {}, raw.get("pids") or {}
        found: Figures = {
            "num_procs": 0,
            "storage_stats": {},
            "cpu_stats": {
                "cpu_usage": {
                    "total_usage": cpu.get("total", 0),
                    "usage_in_kernelmode": cpu.get("kernel", 0),
                    "usage_in_usermode": cpu.get("user", 0),
                },
                "system_cpu_usage": _machine_time(),
                "online_cpus": len(os.sched_getaffinity(1)) if os.path.exists("/proc/1") else os.cpu_count(),
                "throttling_data": {
                    "periods": cpu.get("periods", 0),
                    "throttled_periods": cpu.get("throttled_periods", 0),
                    "throttled_time": cpu.get("throttled", 0),
                },
            },
            "memory_stats": {
                "usage": memory.get("usage", 0),
                "stats": memory.get("stat", {}),
                "limit": min(memory.get("limit") or limit, limit),
            },
            "pids_stats": {"current": pids.get("current", 0), "limit": pids.get("limit")},
            "blkio_stats": {"io_service_bytes_recursive": raw.get("blkio") or None},
        }
        if "max_usage" in memory:
            found["memory_stats"]["max_usage"] = memory["max_usage"]
        if record["HostConfig"].get("NetworkMode") != "host" and (networks := _networks(folder)):
            found["networks"] = networks
        return found


def _machine_time() -> int:
    """Nanoseconds of CPU time since boot, of all CPUs, idle or not: docker adds up the first seven columns."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = sum(map(int, file.readline().split()[1:8]))
    return ticks * (10**9 // os.sysconf("SC_CLK_TCK"))


def _machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _networks(folder: Path) -> dict[str, NetworkStats]:
    """Traffic of the container's interfaces but loopback, as the file of its init tells it; none where it has ended."""
    try:
        lines = Path(f"/proc/{runtime.status(folder).pid}/net/dev").read_text().splitlines()[2:]
    except OSError:
        return {}
    found: dict[str, NetworkStats] = {}
    for line in lines:
        interface, _, cells = line.partition(":")
        values = list(map(int, cells.split()))
        if interface.strip() != "lo":
            found[interface.strip()] = {
                "rx_bytes": values[0],
                "rx_packets": values[1],
                "rx_errors": values[2],
                "rx_dropped": values[3],
                "tx_bytes": values[8],
                "tx_packets": values[9],
                "tx_errors": values[10],
                "tx_dropped": values[11],
            }
    return found
