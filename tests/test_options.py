"""docker's run options: each by its grammar, refused as docker refuses it, and seen inside as under docker.

What is seen is told by the real `docker run` beside the real runc over the bundle we generate for the same words.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundles
import pytest
from dockerd import Dockerd
from hypothesis import given
from hypothesis import strategies as st
from peers import require

from minirt import userns
from minirt.cli import words
from minirt.cli.flags import UsageError
from minirt.cli.run import create_body, run
from minirt.engine import binds, confinement, limits
from minirt.engine.joining import connect
from minirt.engine.settings import Settled, settle
from minirt.errors import InvalidInput, MinirtError, StartError, Unsupported
from minirt.hub import elf
from minirt.image.config import ImageConfig
from minirt.runtime import capabilities, container, mounts, spec, user
from minirt.userns import IdMapping

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")

IMAGE = ImageConfig.parse(
    json.dumps(
        {
            "os": "linux",
            "architecture": "amd64",
            "config": {"Cmd": ["sh"], "ExposedPorts": {"80/tcp": {}}},
            "rootfs": {"type": "layers", "diff_ids": []},
        }
    ).encode()
)
IDS = IdMapping()


def settled(*line: str, ids: IdMapping = IDS) -> Settled:
    """What the engine makes of a command line."""
    return settle(create_body(*run.parse("minirt run", [*line, "image"])), IMAGE, secrets.token_hex(32), ids)


def config(*line: str, ids: IdMapping = IDS) -> dict[str, Any]:
    """And its config.json."""
    return spec.generate(settled(*line, ids=ids).options)


# --- the real runc over our bundle, beside docker


class Pair:
    """One small image, in docker and as a tree."""

    def __init__(self, dockerd: Dockerd, folder: Path) -> None:
        self.dockerd, self.folder, self.runc = dockerd, folder, require("runc")
        self.tree = bundles.tree(folder / "tree", require("busybox"))
        for name in ("dev", "proc", "sys"):  # docker's import leaves these out of its own accord
            (self.tree / name).mkdir(exist_ok=True)
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            tar.add(self.tree, ".")
        dockerd.docker("import", "-", "box", stdin=data.getvalue())

    def docker(self, *line: str) -> tuple[int, str]:
        result = self.dockerd.docker("run", "--rm", *line, check=False)
        return result.returncode, result.stdout.decode() + result.stderr.decode()

    def ours(self, *line: str) -> tuple[int, str]:
        """The same by our command line, settings and bundle, run by runc."""
        values, arguments = run.parse("minirt run", list(line))
        place = self.folder / secrets.token_hex(6)
        place.mkdir()
        made = settle(create_body(values, arguments), IMAGE, place.name, IDS)
        spec.write_bundle(place, made.options)
        (place / "rootfs").rmdir()
        shutil.copytree(self.tree, place / "rootfs", symlinks=True)
        document = json.loads((place / "config.json").read_text())
        process = document["process"]
        process["user"] |= user.resolve(mounts.Root(str(place / "rootfs")), made.config["User"], made.options.groups)
        process["env"].append("HOME=" + user.home(mounts.Root(str(place / "rootfs")), process["user"]["uid"]))
        if process["user"]["uid"]:
            process["capabilities"] |= {"effective": [], "permitted": []}
        (place / "config.json").write_text(json.dumps(document))
        command = [self.runc, "--root", self.folder / "runc", "run", "--bundle", place, place.name]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=place)
        return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope="module")
def pair(dockerd: Dockerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    yield Pair(dockerd, tmp_path_factory.mktemp("options"))
    dockerd.docker("rmi", "--force", "box")


STATUS = "grep -E '^(Cap|Seccomp:|NoNew|Groups|Uid)' /proc/self/status"
NAMESPACES = "for n in pid ipc uts net cgroup mnt user; do busybox readlink /proc/self/ns/$n; done"
# Where a file system comes from the image's or our own folder, only whether it is read-only.
MOUNTS = """awk '{sub(/,inode64/, "", $4)} $2 ~ "^(/|/etc/.*|/data.*|/sbin/.*)$" {$3 = "-"; $4 = substr($4, 1, 2)}
    {print $2, $3, $4}' /proc/mounts | sort"""
DEV = "ls -l /dev /dev/shm /dev/mqueue | awk '{print $1,$3,$4,$5,$6,$NF}'"
DEVICES = "sort /sys/fs/cgroup/devices/devices.list"
V1 = "cd /sys/fs/cgroup && head -n 9"
MEMORY = f"{V1} memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes memory/memory.soft_limit_in_bytes"
MEMORY += " memory/memory.swappiness memory/memory.oom_control"
CPU = f"{V1} cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares cpuset/cpuset.cpus cpuset/cpuset.mems"
# A newer docker hides one more file; this one (20.10) knows no capability after AUDIT_READ.
INTERRUPTS = "/proc/interrupts tmpfs rw,nosuid,size=65536k,mode=755"
SEEN = [
    ("", STATUS),
    ("", MOUNTS),
    ("", DEV),
    ("", DEVICES),
    ("", "cd /proc/sys/net/ipv4; cat /proc/self/oom_score_adj ping_group_range ip_unprivileged_port_start"),
    ("-w /made/here -e A=1 -h other", "pwd; env; hostname; cat /proc/self/limits"),
    ("--cap-add SYS_TIME --cap-drop chown", STATUS),
    ("--cap-drop ALL --cap-add CAP_net_admin", STATUS),
    ("--cap-add ALL --cap-drop SYS_RESOURCE", STATUS),
    ("--cap-drop ALL -u 1000", STATUS),
    ("--security-opt no-new-privileges", STATUS),
    ("--security-opt seccomp=unconfined", STATUS),
    ("--security-opt seccomp=PROFILE", "for d in x y z; do busybox mkdir /$d; busybox rmdir /$d; chmod 700 /tmp; done"),
    ("--security-opt seccomp=PROFILE --cap-add SYS_TIME", "busybox mkdir /x; busybox rmdir /x; chmod 700 /tmp"),
    ("--security-opt systempaths=unconfined", MOUNTS),
    ("--security-opt apparmor=unconfined --security-opt label=disable", STATUS),
    ("--read-only", f"{MOUNTS}; touch /x /dev/x /dev/shm/x /etc/hosts"),
    ("--tmpfs /a --tmpfs /b:size=1m,mode=700,exec --tmpfs /c:ro,uid=5", f"{MOUNTS}; stat -c '%a %u' /a /b /c"),
    ("--ulimit nofile=100:200 --ulimit nproc=50 --ulimit core=0", "cat /proc/self/limits"),
    ("--device /dev/fuse --device /dev/loop-control:/dev/lc:r --device /dev/net", f"{DEV}; ls -l /dev/net; {DEVICES}"),
    ("--device-cgroup-rule c_188:*_rw --device-cgroup-rule b_*:7_m", DEVICES),
    ("--shm-size 1m", MOUNTS),
    ("--group-add extra --group-add 77 -u web", f"id -G; {STATUS}"),
    ("-u web:extra --group-add 0", STATUS),
    ("--domainname dom.example", "cat /proc/sys/kernel/domainname; hostname"),
    ("--init", f"cat /proc/1/cmdline; {MOUNTS}"),
    ("--pid host", "cat /proc/2/comm; test $$ = 1; echo $?"),
    ("--ipc none", MOUNTS),
    ("--ipc private", MOUNTS),
    ("--ipc shareable", MOUNTS),
    ("--uts host", "cat /proc/sys/kernel/hostname"),
    ("-m 64m", MEMORY),
    ("-m 64m --memory-swap 100m --memory-reservation 32m --memory-swappiness 7 --oom-kill-disable", MEMORY),
    ("-m 64m --memory-swap -1", MEMORY),
    ("--cpus 1.5", CPU),
    ("--cpu-shares 77 --cpu-quota 20000 --cpu-period 40000 --cpuset-cpus 0 --cpuset-mems 0", CPU),
    ("--pids-limit 9", "cat /sys/fs/cgroup/pids/pids.max"),
    ("--pids-limit -1", "cat /sys/fs/cgroup/pids/pids.max"),
    ("--oom-score-adj 500", "cat /proc/self/oom_score_adj"),
    ("--sysctl net.ipv4.ip_forward=1 --sysctl kernel.msgmax=4", "cd /proc/sys; cat net/ipv4/ip_forward kernel/msgmax"),
    ("-v HERE:/data -v HERE/sub:/data/ro:ro", f"{MOUNTS}; touch /data/x /data/ro/x; stat -c '%a %u' /data/*"),
    ("-v HERE:/data:ro,z", "touch /data/x"),
    ("-v HERE/made/by/docker:/data", "touch /data/x && stat -c '%a %u' /data"),
    ("--mount type=bind,source=HERE,target=/data,readonly", f"touch /data/x; {MOUNTS}"),
    ("--mount type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=0711", f"{MOUNTS}; stat -c %a /t"),
    ("-v SHARED:/data:rslave", "awk '{print $5,$7}' /proc/self/mountinfo | grep data | busybox sed 's/:.*//'"),
    ("-v SHARED:/data:rshared", "awk '{print $5,$7}' /proc/self/mountinfo | grep data | busybox sed 's/:.*//'"),
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[[str], list[str]]]:
    """Words of an option line, its names of folders and files made real."""
    shared = tmp_path / "shared"
    (tmp_path / "here" / "sub").mkdir(parents=True)
    shared.mkdir()
    rules: list[dict[str, Any]] = [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_TIME"]}},
        {"name": "rmdir", "action": "SCMP_ACT_ERRNO", "includes": {"arches": ["s390"]}},
        {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "4.0"}},
    ]
    machine = {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "archMap": [machine], "syscalls": rules}
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", shared], check=True)
    subprocess.run(["mount", "--make-shared", shared], check=True)
    names = {"HERE": tmp_path / "here", "SHARED": shared, "PROFILE": tmp_path / "profile.json"}

    def real(line: str) -> list[str]:
        made = [word.replace("_", " ") if word.startswith(("c_", "b_")) else word for word in line.split()]
        for name, path in names.items():
            made = [word.replace(name, str(path)) for word in made]
        return made

    yield real
    subprocess.run(["umount", "--lazy", shared], check=True)


def _explained(line: str, docker: str) -> str:
    """What docker 20.10 shows, with the two things newer dockers do."""
    docker = docker.replace("/proc/irq ", f"{INTERRUPTS}\n/proc/irq ")
    if "--cap-add ALL" in line:
        docker = docker.replace("0000003f", "000001ff")
    return docker


@pytest.mark.slow
@pytest.mark.parametrize(("line", "script"), SEEN)
def test_seen_as_under_docker(pair: Pair, place: Callable[[str], list[str]], line: str, script: str) -> None:
    """Four things differ on purpose, and so are said on the command line: see spec.py, and what the network is."""
    common = ["--network=none", "--cgroupns=private", *([] if "uts" in line or "-h " in line else ["--hostname=box"])]
    command = [*place(line), "box", "sh", "-c", script]
    code, docker = pair.docker(*common, *command)
    ours = pair.ours(*common, "--security-opt=no-new-privileges=false", *command)
    assert ours == (code, _explained(line, docker))
    assert docker, "nothing was seen"


@pytest.mark.slow
def test_privileged_under_runc(pair: Pair) -> None:
    """All that we have ourselves: docker asks for every capability, and fails where this machine has not got it."""
    code, seen = pair.ours("--privileged", "box", "sh", "-c", f"{STATUS}; {MOUNTS}; {DEVICES}; ls /dev")
    bound = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
    lines = seen.splitlines()
    assert code == 0 and {bound, "NoNewPrivs:\t0", "Seccomp:\t0", "a *:* rwm"} <= set(lines), seen
    assert "/sys sysfs rw,nosuid,nodev,noexec,relatime" in lines
    assert not any(line.startswith(("/proc/", "/sys/firmware")) for line in lines)
    assert {"loop-control", "kmsg"} & set(lines)


def _namespaces_of(pid: int | str) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("pid", "ipc", "uts", "net", "user")}


@pytest.mark.slow
def test_host_namespaces_under_runc(pair: Pair) -> None:
    _, seen = pair.ours("--pid=host", "--ipc=host", "--uts=host", "--network=host", "box", "sh", "-c", NAMESPACES)
    ours = _namespaces_of("self")
    assert {ours[kind] for kind in ("pid", "ipc", "uts", "net")} <= set(seen.split())


@pytest.mark.slow
def test_join_another_container(pair: Pair, tmp_path: Path) -> None:
    """Its namespaces and its /dev/shm, found at the start; a container that does not run cannot be joined."""
    (tmp_path / "other").mkdir()
    other = bundles.create(tmp_path / "other", pair.tree, ["sh", "-c", "echo kept >/dev/shm/x; sleep 60"], IDS)
    host = create_body(*run.parse("minirt run", [f"--{kind}=container:other" for kind in ("pid", "ipc")] + ["x"]))
    made = settle(host | {"Cmd": ["sh", "-c", NAMESPACES]}, IMAGE, "me", IDS, lambda name: "id-of-it")
    assert made.host["PidMode"] == "container:id-of-it"
    mine = tmp_path / "mine"
    mine.mkdir()
    spec.write_bundle(mine, made.options)
    with pytest.raises(StartError, match="cannot join PID of a non running container: id-of-it"):
        connect(mine, lambda name: other)
    container.start(other, IDS)
    try:
        connect(mine, {"id-of-it": other}.__getitem__)
        document = json.loads((mine / "config.json").read_text())
        pid = container.status(other).pid
        (shm,) = [mount for mount in document["mounts"] if mount["destination"] == "/dev/shm"]
        assert shm["source"] == f"/proc/{pid}/root/dev/shm" and shm["type"] == "bind"
        kept = Path(shm["source"], "x")
        end = time.monotonic() + 10
        while not (kept.exists() and kept.read_text()) and time.monotonic() < end:
            time.sleep(0.01)
        assert kept.read_text() == "kept\n"
        document["mounts"].remove(shm)  # lies in another mount namespace: only our own core takes it from there
        (mine / "config.json").write_text(json.dumps(document))
        shutil.copytree(pair.tree, mine / "rootfs", symlinks=True, dirs_exist_ok=True)
        command = [pair.runc, "--root", tmp_path / "runc", "run", "--bundle", mine, "joined"]
        seen = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        theirs = _namespaces_of(pid)
        assert seen.stderr == "" or "level=warning" in seen.stderr
        assert {theirs["pid"], theirs["ipc"]} <= set(seen.stdout.split()) and theirs["uts"] not in seen.stdout
    finally:
        container.signal(other, 9)
        container.wait(other, 10)


@pytest.mark.slow
def test_a_user_namespace_under_runc(pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The mapping is delegated ids; with owners shifted by hand (our shim does it by idmapped mounts) runc takes it."""
    ids = IdMapping(((0, 700000, 65536),), ((0, 800000, 65536),))
    monkeypatch.setattr(userns, "delegated", lambda: ids)
    made = settled("--userns=private")
    assert made.rootfs == {"idmap": True} and made.options.device_rules == ()
    mine = tmp_path / "mine"
    mine.mkdir()
    spec.write_bundle(mine, replace(made.options, args=["sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map"]))
    shutil.copytree(pair.tree, mine / "rootfs", symlinks=True, dirs_exist_ok=True)
    subprocess.run(["chown", "-R", "700000:800000", mine / "rootfs"], check=True)
    for folder in (mine, *mine.parents):
        if folder.stat().st_uid == os.getuid() and folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o111)
    command = [pair.runc, "--root", tmp_path / "runc", "run", "--bundle", mine, "mapped"]
    seen = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert seen.stdout.split() == ["0", "700000", "65536", "0", "800000", "65536"], seen.stderr


def test_delegated_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"/etc/subuid": [(5000, 10), (9000, 1)], "/etc/subgid": [(6000, 20)]}
    monkeypatch.setattr(userns, "_ranges", lambda path, uid: rows[path] if uid == 0 else [])
    assert userns.delegated() == IdMapping(((0, 5000, 10),), ((0, 6000, 20),))
    rows["/etc/subgid"].clear()
    with pytest.raises(Unsupported, match="usermod --add-subuids"):
        userns.delegated()


# --- what is refused, in docker's words

# Options that docker and we refuse with the same words.
REFUSED = r"""
--cap-add nope
--cap-drop CAP_NOPE
--security-opt foo
--security-opt foo=bar
--security-opt no-new-privileges=maybe
--security-opt seccomp=/nosuch.json
--ulimit nofile
--ulimit foo=1
--ulimit nofile=5:4
--ulimit nofile=a
--ulimit nofile=1:2:3
--ulimit nofile=-1:5
--device /nosuch
--device /etc/passwd
--device /etc
--device a:b:c:d
--device :x
--device /dev/null:/x:z
--device rel
--device /dev/null:rel
--device-cgroup-rule x
--device-cgroup-rule c_1:2_q
--shm-size x
--shm-size -1
--tmpfs /x:bogus
--tmpfs rel
--tmpfs /
--pid bad
--pid container:
--ipc bad
--uts bad
--uts host -h x
--userns bad
--cgroupns bad
--network container:
--network container:x -h y
--network container:x --dns 1.1.1.1
--network container:x --add-host a:1.1.1.1
--network container:x -P
--network container:x --expose 80
-m 1m
-m x
-m -1
-m 10m --memory-swap 5m
--memory-swap 10m
-m 10m --memory-reservation 20m
--memory-reservation 1m
--memory-swappiness 101
--cpus 100
--cpus x
--cpus 1.00000000001
--cpus -1
--cpus 1 --cpu-quota 5000
--cpus 1 --cpu-period 5000
--cpu-period 10
--cpu-quota 10
--cpu-shares -1
--cpuset-cpus 999
--cpuset-cpus x
--cpuset-cpus 3-1
--cpuset-mems 7
--oom-score-adj 2000
--sysctl kernel.panic=1
--sysctl foo
--sysctl net.core.x
-v /a:/b:bad
-v /a:/
-v /a:rel
-v /a:/b:ro:rw
-v /a:ro
-v /a:/b:ro,rw
-v HERE:/b:shared
-v HERE:/b:slave
--mount type=bind,source=/nosuch,target=/x
--mount type=bind,target=/x
--mount type=bind,source=/tmp
--mount foo
--mount type=bind,foo=1,target=/x
--mount type=nope,target=/x
--mount type=tmpfs,source=/x,target=/x
--mount type=tmpfs,tmpfs-size=x,target=/x
--mount type=tmpfs,tmpfs-mode=9,target=/x
--mount type=bind,src=/tmp,tmpfs-size=1m,target=/x
--mount type=bind,src=rel,target=/x
--mount type=bind,src=/tmp,target=/x,bind-propagation=foo
--mount type=bind,src=/tmp,target=/x,readonly=maybe
--mount type=bind,src=/tmp,target=/
--stop-signal FOO
--dns x
--dns-search -
--add-host x
--add-host x:y
-a foo
-d -a stdin
--expose 1:2
--label =x
--env =x
--restart on-failure:x
--restart always --rm
-w rel
"""
# What we cannot do at all, and say so ourselves.
UNSUPPORTED = """--restart=always --health-cmd=x --gpus=all --link=a --mac-address=02:00:00:00:00:01 --ip=1.2.3.4
    --network-alias=a --storage-opt=size=1 --blkio-weight=10 --isolation=hyperv
    --volume-driver=x --device-read-bps=/dev/sda:1 --kernel-memory=1g --cpu-rt-period=1
    --volume=named:/x --volume=/x --mount=target=/x --mount=type=volume,source=a,target=/x --network=mars
    --security-opt=label=type:x --security-opt=apparmor=mine --runtime=nosuch"""


@pytest.mark.slow
@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_refused_in_docker_s_words(pair: Pair, place: Callable[[str], list[str]], line: str) -> None:
    command = place(line)
    # A network of its own would change what is looked at first.
    network = [] if "network" in line else ["--network=none"]
    result = pair.dockerd.docker("run", *network, *command, "box", "true", check=False)
    # Sometimes its client also logs that it waits no more.
    docker = next(line for line in result.stderr.decode().splitlines() if not line.startswith("time="))
    docker = docker.removeprefix("docker: ").removeprefix("Error response from daemon: ").removesuffix(".")
    assert result.returncode, docker
    with pytest.raises(MinirtError) as refused:
        settled(*network, *command)
    assert str(refused.value) == docker


@pytest.mark.parametrize("word", UNSUPPORTED.split())
def test_unsupported_is_said_in_one_line(word: str) -> None:
    if word.startswith("--security-opt=apparmor") and Path("/sys/module/apparmor/parameters/enabled").exists():
        pytest.skip("this machine has AppArmor")
    with pytest.raises((Unsupported, InvalidInput)) as refused:
        settled(word)
    name = word[2:].partition("=")[0]
    words_of_it = (f"--{name}", "restart policy", "volume", "network", "runtime")
    assert str(refused.value).startswith(("--", "a ", "restart", "unknown or invalid runtime", "network")), (
        refused.value
    )
    assert any(known in str(refused.value) for known in words_of_it) and "\n" not in str(refused.value)


# --- requests of other clients


def test_what_says_nothing_is_taken() -> None:
    """The fields that docker's command and libraries send whether or not anything was asked for."""
    host = {"BlkioWeight": 0, "BlkioDeviceReadBps": [], "Links": None, "RestartPolicy": {"Name": "no"}, "Cgroup": ""}
    host |= {"LogConfig": {"Type": "", "Config": {}}, "MemorySwappiness": -1, "ConsoleSize": [0, 0], "Isolation": ""}
    host |= {"PidsLimit": 0, "OomKillDisable": False, "VolumeDriver": "", "KernelMemory": 0, "Dns": [], "Ulimits": None}
    body = {"Image": "x", "Volumes": {}, "NetworkingConfig": {"EndpointsConfig": {"default": {"Links": None}}}}
    made = settle(body | {"HostConfig": host, "ArgsEscaped": False}, IMAGE, "i" * 64, IDS)
    assert spec.generate(made.options)["linux"].keys() == config()["linux"].keys()
    assert made.warnings == [] or made.rootfs


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ({"BlkioWeight": 10}, "HostConfig.BlkioWeight is not supported"),
        ({"Links": ["a:b"]}, "HostConfig.Links is not supported"),
        ({"NewerThanUs": 1}, "HostConfig.NewerThanUs is not supported"),
        ({"Memory": "1g"}, "HostConfig.Memory: a number is wanted"),
        ({"Memory": True}, "HostConfig.Memory: a number is wanted"),
        ({"CapAdd": "ALL"}, "HostConfig.CapAdd: a list is wanted"),
        ({"CapAdd": [1]}, "HostConfig.CapAdd: a list is wanted, and in it a string"),
        ({"Mounts": ["x"]}, "HostConfig.Mounts: a list is wanted, and in it an object"),
        ({"RestartPolicy": {"Name": "always"}}, "restart policy 'always' is not supported"),
        ({"LogConfig": {"Type": "syslog"}}, "error looking up logging plugin syslog"),
        ({"Ulimits": [{"Name": "nofile", "Soft": -2, "Hard": 1}]}, "invalid ulimit"),
        ({"ShmSize": -1}, "SHM size can not be less than 0"),
        ({"Sysctls": {"net.core.somaxconn": "1"}, "NetworkMode": "host"}, "not allowed in host network namespace"),
        ({"Privileged": True, "UsernsMode": "private"}, "privileged mode is incompatible with user namespaces"),
        ({"PidMode": "host", "UsernsMode": "private"}, "cannot share the host's pid namespace"),
    ],
)
def test_a_request_is_refused_by_the_field_s_name(host: dict[str, Any], told: str) -> None:
    with pytest.raises(MinirtError) as refused:
        settle({"Image": "x", "HostConfig": host}, IMAGE, "i" * 64, IDS)
    assert told in str(refused.value)


def test_a_plain_user_s_container() -> None:
    """No cgroup of its own, no device rules, no score to set: none of it is a plain user's to give."""
    ids = IdMapping(((0, 1000, 1), (1, 100000, 65536)), ((0, 1000, 1), (1, 100000, 65536)))
    made = config("--privileged", "--group-add=5", ids=ids)
    assert not {"resources", "cgroupsPath", "devices"} & made["linux"].keys()
    assert "oomScoreAdj" not in made["process"] and made["process"]["user"]["additionalGids"] == [5]
    assert made["linux"]["sysctl"] == {"net.ipv4.ip_unprivileged_port_start": "0"}
    assert "user" in [namespace["type"] for namespace in made["linux"]["namespaces"]]


def test_where_no_device_rules_are_possible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Root in a container: read-only cgroups, and so no node that it makes may open anything."""
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "none")
    made = settled()
    assert made.rootfs == {"nodev": True} and len(made.warnings) == 1
    document = spec.generate(made.options)
    assert "resources" not in document["linux"]
    assert "CAP_MKNOD" not in document["process"]["capabilities"]["bounding"]


def test_on_cgroup_v2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    made = settled("-m", "1g", "--memory-swappiness=5", "--oom-kill-disable", "--privileged")
    assert made.options.resources == {"memory": {"limit": 1 << 30, "swap": 2 << 30}}
    assert len(made.warnings) == 2 and "cgroup" not in made.options.shared


def test_swap_that_is_not_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    made = settled("-m", "1g", "--memory-swap=1g")
    assert made.options.resources["memory"] == {"limit": 1 << 30} and "swap" in made.warnings[0]


def test_mounts_of_the_user_s_replace_docker_s() -> None:
    places = [mount["destination"] for mount in config("--tmpfs=/dev", "--tmpfs=/run/a/b", "--tmpfs=/run")["mounts"]]
    assert not any(place.startswith("/dev/") for place in places) and places.count("/dev") == 1
    assert places.index("/run") < places.index("/run/a/b")
    with pytest.raises(InvalidInput, match="Duplicate mount point: /x"):
        settled("--tmpfs=/x", "--mount=type=tmpfs,target=/x/.")


def test_network_and_ports() -> None:
    """What the shim connects, and what stands in the record."""
    made = settled("--network=bridge", "-p", "127.0.0.1:8080:80", "-P", "--expose=81/udp", "--add-host=a:1.2.3.4")
    assert [(one["host_ip"], one["host_port"], one["container_port"]) for one in made.options.publish] == [
        ("127.0.0.1", "8080", 80),
        ("", "", 81),
    ]
    assert set(made.config["ExposedPorts"]) == {"80/tcp", "81/udp"} and made.host["NetworkMode"] == "bridge"
    assert made.options.extra_hosts == ("a:1.2.3.4",)
    quiet = settled("--network=host", "-p", "80")
    assert quiet.options.publish == () and "discarded" in quiet.warnings[0]


def test_paths_of_binds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = create_body(*run.parse("run", ["-v", "./a:/x", "-v", "~/b:/y:ro", "-v", "../c:/z", "-v", "n:/q", "i"]))
    parent = tmp_path.parent
    assert made["HostConfig"]["Binds"] == [f"{tmp_path}/a:/x", f"{tmp_path}/home/b:/y:ro", f"{parent}/c:/z", "n:/q"]


def test_the_cgroup_s_parent_stays_inside() -> None:
    for parent, path in ("/a/b", "/a/b"), ("../../a", "a"), ("/../a/../..", "/"):
        assert Path(settled(f"--cgroup-parent={parent}").options.cgroups_path).parent == Path(path)


def test_init_needs_a_static_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "docker-init"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("minirt.engine.settings._FIRST_DIRS", "")
    for content in None, b"#!/bin/sh\n", Path("/bin/ls").read_bytes():
        if content:
            script.write_bytes(content)
            script.chmod(0o755)
        with pytest.raises(Unsupported, match="apt install tini"):
            settled("--init")
    script.write_bytes(elf.program("amd64", b"x"))
    assert settled("--init").options.args == ["/sbin/docker-init", "--", "sh"]


def test_cidfile(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "minirt", "run", "-q", f"--cidfile={tmp_path}/id", "hello-world"]
    subprocess.run(command, check=True, capture_output=True)
    identity = (tmp_path / "id").read_text()
    assert re.fullmatch("[0-9a-f]{64}", identity)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 125 and again.stderr.startswith("minirt: container ID file found")
    assert (tmp_path / "id").read_text() == identity


# --- grammars


@given(st.integers(0, 2**50), st.sampled_from(["", "k", "m", "g", "K", "M"]), st.sampled_from(["", "b", "iB", "ib"]))
def test_sizes(number: int, unit: str, end: str) -> None:
    factor = 1024 ** " kmg".index(unit.lower() or " ")
    assert abs(words.size(f"{number}{unit}{end}") - number * factor) <= number * factor >> 50


@given(st.text(max_size=12))
def test_any_text_is_taken_or_refused(text: str) -> None:
    """Only ValueError, whatever the word; what is taken is taken again as it came out."""
    for read in (words.size, words.swap, words.cpus, words.ulimit, words.device, words.device_rule, words.address):
        _tried(read, text)
    for read in (words.domain, words.extra_host, words.label, words.sysctl, words.mount, words.expose, words.restart):
        _tried(read, text)
    for again in (words.address, words.domain, words.volume, words.publish):
        made = _tried(again, text)
        assert made is None or again(made) == made


def _tried(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueError as error:
        assert str(error)
    return None


@given(st.sampled_from(words.LIMITS.split()), st.integers(-1, 2**40), st.integers(-2, 2) | st.integers(0, 2**40))
def test_ulimits(name: str, soft: int, more: int) -> None:
    hard = max(-1, soft + more)
    fits = hard == -1 or 0 <= soft <= hard
    made = _tried(words.ulimit, f"{name}={soft}:{hard}".replace("-1", "infinity" if soft % 2 else "-1"))
    assert made == ({"Name": name, "Soft": soft, "Hard": hard} if fits else None)
    assert words.ulimit(f"{name}={soft}") == {"Name": name, "Soft": soft, "Hard": soft}


@given(st.fractions(0, 64, max_denominator=1000))
def test_cpus(number: Any) -> None:
    exact = (number * 10**9).denominator == 1
    assert _tried(words.cpus, str(number)) == (int(number * 10**9) if exact else None)


PATHS = st.from_regex(r"(/[a-z]{1,3}){1,3}", fullmatch=True)


@given(PATHS, st.none() | PATHS, st.sampled_from(["", "r", "rw", "mw", "rwm", "q", "rr"]))
def test_devices(host: str, inside: str | None, may: str) -> None:
    word = ":".join([host, *([inside] if inside else []), *([may] if may else [])])
    if may in ("q", "rr"):
        assert _tried(words.device, word) is None
        return
    expected = {"PathOnHost": host, "PathInContainer": inside or host, "CgroupPermissions": may or "rwm"}
    assert words.device(word) == [expected]


@given(st.dictionaries(st.sampled_from(["source", "src", "readonly", "bind-propagation", "consistency"]), PATHS), PATHS)
def test_bind_mounts(fields: dict[str, str], target: str) -> None:
    fields = {key: "true" if key == "readonly" else value for key, value in fields.items()}
    made = words.mount(",".join(["type=bind", *(f"{key}={value}" for key, value in fields.items()), f"dst={target}"]))
    assert made["Type"] == "bind" and made["Target"] == target
    assert made.get("ReadOnly", False) == ("readonly" in fields)
    assert made.get("Source") == ([v for k, v in fields.items() if k in ("source", "src")] or [None])[-1]


@given(st.sets(st.integers(0, 300), min_size=1))
def test_cpu_lists(wanted: set[int]) -> None:
    runs: list[list[int]] = []
    for number in sorted(wanted):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    assert limits.numbers(",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)) == wanted


@given(st.sets(st.sampled_from(capabilities.NAMES)), st.sets(st.sampled_from(capabilities.NAMES)), st.booleans())
def test_capabilities(adds: set[str], drops: set[str], everything: bool) -> None:
    ours = set(confinement.tweak(["ALL"], []))
    adds &= ours
    spelled = [name.removeprefix("CAP_").lower() for name in adds]
    made = confinement.tweak(spelled, ["ALL"] if everything else drops)
    base = set() if everything else set(capabilities.DEFAULT) - drops
    assert len(made) == len(set(made)) and set(made) == base | adds
    assert set(confinement.tweak(["ALL"], drops)) == ours - drops


TMPFS = "ro rw exec noexec suid nosuid dev size=1m size=2m mode=700 rslave shared uid=5"


@given(st.lists(st.sampled_from(TMPFS.split())))
def test_the_last_tmpfs_option_of_a_kind_counts(options: list[str]) -> None:
    made = binds.tmpfs("/x", ",".join(options))["options"]
    for pair in ("ro", "rw"), ("exec", "noexec"), ("suid", "nosuid"), ("size=1m", "size=2m"), ("rslave", "shared"):
        given = [option for option in options if option in pair]
        assert [option for option in made if option in pair][-1:] == given[-1:] or not given
    assert len(made) == len(set(made)) and {"nodev", "dev"} & set(made)


def test_the_flag_is_spelled_as_docker_spells_it() -> None:
    for word, spelled in ("-m=x", "-m, --memory"), ("--memory-swap=x", "--memory-swap"), ("-l=", "-l, --label"):
        with pytest.raises(UsageError, match=f'for "{spelled}" flag'):
            create_body(*run.parse("run", [word, "image"]))
