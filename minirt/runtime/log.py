"""A container's log: every line it wrote, with time and stream, bytes kept raw.

The format is CRI's, the one kubelet reads: `2026-01-01T00:00:00.000000000Z stdout F bytes\n`. `F` is a full line; `P` a
part whose newline is still to come: a line over 16 KiB is cut into parts, and a last line without a newline stays one.
So joining the parts gives back exactly the bytes that were written. Taught in chapter 08.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from minirt.runtime import state

MAX_PART = 16384  # bytes of one part, as docker cuts them


class Log:
    """The writing side. A full disk must not stop the container: writing ends there and `error` says why."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._partial = {"stdout": b"", "stderr": b""}
        self.error = ""

    def write(self, stream: str, data: bytes) -> None:
        """Add what came from `stream`; an unfinished line waits for its end."""
        *lines, rest = (self._partial[stream] + data).split(b"\n")
        head = f"{state.now()} {stream} ".encode()
        out = []
        for line in lines:
            for at in range(0, len(line) - MAX_PART, MAX_PART):
                out.append(b"%sP %s\n" % (head, line[at : at + MAX_PART]))
            out.append(b"%sF %s\n" % (head, line[(len(line) - 1) // MAX_PART * MAX_PART if line else 0 :]))
        while len(rest) >= MAX_PART:
            out.append(b"%sP %s\n" % (head, rest[:MAX_PART]))
            rest = rest[MAX_PART:]
        self._partial[stream] = rest
        self._append(b"".join(out))

    def close(self) -> None:
        """Write the last lines that have no newline."""
        for stream, rest in self._partial.items():
            if rest:
                self._append(f"{state.now()} {stream} P ".encode() + rest + b"\n")
        os.close(self._fd)

    def _append(self, data: bytes) -> None:
        while data and not self.error:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError as error:
                self.error = f"log: {error.strerror}"


def read(path: str | os.PathLike[str]) -> Iterator[tuple[str, bytes]]:
    """What the container wrote, as (stream, bytes) in order; nothing where it never started."""
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        for line in file:
            fields = line[:-1].split(b" ", 3)
            if len(fields) == 4 and line.endswith(b"\n"):  # else torn by a crash
                yield fields[1].decode(), fields[3] + (b"\n" if fields[2] == b"F" else b"")
