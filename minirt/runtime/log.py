"""A container's log: every line it wrote, with time and stream, bytes kept raw.

The format is CRI's, the one kubelet reads: `2026-01-01T00:00:00.000000000Z stdout F bytes\n`. `F` is a full line; `P` a
part whose newline is still to come: a line over 16 KiB is cut into parts, and a last line without a newline stays one.
So joining the parts gives back exactly the bytes that were written. Taught in chapter 08.

With a limit, a file that has reached it is renamed: `log` is the newest, then `log.1`, `log.2`; the oldest is dropped.
Nobody is locked out meanwhile. A reader keeps what it has open, reads it to its end, and goes on with the next newer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from typing import BinaryIO

from minirt.runtime import state

MAX_PART = 16384  # bytes of one part, as docker cuts them
_BLOCK = 65536
_PAUSE = 0.05  # seconds between two looks at a log that is followed
_IDLE = 1.0  # seconds until whoever follows is told that there is nothing
_TRIES = 100  # looks at files that are being renamed under our eyes
StrPath = str | os.PathLike[str]


class Log:
    """The writing side. A full disk must not stop the container: writing ends there and `error` says why.

    `files` of at most `limit` bytes (0: no limit) and one line are kept; with no files at all nothing is.
    """

    def __init__(self, path: str, limit: int = 0, files: int = 1) -> None:
        self._path, self._limit, self._files = path if files else os.devnull, limit, files
        self._partial = {"stdout": b"", "stderr": b""}
        self.error = ""
        self._fd = _open(self._path)
        self._size = os.fstat(self._fd).st_size
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            self._append([b"\n"])  # the writer before us was killed within a line

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
        self._append(out)

    def close(self) -> None:
        """Write the last lines that have no newline."""
        for stream, rest in self._partial.items():
            if rest:
                self._append([f"{state.now()} {stream} P ".encode() + rest + b"\n"])
        os.close(self._fd)

    def _append(self, records: list[bytes]) -> None:
        try:
            while records and not self.error:
                if self._limit and self._size >= self._limit:
                    self._rotate()
                count, size = 0, self._size
                while count < len(records) and not (count and self._limit and size >= self._limit):
                    size += len(records[count])
                    count += 1
                data, self._size = b"".join(records[:count]), size
                del records[:count]
                while data:
                    data = data[os.write(self._fd, data) :]
        except OSError as error:
            self.error = f"log: {error.strerror}"

    def _rotate(self) -> None:
        fresh, last = _open(f"{self._path}.new"), 1
        while last < self._files and os.path.exists(_name(self._path, last)):
            last += 1
        for number in range(min(last, self._files - 1), 0, -1):
            os.rename(_name(self._path, number - 1), _name(self._path, number))
        os.rename(f"{self._path}.new", self._path)
        os.close(self._fd)
        self._fd, self._size = fresh, 0


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _name(path: StrPath, number: int) -> str:
    """0 is the newest."""
    return f"{os.fspath(path)}.{number}" if number else os.fspath(path)


def read(
    path: StrPath,
    streams: Collection[str] = ("stdout", "stderr"),
    tail: int | None = None,
    since: float = 0,
    until: float = 0,
    timestamps: bool = False,
    writer: int | None = None,
) -> Iterator[tuple[str, bytes]]:
    """What the container wrote, as (stream, bytes) in order; nothing where it never started.

    `tail`: only so many of the last records of all streams. `since`, `until`: seconds of the epoch, to the microsecond
    (0: none). `timestamps`: each line begins with its time and a blank. `writer`: a pidfd of who writes: then what it
    adds is waited for until it ends, and ("", b"") is yielded about once a second when there is nothing.
    """
    first, last = _stamp(since), _stamp(until + 1e-6) if until else b"~"
    begun: dict[str, bool] = {}
    for line in _lines(path, tail, writer, until):
        fields = line.split(b" ", 3) if line is not None else []
        if line is None:
            yield "", b""
        elif len(fields) == 4:  # else torn by a crash
            stamp, name, kind, data = fields
            if stamp > last:
                return
            stream = name.decode(errors="replace")
            if stamp >= first and stream in streams:
                if timestamps and not begun.get(stream):
                    data = stamp + b" " + data
                begun[stream] = kind != b"F"
                yield stream, data + (b"\n" if kind == b"F" else b"")


def _stamp(seconds: float) -> bytes:
    """As a line begins, cut to microseconds: a float knows no more."""
    whole, part = divmod(int(max(seconds, 0) * 1_000_000), 1_000_000)
    return (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(min(whole, 253402300799))) + f".{part:06d}").encode()


def _lines(path: StrPath, tail: int | None, writer: int | None, until: float) -> Iterator[bytes | None]:
    """Lines without their newline, oldest first; None where a follower has waited for a second."""
    files, left = _files(path), tail
    for file in reversed(files):
        if left is not None:
            start, found = _last(file, left)
            file.seek(start)
            left -= found
    rest, waited = b"", time.monotonic()
    try:
        while files:
            # In this order: what was written before it was over is read after.
            over = writer is None or state.ended(writer, 0) or 0 < until < time.time()
            newest = len(files) == 1 and (writer is None or _is(path, files[0]))
            while block := files[0].read(_BLOCK):
                *lines, rest = (rest + block).split(b"\n")
                yield from lines
                waited = time.monotonic()
            if not newest:  # nobody writes to it any more
                if len(files) == 1:
                    files += _newer(path, files[0])
                if len(files) > 1:
                    files.pop(0).close()
                    rest = b""
            elif over or writer is None:
                return
            elif time.monotonic() - waited >= _IDLE:
                waited = time.monotonic()
                yield None
            else:
                state.ended(writer, _PAUSE)
    finally:
        for file in files:
            file.close()


def _is(path: StrPath, file: BinaryIO) -> bool:
    """Is it still the newest? Where there is none at this moment, the next look tells."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return True


def _newer(path: StrPath, than: BinaryIO) -> list[BinaryIO]:
    files = _files(path)
    for number, file in enumerate(files):
        if os.path.sameopenfile(file.fileno(), than.fileno()):
            for old in files[: number + 1]:
                old.close()
            return files[number + 1 :]
    return files


def _files(path: StrPath) -> list[BinaryIO]:
    """Those there are, oldest first, as they stood at one moment: not while they are being renamed."""
    for attempt in range(_TRIES):
        files: list[BinaryIO] = []
        number, whole = 0, True
        while os.path.exists(_name(path, number)) or os.path.exists(_name(path, number + 1)):
            try:
                files.append(open(_name(path, number), "rb", buffering=0))  # noqa: SIM115
            except FileNotFoundError:
                whole = False  # for good, where the one who renames was killed
            number += 1
        same = {os.fstat(file.fileno()).st_ino for file in files}
        if not files or (whole and len(same) == len(files) and _is(path, files[0])) or attempt == _TRIES - 1:
            break
        for file in files:
            file.close()
        time.sleep(_PAUSE / 10)
    return files[::-1]


def _last(file: BinaryIO, count: int) -> tuple[int, int]:
    """Where the last `count` lines of the file begin, and how many there are. What has no newline is none yet."""
    end, found = file.seek(0, os.SEEK_END), -1  # the last newline ends a line, each other one begins one
    at = end
    while at and found < count:
        size = min(_BLOCK, at)
        at -= size
        file.seek(at)
        block = file.read(size)
        place = len(block)
        while found < count and (place := block.rfind(b"\n", 0, place)) >= 0:
            found += 1
        if found == count:
            return at + place + 1, count
    return 0, found + 1
