"""`save` and `load`: images as tar archives, on our standard streams or in files."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator

from minirt.cli.console import Console
from minirt.cli.flags import UsageError, Values, command
from minirt.errors import InvalidInput


@command(
    "IMAGE [IMAGE...]",
    """
    -o, --output file   Write to a file, not to standard output
    """,
)
def save(console: Console, values: Values, arguments: list[str]) -> None:
    output(values["output"], lambda: console.client.save(arguments))


def output(target: str | None, ask: Callable[[], Iterator[bytes]]) -> None:
    """Write what is asked for to a file, or on standard output. Raises UsageError, InvalidInput."""
    if target is None and (sys.stdout is None or sys.stdout.isatty()):
        raise UsageError("cowardly refusing to save to a terminal: use the -o option or redirect", 1)
    chunks = ask()
    if target is None:
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    elif os.path.exists(target) and not os.path.isfile(target):
        with open(target, "wb") as device:  # /dev/null, a pipe
            device.writelines(chunks)
    else:
        _write_whole(target, chunks)


def _write_whole(target: str, chunks: Iterator[bytes]) -> None:
    """The file whole, or not at all: written aside, then renamed. Raises InvalidInput."""
    folder = os.path.dirname(target) or "."
    if not os.path.isdir(folder):
        raise InvalidInput(f"invalid output path: directory {folder!r} does not exist")
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".minirt-save-", delete=False) as aside:
        try:
            aside.writelines(chunks)
            aside.close()
            os.replace(aside.name, target)
        except BaseException:
            os.unlink(aside.name)
            raise


@command(
    "",
    """
    -i, --input file   Read from a file, not from standard input
    -q, --quiet        Show no progress, as ever: what is loaded is printed all the same, as docker does
    """,
)
def load(console: Console, values: Values, arguments: list[str]) -> None:
    source = values["input"]
    if source is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("requested load from stdin, but stdin is a terminal: use the -i option or redirect", 1)
    with open(source, "rb") if source is not None else sys.stdin.buffer as stream:
        for item in console.client.load(stream):
            console.print(item["stream"].rstrip("\n"))
