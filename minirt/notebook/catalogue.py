"""The catalogue: every word that code puts on the page, one TOML file a language, in `text/`.

Values are plain text (never markup) with `{fields}`; `begin(lang=…)` picks the file. Tables under a chapter's number
hold its questions. A missing key is an error, so a translation cannot silently fall back to English.
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
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


@functools.cache
def _read(lang: str) -> dict[str, Any]:
    if lang not in languages():
        raise InvalidInput(f"no course in {lang!r}: there is {', '.join(languages())}")
    return tomllib.loads((_FOLDER / f"{lang}.toml").read_text(encoding="utf-8"))
