"""The whole: `version`, `info`, `system df` and `system prune`, as the Engine API shows them.

Source: Engine API 1.44 reference, "System". Taught in chapter 04.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from minirt import __version__
from minirt.engine import confinement, limits, logs
from minirt.image.platform import Platform
from minirt.runtime.state import now
from minirt.store.layers import work
from minirt.store.shared import FORM

if TYPE_CHECKING:
    from minirt.engine import Engine
    from minirt.engine.answers.system import (
        AdditionalStore,
        Commit,
        IndexInfo,
        Runtime,
        SystemDataUsageResponse,
        SystemInfo,
        SystemVersion,
    )
    from minirt.runtime.doctor import Row
    from minirt.store.store import Store

API_VERSION, MIN_API_VERSION = "1.44", "1.24"


def version() -> SystemVersion:
    """GET /version."""
    host = Platform.host()
    about = {
        "ApiVersion": API_VERSION,
        "MinAPIVersion": MIN_API_VERSION,
        "Os": sys.platform,
        "Arch": host.architecture,
        "KernelVersion": platform.release(),
    }
    # docker's command prints these three lines whatever is in them.
    blank = {"GitCommit": "", "GoVersion": f"none, Python {platform.python_version()}", "BuildTime": ""}
    details = {**about, "Experimental": "false", **blank}
    return {
        "Platform": {"Name": "minirt"},
        "Components": [{"Name": "Engine", "Version": __version__, "Details": details}],
        "Version": __version__,
        "ApiVersion": about["ApiVersion"],
        "MinAPIVersion": about["MinAPIVersion"],
        "Os": about["Os"],
        "Arch": about["Arch"],
        "KernelVersion": about["KernelVersion"],
        "GitCommit": blank["GitCommit"],
        "GoVersion": blank["GoVersion"],
        "BuildTime": blank["BuildTime"],
        "PythonVersion": platform.python_version(),
    }


def info(engine: Engine) -> SystemInfo:
    """GET /info, with what this machine can do."""
    states = [container["State"] for container in engine.containers.summaries(all=True)]
    _, reason = engine.store.overlay
    ids = engine.store.ids
    mode = "refused" if ids is None else "root" if not ids.rootless else "single id" if ids.single else "subuids"
    walls = []
    if ids and ids.faked:
        from minirt.runtime.proot import WALLS

        mode, walls = "proot", [WALLS]
    security = [] if mode == "proot" else ["name=seccomp,profile=builtin"]
    security += ["name=apparmor"] * confinement.has_apparmor() + ["name=rootless"] * bool(ids and ids.rootless)
    unified = limits.unified()
    runtimes: dict[str, Runtime] = {"minirt": {"path": "minirt-oci"}}
    runtimes |= {name: {"path": name} for name in ("crun", "runc") if shutil.which(name)}
    unknown: Commit = {"ID": "", "Expected": ""}
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    hub: IndexInfo = {"Name": "docker.io", "Mirrors": [], "Secure": True, "Official": True}
    return {
        "ID": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{platform.node()}:{engine.store.root}")),
        "Containers": len(states),
        "ContainersRunning": states.count("running"),
        "ContainersPaused": states.count("paused"),
        "ContainersStopped": len(states) - states.count("running") - states.count("paused"),
        "Images": len({image["Id"] for image in engine.images.summaries()}),
        "Driver": engine.store.driver,
        "DriverStatus": [["User ids", mode], *([["Overlay", reason]] if reason else []), *_stores(engine.store)],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null"] if mode == "root" else ["host", "null", "pasta", "slirp4netns"],
            "Authorization": None,
            "Log": sorted(logs.DRIVERS),
        },
        "MemoryLimit": _holds("memory"),
        "SwapLimit": (limits.CGROUPS / "memory/memory.memsw.limit_in_bytes").exists(),
        "CpuCfsPeriod": _holds("cpu"),
        "CpuCfsQuota": _holds("cpu"),
        "CPUShares": _holds("cpu"),
        "CPUSet": _holds("cpuset"),
        "PidsLimit": _holds("pids"),
        "KernelMemory": False,
        "KernelMemoryTCP": False,
        "IPv4Forwarding": _says("/proc/sys/net/ipv4/ip_forward"),
        "BridgeNfIptables": _says("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        "BridgeNfIp6tables": _says("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
        "Debug": False,
        "NFd": len(os.listdir("/proc/self/fd")),
        "OomKillDisable": not unified,
        "NGoroutines": threading.active_count(),
        "SystemTime": now(),
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs" if mode == "root" else "systemd" if unified else "none",
        "CgroupVersion": "2" if unified else "1",
        "NEventsListener": engine.events.listeners,
        "KernelVersion": platform.release(),
        "OperatingSystem": _system("PRETTY_NAME") or platform.platform(),
        "OSVersion": _system("VERSION_ID"),
        "OSType": "linux",
        "Architecture": platform.machine(),
        "IndexServerAddress": "https://index.docker.io/v1/",  # docker 20's login asks for the key of Docker Hub's
        "RegistryConfig": {
            "AllowNondistributableArtifactsCIDRs": [],
            "AllowNondistributableArtifactsHostnames": [],
            "InsecureRegistryCIDRs": ["127.0.0.0/8"],
            "IndexConfigs": {"docker.io": hub},
            "Mirrors": [],
        },
        "NCPU": os.cpu_count() or 1,
        "MemTotal": memory,
        "GenericResources": None,
        "DockerRootDir": str(engine.store.root),
        "HttpProxy": os.environ.get("HTTP_PROXY", ""),
        "HttpsProxy": os.environ.get("HTTPS_PROXY", ""),
        "NoProxy": os.environ.get("NO_PROXY", ""),
        "Name": platform.node(),
        "Labels": [],
        "ExperimentalBuild": False,
        "ServerVersion": __version__,
        "Runtimes": runtimes,
        "DefaultRuntime": "minirt",
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "InitBinary": "docker-init",
        "ContainerdCommit": unknown,
        "RuncCommit": unknown,
        "InitCommit": unknown,
        "SecurityOptions": security,
        "Warnings": [f"WARNING: {wall}" for wall in walls] or None,
    }


def _holds(controller: str) -> bool:
    """Can it hold containers to limits? On cgroup v1 it may not be there; v2 has them all."""
    return limits.unified() or (limits.CGROUPS / controller).exists()


def _says(path: str) -> bool:
    """Is this switch of the kernel on?"""
    try:
        return Path(path).read_text().strip() == "1"
    except OSError:
        return False


def _system(key: str) -> str:
    """What os-release(5) says of the machine's system."""
    try:
        return platform.freedesktop_os_release().get(key, "")
    except OSError:
        return ""


def df(engine: Engine) -> SystemDataUsageResponse:
    """GET /system/df: bytes of disk."""
    store = engine.store
    folders = {str(store.layers.folder), str(store.pulled.folder)}
    layers = work({"action": "measure", "paths": sorted(folders)}, store.ids)["bytes"]
    with store.using():
        blobs = sum(store.layout.blob(digest).stat().st_size for digest in store.layout.blobs())
    containers = engine.containers.summaries(all=True, size=True)
    return {
        "LayersSize": layers + blobs,
        "Images": engine.images.usage([container["ImageID"] for container in containers]),
        "Containers": containers,
        "Volumes": engine.volumes.usage(),
        "BuildCache": [],
        "BuilderSize": 0,
        "Unfinished": store.unfinished(),
        "AdditionalStores": _additional(store, {container["ImageID"] for container in containers}),
    }


def _additional(store: Store, used: set[str]) -> list[AdditionalStore]:
    """What others keep for us: none of it is ours to free."""
    rows: list[AdditionalStore] = []
    for other in store.additional():
        root = other.path.parent
        images = {str(named.id) for named in store.names.others() if named.store == root}
        paths = [str(other.path / "blobs"), str(root / "layers" / FORM)]
        size = work({"action": "measure", "paths": paths}, store.ids)["bytes"]
        rows.append({"Path": str(root), "Images": len(images), "Active": len(images & used), "Size": size})
    return rows


def doctor(engine: Engine) -> list[Row]:
    """What `doctor.probe` finds, a row for each additional store, and whether its layers can be used as they lie."""
    from minirt.runtime.doctor import probe

    rows, store = probe(), engine.store
    get = next((row["hint"] for row in rows if row["capability"] == "fuse-overlayfs"), "")
    missing = {path: why for path, why in store.additional.refused()}
    for path in store.additional.paths():
        why = missing.get(path, "")
        row: Row = {
            "capability": "additional store", "works": not why, "tried": "to see who can change it",
            "detail": f"{path}: {why}" if why else str(path), "cost": "its images are not there" if why else "",
            "hint": "its owner, root, has to close it and every folder above to others" if why else "",
        }  # fmt: skip
        rows.append(row)
    if store.additional() and store.ids and store.ids.rootless:
        why = store.shares
        row = {
            "capability": "shared layers", "works": not why, "tried": "to lay one with fuse-overlayfs", "detail": why,
            "cost": "layers of additional stores are unpacked again: more disk" if why else "",
            "hint": (get or "65536 ids in /etc/subuid and /etc/subgid") if why else "",
        }  # fmt: skip
        rows.append(row)
    return rows


def _stores(store: Store) -> list[list[str]]:
    """A line for each additional store, as docker's command shows what a storage driver says."""
    how = ""
    if store.ids and store.ids.rootless:
        how = f"unpacked again: {store.shares}" if store.shares else "laid by fuse-overlayfs"
    lines = []
    for other in store.additional():
        count = len({named.id for named in store.names.others() if named.store == other.path.parent})
        lines.append([f"Additional store {other.path.parent}", f"{count} image(s){', layers ' + how if how else ''}"])
    return lines + [[f"Additional store {path}", f"not used: {why}"] for path, why in store.additional.refused()]
