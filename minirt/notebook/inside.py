"""What the explorer shows of an image, step by step, as markup: index, manifest, config, layers, files, five kinds.

No widget here. All that an image says goes through `esc`; long lists are cut, with a line that says by how much.
"""

from __future__ import annotations

import itertools
import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from minirt.image.descriptor import Descriptor
from minirt.image.platform import Platform
from minirt.notebook import kinds
from minirt.notebook.catalogue import Strings
from minirt.notebook.looking import table
from minirt.notebook.markup import esc
from minirt.notebook.snapshot import Content, File, Files, Gone, Snapshot
from minirt.units import size

DOCUMENT = 20_000  # characters of one JSON document
VALUE = 600  # characters of one value, and of one path
ROWS = 200  # of a table
FOLDERS, IN_FOLDER = 80, 25
_OPEN = 60  # with so few files all folders are open
_DEPTH = 16  # folders in each other


def index(image: Snapshot, text: Strings) -> str:
    """The name's entry in the cache, and the index it leads to; this machine's platform is marked."""
    target = image.named.target
    row = [_code(image.name, text), _code(target.media_type, text), _digest(target), size(target.size)]
    parts = [_said(text("explorer.index.what"))]
    parts.append(_table(text, "index.names", ("name", "meaning", "digest", "size"), [row]))
    if image.index is None:
        where = str(image.config.platform)
        return "".join([*parts, _said(text("explorer.index.straight", platform=where))])
    rows = [
        [esc(_short(_platform(each, text))), _digest(each), size(each.size), esc(_use(each, image, text))]
        for each in image.index.manifests[:ROWS]
    ]
    parts.append(_table(text, "index.platforms", ("platform", "digest", "size", "here"), rows))
    parts.append(_rest(text, len(image.index.manifests) - ROWS))
    return "".join([*parts, _json(text, "index.json", image.documents["index"])])


def _platform(descriptor: Descriptor, text: Strings) -> str:
    return str(descriptor.platform or "") or text("explorer.index.unnamed")


def _use(descriptor: Descriptor, image: Snapshot, text: Strings) -> str:
    if descriptor.digest != image.named.manifest:
        return text("explorer.index.other")
    ours = descriptor.platform is None or Platform.host().choose([descriptor.platform]) is not None
    return text("explorer.index.ours" if ours else "explorer.index.kept")


def manifest(image: Snapshot, text: Strings) -> str:
    """The table of contents, its parts explained."""
    document = json.loads(image.documents["manifest"])
    values = {
        "schemaVersion": _code(document.get("schemaVersion"), text),
        "mediaType": _code(image.manifest.media_type, text),
        "config": f"{_digest(image.manifest.config)} {size(image.manifest.config.size)}",
        "layers": "<br>".join(f"{_digest(each)} {size(each.size)}" for each in image.manifest.layers[:ROWS]),
        "annotations": _code(json.dumps(image.manifest.annotations, ensure_ascii=False), text),
    }
    count = len(image.manifest.layers)
    rows = [
        [f'<code class="key">{esc(key)}</code>', value, esc(text(f"explorer.manifest.{key}", count=count))]
        for key, value in values.items()
        if key in document or key == "mediaType"
    ]
    return (
        _said(text("explorer.manifest.what"), text("explorer.manifest.document"))
        + _table(text, "manifest.parts", ("part", "value", "meaning"), rows)
        + _json(text, "manifest.json", image.documents["manifest"], open=True)
    )


def config(image: Snapshot, text: Strings) -> str:
    """Command and settings, and the history."""
    own = image.config
    values: dict[str, Any] = {
        "command": own.command(), "Entrypoint": list(own.entrypoint), "Cmd": list(own.cmd), "Env": own.env,
        "WorkingDir": own.working_dir, "User": own.user, "ExposedPorts": own.exposed_ports,
        "Volumes": own.volumes, "StopSignal": own.stop_signal, "Labels": own.labels,
    }  # fmt: skip
    rows = [
        [
            f"<strong>{esc(text(f'explorer.config.{key}'))}</strong>",
            _value(value, text),
            esc(text(f"explorer.config.means.{key}")),
        ]
        for key, value in values.items()
    ]
    return (
        _said(text("explorer.config.what"))
        + _table(text, "config.settings", ("part", "value", "meaning"), rows)
        + _history(image, text)
        + _json(text, "config.json", image.documents["config"])
    )


def _value(value: Any, text: Strings) -> str:
    """A command is one list of words, as it stands in the JSON; of other lists each part has a line."""
    if not value:
        return f"<em>{esc(text('explorer.none'))}</em>"
    if isinstance(value, list):
        return _code(json.dumps(value, ensure_ascii=False), text)
    lines = [f"{key}={word}" for key, word in value.items()] if isinstance(value, dict) else value
    if isinstance(lines, str):
        return _code(lines, text)
    return "<br>".join(_code(line, text) for line in lines[:ROWS]) + _rest(text, len(lines) - ROWS)


def _history(image: Snapshot, text: Strings) -> str:
    numbers = itertools.count(1)
    rows = []
    for step, entry in enumerate(image.config.history[:ROWS], 1):
        empty = bool(entry.get("empty_layer"))
        layer = text("explorer.config.settings_only") if empty else str(next(numbers))
        rows.append([str(step), _code(entry.get("created_by", ""), text), esc(layer)])
    shown = _table(text, "config.history", ("step", "made", "layer"), rows) if rows else ""
    return shown + _rest(text, len(image.config.history) - ROWS)


def layers(image: Snapshot, contents: Sequence[Content], text: Strings) -> str:
    """What each layer is, and brings."""
    if not image.layers:
        return _said(text("explorer.layers.none"))
    rows = [
        [
            str(layer.number),
            _code(layer.made_by, text) if layer.made_by else "",
            f"{_digest(layer.blob)} {size(layer.blob.size)}",
            f'<code class="key">{esc(_abridged(layer.diff_id))}</code> {size(content.size)}',
            str(content.files),
            esc(_hidden(content, text)),
            esc(_short(", ".join(layer.also)) or text("explorer.layers.alone")),
        ]
        for layer, content in zip(image.layers[:ROWS], contents, strict=False)
    ]
    heads = ("layer", "made", "digest", "diff", "files", "hides", "also")
    shown = _table(text, "layers.table", heads, rows) + _rest(text, len(image.layers) - ROWS)
    return _said(text("explorer.layers.what")) + shown


def _hidden(content: Content, text: Strings) -> str:
    count = len(content.whiteouts) + len(content.opaques)
    return text("explorer.layers.hides", count=count) if count else text("explorer.layers.nothing")


def files(found: Files, text: Strings, words: str = "", kind: str = "", layer: int = 0) -> str:
    """The files by folder whose path contains `words`, of this kind and layer (0: all), and those taken away."""
    fits = [file for file in found.there if words in file.path and kind in ("", file.kind) and layer in (0, file.layer)]
    root = _Branch()
    for file in fits:
        root.put(file)
    parts = [_said(text("explorer.files.count", shown=len(fits), count=len(found.there)))]
    room = iter(range(FOLDERS))
    parts += [_folder("/", root, len(fits) <= _OPEN, room, text)] if fits else [_said(text("explorer.files.no"))]
    folders = root.folders()
    parts.append(_rest(text, folders if folders > FOLDERS else 0, "files.more_folders"))
    return "".join(parts) + _gone([gone for gone in found.gone if words in gone.path], text)


@dataclass
class _Branch:
    """A folder of the tree: its own files, the folders below, and how many files of each layer are in all of it."""

    files: list[File] = field(default_factory=list)
    below: dict[str, _Branch] = field(default_factory=dict)
    layers: Counter[int] = field(default_factory=Counter)

    def put(self, file: File) -> None:
        parts = posixpath.dirname(file.path).strip("/").split("/")
        here = self
        here.layers[file.layer] += 1
        for part in [*parts[:_DEPTH], "/".join(parts[_DEPTH:])]:  # what lies deeper is one folder of a long name
            if part:
                here = here.below.setdefault(part, _Branch())
                here.layers[file.layer] += 1
        here.files.append(file)

    def folders(self) -> int:
        return 1 + sum(branch.folders() for branch in self.below.values())


def _folder(name: str, branch: _Branch, opened: bool, room: Iterator[int], text: Strings) -> str:
    """A folder with all that is in it, as long as there is `room` for one more; the top one is always open."""
    if next(room, None) is None:
        return ""
    while not branch.files and len(branch.below) == 1:  # nothing but one folder is in it: both on one line
        ((step, branch),) = branch.below.items()
        name += f"{step}/"
    rows = [
        [
            f"<code>{esc(_short(posixpath.basename(file.path)))}</code>",
            str(file.layer),
            esc(text(f"explorer.kind.{file.kind}")),
            size(file.size) if file.type == "file" else "",
            esc(_note(file, text)),
        ]
        for file in sorted(branch.files, key=lambda file: (-file.layer, file.path))[:IN_FOLDER]
    ]
    layers = ", ".join(text("explorer.files.from", layer=n, count=count) for n, count in sorted(branch.layers.items()))
    summary = text("explorer.files.folder", path=_short(name), count=branch.layers.total(), layers=layers)
    heads = [esc(text(f"explorer.head.{head}")) for head in ("file", "layer", "kind", "size", "note")]
    shown = table("", heads, rows) + _rest(text, len(branch.files) - IN_FOLDER, "files.more_files") if rows else ""
    folders = "".join(_folder(f"{step}/", branch.below[step], opened, room, text) for step in sorted(branch.below))
    is_open = " open" if opened or name.startswith("/") else ""
    return f"<details{is_open}><summary>{esc(summary)}</summary>{folders}{shown}</details>"


def _note(file: File, text: Strings) -> str:
    notes = [] if file.type == "file" else [text(f"explorer.files.{file.type}", target=_short(file.target))]
    if file.covers:
        notes.append(text("explorer.files.covers", layers=", ".join(map(str, file.covers))))
    return "; ".join(notes)


def _gone(gone: Sequence[Gone], text: Strings) -> str:
    if not gone:
        return _said(text("explorer.files.gone_none"))
    rows = [
        [f"<code>{esc(_short(each.path))}</code>", str(each.layer), esc(text(f"explorer.files.{each.how}", by=each.by))]
        for each in gone[:ROWS]
    ]
    heads = [esc(text(f"explorer.head.{name}")) for name in ("file", "layer", "note")]
    title = esc(text("explorer.files.gone", count=len(gone)))
    return f"{table(title, heads, rows)}{_rest(text, len(gone) - ROWS, 'files.more_gone')}"


def five(found: Files, text: Strings) -> str:
    """The files sorted into the lecture's five kinds, and the rules."""
    rows = []
    for kind in kinds.KINDS:
        of = [file for file in found.there if file.kind == kind]
        numbers = ", ".join(str(number) for number in sorted({file.layer for file in of}))
        examples = [f"<code>{esc(_short(file.path, 80))}</code>" for file in _examples(of)]
        total = size(sum(file.size for file in of))
        title = f"<strong>{esc(text(f'explorer.kind.{kind}'))}</strong>"
        rows.append([title, str(len(of)), total, numbers, " ".join(examples)])
    rules = [[esc(text(f"explorer.kind.{r.kind}")), esc(text(f"explorer.rule.{r.name}"))] for r in kinds.RULES]
    rules.append([esc(text("explorer.kind.other")), esc(text("explorer.rule.rest"))])
    shown = _table(text, "kinds.rules", ("rule", "if"), rules, titled=False)
    return (
        _said(text("explorer.kinds.what"))
        + _table(text, "kinds.table", ("kind", "count", "size", "layers", "examples"), rows)
        + f"<details><summary>{esc(text('explorer.kinds.rules'))}</summary>{shown}</details>"
    )


def _examples(of: list[File]) -> list[File]:
    """A few, those of the highest layers first, for they make the image what it is; real files before links."""
    return sorted(of, key=lambda file: (-file.layer, file.type != "file", file.path))[:4]


def _said(*sentences: str) -> str:
    return f"<p>{esc(' '.join(sentences))}</p>"


def _table(text: Strings, key: str, heads: Iterable[str], rows: list[list[str]], titled: bool = True) -> str:
    titles = [esc(text(f"explorer.head.{head}")) for head in heads]
    return table(esc(text(f"explorer.{key}")) if titled else "", titles, rows)


def _rest(text: Strings, count: int, key: str = "files.more_gone") -> str:
    return f"<p><em>{esc(text(f'explorer.{key}', count=count))}</em></p>" if count > 0 else ""


def _json(text: Strings, key: str, content: bytes, open: bool = False) -> str:
    whole = json.dumps(json.loads(content), indent=2, ensure_ascii=False)
    more = text("explorer.more", count=len(whole) - DOCUMENT) if len(whole) > DOCUMENT else ""
    title = esc(text(f"explorer.{key}"))
    return (
        f"<details{' open' * open}><summary>{title}</summary>"
        f'<pre tabindex="0" role="group" aria-label="{title}">{esc(whole[:DOCUMENT])}\n{esc(more)}</pre></details>'
    )


def _code(value: Any, text: Strings) -> str:
    whole = str(value)
    more = " " + text("explorer.more", count=len(whole) - VALUE) if len(whole) > VALUE else ""
    return f"<code>{esc(whole[:VALUE])}</code>{esc(more)}"


def _digest(descriptor: Descriptor) -> str:
    return f'<code class="key">{esc(_abridged(descriptor.digest))}</code>'


def _abridged(digest: str) -> str:
    algorithm, _, hexadecimal = digest.partition(":")
    return f"{algorithm}:{hexadecimal[:12]}…"


def _short(text: str, most: int = 200) -> str:
    """At most about `most` characters, the middle left out."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]}…{text[-most // 3 :]}"
