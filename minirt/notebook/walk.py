"""A walk: a run that step mode did where containers run, stage by stage, for machines where nothing can run.

`recordings/walks/NN.json` holds a chapter's walks (recording.py makes them), one a line. What needs no container is
done for real there, too: the question whether the image is here, and the pull. `recordings/cards/NN.json` holds the
containers that the chapter's cards looked at. Played in chapters 03 and 06.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minirt.errors import MinirtError
from minirt.notebook.container import Container, Figures
from minirt.notebook.process import Mount, Namespace, Process

FOLDER = Path(__file__).with_name("recordings") / "walks"
CARDS = FOLDER.with_name("cards")
FILES = ("rootfs.json", "config.json")  # of a container's folder, which step mode opens
_KEYS = ("Id", "Name", "State", "Path", "Args", "Driver", "GraphDriver", "BundlePath", "SizeRw")
_LIMITS = ("Memory", "CpuQuota", "CpuPeriod", "NanoCpus", "PidsLimit")


@dataclass(frozen=True)
class Done:
    """One stage as it went: `came`, `ms` and `exchanges` as of a Stage; `output` and `code` as they were after it, and
    `seen` the container as it was then."""

    name: str
    came: str
    ms: float
    exchanges: tuple[tuple[str, str, int], ...]
    output: str
    code: int | None
    seen: Container | None


@dataclass(frozen=True)
class Walk:
    """`command` are the words after `docker`, `made` is a day as YYYY-MM-DD, `stages` those that need a container."""

    command: tuple[str, ...]
    made: str
    stages: tuple[Done, ...]

    def __getitem__(self, name: str) -> Done:
        return next(stage for stage in self.stages if stage.name == name)


def read(path: Path) -> list[Walk]:
    """The walks of one file. Raises MinirtError where it is damaged."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [Walk(tuple(row["command"]), row["made"], tuple(map(_done, row["stages"]))) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MinirtError(f"the recording {path.name} cannot be read: {error}") from error


def find(command: Sequence[str]) -> Walk | None:
    """The walk of a command, if one was recorded."""
    walks = [walk for path in sorted(FOLDER.glob("*.json")) for walk in read(path)]
    return next((walk for walk in walks if walk.command == tuple(command)), None)


def write(path: Path, walks: Sequence[Walk], root: Path) -> None:
    """Keep walks; `root`, where their containers were made, is told by a general name."""
    lines = ",\n".join(json.dumps(asdict(walk), ensure_ascii=False) for walk in walks)
    _keep(path, f"[\n{lines}\n]\n", root)


def card(number: str, name: str) -> tuple[str, Container] | None:
    """The day it was recorded, and a container as a card of that chapter saw it; None where none did. Raises
    MinirtError where the recording is damaged."""
    path = CARDS / f"{number}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return (str(found["made"]), _container(found["seen"][name])) if name in found["seen"] else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MinirtError(f"the recording {path.name} cannot be read: {error}") from error


def write_cards(path: Path, made: str, seen: dict[str, Container], root: Path) -> None:
    """Keep what cards saw, by the containers' names; `made` is a day as YYYY-MM-DD."""
    rows = {name: asdict(container) for name, container in seen.items()}
    _keep(path, json.dumps({"made": made, "seen": rows}, ensure_ascii=False) + "\n", root)


def _keep(path: Path, text: str, root: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace(str(root), "/var/lib/minirt"), encoding="utf-8")


def kept(seen: Container, files: Sequence[str] = FILES) -> Container:
    """The container with what is shown of it, and no more: its folder will be gone."""
    inspected = {key: seen.inspected.get(key) for key in _KEYS}
    inspected["HostConfig"] = {key: seen.inspected["HostConfig"].get(key) for key in _LIMITS}
    there = seen.files()
    contents = {name: seen.read(name) if name in files else "" for name in there}
    return Container(inspected, seen.process, seen.figures, seen.uncounted, contents)


def _done(row: dict[str, Any]) -> Done:
    exchanges = tuple((str(method), str(path), int(status)) for method, path, status in row["exchanges"])
    seen = None if row["seen"] is None else _container(row["seen"])
    return Done(row["name"], row["came"], row["ms"], exchanges, row["output"], row["code"], seen)


def _container(row: dict[str, Any]) -> Container:
    figures = None if row["figures"] is None else Figures(**row["figures"])
    process = None if row["process"] is None else _process(row["process"])
    return Container(row["inspected"], process, figures, row["uncounted"], row["contents"])


def _process(row: dict[str, Any]) -> Process:
    return Process(**{
        **row,
        "namespaces": {name: Namespace(**each) for name, each in row["namespaces"].items()},
        "cgroups": {path: tuple(names) for path, names in row["cgroups"].items()},
        "mounts": tuple(Mount(**mount) for mount in row["mounts"]),
        "uids": tuple(tuple(ids) for ids in row["uids"]),
        "interfaces": tuple(row["interfaces"]),
        "refused": tuple(row["refused"]),
    })  # fmt: skip
