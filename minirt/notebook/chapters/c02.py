"""Chapter 02, what Docker is: the picture of the freight container, and an image carried to another server."""

from __future__ import annotations

from minirt.client import Client
from minirt.errors import NotFound
from minirt.notebook.catalogue import Strings
from minirt.notebook.chapter import Picture
from minirt.notebook.chapters import Finding, Task, container, exit_code, made_from, pull
from minirt.notebook.markup import esc

HERE = ("container",)
LATER = ("daemon", "cache", "registry")

# The picture: what goes in, the box, what carries it; above for freight, below for programs.

_ROWS = {"freight": (("clothes", "fruit", "cars"), ("ship", "train", "truck"))}
_ROWS |= {"programs": (("hello", "toolbox", "greeter"), ("laptop", "server", "cloud"))}
_FILLS = {"freight": "#8a4b08", "programs": "#0b5cad"}
_INK = "#1a1a1a"


def freight(text: Strings) -> Picture:
    """Two rows of one thought: whatever is inside, the box is the same, and what carries boxes can carry it."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 330" width="900" height="330" role="img" '
        f'aria-label="{esc(text("02.freight.alt"))}" font-family="system-ui,sans-serif" font-size="14">'
        '<rect width="900" height="330" rx="8" fill="#ffffff"/>'
    ]
    parts += [
        _words(x, 26, text(f"02.freight.{name}"), "15", True)
        for x, name in ((130, "inside"), (450, "box"), (770, "carried"))
    ]
    for row, (name, (goods, carriers)) in enumerate(_ROWS.items()):
        top = 44 + 145 * row
        for place in range(3):
            y = top + 44 * place
            parts.append(_plate(40, y, 180, text(f"02.freight.{goods[place]}"), "#ffffff", _INK))
            parts.append(
                f'<path d="M224 {y + 18}H300L352 {top + 62}" fill="none" stroke="#76818c" stroke-width="1.5"/>'
            )
            parts.append(_plate(680, y, 180, text(f"02.freight.{carriers[place]}"), "#ffffff", _INK))
            parts.append(
                f'<path d="M548 {top + 62}L600 {y + 18}H676" fill="none" stroke="#76818c" stroke-width="1.5"/>'
            )
        parts.append(_container(356, top + 22, _FILLS[name], text(f"02.freight.{name}")))
    return Picture("".join(parts) + "</svg>", text("02.freight.alt"))


def _words(x: int, y: int, words: str, size: str = "14", bold: bool = False, ink: str = _INK) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" text-anchor="middle" font-size="{size}"{weight} fill="{ink}">{esc(words)}</text>'


def _plate(x: int, y: int, wide: int, words: str, fill: str, ink: str) -> str:
    frame = f'<rect x="{x}" y="{y}" width="{wide}" height="36" rx="6" fill="{fill}" stroke="{ink}" stroke-width="1.5"/>'
    return frame + _words(x + wide // 2, y + 23, words, ink=ink)


def _container(x: int, y: int, fill: str, words: str) -> str:
    """A box with the ribs of a freight container."""
    ribs = "".join(f'<path d="M{x + at} {y + 6}V{y + 20}M{x + at} {y + 60}V{y + 74}"/>' for at in range(14, 188, 16))
    box = f'<rect x="{x}" y="{y}" width="188" height="80" rx="3" fill="{fill}"/>'
    box += f'<g stroke="#ffffff" stroke-width="3" opacity="0.7">{ribs}</g>'
    return box + _words(x + 94, y + 45, words, "15", True, "#ffffff")


# The exercise


def _server(client: Client) -> Client:
    """The other server of this chapter, as `Chapter.server` lays it."""
    return Client(client.root.with_name(f"{client.root.name}-server"), hub="embedded")


def _unmoved(client: Client) -> None:
    pull(client, "greeter:2.0")
    with _server(client) as there:
        if found := container(there, "moved"):
            there.remove(str(found["Id"]), force=True)
        try:
            there.remove_image("greeter:2.0", force=True)
        except NotFound:
            return


def _moved(client: Client) -> Finding:
    with _server(client) as there:
        try:
            image = there.inspect_image("greeter:2.0")
        except NotFound:
            return "none"
        if image["RepoDigests"]:
            return "pulled"
        if image["Id"] != client.inspect_image("greeter:2.0")["Id"]:
            return "other"
        found = container(there, "moved")
        if found is None:
            return "waits"
        if not made_from(there, found, "greeter:2.0"):
            return "stranger", {"image": str(found["Config"]["Image"])}
        return "right" if exit_code(found) == 0 else ("failed", {"state": str(found["State"]["Status"])})


EXERCISES = {"move": Task(_unmoved, _moved)}
