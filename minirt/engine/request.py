"""A create request, looked over before anything is made of it: the Engine API's body, from whatever client.

A field of HostConfig that is not listed here is refused by its name, unless it says nothing (null, 0, "", [], {}), for
clients send every field they know. So nothing that was asked for is ever ignored, also by a later docker.
Source: Engine API 1.44 reference, POST /containers/create. Taught in chapter 04.
"""

from __future__ import annotations

import re
from typing import Any

from minirt.engine import logs
from minirt.errors import InvalidInput, Unsupported

# Shapes: a type, [of each item], {field: of it, "*": of every other}. Fields that are not named may hold anything.
_TEXTS: dict[str, Any] = {"*": str}
_ANYTHING: dict[str, Any] = {}
_SIZE = (int, int)  # of a terminal: height and width


def _named(**kinds: str) -> dict[str, Any]:
    of = {"truth": bool, "number": int, "text": str, "texts": [str], "map": _TEXTS}
    return {name: of[kind] for kind, names in kinds.items() for name in names.split()}


_DRIVER = _named(text="Name", map="Options")
_MOUNT: dict[str, Any] = _named(truth="ReadOnly", text="Type Source Target Consistency") | {
    "BindOptions": _named(
        truth="NonRecursive CreateMountpoint ReadOnlyNonRecursive ReadOnlyForceRecursive", text="Propagation"
    ),
    "VolumeOptions": _named(truth="NoCopy", text="Subpath", map="Labels") | {"DriverConfig": _DRIVER},
    "TmpfsOptions": _named(number="SizeBytes Mode"),
}
# What HostConfig may hold.
_HOST: dict[str, Any] = _named(
    truth="AutoRemove Init OomKillDisable Privileged PublishAllPorts ReadonlyRootfs",
    number="""CpuPeriod CpuQuota CpuShares Memory MemoryReservation MemorySwap MemorySwappiness NanoCpus
        OomScoreAdj PidsLimit ShmSize""",
    text="""CgroupParent CgroupnsMode ContainerIDFile CpusetCpus CpusetMems IpcMode NetworkMode PidMode
        Runtime UTSMode UsernsMode VolumeDriver""",
    texts="""Binds CapAdd CapDrop DeviceCgroupRules Dns DnsOptions DnsSearch ExtraHosts
        GroupAdd MaskedPaths ReadonlyPaths SecurityOpt VolumesFrom""",
    map="Annotations Sysctls Tmpfs",
) | {
    "ConsoleSize": _SIZE,
    "Devices": [_named(text="PathOnHost PathInContainer CgroupPermissions")],
    "LogConfig": _named(text="Type", map="Config"),
    "Mounts": [_MOUNT],
    "PortBindings": {"*": [_named(text="HostIp HostPort")]},
    "RestartPolicy": _named(text="Name", number="MaximumRetryCount"),
    "Ulimits": [_named(text="Name", number="Soft Hard")],
}
CONFIG: dict[str, Any] = _named(
    truth="AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce",
    number="StopTimeout",
    text="Hostname Domainname User Image WorkingDir StopSignal MacAddress",
    texts="Env OnBuild Shell",
    map="Labels",
) | {"Volumes": {"*": _ANYTHING}, "ExposedPorts": {"*": _ANYTHING}, "Healthcheck": {"Test": [str]}}
BODY = CONFIG | {"HostConfig": _HOST, "NetworkingConfig": {"EndpointsConfig": {"*": _ANYTHING}}}
EXEC: dict[str, Any] = _named(
    truth="AttachStdin AttachStdout AttachStderr Tty Privileged", text="User WorkingDir DetachKeys", texts="Env"
) | {"ConsoleSize": _SIZE}
COMMAND: dict[str, Any] = {"Cmd": None, "Entrypoint": None}  # a list, or one word: see `command`
EXEC_START: dict[str, Any] = {"Detach": bool, "Tty": bool, "ConsoleSize": _SIZE}
_RENEWED = "CpuPeriod CpuQuota CpuShares CpusetCpus CpusetMems Memory MemoryReservation MemorySwap NanoCpus PidsLimit"
UPDATE: dict[str, Any] = {key: _HOST[key] for key in (*_RENEWED.split(), "RestartPolicy")}
VOLUME: dict[str, Any] = _named(text="Name Driver", map="DriverOpts Labels")
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
    shaped(body | {"HostConfig": host}, BODY)
    for key in ("Cmd", "Entrypoint"):
        command(body.get(key), key)
    for key, value in host.items():
        if key not in _HOST and value and _HARMLESS.get(key) != value:
            raise Unsupported(f"HostConfig.{key[:80]} is not supported")
    policy = host.get("RestartPolicy") or {}
    if policy.get("Name") not in (None, "", "no"):
        raise Unsupported(
            f"restart policy {policy['Name']!r} is not supported: start it again yourself, or run systemd"
        )
    logs.limits(host.get("LogConfig"))
    if re.fullmatch("container:?", host.get("NetworkMode") or ""):
        raise InvalidInput("Invalid network mode: invalid container format container:<name|id>")
    test = (body.get("Healthcheck") or {}).get("Test")
    if test and test != ["NONE"]:
        raise Unsupported("health checks are not supported")
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


def spelled(value: Any, shape: Any) -> Any:
    """A body with its fields' names as the API spells them: Go takes any case, and docker-py sends `detachKeys`."""
    if isinstance(shape, list) and isinstance(value, list):
        return [spelled(item, shape[0]) for item in value]
    if not isinstance(shape, dict) or not isinstance(value, dict):
        return value
    names = {name.lower(): name for name in shape}
    out = {}
    for key, item in value.items():
        name = key if key in shape else names.get(key.lower(), key)
        out[name] = spelled(item, shape.get(name, shape.get("*")))
    return out


def shaped(value: Any, shape: Any, where: str = "") -> None:
    """Nothing of a wrong type in a body; null says nothing. Raises InvalidInput, which names the field."""
    if value is None:
        return
    if shape is _SIZE:
        shaped(value, [int], where)
        if len(value) != 2 or not all(0 <= cells < 1 << 16 for cells in value):
            raise InvalidInput(f"{where}: a height and a width are wanted, in characters")
        return
    kind: Any = shape if isinstance(shape, type) else type(shape)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidInput(f"{where or 'the body'}: {_WORDS[kind]} is wanted, not {str(value)[:40]}")
    if kind is list:
        inner = shape[0] if isinstance(shape[0], type) else dict
        if not all(isinstance(item, inner) and not isinstance(item, bool) for item in value):
            raise InvalidInput(f"{where}: a list is wanted, and in it {_WORDS[inner]}")
        for item in value if inner is dict else ():
            shaped(item, shape[0], where)
    elif kind is dict:
        for key, item in value.items():
            inner = shape.get(key, shape.get("*"))
            if inner is str and key not in shape and item is None:
                raise InvalidInput(f"{where}: in it a string is wanted")
            if inner is not None:
                shaped(item, inner, f"{where}.{key[:80]}" if where else key[:80])


def config(body: dict[str, Any]) -> dict[str, Any]:
    """A container's Config alone. Raises InvalidInput."""
    shaped(body, CONFIG)
    return body | {key: command(body[key], key) for key in ("Cmd", "Entrypoint") if body.get(key)}


def command(words: Any, where: str) -> list[str]:
    """A command line: a list, or one word. Raises InvalidInput."""
    if isinstance(words, str):
        return [words]
    shaped(words, [str], where)
    return list(words or ())
