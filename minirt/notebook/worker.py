"""What works behind a widget's buttons: one action at a time, in a thread of its own.

The page stays alive meanwhile. The buttons are disabled while it works and come back whatever happens; what went wrong
is the line that closes it. The program's events are one stream, so of those who listen to it one in a page works.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from minirt.notebook.advice import advice
from minirt.notebook.catalogue import Strings
from minirt.notebook.status import Status

_LISTENING = threading.Lock()


class Worker:
    """`enable(idle)` sets the buttons; `status` gets each line; who `listens` to the program's events works alone."""

    def __init__(self, text: Strings, status: Status, enable: Callable[[bool], None], listens: bool = True) -> None:
        self._text, self._status, self._enable = text, status, enable
        self._lock = _LISTENING if listens else threading.Lock()
        self._thread: threading.Thread | None = None
        self.halt = threading.Event()  # set by who wants the action to end

    def begin(self, action: Callable[[], str]) -> None:
        """Do `action`, unless one is at work; it returns the line that closes it."""
        if not self._lock.acquire(blocking=False):
            self._status.value = self._text("panel.busy")
            return
        self.halt.clear()
        self._enable(False)
        self._status.value = self._text("panel.working")
        self._thread = threading.Thread(target=self._guarded, args=(action,), daemon=True)
        self._thread.start()

    def _guarded(self, action: Callable[[], str]) -> None:
        try:
            line = action()
        except Exception as error:  # whatever it was, the learner reads it and the buttons come back
            line = self._text("worker.failed", error=error) + advice(str(error), self._text, "again")
        self._lock.release()
        self._enable(True)
        self._status.value = line

    def wait(self, timeout: float | None = None) -> None:
        """Until what is at work, if anything, has ended. Raises TimeoutError."""
        if self._thread:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise TimeoutError("it is still at work")
