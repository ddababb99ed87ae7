"""One press of a panel's button: what was done, and how it is told. No widget here: words and markup from events."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minirt.errors import MinirtError
from minirt.notebook import flow
from minirt.notebook.advice import advice
from minirt.notebook.catalogue import Strings
from minirt.notebook.job import Command, Stopped, Work
from minirt.notebook.markup import esc
from minirt.notebook.place import Place
from minirt.trace import Event

_OUTPUT = 16384  # bytes of output kept for showing
_WHOLE = ("Pull complete", "Already exists", "Download complete")


@dataclass
class Press:
    """Times are of the monotonic clock; `before` names what the local cache held, `chunks` are the output's pieces as
    they came. `recorded` is the day of the recording that was played instead, "" for the real thing."""

    command: Command
    before: list[str]
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    events: list[Event] = field(default_factory=list)
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    output: bytes = b""
    code: int | None = None
    error: str = ""
    stopped: bool = False
    chunks: list[tuple[float, bytes]] = field(default_factory=list)
    recorded: str = ""

    @property
    def ms(self) -> str:
        return f"{((self.ended or time.monotonic()) - self.started) * 1000:.0f}"

    def listen(self, events: Iterable[Event]) -> None:
        """Take in events until there are no more."""
        for event in events:
            self.events.append(event)

    def say(self, data: bytes) -> None:
        if len(self.output) < _OUTPUT:
            self.chunks.append((time.monotonic(), data))
        self.output = (self.output + data)[-_OUTPUT:]

    def progress(self, message: dict[str, Any]) -> None:
        take(message, self.layers)

    def carry_out(self, job: Work) -> None:
        """Run the job to its end, whatever that is; for a thread, which has nobody to raise to."""
        try:
            self.code = job.run()
        except Stopped:
            pass
        except MinirtError as error:
            self.error = str(error)
            self.say(f"{error}\n".encode())
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
        self.stopped = job.stopping
        self.ended = time.monotonic()


def take(message: dict[str, Any], layers: dict[str, dict[str, Any]]) -> None:
    """Keep what one progress object of a pull says of a layer."""
    if message.get("id") and "progressDetail" in message:
        layers.setdefault(str(message["id"]), {}).update(message)


def origin(press: Press, text: Strings) -> str:
    """Was the registry asked? Counted from the exchanges there really were; "" where they are not followed."""
    if not press.command.followed:
        return ""
    count = sum((event.box, event.action) == ("registry", "exchange") for event in press.events)
    return text("panel.from_registry", count=count) if count else text("panel.from_cache")


def outcome(press: Press, text: Strings) -> str:
    """The line that closes a press."""
    told = {"ms": press.ms, "code": press.code, "error": press.error, "origin": origin(press, text)}
    if press.stopped:
        return text("panel.stopped" if press.code is None else "panel.stopped_code", **told)
    if press.error:
        return text("panel.failed", **told) + advice(press.error, text)
    kind = "pulled" if press.command.verb == "pull" else "done" if press.command.followed else "ended"
    line = text(f"panel.{kind}", **told)
    if press.recorded:
        return f"{text('recording.shown', date=press.recorded)} {line}"
    return line + advice(press.output.decode(errors="replace"), text) if press.code else line


def picture(press: Press | None, count: int | None, place: Place) -> str:
    """The map after the first `count` events (None: all of them), with its four steps in words below."""
    text = place.text
    if press is None or not press.command.followed:
        return _block(flow.draw(flow.fold((), None, text), text, place.here, place.later))
    events = list(press.events)[:count]
    state = flow.fold(events, press.started, text, press.error if press.ended and count is None else "")
    steps = "".join(f"<li>{esc(line)}</li>" for line in flow.steps(state, text))
    return _block(f"{flow.draw(state, text, place.here, place.later)}<ol>{steps}</ol>")


def story(presses: Sequence[Press], text: Strings) -> str:
    """Below the map: the start state, the layers and the output of the last press, and a table of all presses."""
    if not presses:
        return ""
    press = presses[-1]
    names = ", ".join(press.before)
    parts = [f"<p>{esc(text('panel.holds', names=names) if names else text('panel.empty'))}</p>"]
    if press.recorded:
        parts.append(f'<p><span class="note">{esc(text("recording.shown", date=press.recorded))}</span></p>')
    if press.layers:
        parts.append(bars(press.layers, text))
    if press.output:
        label = esc(text("panel.output"))
        parts.append(f'<pre tabindex="0" role="group" aria-label="{label}">{esc(press.output)}</pre>')
    elif press.ended and press.code == 0:
        parts.append(f"<p>{esc(text('panel.silent'))}</p>")
    if press.ended:
        heads = "".join(
            f'<th scope="col" class="short">{esc(text(f"panel.{key}"))}</th>'
            for key in ("press", "command", "time", "asked")
        )
        rows = "".join(
            f'<tr><td>{number}</td><td><code>{esc(each.command)}</code></td><td class="short">{each.ms} ms</td>'
            f"<td>{esc(origin(each, text))}</td></tr>"
            for number, each in enumerate(presses, 1)
        )
        parts.append(f"<table><caption>{esc(text('panel.history'))}</caption><tr>{heads}</tr>{rows}</table>")
    return _block("".join(parts))


def bars(layers: dict[str, dict[str, Any]], text: Strings) -> str:
    """The layers of a pull, each with its bar: a table, as markup."""
    rows = "".join(_layer(name, message, text) for name, message in list(layers.items()))
    return f"<table><caption>{esc(text('panel.layers'))}</caption>{rows}</table>"


def _layer(name: str, message: dict[str, Any], text: Strings) -> str:
    detail, status = message.get("progressDetail") or {}, str(message.get("status", ""))
    current, total = int(detail.get("current") or 0), int(detail.get("total") or 0)
    size = f"{current / 1000:.0f} / {total / 1000:.0f} kB" if total else ""
    if status in _WHOLE:
        current = total = total or 1
    bar = f'<progress aria-label="{esc(text("panel.layer", id=name))}" max="{total or 1}" value="{current}"></progress>'
    return f"<tr><td><code>{esc(name)}</code></td><td>{bar}</td><td>{esc(status)}</td><td>{esc(size)}</td></tr>"


def _block(inner: str) -> str:
    return f'<div class="mrt">{inner}</div>'
