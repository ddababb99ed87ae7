"""Verbs of running containers: `pause`, `unpause`, `update`, `top` (chapters 07 and 08)."""

from __future__ import annotations

from typing import Any

from minirt.cli import words
from minirt.cli.console import Console, clean
from minirt.cli.flags import UsageError, Values, command
from minirt.errors import InvalidInput

_WIDTH, _BLANKS = 20, 3  # of top's columns, as docker sets its tabwriter


@command("CONTAINER [CONTAINER...]")
def pause(console: Console, values: Values, arguments: list[str]) -> int:
    def act(name: str) -> None:
        console.client.pause(name)
        console.print(name)

    return console.each(arguments, act)


@command("CONTAINER [CONTAINER...]")
def unpause(console: Console, values: Values, arguments: list[str]) -> int:
    def act(name: str) -> None:
        console.client.unpause(name)
        console.print(name)

    return console.each(arguments, act)


_LIMITS: dict[str, tuple[str, Any]] = {
    "cpu-period": ("CpuPeriod", int), "cpu-quota": ("CpuQuota", int), "cpu-shares": ("CpuShares", int),
    "cpus": ("NanoCpus", words.cpus), "cpuset-cpus": ("CpusetCpus", str), "cpuset-mems": ("CpusetMems", str),
    "memory": ("Memory", words.size), "memory-reservation": ("MemoryReservation", words.size),
    "memory-swap": ("MemorySwap", words.swap), "pids-limit": ("PidsLimit", int),
}  # fmt: skip


@command(
    "CONTAINER [CONTAINER...]",
    """
    -c, --cpu-shares int              Weight against other containers' CPU time
        --cpu-period int              Length of a CPU period in microseconds
        --cpu-quota int               CPU time in a period in microseconds
        --cpus decimal                Number of CPUs: 1.5
        --cpuset-cpus string          Run on these CPUs: 0-3 or 0,1
        --cpuset-mems string          Use the memory of these nodes: 0-3 or 0,1
    -m, --memory bytes                Memory it may use: 512m
        --memory-reservation bytes    Memory it shrinks to when memory is short
        --memory-swap bytes           Memory and swap together (-1: no limit)
        --pids-limit int              Number of processes and threads (-1: no limit)
        --restart string              -
    """,
)
def update(console: Console, values: Values, arguments: list[str]) -> int:
    console.needs_linux()
    if all(value is None for value in values.values()):
        raise InvalidInput("you must provide one or more flags when using this command")
    body: dict[str, Any] = {}
    for option, (field, read) in _LIMITS.items():
        if values[option] is not None:
            try:
                body[field] = read(values[option])
            except ValueError as error:
                spelled = {"memory": "-m, --memory"}.get(option, f"--{option}")
                raise UsageError(f'invalid argument "{values[option]}" for "{spelled}" flag: {error}') from None
    if values["restart"]:
        try:
            body["RestartPolicy"] = words.restart(values["restart"])
        except ValueError as error:
            raise InvalidInput(str(error)) from None
    warnings: list[str] = []

    def act(name: str) -> None:
        warnings.extend(console.client.update(name, body))
        console.print(name)

    failed = console.each(arguments, act)
    for warning in warnings:
        console.warn(warning)
    return failed


@command("CONTAINER [PS-OPTION...]", interspersed=False)
def top(console: Console, values: Values, arguments: list[str]) -> None:
    console.needs_linux()
    found = console.client.top(arguments[0], " ".join(arguments[1:]) or "-ef")
    rows = [[clean(cell) for cell in row] for row in (found["Titles"], *found["Processes"])]
    widths = [max(_WIDTH, *(len(row[column]) + _BLANKS for row in rows)) for column in range(len(rows[0]) - 1)]
    for row in rows:
        console.print("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + row[-1])
