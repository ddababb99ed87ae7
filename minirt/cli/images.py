"""The verbs of images: `pull`, `push`, `images`, `history`, `tag`, `rmi`."""

from __future__ import annotations

import sys

from minirt import units
from minirt.cli import table
from minirt.cli.console import Console
from minirt.cli.flags import UsageError, Values, command
from minirt.errors import InvalidInput

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_NONE = "<none>"


@command(
    "NAME[:TAG|@DIGEST]",
    """
    -a, --all-tags          Download every tag of the repository
        --platform string   Take the image for this platform, as linux/arm64
    -q, --quiet             Print the name only
    """,
)
def pull(console: Console, values: Values, arguments: list[str]) -> None:
    from minirt.cli import progress
    from minirt.image.reference import Reference

    name = arguments[0]
    reference = Reference.parse(name)
    tagged = "@" in name or ":" in name.rpartition("/")[2]
    if values["all-tags"] and tagged:
        raise InvalidInput("tag can't be used with --all-tags/-a")
    if not tagged and not values["all-tags"] and not values["quiet"]:
        console.print("Using default tag: latest")
    objects = console.client.pull(name, platform=values["platform"], all_tags=values["all-tags"])
    progress.show(objects, sys.stdout, values["quiet"])
    console.print(reference.name if values["all-tags"] else str(reference))


@command(
    "NAME[:TAG]",
    """
    -a, --all-tags   Upload every tag of the repository
    -q, --quiet      Print the name only
    """,
)
def push(console: Console, values: Values, arguments: list[str]) -> None:
    from minirt.cli import progress
    from minirt.image.reference import Reference

    name, everything = arguments[0], values["all-tags"]
    reference = Reference.parse(name)
    if not everything and not values["quiet"] and not reference.digest and ":" not in name.rpartition("/")[2]:
        console.print("Using default tag: latest")
    progress.show(console.client.push(name, everything), sys.stdout, values["quiet"], "push")
    if values["quiet"]:
        console.print(reference.name if everything else str(reference))


@command(
    "[REPOSITORY[:TAG]]",
    f"""
    -a, --all             Show images without a name too
        --digests         Show digests
    -f, --filter list     Show only those: reference=NAME, dangling=true
        --format string   {table.HELP}
        --no-trunc        Show whole ids
    -q, --quiet           Show ids only
    """,
)
def images(console: Console, values: Values, arguments: list[str]) -> None:
    filters = parse_filters(values["filter"])
    if arguments:
        filters["reference"] = [*filters.get("reference", []), arguments[0]]
    template = values["format"] or ("{{.ID}}" if values["quiet"] else None)
    digests = values["digests"] or ".Digest" in (template or "")
    found = console.client.images(all=values["all"], filters=filters or None)
    rows = (row for image in found for row in _image_rows(image, values["no-trunc"], digests))
    columns = ["Repository", "Tag", *["Digest"] * values["digests"], "ID", "CreatedSince", "Size"]
    table.show(console, rows, table.of(columns), template, ID="IMAGE ID", CreatedSince="CREATED", VirtualSize="SIZE")


def _image_rows(image: dict[str, Any], whole: bool, digests: bool) -> Iterator[dict[str, str]]:
    """One row a name; with digests, one a name and digest."""
    by_digest: dict[str, list[str]] = {}
    for name in image["RepoDigests"] or []:
        repository, _, digest = name.partition("@")
        by_digest.setdefault(repository, []).append(digest)
    names = [tuple(name.rpartition(":")[::2]) for name in image["RepoTags"] or []]
    tagged = {repository for repository, _ in names}
    names += [(repository, _NONE) for repository in by_digest if repository not in tagged]
    shared, containers = image.get("SharedSize", -1), image.get("Containers", -1)
    for repository, tag in names or [(_NONE, _NONE)]:
        for digest in (by_digest.get(repository) if digests else None) or [_NONE]:
            yield {
                "Containers": "N/A" if containers < 0 else str(containers),
                "CreatedAt": units.moment(image["Created"]),
                "CreatedSince": units.ago(image["Created"]),
                "Digest": digest,
                "ID": image["Id"] if whole else short(image["Id"]),
                "Repository": repository,
                "SharedSize": "N/A" if shared < 0 else units.size(shared),
                "Size": units.size(image["Size"], 3),
                "Tag": tag,
                "UniqueSize": "N/A" if shared < 0 else units.size(image["Size"] - shared),
                "VirtualSize": units.size(image["Size"]),
            }


@command(
    "IMAGE",
    f"""
        --format string   {table.HELP}
    -H, --human           Sizes and dates for people (default true)
        --no-trunc        Show whole ids and commands
    -q, --quiet           Show ids only
    """,
)
def history(console: Console, values: Values, arguments: list[str]) -> None:
    whole, human = values["no-trunc"], values["human"]
    rows = [
        {
            "Comment": step["Comment"],
            "CreatedAt": units.moment(step["Created"], rfc3339=True),
            "CreatedBy": step["CreatedBy"] if whole else table.shorten(step["CreatedBy"].replace("\t", " "), 45),
            "CreatedSince": units.ago(step["Created"]),
            "ID": step["Id"] if whole else short(step["Id"]),
            "Size": units.size(step["Size"], 3) if human else str(step["Size"]),
        }
        for step in console.client.history(arguments[0])
    ]
    columns = ["ID", "CreatedSince" if human else "CreatedAt", "CreatedBy", "Size", "Comment"]
    template = values["format"] or ("{{.ID}}" if values["quiet"] else None)
    table.show(console, rows, table.of(columns), template, ID="IMAGE", CreatedSince="CREATED")


@command("SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]")
def tag(console: Console, values: Values, arguments: list[str]) -> None:
    console.client.tag(*arguments)


@command(
    "IMAGE [IMAGE...]",
    """
    -f, --force   Remove it even if a stopped container uses it or it has other names
    """,
)
def rmi(console: Console, values: Values, arguments: list[str]) -> int:
    def act(name: str) -> None:
        for item in console.client.remove_image(name, force=values["force"]):
            for what, which in item.items():
                console.print(f"{what}: {which}")

    return console.each(arguments, act, values["force"])


def parse_filters(words: list[str]) -> dict[str, list[str]]:
    """`--filter KEY=VALUE` as the Engine API takes them. Raises UsageError."""
    filters: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            why = "bad format of filter (expected name=value)"
            raise UsageError(f'invalid argument "{word}" for "-f, --filter" flag: {why}')
        filters.setdefault(key.strip().lower(), []).append(value.strip())
    return filters


def short(identity: str) -> str:
    """The 12 digits that are shown of an id."""
    return identity.removeprefix("sha256:")[:12] if identity != "<missing>" else identity
