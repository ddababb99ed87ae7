"""`WWW-Authenticate`: what authorization a server asks for, in words a program can read.

    Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull", Basic realm="x"

Grammar: RFC 9110, sections 5.6 and 11.6.1. Challenges and their parameters are both separated by commas, so where one
challenge ends is known only from the next word: `name=` is a parameter, `Name ` a new scheme. More is accepted than the
RFC allows in one place, as registries need it: an unquoted value may hold any visible character but `"` and `,`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_END = r"(?=[ \t]*(?:,|$))"
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*+)"|([^\s",]++)){_END}', re.DOTALL)
_TOKEN68 = re.compile(rf"[A-Za-z0-9._~+/-]+=*{_END}")
_SCHEME = re.compile(rf"({_TOKEN})(?:[ \t]+|{_END})")
_GAP = re.compile(r"[ \t,]*")


@dataclass(frozen=True)
class Challenge:
    """One scheme and its parameters; scheme and parameter names are lower-case."""

    scheme: str
    parameters: Mapping[str, str]


def parse(header: str) -> list[Challenge]:
    """The challenges in a header's value, in order. Reading stops at the first malformed word; never raises."""
    found: list[tuple[str, dict[str, str]]] = []
    at = _skip(header, 0)
    while at < len(header):
        parameter = _PARAMETER.match(header, at) if found else None
        if parameter:
            name, quoted, plain = parameter.groups()
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
            found[-1][1].setdefault(name.lower(), value)
            at = _skip(header, parameter.end())
            continue
        scheme = _SCHEME.match(header, at)
        if not scheme:
            break
        found.append((scheme[1].lower(), {}))
        at = scheme.end()
        # A lone token68 (`Negotiate YII=`) tells us nothing; `a=b` is never one, as `=` stands only at its end.
        blob = _TOKEN68.match(header, at)
        at = _skip(header, blob.end() if blob else at)
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def _skip(header: str, at: int) -> int:
    match = _GAP.match(header, at)
    return match.end() if match else at
