"""Names for containers that were given none: an adjective and a Korean dish, `brave_bibimbap`."""

from __future__ import annotations

import secrets
from collections.abc import Container

_ADJECTIVES = """brave bright calm clever curious eager fancy gentle happy honest jolly keen kind lively lucky mellow
merry modest nimble patient proud quick quiet serene shiny smart steady sunny swift tender tidy vivid warm wise witty"""
_DISHES = """bibimbap bulgogi bungeoppang gimbap galbi gukbap hotteok injeolmi japchae jeon jjajang jjigae kalguksu
kongguksu mandu miyeok naengmyeon ramyeon samgyetang seolleongtang songpyeon sundubu tteokbokki yakgwa yukgaejang"""


def random_name(taken: Container[str]) -> str:
    """A name not in `taken`; a number is added once the plain ones run short."""
    for attempt in range(1000):
        name = f"{secrets.choice(_ADJECTIVES.split())}_{secrets.choice(_DISHES.split())}"
        if attempt >= 6:
            name += str(secrets.randbelow(10 ** (attempt // 6)))
        if name not in taken:
            return name
    raise RuntimeError("no free container name found")
