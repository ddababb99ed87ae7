"""docs/confinement.md: our container beside docker's and podman's; a difference without a reason fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import busyboxes
import confinement
import pytest
import users
from confinement import Reason
from dockerd import Dockerd
from peers import require

PAGE = Path(__file__).resolve().parent.parent / "docs" / "confinement.md"
OWN_LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]  # podman's own cannot be had everywhere
SETTINGS = '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\nlock_type = "file"\n'
PODMAN, PLAIN, OURS = (
    "podman; podman, plain user",
    "podman, plain user; minirt, plain user",
    "minirt; minirt, plain user",
)
NUMBERS = r"(\d+|unlimited) (\d+|unlimited)"
# A value that is in none of these rows fails: a new difference does not hide behind an old one.
REASONS = [
    Reason(
        "Cap(Prm|Eff|Bnd)", PODMAN, "00000000a80425fb", "00000000800405fb",
        "podman keeps 11 of docker's 14 capabilities: not AUDIT_WRITE, MKNOD, NET_RAW",
    ),
    Reason(
        "NoNewPrivs", OURS, "0", "1",
        "ours by default: set-uid programs gain nothing; `--security-opt no-new-privileges=false` undoes it",
    ),
    Reason(
        "user and groups", PODMAN, r"(uid=0\(root\) gid=0\(root\)) groups=0\(root\)", r"uid=0\(root\) gid=0\(root\)",
        "docker lists root's own group from the image's /etc/group, as we do; podman adds none",
    ),
    Reason("oom_score_adj", PLAIN, "0", "-?[0-9]+", "a plain user hands the own score on"),
    Reason(
        "/proc/interrupts", OURS, "visible", "hidden",
        "masked since docker 26 (a side channel); docker 20.10 and podman 4.3 show it",
    ),
    Reason(
        "/sys/devices/virtual/powercap", OURS, "visible", "hidden",
        "masked since docker 24.0.6; this machine may have none",
    ),
    Reason("/sys/fs/cgroup is", OURS, "rw", "ro", "docker 20.10 on version 1: its tmpfs stays writable under runc"),
    Reason("/sys/fs/cgroup is", PODMAN, "rw", "ro", "the same, on version 2"),
    Reason("mount /dev", "podman", "tmpfs rw,nosuid,mode=755", "tmpfs rw,nosuid,noexec,mode=755", "podman's is noexec"),
    Reason(
        "mount /dev", "podman, plain user", "tmpfs rw,nosuid,mode=755", "tmpfs rw,nosuid,noexec,mode=755,uid=…,gid=…",
        "podman's is noexec",
    ),
    Reason(
        "mount /dev", "minirt, plain user", "tmpfs rw,nosuid,mode=755", "tmpfs rw,nosuid,mode=755,uid=…,gid=…",
        "a user namespace shows whose ids they are",
    ),
    Reason(
        "mount /dev/pts", PLAIN, "(devpts rw,nosuid,noexec,relatime,)gid=5(,mode=620,ptmxmode=666)",
        "devpts rw,nosuid,noexec,relatime,gid=…,mode=620,ptmxmode=666", "a user namespace shows whose ids they are",
    ),
    Reason(
        "mount /dev/shm", PLAIN, "tmpfs rw,nosuid,nodev,noexec,relatime",
        "tmpfs rw,nosuid,nodev,noexec,relatime,uid=…,gid=…", "a user namespace shows whose ids they are",
    ),
    Reason(
        "mount /etc/hosts", "*", r"\w+ rw,(no|rel)atime", r"\w+ rw,(no|rel)atime",
        "where each keeps its files on this machine",
    ),
    Reason("a device made inside", "minirt", "opens", "refused", "runc 1.1 lets a tun be opened, newer ones do not"),
    Reason("a device made inside", PODMAN, "opens", "not made", "no capability to make one"),
    Reason("a device made inside", "minirt, plain user", "opens", "not made", "none for a user namespace, mknod(2)"),
    Reason("ulimit -n", PODMAN, NUMBERS, "1024 1024", "podman was told so: its own cannot be had everywhere"),
    Reason("ulimit -u", PODMAN, NUMBERS, "1000 1000", "podman was told so: its own cannot be had everywhere"),
    Reason("ulimit -.", "*", NUMBERS, NUMBERS, "docker's daemon has other limits than whoever calls"),
    Reason("environment", PODMAN, "(.*) PATH", ".* PATH TERM container", "podman sets `container` and TERM"),
    Reason("pids cgroup", "*", "a path", "/", "docker on version 1 shares the machine's cgroup namespace"),
    Reason("hostname in hosts", "*", "no", "yes", "without a network docker writes no line for its name"),
]  # fmt: skip


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
        found["podman, plain user"] = _rootless_podman(user, archive, words)
        own = user.home / "image.tar"  # pytest's folders are closed to others
        own.write_bytes(archive.read_bytes())
        own.chmod(0o644)
        user.run([sys.executable, "-m", "minirt", "load", "-q", "-i", str(own)])
        found["minirt, plain user"] = user.run([sys.executable, "-m", "minirt", *ours]).stdout
    yield {name: confinement.facts(text) for name, text in found.items()}


def _rootless_podman(user: users.User, archive: Path, words: list[str]) -> str:
    home = Path(tempfile.mkdtemp(prefix="pod", dir="/dev/shm"))  # podman wants its runroot within 50 characters
    try:
        own = home / "config" / "containers" / "containers.conf"  # goes over the machine's
        own.parent.mkdir(parents=True)
        own.write_text(SETTINGS)
        (home / "image.tar").write_bytes(archive.read_bytes())
        subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", home], check=True)
        podman = f"env XDG_RUNTIME_DIR={home} XDG_CONFIG_HOME={home}/config podman --root {home}/r "
        podman += f"--runroot {home}/x --tmpdir {home}/t --storage-driver vfs --runtime {require('runc')}"
        user.run([*podman.split(), "load", "-q", "-i", str(home / "image.tar")])
        run = ["run", "--rm", "--network=none", "--pull=never", *OWN_LIMITS, "localhost/probe:1", *words]
        output = user.run([*podman.split(), *run]).stdout
        user.run([*podman.split(), "rmi", "-af"])
        return output
    finally:
        for pause in home.rglob("pause.pid"):
            os.kill(int(pause.read_text()), signal.SIGKILL)
        shutil.rmtree(home)


@pytest.mark.slow
def test_every_difference_has_a_reason(columns: dict[str, dict[str, str]]) -> None:
    if os.environ.get("MINIRT_WRITE_DOCS"):
        PAGE.write_text(confinement.table(columns, REASONS))
    docker = columns["docker"]
    assert len(docker) > 40 and all(set(column) == set(docker) for column in columns.values())
    unexplained = []
    for fact in docker:
        values = {name: column[fact] for name, column in columns.items()}
        for name, value in values.items():
            if value != docker[fact] and not confinement.reason_for(fact, name, values, REASONS):
                unexplained.append(f"{fact}: {value!r} in {name}, {docker[fact]!r} in docker")
    assert unexplained == []


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
