"""`stats`: what containers use, in docker's columns and by its arithmetic (chapter 07).

CPU is the share of one CPU's time between two looks, so 200% is two whole CPUs; memory is without the file cache that
the kernel would give back first. Source: docker/cli cli/command/container/stats_helpers.go.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from minirt import units
from minirt.cli import table
from minirt.cli.console import Console
from minirt.cli.flags import Values, command
from minirt.cli.images import short
from minirt.errors import MinirtError, NotFound

_CLEAR = "\x1b[H\x1b[J"
_EVERY = 0.5  # seconds between two pictures
_TITLES = {"ID": "CONTAINER ID", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %",
           "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS"}  # fmt: skip
_COLUMNS = table.of(["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"])


@command(
    "[CONTAINER...]",
    f"""
    -a, --all             Show those that have exited too
        --format string   {table.HELP}
        --no-stream       Show it once
        --no-trunc        Show whole ids
    """,
)
def stats(console: Console, values: Values, arguments: list[str]) -> int:
    console.needs_linux()
    whole, template = values["no-trunc"], values["format"]

    def chosen() -> list[str]:
        return arguments or [short(each["Id"]) for each in console.client.containers(all=values["all"])]

    if values["no-stream"]:
        looks = _Looks(console, stream=False)
        looks.follow(chosen())
        looks.join()
        rows, failed = looks.rows(chosen(), whole)
        if rows or not failed:
            table.show(console, rows, _COLUMNS, template, **_TITLES)
        for error in failed:
            console.error(error)
        return bool(failed)
    table.parse(table.escapes(template or ""))  # a wrong one is told at once
    for name in arguments:
        console.client.inspect_container(name)
    looks = _Looks(console, stream=True)
    while True:
        looks.follow(chosen())
        looks.wait()
        rows, failed = looks.rows(chosen(), whole)
        if failed and (arguments or any(not isinstance(error, NotFound) for error in failed)):
            raise failed[0]
        if sys.stdout.isatty():
            console.print(_CLEAR, end="")
        table.show(console, rows, _COLUMNS, template, **_TITLES)
        sys.stdout.flush()
        time.sleep(_EVERY)


class _Looks:
    """The last object of every container that is followed; each is waited for by a thread of its own."""

    def __init__(self, console: Console, stream: bool) -> None:
        self._console, self._stream = console, stream
        self._threads: dict[str, Thread] = {}
        self._found: dict[str, dict[str, Any] | MinirtError] = {}
        self._news: SimpleQueue[None] = SimpleQueue()

    def follow(self, names: list[str]) -> None:
        """Those of the names that are not followed yet."""
        for name in names:
            if name not in self._threads:
                self._threads[name] = Thread(target=self._look, args=(name,), daemon=True)
                self._threads[name].start()

    def _look(self, name: str) -> None:
        try:
            for each in self._console.client.stats(name, stream=self._stream):
                self._found[name] = each
                self._news.put(None)
        except MinirtError as error:
            self._found[name] = error
        self._news.put(None)

    def join(self) -> None:
        for thread in self._threads.values():
            thread.join()

    def wait(self) -> None:
        """Until there is something new, or a picture's time."""
        with suppress(Empty):
            self._news.get(timeout=_EVERY)

    def rows(self, names: list[str], whole: bool) -> tuple[list[dict[str, str]], list[MinirtError]]:
        """In the order of the names."""
        rows, failed = [], []
        for name in dict.fromkeys(names):
            found = self._found.get(name)
            if isinstance(found, MinirtError):
                failed.append(found)
            elif found is not None:
                rows.append(row(name, found, whole))
        return rows, failed


def row(name: str, found: Mapping[str, Any], whole: bool = False) -> dict[str, str]:
    """One line of the table for one object of GET /containers/{id}/stats."""
    memory = found.get("memory_stats") or {}
    used, limit = _used(memory), memory.get("limit", 0)
    networks = (found.get("networks") or {}).values()
    received, sent = (sum(network[key] for network in networks) for key in ("rx_bytes", "tx_bytes"))
    read, written = (_moved(found, op) for op in ("r", "w"))
    return {
        "BlockIO": f"{units.size(read, 3)} / {units.size(written, 3)}",
        "CPUPerc": f"{_share(found):.2f}%",
        "Container": name,
        "ID": found["id"] if whole else short(found["id"]),
        "MemPerc": f"{used / limit * 100 if limit else 0:.2f}%",
        "MemUsage": f"{units.size(used, 4, units.BINARY)} / {units.size(limit, 4, units.BINARY)}",
        "Name": str(found["name"]).removeprefix("/"),
        "NetIO": f"{units.size(received, 3)} / {units.size(sent, 3)}",
        "PIDs": str((found.get("pids_stats") or {}).get("current", 0)),
    }


def _share(found: Mapping[str, Any]) -> float:
    """Percent of one CPU."""
    now, before = found["cpu_stats"], found["precpu_stats"]
    spent = now["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]
    passed = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    return float(spent / passed * now["online_cpus"] * 100) if spent > 0 and passed > 0 else 0.0


def _used(memory: Mapping[str, Any]) -> int:
    """Bytes in use but for the cache that goes first: `total_inactive_file` on cgroup v1, `inactive_file` on v2."""
    usage, stat = memory.get("usage", 0), memory.get("stats") or {}
    cache = stat.get("total_inactive_file", stat.get("inactive_file", 0))
    return int(usage - cache if cache < usage else usage)


def _moved(found: Mapping[str, Any], letter: str) -> int:
    rows: Iterator[Any] = iter((found.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ())
    return sum(row["value"] for row in rows if row["op"][:1].lower() == letter)
