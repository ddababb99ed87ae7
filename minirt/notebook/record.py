"""What a learner has solved, kept on the learner's own disk: `progress.json`, in the folder of the course's stores.

`{"04": ["exercise.refresh", "quiz.1"]}`: by chapter the exercises and questions that were answered right, sorted. Both
languages share it. The file is replaced whole and under a lock, for several notebooks may be open; one that cannot be
read is put aside by the next answer, never overwritten.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from minirt.errors import InvalidInput

FILE = "progress.json"


def read(folder: Path) -> dict[str, list[str]]:
    """By chapter what is solved; empty where nothing is. Raises InvalidInput for a file that is not ours, OSError."""
    try:
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InvalidInput(f"{folder / FILE} is damaged: {error}") from error
    if not isinstance(record, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in record.values()
    ):
        raise InvalidInput(f"{folder / FILE} is damaged: it should name lists of names")
    return record


def changed(folder: Path) -> int:
    """Another number after each change: the time of the file in nanoseconds, 0 for none."""
    try:
        return (folder / FILE).stat().st_mtime_ns
    except OSError:  # whoever reads it is told why
        return 0


def solve(folder: Path, number: str, name: str) -> None:
    """Note that `name` of chapter `number` is solved. Raises OSError where the disk does not take it."""
    with _changing(folder) as record:
        record[number] = sorted({*record.get(number, ()), name})


def put_aside(folder: Path, number: str) -> None:
    """Begin the chapter's record anew; the old one stays in the file, under a name with the time. Raises OSError."""
    with _changing(folder) as record:
        if number in record:
            record[f"{number}.{stamp()}"] = record.pop(number)


def stamp() -> str:
    """The time, as names of what is put aside have it."""
    return time.strftime("%Y-%m-%d-%H%M%S")


def aside(path: Path) -> Path | None:
    """Rename a file so that a new one can take its place; where it is now, None if there was none."""
    if not path.exists():
        return None
    names = (f"{path.stem}.{stamp()}{again}{path.suffix}" for again in ("", *(f"-{n}" for n in range(2, 1000))))
    return path.rename(next(kept for name in names if not (kept := path.with_name(name)).exists()))


@contextlib.contextmanager
def _changing(folder: Path) -> Iterator[dict[str, list[str]]]:
    """The record, to be changed, then written."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f".{FILE}.lock"):
        try:
            record = read(folder)
        except InvalidInput:
            aside(folder / FILE)
            record = {}
        yield record
        fresh = folder / f".{FILE}.{os.getpid()}"
        try:
            fresh.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            fresh.replace(folder / FILE)
        finally:
            fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not on Windows: there the last answer of two at one moment is kept
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
