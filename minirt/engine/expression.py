"""A client's regular expression, looked for in names: `--filter name=^web`.

Python's `re` goes back and tries again: over a repetition of repetitions (`(a+)+$`) that takes for ever, and no other
thread runs meanwhile. So what is more than plain letters is looked for in a process of its own, and for a moment only.
Source: moby's filters take Go's regular expressions, which know neither. Taught in chapter 04.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable

from minirt import child
from minirt.errors import InvalidInput

_SECONDS = 2.0  # a hundred names take none of it
_MEMORY = 1 << 29  # bytes


def matching(value: str, texts: Iterable[str]) -> set[str]:
    """Those of `texts` that are `value`, or in which the regular expression `value` is found. Raises InvalidInput."""
    texts = set(texts)
    if plain := re.fullmatch(r"(\^?)([A-Za-z0-9_/-]*)(\$?)", value):
        begins, word, ends = plain.groups()
        if begins and ends:
            return texts & {word}
        return {
            text
            for text in texts
            if (text.startswith(word) if begins else text.endswith(word) if ends else word in text)
        }
    import subprocess

    asked = json.dumps([value, sorted(texts)])
    try:
        done = subprocess.run(
            child.command("minirt.engine.expression"), input=asked.encode(), capture_output=True, timeout=_SECONDS
        )
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        found = "it takes too long"
    except ValueError:  # it ended without an answer: at the end of its memory
        found = "it takes too much memory"
    if isinstance(found, str):
        raise InvalidInput(f"invalid filter: {value[:80]!r} is no regular expression that can be looked for: {found}")
    return texts & {value} | set(found)


def main() -> int:
    """The other process: what was asked on stdin, what is found on stdout, or what is wrong (`child.command`)."""
    with contextlib.suppress(ImportError):  # Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    value, texts = json.load(sys.stdin)
    answer: list[str] | str
    try:
        pattern = re.compile(value)
        answer = [text for text in texts if pattern.search(text)]
    except (re.error, OverflowError, RecursionError) as error:
        answer = str(error)
    print(json.dumps(answer))
    return 0
