"""The verbs of volumes and networks: `volume create | ls | rm`, `network ls` (chapters 03 and 07)."""

from __future__ import annotations

import re
from typing import Any

from minirt.cli import table
from minirt.cli.console import Console
from minirt.cli.flags import UsageError, Values, command
from minirt.cli.images import parse_filters, short


@command(
    "[VOLUME]",
    """
    -d, --driver string   Who keeps it (default local, the only one we have)
        --label list      Set metadata: NAME=VALUE
        --name string     -
    -o, --opt list        An option of the driver: NAME=VALUE
    """,
)
def volume_create(console: Console, values: Values, arguments: list[str]) -> None:
    """Without a name it is an unnamed one, which `volume prune` takes."""
    if arguments and values["name"]:
        raise UsageError(
            "conflicting options: cannot specify a volume name through both --name and as a positional arg", 1
        )
    pairs = {key: dict(word.partition("=")[::2] for word in values[key]) for key in ("opt", "label")}
    body = {"Name": arguments[0] if arguments else values["name"] or "", "Driver": values["driver"] or "local"}
    made = console.client.create_volume(body | {"DriverOpts": pairs["opt"] or None, "Labels": pairs["label"] or None})
    console.print(made["Name"])


@command(
    "",
    f"""
    -f, --filter list     Show only those: dangling=, driver=, label=, name=
        --format string   {table.HELP}
    -q, --quiet           Show names only
    """,
)
def volume_ls(console: Console, values: Values, arguments: list[str]) -> None:
    found = console.client.volumes(parse_filters(values["filter"]) or None)
    rows = [
        {
            "Availability": "N/A",
            "Driver": volume["Driver"],
            "Group": "N/A",
            "Labels": _pairs(volume.get("Labels")),
            "Links": "N/A",
            "Mountpoint": volume["Mountpoint"],
            "Name": volume["Name"],
            "Scope": volume["Scope"],
            "Size": "N/A",
            "Status": "N/A",
        }
        for volume in sorted(found, key=lambda volume: _natural(volume["Name"]))
    ]
    template = values["format"] or ("{{.Name}}" if values["quiet"] else None)
    table.show(console, rows, table.of(["Driver", "Name"]), template, Name="VOLUME NAME")


@command(
    "VOLUME [VOLUME...]",
    """
    -f, --force   A volume that is not there is no failure
    """,
)
def volume_rm(console: Console, values: Values, arguments: list[str]) -> int:
    def act(name: str) -> None:
        console.client.remove_volume(name, values["force"])
        console.print(name)

    return console.each(arguments, act, values["force"])


@command(
    "",
    f"""
    -f, --filter list     Show only those: driver=, id=, name=, type=
        --format string   {table.HELP}
        --no-trunc        Show whole ids
    -q, --quiet           Show ids only
    """,
)
def network_ls(console: Console, values: Values, arguments: list[str]) -> None:
    found = console.client.networks(parse_filters(values["filter"]) or None)
    rows = [
        {
            "CreatedAt": str(network["Created"]),
            "Driver": network["Driver"],
            "ID": network["Id"] if values["no-trunc"] else short(network["Id"]),
            "IPv4": str(network.get("EnableIPv4", True)).lower(),
            "IPv6": str(network["EnableIPv6"]).lower(),
            "Internal": str(network["Internal"]).lower(),
            "Labels": _pairs(network.get("Labels")),
            "Name": network["Name"],
            "Scope": network["Scope"],
        }
        for network in sorted(found, key=lambda network: _natural(network["Name"]))
    ]
    template = values["format"] or ("{{.ID}}" if values["quiet"] else None)
    table.show(console, rows, table.of(["ID", "Name", "Driver", "Scope"]), template, ID="NETWORK ID")


def _pairs(labels: dict[str, str] | None) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted((labels or {}).items()))


def _natural(name: str) -> list[Any]:
    """Names in an order where v2 comes before v10."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name)]
