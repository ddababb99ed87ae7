"""`attach`, and what it shares with `run`, `start` and `exec`: our streams are the container's (chapters 04 and 08).

Without a terminal our descriptors are handed down, not copied through us; with one, terminal.py stands between. Signals
that reach us are the container's too. Its exit status is ours.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from minirt.cli.console import Console
from minirt.cli.flags import Values, command
from minirt.errors import Conflict, MinirtError, StartError

if TYPE_CHECKING:
    from minirt.runtime.control import Connection

_FORWARDED = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2")
_PATIENCE = 3  # a command that is pid 1 and handles no SIGINT never sees one: the third ends it
_GRACE = 2.0  # seconds for a last signal to be sent
HANGUP = 128 + 1
_KILLED = 128 + 9
DETACHED = "read escape sequence"

# Starts or joins on (stdin, stdout, stderr) and the size of our terminal.
Begin = Callable[[int | None, int | None, int | None, "tuple[int, int] | None"], "Connection | None"]


@command(
    "CONTAINER",
    """
        --detach-keys string  Keys that detach from its terminal (default ctrl-p,ctrl-q)
        --no-stdin            Do not attach our standard input
        --sig-proxy           Send the signals we get to it (default true)
    """,
)
def attach(console: Console, values: Values, arguments: list[str]) -> int:
    console.needs_linux()
    client, found = console.client, console.client.inspect_container(arguments[0])
    container, tty, state = found["Id"], found["Config"]["Tty"], found["State"]
    for unfit, what, first in (
        (not state["Running"], "stopped", "start it"),
        (state["Paused"], "paused", "unpause it"),
    ):
        if unfit:
            raise Conflict(f"You cannot attach to a {what} container, {first} first")
    stdin = not values["no-stdin"] and found["Config"]["OpenStdin"]
    check_terminal(tty and not values["no-stdin"])

    def begin(stdin: int | None, stdout: int | None, stderr: int | None, size: tuple[int, int] | None) -> Connection:
        connection = client.attach(container, stdin, stdout, stderr)
        if size:
            client.resize(container, *size)
        return connection

    session = Session(console, container, tty, stdin, values["detach-keys"], forwards=values["sig-proxy"] and not tty)
    return session.run(begin)


def check_terminal(wanted: bool) -> None:
    """Raises StartError where a terminal's keys are asked for and our standard input is none; docker exits with 1."""
    if wanted and not (sys.__stdin__ is not None and os.isatty(0)):
        raise StartError("the input device is not a TTY", 1)


class Session:
    """Our streams on a container, until it ends or we leave.

    `stdin`: give it ours; `forwards`: send it our signals; `ours`: it runs for us, so it ends with who reads us.
    `follow` passes our terminal's size on, to the container's where nothing else is said.
    """

    def __init__(
        self,
        console: Console,
        container: str,
        tty: bool,
        stdin: bool,
        keys: str | None,
        forwards: bool = True,
        ours: bool = False,
        follow: Callable[[int, int], None] | None = None,
    ) -> None:
        self._console, self._container, self._tty, self._ours = console, container, tty, ours
        self._streams = [_open(number) for number in range(3)]
        if not stdin:
            self._streams[0] = None
        self._forwards = forwards
        self._follow = follow or (lambda width, height: console.client.resize(container, width, height))
        self.keys = b""
        if tty:
            from minirt.cli.terminal import parse_keys

            self.keys = parse_keys(keys)

    def run(self, begin: Begin) -> int:
        """Begin, stay, and give back the exit status. Raises what `begin` does."""
        proxy = _Proxy(self._console, self._container, self._forwards, self._follow if self._tty else None)
        try:
            return self._with_terminal(begin, proxy) if self._tty else self._plain(begin, proxy)
        except MinirtError as error:
            if not proxy.runs:
                raise
            self._console.error(error)
            return 1  # as docker: the command ran, but what it wrote is lost
        finally:
            proxy.close()

    def _plain(self, begin: Begin, proxy: _Proxy) -> int:
        stdin, stdout, stderr = self._streams
        if stdin is not None and os.isatty(stdin):
            stdin = _typed(stdin)
        connection = begin(stdin, stdout, stderr, None)
        proxy.started(watch=self._ours)
        code = self._code(connection)
        return 1 if proxy.unread else code

    def _with_terminal(self, begin: Begin, proxy: _Proxy) -> int:
        from minirt.cli.terminal import converse, mortal, size

        connection: Connection | None = None

        def start(stdin: int | None, stdout: int) -> None:
            nonlocal connection
            connection = begin(stdin, stdout, None, size())
            proxy.started()

        with mortal(self._forwards):
            how = converse(start, self.keys, self._streams[0], self._streams[1])
        if how == "ended":
            return self._code(connection)
        if connection is not None:
            connection.close()
        if how == "detached":
            if not self._ours:
                self._console.warn(DETACHED)
            return 0 if self._ours else 1
        if how == "gone":
            return HANGUP
        if self._ours:
            with suppress(MinirtError):  # it has just exited
                self._console.client.kill(self._container)
            self._code(connection)
        return 1

    def _code(self, connection: Connection | None) -> int:
        """The exit status, once it ended."""
        if connection is None:
            return int(self._console.client.wait(self._container))
        try:
            end = _last_word(connection)
        finally:
            connection.close()
        return _KILLED if end is None else int(end["exit_code"])


def _last_word(connection: Connection) -> dict[str, int] | None:
    """What is said at the end. Raises BrokenPipeError where the reader of our output leaves before."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if sys.__stdout__ is not None and not stat.S_ISREG(os.fstat(1).st_mode):
        poll.register(1, 0)  # tells when the last reader goes
    if connection.fileno() not in {fd for fd, _ in poll.poll()}:
        raise BrokenPipeError
    return connection.wait()


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


class _Proxy:
    """Sends the signals we get to the container, those that come before it runs as soon as it does.

    A reader of our output that goes away is one more: SIGPIPE ends a command at its next write, but spares a pid 1.
    A terminal's new size is told in the same way.

    A handler interrupts any line of ours, an import too, so it only notes the signal; a thread sends it.
    """

    def __init__(
        self, console: Console, container: str, forwards: bool, follow: Callable[[int, int], None] | None
    ) -> None:
        self._console, self._client, self._container, self._follow = console, console.client, container, follow
        self._caught: SimpleQueue[int | None] = SimpleQueue()
        self._previous = {}
        self._thread: Thread | None = None
        self.runs = self.unread = False
        names = (*(_FORWARDED if forwards else ()), *(("SIGWINCH",) if follow else ()))
        for number in (getattr(signal, name) for name in names):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish stands
                self._previous[number] = signal.signal(number, lambda number, _frame: self._caught.put(number))

    def started(self, watch: bool = False) -> None:
        """The container runs: send what was and will be caught. `watch`: it ends with the reader of our output."""
        self.runs = True
        self._thread = Thread(target=self._send, daemon=True)
        self._thread.start()
        if watch and sys.__stdout__ is not None and stat.S_ISFIFO(os.fstat(1).st_mode):
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
            with suppress(MinirtError):  # it has just exited
                if number == signal.SIGWINCH:
                    self._resize()
                    continue
                interrupts += number == signal.SIGINT
                if interrupts == _PATIENCE:
                    self._console.warn("minirt: interrupted three times: killing the container")
                    number = signal.SIGKILL
                self._client.kill(self._container, number)

    def _resize(self) -> None:
        from minirt.cli.terminal import size

        now = size()
        if now and self._follow:
            self._follow(*now)

    def close(self) -> None:
        """Signals are ours again; those that came are sent."""
        self._caught.put(None)
        if self._thread:
            self._thread.join(_GRACE)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
