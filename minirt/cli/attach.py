"""`attach`, and what it shares with `run`, `start` and `exec`: our streams are the container's (chapters 04 and 08).

streams.py carries the bytes; with a terminal, ours is raw meanwhile (terminal.py). Signals that reach us are the
container's too. Its exit status is ours.
"""

from __future__ import annotations

import _signal  # of signal the part in C
import _thread
import os
import sys

from minirt.cli.console import Console
from minirt.cli.flags import Values, command
from minirt.errors import Conflict, MinirtError, StartError
from minirt.keys import Keys, parse_keys
from minirt.lean import nullcontext, suppress

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from minirt.client.streams import Attached

_FORWARDED = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2")
_PATIENCE = 3  # a command that is pid 1 and handles no SIGINT never sees one: the third ends it
_GRACE = 2.0  # seconds for a last signal to be sent
HANGUP = 128 + 1
DETACHED = "read escape sequence"


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

    keys = values["detach-keys"]
    session = Session(console, container, tty, stdin, keys, forwards=values["sig-proxy"] and not tty)
    with client.waiting(container) as waiting:
        return session.run(lambda: client.attach(container, tty, stdin, keys=keys), waiting.result)


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
        self._keys = Keys(parse_keys(keys)) if tty else None

    def run(self, begin: Callable[[], Attached], code: Callable[[], int]) -> int:
        """Begin, stay, and give back the exit status that `code` waits for. Raises what `begin` does."""
        proxy = _Proxy(self._console, self._container, self._forwards, self._follow if self._tty else None)
        try:
            with self._terminal():
                attached = begin()
                proxy.started()
                with attached:
                    from minirt.cli.streams import carry

                    how = carry(attached, self._streams, self._keys)
            return self._over(how, code)
        except MinirtError as error:
            if not proxy.runs:
                raise
            self._console.error(error)
            return 1  # as docker: the command ran, but what it wrote is lost
        finally:
            proxy.close()

    def _terminal(self) -> AbstractContextManager[None]:
        if not self._tty:
            return nullcontext()
        from minirt.cli.terminal import taken

        return taken(self._streams[0], self._forwards)

    def _over(self, how: str, code: Callable[[], int]) -> int:
        if how == "ended":
            return code()
        if how == "detached":
            if not self._ours:
                self._console.warn(DETACHED)
            return 0 if self._ours else 1
        if how == "gone":
            return HANGUP
        if not self._ours:
            raise BrokenPipeError
        with suppress(MinirtError):  # it has just exited
            self._console.client.kill(self._container)
            code()
        return 1


def _open(descriptor: int) -> int | None:
    """The descriptor; None where our parent closed it, and any file could have its number."""
    closed = (sys.__stdin__, sys.__stdout__, sys.__stderr__)[descriptor] is None
    return None if closed else descriptor


class _Proxy:
    """Sends the signals we get to the container, those that come before it runs as soon as it does.
    A terminal's new size is told in the same way.

    A handler interrupts any line of ours, an import too, so it only notes the signal; a thread sends it.
    """

    def __init__(
        self, console: Console, container: str, forwards: bool, follow: Callable[[int, int], None] | None
    ) -> None:
        self._console, self._client, self._container, self._follow = console, console.client, container, follow
        self._sent, self._caught = os.pipe()  # a byte a signal, 0 at the end
        os.set_blocking(self._caught, False)
        self._previous = {}
        self._sending = _thread.allocate_lock()
        self.runs = False
        names = (*(_FORWARDED if forwards else ()), *(("SIGWINCH",) if follow else ()))
        for number in (getattr(_signal, name) for name in names):
            if _signal.getsignal(number) != _signal.SIG_IGN:  # nohup's wish stands
                self._previous[number] = _signal.signal(number, lambda number, _frame: self._catch(number))

    def _catch(self, number: int) -> None:
        with suppress(BlockingIOError):  # thousands wait already
            os.write(self._caught, bytes([number]))

    def started(self) -> None:
        """The container runs: send what was and will be caught, and our terminal's size."""
        self.runs = True
        if self._follow:
            self._catch(_signal.SIGWINCH)
        self._sending.acquire()
        _thread.start_new_thread(self._send, ())

    def _send(self) -> None:
        try:
            interrupts = 0
            while number := os.read(self._sent, 1)[0]:
                with suppress(MinirtError):  # it has just exited
                    if number == _signal.SIGWINCH:
                        self._resize()
                        continue
                    interrupts += number == _signal.SIGINT
                    if interrupts == _PATIENCE:
                        self._console.warn("minirt: interrupted three times: killing the container")
                        number = _signal.SIGKILL
                    self._client.kill(self._container, number)
        finally:
            self._sending.release()

    def _resize(self) -> None:
        from minirt.cli.terminal import size

        now = size()
        if now and self._follow:
            self._follow(*now)

    def close(self) -> None:
        """Signals are ours again; those that came are sent."""
        self._catch(0)
        over = self._sending.acquire(timeout=_GRACE)
        for number, handler in self._previous.items():
            _signal.signal(number, handler)
        if over:  # else it still reads
            os.close(self._sent)
            os.close(self._caught)
