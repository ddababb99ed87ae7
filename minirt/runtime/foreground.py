"""`run` and `exec` in the foreground: our terminal is the container's, our signals are its, its exit status is ours.

A shim does this for `minirt run`; here there is none, only us until the process ends. Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import termios
from types import FrameType, TracebackType
from typing import Any

from minirt.runtime import terminal

_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


class Foreground:
    """With `tty`, `console` is a console socket whose terminal we show on ours."""

    def __init__(self, tty: bool) -> None:
        self._ours: socket.socket | None = None
        self._theirs: socket.socket | None = None
        self._before: list[Any] | None = None
        self._pid = 0
        self._early: list[int] = []
        if tty:
            self._ours, self._theirs = terminal.console_pair()

    @property
    def console(self) -> int | None:
        return self._theirs.fileno() if self._theirs else None

    def __enter__(self) -> Foreground:
        for name in _FORWARDED:  # now: the command may run, and say so to whoever sends one, before we wait
            signal.signal(getattr(signal, name), self._forward)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._before:
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)
        for line in (self._ours, self._theirs):
            if line:
                line.close()

    def wait(self, pid: int) -> int:
        """Its exit status (128 + signal where one ended it)."""
        self._pid = pid
        while self._early:
            _send(pid, self._early.pop(0))
        if self._ours:
            self._show(terminal.receive(self._ours))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code if code >= 0 else 128 - code

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if self._pid:
            _send(self._pid, number)
        else:
            self._early.append(number)

    def _show(self, master: int) -> None:
        """Copy between our terminal and its, until the last process in it is gone."""
        if os.isatty(0):
            self._before = terminal.raw(0)
            signal.signal(signal.SIGWINCH, lambda *_: _match(master))
            _match(master)
        reading = [0, master]
        while master in reading:
            ready, _, _ = select.select(reading, [], [])
            for fd in ready:
                try:
                    data = os.read(fd, 65536)
                except OSError:  # EIO: nobody has the other end any more
                    data = b""
                if not data:
                    reading.remove(fd)
                while data:
                    data = data[os.write(master if fd == 0 else 1, data) :]
        os.close(master)


def _match(master: int) -> None:
    size = os.get_terminal_size(0)
    terminal.resize(master, size.columns, size.lines)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended, and is waited for
        os.kill(pid, number)
