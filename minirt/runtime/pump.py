"""The copies a shim keeps going: attached input to a process, its output to the log and to whoever is attached.

One poll loop, and no copy holds up another: a source is read only once what it gave has gone on everywhere, so a slow
reader slows the container (as a pipe would) and nothing is kept without bound. The given fds may be anybody's terminal,
so they are never made non-blocking; a write of at most 4 KiB into a pipe that polls writable does not block (pipe(7),
PIPE_BUF). A reader that goes away ends its copy only; the log goes on. Taught in chapter 08.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable

from minirt.runtime.log import Log

_CHUNK = 65536
_WRITE = 4096
_MOST = 1 << 20  # bytes that a pipe holds at most, /proc/sys/fs/pipe-max-size: who still writes does not keep us


class Sink:
    """Where bytes go: what is still `pending` for it, and why it stopped where its reader did not just leave."""

    def __init__(self, fd: int, name: str = "") -> None:
        self.fd: int | None = fd
        self.pending = b""
        self.error = ""
        self._name = name

    def write(self) -> None:
        """Pass on some of what is pending."""
        if self.fd is None:
            return
        try:
            self.pending = self.pending[_write(self.fd, self.pending[:_WRITE]) :]
        except BlockingIOError:
            return  # somebody else's non-blocking terminal: the poll says when
        except OSError as error:
            if self._name and error.errno not in (errno.EPIPE, errno.EIO):
                self.error = f"write /dev/{self._name}: {(error.strerror or '').lower()}"
            self.close()

    def close(self) -> None:
        """Nobody reads this any more."""
        if self.fd is not None:
            os.close(self.fd)
        self.fd, self.pending = None, b""


class Copy:
    """One source and its sinks. `stream` is the log's name for output, empty for input; `source` is None once over."""

    def __init__(self, source: int, sinks: list[Sink], stream: str = "", log: Log | None = None) -> None:
        self.source: int | None = source
        self.sinks = sinks
        self._stream, self.log = stream, log

    @property
    def is_input(self) -> bool:
        return not self._stream

    @property
    def busy(self) -> bool:
        return any(sink.pending for sink in self.sinks)

    def read(self) -> int:
        """Take one chunk from the source; how many bytes, 0 at its end."""
        try:
            data = os.read(self.source, _CHUNK) if self.source is not None else b""
        except BlockingIOError:
            return 0
        except OSError:  # a terminal that hung up
            data = b""
        if not data:
            self.close()
        elif self.log:
            self.log.write(self._stream, data)
        for sink in self.sinks:
            if sink.fd is not None:
                sink.pending += data
        return len(data)

    def drain(self) -> None:
        """Take what the source still holds, and leave it: whoever holds its other end now writes for nobody."""
        taken = 0
        if self.source is not None:
            os.set_blocking(self.source, False)
            while taken < _MOST and (count := self.read()):
                taken += count
        self.close()

    def close(self) -> None:
        if self.source is not None:
            os.close(self.source)
        self.source = None


class Pump:
    """All copies, and other descriptors that are waited for: `watched[fd]()` is called when it can be read."""

    def __init__(self) -> None:
        self.copies: list[Copy] = []
        self.watched: dict[int, Callable[[], None]] = {}
        self.after: dict[Copy, Callable[[], None]] = {}  # called once a copy's last byte has been handed on

    def turn(self) -> None:
        """Wait until something can go on, and let it."""
        masks: dict[int, int] = dict.fromkeys(self.watched, select.POLLIN)
        for copy in self.copies:
            for sink in copy.sinks:
                if sink.fd is not None:  # 0: tells when the reader goes
                    masks[sink.fd] = masks.get(sink.fd, 0) | (select.POLLOUT if sink.pending else 0)
            if copy.source is not None and not copy.busy:
                masks[copy.source] = masks.get(copy.source, 0) | select.POLLIN
        poll = select.poll()
        for fd, mask in masks.items():
            poll.register(fd, mask)
        ready = dict(poll.poll())
        for copy in list(self.copies):
            reads = copy.source in ready and not copy.busy
            for sink in copy.sinks:
                self._write(sink, ready.get(sink.fd, 0) if sink.fd is not None else 0)
            copy.sinks = [sink for sink in copy.sinks if sink.fd is not None or sink.error]
            if copy.is_input and not copy.sinks:
                copy.close()  # nobody takes it: what is left of it stays where it is
            elif reads and copy.source is not None:
                copy.read()
        for copy in [copy for copy in self.copies if copy.source is None and not copy.busy]:
            self.copies.remove(copy)
            if over := self.after.pop(copy, None):
                over()
        for fd in ready:
            if fd in self.watched:
                self.watched[fd]()

    def _write(self, sink: Sink, events: int) -> None:
        if sink.pending and events & select.POLLOUT:
            # Asked again: stdout and stderr may be one pipe, and what the first of them wrote has filled it.
            if _events(sink.fd, select.POLLOUT) & select.POLLOUT:
                sink.write()
        elif events & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            sink.close()


def _events(fd: int | None, wanted: int, timeout: int | None = 0) -> int:
    """What poll(2) says of one descriptor; `timeout` in milliseconds, None waits."""
    poll = select.poll()
    if fd is not None:
        poll.register(fd, wanted)
    return dict(poll.poll(timeout)).get(fd or 0, 0)


def _write(fd: int, data: bytes) -> int:
    """Write; without waiting where the kernel can be told so (pipes, from 6.5), for others may fill it meanwhile."""
    try:
        return os.pwritev(fd, [data], -1, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    return os.write(fd, data)


def flush(sinks: list[Sink]) -> None:
    """Hand over the last output, for as long as its reader stays."""
    for sink in sinks:
        while sink.pending and sink.fd is not None:
            _events(sink.fd, select.POLLOUT, None)
            sink.write()
