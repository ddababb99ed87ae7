"""`run` and `start`: the client's side of a container's life (chapter 04). What of it is ours meanwhile: attach.py."""

from __future__ import annotations

import os
import sys

from minirt.cli.attach import Session, check_terminal
from minirt.cli.console import Console
from minirt.cli.create import OPTIONS, create_body
from minirt.cli.flags import UsageError, Values, command
from minirt.errors import InvalidInput, MinirtError, NotFound, StartError
from minirt.keys import parse_keys

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from typing import Any

    from minirt.client.streams import Attached


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
        from minirt.cli.terminal import size

        parse_keys(values["detach-keys"])  # a wrong word is told before anything is made
        if now := size():
            body["HostConfig"]["ConsoleSize"] = [now[1], now[0]]
    container = _create(console, values, arguments, body)
    if values["detach"]:
        console.client.start(container)
        console.print(container)
        return 0
    stdin = body["AttachStdin"] and body["OpenStdin"]
    tty, keys = body["Tty"], values["detach-keys"]
    session = Session(console, container, tty, stdin, keys, values["sig-proxy"], ours=True)
    streams = {"stdin": stdin, "stdout": body["AttachStdout"], "stderr": body["AttachStderr"]}
    return _session(console, container, session, tty, values["rm"], keys, streams)


def _session(
    console: Console, container: str, session: Session, tty: bool, removed: bool, keys: str | None, streams: Any
) -> int:
    """Attach, begin to wait, start, in docker's order, so that nothing it says or does is missed; its exit status."""
    client = console.client
    with (
        client.attach(container, tty, keys=keys, **streams) as attached,
        client.waiting(container, "removed" if removed else "next-exit") as waiting,
    ):

        def begin() -> Attached:
            client.start(container)
            return attached

        return session.run(begin, waiting.result)


@command("IMAGE [COMMAND] [ARG...]", OPTIONS, interspersed=False)
def create(console: Console, values: Values, arguments: list[str]) -> None:
    console.needs_linux()
    console.print(_create(console, values, arguments, create_body(values, arguments)))


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
        try:
            return _start_attached(console, arguments[0], values)
        except StartError as error:
            raise MinirtError(str(error)) from error  # as docker: 126 and 127 are of `run` alone

    def act(name: str) -> None:
        console.client.start(name)
        console.print(name)

    return console.each(arguments, act)


def _start_attached(console: Console, name: str, values: Values) -> int:
    """Start it, or join it where it runs, with our streams."""
    client, found = console.client, console.client.inspect_container(name)
    container, config = found["Id"], found["Config"]
    stdin, runs = values["interactive"] and config["OpenStdin"], found["State"]["Running"]
    keys, tty, removed = values["detach-keys"], config["Tty"], found["HostConfig"].get("AutoRemove", False)
    session = Session(console, container, tty, stdin, keys, forwards=not tty, ours=not runs)
    if not runs:
        return _session(console, container, session, tty, removed, keys, {"stdin": stdin})
    with client.waiting(container) as waiting:
        return session.run(lambda: client.attach(container, tty, stdin, keys=keys), waiting.result)


def _create(console: Console, values: Values, arguments: list[str], body: dict[str, Any]) -> str:
    """Create the container, pulling its image as `--pull` says; its id."""
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
            from minirt.image.reference import Reference

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
