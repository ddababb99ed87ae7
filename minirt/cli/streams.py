"""Our three descriptors on a container's streams, byte by byte: the loop of `run`, `start -a`, `attach` and `exec`.

What the other side does not take yet waits, and meanwhile nothing more is read. Descriptors may be anybody's, so they
are never made non-blocking. Taught in chapters 04 and 08.
"""

from __future__ import annotations

import errno
import os
import select
import stat

from minirt.errors import MinirtError

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Sequence

    from minirt.client.streams import Attached
    from minirt.keys import Keys

_CHUNK = 32768


def carry(attached: Attached, streams: Sequence[int | None], keys: Keys | None = None) -> str:
    """Until the process ends; `streams` are our (stdin, stdout, stderr), None where there is none or it is not given.

    Returns how it ended: `ended`, `detached` (by the keys), `gone` (our terminal), or `unread` (who reads our output
    left). Raises MinirtError where our output could not take what came, once it ended.
    """
    return _Carrier(attached, streams, keys).run()


class _Carrier:
    def __init__(self, attached: Attached, streams: Sequence[int | None], keys: Keys | None) -> None:
        self._attached, self._keys = attached, keys
        self._stdin, *outputs = streams
        self._outputs = dict(zip(("stdout", "stderr"), outputs, strict=True))
        self._pending, self._lost = b"", ""
        if self._stdin is None:
            attached.end_input()

    def run(self) -> str:
        attached = self._attached
        while True:
            ready = {attached.fileno(): select.POLLIN} if attached.waiting else self._ready()
            if ready.get(attached.fileno(), 0) & (select.POLLIN | select.POLLHUP | select.POLLERR):
                how = self._show()
                if how:
                    return how
            if self._pending and ready.get(attached.fileno(), 0) & select.POLLOUT:
                self._pending = self._pending[attached.send(self._pending) :]
            if self._stdin is not None and self._stdin in ready and not self._pending:
                how = self._type(self._stdin)
                if how:
                    return how

    def _ready(self) -> dict[int, int]:
        poll = select.poll()
        poll.register(self._attached.fileno(), select.POLLIN | (select.POLLOUT if self._pending else 0))
        if self._stdin is not None and not self._pending:
            if stat.S_ISREG(os.fstat(self._stdin).st_mode):
                return {self._stdin: select.POLLIN} | dict(poll.poll(0))
            poll.register(self._stdin, select.POLLIN)
        return dict(poll.poll())

    def _show(self) -> str:
        """Pass on what came; how it ended, or nothing."""
        found = self._attached.read()
        if found is None:
            if self._lost:
                raise MinirtError(self._lost)
            return "ended"
        for stream, data in found:
            fd = self._outputs[stream]
            if fd is not None and (how := self._write(stream, fd, data)):
                return how
        return ""

    def _write(self, stream: str, fd: int, data: bytes) -> str:
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:  # somebody else's non-blocking terminal
                select.select([], [fd], [])
            except OSError as error:
                if error.errno == errno.EIO and hung_up(fd):
                    return "gone"
                if error.errno == errno.EPIPE and stream == "stdout":
                    return "unread"
                if error.errno not in (errno.EPIPE, errno.EIO):
                    self._lost = f"write /dev/{stream}: {(error.strerror or '').lower()}"
                self._outputs[stream] = None
                return ""
        return ""

    def _type(self, stdin: int) -> str:
        try:
            data = os.read(stdin, _CHUNK)
        except BlockingIOError:
            return ""
        except OSError:  # EIO: the terminal hung up
            data = b""
        if not data:
            if self._keys and hung_up(stdin):
                return "gone"
            self._stdin = None
            self._attached.end_input()
            return ""
        detached = False
        if self._keys:
            data, detached = self._keys.take(data)
        self._pending = data[self._attached.send(data) :] if data else b""
        return "detached" if detached else ""


def hung_up(fd: int) -> bool:
    """Whether it is a terminal, or was: one that hung up no longer answers as one."""
    found = os.fstat(fd)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev != os.makedev(1, 3)
