"""Filters of lists (`--filter key=value`): values of one key are alternatives, keys all must hold (docker's rule)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from minirt.errors import InvalidInput

Test = Callable[[dict[str, Any], str], bool]


def matches(item: dict[str, Any], filters: Mapping[str, list[str]] | None, known: Mapping[str, Test]) -> bool:
    """Does `item` pass? Raises InvalidInput for a filter that is not known."""
    for key, values in (filters or {}).items():
        if key not in known:
            raise InvalidInput(f"invalid filter '{key}' (there are: {', '.join(sorted(known))})")
        try:
            if not any(known[key](item, value) for value in values):
                return False
        except re.error as error:
            raise InvalidInput(f"invalid filter '{key}': {error}") from error
    return True
