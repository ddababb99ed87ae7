"""What a container is asked to be: the image's settings with the request's on top, by docker's rules.

request.py has seen to it that nothing unknown is asked for; limits.py, binds.py and confinement.py judge their parts.
Sources: Engine API 1.44 reference; moby daemon/create.go, daemon/oci_linux.go, runconfig. Taught in chapters 04 and 07.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt.engine import limits
from minirt.engine.binds import Bound, bind
from minirt.engine.request import check, command
from minirt.errors import InvalidInput, MinirtError, Unsupported
from minirt.image.config import ImageConfig
from minirt.runtime.spec import MASKED, READ_ONLY, SHM_SIZE, ContainerOptions, environment
from minirt.userns import IdMapping

if TYPE_CHECKING:
    from minirt.engine.volumes import Claim

_INITS = ("docker-init", "tini-static", "catatonit")
_INIT = "/sbin/docker-init"
_FIRST_DIRS = ":/usr/libexec/docker:/usr/libexec/podman:/usr/lib/podman"
_UNLIMITED = 2**64 - 1


@dataclass(frozen=True)
class Settled:
    """`config` and `host` are the Engine API's Config and HostConfig, complete; `options` is what the runtime needs;
    `rootfs` is for rootfs.json: `nodev` where device nodes in it must open nothing, `idmap` where its files' owners are
    to be shifted by the mapping in config.json."""

    config: dict[str, Any]
    host: dict[str, Any]
    options: ContainerOptions
    rootfs: dict[str, Any]
    warnings: list[str]
    bound: Bound


def settle(
    body: dict[str, Any],
    image: ImageConfig,
    identity: str,
    ids: IdMapping,
    find: Callable[[str], str] | None = None,
    claim: Claim | None = None,
) -> Settled:
    """Judge a request for a container of this image. `find` gives the id of another container by its name, `claim` the
    volumes it is to have.

    Raises InvalidInput, Unsupported.
    """
    check(body, body.get("HostConfig") or {})
    host = dict(body.get("HostConfig") or {})
    driven(host, Path())
    warnings = limits.adapt(host)
    for key in "NetworkMode", "PidMode", "IpcMode", "UTSMode":
        host[key] = _by_id(str(host.get(key) or ""), find)
    config = _config(body, host, image, identity)
    bound = bind(host, config["Volumes"] or (), claim)
    options, rootfs = _options(config, host, identity, ids, warnings, bound)
    return Settled(config, host, options, rootfs, warnings, bound)


def driven(host: dict[str, Any], root: Path) -> dict[str, Any]:
    """Options of a start: `runtime`, another OCI runtime's program (None: ours), `cache`, where ours keeps filters.

    Raises InvalidInput for a runtime that is not there.
    """
    name, program = host.get("Runtime"), None
    if name and name != "minirt":
        from minirt.runtime import external

        program = external.find(str(name))
    return {"runtime": program, "cache": str(root / "seccomp")}


def _by_id(mode: str, find: Callable[[str], str] | None) -> str:
    """`container:NAME` by the container's id, which stays when it is renamed; unknown ones are told at the start."""
    prefix, colon, name = mode.partition(":")
    if not colon or prefix != "container" or find is None:
        return mode
    try:
        return f"container:{find(name)}"
    except MinirtError:
        return mode


def _config(body: dict[str, Any], host: dict[str, Any], image: ImageConfig, identity: str) -> dict[str, Any]:
    """The Engine API's Config, with the image's settings where the request has none."""
    entrypoint, words = command(body.get("Entrypoint"), "Entrypoint"), command(body.get("Cmd"), "Cmd")
    # An entrypoint given as [""] clears the image's own.
    cleared = tuple(word for word in entrypoint if word) if entrypoint else None
    path = image.command(tuple(words), cleared)
    if not path:
        raise InvalidInput("No command specified")
    hostname = str(body.get("Hostname") or "")
    if hostname and host["UTSMode"] == "host":
        raise InvalidInput("conflicting options: hostname and the UTS mode")
    if host["NetworkMode"].startswith("container:"):
        _check_shared_network(body, host, hostname)
    machine = "host" in (host["NetworkMode"], host["UTSMode"])
    hostname = hostname or (os.uname().nodename if machine else identity[:12])
    for what, name in ("hostname", hostname), ("domainname", str(body.get("Domainname") or "")):
        if len(os.fsencode(name)) > 64:  # sethostname(2) takes no more, and as docker's any byte
            raise InvalidInput(f"invalid {what}: {name[:80]!r}")
    cwd = str(body.get("WorkingDir") or image.working_dir)
    if cwd and not cwd.startswith("/"):
        raise InvalidInput(f"the working directory {cwd[:80]!r} is invalid, it needs to be an absolute path")
    env = [str(item) for item in body.get("Env") or ()]
    named = {entry.partition("=")[0] for entry in env}
    config: dict[str, Any] = {
        "Hostname": hostname,
        "Domainname": str(body.get("Domainname") or ""),
        "User": str(body.get("User") or image.user),
        "Tty": bool(body.get("Tty")),
        "OpenStdin": bool(body.get("OpenStdin")),
        "StdinOnce": bool(body.get("StdinOnce")),
        "AttachStdin": bool(body.get("AttachStdin")),
        "AttachStdout": bool(body.get("AttachStdout")),
        "AttachStderr": bool(body.get("AttachStderr")),
        "Env": env + [entry for entry in image.env if entry.partition("=")[0] not in named],
        "Cmd": list(words or (image.cmd if cleared is None else ())) or None,
        "Entrypoint": list(image.entrypoint if cleared is None else cleared) or None,
        "Image": body.get("Image"),
        "Volumes": dict.fromkeys(sorted({*image.volumes, *(body.get("Volumes") or ())}), {}) or None,
        "WorkingDir": cwd,
        "Labels": image.labels | (body.get("Labels") or {}),
        "StopSignal": _signal(body.get("StopSignal") or image.stop_signal),
        "Path": path,
    }
    ports = {*image.exposed_ports, *(body.get("ExposedPorts") or ()), *(host.get("PortBindings") or ())}
    more: dict[str, Any] = {
        "StopTimeout": body.get("StopTimeout"),
        "ExposedPorts": {port: {} for port in sorted(ports)} or None,
    }
    return config | {key: value for key, value in more.items() if value is not None}


def _check_shared_network(body: dict[str, Any], host: dict[str, Any], hostname: str) -> None:
    for given, what in (
        (hostname, "hostname and the network mode"),
        (host.get("Dns"), "dns and the network mode"),
        (host.get("ExtraHosts"), "custom host-to-IP mapping and the network mode"),
        (
            host.get("PortBindings") or host.get("PublishAllPorts"),
            "port publishing and the container type network mode",
        ),
        (body.get("ExposedPorts"), "port exposing and the container type network mode"),
    ):
        if given:
            raise InvalidInput(f"conflicting options: {what}")


def _signal(text: str) -> str:
    """Raises InvalidInput for a stop signal that is none."""
    name = text.upper().removeprefix("SIG")
    real = re.fullmatch(r"RTMIN(\+\d{1,2})?|RTMAX(-\d{1,2})?", name, re.ASCII)
    number = name.isdecimal() and 0 < int(name) <= 64
    if text and not (number or real or f"SIG{name}" in signal.Signals.__members__):
        raise InvalidInput(f"Invalid signal: {text[:40]}")
    return text


def _options(
    config: dict[str, Any], host: dict[str, Any], identity: str, ids: IdMapping, warnings: list[str], bound: Bound
) -> tuple[ContainerOptions, dict[str, Any]]:
    """What the runtime needs, and what its root file system does."""
    from minirt.engine import confinement

    privileged, rootfs = bool(host.get("Privileged")), {}
    shared, join = _namespaces(host, privileged)
    remap = _remap(host, privileged, ids, shared)
    if remap:
        rootfs["idmap"] = True
    names = confinement.tweak(host.get("CapAdd") or (), host.get("CapDrop") or (), privileged)
    rules: tuple[dict[str, Any], ...] | None
    own_devices = privileged and not (ids.rootless or remap)
    devices, rules = confinement.devices(host.get("Devices") or (), host.get("DeviceCgroupRules") or (), own_devices)
    if not (ids.rootless or remap) and not limits.devices_confined():
        rules, rootfs["nodev"] = None, True
        names = tuple(name for name in names if name != "CAP_MKNOD")
        warnings.append("our cgroups are not ours to write: no device rules; instead no device node of the image opens")
    mounts = bound.entries
    sources = {device["path"]: device.pop("source") for device in devices}
    if ids.rootless or remap:  # where no node can be made: the machine's own
        for path, source in sources.items():
            mounts += ({"destination": path, "type": "bind", "source": source, "options": ["bind", "rprivate"]},)
        devices = ()
    args, inits = list(config["Path"]), _init() if host.get("Init") and "pid" not in {*shared, *join} else ""
    if inits:
        args = [_INIT, "--", *args]
        mounts += ({"destination": _INIT, "type": "bind", "source": inits, "options": ["bind", "ro"]},)
    sysctl = {str(key): str(value) for key, value in (host.get("Sysctls") or {}).items()}
    for key in sysctl:
        kind = "network" if key.startswith("net.") else "ipc"
        if kind in shared:
            raise InvalidInput(f"sysctl {key!r} not allowed in host {kind} namespace")
    masked, read_only = host.get("MaskedPaths"), host.get("ReadonlyPaths")
    options = ContainerOptions(
        args=args,
        env=environment(config["Hostname"], (), config["Env"], config["Tty"]),
        cwd=config["WorkingDir"] or "/",
        hostname=config["Hostname"],
        domainname=config["Domainname"],
        **_network(config, host, ids, warnings),
        terminal=config["Tty"],
        groups=tuple(host.get("GroupAdd") or ()),
        privileged=privileged,
        capabilities=names,
        masked=MASKED if masked is None else tuple(masked),
        readonly_paths=READ_ONLY if read_only is None else tuple(read_only),
        readonly=bool(host.get("ReadonlyRootfs")),
        ids=ids,
        remap=remap,
        shared=shared,
        join=join,
        annotations={str(key): str(value) for key, value in (host.get("Annotations") or {}).items()},
        extra_mounts=mounts,
        propagation=bound.propagation,
        shm_size=None if host.get("IpcMode") == "none" else _shm_size(host),
        devices=devices,
        device_rules=rules,
        resources=limits.resources(host),
        cgroups_path="" if ids.rootless else os.path.join(_parent(host.get("CgroupParent") or "/minirt"), identity),
        rlimits=tuple(_rlimit(limit) for limit in host.get("Ulimits") or ()),
        sysctl=sysctl,
        oom_score_adj=_oom_score(host, ids),
        **confinement.security(host.get("SecurityOpt") or (), names, privileged),
    )
    return options, rootfs


def _parent(path: str) -> str:
    """A cgroup's path that does not lead out of where it begins."""
    inside = os.path.normpath(f"/{path}").lstrip("/")
    return f"/{inside}" if path.startswith("/") else inside


def _network(config: dict[str, Any], host: dict[str, Any], ids: IdMapping, warnings: list[str]) -> dict[str, Any]:
    """ContainerOptions' part about the network; HostConfig says from now on which it is."""
    from minirt.runtime import network
    from minirt.runtime.network import ports

    exposed = tuple(config.get("ExposedPorts") or ())
    published = ports.from_bindings(host.get("PortBindings"), exposed, bool(host.get("PublishAllPorts")))
    asked = host["NetworkMode"]
    mode, warning = network.choose(asked, ids, bool(published))
    host["NetworkMode"] = mode
    # A plain user's default is what there is: pasta, else slirp4netns, else none. `doctor` says what is missing.
    if warning and not (asked in ("", "default") and ids.rootless):
        warnings.append(warning)
    resolver = (tuple(host.get(key) or ()) for key in ("Dns", "DnsSearch", "DnsOptions"))
    return {
        "network": mode.partition(":")[0],
        "publish": tuple(one.to_json() for one in published) if mode != "host" else (),
        "exposed": exposed,
        "resolver": tuple(resolver),
        "extra_hosts": tuple(host.get("ExtraHosts") or ()),
    }


def _namespaces(host: dict[str, Any], privileged: bool) -> tuple[frozenset[str], dict[str, str]]:
    """The namespaces that are the machine's, and whose another container's."""
    shared, join = set(), {}
    for kind, key in ("pid", "PidMode"), ("ipc", "IpcMode"), ("uts", "UTSMode"), ("network", "NetworkMode"):
        mode = str(host.get(key) or "")
        if mode == "host":
            shared.add(kind)
        elif mode.startswith("container:"):
            join[kind] = mode.partition(":")[2]
    cgroup = host.get("CgroupnsMode") or ("host" if privileged and not limits.unified() else "private")
    return frozenset({*shared, "cgroup"} if cgroup == "host" else shared), join


def _remap(host: dict[str, Any], privileged: bool, ids: IdMapping, shared: frozenset[str]) -> IdMapping | None:
    """A user namespace of its own for root's container. Everybody else has one already."""
    if host.get("UsernsMode") != "private" or ids.rootless:
        return None
    if privileged:
        raise InvalidInput("privileged mode is incompatible with user namespaces: use --userns=host")
    for kind in shared & {"network", "pid"}:
        raise InvalidInput(f"cannot share the host's {kind} namespace when user namespaces are enabled")
    from minirt import userns

    return userns.delegated()


def _shm_size(host: dict[str, Any]) -> int:
    size = int(host.get("ShmSize") or 0)
    if size < 0:
        raise InvalidInput("SHM size can not be less than 0")
    return size or SHM_SIZE


def _rlimit(limit: dict[str, Any]) -> dict[str, Any]:
    """-1 is no limit, as the kernel's largest number is."""
    name, soft, hard = limit.get("Name"), limit.get("Soft"), limit.get("Hard")
    if not (isinstance(name, str) and isinstance(soft, int) and isinstance(hard, int) and min(soft, hard) >= -1):
        raise InvalidInput(f"invalid ulimit: {str(limit)[:80]}")
    return {"type": f"RLIMIT_{name.upper()}", "soft": soft % (_UNLIMITED + 1), "hard": hard % (_UNLIMITED + 1)}


def _oom_score(host: dict[str, Any], ids: IdMapping) -> int | None:
    """docker's is 0. Who stands above that may not go down again, proc_pid_oom_score_adj(5), and hands its own on."""
    asked = host.get("OomScoreAdj") or 0
    if asked:
        return int(asked)
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        return 0 if int(file.read()) <= 0 and not ids.rootless else None


def _init() -> str:
    """The first init of this machine that needs no library: there may be none in the image."""
    import shutil

    from minirt.hub.elf import interpreter

    for name in _INITS:
        path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + _FIRST_DIRS)
        if path:
            with open(path, "rb") as file:
                if file.read(4) == b"\x7fELF" and interpreter(b"\x7fELF" + file.read()) is None:
                    return os.path.realpath(path)
    raise Unsupported("--init needs a static init program, and there is none here: apt install tini")
