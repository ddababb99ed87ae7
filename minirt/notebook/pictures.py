"""The lecture's three pictures of how an image becomes a container, drawn from what there is on this machine now.

    machine   the host's kernel with its resources (disk, network, RAM, CPU), and the processes on it
    disk      the image (file snapshot and start-up command), and how the snapshot reaches the container's disk
    fence     the container's process on the same kernel, fenced off, with its own slice of each resource

Each is an SVG that says the same in its label; nothing is told by colour alone. Taught in chapter 06.
"""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Sequence
from typing import Any

from minirt import units
from minirt.notebook.catalogue import Strings
from minirt.notebook.container import Container
from minirt.notebook.machine import Machine
from minirt.notebook.markup import esc

_INK = "var(--jp-ui-font-color0,#1a1a1a)"
_PAPER = "var(--jp-layout-color1,#ffffff)"
_FILLS = {"now": "#0b5cad", "done": "#1b6e3c", "layer": "#4a5560", "write": "#7a4a00"}
_SHOWN = 4  # layers drawn one by one


def _wide(character: str) -> float:
    return 1.8 if unicodedata.east_asian_width(character) in "WF" else 1.0


def cut(line: str, room: float) -> str:
    """As much of a line as fits, counted in letters of usual width; what is left out is told by an ellipsis."""
    used = 0.0
    for index, character in enumerate(line):
        used += _wide(character)
        if used > room:
            return line[: max(index - 1, 0)] + "\u2026"
    return line


class Sheet:
    """An SVG in the making. All words given to it are plain text."""

    def __init__(self, high: int, label: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {high}" width="900" height="{high}" role="img" '
            f'aria-label="{esc(label)}" font-family="system-ui,sans-serif" font-size="13">'
            f'<rect width="900" height="{high}" rx="8" fill="{_PAPER}"/>'
        ]

    def box(
        self, x: int, y: int, wide: int, high: int, lines: Sequence[str], kind: str = "", bold: bool = True
    ) -> None:
        """A box with centred lines, the first one bold. `kind`: now, done, layer, write, idle (dashed), or plain."""
        ink = "#ffffff" if kind in _FILLS else _INK
        dash = ' stroke-dasharray="6 4"' if kind == "idle" else ""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="7" fill="{_FILLS.get(kind, _PAPER)}" '
            f'stroke="{ink}" stroke-width="1.5"{dash}/>'
        )
        top = y + high / 2 - 9 * (len(lines) - 1) + 4.5
        for number, line in enumerate(lines):
            heavy = bold and number == 0
            self.text(x + wide // 2, top + 18 * number, cut(line, (wide - 10) / 7.1), ink, "middle", heavy)

    def text(self, x: float, y: float, line: str, ink: str = _INK, anchor: str = "start", bold: bool = False) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(f'<text x="{x}" y="{y:g}" text-anchor="{anchor}" fill="{ink}"{weight}>{esc(line)}</text>')

    def arrow(self, x: int, y: int, end: int, walked: bool) -> None:
        """From left to right."""
        width, dash = ("3", "") if walked else ("1.5", ' stroke-dasharray="5 4"')
        self._parts.append(
            f'<path d="M{x} {y}H{end - 10}" fill="none" stroke="{_INK}" stroke-width="{width}"{dash}/>'
            f'<path d="M{end} {y}l-11 -6v12Z" fill="{_INK}"/>'
        )

    def fence(self, x: int, y: int, wide: int, high: int, whole: bool) -> None:
        """A thick border; with gaps where walls are missing."""
        dash = "" if whole else ' stroke-dasharray="14 10"'
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="10" fill="none" stroke="#d9730d" '
            f'stroke-width="5"{dash}/>'
        )

    def __str__(self) -> str:
        return "".join(self._parts) + "</svg>"


def machine(now: Machine, text: Strings, mine: int, seen: Container | None, new: bool) -> str:
    """`mine` is this notebook's pid; `new` marks what the last stage changed."""
    slices = resources(now, text)
    process = seen.process if seen else None
    label = " ".join([text("steps.picture.machine"), text("steps.kernel", kernel=now.kernel), *map(" ".join, slices)])
    sheet = Sheet(196, label)
    sheet.box(14, 14, 280, 48, [text("steps.notebook"), text("steps.pid", pid=mine)])
    if seen and process:
        words = [cut(shlex.join(seen.command), 34), text("steps.pid", pid=process.pid)]
        sheet.box(310, 14, 280, 48, words, "now" if new else "done")
    else:
        sheet.box(310, 14, 280, 48, [text("steps.no-process")], "idle", bold=False)
    sheet.text(606, 43, text("steps.others"))
    sheet.box(14, 74, 872, 34, [text("steps.kernel", kernel=now.kernel)])
    for number, lines in enumerate(slices):
        sheet.box(14 + number * 220, 120, 212, 62, lines)
    return str(sheet)


def resources(now: Machine, text: Strings) -> list[list[str]]:
    """Disk, network, RAM and CPU of the machine: a name and what there is of it."""
    return [
        [text("steps.disk"), text("steps.free", free=units.size(now.disk_free, 3), all=units.size(now.disk, 3))],
        [text("steps.network"), ", ".join(now.interfaces) or "?"],
        [text("steps.ram"), text("steps.free", free=_binary(now.memory_free), all=_binary(now.memory))],
        [text("steps.cpu"), text("steps.cpus", count=now.cpus)],
    ]


def _binary(count: int) -> str:
    return units.size(count, 3, units.BINARY)


def disk(name: str, image: dict[str, Any], seen: Container | None, text: Strings, state: str) -> str:
    """`image` as inspected, {} where it is not here. `state` of the container's disk: idle, now, done, gone."""
    here = bool(image)
    layers = [text("steps.layer", number=n, size=size) for n, size in enumerate(_sizes(image), 1)]
    more = len(layers) - _SHOWN
    if more > 0:
        layers = [*layers[: _SHOWN - 1], text("steps.more", count=more + 1)]
    config = image.get("Config") or {}
    command = shlex.join([*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())])
    copied = bool(seen and not seen.lowers)
    made = state in ("now", "done") and seen is not None
    gone = "steps.no-longer" if state == "gone" else "steps.not-yet"
    how = text("steps.copied" if copied else "steps.laid") if made else text(gone)
    written = units.size(int((seen.inspected if seen else {}).get("SizeRw") or 0))
    top = text("steps.copy" if copied else "steps.write-layer", size=written)
    label = [text("steps.picture.disk"), text("steps.image-here" if here else "steps.image-absent", name=name)]
    label += [*layers, how.replace("|", " "), *[top] * made]
    sheet = Sheet(232, " ".join(label))
    sheet.box(14, 30, 372, 190, [], "" if here else "idle")
    sheet.text(200, 20, cut(text("steps.image", name=name), 50), anchor="middle", bold=True)
    if here:
        sheet.box(28, 40, 344, 36, [text("steps.start-up", command=command or "-")], bold=False)
        for number, line in enumerate(layers):
            sheet.box(28, 184 - 32 * number, 344, 28, [line], "layer", bold=False)
    else:
        sheet.text(200, 130, text("steps.absent"), anchor="middle")
    sheet.arrow(394, 150, 506, made)
    for number, line in enumerate(how.split("|")):
        sheet.text(450, 176 + 17 * number, line.strip(), anchor="middle")
    sheet.box(514, 30, 372, 190, [], "" if made else "idle")
    sheet.text(700, 20, text("steps.container-disk"), anchor="middle", bold=True)
    if made:
        sheet.box(528, 40, 344, 36, [top], "now" if state == "now" else "write", bold=False)
        for number, line in enumerate(layers if not copied else ()):
            sheet.box(528, 184 - 32 * number, 344, 28, [text("steps.below", layer=line)], "layer", bold=False)
    else:
        sheet.text(700, 130, text("steps.removed" if state == "gone" else "steps.no-disk"), anchor="middle")
    return str(sheet)


def _sizes(image: dict[str, Any]) -> list[str]:
    """Of each layer, lowest first, as it was downloaded; "?" where the daemon does not tell."""
    blobs = image.get("Blobs") or ()
    layers = (image.get("RootFS") or {}).get("Layers") or ()
    known = [units.size(int(blob.get("size") or 0), 3) for blob in blobs]
    return known if len(known) == len(layers) else ["?"] * len(layers)


def fence(now: Machine, seen: Container | None, text: Strings, state: str, code: int | None) -> str:
    """`state` of the process: idle, now, done (it ran before this stage) or ended."""
    process = seen.process if seen and state in ("now", "done") else None
    kernel = text("steps.kernel", kernel=now.kernel)
    if seen is None or process is None:
        line = text("steps.ended", code="?" if code is None else code) if state == "ended" else text("steps.no-process")
        sheet = Sheet(236, f"{text('steps.picture.fence')} {line}")
        sheet.box(14, 14, 872, 160, [line], "idle", bold=False)
        sheet.box(14, 188, 872, 34, [kernel])
        return str(sheet)
    whole = all(process.apart(name) for name in ("mnt", "pid", "net"))
    walls = text("steps.fenced" if whole else "steps.unfenced")
    words = [shlex.join(seen.command), text("steps.pids", inside=process.inside, outside=process.pid)]
    slices = slices_of(seen, now, text)
    label = " ".join([text("steps.picture.fence"), *words, walls, *(" ".join(lines) for lines in slices)])
    sheet = Sheet(236, label)
    sheet.box(14, 34, 130, 130, [text("steps.elsewhere")], bold=False)
    sheet.fence(160, 28, 724, 148, whole)
    sheet.text(522, 18, walls, anchor="middle", bold=True)
    sheet.box(176, 40, 692, 50, words, "now" if state == "now" else "done")
    for number, lines in enumerate(slices):
        sheet.box(176 + number * 174, 98, 170, 68, lines)
    sheet.box(14, 188, 872, 34, [kernel])
    return str(sheet)


def slices_of(seen: Container, now: Machine, text: Strings) -> list[list[str]]:
    """What the container's process has of each resource: name, whose it is, how much."""
    process, figures, (memory, cpus, _pids) = seen.process, seen.figures, seen.limits
    assert process is not None
    written = units.size(int(seen.inspected.get("SizeRw") or 0))
    own, shared = text("steps.own"), text("steps.shared")
    used = figures.memory if figures else process.memory
    most = text("steps.at-most", size=_binary(memory)) if memory else text("steps.unlimited")
    cpu = text("steps.cpus", count=f"{cpus:g}") if cpus else text("steps.cpus", count=now.cpus)
    return [
        [text("steps.disk"), own, text("steps.written", size=written)],
        [text("steps.network"), own if process.apart("net") else shared, ", ".join(process.interfaces) or "?"],
        [text("steps.ram"), text("steps.in-use", size=_binary(used)), most],
        [text("steps.cpu"), cpu, text("steps.used", ms=f"{figures.cpu / 1e6:.0f}") if figures else most],
    ]
