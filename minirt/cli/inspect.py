"""`inspect`: the whole record of containers, images, networks and volumes, as the Engine API gives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from minirt.cli import table
from minirt.cli.console import Console
from minirt.cli.flags import UsageError, Values, command
from minirt.errors import InvalidInput, NotFound


@command(
    "NAME|ID [NAME|ID...]",
    """
    -f, --format string   Print with a Go template ({{.Field}}, {{json .}}), or 'json'
    -s, --size            Add how many bytes a container has written
        --type string     Look for this only: container, image, network or volume
    -v, --verbose         -
    """,
)
def inspect(console: Console, values: Values, arguments: list[str]) -> int:
    template, kind = values["format"], values["type"]
    if kind not in (None, "container", "image", "network", "volume"):
        raise UsageError(f'"{kind}" is not a valid value for --type: container, image, network or volume', 1)
    if values["size"] and kind not in (None, "container"):
        console.warn(f"WARNING: --size ignored for {kind}")
    parts = table.parse(table.escapes(template)) if template not in (None, "json") else None
    found: list[dict[str, Any]] = []

    def act(name: str) -> None:
        record = _find(console, name, kind, values["size"])
        if parts is not None:
            console.print(table.fill(parts, record))
        else:
            found.append(record)

    failures: list[str] = []
    failed = console.each(arguments, act, tell=failures.append)
    if template == "json":
        console.print(json.dumps(found, separators=(",", ":"), ensure_ascii=False))
    elif parts is None:
        console.print(json.dumps(found, indent=4, ensure_ascii=False))
    for failure in failures:
        console.error(failure)
    return failed


def _find(console: Console, name: str, kind: str | None, size: bool) -> dict[str, Any]:
    """The container of that name, else the image, network or volume. Raises NotFound."""
    client = console.client
    looks: dict[str, Callable[[str], dict[str, Any]]] = {
        "container": lambda name: client.inspect_container(name, size),
        "image": client.inspect_image,
        "network": client.inspect_network,
        "volume": client.inspect_volume,
    }
    if kind:
        return looks[kind](name)
    for look in looks.values():
        # What cannot be a name of that kind is not the name of one.
        with suppress(NotFound, InvalidInput):
            return look(name)
    raise NotFound(f"No such object: {name}")
