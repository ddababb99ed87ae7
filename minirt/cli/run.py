"""`run` and `start`: the client's side of a container's life (chapter 04). What of it is ours meanwhile: attach.py."""

from __future__ import annotations

import os
import sys
from typing import Any

from minirt.cli.attach import Session, check_terminal
from minirt.cli.console import Console
from minirt.cli.create import OPTIONS, create_body
from minirt.cli.flags import UsageError, Values, command
from minirt.errors import InvalidInput, NotFound


@command(
    "IMAGE [COMMAND] [ARG...]",
    OPTIONS
    + """
    -d, --detach              Print the container's id and leave it running
        --detach-keys string  Keys that detach from the container's terminal (default ctrl-p,ctrl-q)
        --sig-proxy           Send the signals we get to the container (default true)
    """,
    interspersed=False,
    failure=125,
)
def run(console: Console, values: Values, arguments: list[str]) -> int:
    console.needs_linux()
    body = create_body(values, arguments)
    check_terminal(body["Tty"] and body["AttachStdin"])
    if body["Tty"]:
        from minirt.cli.terminal import parse_keys, size

        parse_keys(values["detach-keys"])  # a wrong word is told before anything is made
        if now := size():
            body["HostConfig"]["ConsoleSize"] = [now[1], now[0]]
    container = _create(console, values, arguments, body)
    if values["detach"]:
        console.client.start(container)
        console.print(container)
        return 0
    session = Session(
        console,
        container,
        body["Tty"],
        body["AttachStdin"] and body["OpenStdin"],
        values["detach-keys"],
        values["sig-proxy"],
        ours=True,
    )
    return session.run(_starter(console, container))


def _starter(console: Console, container: str) -> Any:
    def begin(stdin: int | None, stdout: int | None, stderr: int | None, size: tuple[int, int] | None) -> None:
        console.client.start(container, stdin, stdout, stderr, size)

    return begin


@command(
    "CONTAINER [CONTAINER...]",
    """
    -a, --attach              Show what it prints, forward signals to it, and exit with its status
        --detach-keys string  Keys that detach from its terminal (default ctrl-p,ctrl-q)
    -i, --interactive         Give it our standard input
    """,
)
def start(console: Console, values: Values, arguments: list[str]) -> int:
    console.needs_linux()
    if values["attach"] or values["interactive"]:
        if len(arguments) > 1:
            raise UsageError("you cannot start and attach multiple containers at once", 1)
        return _start_attached(console, arguments[0], values)

    def act(name: str) -> None:
        console.client.start(name)
        console.print(name)

    return console.each(arguments, act)


def _start_attached(console: Console, name: str, values: Values) -> int:
    """Start it, or join it where it runs, with our streams."""
    client, found = console.client, console.client.inspect_container(name)
    container, config = found["Id"], found["Config"]
    stdin, runs = values["interactive"] and config["OpenStdin"], found["State"]["Running"]
    keys, tty = values["detach-keys"], config["Tty"]
    session = Session(console, container, tty, stdin, keys, forwards=not tty, ours=not runs)
    if runs:
        return session.run(lambda *begin: client.attach(container, *begin[:3]))
    return session.run(_starter(console, container))


def _create(console: Console, values: Values, arguments: list[str], body: dict[str, Any]) -> str:
    """Create the container, pulling its image as `--pull` says; its id."""
    from minirt.image.reference import Reference

    policy = values["pull"] or "missing"
    if policy not in ("always", "missing", "never"):
        raise UsageError(f"invalid pull option: {policy!r}: must be one of 'always', 'missing' or 'never'")
    image, platform, client = arguments[0], values["platform"], console.client
    if values["cidfile"] and os.path.exists(values["cidfile"]):
        raise InvalidInput(
            f"container ID file found, make sure the other container isn't running or delete {values['cidfile']}"
        )
    if policy == "always":
        _pull(console, image, platform, values["quiet"])
    try:
        created = client.create(body, name=values["name"], platform=platform)
    except NotFound:
        if policy != "missing":
            raise
        if not values["quiet"]:
            console.warn(f"Unable to find image '{Reference.parse(image).familiar}' locally")
        _pull(console, image, platform, values["quiet"])
        created = client.create(body, name=values["name"], platform=platform)
    for warning in created["Warnings"] or ():
        console.warn(f"WARNING: {warning}")
    identity = str(created["Id"])
    if values["cidfile"]:
        try:
            with open(values["cidfile"], "x", encoding="ascii") as file:
                file.write(identity)
        except OSError as error:
            client.remove(identity)
            raise InvalidInput(
                f"failed to create the container ID file: {values['cidfile']}: {error.strerror}"
            ) from error
    return identity


def _pull(console: Console, image: str, platform: str | None, quiet: bool) -> None:
    from minirt.cli.progress import show

    show(console.client.pull(image, platform=platform), sys.stderr, quiet)
