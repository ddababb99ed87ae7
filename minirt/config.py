"""What the machine's owner and the user say: read here, the parts checked by the rooms they are for.

`/etc/minirt/config.toml` is for all users of the machine, `~/.config/minirt/config.toml` a user's own. A key of the
user's takes the place of the same key of the machine's (an empty list turns it off); the others hold.

registry-mirrors, insecure-registries    lists: minirt.registry.settings
additional-stores                        a list of absolute paths: minirt.store.additional
[limits]                                 what one layer may cost: minirt.store.limits
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minirt.errors import InvalidInput

MACHINE = Path("/etc/minirt/config.toml")
_KEYS = ("registry-mirrors", "insecure-registries", "additional-stores", "limits")
_stamp: tuple[object, ...] | None = None
_stores: tuple[Path, ...] = ()


def read(path: Path | None = None, *keys: str) -> tuple[Path, dict[str, Any]]:
    """What the files say, or this one alone; an absent one says nothing. And which file says one of `keys`, or would.

    Raises InvalidInput that names the file and the fault, also for a key that nobody knows.
    """
    if path is not None:
        return path, _read(path)
    own = _own()
    machines, users = _read(MACHINE), _read(own)
    where = MACHINE if any(key in machines for key in keys) and not any(key in users for key in keys) else own
    return where, machines | users


def _own() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(home, "minirt", "config.toml")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput(f"{path}: {error}") from error
    import tomllib  # most users have no such file, and wait for nothing

    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: {error}") from error
    for key in table:
        if key not in _KEYS:
            raise InvalidInput(f"{path}: unknown key {key!r}; the keys are {', '.join(_KEYS)}")
    return table


def additional_stores() -> tuple[Path, ...]:
    """The folders that `additional-stores` names, the first first, or else the environment, with a `:` between.

    Asked for often: the files are read again where they have changed. Raises InvalidInput.
    """
    global _stamp, _stores
    given = os.environ.get("MINIRT_ADDITIONAL_STORES")
    stamp: tuple[object, ...] = (given,) if given is not None else (_state(MACHINE), _state(_own()))
    if stamp != _stamp:
        if given is None:
            path, table = read(None, "additional-stores")
            _stores = _paths(table.get("additional-stores", []), f"{path}: additional-stores")
        else:
            _stores = _paths([path for path in given.split(os.pathsep) if path], "MINIRT_ADDITIONAL_STORES")
        _stamp = stamp
    return _stores


def _state(path: Path) -> tuple[object, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return (path,)
    return path, status.st_mtime_ns, status.st_size, status.st_ino


def _paths(values: Sequence[Any], where: str) -> tuple[Path, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InvalidInput(f"{where} is not a list of strings")
    for value in values:
        if not value.startswith("/") or "\0" in value:
            raise InvalidInput(f"{where}: {value!r} is not an absolute path")
    return tuple(dict.fromkeys(Path(value) for value in values))
