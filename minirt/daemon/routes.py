"""The table of the API's paths. A route takes the engine and an exchange; it only translates.

containers.py, processes.py, images.py and system.py add theirs with `route` when server.py loads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from minirt.daemon.exchange import Exchange, unquoted
from minirt.errors import MinirtError, NotFound

if TYPE_CHECKING:
    from minirt.engine import Engine

Route = Callable[..., None]
Bound = Callable[["Engine", Exchange], None]
_ROUTES: dict[str, list[tuple[re.Pattern[str], Route]]] = {}


def route(*targets: str) -> Callable[[Route], Route]:
    """Of `METHOD /path/{name}/…`: `{name}` is one part of a path, `{name+}` at least one; the route gets them."""

    def add(function: Route) -> Route:
        for target in targets:
            method, _, path = target.partition(" ")
            pattern = re.sub(r"\{(\w+)\+\}", r"(?P<\1>.+)", path)
            pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
            _ROUTES.setdefault(method, []).append((re.compile(pattern), function))
        return function

    return add


def find(exchange: Exchange) -> Bound:
    """The route of a request. Raises NotFound, or 405 where the path has other methods."""
    path = exchange.path.rstrip("/") or "/"
    for pattern, function in _ROUTES.get(exchange.method, ()):
        if found := pattern.fullmatch(path):
            words = {name: unquoted(value) for name, value in found.groupdict().items()}
            return lambda engine, exchange: function(engine, exchange, **words)
    error: MinirtError = NotFound("page not found")
    if any(pattern.fullmatch(path) for routes in _ROUTES.values() for pattern, _ in routes):
        error = MinirtError(f"method {exchange.method} is not allowed here")
        error.status = 405
    raise error
