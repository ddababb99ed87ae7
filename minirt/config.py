"""The user's own file, `~/.config/minirt/config.toml`: read here, its parts checked by the rooms they are for.

registry-mirrors, insecure-registries    lists: minirt.registry.settings
[limits]                                 what one layer may cost: minirt.store.limits
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from minirt.errors import InvalidInput

_KEYS = ("registry-mirrors", "insecure-registries", "limits")


def read(path: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Where the file is, or would be, and what it says; an absent one says nothing.

    Raises InvalidInput that names the file and the fault, also for a key that nobody knows.
    """
    import tomllib

    if path is None:
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        path = Path(home, "minirt", "config.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return path, {}
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: {error}") from error
    for key in table:
        if key not in _KEYS:
            raise InvalidInput(f"{path}: unknown key {key!r}; the keys are {', '.join(_KEYS)}")
    return path, table
