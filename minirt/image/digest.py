"""A digest: the name of some bytes, made from the bytes (`sha256:9834…`).

Invariant: a `Digest` is always well formed (known algorithm, right length, lower-case hex), so it is safe as a file
name. Grammar: OCI image-spec, descriptor.md, section "Digests". Taught in chapter 05.
"""

from __future__ import annotations

import re

from minirt.errors import InvalidInput

TYPE_CHECKING = False  # typing's own loads for 2 ms, and hashlib, with OpenSSL, for 4
if TYPE_CHECKING:
    from hashlib import _Hash

_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}


class Digest(str):
    """`algorithm:hex`, validated. A `str`, so it serialises and compares as one."""

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        """Parse `text`. Raises InvalidInput for anything but a registered algorithm and its exact length in hex."""
        algorithm, colon, hexadecimal = text.partition(":")
        if not colon:
            raise InvalidInput(f"invalid checksum digest format: {text[:160]!r}")
        if algorithm not in _HEX_LENGTH:
            raise InvalidInput(f"unsupported digest algorithm: {algorithm[:80]!r}")
        if len(hexadecimal) != _HEX_LENGTH[algorithm]:
            raise InvalidInput(f"invalid checksum digest length: {text[:160]!r}")
        if not re.fullmatch("[0-9a-f]+", hexadecimal):
            raise InvalidInput(f"invalid checksum digest format: {text[:160]!r}")
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """The first 12 hex digits, as docker shows ids."""
        return self.hex[:12]

    def hasher(self) -> _Hash:
        """A fresh hash object of this digest's algorithm."""
        import hashlib

        return hashlib.new(self.algorithm)

    def matches(self, hasher: _Hash) -> bool:
        return hasher.hexdigest() == self.hex

    @classmethod
    def of(cls, content: bytes) -> Digest:
        """The sha256 digest of `content`."""
        import hashlib

        return cls("sha256:" + hashlib.sha256(content).hexdigest())
