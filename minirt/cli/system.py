"""The machine's verbs: `version`, `info`, `system check | df`, `doctor`."""

from __future__ import annotations

import json
import sys
from typing import Any

from minirt import __version__, units
from minirt.cli import table
from minirt.cli.console import Console
from minirt.cli.flags import Values, command

_API = "1.44"  # what we ask in
_FORMAT = "-f, --format string   Print with a Go template ({{.Field}}, {{json .}}), or 'json'"


@command("", _FORMAT)
def version(console: Console, values: Values, arguments: list[str]) -> None:
    from minirt.image.platform import Platform

    server = console.client.version()
    client = {"Version": __version__, "ApiVersion": _API, "Os": sys.platform, "Arch": Platform.host().architecture}
    if table.printed(console, {"Client": client, "Server": server}, values["format"]):
        return
    python = {"Python version": ".".join(map(str, sys.version_info[:3]))}
    console.print("Client:")
    _version_lines(console, " ", {**client, **python})
    console.print("\nServer:")
    for part in server.get("Components") or [{"Name": "Engine", "Version": server["Version"], "Details": server}]:
        console.print(f" {part['Name']}:")
        _version_lines(console, "  ", {**(part.get("Details") or {}), "Version": part["Version"]})


def _version_lines(console: Console, indent: str, record: dict[str, Any]) -> None:
    """One component's lines in docker's words and order, then what else it has."""
    rest = dict(record)
    lines = {"Version": rest.pop("Version"), "API version": rest.pop("ApiVersion", None)}
    if "MinAPIVersion" in rest:
        lines["API version"] += f" (minimum version {rest.pop('MinAPIVersion')})"
    for name, key in ("Go version", "GoVersion"), ("Git commit", "GitCommit"), ("Built", "BuildTime"):
        lines[name] = rest.pop(key, None)
    if "Os" in rest:
        lines["OS/Arch"] = f"{rest.pop('Os')}/{rest.pop('Arch')}"
    for name, value in (lines | rest).items():
        if isinstance(value, str) and value:
            console.print(f"{indent}{name + ':':<18} {value}")


# The keys of `GET /info` in docker's order, each with its words where they are not the key's own.
_INFO = """Containers ContainersRunning=_Running ContainersPaused=_Paused ContainersStopped=_Stopped Images
ServerVersion Driver=Storage_Driver LoggingDriver CgroupDriver CgroupVersion DefaultRuntime KernelVersion
OperatingSystem OSType=OSType Architecture NCPU=CPUs MemTotal=Total_Memory Name ID DockerRootDir"""


@command("", _FORMAT)
def info(console: Console, values: Values, arguments: list[str]) -> None:
    record = console.client.info()
    if table.printed(console, record, values["format"]):
        return
    console.print(f"Client:\n Version:    {__version__}\n\nServer:")
    for word in _INFO.split():
        key, _, words = word.partition("=")
        if key in record:
            value = units.size(record[key], 4, units.BINARY) if key == "MemTotal" else record[key]
            console.print(f" {words.replace('_', ' ') or table.spaced(key)}: {value}")
        for name, status in (record.get("DriverStatus") or []) if key == "Driver" else []:
            console.print(f"  {name}: {status}")
        if key == "DefaultRuntime" and record.get("SecurityOptions"):
            console.print(" Security Options:")
            for option in record["SecurityOptions"]:
                name, *rest = (part.partition("=")[2] for part in option.split(","))
                console.print("\n   Profile: ".join([f"  {name}", *rest]))
    for warning in record.get("Warnings") or []:
        console.warn(warning)


@command("", f"--format string   {table.HELP}")
def system_df(console: Console, values: Values, arguments: list[str]) -> None:
    used = console.client.df()
    images, containers = used["Images"] or [], used["Containers"] or []
    live = [image for image in images if image["Containers"] > 0]
    # What removing the unused ones frees: all layers, less those that images in use hold.
    held = sum(image["Size"] - max(image["SharedSize"], 0) for image in live)
    written = [(item.get("SizeRw") or 0, item["State"] in ("running", "paused", "restarting")) for item in containers]
    rows = [
        _df_row("Images", len(images), len(live), used["LayersSize"], used["LayersSize"] - held),
        _df_row(
            "Containers",
            len(written),
            sum(active for _, active in written),
            sum(size for size, _ in written),
            sum(size for size, active in written if not active),
        ),
        _df_row("Local Volumes", len(used.get("Volumes") or []), 0, 0, 0),
        _df_row("Build Cache", len(used.get("BuildCache") or []), 0, 0, 0),
    ]
    for store in used.get("AdditionalStores") or []:
        rows.append(_df_row(f"Store {store['Path']}", store["Images"], store["Active"], store["Size"], 0))
    columns = table.of(["Type", "TotalCount", "Active", "Size", "Reclaimable"])
    table.show(console, rows, columns, values["format"], TotalCount="TOTAL")


def _df_row(kind: str, total: int, active: int, size: int, free: int) -> dict[str, str]:
    share = f" ({free * 100 // size}%)" if size > 0 else ""
    return {
        "Active": str(active),
        "Reclaimable": units.size(free) + share,
        "Size": units.size(size),
        "TotalCount": str(total),
        "Type": kind,
    }


@command()
def system_check(console: Console, values: Values, arguments: list[str]) -> int:
    problems = console.client.check()
    if not problems:
        console.print("Everything in the store verifies")
        return 0
    table.records(console, problems)
    return 1


@command()
def system_share(console: Console, values: Values, arguments: list[str]) -> None:
    found = console.client.share()
    root = console.client.info()["DockerRootDir"]
    console.print(
        f"Others can read {found['Images']} image(s), {found['Layers']} layer(s); what is pulled from now on too."
    )
    console.print(f'For all of them, in /etc/minirt/config.toml: additional-stores = ["{root}"]')


@command("", "    --json   Print a JSON array")
def doctor(console: Console, values: Values, arguments: list[str]) -> int:
    """0 where containers can run in any way, else 1."""
    rows = console.client.doctor()
    if values["json"]:
        console.print(json.dumps(rows, indent=4, ensure_ascii=False))
    else:
        shown = [{key: row[key] for key in ("capability", "works", "tried", "detail")} for row in rows]
        table.records(console, [row | {"works": "yes" if row["works"] else "no"} for row in shown])
        advice: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["cost"]:
                advice.setdefault(row["hint"], []).append(row)
        for hint, missing in advice.items():
            console.print("")
            for cost in dict.fromkeys(row["cost"] for row in missing):
                names = ", ".join(row["capability"] for row in missing if row["cost"] == cost)
                console.print(f"{names}: {cost}")
            console.print(f"  how to get it: {hint}")
    return 0 if rows[0]["works"] else 1
