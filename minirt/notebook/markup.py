"""From text to the page: the one door through which words, names and bytes reach HTML or SVG.

Everything shown comes from an image, a registry, a container or the catalogue, and none of it is trusted: `esc` is
called on each piece where it enters the markup. A widget is shown in three forms at once: the live view, and for a page
without a kernel a stable `text/html` and `text/plain`. The stored page holds only the last two, so they say nothing
that differs from run to run. Diagrams there are `<img>`: an untrusted notebook drops inline SVG.
"""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

VIEW = "application/vnd.jupyter.widget-view+json"
# Control characters have no place in HTML and make an SVG image invalid; a newline and a tab are text.
_CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160), 0xFFFE, 0xFFFF)}
_CONTROL |= {code: "\N{REPLACEMENT CHARACTER}" for code in range(0xD800, 0xE000)}
del _CONTROL[9], _CONTROL[10]


def esc(value: Any) -> str:
    """`value` as text that is safe between tags and inside quoted attributes. Bytes are read as UTF-8, leniently."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return html.escape(text.replace("\r\n", "\n").translate(_CONTROL), quote=True)


def image(svg: str, alt: str) -> str:
    """The drawing as an `<img>`, which also an untrusted notebook shows. `svg` is markup, `alt` plain text."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{esc(alt)}" src="data:image/svg+xml;base64,{data}" style="max-width:100%">'


class Shown:
    """Mixin for widgets: adds the stable forms to the live view. Set `plain` and `page` (markup) in `__init__`."""

    plain: str
    page: str
    model_id: str

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, Any]:
        live = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {"text/plain": self.plain, "text/html": self.page, VIEW: live}


def style(again: str) -> str:
    """The look of all panels, and what replaces a panel whose kernel is gone. `again` is plain text."""
    message = "".join(c if c.isalnum() or c in " .,:" else f"\\{ord(c):06x}" for c in again)
    sheet = (Path(__file__).with_name("static") / "panel.css").read_text(encoding="utf-8")
    return f"<style>{sheet.replace('AGAIN', message)}</style>"
