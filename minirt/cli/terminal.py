"""A person at a container's terminal: keys go in, what it shows comes out, and our own terminal is given back.

The container's terminal echoes and edits, so ours must not: it is raw meanwhile (termios(3)), and whatever ends us,
short of SIGKILL, restores it. The detach keys are looked for on the way in, as docker does (moby/term): what may be
their beginning waits for the next key. Taught in chapter 08.
"""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from minirt.errors import InvalidInput

DETACH_KEYS = "ctrl-p,ctrl-q"
_DEADLY = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP")


class Ended(BaseException):
    """A signal that ends us, where none of ours forwards it: the terminal first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def parse_keys(text: str | None) -> bytes:
    """The bytes of `ctrl-p,ctrl-q` or `a,b`; the default where nothing is given. Raises InvalidInput."""
    found = b""
    for word in (text or DETACH_KEYS).split(","):
        control = re.fullmatch(r"ctrl-([a-z@\[\\\]^_])", word, re.ASCII)
        if not control and (len(word) != 1 or not word.isascii()):
            raise InvalidInput(f"Invalid detach keys ({text}) provided")
        found += bytes([ord(control[1].upper()) ^ 64]) if control else word.encode()
    return found


class Keys:
    """Looks for the detach keys in what is typed."""

    def __init__(self, wanted: bytes) -> None:
        self._wanted, self._seen = wanted, 0

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What may go in, and whether the keys were complete: then nothing after them does."""
        out = b""
        for byte in data:
            if byte != self._wanted[self._seen]:
                out += self._wanted[: self._seen]
                self._seen = 0
            if byte != self._wanted[self._seen]:
                out += bytes([byte])
                continue
            self._seen += 1
            if self._seen == len(self._wanted):
                return out, True
        return out, False


def size() -> tuple[int, int] | None:
    """(width, height) of our terminal; None where our output is none."""
    with suppress(OSError, ValueError):
        found = os.get_terminal_size(1)
        return (found.columns, found.lines) if found.columns and found.lines else None
    return None


@contextmanager
def raw(terminal: int | None) -> Iterator[None]:
    """Raw meanwhile, where it is a terminal."""
    if terminal is None or not os.isatty(terminal):
        yield
        return
    import termios

    from minirt.runtime.terminal import raw as make_raw

    before = make_raw(terminal)
    try:
        yield
    finally:
        with suppress(termios.error):  # it is gone
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextmanager
def mortal(forwarded: bool) -> Iterator[None]:
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


def converse(begin: Callable[[int | None, int], None], keys: bytes, stdin: int | None, stdout: int | None) -> str:
    """Let `begin` start or attach with (stdin, stdout) of a terminal's, and carry the bytes.

    Returns how it ended: `ended`, `detached`, `gone` (our terminal), or `unread` (the reader of our output left).
    """
    read, write = os.pipe()
    entry, inlet = os.pipe() if stdin is not None else (None, None)
    try:
        with raw(stdin):
            try:
                begin(entry, write)
            finally:
                os.close(write)
                if entry is not None:
                    os.close(entry)
            return _carry(stdin, inlet, read, stdout, Keys(keys))
    finally:
        for fd in (read, inlet):
            if fd is not None:
                os.close(fd)


def _carry(stdin: int | None, inlet: int | None, read: int, stdout: int | None, keys: Keys) -> str:
    """The loop of `converse`. What the container does not take yet waits, and meanwhile no key is read."""
    pending = b""
    if inlet is not None:
        os.set_blocking(inlet, False)
    while True:
        poll = select.poll()
        poll.register(read, select.POLLIN)
        if stdin is not None and not pending:
            poll.register(stdin, select.POLLIN)
        if inlet is not None and pending:
            poll.register(inlet, select.POLLOUT)
        ready = {fd for fd, _ in poll.poll()}
        if read in ready:
            data = os.read(read, 65536)
            if not data:
                return "ended"
            if stdout is not None and (failed := _write(stdout, data)):
                return failed
        if stdin in ready and stdin is not None:
            try:
                data = os.read(stdin, 4096)
            except OSError:  # EIO: the terminal hung up
                data = b""
            if not data:
                if os.isatty(stdin) or _hung_up(stdin):
                    return "gone"
                stdin = None  # the end of a file: the container's terminal goes on
                continue
            pending, detached = keys.take(data)
            if detached:
                if inlet is not None:
                    with suppress(BlockingIOError, BrokenPipeError):
                        os.write(inlet, pending)  # what was typed before the keys
                return "detached"
        if pending and inlet is not None:
            try:
                pending = pending[os.write(inlet, pending) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:  # it has ended: its last words are on the way
                pending, stdin = b"", None


def _hung_up(terminal: int) -> bool:
    """Whether it was a terminal: one that hung up no longer answers as one."""
    import stat

    return stat.S_ISCHR(os.fstat(terminal).st_mode) and os.fstat(terminal).st_rdev != os.makedev(1, 3)


def _write(stdout: int, data: bytes) -> str:
    """Show it all; how it failed, or nothing."""
    while data:
        try:
            data = data[os.write(stdout, data) :]
        except BlockingIOError:
            select.select([], [stdout], [])
        except BrokenPipeError:
            return "unread"
        except OSError:
            return "gone" if _hung_up(stdout) else "unread"
    return ""
