"""What the command's own start needs of json and contextlib, without what those load.

`import json` compiles six regular expressions, and with them come re, enum, functools and collections: 8 ms, longer
than the interpreter itself takes. What does the work in json is `_json`, in C, and that is used here. `minirt run` and
`minirt exec` load this in place of json, contextlib, re, signal, socket and threading; everything else need not care.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


__all__ = ["dumps", "loads", "nullcontext", "suppress"]


class suppress:
    """`contextlib.suppress`."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self._kinds)


class nullcontext:
    """`contextlib.nullcontext`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _Reading:
    """What json.JSONDecoder is by default, for the scanner in C."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def _refuse(value: object) -> Any:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _in_c() -> tuple[Callable[[str, int], tuple[Any, int]], Callable[[Any, int], Any]]:
    """The scanner and the encoder. Raises ImportError, TypeError, AttributeError where this Python has others."""
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    encoder = make_encoder(None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)
    scanner: Any = make_scanner(_Reading())  # type: ignore[arg-type]
    return scanner, encoder


def _loads(data: str | bytes) -> Any:
    """`json.loads` of UTF-8. Raises ValueError."""
    text = (data if isinstance(data, str) else data.decode()).strip(" \t\n\r")
    with suppress(StopIteration, SystemError, ValueError):  # the second: the error's class is in json, yet to be loaded
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    import json  # it says what is wrong

    return json.loads(text)


def _dumps(value: Any) -> str:
    """`json.dumps`. Raises TypeError."""
    return "".join(_encode(value, 0))


try:
    _scan, _encode = _in_c()
    loads, dumps = _loads, _dumps
except (ImportError, TypeError, AttributeError):  # another Python than CPython, or a later one
    from json import dumps, loads  # type: ignore[assignment]
