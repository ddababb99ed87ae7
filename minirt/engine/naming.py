"""Names for containers that were given none: an adjective and a Korean dish, `brave_bibimbap`."""

from __future__ import annotations

import secrets
from collections.abc import Container

_ADJECTIVES = (
    "brave bright calm clever curious eager fancy gentle happy honest jolly keen kind lively lucky mellow merry "
    "modest nimble patient proud quick quiet serene shiny silent smart steady sunny swift tender tidy vivid warm wise witty"
).split()
_DISHES = (
    "bibimbap bulgogi bungeoppang gimbap galbi gukbap gyoza hotteok injeolmi japchae jeon jjajang jjigae jokbal kalguksu "
    "kimchi kongguksu mandu miyeok naengmyeon ramyeon samgyetang seolleongtang songpyeon sundubu tteokbokki yakgwa yukgaejang"
).split()


def random_name(taken: Container[str]) -> str:
    """A name not in `taken`; a number is added once the plain ones run short."""
    for attempt in range(1000):
        name = f"{secrets.choice(_ADJECTIVES)}_{secrets.choice(_DISHES)}"
        if attempt >= 6:
            name += str(secrets.randbelow(10 ** (attempt // 6)))
        if name not in taken:
            return name
    raise RuntimeError("no free container name found")
