"""The catalogue: every word that code puts on the page, in `text/LANG/`: `common.toml`, and `NN.toml` for chapter NN.

Values are plain text (never markup) with `{fields}`; `begin(lang=…)` picks the folder. What a chapter's file holds is
found under its number. A missing key is an error, so a translation cannot silently fall back to English.
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

from minirt.errors import InvalidInput

_FOLDER = Path(__file__).with_name("text")


class Strings:
    """One language. Called with a dotted key it gives the text; `table` gives the raw value."""

    def __init__(self, lang: str = "en") -> None:
        self.lang = lang
        self._all = _read(lang)

    def table(self, key: str) -> Any:
        """The value at a dotted key. Raises InvalidInput for a key that is not there."""
        value: Any = self._all
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise InvalidInput(f"no text for {key!r} in the {self.lang} catalogue")
            value = value[part]
        return value

    def __call__(self, key: str, **fields: Any) -> str:
        return str(self.table(key)).format(**fields)


def languages() -> list[str]:
    """The languages there are, sorted."""
    return sorted(path.name for path in _FOLDER.iterdir() if (path / "common.toml").is_file())


@functools.cache
def _read(lang: str) -> dict[str, Any]:
    if lang not in languages():
        raise InvalidInput(f"no course in {lang!r}: there is {', '.join(languages())}")
    tables = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in (_FOLDER / lang).glob("*.toml")}
    return tables.pop("common") | tables
