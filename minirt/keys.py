"""The keys that leave a container's terminal (`ctrl-p,ctrl-q`): what they are, and looking for them in what is typed.

As docker does (moby/term): what may be their beginning waits for the next key. Taught in chapter 08.
"""

from __future__ import annotations

from minirt.errors import InvalidInput

DETACH_KEYS = "ctrl-p,ctrl-q"


def parse_keys(text: str | None) -> bytes:
    """The bytes of `ctrl-p,ctrl-q` or `a,b`; the default where nothing is given. Raises InvalidInput."""
    import re

    found = b""
    for word in (text or DETACH_KEYS).split(","):
        control = re.fullmatch(r"ctrl-([a-z@\[\\\]^_])", word, re.ASCII)
        if not control and (len(word) != 1 or not word.isascii()):
            raise InvalidInput(f"Invalid detach keys ({text}) provided")
        found += bytes([ord(control[1].upper()) ^ 64]) if control else word.encode()
    return found


class Keys:
    """Looks for the detach keys in what is typed."""

    def __init__(self, wanted: bytes) -> None:
        self._wanted, self._seen = wanted, 0

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What may go in, and whether the keys were complete: then nothing after them does."""
        out = b""
        for byte in data:
            if byte != self._wanted[self._seen]:
                out += self._wanted[: self._seen]
                self._seen = 0
            if byte != self._wanted[self._seen]:
                out += bytes([byte])
                continue
            self._seen += 1
            if self._seen == len(self._wanted):
                return out, True
        return out, False
