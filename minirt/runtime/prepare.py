"""What a runtime does from outside before and while a process of a container is made: the parent's half.

Sources that only the parent can open, the place among the cgroups, the OOM score, the limits that only an outsider may
raise. Sources: prlimit(2), proc(5), runtime-spec config.md. Taught in chapter 08.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from typing import Any

from minirt import linux
from minirt.errors import InvalidInput, StartError, Unsupported
from minirt.runtime import cgroups, mounts
from minirt.runtime.init import open_source
from minirt.userns import IdMapping

_ELSEWHERE = re.compile("/proc/([0-9]+)/root(/.*)")


def is_root() -> bool:
    """Root of the machine, or of what it takes for one."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return os.geteuid() == 0 and file.read().split() == ["0", "0", "4294967295"]


def place(config: dict[str, Any], id: str, systemd: bool) -> cgroups.Cgroup | None:
    """The container's place among the cgroups; None where none can be made and no limit or device rule is asked for."""
    resources = config["linux"].get("resources") or {}
    rootless = not is_root()
    try:
        return cgroups.locate(config["linux"].get("cgroupsPath") or "", id, systemd=systemd, rootless=rootless)
    except Unsupported:
        limits = {key: value for key, value in resources.items() if key != "devices"}
        if (resources.get("devices") and not rootless) or any_limit(limits):
            raise
        return None


def any_limit(value: Any) -> bool:
    return any(map(any_limit, value.values())) if isinstance(value, dict) else bool(value)


def mapping(config: dict[str, Any]) -> IdMapping:
    """The ids of its user namespace, as config.json lists them."""
    uids, gids = (
        tuple((row["containerID"], row["hostID"], row["size"]) for row in config["linux"].get(key) or ())
        for key in ("uidMappings", "gidMappings")
    )
    return IdMapping(uids, gids)


def sources(config: dict[str, Any], bundle: str) -> dict[int, int]:
    """Bind mounts that init cannot open itself, by their place in `mounts` (-1 is the root), detached.

    With a user namespace, its root may not reach them; and what lies in another container (`/proc/PID/root/…`) can be
    taken only from inside its mount namespace, open_tree(2).
    """
    out = {}
    far = os.geteuid() == 0 and any(entry["type"] == "user" for entry in config["linux"]["namespaces"])
    if far:
        out[-1] = open_source(os.path.join(bundle, config["root"]["path"]))
    for number, entry in enumerate(config.get("mounts") or ()):
        if not mounts.is_bind(entry):
            continue
        place = os.path.join(bundle, entry.get("source") or "")
        elsewhere = _ELSEWHERE.fullmatch(place)
        try:
            if elsewhere:
                out[number] = _open_elsewhere(*elsewhere.groups())
            elif far:
                out[number] = open_source(place, recursive="bind" not in (entry.get("options") or ()))
        except OSError as error:
            raise StartError(f"mount {entry['destination']}: {place}: {error.strerror}") from error
    return out


def _open_elsewhere(pid: str, path: str) -> int:
    """A detached copy of what another process has at `path`. For a single-threaded process."""
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    other = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    linux.setns(other, linux.CLONE_NEWNS)
    try:
        return open_source(path)
    finally:
        linux.setns(own, linux.CLONE_NEWNS)
        os.close(own)
        os.close(other)


def score(process: dict[str, Any]) -> None:
    """Set how early we are killed when memory runs out, proc(5); a plain user may only say: earlier."""
    wanted = process.get("oomScoreAdj")
    if wanted is None:
        return
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(wanted))
    except OSError as error:
        if is_root() or error.errno not in (errno.EACCES, errno.EPERM):
            raise StartError(f"oomScoreAdj {wanted}: {(error.strerror or '').lower()}") from error


def limit(pid: int, process: dict[str, Any]) -> None:
    """Set the limits of a process that stands still; only from outside may they be raised, prlimit(2)."""
    for row in process.get("rlimits") or ():
        number = getattr(resource, row["type"], None) if row["type"].startswith("RLIMIT_") else None
        if number is None:
            raise InvalidInput(f"rlimit {row['type']!r} is unknown")
        soft, hard = (min(value, 2**64 - 1) for value in (row["soft"], row["hard"]))
        try:
            resource.prlimit(pid, number, (_rlim(soft), _rlim(hard)))
        except (OSError, ValueError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise StartError(
                f"error setting rlimit {row['type']} to {soft}:{hard}: {(reason or '').lower()}"
            ) from error


def _rlim(value: int) -> int:
    return resource.RLIM_INFINITY if value == 2**64 - 1 else value
