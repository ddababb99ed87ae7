"""`events`: what the daemon tells of what happens (chapter 04)."""

from __future__ import annotations

import datetime
from typing import Any

from minirt.cli.console import Console
from minirt.cli.flags import Values, command
from minirt.cli.images import parse_filters
from minirt.cli.table import escapes, fill, parse
from minirt.cli.words import moment


@command(
    "",
    """
    -f, --filter list     Show only those: type=, event=, container=, image=, label=
        --format string   Show them with a Go template, or as JSON with {{json .}}
        --since string    What came after: a time, or how long ago (10m)
        --until string    Until then, and end
    """,
)
def events(console: Console, values: Values, arguments: list[str]) -> None:
    since, until = moment(values["since"]), moment(values["until"])
    form = values["format"]
    template = parse("{{json .}}" if form == "json" else escapes(form)) if form else None
    for event in console.client.events(since, until, **parse_filters(values["filter"])):
        console.print(fill(template, event) if template else _line(event), end="\n")
        console.flush()


def _line(event: dict[str, Any]) -> str:
    """As docker: the local time, what, whose id, and what is known of it."""
    actor = event["Actor"]
    known = ", ".join(f"{key}={value}" for key, value in sorted(actor["Attributes"].items()))
    seconds, nanoseconds = divmod(event["timeNano"], 10**9)
    when = datetime.datetime.fromtimestamp(seconds).astimezone()
    zone = when.strftime("%z")
    stamp = f"{when:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}{zone[:3]}:{zone[3:]}"
    return f"{stamp} {event['Type']} {event['Action']} {actor['ID']}" + (f" ({known})" if known else "")
