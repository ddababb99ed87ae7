"""A real dockerd of our own, beside whatever the machine runs: the oracle of the differential tests and the benchmark.

Its data lies on tmpfs; socket, exec-root, containerd, cgroup parent and network namespace are its own, so nothing of
another daemon is touched. The namespace has only loopback (and docker0) and lives as long as the daemon: what must meet
docker there (a registry, minirt, podman) is started by `inside(…)`. Everything goes when the block ends; what a killed
run left behind goes at the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from peers import require
from registries import docker_registry

MEMORY = Path("/dev/shm")
PREFIX = "minirt-dockerd-"
SERVERS = (b"dockerd", b"containerd", b"containerd-shim-runc-v2", b"docker-registry")
START_SECONDS = 60.0


@dataclass
class Island:
    """A network namespace of our own, alive as long as `process`. `folder` is on tmpfs and is removed at the end."""

    folder: Path
    process: subprocess.Popen[bytes]

    def inside(self, *command: str) -> list[str]:
        """The argv that runs `command` in the network namespace."""
        return ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", *command]

    @contextlib.contextmanager
    def registry(self) -> Iterator[str]:
        """A docker-registry in the network namespace, its data on the same tmpfs. Yields host:port."""
        with docker_registry(
            Path(tempfile.mkdtemp(prefix="registry-", dir=self.folder)), within=self.inside()
        ) as server:
            yield server.domain


class Dockerd(Island):
    """A running daemon in a network namespace of its own."""

    @property
    def data(self) -> Path:
        """docker's data-root."""
        return self.folder / "data"

    def command(self, *arguments: str) -> list[str]:
        """The argv of the docker CLI for this daemon."""
        return ["docker", "-H", f"unix://{self.folder}/docker.sock", *arguments]

    def docker(
        self, *arguments: str, check: bool = True, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the docker CLI; with `check`, a failure fails the test with what docker said."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "DOCKER_BUILDKIT": "0"}
        result = subprocess.run(
            self.command(*arguments), input=stdin or b"", capture_output=True, env=environment, check=False
        )
        if check and result.returncode:
            raise AssertionError(f"docker {' '.join(arguments)}: {result.returncode}: {result.stderr.decode()}")
        return result


@contextlib.contextmanager
def started(runtimes: dict[str, str] | None = None, shared: bool = False, **more: str) -> Iterator[Dockerd]:
    """Start a daemon, wait until it answers, and take everything of it away at the end. `runtimes`: name → program.

    `shared`: in a mount namespace of its own, all of it shared there, as systemd sets a machine up. `more` are options
    of dockerd, with `_` for `-`.
    """
    with _folder() as folder:
        folder.chmod(0o711)  # with --userns-remap the containers' root, a stranger, comes this way
        known = {name: {"path": path} for name, path in (runtimes or {}).items()}
        (folder / "daemon.json").write_text(json.dumps({"runtimes": known}))
        options = {
            "config-file": folder / "daemon.json",
            "data-root": folder / "data",
            "exec-root": folder / "exec",
            "pidfile": folder / "docker.pid",
            "host": f"unix://{folder}/docker.sock",
            "storage-driver": "overlay2",
            "exec-opt": "native.cgroupdriver=cgroupfs",
            "cgroup-parent": f"/{folder.name}",
            "log-level": "warn",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        words = ["dockerd", *(f"--{name}={value}" for name, value in options.items())]
        if shared:
            share = 'mount --make-rshared / && exec "$@"'
            words = ["unshare", "--mount", "--propagation=slave", "sh", "-c", share, "sh", *words]
        with _isolated(folder, *words) as process:
            daemon = Dockerd(folder, process)
            _until(lambda: daemon.docker("version", check=False).returncode == 0, process, folder / "log")
            yield daemon


@contextlib.contextmanager
def island() -> Iterator[Island]:
    """The same surroundings without a daemon."""
    with _folder() as folder, _isolated(folder, "sleep", "infinity") as process:
        yield Island(folder, process)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder on tmpfs; what killed runs left behind is cleaned first."""
    for left in MEMORY.glob(PREFIX + "*"):
        if not Path("/proc", left.name.removeprefix(PREFIX).split("-")[0]).exists():
            _clean(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY))
    try:
        yield folder
    finally:
        _clean(folder)


@contextlib.contextmanager
def _isolated(folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in a network namespace of its own with loopback up; it ends with the block."""
    words = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *_dying_with_us(*command)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def dockerd_of_the_run() -> Iterator[Dockerd]:
    """One daemon for all tests of the run. Needs root; a missing peer skips (in CI it fails)."""
    if os.getuid():
        pytest.skip("dockerd needs root")
    for peer in ("dockerd", "docker", "docker-registry", "unshare", "nsenter", "setpriv", "ip", "iptables"):
        require(peer)
    with started() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def dockerd(dockerd_of_the_run: Dockerd) -> Dockerd:
    """The same, empty where a file's tests begin."""
    if left := dockerd_of_the_run.docker("ps", "-aq").stdout.decode().split():
        dockerd_of_the_run.docker("rm", "-fv", *left)
    dockerd_of_the_run.docker("system", "prune", "-af", "--volumes")
    return dockerd_of_the_run


def _dying_with_us(*command: str) -> list[str]:
    """`command` gets a SIGTERM when the test run is killed."""
    return ["setpriv", "--pdeathsig", "TERM", *command]


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until `ready()`; a process that ended, or took too long, is an error with its log."""
    end = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"{process.args} did not start: {log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.05)


def _clean(folder: Path) -> None:
    """Take away what a daemon left: processes that name its folder, mounts below it, its cgroups, the folder."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            ours = any(os.fsencode(folder) + b"/" in word for word in words)
            if ours and words[0].rsplit(b"/")[-1] in SERVERS:
                os.kill(int(entry.parent.name), signal.SIGKILL)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in reversed([mount for mount in mounts if mount.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", target], check=False)
    for top in {*Path("/sys/fs/cgroup").glob(folder.name), *Path("/sys/fs/cgroup").glob(f"*/{folder.name}")}:
        for path, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):  # a cgroup that is not empty yet, or already gone with its twin
                os.rmdir(path)
    shutil.rmtree(folder, ignore_errors=True)
