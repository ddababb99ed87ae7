"""What of the machine's files a container gets to see: `-v`, `--mount`, `--volumes-from` and `--tmpfs`, as the
runtime-spec's mounts.

A bind's folder is made where it is missing, as docker does for `-v` (and not for `--mount`); so is a volume. A
read-only bind is so all the way down, docker's rule since API 1.44. Sources: moby volume/mounts/linux_parser.go,
daemon/oci_linux.go, daemon/volumes.go, moby/sys mount; mount(8). Taught in chapter 09.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minirt.errors import InvalidInput, NotFound, StoreError, Unsupported

if TYPE_CHECKING:
    from minirt.engine.answers.containers import MountPoint
    from minirt.engine.volumes import Claim

_PROPAGATION = ("private", "rprivate", "slave", "rslave", "shared", "rshared")
_KINDS = (("ro", "rw"), ("z", "Z"), _PROPAGATION, ("nocopy",), ("consistent", "cached", "delegated", "default"))
_FLAGS = (
    ("ro", "rw"), ("suid", "nosuid"), ("dev", "nodev"), ("exec", "noexec"), ("sync", "async"),
    ("atime", "noatime"), ("diratime", "nodiratime"), ("relatime", "norelatime"), ("strictatime", "nostrictatime"),
    _PROPAGATION, ("dirsync",), ("mand", "nomand"),
)  # fmt: skip
_DATA = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol")


@dataclass(frozen=True)
class Bound:
    """`entries` are for config.json, those above before those below; `propagation` is what the root needs; `points` is
    what the Engine API calls Mounts; `copies`: (where, folder) of volumes that get what the image has there."""

    entries: tuple[dict[str, Any], ...]
    propagation: str
    points: list[MountPoint]
    copies: list[tuple[str, str]]


def bind(host: dict[str, Any], inner: Iterable[str] = (), claim: Claim | None = None) -> Bound:
    """HostConfig's VolumesFrom, Binds, Mounts and Tmpfs, and a new volume for each path of `inner` that has none.

    Without a `claim` there are no volumes. Raises InvalidInput in docker's words, StoreError where a folder cannot be
    made.
    """
    made = [*map(_bind, host.get("Binds") or ()), *map(_mount, host.get("Mounts") or ())]
    made += [tmpfs(path, options) for path, options in (host.get("Tmpfs") or {}).items()]
    places = [mount["destination"] for mount in made]
    for place, times in Counter(places).items():
        if times > 1:
            raise InvalidInput(f"Duplicate mount point: {place}")
    for text in host.get("VolumesFrom") or ():
        made += [mount for mount in _inherited(text, claim) if mount["destination"] not in places]
        places = [mount["destination"] for mount in made]
    for path in inner:
        if problem := _place_problem("/" + path.lstrip("/")):
            raise InvalidInput(
                f"invalid volume specification: '{path}': invalid mount config for type \"volume\": {problem}"
            )
        new = _volume("", path, "", False)
        made += [new] if new["destination"] not in places else []
    copies = []
    for mount in made:
        wanted = mount.get("volume")
        if wanted is not None:
            if claim is None:
                raise Unsupported(f"a volume ({wanted['name'] or mount['destination']}) cannot be made here")
            name, folder = claim.take(
                wanted["name"], wanted["labels"], wanted["driver"] or host.get("VolumeDriver") or ""
            )
            mount["source"], mount["point"]["Name"], mount["point"]["Source"] = str(folder), name, str(folder)
            copies += [(mount["destination"], str(folder))] if wanted["copy"] else []
        if mount["type"] == "bind":
            _check_shared(mount["source"], mount["options"][-1])
    used = {option for mount in made if mount["type"] == "bind" for option in mount["options"]}
    root = "shared" if used & {"shared", "rshared"} else "rslave" if used & {"slave", "rslave"} else ""
    made.sort(key=lambda mount: mount["destination"].count("/"))
    keys = ("destination", "type", "source", "options")
    points = [mount["point"] for mount in made if "point" in mount]
    return Bound(tuple({key: mount[key] for key in keys} for mount in made), root, points, copies)


def _bind(text: str) -> dict[str, Any]:
    """`HOST:CONTAINER[:OPTIONS]`, or a volume's name in place of HOST."""
    parts = text.split(":", 3)
    options = parts[2].split(",") if len(parts) > 2 and parts[2] else []
    if not parts[0] or not 2 <= len(parts) <= 3 or (len(parts) == 2 and _valid(parts[1].split(","))):
        raise InvalidInput(f"invalid volume specification: '{text}'")
    if not _valid(options):
        raise InvalidInput(f"invalid mode: {parts[2]}")
    source, target = parts[:2]
    problem = _place_problem(target)
    kind = "bind" if source.startswith("/") else "volume"
    propagation = next((option for option in options if option in _PROPAGATION), "")
    if kind == "volume" and propagation and not problem:
        raise InvalidInput(f"invalid mode: {parts[2]}")
    if problem:
        raise InvalidInput(
            f"invalid volume specification: '{text}': invalid mount config for type \"{kind}\": {problem}"
        )
    mode = ",".join(options)
    if kind == "volume":
        return _volume(source, target, mode or "z", "ro" in options, copy="nocopy" not in options)
    source = os.path.normpath(source)
    if not os.path.lexists(source):
        try:
            os.makedirs(source, 0o755, exist_ok=True)
        except OSError as error:
            raise StoreError(f"error while creating mount source path '{source}': {error.strerror}") from error
    return _entry(source, target, "ro" in options, propagation, mode=mode)


def _inherited(text: str, claim: Claim | None) -> list[dict[str, Any]]:
    """`CONTAINER[:ro|rw]`: what another container has mounted."""
    name, _, mode = text.partition(":")
    if not name or not _valid(options := mode.split(",") if mode else []):
        raise InvalidInput(f"invalid mode: {mode}" if name else f"invalid volumes-from specification: '{text}'")
    out = []
    try:
        points = claim.points(name) if claim else []
    except NotFound as error:  # which would say that the image is not here
        raise InvalidInput(str(error)) from error
    for point in points:
        readonly = "ro" in options or not point["RW"]
        if point["Type"] == "volume":
            out.append(_volume(point["Name"], point["Destination"], "", readonly, copy=False))
        elif point["Type"] == "bind":
            propagation = "" if point["Propagation"] == "rprivate" else point["Propagation"]
            out.append(_entry(point["Source"], point["Destination"], readonly, propagation))
    return out


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
    source: str,
    target: str,
    readonly: bool,
    propagation: str,
    flat: bool = False,
    shallow: bool = False,
    mode: str = "",
) -> dict[str, Any]:
    options = ["bind" if flat else "rbind"]
    if readonly:
        options.append("ro" if flat or shallow else "rro")
    place = "/" + os.path.normpath(target).lstrip("/")
    options.append(propagation or "rprivate")
    point = _point("bind", place, mode, not readonly) | {"Source": source, "Propagation": options[-1]}
    return {"destination": place, "type": "bind", "source": source, "options": options, "point": point}


def _volume(
    name: str,
    target: str,
    mode: str,
    readonly: bool,
    copy: bool = True,
    labels: dict[str, str] | None = None,
    driver: str = "",
) -> dict[str, Any]:
    """As `_entry`, of a volume that is still to be taken (`volume`); without a name a new one."""
    entry = _entry("", target, readonly, "")
    point = _point("volume", entry["destination"], mode, not readonly) | {"Driver": "local"}
    return entry | {"point": point, "volume": {"name": name, "copy": copy, "labels": labels, "driver": driver}}


def _point(kind: str, place: str, mode: str, writable: bool) -> MountPoint:
    return {"Type": kind, "Source": "", "Destination": place, "Mode": mode, "RW": writable, "Propagation": ""}


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
    readonly = bool(mount.get("ReadOnly"))
    if kind == "volume":
        more = mount.get("VolumeOptions") or {}
        driver = more.get("DriverConfig") or {}
        if driver.get("Options"):
            raise Unsupported(f"a volume ({source or target}) with options of its driver is not supported")
        copy, labels = not more.get("NoCopy"), more.get("Labels")
        return _volume(source, target, "z", readonly, copy, labels, str(driver.get("Name") or ""))
    if kind == "bind":
        flat, shallow = bool(options.get("NonRecursive")), bool(options.get("ReadOnlyNonRecursive"))
        return _entry(os.path.normpath(source), target, readonly, propagation, flat, shallow)
    sizes = mount.get("TmpfsOptions") or {}
    words = ["ro"] * readonly
    words += [f"mode={sizes['Mode']:o}"] if sizes.get("Mode") else []
    words += [f"size={sizes['SizeBytes']}"] if sizes.get("SizeBytes") else []
    made = tmpfs(target, ",".join(words))
    return made | {"point": _point("tmpfs", made["destination"], "", not readonly)}


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
