"""`run` and `start`: the client's side of a container's life (chapter 04).

Our standard streams are the container's: their descriptors are handed down, not copied through us. Signals that reach
us are the container's too. Its exit status is ours.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import time
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from minirt.cli.console import Console
from minirt.cli.create import OPTIONS, create_body
from minirt.cli.flags import UsageError, Values, command
from minirt.errors import InvalidInput, MinirtError, NotFound, Unsupported

if TYPE_CHECKING:
    from minirt.client import Client

_FORWARDED = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2")
_PATIENCE = 3  # a command that is pid 1 and handles no SIGINT never sees one: the third ends it


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
    if values["tty"]:
        raise Unsupported("a terminal (-t) is not supported yet")
    container = _create(console, values, arguments)
    if values["detach"]:
        console.client.start(container)
        console.print(container)
        return 0
    return attached(console, container, interactive=values["interactive"])


@command(
    "CONTAINER [CONTAINER...]",
    """
    -a, --attach        Show what it prints, forward signals to it, and exit with its status
    -i, --interactive   Give it our standard input
    """,
)
def start(console: Console, values: Values, arguments: list[str]) -> int:
    console.needs_linux()
    if values["attach"] or values["interactive"]:
        if len(arguments) > 1:
            raise UsageError("you cannot start and attach multiple containers at once", 1)
        return attached(console, arguments[0], interactive=values["interactive"])

    def act(name: str) -> None:
        console.client.start(name)
        console.print(name)

    return console.each(arguments, act)


def _create(console: Console, values: Values, arguments: list[str]) -> str:
    """Create the container, pulling its image as `--pull` says; its id."""
    from minirt.image.reference import Reference

    policy = values["pull"] or "missing"
    if policy not in ("always", "missing", "never"):
        raise UsageError(f"invalid pull option: {policy!r}: must be one of 'always', 'missing' or 'never'")
    image, platform, client = arguments[0], values["platform"], console.client
    body = create_body(values, arguments)
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


def attached(console: Console, container: str, interactive: bool) -> int:
    """Start a container on our own streams, forward signals to it, and wait; its exit status."""
    proxy = _SignalProxy(console, container)
    try:
        stdin, stdout, stderr = (_open(descriptor) for descriptor in (0, 1, 2))
        if interactive and stdin is not None and os.isatty(stdin):
            stdin = _typed(stdin)
        console.client.start(container, stdin=stdin if interactive else None, stdout=stdout, stderr=stderr)
        proxy.started()
        code = int(console.client.wait(container))
        return 1 if proxy.unread else code
    except MinirtError as error:
        if not proxy.runs:
            raise
        console.error(error)
        return 1  # as docker: the command ran, but what it wrote is lost
    finally:
        proxy.close()


def _open(descriptor: int) -> int | None:
    """The descriptor; None where our parent closed it, and any file could have its number."""
    closed = (sys.__stdin__, sys.__stdout__, sys.__stderr__)[descriptor] is None
    return None if closed else descriptor


def _typed(terminal: int) -> int:
    """What is typed there, in a pipe: only we read a terminal, so it is the shell's again when we stop or die."""
    outlet, inlet = os.pipe()

    def copy() -> None:
        with suppress(OSError), os.fdopen(inlet, "wb", buffering=0) as pipe:
            while data := os.read(terminal, 4096):
                pipe.write(data)

    Thread(target=copy, daemon=True).start()
    return outlet


class _SignalProxy:
    """Sends the signals we get to the container, those that come before it runs as soon as it does.

    A reader of our output that goes away is one more: SIGPIPE ends a command at its next write, but spares a pid 1.

    A handler interrupts any line of ours, an import too, so it only notes the signal; a thread sends it.
    """

    def __init__(self, console: Console, container: str) -> None:
        self._client: Client = console.client
        self._console = console
        self._container = container
        self._caught: SimpleQueue[int | None] = SimpleQueue()
        self._previous = {}
        self.runs = self.unread = False
        for number in (getattr(signal, name) for name in _FORWARDED):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish stands
                self._previous[number] = signal.signal(number, lambda number, _frame: self._caught.put(number))

    def started(self) -> None:
        """The container runs: send what was and will be caught."""
        self.runs = True
        Thread(target=self._send, daemon=True).start()
        if sys.__stdout__ is not None and stat.S_ISFIFO(os.fstat(1).st_mode):
            Thread(target=self._watch_reader, daemon=True).start()

    def _watch_reader(self) -> None:
        """End what goes on writing for nobody: docker leaves it to fill the disk with its log."""
        poll = select.poll()
        poll.register(1, 0)  # tells when the last reader goes
        poll.poll()
        with suppress(MinirtError, OSError):  # it has just exited
            log = self._client.inspect_container(self._container)["LogPath"]
            size = os.stat(log).st_size
            while os.stat(log).st_size == size:
                time.sleep(0.1)
            self.unread = True
            self._caught.put(signal.SIGKILL)

    def _send(self) -> None:
        interrupts = 0
        for number in iter(self._caught.get, None):
            interrupts += number == signal.SIGINT
            if interrupts == _PATIENCE:
                self._console.warn("minirt: interrupted three times: killing the container")
                number = signal.SIGKILL
            with suppress(MinirtError):  # it has just exited
                self._client.kill(self._container, number)

    def close(self) -> None:
        """Signals are ours again."""
        self._caught.put(None)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
