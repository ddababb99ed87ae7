"""A source that works ahead: a thread makes pieces while the caller is still busy with the one before.

One layer is a chain: read, hash, inflate, hash again, make files. The first four are C code that lets other threads go
on, so of a single huge layer both halves have a core. At most a few pieces wait: memory is bounded. What goes wrong in
the thread is raised where the piece would have come. Taught in chapter 04.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator

_PIECES = 8  # that wait, of a megabyte each: on a busy machine each hand-over waits its turn


@contextlib.contextmanager
def ahead(source: Callable[[], bytes]) -> Iterator[Callable[[], bytes]]:
    """The same source, for one reader; after the block the thread is gone and `source` may be used again.

    Pieces that were made and not taken are lost. On one processor it is just the source.
    """
    if len(os.sched_getaffinity(0)) < 2:
        yield source
        return
    line: queue.Queue[bytes | BaseException] = queue.Queue(_PIECES)
    over = threading.Event()
    last: bytes | BaseException | None = None

    def work() -> None:
        piece: bytes | BaseException = b"-"
        while piece and not isinstance(piece, BaseException) and not over.is_set():
            try:
                piece = source()
            except BaseException as error:
                piece = error
            line.put(piece)

    def taken() -> bytes:
        nonlocal last
        if last is None:
            piece = line.get()
            if piece and not isinstance(piece, BaseException):
                return piece
            last = piece  # it is the last: whoever asks again gets it again
        if isinstance(last, BaseException):
            raise last
        return b""

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        over.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                line.get(timeout=0.01)  # it may wait for room
        thread.join()
