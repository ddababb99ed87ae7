"""`exec`: one more process in a running container (chapter 08)."""

from __future__ import annotations

import time

from minirt.cli.attach import Session, check_terminal
from minirt.cli.console import Console
from minirt.cli.flags import Values, command
from minirt.errors import MinirtError, StartError

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from typing import Any

_LOOKS = 100  # at a twentieth of a second


@command(
    "CONTAINER COMMAND [ARG...]",
    """
    -d, --detach              Leave it running in the background
        --detach-keys string  Keys that detach from its terminal (default ctrl-p,ctrl-q)
    -e, --env list            Set a variable: NAME=VALUE, or NAME for its value here
        --env-file list       Read variables from a file, one a line
    -i, --interactive         Give it our standard input
        --privileged          Give it every capability
    -t, --tty                 Give it a terminal
    -u, --user string         Run as this user: NAME or UID, then perhaps :GROUP
    -w, --workdir string      Working directory in the container
    """,
    interspersed=False,
)
def exec(console: Console, values: Values, arguments: list[str]) -> int:
    console.needs_linux()
    client, tty, attached = console.client, values["tty"], not values["detach"]
    interactive = values["interactive"] and attached
    body: dict[str, Any] = {
        "Cmd": arguments[1:],
        "Tty": tty,
        "Env": _environment(values),
        "User": values["user"] or "",
        "WorkingDir": values["workdir"] or "",
        "Privileged": values["privileged"],
        "AttachStdin": interactive,
        "AttachStdout": attached,
        "AttachStderr": attached,
        "DetachKeys": values["detach-keys"] or "",
    }
    check_terminal(tty and interactive)
    identity = client.create_exec(arguments[0], body)
    if not attached:
        try:
            client.start_exec_detached(identity, tty)
        except StartError as error:
            raise MinirtError(str(error)) from error  # as docker: we failed, not the command
        return 0
    session = Session(
        console,
        arguments[0],
        tty,
        interactive,
        values["detach-keys"],
        forwards=False,
        follow=lambda width, height: client.resize_exec(identity, width, height),
    )
    window = None
    if tty:
        from minirt.cli.terminal import size

        window = size()
    return session.run(lambda: client.start_exec(identity, tty, window), lambda: _code(console, identity))


def _environment(values: Values) -> list[str]:
    if not values["env"] and not values["env-file"]:
        return []
    from minirt.cli.create import environment

    return environment(values)


def _code(console: Console, identity: str) -> int:
    """How it ended: its streams are over, so it is about to have."""
    for _ in range(_LOOKS):
        found = console.client.inspect_exec(identity)
        if not found["Running"]:
            break
        time.sleep(0.05)
    else:
        raise MinirtError("its streams are over, but the command still runs")  # a daemon that died took them along
    return int(found["ExitCode"] or 0)
