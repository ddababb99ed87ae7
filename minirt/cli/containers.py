"""The verbs of containers that are there: `ps`, `logs`, `stop`, `restart`, `kill`, `wait`, `rename`, `rm`, `port`."""

from __future__ import annotations

import sys

from minirt import units
from minirt.cli import table
from minirt.cli.console import Console
from minirt.cli.flags import Values, command
from minirt.cli.images import parse_filters, short
from minirt.errors import NotFound

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from typing import Any


@command(
    "",
    f"""
    -a, --all             Show those that have exited too
    -f, --filter list     Show only those: name=, status=, label=, ancestor=
        --format string   {table.HELP}
    -n, --last int        Show the last n created, whatever their state
    -l, --latest          Show the last created
        --no-trunc        Show whole ids and commands
    -q, --quiet           Show ids only
    -s, --size            Show how much each has written
    """,
)
def ps(console: Console, values: Values, arguments: list[str]) -> None:
    limit = 1 if values["latest"] else values["last"]
    template = values["format"] or ("{{.ID}}" if values["quiet"] else None)
    found = console.client.containers(
        all=values["all"] or (limit or 0) > 0,
        limit=limit if (limit or 0) > 0 else None,
        size=values["size"] or ".Size" in (template or ""),
        filters=parse_filters(values["filter"]) or None,
    )
    columns = ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names", *["Size"] * values["size"]]
    rows = (_row(container, values["no-trunc"]) for container in found)
    table.show(console, rows, table.of(columns), template, ID="CONTAINER ID", RunningFor="CREATED")


def _row(container: dict[str, Any], whole: bool) -> dict[str, str]:
    words = container["Command"] if whole else table.shorten(container["Command"], 20)
    image = container["Image"] or "<no image>"
    mounts = container.get("Mounts") or []
    return {
        "Command": f'"{words}"',
        "CreatedAt": units.moment(container["Created"]),
        "ID": container["Id"] if whole else short(container["Id"]),
        # An image that lost its name is shown by its id.
        "Image": image if whole or not image.startswith("sha256:") else short(image),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted((container.get("Labels") or {}).items())),
        "LocalVolumes": str(sum(mount.get("Driver") == "local" for mount in mounts)),
        "Mounts": ",".join(mount.get("Name") or mount["Source"] for mount in mounts),
        "Names": ",".join(name.removeprefix("/") for name in container["Names"] or []),
        "Networks": ",".join((container.get("NetworkSettings") or {}).get("Networks") or {}),
        "Ports": ", ".join(_port(port) for port in container.get("Ports") or []),
        "RunningFor": units.ago(container["Created"]),
        "Size": _size(container),
        "State": container["State"],
        "Status": container["Status"],
    }


def _port(port: dict[str, Any]) -> str:
    inside = f"{port['PrivatePort']}/{port['Type']}"
    return f"{_address(port.get('IP', ''))}:{port['PublicPort']}->{inside}" if port.get("PublicPort") else inside


def _address(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _size(container: dict[str, Any]) -> str:
    """What it wrote, and with its image: `12B (virtual 12.3MB)`."""
    whole = container.get("SizeRootFs") or 0
    return units.size(container.get("SizeRw") or 0, 3) + (f" (virtual {units.size(whole, 3)})" if whole else "")


@command(
    "CONTAINER",
    """
        --details         Show more of each line (minirt keeps no more)
    -f, --follow          Go on until it ends
        --since string    Only what came after: a time, or how long ago (10m)
    -n, --tail string     Only the last lines: a number, or all (default all)
    -t, --timestamps      Show when each line came
        --until string    Only what came before
    """,
)
def logs(console: Console, values: Values, arguments: list[str]) -> None:
    from minirt.cli.words import moment

    options = {"since": moment(values["since"]), "until": moment(values["until"]), "tail": values["tail"]}
    options |= {"follow": values["follow"], "timestamps": values["timestamps"]}
    for stream, chunk in console.client.logs(arguments[0], **options):
        target = sys.stdout if stream == "stdout" else sys.stderr
        target.buffer.write(chunk)
        target.buffer.flush()


@command(
    "CONTAINER [CONTAINER...]",
    """
    -s, --signal string   The signal to end it with, where not its own
    -t, --timeout int     Seconds to wait before SIGKILL (10 when nothing is said; -1: no end)
        --time int        -
    """,
)
def stop(console: Console, values: Values, arguments: list[str]) -> int:
    seconds = values["time"] if values["timeout"] is None else values["timeout"]

    def act(name: str) -> None:
        console.client.stop(name, seconds, values["signal"])
        console.print(name)

    return console.each(arguments, act)


@command(
    "CONTAINER [CONTAINER...]",
    """
    -s, --signal string   The signal to end it with, where not its own
    -t, --timeout int     Seconds to wait before SIGKILL (10 when nothing is said; -1: no end)
        --time int        -
    """,
)
def restart(console: Console, values: Values, arguments: list[str]) -> int:
    seconds = values["time"] if values["timeout"] is None else values["timeout"]

    def act(name: str) -> None:
        console.client.restart(name, seconds, values["signal"])
        console.print(name)

    return console.each(arguments, act)


@command("CONTAINER NEW_NAME")
def rename(console: Console, values: Values, arguments: list[str]) -> None:
    console.client.rename(*arguments)


@command(
    "CONTAINER [CONTAINER...]",
    """
    -s, --signal string   The signal, by name or number (KILL when not given)
    """,
)
def kill(console: Console, values: Values, arguments: list[str]) -> int:
    def act(name: str) -> None:
        console.client.kill(name, values["signal"] or "KILL")
        console.print(name)

    return console.each(arguments, act)


@command("CONTAINER [CONTAINER...]")
def wait(console: Console, values: Values, arguments: list[str]) -> int:
    return console.each(arguments, lambda name: console.print(str(console.client.wait(name))))


@command(
    "CONTAINER [CONTAINER...]",
    """
    -f, --force     Remove it even if it runs (SIGKILL)
    -v, --volumes   Remove its anonymous volumes too
    """,
)
def rm(console: Console, values: Values, arguments: list[str]) -> int:
    def act(name: str) -> None:
        console.client.remove(name, force=values["force"], volumes=values["volumes"])
        console.print(name)

    return console.each(arguments, act, values["force"])


@command("CONTAINER [PRIVATE_PORT[/PROTO]]")
def port(console: Console, values: Values, arguments: list[str]) -> int:
    """Where the container's published ports are on this machine."""
    name, wanted = arguments[0], arguments[1] if len(arguments) > 1 else ""
    ports = console.client.inspect_container(name)["NetworkSettings"]["Ports"] or {}
    lines = [
        (key, ("[{}]:{}" if ":" in place["HostIp"] else "{}:{}").format(place["HostIp"], place["HostPort"]))
        for key, places in sorted(ports.items())
        for place in places or ()
    ]
    if not wanted:
        for key, place in lines:
            console.print(f"{key} -> {place}")
        return 0
    key = wanted if "/" in wanted else f"{wanted}/tcp"
    found = [place for other, place in lines if other == key]
    if not found:
        raise NotFound(f"No public port '{wanted}' published for {name}")
    for place in found:
        console.print(place)
    return 0
