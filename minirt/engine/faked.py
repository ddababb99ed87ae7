"""What becomes of a request where containers run by proot: no wall that was asked for is left out without a word.

A default that cannot be held is told once, in the warning; what was asked for by name and cannot be held is refused.
"""

from __future__ import annotations

from typing import Any

from minirt.errors import Unsupported

_LIMITS = (
    "Memory", "MemorySwap", "MemoryReservation", "NanoCpus", "CpuShares", "CpuQuota", "CpuPeriod", "CpusetCpus",
    "CpusetMems", "PidsLimit", "BlkioWeight",
)  # fmt: skip
_ASKED = {
    "ReadonlyRootfs": "--read-only", "Privileged": "--privileged", "Devices": "--device", "Sysctls": "--sysctl",
    "Init": "--init", "CgroupParent": "--cgroup-parent", "OomScoreAdj": "--oom-score-adj",
}  # fmt: skip
_MODES = {
    "PidMode": "--pid",
    "IpcMode": "--ipc",
    "UTSMode": "--uts",
    "NetworkMode": "--network",
    "UsernsMode": "--userns",
}
_ADVICE = "this machine refuses namespaces (see `minirt doctor`)"


def adapt(body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The request as proot can keep it, and warnings. Raises Unsupported."""
    host = dict(body.get("HostConfig") or {})
    for key in _LIMITS:
        if host.get(key):
            raise Unsupported(f"{key} cannot be limited: {_ADVICE}, and with them cgroups")
    for key, option in _ASKED.items():
        if host.get(key):
            raise Unsupported(f"{option} needs namespaces: {_ADVICE}")
    for key, option in _MODES.items():
        if host.get(key) not in (None, "", "default", "host", "bridge" if key == "NetworkMode" else "private"):
            raise Unsupported(f"{option} {str(host[key])[:80]} needs namespaces: {_ADVICE}")
    binds = [str(bind) for bind in host.get("Binds") or ()]
    mounts = [mount for mount in host.get("Mounts") or () if mount.get("ReadOnly")]
    if mounts or any(
        {"ro", "readonly"} & set(bind.split(":")[2:3] and bind.split(":")[2].split(",")) for bind in binds
    ):
        raise Unsupported(f"a mount cannot be read-only: {_ADVICE}")
    from minirt.runtime.proot import WALLS  # its room runs on Linux only

    warnings = [WALLS]
    if host.get("PortBindings") or host.get("PublishAllPorts"):
        warnings.append("published ports are discarded: its network is the machine's, where its ports are open already")
    if body.get("Hostname"):
        warnings.append(f"--hostname {str(body['Hostname'])[:80]} is discarded: the name is the machine's")
    for key in ("PortBindings", "PublishAllPorts"):
        host.pop(key, None)
    host |= {"PidMode": "host", "IpcMode": "host", "UTSMode": "host", "NetworkMode": "host", "CgroupnsMode": "host"}
    host["UsernsMode"] = ""
    return {**body, "Hostname": "", "HostConfig": host}, warnings
