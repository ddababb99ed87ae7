"""The container card: running containers as this machine sees them, with its own files as the witness.

For each: its state, its process outside and inside, its walls (namespaces) against this notebook's own, its resource
group and limits, its files, its users. What is missing or may not be read is said in a line. `facts` is the card's
markup for one container, and knows no widget. Taught in chapters 03 and 06.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from ipywidgets import HTML, Button, HBox, VBox

from minirt import units
from minirt.errors import NotFound
from minirt.notebook import container, markup, walk
from minirt.notebook.catalogue import Strings
from minirt.notebook.container import Container
from minirt.notebook.markup import Shown, esc
from minirt.notebook.place import Place
from minirt.notebook.process import NAMESPACES, Namespace, Process
from minirt.notebook.status import Status
from minirt.notebook.worker import Worker


class ContainerCard(Shown, VBox):  # type: ignore[misc]
    """`ContainerCard("box", …)`: looks when it is made, and again at each press. `look_again` is the button."""

    def __init__(self, *containers: str, place: Place | None = None) -> None:
        self._place = place or Place()
        self.containers, self._looks = containers, 0
        text = self._text = self._place.text
        self.look_again = Button(description=text("card.again"), button_style="primary", layout={"width": "auto"})
        self.look_again.on_click(lambda _button: self.click())
        self.status = Status()
        self._card = HTML()
        self._worker = Worker(text, self.status, self._enable, listens=False)
        super().__init__([HTML(markup.style(text("again"))), HBox([self.look_again]), self.status, self._card])
        self.add_class("mrt-panel")
        names = ", ".join(containers)
        self.plain = text("card.fallback", names=names)
        self.page = f"<p><em>{esc(self.plain)}</em></p>"
        self.click()

    def _enable(self, idle: bool) -> None:
        self.look_again.disabled = not idle

    def click(self) -> None:
        """Look again, as the button does."""
        self._worker.begin(self._look)

    def wait(self, timeout: float | None = None) -> None:
        """Until the look at work, if any, has ended. Raises TimeoutError."""
        self._worker.wait(timeout)

    def _look(self) -> str:
        self._looks += 1
        parts, running, note = [], 0, ""
        way = self._place.way()
        with self._place.client() as client:
            for name in self.containers:
                recorded = walk.card(self._place.number, name) if way == "refused" else None
                try:
                    made, found = recorded or ("", container.look(client, name))
                except NotFound:
                    parts.append(heading(self._text("card.unknown", name=name)))
                    continue
                running += found.process is not None
                shown = facts(found, self._text)
                if made:
                    note = self._text("recording.shown", date=made)
                    shown = f'<p><span class="note">{esc(note)}</span></p>{shown}'
                parts.append(shown)
        self._card.value = f'<div class="mrt">{"<hr>".join(parts)}</div>'
        line = self._text("card.looked", look=self._looks, running=running, all=len(self.containers))
        return f"{note} {line}" if note else line


def heading(line: str) -> str:
    """`line` is plain text."""
    return f"<p><strong>{esc(line)}</strong></p>"


def facts(found: Container, text: Strings) -> str:
    """One container's card, as markup."""
    state = text("card.state", name=found.name, state=text(f"card.states.{_known(found.state)}", **_ending(found)))
    process = found.process
    parts = [heading(state)]
    if process is None:
        none = "none-yet" if found.state == "created" else "none"
        return "".join([*parts, f"<p>{esc(text(f'card.{none}', size=_size(found.inspected.get('SizeRw') or 0)))}</p>"])
    parts += [_process(found, process, text), _walls(process, text, found.driver == "proot")]
    parts += [_group(found, process, text), _files(found, process, text)]
    if process.refused:
        parts.append(f"<p>{esc(text('card.refused', files=', '.join(process.refused)))}</p>")
    return "".join(parts)


def _known(state: str) -> str:
    return state if state in ("created", "running", "paused", "exited", "dead") else "other"


def _ending(found: Container) -> dict[str, object]:
    return {"code": found.inspected["State"].get("ExitCode"), "state": found.state}


def _size(count: object) -> str:
    return units.size(int(str(count)))


def table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """`caption` and `heads` are plain text, the cells markup."""
    head = "".join(f'<th scope="col">{esc(word)}</th>' for word in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{esc(caption)}</caption>{f'<tr>{head}</tr>' * bool(head)}{body}</table>"


def _pairs(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    """Rows of a name (plain text) and a value (markup)."""
    body = "".join(f'<tr><th scope="row">{esc(name)}</th><td>{value}</td></tr>' for name, value in rows)
    return f"<table><caption>{esc(caption)}</caption>{body}</table>"


def code(words: object) -> str:
    return f"<code>{esc(words)}</code>"


def _process(found: Container, process: Process, text: Strings) -> str:
    rows = [
        (text("card.command"), code(shlex.join(found.command))),
        (text("card.outside"), esc(text("card.pid", pid=process.pid))),
        (text("card.inside"), esc(text("card.pid", pid=process.inside))),
        (text("card.user"), esc(users(process, text))),
    ]
    return _pairs(text("card.process"), rows)


def users(process: Process, text: Strings) -> str:
    """The uid map in words."""
    if not process.uids:
        return text("card.users-hidden")
    if not process.apart("user"):
        return text("card.users-same", uid=process.uid)
    return " ".join(
        text("card.users-one" if count == 1 else "card.users-many", inside=inside, outside=outside,
             last=inside + count - 1, end=outside + count - 1)
        for inside, outside, count in process.uids
    )  # fmt: skip


def _walls(process: Process, text: Strings, faked: bool) -> str:
    rows = [
        (esc(text(f"card.wall.{name}")), code(name), esc(_sign(process.namespaces[name], text)),
         code(process.namespaces[name].theirs or "?"), code(process.namespaces[name].ours or "?"))
        for name in NAMESPACES
    ]  # fmt: skip
    heads = [text(f"card.{key}") for key in ("keeps", "namespace", "compare", "theirs", "ours")]
    missing = [text(f"card.wall.{name}") for name in NAMESPACES if process.namespaces[name].apart is False]
    lines = [text("card.proot")] * faked
    lines += [text("card.missing", walls="; ".join(missing)) if missing else text("card.whole")]
    notes = "".join(f"<p>{esc(line)}</p>" for line in lines)
    return table(text("card.walls"), heads, rows) + notes


def _sign(namespace: Namespace, text: Strings) -> str:
    return text({True: "card.apart", False: "card.same", None: "card.unread"}[namespace.apart])


def _group(found: Container, process: Process, text: Strings) -> str:
    memory, cpus, pids = found.limits
    paths = [
        f"{code(path)} {esc(', '.join(names))}" if names and len(process.cgroups) > 1 else code(path)
        for path, names in process.cgroups.items()
    ]
    limits = [
        text("card.memory-limit", size=units.size(memory, units=units.BINARY)) if memory else text("card.memory-free"),
        text("card.cpu-limit", cpus=f"{cpus:g}") if cpus else text("card.cpu-free"),
        text("card.pids-limit", count=pids) if pids else text("card.pids-free"),
    ]
    figures = found.figures
    used = (
        text("card.used", memory=units.size(figures.memory, units=units.BINARY), ms=f"{figures.cpu / 1e6:.0f}",
             count=figures.processes)
        if figures
        else text("card.uncounted", why=found.uncounted)
    )  # fmt: skip
    rows = [(text("card.path"), "<br>".join(paths) or "?"), (text("card.limits"), "<br>".join(map(esc, limits)))]
    return _pairs(text("card.group"), [*rows, (text("card.use"), esc(used))])


def _files(found: Container, process: Process, text: Strings) -> str:
    root = process.root
    wall, layers = process.apart("mnt"), len(found.lowers)
    if not wall or root is None:
        where = text("card.root-shared", folder=f"{found.folder}/rootfs") if found.folder else text("card.root-unknown")
        return _pairs(text("card.files"), [(text("card.root"), esc(where))])
    how = text("card.root-overlay", kind=root.kind, count=layers) if layers else text("card.root-copy", kind=root.kind)
    others = [mount for mount in process.mounts if mount is not root]
    rows = (
        (code(mount.target), esc(mount.kind), esc(mount.options.split(",")[0]), esc(mount.options)) for mount in others
    )
    heads = [text(f"card.mount.{key}") for key in ("target", "kind", "write", "options")]
    listed = table(text("card.mounts", count=len(others)), heads, rows)
    summary = esc(text("card.mounts", count=len(others)))
    names = [
        (text("card.root"), esc(how)),
        (text("card.written"), esc(text("card.write-layer", size=_size(found.inspected.get("SizeRw") or 0)))),
    ]
    options = f'<p>{esc(text("card.root-options"))}</p><pre tabindex="0">{esc(root.detail.replace(",", chr(10)))}</pre>'
    return f"{_pairs(text('card.files'), names)}<details><summary>{summary}</summary>{options}{listed}</details>"
