"""The lecture's five kinds of files in an image: code, runtime, system tools, system libraries, settings; by one table.

An image does not say what a file is for, so this is a guess from its path, and for a few rules from its type. The first
rule that fits decides; what none fits is `other` (data, documentation, …), and said to be. Each rule has its sentence
in the catalogue (`explorer.rule.NAME`), which the explorer shows. Taught in chapter 05.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from typing import NamedTuple

from minirt.image.config import ImageConfig

KINDS = ("code", "runtime", "tools", "libraries", "settings", "other")


class Rule(NamedTuple):
    """`kind` of the paths that `pattern` is found in; with `program` only of files that may be executed.

    Without a pattern: of the files that the image's start-up command names.
    """

    kind: str
    name: str
    pattern: str | None
    program: bool = False


_SHELLS = "sh|ash|bash|dash|ksh|zsh"
_LANGUAGES = "python|pypy|perl|ruby|nodejs|node|deno|bun|java|php|lua|tclsh|Rscript|R|erl|mono|dotnet|guile"
_BRINGS = "python|perl|ruby|php|jvm|node|lua|tcl|R|erlang|dotnet"
_SOURCES = "py|pyc|sh|js|mjs|cjs|ts|rb|pl|php|lua|jar|war|class|go|rs|c|h|html|css"
_LABELS = r"METADATA|RECORD|VERSION|WHEEL|package\.json"

RULES = (
    Rule("settings", "etc", r"^/etc/"),
    Rule("settings", "dot", r"^/(root|home/[^/]+)/\."),
    Rule("runtime", "interpreter", rf"/bin/({_SHELLS}|({_LANGUAGES})[\d.]*)$"),
    Rule("code", "start", None),
    Rule("code", "package", r"/((site|dist)-packages|node_modules)/"),
    Rule("runtime", "standard", rf"^/usr/(local/)?(lib|share)/({_BRINGS})[\d.]*/"),
    Rule("libraries", "shared", r"/[^/]+\.so(\.[^/]+)?$"),
    Rule("code", "folder", r"^/(app|code|home|opt|srv|usr/src|var/www|workspace)/"),
    Rule("code", "local", r"^/usr/local/s?bin/"),
    Rule("code", "top", r"^/[^/]+$", program=True),
    Rule("libraries", "library", rf"^/usr/(local/)?lib/[^/]+/(.*\.({_SOURCES})|(.*/)?({_LABELS}))$"),
    Rule("code", "source", rf"\.({_SOURCES})$"),
    Rule("code", "label", rf"/({_LABELS})$"),
    Rule("tools", "bin", r"/(s?bin|libexec)/[^/]+$"),
    Rule("settings", "ending", r"\.(conf|cfg|ini|toml|ya?ml|env|properties)$"),
)  # fmt: skip
_COMPILED = [(rule, re.compile(rule.pattern) if rule.pattern else None) for rule in RULES]


def started(config: ImageConfig) -> frozenset[str]:
    """The paths that the image's start-up command may mean: its program, looked for along PATH, and whatever of its
    other words is an absolute path."""
    words = config.command()
    if not words:
        return frozenset()
    program = words[0]
    if "/" in program:
        names = [posixpath.join("/", config.working_dir, program)]
    else:
        search = next((value[5:] for value in config.env if value.startswith("PATH=")), "")
        names = [posixpath.join("/", folder, program) for folder in search.split(":")]
    return frozenset(posixpath.normpath(name) for name in [*names, *(word for word in words if word.startswith("/"))])


def rule(path: str, program: bool, starts: Collection[str] = ()) -> Rule | None:
    """The rule that decides over the file at `path` ("/usr/bin/env"); `program`: it may be executed; `starts`: see
    `started`. None where no rule fits."""
    for candidate, pattern in _COMPILED:
        if (path in starts) if pattern is None else (pattern.search(path) and (program or not candidate.program)):
            return candidate
    return None


def kind(path: str, program: bool, starts: Collection[str] = ()) -> str:
    """One of KINDS."""
    found = rule(path, program, starts)
    return found.kind if found else "other"
