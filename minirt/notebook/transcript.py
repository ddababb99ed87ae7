"""Look inside: what client and daemon, daemon and registry said over HTTP during a panel's last press.

Shown are the events of `minirt.trace`; credentials were removed where the exchange was published.
"""

from __future__ import annotations

from typing import Any

from ipywidgets import HTML

from minirt.notebook import markup
from minirt.notebook.catalogue import Strings
from minirt.notebook.markup import Shown, esc
from minirt.notebook.panel import Panel
from minirt.notebook.press import Press


class Transcript(Shown, HTML):  # type: ignore[misc]
    """Follows one panel: shows its last press, and each further one as it ends."""

    def __init__(self, text: Strings, panel: Panel) -> None:
        super().__init__()
        self._text = text
        self.plain = text("transcript.fallback")
        self.page = f"<p><em>{esc(self.plain)}</em></p>"
        self.add_class("mrt-panel")
        self._put(f"<p>{esc(text('transcript.empty'))}</p>")
        panel.watch(self._show)
        if panel.presses:
            self._show(panel.presses[-1])

    def _put(self, inner: str) -> None:
        title = esc(self._text("transcript.title"))
        self.value = f'{markup.style(self._text("again"))}<div class="mrt"><p><strong>{title}</strong></p>{inner}</div>'

    def _show(self, press: Press) -> None:
        asked = [event.detail for event in press.events if (event.box, event.action) == ("client", "response")]
        pulled = [event.detail for event in press.events if (event.box, event.action) == ("registry", "exchange")]
        self._put(
            self._part("client", [(d, d.get("path")) for d in asked])
            + self._part("registry", [(d, d.get("url")) for d in pulled])
        )

    def _part(self, name: str, exchanges: list[tuple[dict[str, Any], Any]]) -> str:
        head = f"<p><strong>{esc(self._text(f'transcript.{name}'))}</strong></p>"
        if not exchanges:
            return f"{head}<p>{esc(self._text('transcript.none'))}</p>"
        return head + "".join(self._exchange(detail, target) for detail, target in exchanges)

    def _exchange(self, detail: dict[str, Any], target: Any) -> str:
        line = self._text("transcript.line", method=detail.get("method"), target=target, status=detail.get("status"))
        if "ms" in detail:
            line += self._text("transcript.ms", ms=f"{float(detail['ms']):.1f}")
        bodies = "".join(
            f'<p>{esc(self._text(f"transcript.{key}"))}</p><pre tabindex="0">{esc(_headers(detail[key]))}</pre>'
            for key in ("request", "response")
            if detail.get(key)
        )
        code = f"<code>{esc(line)}</code>"
        return f"<details><summary>{code}</summary>{bodies}</details>" if bodies else f"<p>{code}</p>"


def _headers(headers: dict[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in headers.items())
