"""What to press next after a failure that is the machine's and not the learner's: the disk is full, the daemon is gone.

A failure comes as a line, from this process or from the daemon over HTTP, so it is told by its words. Invariant: a
failure that a page teaches (a wrong name, a missing command) gets no advice, for the page itself goes on from there.
"""

from __future__ import annotations

from minirt.notebook.catalogue import Strings

_WORDS = {
    "full": ("no space left on device", "disk quota exceeded"),
    "gone": ("the daemon went away", "the daemon did not start"),
}


def advice(line: str, text: Strings, other: str = "") -> str:
    """A sentence, behind a blank; `other` names the one for any other failure ("": none)."""
    kinds = (kind for kind, marks in _WORDS.items() if any(mark in line.lower() for mark in marks))
    kind = next(kinds, other)
    return f" {text(f'advice.{kind}')}" if kind else ""
