"""`minirt-oci`: our runtime as docker, podman and containerd call one, word for word what runc and crun take.

It runs from a sealed copy of the interpreter, so that no container can write to the machine's, nor to the user's own
(CVE-2019-5736).
Errors are one line on stderr and, where the caller asks, one object in its log: docker reads its messages there.
Sources: runc(8) and its sub-pages, crun(1). Taught in chapter 08.
"""

from __future__ import annotations

import getopt
import json
import os
import sys
from typing import Any, NoReturn

from minirt import __version__
from minirt.errors import InvalidInput, StartError
from minirt.runtime import namespaces, standing, state
from minirt.runtime.verbs import VERBS, Call

# The options of each verb, as getopt(3) writes them; "" are those before the verb.
_PROCESS = "pid-file= console-socket= preserve-fds= detach no-subreaper"
_BUNDLE = f"bundle= config= no-pivot no-new-keyring keep {_PROCESS}"
_OPTIONS = {
    "": "root= log= log-format= debug systemd-cgroup cgroup-manager= rootless= criu= version",
    "create": _BUNDLE, "run": _BUNDLE, "start": "", "state": "", "kill": "all", "delete": "force",
    "exec": f"{_PROCESS} process= env= tty user= additional-gids= cwd= process-label= apparmor= no-new-privs cap= "
    "cgroup= ignore-paused",
    "list": "quiet format=", "ps": "format=", "pause": "", "resume": "",
    "update": "resources= memory= memory-reservation= memory-swap= cpu-share= cpu-shares= cpu-quota= cpu-period= "
    "cpu-burst= cpu-idle= cpuset-cpus= cpuset-mems= pids-limit=",
    "features": "", "spec": "bundle= rootless",
}  # fmt: skip
_SHORT = {
    "": {"v": "version"}, "create": {"b": "bundle"}, "run": {"b": "bundle", "d": "detach", "f": "config"},
    "kill": {"a": "all"}, "delete": {"f": "force"}, "list": {"q": "quiet", "f": "format"}, "ps": {"f": "format"},
    "exec": {"p": "process", "e": "env", "t": "tty", "u": "user", "g": "additional-gids", "d": "detach", "c": "cap"},
    "update": {"r": "resources"}, "spec": {"b": "bundle"},
}  # fmt: skip
_LISTS = {"env", "cap", "additional-gids"}
_USAGE = f"""usage: minirt-oci [--root DIR] [--log FILE] [--log-format text|json] [--systemd-cgroup] VERB [OPTIONS] ID

verbs: {" ".join(VERBS)}
"""


def main(*arguments: str) -> NoReturn:
    """Do what the words say, and end with its exit status, at once: Python's own way out takes 8 ms more, and docker
    begins to watch a container's memory only when `start` has returned."""
    code = _do(*arguments)
    try:
        print(end="", flush=True)
    except OSError:  # nobody reads it, or there is no room for it
        code = 1
    os._exit(code)


def _do(*arguments: str) -> int:
    known: dict[str, Any] = {}
    verb = ""
    try:
        known, words = _parse("", list(arguments))
        if "version" in known:
            print(f"minirt-oci version {__version__}\nspec: {standing.VERSION}")
            return 0
        if "help" in known or not words:
            sys.stdout.write(_USAGE)
            return 0
        verb = words[0]
        if verb not in VERBS:
            raise InvalidInput(f"unknown command {verb!r}: one of {', '.join(VERBS)}")
        options, rest = _parse(verb, words[1:])
        if "help" in options:
            print(f"usage: minirt-oci {verb} [OPTIONS] ID\noptions: {_OPTIONS[verb]}")
            return 0
        return VERBS[verb](Call(known, options, rest))
    except BrokenPipeError:
        return 1
    except Exception as error:  # the process boundary: one line, whatever it was
        _report(known, namespaces.describe(error))
        return error.exit_code if verb == "exec" and isinstance(error, StartError) else 1


def _parse(verb: str, words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The options of a verb, and the words after them. Raises InvalidInput."""
    long = [*_OPTIONS[verb].split(), "help"]
    short = {"h": "help", **_SHORT.get(verb, {})}
    letters = "".join(letter + ":" * (f"{name}=" in long) for letter, name in short.items())
    try:
        pairs, rest = getopt.getopt(words, letters, long)
    except getopt.GetoptError as error:
        raise InvalidInput(str(error)) from error
    options: dict[str, Any] = {}
    for key, value in pairs:
        name = key[2:] or short[key[1:]]
        if name in _LISTS:
            options.setdefault(name, []).append(value)
        else:
            options[name] = value if f"{name}=" in long else True
    return options, rest


def _report(known: dict[str, Any], text: str) -> None:
    as_json = known.get("log-format") == "json"
    print(f"level=error msg={json.dumps(text)}" if as_json else f"minirt-oci: {text}", file=sys.stderr)
    if not known.get("log"):
        return
    entry = {"level": "error", "msg": text, "time": state.now()}
    line = json.dumps(entry) if as_json else " ".join(f"{key}={json.dumps(value)}" for key, value in entry.items())
    try:
        with open(known["log"], "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        print(f"minirt-oci: {known['log']}: {error.strerror}", file=sys.stderr)
