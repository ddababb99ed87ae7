"""What a container wrote as a list, a tar, an image: `diff`, `export`, `commit`; `import` of a tar (chapter 06)."""

from __future__ import annotations

import sys

from minirt.cli.archive import output
from minirt.cli.console import Console
from minirt.cli.flags import UsageError, Values, command
from minirt.errors import InvalidInput

_KINDS = "CAD"


@command("CONTAINER")
def diff(console: Console, values: Values, arguments: list[str]) -> None:
    if not arguments[0]:
        raise UsageError("Container name cannot be empty", 1)
    for change in console.client.changes(arguments[0]):
        console.print(f"{_KINDS[change['Kind']]} {change['Path']}")


@command(
    "CONTAINER [REPOSITORY[:TAG]]",
    """
    -a, --author string    Who made it
    -c, --change list      Change its configuration by a Dockerfile's instruction
    -m, --message string   A comment
    -p, --pause            Hold the container still meanwhile (default true)
    """,
)
def commit(console: Console, values: Values, arguments: list[str]) -> None:
    repo, tag = _name(arguments[1], "commit") if len(arguments) > 1 else ("", "")
    console.print(
        console.client.commit(
            arguments[0],
            repo=repo,
            tag=tag,
            author=values["author"],
            comment=values["message"],
            changes=values["change"],
            pause=None if values["pause"] else "0",
        )
    )


@command("CONTAINER", "-o, --output file   Write to a file, not to standard output")
def export(console: Console, values: Values, arguments: list[str]) -> None:
    """Every file of the container as one tar."""
    output(values["output"], lambda: console.client.export(arguments[0]))


@command(
    "FILE|- [REPOSITORY[:TAG]]",
    """
    -c, --change list       Set its configuration by a Dockerfile's instruction
    -m, --message string    A comment
        --platform string   The platform it is for, as linux/arm64
    """,
)
def import_(console: Console, values: Values, arguments: list[str]) -> None:
    source, client = arguments[0], console.client
    if source.startswith(("http://", "https://")):
        raise InvalidInput("importing from a URL is not possible here: download it, and import the file")
    repo, tag = _name(arguments[1], "import") if len(arguments) > 1 else ("", "")
    with open(source, "rb") if source != "-" else sys.stdin.buffer as stream:
        for item in client.import_image(
            stream, repo, tag, values["message"] or "", values["change"], values["platform"]
        ):
            if item.get("status"):
                console.print(item["status"])


def _name(text: str, what: str) -> tuple[str, str]:
    """The repository and tag of a new image. Raises InvalidInput."""
    from minirt.image.reference import Reference

    reference = Reference.parse(text)
    if reference.digest:
        raise InvalidInput(f"refusing to create {what} reference with digest reference")
    return reference.name, str(reference.tag)
