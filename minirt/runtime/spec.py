"""The bundle's config.json (OCI runtime-spec): everything about a container that a runtime must know, as data.

The defaults are docker's, so that a container sees the same mounts, masks, capabilities and files. The bundle is valid
by itself: for a plain user it lists the user namespace and its mapping in the machine's ids, so a rootless runc takes
it too; our own shim enters that namespace first, to mount the layers in it. Two things differ from docker, on purpose:
noNewPrivileges is on by default, and there is always a cgroup namespace.
Sources: runtime-spec config.md and config-linux.md; moby oci/defaults.go. Taught in chapter 07.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minirt.errors import InvalidInput
from minirt.runtime import capabilities, state
from minirt.userns import IdMapping

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_FILES = ("resolv.conf", "hostname", "hosts")
_HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


@dataclass(frozen=True)
class ContainerOptions:
    """What is to run, and how. `network` is `none` (only a loopback) or `host`; `env` is final (see `environment`)."""

    args: list[str]
    env: list[str]
    cwd: str = "/"
    hostname: str = ""
    network: str = "none"
    no_new_privileges: bool = True
    readonly: bool = False
    ids: IdMapping = field(default_factory=IdMapping)
    annotations: dict[str, str] = field(default_factory=dict)
    extra_mounts: tuple[dict[str, Any], ...] = ()


def environment(hostname: str, image: Iterable[str], user: Iterable[str]) -> list[str]:
    """The environment in docker's order: PATH, HOSTNAME, the user's, what is left of the image's.

    Later entries replace earlier ones in place; a user's entry without `=` removes the variable. HOME is added at the
    start, from the image's passwd file.
    """
    chosen = list(user)
    named = {entry.partition("=")[0] for entry in chosen}
    entries: dict[str, str] = {}
    rest = [entry for entry in image if entry.partition("=")[0] not in named]
    for entry in (PATH, f"HOSTNAME={hostname}", *chosen, *rest):
        key, equals, _ = entry.partition("=")
        if equals and key:
            entries[key] = entry
        else:
            entries.pop(key, None)
    return list(entries.values())


def generate(options: ContainerOptions) -> dict[str, Any]:
    """The config.json for these options. Raises InvalidInput for what no container can be."""
    if not options.args:
        raise InvalidInput("no command specified")
    if options.network not in ("none", "host"):
        raise InvalidInput(f"network {options.network} not found: use none or host")
    cwd = options.cwd or "/"
    if not cwd.startswith("/"):
        raise InvalidInput(f"the working directory '{cwd}' is invalid, it needs to be an absolute path")
    if any("\0" in text for text in (*options.args, *options.env, cwd)):
        raise InvalidInput("a NUL byte cannot stand in a command, an environment or a path")
    kinds = ["mount", "uts", "ipc", "pid", "cgroup", *(["network"] if options.network == "none" else [])]
    linux: dict[str, Any] = {"maskedPaths": list(MASKED), "readonlyPaths": list(READ_ONLY)}
    if options.ids.rootless:
        kinds.append("user")
        linux["uidMappings"], linux["gidMappings"] = _rows(options.ids.uids), _rows(options.ids.gids)
    linux["namespaces"] = [{"type": kind} for kind in kinds]
    names = list(capabilities.DEFAULT)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(options.args),
            "env": list(options.env),
            "cwd": cwd,
            "capabilities": {
                "bounding": names,
                "effective": names,
                "permitted": names,
                "inheritable": [],
                "ambient": [],
            },
            "noNewPrivileges": options.no_new_privileges,
        },
        "root": {"path": "rootfs", "readonly": options.readonly},
        "hostname": options.hostname,
        "mounts": [*_mounts(options), *options.extra_mounts],
        "annotations": dict(options.annotations),
        "linux": linux,
    }


def _rows(rows: tuple[tuple[int, int, int], ...]) -> list[dict[str, int]]:
    return [{"containerID": inside, "hostID": outside, "size": count} for inside, outside, count in rows]


def _mounts(options: ContainerOptions) -> list[dict[str, Any]]:
    closed = ["nosuid", "noexec", "nodev"]
    group = [] if options.ids.single else ["gid=5"]  # the tty group, where there is a second id at all
    if options.ids.rootless and options.network == "host":
        # sysfs shows a network namespace, and only that one's owner may mount it.
        sys = ("/sys", "bind", "/sys", ["rbind", *closed, "rro"])
    else:
        sys = ("/sys", "sysfs", "sysfs", [*closed, "ro"])
    writable = ["ro"] if options.readonly else []
    rows = [
        ("/proc", "proc", "proc", closed),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *group]),
        sys,
        ("/sys/fs/cgroup", "cgroup", "cgroup", ["ro", *closed]),
        ("/dev/mqueue", "mqueue", "mqueue", closed),
        ("/dev/shm", "tmpfs", "shm", [*closed, "mode=1777", "size=67108864"]),
        *((f"/etc/{name}", "bind", name, ["rbind", "rprivate", *writable]) for name in _FILES),
    ]
    return [{"destination": d, "type": t, "source": s, "options": o} for d, t, s, o in rows]


def write_bundle(folder: Path, options: ContainerOptions) -> None:
    """Make the bundle in the container's folder: config.json, rootfs/, and the three files docker puts into /etc."""
    config = generate(options)
    (folder / "rootfs").mkdir(exist_ok=True)
    resolver = Path("/etc/resolv.conf")
    texts = {
        "resolv.conf": resolver.read_bytes() if resolver.exists() else b"",
        "hostname": f"{options.hostname}\n".encode(),
        "hosts": (_HOSTS + (f"127.0.1.1\t{options.hostname}\n" if options.hostname else "")).encode(),
    }
    if options.network == "host" and Path("/etc/hosts").exists():
        texts["hosts"] = Path("/etc/hosts").read_bytes()
    for name, text in texts.items():
        path = folder / name
        path.write_bytes(text)
        os.chmod(path, 0o644)  # the container's users read it, whatever our umask
    state.write_json(str(folder / "config.json"), config)
