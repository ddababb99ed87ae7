"""A pull or a push on the screen: docker's lines, or on a terminal a bar per layer.

Input is the Engine API's progress objects: `{"status", "id", "progressDetail": {"current", "total"}}` in bytes, one a
change. Not on a terminal, each change of state is a line and the byte counts between are left out. On a terminal a
block of lines, one a layer, is redrawn in place. Layers that are done at its top are let go of and scroll away; where
more are left than the screen has rows, the rest is counted in one line; the lines fit the width at every redraw.
"""

from __future__ import annotations

import os
import time

from minirt import units
from minirt.cli.console import clean

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TextIO

_FINAL = ("Pull complete", "Already exists", "Pushed", "Layer already exists", "Skipped foreign layer")
_FRAME = 0.06  # seconds between redraws
_BAR = 50  # docker's, where there is room
_SPAN = 2.0  # seconds a speed is measured over


def show(objects: Iterable[dict[str, Any]], stream: TextIO, quiet: bool = False, what: str = "pull") -> None:
    """Consume a pull or a push, showing it. Raises what it raises."""
    if quiet:
        for _ in objects:
            pass
        return
    terminal = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    screen = Bars(stream) if terminal else Lines(stream)
    try:
        for item in objects:
            if "status" in item:  # the last of a push is for programs
                screen.update(item)
    except KeyboardInterrupt:
        screen.close()
        done = "downloaded" if what == "pull" else "uploaded"
        print(f"minirt: interrupted; what is {done} stays, the next {what} goes on from there", file=stream, flush=True)
        raise
    finally:
        screen.close()


class Lines:
    """A line for each change of state."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: dict[str, str] = {}

    def update(self, item: dict[str, Any]) -> None:
        """Show one progress object."""
        status, layer = item["status"], item.get("id")
        if _counts(item) or (layer and self._last.get(layer) == status):
            return
        if layer:
            self._last[layer] = status
        print(clean(f"{layer}: {status}" if layer else status), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is held back."""


class _Layer:
    """One layer's line: what it does, and how fast."""

    def __init__(self) -> None:
        self.status = ""
        self._current, self._total = 0, 0
        self._marks: list[tuple[float, int]] = []

    def update(self, item: dict[str, Any]) -> None:
        if item["status"] != self.status:
            self._marks = []
        self.status = item["status"]
        self._current, self._total = _counts(item) or (0, 0)
        now = time.monotonic()
        self._marks = [mark for mark in self._marks if now - mark[0] < _SPAN] + [(now, self._current)]

    @property
    def final(self) -> bool:
        return self.status in _FINAL or self.status.startswith("Mounted from ")

    def line(self, name: str, columns: int) -> str:
        """The line in at most that many columns: without bar, then without speed, where it is narrow."""
        head = clean(f"{name}: {self.status}")
        if not self._current and not self._total:
            return head[:columns]
        count = units.size(self._current).rjust(8)
        if self._total >= self._current:
            count += "/" + units.size(self._total)
        speed = self._speed()
        room = columns - len(head) - len(count) - 17
        if self._total >= self._current and room >= 10:
            bar = min(_BAR, room)
            done = bar * self._current // self._total
            count = f"[{'=' * done}{'>' * (done < bar)}{' ' * (bar - done - 1)}] {count}"
        line = f"{head} {count}"
        if len(line) > columns:
            line = f"{name} {100 * self._current // max(self._total, self._current)}%"
        return (line + speed if len(line + speed) <= columns else line)[:columns]

    def _speed(self) -> str:
        (begin, before), (end, after) = self._marks[0], self._marks[-1]
        return f"  {units.size((after - before) / (end - begin), 3)}/s" if end - begin > 0.2 and after > before else ""


class Bars:
    """The block of layers at the bottom of a terminal. Invariant: the cursor is at the start of the line below it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._layers: dict[str, _Layer] = {}
        self._drawn = 0  # lines of the block on the screen
        self._next = 0.0

    def update(self, item: dict[str, Any]) -> None:
        """Show one progress object."""
        layer, status = item.get("id"), item["status"]
        if not layer or status.startswith("Pulling from "):
            self.close()
            print(clean(f"{layer}: {status}" if layer else status), file=self._stream, flush=True)
            return
        self._layers.setdefault(layer, _Layer()).update(item)
        # What is waited for is shown at once: nothing else may come for a second.
        if time.monotonic() >= self._next or status.startswith("Retrying in "):
            self._draw()

    def close(self) -> None:
        """Leave the last state of every layer on the screen."""
        if self._layers:
            self._draw(whole=True)
            self._layers, self._drawn = {}, 0

    def _draw(self, whole: bool = False) -> None:
        columns, rows = _terminal(self._stream)
        lines = []
        while self._layers and (whole or next(iter(self._layers.values())).final):
            name = next(iter(self._layers))
            lines.append(self._layers.pop(name).line(name, columns - 1))
        left = list(self._layers)
        room = max(rows - 2, 1)
        if len(left) > room:
            left = [name for name in left if not self._layers[name].final]
            left = left[: max(room - 1, 1)] if len(left) > room else left
        block = [self._layers[name].line(name, columns - 1) for name in left]
        hidden = len(self._layers) - len(left)
        if hidden:
            done = sum(layer.final for layer in self._layers.values())
            block.append(f"… {hidden} more layers, {done} complete"[: columns - 1])
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        # One write a frame: a terminal never shows half of it.
        self._stream.write(up + "".join(f"\r{line}\x1b[K\n" for line in lines + block) + "\x1b[J")
        self._stream.flush()
        self._drawn = len(block)
        self._next = time.monotonic() + _FRAME


def _counts(item: dict[str, Any]) -> tuple[int, int] | None:
    """Bytes so far and in all, where the object has any."""
    detail = item.get("progressDetail") or {}
    current, total = int(detail.get("current") or 0), int(detail.get("total") or 0)
    return (current, total) if current or total else None


def _terminal(stream: TextIO) -> tuple[int, int]:
    """Columns and rows, now."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except OSError:
        return 80, 24
    return size.columns or 80, size.lines or 24
