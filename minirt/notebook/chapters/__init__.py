"""What single chapters bring of their own: a module `cNN` each, read when chapter NN begins.

A module has `HERE` and `LATER` (boxes of the flow map: marked, and not met yet) and `EXERCISES` by name. Whatever else
a chapter's cells need that is no widget stands there too. Its words are in `text/LANG/NN.toml`.
"""

from __future__ import annotations

import importlib
import io
import pkgutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from minirt.client import Client
from minirt.errors import InvalidInput, NotFound

Finding = str | tuple[str, dict[str, str]]


@dataclass(frozen=True)
class Task:
    """An exercise: `stage` sets its starting state; `check` looks at the real state and gives the key, in the
    chapter's `exercise.NAME`, of what it found, with that text's fields: "right" is the solved one."""

    stage: Callable[[Client], None]
    check: Callable[[Client], Finding]


def numbers() -> list[str]:
    """The chapters there are, sorted."""
    return sorted(module.name[1:] for module in pkgutil.iter_modules(__path__))


def chapter(number: str) -> ModuleType:
    """The module of chapter `number`. Raises InvalidInput for one there is none of."""
    if number not in numbers():
        raise InvalidInput(f"no chapter {number!r}: there is {', '.join(numbers())}")
    return importlib.import_module(f"minirt.notebook.chapters.c{number}")


def tags(client: Client) -> set[str]:
    """The names in the local cache."""
    return {str(tag) for image in client.images() for tag in image.get("RepoTags") or ()}


def pull(client: Client, *names: str) -> None:
    """Have these images in the local cache."""
    for name in sorted({*names} - tags(client)):
        for _message in client.pull(name):
            pass


def text_of(client: Client, container: str, path: str) -> str:
    """What a file in a container says, without the space around it; "" of what is no file. Raises NotFound."""
    _stat, pieces = client.get_archive(container, path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        first = archive.next()
        file = archive.extractfile(first) if first and first.isfile() else None
        return file.read(4096).decode(errors="replace").strip() if file else ""


def container(client: Client, name: str) -> dict[str, Any] | None:
    """What `docker inspect` tells of the container of that name; None where there is none."""
    try:
        return client.inspect_container(name)
    except NotFound:
        return None


def made_from(client: Client, found: dict[str, Any], name: str) -> bool:
    """Whether an inspected container was made from the image that is called `name` now."""
    try:
        return bool(found["Image"] == client.inspect_image(name)["Id"])
    except NotFound:
        return False


def exit_code(found: dict[str, Any]) -> int | None:
    """Of an inspected container: None while it runs, and before it ran."""
    return int(found["State"]["ExitCode"]) if found["State"]["Status"] == "exited" else None
