"""A create request, looked over before anything is made of it: the Engine API's body, from whatever client.

A field of HostConfig that is not listed here is refused by its name, unless it says nothing (null, 0, "", [], {}), for
clients send every field they know. So nothing that was asked for is ever ignored, also by a later docker.
Source: Engine API 1.44 reference, POST /containers/create. Taught in chapter 04.
"""

from __future__ import annotations

import re
from typing import Any

from minirt.errors import InvalidInput, Unsupported

# What HostConfig may hold, by type.
_FIELDS = {
    bool: "AutoRemove Init OomKillDisable Privileged PublishAllPorts ReadonlyRootfs",
    int: """CpuPeriod CpuQuota CpuShares Memory MemoryReservation MemorySwap MemorySwappiness NanoCpus
        OomScoreAdj PidsLimit ShmSize""",
    str: """CgroupParent CgroupnsMode ContainerIDFile CpusetCpus CpusetMems IpcMode NetworkMode PidMode
        Runtime UTSMode UsernsMode""",
    list: """Binds CapAdd CapDrop ConsoleSize DeviceCgroupRules Devices Dns DnsOptions DnsSearch ExtraHosts
        GroupAdd MaskedPaths Mounts ReadonlyPaths SecurityOpt Ulimits""",
    dict: "Annotations LogConfig PortBindings RestartPolicy Sysctls Tmpfs",
}
_KINDS = {name: kind for kind, names in _FIELDS.items() for name in names.split()}
_OBJECTS = ("Devices", "Mounts", "Ulimits")  # lists of objects; other lists hold text
_HARMLESS = {"Isolation": "default"}  # asks for no more than we do
_WORDS = {bool: "true or false", int: "a number", str: "a string", list: "a list", dict: "an object"}
_MODE_WORDS = {
    "IpcMode": "Invalid IPC", "PidMode": "Invalid PID", "UTSMode": "Invalid UTS",
    "CgroupnsMode": "invalid cgroup namespace", "UsernsMode": "Invalid USER",
}  # fmt: skip
_MODES = {
    "IpcMode": ("", "none", "private", "shareable", "host"),
    "PidMode": ("", "host", "private"),
    "UTSMode": ("", "host", "private"),
    "CgroupnsMode": ("", "host", "private"),
    "UsernsMode": ("", "host", "private"),
}


def check(body: dict[str, Any], host: dict[str, Any]) -> None:
    """Nothing unknown, nothing of a wrong type, nothing we do not do. Raises InvalidInput, Unsupported."""
    for key, value in host.items():
        kind = _KINDS.get(key)
        if kind is None and value and _HARMLESS.get(key) != value:
            raise Unsupported(f"HostConfig.{key} is not supported")
        if kind and value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise InvalidInput(f"HostConfig.{key}: {_WORDS[kind]} is wanted, not {str(value)[:40]}")
        inner = dict if key in _OBJECTS else int if key == "ConsoleSize" else str
        if kind is list and not all(isinstance(item, inner) for item in value or ()):
            raise InvalidInput(f"HostConfig.{key}: a list is wanted, and in it {_WORDS[inner]}")
    policy, log = host.get("RestartPolicy") or {}, host.get("LogConfig") or {}
    if policy.get("Name") not in (None, "", "no"):
        raise Unsupported(
            f"restart policy {policy['Name']!r} is not supported: start it again yourself, or run systemd"
        )
    if log.get("Type") not in (None, "", "json-file") or log.get("Config"):
        raise Unsupported("log drivers and their options are not supported: `minirt logs` reads what the command wrote")
    if re.fullmatch("container:?", host.get("NetworkMode") or ""):
        raise InvalidInput("Invalid network mode: invalid container format container:<name|id>")
    test = (body.get("Healthcheck") or {}).get("Test")
    if test and test != ["NONE"]:
        raise Unsupported("health checks are not supported")
    if body.get("Volumes"):
        raise Unsupported(
            f"a volume ({next(iter(body['Volumes']))}) is not supported yet: bind a folder of yours there"
        )
    if body.get("MacAddress"):
        raise Unsupported("MacAddress is not supported")
    for name, endpoint in ((body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}).items():
        for key, value in (endpoint or {}).items():
            if value:
                raise Unsupported(f"NetworkingConfig: {key} of network {name!r} is not supported")
    for key, modes in _MODES.items():
        text = host.get(key) or ""
        joins = key not in ("CgroupnsMode", "UsernsMode") and re.fullmatch("container:.+", text)
        if text not in modes and not joins:
            raise InvalidInput(f"{_MODE_WORDS[key]} mode: {text[:80]}")
