"""What of the machine's files a container gets to see: `-v`, `--mount` and `--tmpfs`, as the runtime-spec's mounts.

A bind's folder is made where it is missing, as docker does for `-v` (and not for `--mount`). A read-only bind is so all
the way down, docker's rule since API 1.44. Sources: moby volume/mounts/linux_parser.go, daemon/oci_linux.go,
moby/sys mount; mount(8). Taught in chapter 09.
"""

from __future__ import annotations

import os
import re
from typing import Any

from minirt.errors import InvalidInput, StoreError, Unsupported

_PROPAGATION = ("private", "rprivate", "slave", "rslave", "shared", "rshared")
_KINDS = (("ro", "rw"), ("z", "Z"), _PROPAGATION, ("nocopy",), ("consistent", "cached", "delegated", "default"))
_FLAGS = (
    ("ro", "rw"), ("suid", "nosuid"), ("dev", "nodev"), ("exec", "noexec"), ("sync", "async"),
    ("atime", "noatime"), ("diratime", "nodiratime"), ("relatime", "norelatime"), ("strictatime", "nostrictatime"),
    _PROPAGATION, ("dirsync",), ("mand", "nomand"),
)  # fmt: skip
_DATA = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol")
_NO_VOLUMES = "is not supported yet: bind a folder, as in ./data:/data"


def mounts(host: dict[str, Any]) -> tuple[tuple[dict[str, Any], ...], str]:
    """HostConfig's Binds, Mounts and Tmpfs, those above before those below; and the propagation the root needs.

    Raises InvalidInput in docker's words, Unsupported for volumes, StoreError where a folder cannot be made.
    """
    made = [*map(_bind, host.get("Binds") or ()), *map(_mount, host.get("Mounts") or ())]
    made += [tmpfs(path, options) for path, options in (host.get("Tmpfs") or {}).items()]
    places = [mount["destination"] for mount in made]
    for place in places:
        if places.count(place) > 1:
            raise InvalidInput(f"Duplicate mount point: {place}")
    for mount in made:
        if mount["type"] == "bind":
            _check_shared(mount["source"], mount["options"][-1])
    used = {option for mount in made if mount["type"] == "bind" for option in mount["options"]}
    root = "shared" if used & {"shared", "rshared"} else "rslave" if used & {"slave", "rslave"} else ""
    return tuple(sorted(made, key=lambda mount: mount["destination"].count("/"))), root


def _bind(text: str) -> dict[str, Any]:
    """`HOST:CONTAINER[:OPTIONS]`."""
    parts = text.split(":", 3)
    options = parts[2].split(",") if len(parts) > 2 and parts[2] else []
    if not parts[0] or not 2 <= len(parts) <= 3 or (len(parts) == 2 and _valid(parts[1].split(","))):
        raise InvalidInput(f"invalid volume specification: '{text}'")
    if not _valid(options):
        raise InvalidInput(f"invalid mode: {parts[2]}")
    source, target = parts[:2]
    problem = _place_problem(target)
    kind = "bind" if source.startswith("/") else "volume"
    if problem:
        raise InvalidInput(
            f"invalid volume specification: '{text}': invalid mount config for type \"{kind}\": {problem}"
        )
    if kind == "volume":
        raise Unsupported(f"a named volume ({source}) {_NO_VOLUMES}")
    source = os.path.normpath(source)
    if not os.path.lexists(source):
        try:
            os.makedirs(source, 0o755, exist_ok=True)
        except OSError as error:
            raise StoreError(f"error while creating mount source path '{source}': {error.strerror}") from error
    propagation = next((option for option in options if option in _PROPAGATION), "")
    return _entry(source, target, "ro" in options, propagation)


def _check_shared(source: str, propagation: str) -> None:
    """Mounts travel to or from the machine only where the source's own mount lets them, mount_namespaces(7)."""
    kind = propagation.removeprefix("r")
    if kind == "private":
        return
    place, tags = "", ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for fields in (line.partition(" - ")[0].split(" ") for line in file):
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            if len(point) >= len(place) and (os.path.realpath(source) + "/").startswith(point.rstrip("/") + "/"):
                place, tags = point, " ".join(fields[6:])
    if "shared:" not in tags and not (kind == "slave" and "master:" in tags):
        wanted = "shared" if kind == "shared" else "shared or slave"
        raise InvalidInput(f"path {source} is mounted on {place} but it is not a {wanted} mount")


def _valid(options: list[str]) -> bool:
    """At most one of each kind, and nothing else."""
    counts = [sum(option in kind for option in options) for kind in _KINDS]
    return max(counts) <= 1 and sum(counts) == len(options)


def _place_problem(target: str) -> str:
    if not target:
        return "field Target must not be empty"
    if os.path.normpath(target).strip("/") in ("", "."):
        return "invalid specification: destination can't be '/'"
    return "" if target.startswith("/") else f"invalid mount path: '{target}' mount path must be absolute"


def _entry(
    source: str, target: str, readonly: bool, propagation: str, flat: bool = False, shallow: bool = False
) -> dict[str, Any]:
    options = ["bind" if flat else "rbind"]
    if readonly:
        options.append("ro" if flat or shallow else "rro")
    place = "/" + os.path.normpath(target).lstrip("/")
    return {"destination": place, "type": "bind", "source": source, "options": [*options, propagation or "rprivate"]}


def _mount(mount: dict[str, Any]) -> dict[str, Any]:
    """An Engine API Mount."""
    kind, source, target = (str(mount.get(key) or "") for key in ("Type", "Source", "Target"))
    options = mount.get("BindOptions") or {}
    propagation = options.get("Propagation") or ""
    problem = _place_problem(target)
    if not problem and kind == "bind":
        if not source:
            problem = "field Source must not be empty"
        elif propagation and propagation not in _PROPAGATION:
            problem = f"invalid propagation mode: {propagation}"
        elif not source.startswith("/"):
            problem = f"invalid mount path: '{source}' mount path must be absolute"
        elif options.get("CreateMountpoint"):
            os.makedirs(source, 0o755, exist_ok=True)
        elif not os.path.lexists(source):
            problem = f"bind source path does not exist: {source}"
    elif not problem and kind == "tmpfs" and source:
        problem = "field Source must not be specified"
    elif not problem and kind not in ("bind", "tmpfs", "volume"):
        problem = "mount type unknown"
    if problem:
        raise InvalidInput(f'invalid mount config for type "{kind}": {problem}')
    if kind == "volume":
        raise Unsupported(f"a volume ({source or target}) {_NO_VOLUMES}")
    readonly = bool(mount.get("ReadOnly"))
    if kind == "bind":
        flat, shallow = bool(options.get("NonRecursive")), bool(options.get("ReadOnlyNonRecursive"))
        return _entry(os.path.normpath(source), target, readonly, propagation, flat, shallow)
    sizes = mount.get("TmpfsOptions") or {}
    words = ["ro"] * readonly
    words += [f"mode={sizes['Mode']:o}"] if sizes.get("Mode") else []
    words += [f"size={sizes['SizeBytes']}"] if sizes.get("SizeBytes") else []
    return tmpfs(target, ",".join(words))


def tmpfs(path: str, text: str) -> dict[str, Any]:
    """A tmpfs with docker's defaults and `text`'s options over them: the last of a kind counts."""
    problem = _place_problem(path)
    if problem:
        raise InvalidInput(problem)
    chosen: dict[Any, str] = {}
    for option in ("noexec", "nosuid", "nodev", "rprivate", *filter(None, text.split(","))):
        if option == "defaults":
            continue
        name, equals, _ = option.partition("=")
        kind: Any = next((kind for kind in _FLAGS if option in kind), None) or (name if equals else None)
        if kind is None or (isinstance(kind, str) and kind not in _DATA):
            words = " ".join(f'"{word}"' for word in option.split("=", 1))
            raise InvalidInput(f"invalid tmpfs option [{words}]")
        chosen[kind] = option
    place = "/" + os.path.normpath(path).lstrip("/")
    return {"destination": place, "type": "tmpfs", "source": "tmpfs", "options": list(chosen.values())}
