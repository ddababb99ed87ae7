"""What is said of a container: a row of `docker ps`, and the whole of `docker inspect`.

Every key of docker's own answer is there with a value of docker's type, also where we have nothing to say, because
clients written in Go and Python count on them. Source: Engine API 1.44 reference; the answers of dockerd 20.10, which
tests/test_shapes.py holds these against. Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt.engine import filters as rules
from minirt.engine import limits, networks, states
from minirt.engine.images import epoch
from minirt.engine.logs import CONFIG
from minirt.errors import MinirtError
from minirt.runtime import container as runtime
from minirt.runtime import state as records
from minirt.runtime.spec import MASKED, READ_ONLY, SHM_SIZE
from minirt.store.store import Store

if TYPE_CHECKING:
    from minirt.engine.answers.containers import (
        ContainerConfig,
        ContainerInspectResponse,
        ContainerSummary,
        HostConfig,
    )
    from minirt.engine.containers import Containers

_NOTHING = """Binds VolumesFrom CapAdd CapDrop ExtraHosts GroupAdd Links SecurityOpt DeviceCgroupRules DeviceRequests
MemorySwappiness PidsLimit Dns DnsOptions DnsSearch BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps
BlkioDeviceReadIOps BlkioDeviceWriteIOps Devices Ulimits PortBindings"""
_ZEROS = """OomScoreAdj CpuShares Memory NanoCpus BlkioWeight CpuPeriod CpuQuota CpuRealtimePeriod CpuRealtimeRuntime
KernelMemory KernelMemoryTCP MemoryReservation MemorySwap CpuCount CpuPercent IOMaximumIOps IOMaximumBandwidth"""
_WORDS = """ContainerIDFile VolumeDriver Cgroup PidMode UTSMode UsernsMode Isolation CgroupParent CpusetCpus
CpusetMems"""
_FALSE = "AutoRemove Privileged PublishAllPorts ReadonlyRootfs OomKillDisable"
_HOST: dict[str, Any] = {
    **dict.fromkeys(_NOTHING.split()), **dict.fromkeys(_ZEROS.split(), 0),
    **dict.fromkeys(_WORDS.split(), ""), **dict.fromkeys(_FALSE.split(), False),
    "LogConfig": CONFIG, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    "IpcMode": "private", "ShmSize": SHM_SIZE, "Runtime": "minirt", "ConsoleSize": [0, 0], "NetworkMode": "none",
    "MaskedPaths": list(MASKED), "ReadonlyPaths": list(READ_ONLY),
}  # fmt: skip


def config(given: dict[str, Any]) -> ContainerConfig:
    """`Config` of a container or an image, with all of docker's keys."""
    empty: dict[str, Any] = {
        "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": False,
        "AttachStderr": False, "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None,
        "Image": "", "Volumes": None, "WorkingDir": "", "Entrypoint": None, "OnBuild": None, "Labels": None,
    }  # fmt: skip
    return empty | {key: value for key, value in given.items() if value or key in empty}


def _host(given: dict[str, Any]) -> HostConfig:
    said = {key: value for key, value in given.items() if value is not None}
    for key in "IpcMode", "ShmSize", "Runtime", "PidsLimit":  # what says nothing is the default
        if not said.get(key):
            said.pop(key, None)
    unconfined: dict[str, Any] = dict.fromkeys(("MaskedPaths", "ReadonlyPaths")) if said.get("Privileged") else {}
    made = _HOST | unconfined | said
    kept = made["LogConfig"]
    made["LogConfig"] = {"Type": kept.get("Type") or CONFIG["Type"], "Config": kept.get("Config") or {}}
    private = limits.unified() or not made["Privileged"]
    return made | {"CgroupnsMode": made.get("CgroupnsMode") or ("private" if private else "host")}


def _command(words: list[str]) -> str:
    """As docker writes it in a list: what has a blank in it is in quotes, but for the program."""
    return " ".join([words[0], *(f"'{word}'" if " " in word else word for word in words[1:])])


def summaries(
    containers: Containers, store: Store, all: bool, limit: int | None, size: bool, filters: rules.Filters | None
) -> list[ContainerSummary]:
    """GET /containers/json, newest first."""

    @functools.cache
    def image(name: str) -> str:
        """The ID that an image's name stands for now, or empty."""
        with contextlib.suppress(MinirtError):
            return str(store.names.find(name).id)
        return ""

    known = sorted(containers.records(), key=lambda record: str(record["Created"]), reverse=True)
    tests = rules.containers(filters, known, containers.find, image)
    rules.check(filters, tests)
    all = bool(all or limit or (filters or {}).get("status"))
    out: list[ContainerSummary] = []
    for record in known:
        folder = containers.folder(record)
        status = runtime.status(folder)
        if (all or status.runs) and len(out) != limit:
            row = _summary(record, folder, status)
            if rules.matches(row | {"record": record, "code": status.exit_code}, filters, tests):
                if image(row["Image"]) != row["ImageID"]:  # the name went away, or on to another image
                    row["Image"] = row["ImageID"]
                if size:
                    row["SizeRw"], row["SizeRootFs"] = containers.sizes(record)
                out.append(row)
    return out


def _summary(record: dict[str, Any], folder: Path, status: runtime.Status) -> ContainerSummary:
    """A row of GET /containers/json, but for its mounts and sizes."""
    host = record["HostConfig"]
    return {
        "Id": record["Id"],
        "Names": ["/" + record["Name"]],
        "Image": record["Asked"],
        "ImageID": record["Image"],
        "Command": _command(record["Config"]["Path"]),
        "Created": epoch(record["Created"]),
        "Ports": networks.summary(folder),
        "Labels": record["Config"].get("Labels") or {},
        "State": states.name(status),
        "Status": states.text(status),
        "HostConfig": {"NetworkMode": host.get("NetworkMode") or "none"},
        "NetworkSettings": {"Networks": networks.endpoints(folder, host, status)},
        "Mounts": record.get("Mounts") or [],
    }


def inspect(record: dict[str, Any], folder: Path, status: runtime.Status) -> ContainerInspectResponse:
    """GET /containers/{id}/json, but for its sizes."""
    recipe = json.loads((folder / "rootfs.json").read_bytes())
    spec = records.read_json(str(folder / "config.json")) or {}
    execs = [path.stem for path in (folder / "exec").glob("*.state") if _runs(path, status)]
    return {
        "Id": record["Id"],
        "Created": record["Created"],
        "Path": record["Config"]["Path"][0],
        "Args": record["Config"]["Path"][1:],
        "State": states.state(status),
        "Image": record["Image"],
        "ResolvConfPath": _file(folder / "resolv.conf"),
        "HostnamePath": _file(folder / "hostname"),
        "HostsPath": _file(folder / "hosts"),
        "LogPath": _file(folder / "log"),
        "Name": "/" + record["Name"],
        "RestartCount": 0,
        "Driver": recipe["kind"],
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": (spec.get("process") or {}).get("apparmorProfile") or "",
        "ExecIDs": execs or None,
        "HostConfig": _host(record["HostConfig"]),
        "GraphDriver": {
            "Name": recipe["kind"],
            "Data": {
                "LowerDir": ":".join(recipe.get("lowers", [])),
                "MergedDir": str(folder / "rootfs"),
                "UpperDir": recipe.get("upper", ""),
                "WorkDir": recipe.get("work", ""),
            },
        },
        "Mounts": record.get("Mounts") or [],
        "Config": config({key: value for key, value in record["Config"].items() if key != "Path"}),
        "NetworkSettings": networks.shown(folder, record["HostConfig"], status),
        "BundlePath": str(folder),
    }


def _file(path: Path) -> str:
    return str(path) if path.exists() else ""


def _runs(path: Path, status: runtime.Status) -> bool:
    """Does the exec of this file run, in the life the container has now?"""
    asked, known = records.read_json(str(path.with_suffix(".json"))), records.read_json(str(path))
    return bool(status.runs and known and known["exit_code"] is None and asked and asked["started"] == status.started)
