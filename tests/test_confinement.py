"""docs/confinement.md: our container beside docker's and podman's; a difference without a reason fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import busyboxes
import confinement
import pytest
import users
from dockerd import Dockerd
from peers import require

PAGE = Path(__file__).resolve().parent.parent / "docs" / "confinement.md"
OWN_LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]  # podman's own cannot be had everywhere
REASONS = {
    "CapPrm": "podman keeps 11 of docker's 14 capabilities: not AUDIT_WRITE, MKNOD, NET_RAW",
    "CapEff": "the same",
    "CapBnd": "the same",
    "NoNewPrivs": "ours by default: set-uid programs gain nothing; `--security-opt no-new-privileges=false` undoes it",
    "user and groups": "docker lists root's own group from the image's /etc/group, as we do; podman adds none",
    "oom_score_adj": "a plain user hands the own score on",
    "signals": "two that the C library keeps for itself (32, 33) stay ignored from how we start a shim",
    "/proc/interrupts": "masked since docker 26 (a side channel); docker 20.10 and podman 4.3 show it",
    "/sys/devices/virtual/powercap": "masked since docker 24.0.6; this machine may have none",
    "/sys/fs/cgroup is": "docker 20.10 on version 1: its tmpfs stays writable under runc",
    "mount /etc/hosts": "where each keeps its files on this machine",
    "mount": "a user namespace shows whose ids they are; podman's /dev is noexec",
    "a device made inside": "runc 1.1 lets a tun be opened, newer ones and ours do not; podman and users: none made",
    "ulimit": "docker's daemon has other limits than whoever calls podman and minirt",
    "environment": "podman sets `container` and TERM",
    "pids cgroup": "docker on version 1 shares the machine's cgroup namespace; a plain user has no group here",
    "hostname in hosts": "without a network docker writes no line for its name",
}


@pytest.fixture(scope="module")
def columns(dockerd: Dockerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("confinement")
    dockerd.docker("import", "-", "probe:1", stdin=busyboxes.image())
    words = ["sh", "-c", confinement.PROBE]
    archive = folder / "image.tar"
    archive.write_bytes(dockerd.docker("save", "probe:1").stdout)
    found = {"docker": dockerd.docker("run", "--rm", "--network=none", "probe:1", *words).stdout.decode()}
    storage = ["--root", f"{dockerd.folder}/p", "--runroot", f"{dockerd.folder}/q", "--cgroup-manager=cgroupfs"]
    podman = [require("podman"), *storage, "--runtime", require("runc")]
    subprocess.run([*podman, "load", "-q", "-i", archive], check=True, capture_output=True)
    run = [*podman, "run", "--rm", "--network=none", "--pull=never", *OWN_LIMITS, "localhost/probe:1", *words]
    done = subprocess.run(run, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found["podman"] = done.stdout
    subprocess.run([*podman, "rmi", "-af"], check=True, capture_output=True)
    minirt = [sys.executable, "-m", "minirt", "--root", str(folder / "root")]
    ours = ["run", "--rm", "--network=none", "probe:1", *words]
    subprocess.run([*minirt, "load", "-q", "-i", str(archive)], check=True)
    found["minirt"] = subprocess.run([*minirt, *ours], check=True, capture_output=True, text=True).stdout
    with users.plain_user(subuids=True) as user:
        own = user.home / "image.tar"  # pytest's folders are closed to others
        own.write_bytes(archive.read_bytes())
        own.chmod(0o644)
        user.run([sys.executable, "-m", "minirt", "load", "-q", "-i", str(own)])
        found["minirt, plain user"] = user.run([sys.executable, "-m", "minirt", *ours]).stdout
    yield {name: confinement.facts(text) for name, text in found.items()}


@pytest.mark.slow
def test_every_difference_has_a_reason(columns: dict[str, dict[str, str]]) -> None:
    if os.environ.get("MINIRT_WRITE_DOCS"):
        PAGE.write_text(confinement.table(columns, REASONS))
    docker = columns["docker"]
    assert len(docker) > 40 and all(set(column) == set(docker) for column in columns.values())
    different = [fact for fact in docker if len({column[fact] for column in columns.values()}) > 1]
    assert [fact for fact in different if not confinement.reason_for(fact, REASONS)] == []


@pytest.mark.slow
def test_ours_is_never_wider_than_docker_s(columns: dict[str, dict[str, str]]) -> None:
    docker = columns["docker"]
    for name in "minirt", "minirt, plain user":
        ours = columns[name]
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(ours[kind], 16) & ~int(docker[kind], 16) == 0, (name, kind)
        assert ours["Seccomp mode"] == docker["Seccomp mode"] == "2" and ours["NoNewPrivs"] == "1"
        hidden = [fact for fact, value in docker.items() if value == "hidden"]
        assert hidden and [fact for fact in hidden if ours[fact] == "visible"] == []
        read_only = [fact for fact, value in docker.items() if fact.endswith(" is") and value == "ro"]
        assert len(read_only) > 3 and [fact for fact in read_only if ours[fact] not in ("ro", "")] == []
        assert ours["a device made inside"] != "opens" and ours["open descriptors"] == docker["open descriptors"]


def test_the_page_is_there() -> None:
    assert PAGE.read_text("utf-8").count("\n|") > 40
