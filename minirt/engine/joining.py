"""Namespaces of another container (`--pid container:NAME`): found when a container starts, for then they have a place.

The bundle's join.json says whose; here they become paths in config.json, new ones at every start. A user namespace
goes with the first of them: it owns the others, so only its members may join them. With the network go the names in it
(resolv.conf, hosts). With the IPC namespace goes /dev/shm: a bind whose source, /proc/PID/root/dev/shm, lies in the
other's mount namespace, so a runtime has to take it from there (setns, open_tree).
Sources: moby daemon/oci_linux.go WithNamespaces, setns(2), open_tree(2). Taught in chapter 07.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minirt.errors import NotFound, StartError
from minirt.runtime import container, state

_FILES = {"network": "net"}
_WORDS = {"pid": "PID", "ipc": "IPC", "network": "network", "uts": "UTS"}


def connect(folder: Path, find: Callable[[str], Path]) -> None:
    """Put the paths of now into config.json. `find` gives the folder of a container, by its id or name.

    Raises StartError for a container that is gone or does not run.
    """
    join = state.read_json(str(folder / "join.json"))
    config = state.read_json(str(folder / "config.json")) if join else None
    if not join or config is None:
        return
    paths: dict[str, str] = {}
    for kind, name in join.items():
        try:
            other = find(name)
            status = container.status(other)
        except NotFound as error:
            raise StartError(str(error)) from error
        if status.state != "running":
            raise StartError(f"cannot join {_WORDS[kind]} of a non running container: {name}")
        paths[kind] = f"/proc/{status.pid}/ns/{_FILES.get(kind, kind)}"
        paths.setdefault("user", f"/proc/{status.pid}/ns/user")
        if kind == "ipc":
            _share_memory(config, status.pid)
        if kind == "network":
            for file in ("resolv.conf", "hosts", "hostname"):
                (folder / file).write_bytes((other / file).read_bytes())
            _share_name(config, state.read_json(str(other / "config.json")) or {})
    for namespace in config["linux"]["namespaces"]:
        if namespace["type"] in paths:
            namespace["path"] = paths[namespace["type"]]
    state.write_json(str(folder / "config.json"), config)


def _share_name(config: dict[str, Any], other: dict[str, Any]) -> None:
    """Who shares a network has its name, and says so in HOSTNAME; nothing where one of them has the machine's."""
    own, name = config.get("hostname"), other.get("hostname")
    if own and name:
        env = config["process"]["env"]
        env[:] = [f"HOSTNAME={name}" if entry == f"HOSTNAME={own}" else entry for entry in env]
        config["hostname"] = name


def _share_memory(config: dict[str, Any], pid: int) -> None:
    for mount in config["mounts"]:
        if mount["destination"] == "/dev/shm" and (mount["source"] == "shm" or mount["source"].startswith("/proc/")):
            mount |= {"type": "bind", "source": f"/proc/{pid}/root/dev/shm", "options": ["rbind", "rprivate"]}
