"""`container | image | volume | network | system prune`: free what nothing uses, after a question (chapter 03)."""

from __future__ import annotations

import sys
from contextlib import suppress

from minirt import units
from minirt.cli.console import Console
from minirt.cli.flags import Values, command
from minirt.cli.images import parse_filters
from minirt.errors import InvalidInput, NotFound

_OPTIONS = """
        --filter list   Only those: label=NAME[=VALUE], until=TIME
    -f, --force         Do not ask
    """
_IMAGES = "dangling images", "images without at least one container associated to them"


@command("", _OPTIONS)
def container_prune(console: Console, values: Values, arguments: list[str]) -> None:
    if _agreed(console, values, " all stopped containers.\n"):
        _tell(console, _prune(console, "containers", values))


@command("", "-a, --all   Remove images that have a name too\n" + _OPTIONS)
def image_prune(console: Console, values: Values, arguments: list[str]) -> None:
    if _agreed(console, values, f" all {_IMAGES[values['all']]}.\n"):
        _tell(console, _prune(console, "images", values))


@command("", "-a, --all   Remove volumes that have a name too\n" + _OPTIONS)
def volume_prune(console: Console, values: Values, arguments: list[str]) -> None:
    kind = "all" if values["all"] or not _spares_named(console) else "anonymous"
    if _agreed(console, values, f" {kind} local volumes not used by at least one container.\n"):
        _tell(console, _prune(console, "volumes", values))


@command("", _OPTIONS)
def network_prune(console: Console, values: Values, arguments: list[str]) -> None:
    if _agreed(console, values, " all custom networks not used by at least one container.\n"):
        _prune(console, "networks", values)


@command(
    "",
    """
    -a, --all       Remove images that have a name too
        --volumes   Remove unnamed volumes too
    """
    + _OPTIONS,
)
def system_prune(console: Console, values: Values, arguments: list[str]) -> None:
    if values["volumes"] and any(word.startswith("until=") for word in values["filter"]):
        raise InvalidInput('The "until" filter is not supported with "--volumes"')
    going = ["all stopped containers", "all networks not used by at least one container"]
    if values["volumes"]:
        going += [f"all {'anonymous ' * _spares_named(console)}volumes not used by at least one container"]
    going += [f"all {_IMAGES[values['all']]}"]
    going += ["layers and downloads that nothing uses"] * (not values["filter"])
    text = ":\n" + "".join(f"  - {what}\n" for what in going) + "\n"
    if values["filter"]:
        text += "  Items to be pruned will be filtered with:\n" + "".join(f"  - {word}\n" for word in values["filter"])
        text += "\n"
    if not _agreed(console, values, text):
        return
    nouns = ["containers", "networks", *["volumes"] * values["volumes"], "images"]
    freed = sum([_prune(console, noun, values, whole=noun == "images") for noun in nouns])
    if not values["filter"]:
        with suppress(NotFound):  # a dockerd has no such call, and keeps no half downloads
            freed += int(console.client.prune()["SpaceReclaimed"])
    _tell(console, freed)


def _agreed(console: Console, values: Values, going: str) -> bool:
    if values["force"]:
        return True
    console.print(f"WARNING! This will remove{going}Are you sure you want to continue? [y/N] ", end="")
    return sys.stdin is not None and sys.stdin.readline().strip().lower() in ("y", "yes")


def _spares_named(console: Console) -> bool:
    """Whether volumes with a name stay; an older dockerd takes them too."""
    major, minor = map(int, console.client.version()["ApiVersion"].split("."))
    return (major, minor) >= (1, 42)


def _prune(console: Console, noun: str, values: Values, whole: bool = True) -> int:
    """Remove the unused ones and list them; bytes freed. `whole`: `--all` is about these."""
    filters = parse_filters(values["filter"])
    everything = whole and values.get("all", False)
    if noun == "images":
        filters["dangling"] = [str(not everything).lower()]
    if noun == "volumes" and everything and _spares_named(console):
        filters["all"] = ["true"]
    found = console.client.prune_nouns(noun, filters or None)
    gone = found.get(f"{noun.title()}Deleted") or []
    # A name or an id; an image's names and parts.
    lines = [line for item in gone for line in ([item] if isinstance(item, str) else _parts(item))]
    if lines:
        console.print("\n".join([f"Deleted {noun.title()}:", *lines, ""]))
    return int(found.get("SpaceReclaimed", 0))


def _parts(item: dict[str, str]) -> list[str]:
    return [f"{what.lower()}: {which}" for what, which in item.items()]


def _tell(console: Console, freed: int) -> None:
    console.print(f"Total reclaimed space: {units.size(freed)}")
