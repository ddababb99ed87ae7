"""Holding a running container still, and changing what it may use: pause, unpause, update.

New limits go three ways: into the container's record (what inspect shows), into its bundle (what its next start gets)
and to the cgroup of the one that runs. Sources: Engine API 1.44 reference "ContainerUpdate"; moby
container/container_unix.go UpdateContainer. Taught in chapter 07.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt import trace
from minirt.engine import limits, request, states
from minirt.engine.containers import Containers
from minirt.errors import Conflict, InvalidInput, Unsupported
from minirt.runtime import cgroups
from minirt.runtime import container as runtime
from minirt.runtime import state as records
from minirt.store.files import write_atomic

if TYPE_CHECKING:
    from minirt.engine.answers.containers import ContainerUpdateResponse

_FIELDS = (
    "CpuPeriod", "CpuQuota", "CpuShares", "CpusetCpus", "CpusetMems", "Memory", "MemoryReservation", "MemorySwap",
    "NanoCpus", "PidsLimit",
)  # fmt: skip


class Limits:
    """The verbs on what containers use."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers

    def pause(self, name: str) -> None:
        """POST /containers/{id}/pause. Raises NotFound, Conflict, Unsupported without a cgroup."""
        record, folder, status = self._found(name)
        states.must_run(record["Id"], status)
        if status.state == "paused":
            raise Conflict(f"Container {record['Id']} is already paused")
        if runtime.cgroup(folder) is None:
            raise Unsupported(f"Cannot pause container {record['Id']}: {_why(record)}")
        runtime.ask(folder, "pause")
        trace.publish("container", "pause", id=record["Id"], name=record["Name"])
        self._containers.tell(record, "pause")

    def unpause(self, name: str) -> None:
        """POST /containers/{id}/unpause."""
        record, folder, status = self._found(name)
        if status.state != "paused":
            raise Conflict(f"Container {record['Id']} is not paused")
        runtime.ask(folder, "resume")
        trace.publish("container", "unpause", id=record["Id"], name=record["Name"])
        self._containers.tell(record, "unpause")

    def update(self, name: str, body: dict[str, Any]) -> ContainerUpdateResponse:
        """POST /containers/{id}/update: `Warnings`. All or nothing, but for what a kernel refuses half-way.

        Raises NotFound, InvalidInput, Unsupported for a field that is not ours to change, or without a cgroup.
        """
        body = request.spelled(body, request.UPDATE)
        request.shaped(body, request.UPDATE)
        for key, value in body.items():
            unchanged = key == "RestartPolicy" and (value or {}).get("Name") in (None, "", "no")
            if key not in _FIELDS and value and not unchanged:
                raise Unsupported(f"update: {key} cannot be changed")
        given = {key: body[key] for key in _FIELDS if body.get(key)}
        if body.get("PidsLimit") == 0:
            given["PidsLimit"] = -1  # no limit, as docker has it
        record, folder, _ = self._found(name)
        with runtime.hold(folder):
            record, _, status = self._found(record["Id"])
            if not given:
                self._containers.tell(record, "update")
                return {"Warnings": []}
            # What the update says is judged as in a create, then beside what it says nothing of.
            limits.adapt({key: given[key] for key in given if key != "MemorySwap" or "Memory" in given})
            host = _merged(record["Id"], record["HostConfig"], given)
            warnings = limits.adapt(host)
            config = records.read_json(str(folder / "config.json")) or {}
            config["linux"]["resources"] = _laid_over(config["linux"].get("resources") or {}, _spec(host))
            if status.runs and runtime.cgroup(folder) is None or not status.runs and not _possible(record, config):
                raise Unsupported(f"Cannot update container {record['Id']}: {_why(record)}")
            if status.runs:
                changed = {key: host.get(key) for key in (*given, *_paired(given))}
                runtime.ask(folder, "update", resources=_spec(changed))
            records.write_json(str(folder / "config.json"), config)
            record["HostConfig"] = host
            write_atomic(folder / "container.json", json.dumps(record).encode())
        self._containers.tell(record, "update")
        return {"Warnings": warnings}

    def _found(self, name: str) -> tuple[dict[str, Any], Path, runtime.Status]:
        record = self._containers.find(name)
        folder = self._containers.folder(record)
        return record, folder, runtime.status(folder)


def _paired(given: dict[str, Any]) -> list[str]:
    """A memory limit has a swap limit that goes with it."""
    return ["MemorySwap"] if "Memory" in given else []


def _merged(identity: str, host: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """HostConfig with the update on top. Raises InvalidInput where the two do not go together, in docker's words."""

    def refuse(reason: str) -> InvalidInput:
        return InvalidInput(f"Cannot update container {identity}: {reason}")

    old, new = {key: host.get(key) or 0 for key in _FIELDS}, {key: given.get(key) or 0 for key in _FIELDS}
    for key, what in ("CpuPeriod", "CPU Period"), ("CpuQuota", "CPU Quota"):
        if new["NanoCpus"] and old[key]:
            raise refuse(f"Conflicting options: Nano CPUs cannot be updated as {what} has already been set")
        if new[key] and old["NanoCpus"]:
            raise refuse(f"Conflicting options: {what} cannot be updated as NanoCPUs has already been set")
    if new["Memory"] > old["MemorySwap"] and not new["MemorySwap"]:
        raise refuse(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    return host | given


def _spec(host: dict[str, Any]) -> dict[str, Any]:
    """The runtime-spec's resources; here -1 says something: what had a limit has none now."""
    found = limits.resources(host)
    if host.get("MemorySwap") == -1:
        found.setdefault("memory", {})["swap"] = -1
    return found


def _laid_over(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return old | {name: (old.get(name) or {}) | section for name, section in new.items()}


def _possible(record: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether its next start could hold it to limits."""
    try:
        _locate(record, config)
    except Unsupported:
        return False
    return True


def _why(record: dict[str, Any]) -> str:
    try:
        _locate(record, {})
    except Unsupported as error:
        return str(error)
    return "it was started without a cgroup: start it again"


def _locate(record: dict[str, Any], config: dict[str, Any]) -> None:
    path = (config.get("linux") or {}).get("cgroupsPath") or ""
    cgroups.locate(path, record["Id"], systemd=False, rootless=bool(record["ids"]["uids"]))
