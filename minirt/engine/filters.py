"""Filters of lists (`--filter key=value`): values of one key are alternatives, keys all must hold (docker's rule).

Source: moby api/types/filters, daemon/list.go, daemon/images; docker's reference of `ps`, `images` and `prune`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from minirt.engine.expression import matching
from minirt.errors import InvalidInput

Test = Callable[[Mapping[str, Any], str], bool]
Filters = Mapping[str, list[str]]
_STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
_HEALTH = ("none", "starting", "healthy", "unhealthy")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = rf"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)({'|'.join(_UNITS)})"


def check(filters: Filters | None, known: Iterable[str]) -> None:
    """Raises InvalidInput for a filter that is not known."""
    for key in filters or ():
        if key not in known:
            raise InvalidInput(f"invalid filter '{key}' (there are: {', '.join(sorted(known))})")


def matches(item: Mapping[str, Any], filters: Filters | None, known: Mapping[str, Test]) -> bool:
    """Does `item` pass? Raises InvalidInput for a filter that is not known. All values of a label must hold."""
    check(filters, known)
    for key, values in (filters or {}).items():
        found = [known[key](item, value) for value in values]
        if not (all(found) if key in ("label", "label!") else any(found)):
            return False
    return True


def truth(filters: Filters | None, key: str, default: bool) -> bool:
    """The value of a filter that is true or false. Raises InvalidInput."""
    values = set((filters or {}).get(key) or ())
    if not values:
        return default
    if values <= {"1", "true", "True", "TRUE", "t", "T"}:
        return True
    if values <= {"0", "false", "False", "FALSE", "f", "F"}:
        return False
    raise _invalid(key, f"[{' '.join(sorted(values))}]")


def moment(text: str) -> float:
    """Seconds of the epoch: `1700000000.5`, `2026-01-01T00:00:00Z` (or less of it, local time), `1h30m` (ago).

    Raises InvalidInput.
    """
    if re.fullmatch(r"-?[0-9]+(\.[0-9]{1,9})?", text, re.ASCII):
        return float(text)
    if re.fullmatch(f"({_PART})+", text, re.ASCII):
        return time.time() - sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text))
    try:
        # Python reads no more than microseconds.
        return datetime.fromisoformat(re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text)).timestamp()
    except ValueError:
        raise InvalidInput(f'failed to parse value as time or duration: "{text[:80]}"') from None


def label(item: Mapping[str, Any], value: str) -> bool:
    """`key`, or `key=value`."""
    labels, (key, equals, wanted) = item.get("Labels") or {}, value.partition("=")
    return key in labels and (not equals or labels[key] == wanted)


def ports(value: str, what: str) -> set[str]:
    """`80`, `80/udp`, `8000-8080`: as docker writes ports. Raises InvalidInput."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", value, re.ASCII)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if match is None or not first <= last <= 65535:
        raise InvalidInput(f"error while looking up for {what} {value[:80]}: invalid port")
    return {f"{port}/{match[3] or 'tcp'}" for port in range(first, last + 1)}


def _invalid(key: str, value: str) -> InvalidInput:
    return InvalidInput(f"invalid filter '{key}={value[:80]}'")


def containers(
    filters: Filters | None,
    records: list[dict[str, Any]],
    find: Callable[[str], dict[str, Any]],
    image: Callable[[str], str],
) -> dict[str, Test]:
    """The tests of `ps`, on a summary with `record` and `code` in it. `records` are those of all containers, `find`
    gives one by its name, `image` the id of an image's name, or "". Raises InvalidInput, NotFound for values that
    cannot be."""
    given = {key: list(values) for key, values in (filters or {}).items()}
    for key, allowed in ("status", _STATES), ("health", _HEALTH):
        for value in given.get(key, ()):
            if value not in allowed:
                raise _invalid(key, value)
    for value in given.get("exited", ()):
        if not re.fullmatch("-?[0-9]{1,9}", value, re.ASCII):
            raise InvalidInput(f"invalid filter 'exited={value[:80]}': a number is wanted")
    task = truth(filters, "is-task", False)
    created = {value: find(value)["Created"] for key in ("before", "since") for value in given.get(key, ())}
    images = {value: image(value) for value in given.get("ancestor", ())}
    wanted = {(key, value): ports(value, key) for key in ("publish", "expose") for value in given.get(key, ())}
    names = [f"{slash}{record['Name']}" for record in records for slash in ("", "/")]
    named = {value: matching(value, names) for value in given.get("name", ())}

    def volume(item: Mapping[str, Any], value: str) -> bool:
        return any(value in (mount.get("Name"), mount["Destination"]) for mount in item["Mounts"])

    def network(item: Mapping[str, Any], value: str) -> bool:
        found = item["NetworkSettings"]["Networks"].items()
        return any(value == name or place["NetworkID"].startswith(value or " ") for name, place in found)

    return {
        "id": lambda item, value: str(item["Id"]).startswith(value),
        "name": lambda item, value: not named[value].isdisjoint((item["record"]["Name"], f"/{item['record']['Name']}")),
        "status": lambda item, value: bool(item["State"] == value),
        "exited": lambda item, value: item["State"] == "exited" and item["code"] == int(value),
        "label": label,
        "ancestor": lambda item, value: images[value] == item["ImageID"],
        "before": lambda item, value: item["record"]["Created"] < created[value],
        "since": lambda item, value: item["record"]["Created"] > created[value],
        "volume": volume,
        "network": network,
        "publish": lambda item, value: (
            not wanted["publish", value].isdisjoint(item["record"]["HostConfig"].get("PortBindings") or ())
        ),
        "expose": lambda item, value: (
            not wanted["expose", value].isdisjoint(item["record"]["Config"].get("ExposedPorts") or ())
        ),
        "health": lambda item, value: value == "none",  # no container has a health check here
        "is-task": lambda item, value: not task,
    }


def prune(filters: Filters | None) -> dict[str, Test]:
    """The tests of a prune, on a thing with `Created` (seconds of the epoch) and `Labels`. Raises InvalidInput."""
    until = {value: moment(value) for value in (filters or {}).get("until") or ()}
    if len(until) > 1:
        raise InvalidInput("more than one until filter specified")
    return {
        "until": lambda item, value: item["Created"] < until[value],
        "label": label,
        "label!": lambda item, value: not label(item, value),
    }
