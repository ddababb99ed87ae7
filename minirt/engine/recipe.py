"""The settings of an image that is made of a container or a tar: the Dockerfile instructions that `commit --change` and
`import --change` take, and how they go with what the container already says.

Sources: moby builder/dockerfile BuildFromConfig, runconfig and daemon/commit.go merge; the Dockerfile reference.
Taught in chapter 05.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Callable, Iterable
from typing import Any

from minirt.errors import InvalidInput, Unsupported

_KEPT = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "OnBuild",
    "Healthcheck", "Shell",
)  # fmt: skip
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
Settings = dict[str, Any]


def of_container(config: Settings) -> Settings:
    """What a container's Config says that an image's can."""
    return {key: config[key] for key in _KEPT if config.get(key)}


def merged(settings: Settings, own: Settings) -> Settings:
    """`settings`, and what only `own` says. Empty fields are left out."""
    out = {key: value for key, value in settings.items() if key in _KEPT}
    for key in ("ExposedPorts", "Volumes", "Labels"):
        out[key] = (own.get(key) or {}) | (out.get(key) or {})
    names = {entry.partition("=")[0] for entry in out.get("Env") or ()}
    more = [entry for entry in own.get("Env") or () if entry.partition("=")[0] not in names]
    out["Env"] = [*(out.get("Env") or ()), *more]
    if not out.get("Entrypoint"):
        out["Cmd"] = out.get("Cmd") or own.get("Cmd")
        if out.get("Entrypoint") is None:
            out["Entrypoint"] = own.get("Entrypoint")
    for key in ("User", "WorkingDir", "StopSignal", "Healthcheck", "OnBuild", "Shell"):
        out[key] = out.get(key) or own.get(key)
    return {key: out[key] for key in _KEPT if out.get(key)}


def applied(settings: Settings, changes: Iterable[str]) -> Settings:
    """`settings` after these instructions. Raises InvalidInput, Unsupported."""
    out = json.loads(json.dumps({key: value for key, value in settings.items() if value}))
    commanded = False
    for line in (line.strip() for text in changes for line in text.replace("\\\n", "").splitlines()):
        if not line or line.startswith("#"):
            continue
        word, _, text = line.partition(" ")
        instruction = _INSTRUCTIONS.get(word.upper())
        if word.upper() == "HEALTHCHECK":
            raise Unsupported("health checks are not supported")
        if instruction is None:
            raise InvalidInput(f"{word.lower()} is not a valid change command")
        if not text.strip():
            raise InvalidInput(f"{word.upper()} requires at least one argument")
        commanded = commanded or word.upper() == "CMD"
        instruction(out, text.strip())
        if word.upper() == "ENTRYPOINT" and not commanded:
            out.pop("Cmd", None)
    return {key: value for key, value in out.items() if value}


def _command(key: str) -> Callable[[Settings, str], None]:
    def instruction(out: Settings, text: str) -> None:
        out[key] = _list(text) or [*(out.get("Shell") or ("/bin/sh", "-c")), text]

    return instruction


def _list(text: str) -> list[str] | None:
    """The words of a JSON list; None where it is none."""
    try:
        words = json.loads(text)
    except ValueError:
        return None
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def _words(out: Settings, text: str) -> list[str]:
    """Split as a shell would, variables replaced by what the environment so far says."""
    known = dict(entry.partition("=")[::2] for entry in out.get("Env") or ())
    try:
        return shlex.split(_VARIABLE.sub(lambda match: known.get(match[1] or match[2], ""), text))
    except ValueError as error:
        raise InvalidInput(f"{text[:80]!r} cannot be split into words: {error}") from error


def _pairs(out: Settings, text: str, what: str) -> dict[str, str]:
    """`key=value …`, or `key value` of which all the rest is the value."""
    words = _words(out, text)
    if "=" not in words[0]:
        if len(words) < 2:
            raise InvalidInput(f"{what} must have two arguments")
        return {words[0]: " ".join(words[1:])}
    for word in words:
        if "=" not in word:
            raise InvalidInput(f"Syntax error - can't find = in {json.dumps(word)}. Must be of the form: name=value")
    return dict(word.partition("=")[::2] for word in words)


def _env(out: Settings, text: str) -> None:
    entries = {entry.partition("=")[0]: entry for entry in out.get("Env") or ()}
    entries |= {key: f"{key}={value}" for key, value in _pairs(out, text, "ENV").items()}
    out["Env"] = list(entries.values())


def _label(out: Settings, text: str) -> None:
    out["Labels"] = (out.get("Labels") or {}) | _pairs(out, text, "LABEL")


def _expose(out: Settings, text: str) -> None:
    ports = out.setdefault("ExposedPorts", {})
    for word in _words(out, text):
        match = re.fullmatch("([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", word, re.ASCII | re.IGNORECASE)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match is None or not first <= last < 65536:
            raise InvalidInput(f"Invalid containerPort: {word[:80]}")
        ports |= {f"{port}/{(match[3] or 'tcp').lower()}": {} for port in range(first, last + 1)}


def _volume(out: Settings, text: str) -> None:
    out["Volumes"] = (out.get("Volumes") or {}) | {path: {} for path in _list(text) or _words(out, text)}


def _workdir(out: Settings, text: str) -> None:
    path = posixpath.join(out.get("WorkingDir") or "/", " ".join(_words(out, text)))
    out["WorkingDir"] = posixpath.normpath("/" + path.lstrip("/"))


def _user(out: Settings, text: str) -> None:
    out["User"] = " ".join(_words(out, text))


def _onbuild(out: Settings, text: str) -> None:
    out["OnBuild"] = [*(out.get("OnBuild") or ()), text]


_INSTRUCTIONS: dict[str, Callable[[Settings, str], None]] = {
    "CMD": _command("Cmd"),
    "ENTRYPOINT": _command("Entrypoint"),
    "ENV": _env,
    "LABEL": _label,
    "EXPOSE": _expose,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
    "USER": _user,
    "ONBUILD": _onbuild,
}
