"""Rows on the screen: docker's columns, and `--format`.

`--format` takes `json` (a line of JSON a row), `table` (the verb's columns), `table TEMPLATE`, or a TEMPLATE. Of Go's
template language it knows what people use: `{{.Field}}`, `{{.A.B}}`, `{{json .Field}}`, `{{json .}}`, text, and the
escapes `\\t` and `\\n`. Anything else is refused with a clear line, never printed wrong.
Columns are those of Go's text/tabwriter as docker sets it: at least 10 wide, 3 blanks between.
"""

from __future__ import annotations

from minirt.cli.console import Console, clean
from minirt.errors import InvalidInput

TYPE_CHECKING = False  # typing's own loads for 2 ms, re for 6: half of what `ps` takes
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    Template = list["str | Field"]
    Row = Mapping[str, Any]

HELP = "Print with a Go template ({{.Field}}, {{json .}}), or 'json', 'table' or 'table TEMPLATE'"
_MINIMUM, _BLANKS = 10, 3


class Field:
    """`{{.A.B}}`: the names on the way, and whether the value is written as JSON."""

    def __init__(self, path: list[str], json: bool) -> None:
        self.path, self.json = path, json


def parse(template: str) -> Template:
    """A template's parts in order. Raises InvalidInput for what is not in our subset."""
    text, *actions = template.split("{{")
    parts: Template = [text]
    for action in actions:
        inner, end, text = action.partition("}}")
        if not end:
            raise InvalidInput("--format: a '{{' without its '}}'")
        parts += [_field(inner), text]
    return parts


def _field(text: str) -> Field:
    """What stands between the braces: `.A.B`, `json .A`, `json .`."""
    *verbs, path = text.split() or [""]
    names = path[1:].split(".") if path != "." else []
    understood = path.startswith(".") and all(name.replace("_", "a").isalnum() and name.isascii() for name in names)
    if not understood or verbs not in ([], ["json"]) or not (verbs or names):
        raise InvalidInput(
            f"--format: {{{{{text}}}}} is not understood: use {{{{.Field}}}}, {{{{.A.B}}}} or {{{{json .}}}}"
        )
    return Field(names, bool(verbs))


def escapes(template: str) -> str:
    """The template with `\\t` and `\\n` as a shell passes them made tabs and line ends."""
    return template.replace("\\t", "\t").replace("\\n", "\n")


def fill(template: Template, row: Row) -> str:
    """A template with one row's values. Raises InvalidInput for a field that the row has not."""
    return "".join(part if isinstance(part, str) else _value(part, row) for part in template)


def _value(field: Field, row: Row) -> str:
    value: Any = row
    for name in field.path:
        if not isinstance(value, dict) or name not in value:
            known = ", ".join(sorted(value)) if isinstance(value, dict) else ""
            raise InvalidInput(f"--format: no field {'.'.join(field.path)!r}" + f" (fields: {known})" * bool(known))
        value = value[name]
    return compact(value) if field.json else plain(value)


def plain(value: Any) -> str:
    """A value as Go's `%v` prints it."""
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{plain(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, list):
        return "[" + " ".join(map(plain, value)) + "]"
    return "<no value>" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def compact(value: Any) -> str:
    """JSON on one line, as Go's encoder spaces it."""
    import json

    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def columns(lines: Iterable[list[str]]) -> Iterable[str]:
    """Lines of cells as aligned text; the last cell of a line is not padded."""
    cells = [[clean(cell) for cell in line] for line in lines]
    widths: dict[int, int] = {}
    for line in cells:
        for column, cell in enumerate(line[:-1]):
            widths[column] = max(widths.get(column, _MINIMUM), len(cell) + _BLANKS)
    for line in cells:
        yield "".join(cell.ljust(widths[column]) for column, cell in enumerate(line[:-1])) + line[-1]


def of(fields: list[str]) -> str:
    """The template of a table with these columns."""
    return "table " + "\t".join(f"{{{{.{field}}}}}" for field in fields)


def shorten(text: str, length: int) -> str:
    """At most `length` letters, the last an ellipsis where some are left out."""
    return text if len(text) <= length else text[: length - 1] + "…"


def spaced(name: str) -> str:
    """A field's name as words: `CreatedAt` is `Created At`."""
    pairs = zip(name, name[1:] + " ", strict=True)
    return "".join(letter + " " * (letter.islower() and follows.isupper()) for letter, follows in pairs)


def show(console: Console, rows: Iterable[Row], default: str, template: str | None, **special: str) -> None:
    """Print rows by a template, else by the verb's own. `special`: titles that are not their field's name."""
    if template == "json":
        for row in rows:
            console.print(compact({name: row[name] for name in sorted(row)}))
        return
    template = template if template and template != "table" else default
    body = template[5:].lstrip() if template.startswith("table") and template[5:6].isspace() else template
    parts = parse(escapes(body))
    if body == template:
        for row in rows:
            console.print(fill(parts, row))
        return
    header = "".join(part if isinstance(part, str) else _title(part, special) for part in parts)
    # A tab or a line end in a value would be one of the table's.
    lines = [fill(parts, {name: clean(str(value)) for name, value in row.items()}) for row in rows]
    for line in columns(line.split("\t") for line in (header, *lines)):
        console.print(line)


def _title(field: Field, special: Mapping[str, str]) -> str:
    name = "".join(field.path[-1:])
    return special.get(name) or spaced(name).upper()


def records(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print records that share their keys, as a table titled by them."""
    titles = [spaced(name).upper() for name in rows[0]]
    for line in columns([titles, *(list(map(plain, row.values())) for row in rows)]):
        console.print(line)


def printed(console: Console, record: Row, template: str | None) -> bool:
    """Print one record by `--format`; False where there is none."""
    if template is not None:
        console.print(fill(parse("{{json .}}" if template == "json" else escapes(template)), record))
    return template is not None
