"""What a group has used so far, in raw figures: the source of docker's /containers/{id}/stats.

    memory  usage, max_usage (absent before kernel 5.19 on v2), limit: bytes, limit None for unlimited; stat: the
            kernel's memory.stat as it is (v1 counts sub-groups under `total_…`, v2 under the plain names)
    cpu     total, kernel, user: ns; periods, throttled_periods: counts; throttled: ns
    pids    current, limit: counts of processes and threads, limit None for unlimited
    blkio   rows of major, minor, op ("read" or "write") and value in bytes
A section without its controller is left out. Sources: cgroup-v2.rst, cgroup-v1/{memory,cpuacct,pids}.rst.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_Read = Callable[[str], str | None]
_UNLIMITED = 2**60  # v1 writes "no limit" as the largest multiple of a page


def v1(read: _Read) -> dict[str, Any]:
    """The figures of a v1 group; `read` gives a file's text, None where there is none."""
    found: dict[str, Any] = {}
    if (usage := read("memory.usage_in_bytes")) is not None:
        found["memory"] = {
            "usage": int(usage),
            "max_usage": int(read("memory.max_usage_in_bytes") or 0),
            "limit": _limit(read("memory.limit_in_bytes")),
            "stat": _flat(read("memory.stat")),
        }
    if (total := read("cpuacct.usage")) is not None:
        stat = _flat(read("cpu.stat"))
        found["cpu"] = {
            "total": int(total),
            "kernel": int(read("cpuacct.usage_sys") or 0),
            "user": int(read("cpuacct.usage_user") or 0),
            **_throttling(stat, stat.get("throttled_time", 0)),
        }
    rows = (line.split() for line in (read("blkio.throttle.io_service_bytes_recursive") or "").splitlines())
    return found | _pids(read) | _blkio((row[0], row[1], row[2]) for row in rows if len(row) == 3)


def v2(read: _Read) -> dict[str, Any]:
    """The figures of a v2 group; `read` as above."""
    found: dict[str, Any] = {}
    if (usage := read("memory.current")) is not None:
        peak = read("memory.peak")
        found["memory"] = {
            "usage": int(usage),
            **({} if peak is None else {"max_usage": int(peak)}),
            "limit": _limit(read("memory.max")),
            "stat": _flat(read("memory.stat")),
        }
    if stat := _flat(read("cpu.stat")):
        times = {name: stat.get(f"{key}_usec", 0) * 1000 for name, key in _TIMES.items()}
        found["cpu"] = times | _throttling(stat, stat.get("throttled_usec", 0) * 1000)
    rows = [
        (device, key[0], value)
        for device, *pairs in (line.split() for line in (read("io.stat") or "").splitlines())
        for key, _, value in (pair.partition("=") for pair in pairs)
        if key in ("rbytes", "wbytes")
    ]
    return found | _pids(read) | _blkio(rows)


_TIMES = {"total": "usage", "kernel": "system", "user": "user"}


def _throttling(stat: dict[str, int], throttled: int) -> dict[str, int]:
    return {
        "periods": stat.get("nr_periods", 0),
        "throttled_periods": stat.get("nr_throttled", 0),
        "throttled": throttled,
    }


def _pids(read: _Read) -> dict[str, Any]:
    current = read("pids.current")
    return {} if current is None else {"pids": {"current": int(current), "limit": _limit(read("pids.max"))}}


def _blkio(rows: Any) -> dict[str, Any]:
    ops = {"r": "read", "w": "write"}
    found = []
    for device, op, value in rows:
        if op[0].lower() in ops and ":" in device:
            major, minor = device.split(":")
            found.append({"major": int(major), "minor": int(minor), "op": ops[op[0].lower()], "value": int(value)})
    return {"blkio": found}


def _limit(text: str | None) -> int | None:
    number = _UNLIMITED if text is None or text.strip() == "max" else int(text)
    return None if number >= _UNLIMITED else number


def _flat(text: str | None) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in (text or "").splitlines())}
