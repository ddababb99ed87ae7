"""A person at a container's terminal: keys go in, what it shows comes out, and our own terminal is given back.

The container's terminal echoes and edits, so ours must not: it is raw meanwhile (termios(3)), and whatever ends us,
short of SIGKILL, restores it. Taught in chapter 08.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from typing import Any

_DEADLY = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP")


class Ended(BaseException):
    """A signal that ends us, where none of ours forwards it: the terminal first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def size() -> tuple[int, int] | None:
    """(width, height) of our terminal; None where our output is none."""
    with suppress(OSError, ValueError):
        found = os.get_terminal_size(1)
        return (found.columns, found.lines) if found.columns and found.lines else None
    return None


@contextmanager
def taken(terminal: int | None, forwarded: bool) -> Iterator[None]:
    """Raw meanwhile, where it is a terminal. Unless signals are `forwarded`, one that ends us gives it back first."""
    with _mortal(forwarded):
        if terminal is None or not os.isatty(terminal):
            yield
            return
        import termios
        import tty

        before = termios.tcgetattr(terminal)
        tty.setraw(terminal, termios.TCSANOW)
        try:
            yield
        finally:
            with suppress(termios.error):  # it is gone
                termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextmanager
def _mortal(forwarded: bool) -> Iterator[None]:
    """Unless signals are forwarded: one that ends us does so once the terminal is ours again."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    previous: dict[int, Any] = {}
    try:
        for number in (getattr(signal, name) for name in _DEADLY) if not forwarded else ():
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, end)
        yield
    except Ended as error:
        signal.signal(error.number, signal.SIG_DFL)
        os.kill(os.getpid(), error.number)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
