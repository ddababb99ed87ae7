"""config.json of a bundle, read and checked: what is in here is what a container will be, or it is refused by name.

Every field that this runtime honours stands in `_FIELDS`, in the shape of the runtime-spec. A field that is not there
is refused unless it is empty: callers send `"blockIO": {}` for nothing. What the fields mean is checked where they are
used (cgroups, seccomp, mounts), but all before anything is made. Sources: runtime-spec config.md, config-linux.md.
Taught in chapter 07.
"""

from __future__ import annotations

import json
import os
from typing import Any

from minirt.errors import InvalidInput, Unsupported
from minirt.runtime import capabilities, namespaces

_MAX = 16 << 20  # bytes of config.json
_ANY: Any = object()
_NUMBER = (int, float)
_HOOK = [{"path": str, "args": [str], "env": [str], "timeout": int}]
_MAPPING = [{"containerID": int, "hostID": int, "size": int}]
PROCESS: dict[str, Any] = {
    "terminal": bool,
    "consoleSize": {"height": int, "width": int},
    "user": {"uid": int, "gid": int, "umask": int, "additionalGids": [int], "username": str},
    "args": [str],
    "env": [str],
    "cwd": str,
    "capabilities": {name: [str] for name in ("bounding", "effective", "inheritable", "permitted", "ambient")},
    "rlimits": [{"type": str, "hard": int, "soft": int}],
    "noNewPrivileges": bool,
    "oomScoreAdj": int,
    "apparmorProfile": str,
}
_FIELDS: dict[str, Any] = {
    "ociVersion": str,
    "process": PROCESS,
    "root": {"path": str, "readonly": bool},
    "hostname": str,
    "domainname": str,
    "mounts": [{"destination": str, "type": str, "source": str, "options": [str]}],
    "hooks": {
        name: _HOOK
        for name in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    },
    "annotations": {"*": str},
    "linux": {
        "namespaces": [{"type": str, "path": str}],
        "uidMappings": _MAPPING,
        "gidMappings": _MAPPING,
        "devices": [{"type": str, "path": str, "major": int, "minor": int, "fileMode": int, "uid": int, "gid": int}],
        "cgroupsPath": str,
        "resources": _ANY,  # checked by cgroups
        "rootfsPropagation": str,
        "seccomp": _ANY,  # checked by seccomp, as it is compiled: once for all containers
        "sysctl": {"*": str},
        "maskedPaths": [str],
        "readonlyPaths": [str],
    },
}
NAMESPACES = ("user", "mount", "uts", "ipc", "network", "cgroup", "pid")
# What a container sees of a sysctl is its own where it belongs to a namespace, namespaces(7); else it is the machine's.
_SYSCTLS = {
    "ipc": ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."),
    "network": ("net.",),
    "uts": ("kernel.domainname", "kernel.hostname"),
}


def load(bundle: str, path: str | None = None) -> dict[str, Any]:
    """The bundle's config.json, or `path` in its place. Raises InvalidInput, Unsupported for what is not done here."""
    path = path or os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            config = json.loads(file.read(_MAX + 1))
    except FileNotFoundError as error:
        raise InvalidInput(f"JSON specification file {path} not found") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not JSON: {error}") from error
    check(config)
    return dict(config)


def check(config: Any) -> None:
    """Refuse what is malformed or not supported, by its name."""
    _compare(config, _FIELDS, "")
    version = config.get("ociVersion", "")
    if not version.startswith("1."):
        raise InvalidInput(f"config.json: ociVersion {version!r} is not supported: 1.x is")
    for needed in ("root", "process"):
        if not config.get(needed):
            raise InvalidInput(f"config.json: {needed} is missing")
    if not config["root"].get("path"):
        raise InvalidInput("config.json: root.path is missing")
    check_process(config["process"])
    linux = config.setdefault("linux", {})
    kinds = [entry.get("type") for entry in linux.get("namespaces") or []]
    for kind in kinds:
        if kind not in NAMESPACES:
            raise Unsupported(f"config.json: linux.namespaces: {kind!r} is not supported")
        if kinds.count(kind) > 1:
            raise InvalidInput(f"config.json: linux.namespaces: {kind} is listed twice")
    if not any(entry.get("type") == "mount" and not entry.get("path") for entry in linux.get("namespaces") or []):
        raise Unsupported("config.json: linux.namespaces: a container without a new mount namespace is not supported")
    if "user" not in kinds and (linux.get("uidMappings") or linux.get("gidMappings")):
        raise InvalidInput("config.json: linux.uidMappings and gidMappings need a user namespace")
    kinds = [entry["type"] for entry in linux["namespaces"] if not _is_ours(entry)]
    for name, kind in ("hostname", "uts"), ("domainname", "uts"):
        if config.get(name) and kind not in kinds:
            raise InvalidInput(f"config.json: {name} needs a {kind} namespace")
    for key in linux.get("sysctl") or {}:
        _check_sysctl(key, kinds)
    for entry in config.get("mounts") or []:
        if not entry.get("destination"):
            raise InvalidInput("config.json: mounts: an entry has no destination")
    if linux.get("resources"):
        from minirt.runtime import cgroups

        cgroups.check(linux["resources"])


def check_process(process: Any) -> None:
    """The same for a process object alone, as `exec` takes it."""
    _compare(process, PROCESS, "process")
    args, cwd = process.get("args"), process.get("cwd", "")
    if not args:
        raise InvalidInput("config.json: process.args is empty")
    if not cwd.startswith("/"):
        raise InvalidInput(f"config.json: process.cwd {cwd!r} is not an absolute path")
    if any("\0" in text for text in (*args, *(process.get("env") or ()), cwd)):
        raise InvalidInput("config.json: process: a NUL byte cannot stand in a command, an environment or a path")
    who = process.setdefault("user", {})
    for number in (who.get("uid", 0), who.get("gid", 0), *(who.get("additionalGids") or ())):
        if not 0 <= number < 2**32 - 1:
            raise InvalidInput(f"config.json: process.user: {number} is no id")
    for names in (process.get("capabilities") or {}).values():
        capabilities.mask(names or [])


def _is_ours(entry: dict[str, Any]) -> bool:
    """Whether a namespace that is to be joined is our own, the machine's: what is set in it is set for the machine."""
    try:
        return bool(entry.get("path")) and namespaces.is_ours(entry["path"], entry["type"])
    except OSError:
        return False  # joining it will say what is wrong with the path


def _check_sysctl(key: str, kinds: list[str]) -> None:
    for kind, prefixes in _SYSCTLS.items():
        if key.replace("/", ".").startswith(prefixes):
            if kind not in kinds:
                raise InvalidInput(f"config.json: linux.sysctl: {key} would change the machine's: no {kind} namespace")
            return
    raise InvalidInput(f"config.json: linux.sysctl: {key} is not in a separate kernel namespace")


def _compare(value: Any, wanted: Any, path: str) -> None:
    """Hold a value against its place in the table. `null` is what is not there."""
    if wanted is _ANY or value is None:
        return
    name = path or "the object"
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            raise InvalidInput(f"config.json: {name}: an object is wanted")
        for key, inner in value.items():
            where = f"{path}.{key}".lstrip(".")
            if key in wanted or "*" in wanted:
                _compare(inner, wanted.get(key, wanted.get("*")), where)
            elif inner:
                raise Unsupported(f"config.json: {where} is not supported")
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            raise InvalidInput(f"config.json: {name}: a list is wanted")
        for number, inner in enumerate(value):
            _compare(inner, wanted[0], f"{path}[{number}]")
    elif not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        what = {str: "a string", bool: "true or false", int: "a number"}[wanted]
        raise InvalidInput(f"config.json: {name}: {what} is wanted")
