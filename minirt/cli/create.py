"""What a container is asked to be: `run`'s options, and the Engine API's create request they stand for (chapter 04).

The option table is the grammar; words.py reads what follows an option. The request is docker's: the same command line
gives the same body, so that either command can speak to either daemon. Only what needs this machine's files or
environment (env files, seccomp profiles, relative paths) is done here; everything else is for the engine to judge.
"""

from __future__ import annotations

import os

from minirt.cli import words
from minirt.cli.flags import UsageError, Values
from minirt.errors import InvalidInput, Unsupported

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OPTIONS = """
        --add-host list               Add a line to /etc/hosts: NAME:IP (host-gateway: this machine)
        --annotation list             Add an OCI annotation: NAME=VALUE
    -a, --attach list                 Attach to stdin, stdout or stderr
        --cap-add list                Add a capability, or ALL
        --cap-drop list               Drop a capability, or ALL
        --cgroup-parent string        Put the container's cgroup under this one
        --cgroupns string             Cgroup namespace: private (the default) or host
        --cidfile string              Write the container's id to this file
    -c, --cpu-shares int              Weight against other containers' CPU time (default 1024)
        --cpu-period int              Length of a CPU period in microseconds
        --cpu-quota int               CPU time in a period in microseconds
        --cpus decimal                Number of CPUs: 1.5
        --cpuset-cpus string          Run on these CPUs: 0-3 or 0,1
        --cpuset-mems string          Use the memory of these nodes: 0-3 or 0,1
        --device list                 Give it a device of ours: PATH[:PATH INSIDE][:rwm]
        --device-cgroup-rule list     Let it open more devices: c 188:* rw
        --dns list                    Name server
        --dns-option list             Option for resolv.conf
        --dns-search list             Search domain
        --domainname string           NIS domain name
        --entrypoint string           Run this in place of the image's entrypoint
    -e, --env list                    Set a variable: NAME=VALUE, or NAME for its value here
        --env-file list               Read variables from a file, one a line
        --expose list                 Tell of a port or a range of ports: 80, 8000-8010/udp
        --group-add list              Add a group, by name or number
    -h, --hostname string             The container's host name
        --init                        Run a small init as process 1, which forwards signals and reaps processes
    -i, --interactive                 Give the command our standard input
        --ipc string                  IPC namespace: private, shareable, none, host, or container:NAME
    -l, --label list                  Label the container: NAME=VALUE
        --label-file list             Read labels from a file, one a line
        --log-driver string           Keep its log: json-file, local, or none
        --log-opt list                How its log is kept: max-size=10m, max-file=3
    -m, --memory bytes                Memory it may use: 512m
        --memory-reservation bytes    Memory it shrinks to when memory is short
        --memory-swap bytes           Memory and swap together (-1: no limit)
        --memory-swappiness int       How readily it is swapped out, 0 to 100 (default -1: the kernel's)
        --mount list                  Mount: type=bind,source=PATH,target=PATH[,readonly], or type=tmpfs,target=PATH
        --name string                 Name the container
        --network string              Network: bridge, none, host, or container:NAME
        --no-healthcheck              Run no health check of the image (we run none)
        --oom-kill-disable            Do not kill it when memory runs out
        --oom-score-adj int           Kill it sooner or later than others when memory runs out (-1000 to 1000)
        --pid string                  PID namespace: private, host, or container:NAME
        --pids-limit int              Number of processes (-1: no limit)
        --platform string             Use the image for this platform, as linux/arm64
        --privileged                  All capabilities and devices, no seccomp filter, nothing hidden
    -p, --publish list                Publish a port: [IP:][PORT:]CONTAINER_PORT[/PROTOCOL]
    -P, --publish-all                 Publish all exposed ports to free ones
        --pull string                 Pull the image first: always, missing or never (default missing)
    -q, --quiet                       Pull without a word
        --read-only                   Nobody writes to the root file system
        --restart string              Restart policy: no (the only one supported)
        --rm                          Remove the container when it exits
        --runtime string              OCI runtime: minirt (the default), runc, crun, or a path
        --security-opt list           no-new-privileges[=false], seccomp= a file or unconfined, apparmor=, systempaths=
        --shm-size bytes              Size of /dev/shm (default 64m)
        --stop-signal string          Signal that `stop` sends
        --stop-timeout int            Seconds `stop` waits before it kills
        --sysctl list                 Set a kernel parameter of its namespaces: NAME=VALUE
        --tmpfs list                  Mount a file system in memory: PATH[:OPTIONS]
    -t, --tty                         Give the command a terminal
        --ulimit list                 Limit: NAME=SOFT[:HARD]
    -u, --user string                 Run as this user: NAME or UID, then perhaps :GROUP
        --userns string               User namespace: host (the default for root) or private
        --uts string                  Host name's namespace: private, host, or container:NAME
    -v, --volume list                 Mount a folder of ours, or a volume: PATH|NAME:PATH INSIDE[:ro]
        --volumes-from list           Mount the volumes of another container: CONTAINER[:ro]
    -w, --workdir string              Working directory in the container
"""
_REFUSED = """blkio-weight blkio-weight-device cpu-rt-period cpu-rt-runtime device-read-bps device-read-iops
    device-write-bps device-write-iops gpus health-cmd health-interval health-retries health-start-interval
    health-start-period health-timeout ip ip6 isolation kernel-memory link link-local-ip mac-address
    net-alias network-alias storage-opt volume-driver"""
# A help text of "-" keeps an option out of `--help`.
OPTIONS += "".join(f"    --{name} list  -\n" for name in ("net", "dns-opt", *_REFUSED.split()))

# option: (HostConfig's field, how one of its words is read)
_WORDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "memory": ("Memory", words.size),
    "memory-reservation": ("MemoryReservation", words.size),
    "memory-swap": ("MemorySwap", words.swap),
    "shm-size": ("ShmSize", words.size),
    "cpus": ("NanoCpus", words.cpus),
    "device-cgroup-rule": ("DeviceCgroupRules", words.device_rule),
    "ulimit": ("Ulimits", words.ulimit),
    "dns": ("Dns", words.address),
    "dns-search": ("DnsSearch", words.domain),
    "add-host": ("ExtraHosts", words.extra_host),
    "mount": ("Mounts", words.mount),
}
# option: HostConfig's field, for what is taken as it is
_PLAIN = {
    "cap-add": "CapAdd", "cap-drop": "CapDrop", "cgroup-parent": "CgroupParent", "cgroupns": "CgroupnsMode",
    "cidfile": "ContainerIDFile", "cpu-period": "CpuPeriod", "cpu-quota": "CpuQuota", "cpu-shares": "CpuShares",
    "cpuset-cpus": "CpusetCpus", "cpuset-mems": "CpusetMems", "group-add": "GroupAdd", "ipc": "IpcMode",
    "oom-kill-disable": "OomKillDisable", "oom-score-adj": "OomScoreAdj", "pid": "PidMode", "pids-limit": "PidsLimit",
    "privileged": "Privileged", "publish-all": "PublishAllPorts", "runtime": "Runtime", "userns": "UsernsMode",
    "uts": "UTSMode", "volumes-from": "VolumesFrom",
}  # fmt: skip


def create_body(values: Values, arguments: list[str]) -> dict[str, Any]:
    """The Engine API's create request for these options. Raises UsageError, InvalidInput, Unsupported."""
    for name in _REFUSED.split():
        if values[name] and (name, values[name]) != ("isolation", ["default"]):
            raise Unsupported(f"--{name} is not supported")
    attach, attached = (
        [_read(values, "attach", word, words.stream) for word in values["attach"]],
        not values.get("detach"),
    )
    if attach and not attached:
        raise InvalidInput("Conflicting options: -a and -d")
    body: dict[str, Any] = {
        "Image": arguments[0],
        "Cmd": arguments[1:] or None,
        "Env": environment(values),
        "User": values["user"] or "",
        "WorkingDir": values["workdir"] or "",
        "Hostname": values["hostname"] or "",
        "Tty": values["tty"],
        "AttachStdin": attached and (values["interactive"] or "stdin" in attach),
        "AttachStdout": attached and ("stdout" in attach or not attach),
        "AttachStderr": attached and ("stderr" in attach or not attach),
        "OpenStdin": values["interactive"],
        "StdinOnce": attached and values["interactive"] and ("stdin" in attach or not attach),
        "Labels": _labels(values),
        "HostConfig": _host(values),
    }
    if values["entrypoint"] is not None:
        body["Entrypoint"] = [values["entrypoint"]]  # [""] takes the image's away, as docker says it
    if values["stop-timeout"] is not None:
        body["StopTimeout"] = values["stop-timeout"]
    if values["no-healthcheck"]:
        body["Healthcheck"] = {"Test": ["NONE"]}
    for name, field in ("domainname", "Domainname"), ("stop-signal", "StopSignal"):
        if values[name]:
            body[field] = values[name]
    if lone := [word for word in values["volume"] if ":" not in word]:
        body["Volumes"] = {word: {} for word in lone}
    exposed, bindings = _ports(values)
    if exposed:
        body["ExposedPorts"] = {port: {} for port in exposed}
    if bindings:
        body["HostConfig"]["PortBindings"] = bindings
    return body


def _host(values: Values) -> dict[str, Any]:
    """HostConfig: four fields always, the others where they were asked for."""
    swappiness = values["memory-swappiness"]
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise InvalidInput(f"invalid value: {swappiness}. Valid memory swappiness range is 0-100")
    for name, *allowed in ("pid", "host", "private"), ("uts", "host", "private"):
        _whole(words.namespace, name, values[name] or "", *allowed)
    for name in "userns", "cgroupns":
        _whole(lambda name: words.namespace(name, values[name] or "", "host", "private", container=False), name)
    security, unconfined = _whole(words.security, values["security-opt"])
    networks = [*values["net"], *([values["network"]] if values["network"] else [])]
    host: dict[str, Any] = {
        "NetworkMode": networks[-1] if networks else "default",
        "AutoRemove": values["rm"],
        "SecurityOpt": security or None,
        "ReadonlyRootfs": values["read-only"],
    }
    more: dict[str, Any] = {field: values[name] for name, field in _PLAIN.items()}
    for name, (field, read) in _WORDS.items():
        given = values[name]
        if isinstance(given, list):
            more[field] = [_read(values, name, word, read) for word in given]
        elif given:
            more[field] = _read(values, name, given, read)
    limits = {limit["Name"]: limit for limit in more["Ulimits"]}  # the last of a name counts
    more["Ulimits"] = [limits[name] for name in sorted(limits)]
    more["DnsOptions"] = [*values["dns-opt"], *values["dns-option"]]
    more["Binds"] = list(dict.fromkeys(words.volume(word) for word in values["volume"] if ":" in word))
    more["Tmpfs"] = {path: options for path, _, options in (word.partition(":") for word in values["tmpfs"])}
    more["Sysctls"] = _map(_read(values, "sysctl", word, words.sysctl) for word in values["sysctl"])
    more["Annotations"] = _map(values["annotation"])
    more["Devices"] = [made for word in values["device"] for made in _whole(words.device, word)]
    host |= {field: value for field, value in more.items() if value}
    if swappiness not in (None, -1):
        host["MemorySwappiness"] = swappiness
    if values["init"]:
        host["Init"] = True
    if values["log-driver"] or values["log-opt"]:
        if values["log-driver"] == "none" and values["log-opt"]:
            raise InvalidInput("invalid logging opts for driver none")
        host["LogConfig"] = {"Type": values["log-driver"] or "", "Config": _map(values["log-opt"])}
    if values["restart"] not in (None, "", "no"):
        host["RestartPolicy"] = _whole(words.restart, values["restart"])
        if values["rm"]:
            raise InvalidInput("Conflicting options: --restart and --rm")
    if unconfined:
        host["MaskedPaths"] = host["ReadonlyPaths"] = []
    return host


def _read(values: Values, name: str, word: str, read: Callable[[str], Any]) -> Any:
    """One word of an option. Raises UsageError as docker's library words it."""
    try:
        return read(word)
    except ValueError as error:
        import re

        short = re.search(rf"-\w, (?=--{name} )", OPTIONS)
        spelled = f"{short[0] if short else ''}--{name}"
        raise UsageError(f'invalid argument "{word}" for "{spelled}" flag: {error}') from None


def _whole(read: Callable[..., Any], *arguments: Any) -> Any:
    """What docker looks at only once the whole command line is read: no word of options in its message."""
    try:
        return read(*arguments)
    except ValueError as error:
        raise InvalidInput(str(error)) from None


def _map(pairs: Any) -> dict[str, str]:
    return dict(pair.partition("=")[::2] for pair in pairs)


def _labels(values: Values) -> dict[str, str]:
    lines = [line for path in values["label-file"] for line in _pairs(path, lambda line: [line] if "=" in line else [])]
    return _map([*lines, *(_read(values, "label", word, words.label) for word in values["label"])])


def _ports(values: Values) -> tuple[list[str], dict[str, Any]]:
    """ExposedPorts and PortBindings."""
    exposed: dict[str, None] = {}
    bindings: dict[str, Any] = {}
    if values["publish"]:
        from minirt.runtime.network.ports import parse_publish, to_bindings

        bindings = to_bindings(parse_publish(_whole(words.publish, word) for word in values["publish"]))
        exposed = dict.fromkeys(bindings)
    for word in values["expose"]:
        exposed |= dict.fromkeys(_whole(words.expose, word))
    return list(exposed), bindings


def environment(values: Values) -> list[str]:
    """What `--env-file` and `--env` say, of `exec` too. `--env NAME` without a value here takes the variable away."""
    found = [pair for path in values["env-file"] for pair in _pairs(path, variable)]
    return found + [pair for word in values["env"] for pair in _read(values, "env", word, variable) or [word]]


def variable(word: str) -> list[str]:
    """`NAME=VALUE` as it is; `NAME` with its value here, nothing where it has none. Raises ValueError."""
    name, equals, _ = word.partition("=")
    if not name:
        raise ValueError(f"invalid environment variable: {word}")
    if equals:
        return [word]
    return [f"{name}={os.environ[name]}"] if name in os.environ else []


def _pairs(path: str, read: Callable[[str], list[str]]) -> list[str]:
    """The lines of an `--env-file` or `--label-file`: one pair a line, `#` begins a comment line."""
    found = []
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            word = line.rstrip("\n").removesuffix("\r").lstrip()
            if word and not word.startswith("#"):
                if any(letter.isspace() for letter in word.partition("=")[0]):
                    raise InvalidInput(f"{path}, line {number}: white space in a variable's name")
                found += _whole(read, word)
    return found
