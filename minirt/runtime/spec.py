"""The bundle's config.json (OCI runtime-spec): everything about a container that a runtime must know, as data.

The defaults are docker's, so that a container sees the same mounts, masks, devices, capabilities and files. The bundle
is valid by itself: for a plain user it lists the user namespace and its mapping in the machine's ids, so a rootless
runc takes it too; our own shim enters that namespace first, to mount the layers in it. Two things differ from docker,
on purpose: noNewPrivileges is on by default, and there is always a cgroup namespace.

Two things are known only when the container starts, and stand beside config.json until then:
    groups      `--group-add`, one a line: the image's /etc/group says what a name means
    join.json   {"pid": ID, "ipc": …, "network": …, "uts": …}: containers whose namespaces this one joins. Who starts it
                puts their paths into config.json: a container has new ones each time it runs (engine/joining.py)
Sources: runtime-spec config.md and config-linux.md; moby oci/defaults.go, daemon/oci_linux.go. Taught in chapter 07.
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
SHM_SIZE = 64 << 20  # bytes
NETWORKS = ("none", "host", "container", "bridge", "pasta", "slirp4netns")
SHARABLE = ("uts", "ipc", "pid", "cgroup", "network")
_FILES = ("resolv.conf", "hostname", "hosts")
# zero, null, urandom, random, tty, console may be opened, fuse not: of its own a runtime adds pts and ptmx
_DEVICE_RULES = ((1, 5, True), (1, 3, True), (1, 9, True), (1, 8, True), (5, 0, True), (5, 1, True), (10, 229, False))
_SYSCTLS = {"net.ipv4.ping_group_range": "0 2147483647", "net.ipv4.ip_unprivileged_port_start": "0"}


@dataclass(frozen=True, eq=False, repr=False)  # without them half the time to import this
class ContainerOptions:
    """What is to run, and how. Objects (mounts, devices, rules, rlimits, resources) are the runtime-spec's.

    `env` is final (see `environment`). `network` is one of NETWORKS, `publish` (ports.Publish as JSON) and `exposed`
    are its ports, `resolver` its name servers, search domains and options, `extra_hosts` lines for its hosts file.
    `shared` are the namespaces (SHARABLE) it has in common with the machine, `join` those of another container, by its
    id. `ids` maps all our processes, `remap` this container alone (root's), whose layers stay as they are on disk.
    `seccomp` is a policy, None for no filter, or "default". `device_rules` are added to docker's; None: no rules at
    all, for the devices cgroup is not ours to write.
    """

    args: list[str]
    env: list[str]
    cwd: str = "/"
    hostname: str = ""
    domainname: str = ""
    network: str = "none"
    publish: tuple[dict[str, Any], ...] = ()
    exposed: tuple[str, ...] = ()
    resolver: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] = ((), (), ())
    extra_hosts: tuple[str, ...] = ()
    terminal: bool = False
    groups: tuple[str, ...] = ()
    privileged: bool = False
    capabilities: tuple[str, ...] = capabilities.DEFAULT
    no_new_privileges: bool = True
    seccomp: dict[str, Any] | str | None = "default"
    apparmor: str = ""
    masked: tuple[str, ...] = MASKED
    readonly_paths: tuple[str, ...] = READ_ONLY
    readonly: bool = False
    ids: IdMapping = field(default_factory=IdMapping)
    remap: IdMapping | None = None
    shared: frozenset[str] = frozenset()
    join: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    extra_mounts: tuple[dict[str, Any], ...] = ()
    propagation: str = ""
    shm_size: int | None = SHM_SIZE
    devices: tuple[dict[str, Any], ...] = ()
    device_rules: tuple[dict[str, Any], ...] | None = ()
    resources: dict[str, Any] = field(default_factory=dict)
    cgroups_path: str = ""
    rlimits: tuple[dict[str, Any], ...] = ()
    sysctl: dict[str, str] = field(default_factory=dict)
    oom_score_adj: int | None = None

    @property
    def mapping(self) -> IdMapping:
        """The ids inside, as rows of the machine's."""
        return self.remap or self.ids

    @property
    def own_network(self) -> bool:
        """It has a network namespace that nobody had before."""
        return not ("network" in self.shared or self.network == "host" or "network" in self.join)


def environment(hostname: str, image: Iterable[str], user: Iterable[str], terminal: bool = False) -> list[str]:
    """The environment in docker's order: PATH, HOSTNAME, with a terminal TERM, the user's, what is left of the image's.

    Later entries replace earlier ones in place; a user's entry without `=` removes the variable. HOME is added at the
    start, from the image's passwd file.
    """
    chosen = list(user)
    named = {entry.partition("=")[0] for entry in chosen}
    entries: dict[str, str] = {}
    rest = [entry for entry in image if entry.partition("=")[0] not in named]
    for entry in (PATH, f"HOSTNAME={hostname}", *(["TERM=xterm"] if terminal else []), *chosen, *rest):
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
    if options.network not in NETWORKS:
        raise InvalidInput(f"network {options.network} not found: use {', '.join(NETWORKS)}")
    cwd = options.cwd or "/"
    if not cwd.startswith("/"):
        raise InvalidInput(f"the working directory '{cwd}' is invalid, it needs to be an absolute path")
    if any("\0" in text for text in (*options.args, *options.env, cwd)):
        raise InvalidInput("a NUL byte cannot stand in a command, an environment or a path")
    named = options.hostname if "uts" not in {*options.shared, *options.join} else ""
    return {
        "ociVersion": "1.0.2",
        "process": _process(options, cwd),
        "root": {"path": "rootfs", "readonly": options.readonly},
        "hostname": named,
        "mounts": _mounts(options),
        "annotations": dict(options.annotations),
        "linux": _linux(options),
    }


def _process(options: ContainerOptions, cwd: str) -> dict[str, Any]:
    """Who runs what. The user is root until the image's files can be asked, and then loses the two last sets."""
    names = list(options.capabilities)
    groups = [int(group) for group in options.groups if group.isdecimal()]
    groups = groups if options.ids.rootless else [0, *groups]  # a plain user's runc takes no list of groups
    process: dict[str, Any] = {
        "terminal": options.terminal,
        "user": {"uid": 0, "gid": 0, **({"additionalGids": groups} if groups else {})},
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
    }
    if options.rlimits:
        process["rlimits"] = list(options.rlimits)
    if options.apparmor:
        process["apparmorProfile"] = options.apparmor
    if options.oom_score_adj is not None:
        process["oomScoreAdj"] = options.oom_score_adj
    return process


def _linux(options: ContainerOptions) -> dict[str, Any]:
    """What only Linux has: namespaces, ids, devices, limits, filters."""
    shared = options.shared | ({"network"} if options.network == "host" else set())
    kinds = ["mount", *(kind for kind in SHARABLE if kind not in shared)]
    linux: dict[str, Any] = {
        "maskedPaths": [] if options.privileged else list(options.masked),
        "readonlyPaths": [] if options.privileged else list(options.readonly_paths),
    }
    if options.mapping.rootless:
        kinds.append("user")
        linux["uidMappings"], linux["gidMappings"] = _rows(options.mapping.uids), _rows(options.mapping.gids)
    linux["namespaces"] = [{"type": kind} for kind in kinds]
    resources = dict(options.resources)
    if options.device_rules is not None and not options.mapping.rootless:
        rules = [{"allow": True, "access": "rwm"}] if options.privileged else device_rules(options.device_rules)
        resources["devices"] = rules
    sysctl = {key: value for key, value in _SYSCTLS.items() if options.own_network and _settable(key, options)}
    if options.domainname:  # config.json's own field for it is younger than runc 1.1; docker does the same
        sysctl["kernel.domainname"] = options.domainname
    if options.seccomp == "default":
        from minirt.runtime import seccomp

        linux["seccomp"] = seccomp.default(options.capabilities)
    optional = {
        "devices": list(options.devices),
        "resources": resources,
        "cgroupsPath": options.cgroups_path,
        "sysctl": sysctl | options.sysctl,
        "seccomp": options.seccomp if isinstance(options.seccomp, dict) else None,
        "rootfsPropagation": options.propagation,
    }
    return linux | {key: value for key, value in optional.items() if value}


def device_rules(more: Iterable[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Which devices may be opened, whatever nodes there are: docker's, then `more`; a later rule wins."""
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for major, minor, allow in _DEVICE_RULES:
        rules.append({"allow": allow, "type": "c", "major": major, "minor": minor, "access": "rwm"})
    return [*rules, *more]


def _settable(key: str, options: ContainerOptions) -> bool:
    """Ping without CAP_NET_RAW cannot be allowed in a user namespace: its range would name ids that are not there."""
    if options.mapping.rootless and key.endswith("ping_group_range"):
        return False
    return os.path.exists("/proc/sys/" + key.replace(".", "/"))


def _rows(rows: tuple[tuple[int, int, int], ...]) -> list[dict[str, int]]:
    return [{"containerID": inside, "hostID": outside, "size": count} for inside, outside, count in rows]


def _mounts(options: ContainerOptions) -> list[dict[str, Any]]:
    """docker's, then what was asked for, which takes the place of one of docker's at the same destination."""
    closed = ["nosuid", "noexec", "nodev"]
    group = [] if options.mapping.single else ["gid=5"]  # the tty group, where there is a second id at all
    open_ = ["ro"] if not options.privileged else []
    if options.mapping.rootless and not options.own_network:
        # sysfs shows a network namespace, and only that one's owner may mount it.
        sys = ("/sys", "bind", "/sys", ["rbind", *closed, "rro"])
    else:
        sys = ("/sys", "sysfs", "sysfs", [*closed, *open_])
    proc, queues = ("/proc", "proc", "proc", closed), ("/dev/mqueue", "mqueue", "mqueue", closed)
    if options.mapping.rootless:  # the machine's namespaces show in no file system that their owner did not mount
        bound = ["rbind", "rprivate", *closed]
        proc = ("/proc", "bind", "/proc", bound) if "pid" in options.shared else proc
        queues = ("/dev/mqueue", "bind", "/dev/mqueue", bound) if "ipc" in options.shared else queues
    writable = ["ro"] if options.readonly else []
    shm = ("/dev/shm", "tmpfs", "shm", [*closed, "mode=1777", f"size={options.shm_size}"])
    if "ipc" in options.shared:
        shm = ("/dev/shm", "bind", "/dev/shm", ["rbind", "rprivate"])
    rows = [
        proc,
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *group]),
        sys,
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*open_, *closed]),
        *([queues] if queues[1] != "bind" or os.path.isdir("/dev/mqueue") else []),
        *([shm] if options.shm_size is not None else []),
    ]
    files = [(f"/etc/{name}", "bind", name, ["rbind", "rprivate", *writable]) for name in _FILES]
    taken = {mount["destination"] for mount in options.extra_mounts}
    below = "/dev/" if "/dev" in taken else "\0"
    own, names = (
        [
            {"destination": d, "type": t, "source": s, "options": o}
            for d, t, s, o in some
            if d not in taken and not d.startswith(below)
        ]
        for some in (rows, files)
    )
    # What lies above comes first: a volume on /etc does not hide the files that docker puts there.
    return [*own, *sorted([*names, *options.extra_mounts], key=lambda mount: str(mount["destination"]).count("/"))]


def write_bundle(folder: Path, options: ContainerOptions) -> None:
    """Make the bundle in the container's folder: config.json, rootfs/, the three files docker puts into /etc.

    network.json is for who connects it, `runtime.network.attach`.
    """
    from minirt.runtime.network import names

    config = generate(options)
    (folder / "rootfs").mkdir(exist_ok=True)
    names.write_files(folder, options.network, options.hostname, *options.resolver, options.extra_hosts)
    if options.network not in ("none", "host"):
        settings: dict[str, Any] = {"mode": options.network, "hostname": options.hostname}
        settings |= {name: list(getattr(options, name)) for name in ("publish", "exposed", "extra_hosts")}
        state.write_json(str(folder / "network.json"), settings)
    if options.groups:
        (folder / "groups").write_bytes(os.fsencode("".join(f"{group}\n" for group in options.groups)))
    if options.join:
        state.write_json(str(folder / "join.json"), dict(options.join))
    state.write_json(str(folder / "config.json"), config)
