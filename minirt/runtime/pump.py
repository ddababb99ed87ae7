"""The copies a shim keeps going: the given stdin to the container, its stdout and stderr to the log and the given fds.

One poll loop, and no copy holds up another: a source is read only once what it gave has gone on, so a slow reader slows
the container (as a pipe would) and nothing is kept without bound. The given fds may be anybody's terminal, so they are
never made non-blocking; a write of at most 4 KiB into a pipe that polls writable does not block (pipe(7), PIPE_BUF).
A reader that goes away ends its copy only; the log goes on. Taught in chapter 08.
"""

from __future__ import annotations

import errno
import os
import select

from minirt.runtime.log import Log

_CHUNK = 65536
_WRITE = 4096


class Copy:
    """One direction. `stream` is the log's name for it, empty for stdin. `source` and `sink` are None once over."""

    def __init__(self, source: int, sink: int, stream: str = "") -> None:
        self.source: int | None = source
        self.sink: int | None = sink
        self.stream = stream
        self.pending = b""
        self.error = ""  # why output was lost, where its reader did not just leave

    def read(self, log: Log) -> bool:
        """Take one chunk from the source; False at its end."""
        try:
            data = os.read(self.source, _CHUNK) if self.source is not None else b""
        except OSError:  # a terminal that hung up
            data = b""
        if self.stream and data:
            log.write(self.stream, data)
        if not data:
            self.source = None
        self.pending += data if self.sink is not None else b""
        return bool(data)

    def write(self) -> None:
        """Pass on some of what is pending."""
        if self.sink is None:
            return
        try:
            self.pending = self.pending[os.write(self.sink, self.pending[:_WRITE]) :]
        except BlockingIOError:
            return  # somebody else's non-blocking terminal: the poll says when
        except OSError as error:
            if self.stream and error.errno != errno.EPIPE:
                self.error = f"write /dev/{self.stream}: {(error.strerror or '').lower()}"
            self.stop()

    def stop(self) -> None:
        """Nobody reads this any more. Output is still read, for the log; input is left alone."""
        if not self.stream:
            self.source = None
            if self.sink is not None:
                os.close(self.sink)
        self.sink, self.pending = None, b""


def pump(copies: list[Copy], log: Log, pidfd: int) -> None:
    """Copy until init has ended, then take what its streams still hold. Afterwards only `flush` is left to do."""
    while True:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        for copy in copies:
            if copy.sink is not None:
                poll.register(copy.sink, select.POLLOUT if copy.pending else 0)  # 0: tells when the reader goes
            if copy.source is not None and not copy.pending:
                poll.register(copy.source, select.POLLIN)
        ready = dict(poll.poll())
        for copy in copies:
            if copy.sink in ready and copy.sink is not None:
                if copy.pending and ready[copy.sink] & select.POLLOUT:
                    copy.write()
                elif ready[copy.sink] & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                    copy.stop()
            if copy.source in ready and not copy.read(log) and not copy.stream and not copy.pending:
                copy.stop()  # the end of the given stdin: the container's ends too
            elif copy.source is None and not copy.stream and not copy.pending:
                copy.stop()
        if pidfd in ready:
            break
    for copy in copies:
        if not copy.stream:
            copy.stop()
        elif copy.source is not None:
            # All its processes are dead with init: this ends, unless an fd was passed out of the container.
            os.set_blocking(copy.source, False)
            while copy.read(log):
                pass


def flush(copies: list[Copy]) -> None:
    """Hand over the last output, for as long as its reader stays."""
    for copy in copies:
        while copy.pending and copy.sink is not None:
            poll = select.poll()
            poll.register(copy.sink, select.POLLOUT)
            poll.poll()
            copy.write()
