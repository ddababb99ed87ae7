"""What a runtime does from outside before and while a process of a container is made: the parent's half.

Sources that only the parent can open, the place among the cgroups, the OOM score, the limits that only an outsider may
raise. Sources: prlimit(2), proc(5), runtime-spec config.md. Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
from collections.abc import Iterator
from typing import Any

from minirt import linux
from minirt.errors import Conflict, InvalidInput, StartError, Unsupported
from minirt.runtime import cgroups, mounts, namespaces, state
from minirt.runtime.init import bind_source, open_source
from minirt.userns import IdMapping

_ELSEWHERE = re.compile("/proc/([0-9]+)/root(/.*)")


_foreseen: dict[tuple[str, str, bool], cgroups.Cgroup | None] = {}


def is_root() -> bool:
    """Root of the machine, or of what it takes for one."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return os.geteuid() == 0 and file.read().split() == ["0", "0", "4294967295"]


def place(config: dict[str, Any], id: str, systemd: bool) -> cgroups.Cgroup | None:
    """The container's place among the cgroups; None where none can be made and no limit or device rule is asked for."""
    resources, path = config["linux"].get("resources") or {}, config["linux"].get("cgroupsPath") or ""
    if (path, id, systemd) in _foreseen:
        return _foreseen.pop((path, id, systemd))
    rootless = not is_root()
    try:
        return cgroups.locate(path, id, systemd=systemd, rootless=rootless)
    except Unsupported:
        limits = {key: value for key, value in resources.items() if key != "devices"}
        if (resources.get("devices") and not rootless) or any_limit(limits):
            raise
        return None


def foresee(config: dict[str, Any], id: str) -> None:
    """Look for its place a moment before it is asked for."""
    _foreseen[config["linux"].get("cgroupsPath") or "", id, False] = place(config, id, False)


def any_limit(value: Any) -> bool:
    return any(map(any_limit, value.values())) if isinstance(value, dict) else bool(value)


def own(config: dict[str, Any], kind: str) -> bool:
    """Whether it gets a namespace of this kind that nobody had before."""
    return any(entry["type"] == kind and not entry.get("path") for entry in config["linux"]["namespaces"])


def mapping(config: dict[str, Any]) -> IdMapping:
    """The ids of its user namespace, as config.json lists them."""
    uids, gids = (
        tuple((row["containerID"], row["hostID"], row["size"]) for row in config["linux"].get(key) or ())
        for key in ("uidMappings", "gidMappings")
    )
    return IdMapping(uids, gids)


def enter_user_namespace(config: dict[str, Any]) -> bool:
    """Rootless: become root over the ids that config.json maps, in the numbers of the machine; whether we did.

    The bundle's own user namespace is then ours. As root the runtime makes it, inside.
    """
    user = next((entry for entry in config["linux"]["namespaces"] if entry["type"] == "user"), None)
    if os.geteuid() == 0 or user is None:
        return False
    if user.get("path"):  # another container's, whose other namespaces we are to join
        fd = os.open(user["path"], os.O_RDONLY | os.O_CLOEXEC)
        linux.setns(fd, linux.CLONE_NEWUSER)
        os.close(fd)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    else:
        from minirt import userns

        userns.become_root(mapping(config))
    return True


def peers(config: dict[str, Any]) -> dict[int, int]:
    """Bind mounts that stay the machine's peers, by their place in `mounts`: for who is about to only follow it."""
    entries = enumerate(config.get("mounts") or ())
    return {
        number: bind_source(entry, "", peers=True)
        for number, entry in entries
        if mounts.is_bind(entry) and mounts.is_shared(entry)
    }


def sources(config: dict[str, Any], bundle: str, given: dict[int, int] | None = None) -> dict[int, int]:
    """Bind mounts that init cannot open itself, by their place in `mounts` (-1 is the root), detached.

    With a user namespace, its root may not reach them; and what lies in another container (`/proc/PID/root/…`) can be
    taken only from inside its mount namespace, open_tree(2). `given` are opened already.
    """
    out = {**(given or {}), **elsewhere(config)}
    if os.geteuid() or all(entry["type"] != "user" for entry in config["linux"]["namespaces"]):
        return out
    out[-1] = open_source(os.path.join(bundle, config["root"]["path"]))
    for number, entry in enumerate(config.get("mounts") or ()):
        if mounts.is_bind(entry) and number not in out:
            out[number] = bind_source(entry, bundle)
    return out


def elsewhere(config: dict[str, Any]) -> dict[int, int]:
    """Those of them that lie in another container."""
    out = {}
    for number, entry in enumerate(config.get("mounts") or ()):
        place = _ELSEWHERE.fullmatch(entry.get("source") or "")
        if place and mounts.is_bind(entry):
            try:
                out[number] = _open_elsewhere(*place.groups())
            except OSError as error:
                raise StartError(f"mount {entry['destination']}: {entry['source']}: {error.strerror}") from error
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


@contextlib.contextmanager
def held(known: dict[str, Any]) -> Iterator[int]:
    """A pidfd of a container's init. Raises Conflict."""
    init = state.open_process(known, "init")
    if init is None:
        raise Conflict("cannot exec in a stopped container")
    try:
        yield init
    finally:
        os.close(init)


@contextlib.contextmanager
def joined(config: dict[str, Any], pid: int, init: int) -> Iterator[list[dict[str, Any]]]:
    """The namespaces of a container's init `pid`, held open to be joined by another process. Raises Conflict.

    `init` is its pidfd, looked at after they are opened: if it has ended, its number may have become another process',
    and that one's namespaces are the machine's.
    """
    with contextlib.ExitStack() as held:
        wanted = []
        try:
            for entry in namespaces.of(pid, [entry["type"] for entry in config["linux"]["namespaces"]]):
                fd = os.open(entry["path"], os.O_RDONLY | os.O_CLOEXEC)
                held.callback(os.close, fd)
                wanted.append({"type": entry["type"], "path": f"/proc/self/fd/{fd}"})
            gone = state.ended(init, 0)
        except (FileNotFoundError, ProcessLookupError):
            gone = True
        if gone:
            raise Conflict("cannot exec in a stopped container")
        yield wanted


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
