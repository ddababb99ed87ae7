"""What unpacking one layer may cost: generous for real images, and a bomb is stopped with a clear error.

The user may set each of them in config.toml:

    [limits]
    entries = 5_000_000
    bytes-out = "500GiB"

Taught in chapter 05.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from minirt import config, units
from minirt.errors import InvalidInput, UnpackError

_SIZES = ("bytes_out", "file_size", "memory")  # a number of bytes, or `2GiB`


@dataclass(frozen=True)
class Limits:
    """What one layer may cost. A layer of 600 MB and 27,000 files takes 2 seconds and 30 MB of memory."""

    entries: int = 2_000_000
    depth: int = 256  # directories above one file
    bytes_out: int = 256 << 30
    file_size: int = 64 << 30  # apparent size of one file, holes counted
    ratio: int = 500  # plain to compressed, once past a gigabyte
    memory: int = 1 << 30  # bytes, of the process that unpacks
    seconds: int = 3600  # of processor time: waiting for a slow registry or disk is free

    @classmethod
    def load(cls, path: Path | None = None) -> Limits:
        """As config.toml sets them. Raises InvalidInput that names the file and the fault."""
        path, table = config.read(path, "limits")
        given = table.get("limits", {})
        if not isinstance(given, dict):
            raise InvalidInput(f"{path}: limits is not a table: write [limits] and the limits below it")
        names = [field.name for field in fields(cls)]
        found: dict[str, int] = {}
        for key, value in given.items():
            name = key.replace("-", "_")
            if name not in names or "_" in key:
                known = ", ".join(word.replace("_", "-") for word in names)
                raise InvalidInput(f"{path}: unknown limit {key!r}; the limits are {known}")
            if name in _SIZES and isinstance(value, str):
                try:
                    value = units.parse_size(value)
                except InvalidInput as error:
                    raise InvalidInput(f"{path}: limits.{key}: {error}") from error
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 62:
                kind = "a size like 2GiB" if name in _SIZES else "a whole number"
                raise InvalidInput(f"{path}: limits.{key} is not {kind} above 0")
            found[name] = value
        return cls(**found)


class OverLimit(UnpackError):
    """Something is larger than `limit`, the name of one of Limits."""

    def __init__(self, limit: str, message: str) -> None:
        super().__init__(message)
        self.limit = limit

    def advice(self) -> str:
        """The message, and how to allow more."""
        key = self.limit.replace("_", "-")
        return f"{self}; if you trust it, raise `{key}` under [limits] in ~/.config/minirt/config.toml"
