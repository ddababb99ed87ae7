"""The layer stack: containers' read-only layers, shared where they are the same, and each one's write layer on top.

`LayerStack("box")` works where the `minirt` command does; with two names, the two stand side by side. The drawing is
made from what daemon and kernel say when its button is pressed. Taught in chapter 06.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ipywidgets import HTML, HBox

from minirt.errors import InvalidInput, NotFound
from minirt.notebook import markup, overlay
from minirt.notebook.catalogue import Strings
from minirt.notebook.looking import Looking, show, table
from minirt.notebook.markup import esc
from minirt.notebook.overlay import Overlay
from minirt.notebook.place import Place

MOST = 4  # containers side by side
CHANGES = 200  # rows
_LOW, _TOP = 3, 4  # of many layers, these are drawn
_WIDE, _HIGH, _GAP, _EDGE = 900, 50, 8, 12
_INK, _PAPER = "var(--jp-ui-font-color0,#1a1a1a)", "var(--jp-layout-color1,#ffffff)"


class LayerStack(Looking):
    """`containers` are names or ids, one to four. `drawing` and `tables` hold the live view, `again` is its button."""

    def __init__(self, *containers: str, place: Place | None = None) -> None:
        self._place = place or Place()
        text = self._place.text
        if not 1 <= len(containers) <= MOST:
            raise InvalidInput(text("stack.many", most=MOST, count=len(containers)))
        super().__init__(text)
        self._names = containers
        self.again = self.button(text("stack.again"), self._look, "primary")
        self.drawing, self.tables = HTML(), HTML()
        names = ", ".join(containers)
        title = f"<p><strong>{esc(text('stack.title', names=names))}</strong></p><p>{esc(text('stack.what'))}</p>"
        head = self.head(title)
        self.children = [head, HBox([self.again]), self.status, self.drawing, self.tables]

        said, scheme = text("stack.fallback", names=names, again=self.again.description), text("stack.scheme")
        self.plain = f"{said} {scheme} {text('stack.alt.scheme', names=names)}"
        picture = markup.image(_scheme(containers, text), f"{scheme} {text('stack.alt.scheme', names=names)}")
        self.page = f"<p><em>{esc(said)}</em></p><p>{esc(scheme)}</p>{picture}"
        self.status.value = self.attempt(self._look)

    def _look(self) -> str:
        stacks, missing = [], []
        for name in self._names:
            try:
                stacks.append(overlay.look(self._place, name))
            except NotFound:
                missing.append(name)
        names = ", ".join(stack.name for stack in stacks)
        show(self.drawing, draw(stacks, self.text) + self._shared(stacks, names) if stacks else "")
        show(self.tables, "".join(_tables(stack, self.text, len(stacks) == 1) for stack in stacks))
        if missing:
            return self.text("stack.none", name=", ".join(missing), again=self.again.description)
        return self.text("stack.looked", names=names)

    def _shared(self, stacks: list[Overlay], names: str) -> str:
        if len(stacks) < 2:
            return ""
        common = set.intersection(
            *({diff for diff, _ in stack.layers} if not stack.copied else set() for stack in stacks)
        )
        said = self.text("stack.alike" if common else "stack.unalike", names=names, count=len(common))
        return f"<p>{esc(said)}</p>"


def _tables(stack: Overlay, text: Strings, alone: bool) -> str:
    """How it is mounted, and what was written."""
    name = esc(text("stack.changes.title", name=stack.name))
    if not stack.changes:
        changes = f"<p><strong>{name}</strong></p><p>{esc(text('stack.changes.empty'))}</p>"
    else:
        rows = [
            [esc(text(f"stack.changes.{kind}")), f"<code>{esc(path[:300])}</code>"]
            for kind, path in stack.changes[:CHANGES]
        ]
        heads = [esc(text("stack.changes.kind")), esc(text("stack.changes.path"))]
        rest = len(stack.changes) - CHANGES
        more = text("stack.changes.more", count=rest) + " " if rest > 0 else ""
        changes = table(name, heads, rows) + f"<p><em>{esc(more + text('stack.changes.folder'))}</em></p>"
    return changes + _mount(stack, text, alone)


def _mount(stack: Overlay, text: Strings, opened: bool) -> str:
    parts = [f"<p>{esc(text(f'stack.mount.{stack.driver}'))}</p>"]
    recorded = "unreadable" if stack.running else "recipe"
    if stack.mount and not stack.copied:
        kind, words = stack.mount
        options = overlay.split(words)
        parts.append(f"<p>{esc(text('stack.mount.kernel', pid=stack.pid, type=kind))}</p>{_options(options, text)}")
        # By short links, as an older kernel's option page is small, or in a program of its own: no folder is named.
        recorded = "" if any(value.startswith("/") for _, value in options) else "unnamed"
    if recorded and stack.options:
        said = text(f"stack.mount.{recorded}", error=stack.refused)
        parts.append(f"<p>{esc(said)}</p>{_options(stack.options, text)}")
    title = esc(text("stack.mount.title", name=stack.name))
    return f"<details{' open' * opened}><summary>{title}</summary>{''.join(parts)}</details>"


def _options(options: Sequence[tuple[str, str]], text: Strings) -> str:
    meanings = text.table("stack.mount.means")
    rows = [
        [
            f'<code class="key">{esc(name[:80])}</code>',
            f"<code>{esc(value[:4000])}</code>" if value else "",
            esc(meanings.get(name.rstrip("+"), meanings["other"])),  # `lowerdir+` is one layer of a list
        ]
        for name, value in options
    ]
    return table("", [esc(text(f"stack.mount.{head}")) for head in ("option", "value", "meaning")], rows)


# The drawing


@dataclass(frozen=True)
class _Box:
    """A box over the columns `first` to `last`, at `level` from below (0: the lowest); `lines` are plain text."""

    first: int
    last: int
    level: int
    lines: tuple[str, str]
    writable: bool = False
    dashed: bool = False


def draw(stacks: Sequence[Overlay], text: Strings) -> str:
    """The SVG: a column for each container; a layer that neighbours share at the same height is one box."""
    most = max(len(stack.layers) for stack in stacks)
    numbers = list(range(1, most + 1))
    left_out = numbers[_LOW:-_TOP] if most > _LOW + _TOP + 1 else []
    boxes, tops = [], [0] * len(stacks)
    for level, number in enumerate([n for n in numbers if n not in left_out[1:]]):
        for first, last in _groups(stacks, number):
            owners = stacks[first : last + 1]
            for column in range(first, last + 1):
                tops[column] = level + 1
            if number in left_out[:1]:
                inside = sum(n <= len(owners[0].layers) for n in left_out)
                boxes.append(_Box(first, last, level, (text("stack.draw.more", count=inside), ""), dashed=True))
                continue
            diff_id, step = owners[0].layers[number - 1]
            names = ", ".join(stack.name for stack in owners)
            key = "shared" if len(owners) > 1 else "layer"
            said = f"{diff_id[:19]}… {step}".strip()
            boxes.append(_Box(first, last, level, (text(f"stack.draw.{key}", number=number, names=names), said)))
    heads = []
    for column, stack in enumerate(stacks):
        if stack.copied:
            title = text("stack.draw.copy", count=len(stack.layers))
            boxes.append(_Box(column, column, 0, (title, _written(stack, text)), writable=True))
        else:
            title = text("stack.draw.write", name=stack.name)
            boxes.append(_Box(column, column, tops[column], (title, _written(stack, text)), writable=True))
        heads.append((text("stack.draw.container", name=stack.name, state=_state(stack, text)), tops[column] + 1))
    return _svg(boxes, heads, " ".join(_alt(stack, text) for stack in stacks))


def _groups(stacks: Sequence[Overlay], number: int) -> list[tuple[int, int]]:
    """Runs of neighbouring columns whose layer `number` is the same one, as (first, last); copies have none."""
    found: list[tuple[int, int]] = []
    for column, stack in enumerate(stacks):
        if stack.copied or number > len(stack.layers):
            continue
        last = found[-1] if found else None
        if last and last[1] == column - 1 and stacks[column - 1].layers[number - 1][0] == stack.layers[number - 1][0]:
            found[-1] = last[0], column
        else:
            found.append((column, column))
    return found


def _state(stack: Overlay, text: Strings) -> str:
    return text("stack.state.running" if stack.running else "stack.state.stopped")


def _written(stack: Overlay, text: Strings) -> str:
    added, changed, deleted = (stack.count(kind) for kind in (overlay.ADDED, overlay.CHANGED, overlay.DELETED))
    return text("stack.draw.write_files", added=added, changed=changed, deleted=deleted)


def _alt(stack: Overlay, text: Strings) -> str:
    """The column in words."""
    told = {
        "name": stack.name,
        "state": _state(stack, text),
        "files": _written(stack, text),
        "count": len(stack.layers),
    }
    layers = ", ".join(f"{number} {diff_id[:19]}" for number, (diff_id, _) in enumerate(stack.layers[:20], 1))
    return text("stack.alt.copy" if stack.copied else "stack.alt.column", layers=layers, **told)


def _scheme(names: Sequence[str], text: Strings) -> str:
    """The same picture without live data: what a stored page shows."""
    boxes = [_Box(column, column, 0, (text("stack.draw.layers"), "")) for column in range(len(names))]
    boxes += [
        _Box(column, column, 1, (text("stack.draw.write", name=name), text("stack.draw.write_unknown")), writable=True)
        for column, name in enumerate(names)
    ]
    return _svg(boxes, [(name, 2) for name in names], text("stack.alt.scheme", names=", ".join(names)))


def _svg(boxes: Sequence[_Box], heads: Sequence[tuple[str, int]], alt: str) -> str:
    """`heads` are the columns' titles, each with the level it stands at."""
    levels = max(level for _, level in heads)
    high = _EDGE * 2 + levels * (_HIGH + _GAP) + 22
    step = (_WIDE - 2 * _EDGE + _GAP) / len(heads)

    def top(level: int) -> float:
        return high - _EDGE - (level + 1) * (_HIGH + _GAP) + _GAP

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {high}" width="{_WIDE}" height="{high}" '
        f'role="img" aria-label="{esc(alt)}" font-family="system-ui,sans-serif" font-size="13">'
        f'<rect width="{_WIDE}" height="{high}" rx="8" fill="{_PAPER}"/>'
    ]
    for column, (title, level) in enumerate(heads):
        middle = _EDGE + step * column + (step - _GAP) / 2
        parts.append(_words(middle, top(level - 1) - 10, title, _INK, step - _GAP, 14, bold=True))
    for box in boxes:
        x, wide = _EDGE + step * box.first, step * (box.last - box.first + 1) - _GAP
        y, ink = top(box.level), "#ffffff" if box.writable else _INK
        fill = "#0b5cad" if box.writable else _PAPER
        dash = ' stroke-dasharray="6 4"' if box.dashed else ""
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{_HIGH}" rx="6" fill="{fill}" stroke="{_INK}"'
            f' stroke-width="{3 if box.last > box.first else 1.5}"{dash}/>'
        )
        first, second = box.lines
        middle = x + wide / 2
        parts.append(_words(middle, y + (21 if second else 30), first, ink, wide - 16, 14, bold=True))
        parts.append(_words(middle, y + 39, second, ink, wide - 16, 12.5))
    return "".join(parts) + "</svg>"


def _words(x: float, y: float, words: str, ink: str, room: float, size: float, bold: bool = False) -> str:
    """One centred line, cut to the `room` it has."""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" font-size="{size}" fill="{ink}"{weight}>'
        f"{esc(_cut(words, room / (size * (0.56 if bold else 0.53))))}</text>"
    )


def _cut(words: str, room: float) -> str:
    """As much as fits in `room` letters of Latin width; an East Asian one takes almost two."""
    used = 0.0
    for at, letter in enumerate(words):
        used += 1.75 if unicodedata.east_asian_width(letter) in "WF" else 1
        if used > room:
            return words[: max(at - 1, 0)] + "…"
    return words
