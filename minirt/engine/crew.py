"""Threads that share work, and what they tell on the way as one stream.

`work` gets a job and `tell`, by which it adds to the stream; `tell` raises Stopped where nobody wants it any
more: another job failed, or whoever reads the stream went away.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Generic, TypeVar

T = TypeVar("T")
E = TypeVar("E")
_LOOK = 0.5  # seconds between looks whether anybody still wants it
_WAIT = 2.0  # seconds for threads at the end; one that waits for somebody else is left behind


class Stopped(Exception):
    """Nobody wants it any more."""


class Crew(Generic[T, E]):
    """`work` is done with every job by at most `most` threads, in the order given.

    `told` and `stopped` may be the caller's own, where others tell into the same stream, or have to know.
    """

    def __init__(
        self,
        work: Callable[[T, Callable[[E], None]], None],
        jobs: list[T],
        most: int,
        told: queue.SimpleQueue[E | BaseException | None] | None = None,
        stopped: threading.Event | None = None,
    ) -> None:
        self._work, self._jobs, self._most = work, list(reversed(jobs)), min(len(jobs), most)
        self._told = told or queue.SimpleQueue()
        self._stopped = stopped or threading.Event()

    def _tell(self, event: E) -> None:
        """Add to the stream. Raises Stopped."""
        if self._stopped.is_set():
            raise Stopped
        self._told.put(event)

    def run(self) -> Iterator[E | None]:
        """Do it; what is told comes out, and None where nothing is for a while. Raises what a job raised first."""
        threads = [
            threading.Thread(target=copy_context().run, args=(self._take,), daemon=True) for _ in range(self._most)
        ]
        for thread in threads:
            thread.start()
        try:
            left, failure = len(threads), None
            while left:
                try:
                    event = self._told.get(timeout=_LOOK)
                except queue.Empty:
                    yield None
                    continue
                if event is None:
                    left -= 1
                elif isinstance(event, BaseException):
                    failure = failure or event
                    self._stopped.set()
                else:
                    yield event
            if failure:
                raise failure
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join(timeout=_WAIT)

    def _take(self) -> None:
        """One thread: take jobs until there are none."""
        try:
            while not self._stopped.is_set():
                try:
                    job = self._jobs.pop()
                except IndexError:
                    break
                self._work(job, self._tell)
        except Stopped:
            pass
        except BaseException as error:
            self._told.put(error)
        finally:
            self._told.put(None)
