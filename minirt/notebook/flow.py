"""The lecture's picture, drawn from what happened: client, daemon, local cache, registry, image, container.

`fold` turns a run's events (`minirt.trace`) into a `Flow`: which box did what, which arrow was walked, when each of the
four steps was reached. `draw` makes the SVG, `steps` the same in words; nothing here knows a widget. State is never
told by colour alone: each box carries a sign and a word. Taught in chapter 04, shown in every chapter.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from minirt.notebook.catalogue import Strings
from minirt.notebook.markup import esc
from minirt.trace import Event

# box: left, top of a rectangle; between two that are framed an arrow's words have their room
_PLACES = {
    "client": (18, 34), "daemon": (256, 34), "cache": (494, 34), "registry": (732, 34),
    "container": (256, 196), "image": (494, 196),
}  # fmt: skip
_WIDE, _HIGH = 148, 78
# arrow: its line, the point and direction of its head, where its label stands and how it is anchored
_ARROWS = {
    "request": ("M170 73H236", (244, 73, 0), (211, 64, "middle")),
    "look-up": ("M408 73H474", (482, 73, 0), (449, 64, "middle")),
    "ask": ("M652 73H714", (722, 73, 0), (687, 64, "middle")),
    "keep": ("M806 112V235H660", (652, 235, 180), (798, 176, "end")),
    "yes": ("M568 118V180", (568, 188, 90), (576, 158, "start")),
    "files": ("M490 235H422", (414, 235, 180), (452, 226, "middle")),
    "create": ("M330 112V180", (330, 188, 90), (338, 158, "start")),
}
_FILLS = {"now": "#0b5cad", "done": "#1b6e3c", "failed": "#a8321f"}
_SIGNS = {"now": "\u25b6", "done": "\u2713", "failed": "\u2717", "skipped": "\u2013", "idle": "", "later": ""}


@dataclass
class Flow:
    """One run, or as much of it as has happened. `reached` is in seconds since the press, by step (1 to 4)."""

    box: dict[str, str] = field(default_factory=lambda: dict.fromkeys(_PLACES, "idle"))
    note: dict[str, str] = field(default_factory=lambda: dict.fromkeys(_PLACES, ""))
    walked: set[str] = field(default_factory=set)
    reached: dict[int, float] = field(default_factory=dict)
    exchanges: int = 0
    found: bool | None = None
    error: str = ""

    def step(self, number: int) -> str:
        """done, now, failed, skipped or idle."""
        if number in self.reached:
            return "done"
        if number == 3 and self.box["registry"] == "skipped":
            return "skipped"
        begun = {3: "ask", 4: "create"}.get(number, "request") in self.walked
        return ("failed" if self.error else "now") if begun else "idle"


def fold(events: Sequence[Event], started: float | None, text: Strings, error: str = "") -> Flow:
    """What `events` amount to. `started` is the press on the monotonic clock, None before it; `error` ended the run."""
    flow = Flow(error=error)
    if started is None:
        return flow
    flow.box["client"], flow.note["client"] = "done", text("flow.note.sent")
    for event in events:
        _take(flow, event, text)
        for number, arrow in enumerate(("request", "look-up", "keep", "files"), 1):
            if arrow in flow.walked:
                flow.reached.setdefault(number, max(0.0, event.at - started))
    if error:
        active = [name for name, state in flow.box.items() if state == "now"] or ["daemon"]
        for name in active:
            flow.box[name], flow.note[name] = "failed", text("flow.note.failed")
    return flow


def _take(flow: Flow, event: Event, text: Strings) -> None:
    box, note, detail = flow.box, flow.note, event.detail
    flow.walked.add("request")
    box["daemon"], note["daemon"] = "done", text("flow.note.asked")
    match event.box, event.action:
        case "cache", "look-up":
            flow.walked.add("look-up")
            if flow.found is None:
                flow.found = bool(detail.get("found"))
                box["cache"] = "done"
                note["cache"] = text("flow.note.found" if flow.found else "flow.note.absent")
        case "registry", _:
            flow.walked |= {"look-up", "ask"}
            box["registry"] = "now"
            flow.exchanges += event.action == "exchange"
            note["registry"] = text("flow.note.exchanges", count=flow.exchanges)
        case "cache", "stored":
            flow.walked.add("keep")
            box["cache"], note["cache"] = "done", text("flow.note.kept")
            if box["registry"] == "now":
                box["registry"] = "done"
        case "image", "unpacked":
            box["image"], note["image"] = "done", text("flow.note.unpacked")
        case "container", "create":
            flow.walked.add("create")
            box["container"], note["container"] = "now", text("flow.note.created")
            if not flow.exchanges:
                flow.walked.add("yes")
                box["registry"], note["registry"] = "skipped", text("flow.note.skipped")
                box["image"], note["image"] = "done", text("flow.note.ready")
        case "container", "start":
            flow.walked.add("files")
            box["container"], note["container"] = "now", text("flow.note.running")
        case "container", "exit":
            box["container"], note["container"] = "done", text("flow.note.exit", code=detail.get("exit_code", "?"))


def steps(flow: Flow, text: Strings) -> list[str]:
    """The four steps as sentences with their state and real time: the map's text alternative. Plain text."""
    lines = []
    for number in range(1, 5):
        state = text(f"flow.state.{flow.step(number)}")
        if number in flow.reached:
            state += text("flow.at", ms=f"{flow.reached[number] * 1000:.1f}")
        lines.append(f"{text(f'flow.step.{number}')} {state}")
    return lines


def draw(flow: Flow, text: Strings, here: Collection[str] = (), later: Collection[str] = ()) -> str:
    """The SVG. `here` are this chapter's boxes, `later` those no chapter has shown yet."""
    alt = esc(" ".join([text("flow.title"), *steps(flow, text)]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 290" width="900" height="290" role="img" '
        f'aria-label="{alt}" font-family="system-ui,sans-serif" font-size="13">'
        '<rect width="900" height="290" rx="8" fill="var(--jp-layout-color1,#ffffff)"/>'
    ]
    parts += [_arrow(name, name in flow.walked, text) for name in _ARROWS]
    parts += [_box(name, "later" if name in later else flow.box[name], flow.note[name], here, text) for name in _PLACES]
    return "".join(parts) + "</svg>"


def _arrow(name: str, walked: bool, text: Strings) -> str:
    line, (x, y, turn), (label_x, label_y, anchor) = _ARROWS[name]
    colour = "var(--jp-ui-font-color0,#1a1a1a)" if walked else "#76818c"
    width, dash = ("3", "") if walked else ("1.5", ' stroke-dasharray="5 4"')
    weight = ' font-weight="bold"' if walked else ""
    return (
        f'<path d="{line}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>'
        f'<path d="M0 0L-11 -6V6Z" fill="{colour}" transform="translate({x} {y}) rotate({turn})"/>'
        f'<text x="{label_x}" y="{label_y}" text-anchor="{anchor}" fill="var(--jp-ui-font-color0,#1a1a1a)"{weight}>'
        f"{esc(text(f'flow.arrow.{name}'))}</text>"
    )


def _box(name: str, state: str, note: str, here: Collection[str], text: Strings) -> str:
    x, y = _PLACES[name]
    fill = _FILLS.get(state, "var(--jp-layout-color1,#ffffff)")
    ink = "#ffffff" if state in _FILLS else "#6b7580" if state == "later" else "var(--jp-ui-font-color0,#1a1a1a)"
    dash = ' stroke-dasharray="6 4"' if state in ("skipped", "later") else ""
    middle = x + _WIDE // 2
    parts = [
        f'<rect x="{x}" y="{y}" width="{_WIDE}" height="{_HIGH}" rx="8" fill="{fill}" stroke="{ink}"'
        f' stroke-width="1.5"{dash}/>'
    ]
    if name in here:
        below = any(y > top for _left, top in _PLACES.values())  # an arrow comes down to its middle
        at, anchor = (x - 10, "start") if below else (middle, "middle")
        parts.append(
            f'<rect x="{x - 5}" y="{y - 5}" width="{_WIDE + 10}" height="{_HIGH + 10}" rx="11" fill="none"'
            f' stroke="#d9730d" stroke-width="3"/><text x="{at}" y="{y - 12}" text-anchor="{anchor}" font-size="12"'
            f' fill="var(--jp-ui-font-color0,#1a1a1a)">{esc(text("flow.here"))}</text>'
        )
    sign = f"{_SIGNS[state]} " if _SIGNS[state] else ""
    rows = ((30, "14", ' font-weight="bold"', text(f"flow.box.{name}")), (54, "12.5", "", sign + (note or "")))
    for down, size, weight, words in rows:
        parts.append(
            f'<text x="{middle}" y="{y + down}" text-anchor="middle" font-size="{size}"{weight} fill="{ink}">'
            f"{esc(words)}</text>"
        )
    return "".join(parts)
