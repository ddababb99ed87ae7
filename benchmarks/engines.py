"""Who is measured: minirt, docker, podman and runc, on one tmpfs and in one network namespace with a registry.

Each has a control group of its own, which its daemon, its commands and its containers are in. What is not installed is
left out and told.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dockerd

from benchmarks.api import Api
from benchmarks.measure import Party

BOX = "toolbox"
_OWN_LIMITS = [
    "--ulimit=nofile=1024:1024",
    "--ulimit=nproc=1000:1000",
]  # podman's usual ones are not to be had everywhere
_PATIENCE = 30.0  # seconds for a daemon to answer


class Failed(Exception):
    """A command that is measured failed: the benchmark ends with what it said."""


def run(command: list[str], environment: dict[str, str] | None = None, stdin: bytes = b"") -> bytes:
    """What it prints. Raises Failed."""
    known = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **(environment or {})}
    result = subprocess.run(command, input=stdin, capture_output=True, env=known, check=False)
    if result.returncode:
        said = (result.stderr or result.stdout).decode(errors="replace")[-1500:]
        raise Failed(f"{' '.join(command)[:300]}: {result.returncode}\n{said}")
    return result.stdout


@dataclass
class Engine:
    """`words` begin each command of it; what it needs is in `environment`. `daemon`: its main process, 0 for none."""

    name: str
    party: Party
    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    socket: str = ""
    daemon: int = 0

    def do(self, *arguments: str, stdin: bytes = b"") -> bytes:
        return run([*self.words, *arguments], self.environment, stdin)

    def run_words(self, *options: str) -> list[str]:
        """`run --rm` with the options; podman's containers are told which group they belong to, and lower limits."""
        own = [f"--cgroup-parent=/{self.party.name}", *_OWN_LIMITS] if self.name == "podman" else []
        return ["run", "--rm", *own, *options]

    def api(self) -> Api:
        return Api(self.socket)


@dataclass
class Bench:
    """Everything that is set up: `registry` is host:port. `quick`: small images and few things."""

    folder: Path
    island: dockerd.Island
    registry: str
    engines: dict[str, Engine]
    missing: list[str]
    quick: bool
    python: Path

    def __iter__(self) -> Iterator[Engine]:
        return iter(self.engines.values())

    def push(self, layout: Path, name: str) -> str:
        """Put an image into the registry; what to pull it by."""
        target = f"{self.registry}/{name}:latest"
        copy = ["skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{target}"]
        run(self.island.inside(*copy), {"HOME": str(self.folder)})
        return target

    def absent(self, *wanted: str) -> list[str]:
        """Those of the peers a case would have that are not on this machine."""
        return [name for name in wanted if name not in self.engines and not shutil.which(name)]


@contextlib.contextmanager
def started(python: Path, quick: bool, peers: list[str]) -> Iterator[Bench]:
    """We, and those of the peers that this machine has, with hello-world and toolbox in each."""
    with contextlib.ExitStack() as stack:
        parties: dict[str, Party] = {}
        for name in ("minirt", "docker", "podman", "runc"):
            parties[name] = Party(f"bench-{name}-{os.getpid()}")
            stack.callback(parties[name].close)
        engines, missing = {}, []
        if "docker" in peers and shutil.which("dockerd") and shutil.which("docker"):
            with parties["docker"].joined():
                daemon = stack.enter_context(dockerd.started(cgroup_parent=f"/{parties['docker'].name}"))
            island: dockerd.Island = daemon
            engines["docker"] = Engine(
                "docker", parties["docker"], daemon.command(), {"HOME": str(daemon.folder)},
                f"{daemon.folder}/docker.sock", daemon.process.pid,
            )  # fmt: skip
        else:
            island = stack.enter_context(dockerd.island())
            missing += ["docker"] if "docker" in peers else []
        folder = island.folder / "bench"
        folder.mkdir()
        registry = stack.enter_context(island.registry())
        ours = stack.enter_context(_minirt(folder, island, python, parties["minirt"]))
        engines = {"minirt": ours, **engines}
        for name, make in (("podman", _podman), ("runc", _runc)):
            if name not in peers:
                continue
            if shutil.which(name):
                engines[name] = stack.enter_context(make(folder, island, parties[name]))
            else:
                missing.append(name)
        bench = Bench(folder, island, registry, engines, missing, quick, python)
        _fill(bench)
        yield bench


@contextlib.contextmanager
def _minirt(folder: Path, island: dockerd.Island, python: Path, party: Party) -> Iterator[Engine]:
    root = folder / "minirt"
    environment = {"HOME": str(folder), "MINIRT_ROOT": str(root), "MINIRT_HUB": "embedded"}
    engine = Engine("minirt", party, [str(python.with_name("minirt"))], environment)
    with party.joined():
        words = island.inside(*engine.words, "daemon")
        process = subprocess.Popen(words, env={"PATH": os.environ["PATH"], **environment}, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        if b"listening" not in process.stdout.readline():
            raise Failed("minirt's daemon did not start")
        engine.socket, engine.daemon = os.readlink(root / "daemon.sock"), process.pid
        yield engine
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _podman(folder: Path, island: dockerd.Island, party: Party) -> Iterator[Engine]:
    store = island.folder / "p"  # short: podman takes no more than 50 letters for its run root
    store.mkdir()
    settings = store / "containers.conf"
    # File locks: else it leaves its own in /dev/shm. No journal: there need be none here.
    settings.write_text('[engine]\nlock_type = "file"\nevents_logger = "file"\ncgroup_manager = "cgroupfs"\n')
    options = [f"--root={store}/root", f"--runroot={store}/r", f"--tmpdir={store}/tmp", "--storage-driver=overlay"]
    environment = {"HOME": str(store), "TMPDIR": str(store), "CONTAINERS_CONF": str(settings)}
    engine = Engine("podman", party, island.inside("podman", *options), environment)
    try:
        yield engine
    finally:
        for clean in (["rm", "--all", "--force", "--time=0"], ["rmi", "--all", "--force"]):
            with contextlib.suppress(Failed):
                engine.do(*clean)


@contextlib.contextmanager
def _runc(folder: Path, island: dockerd.Island, party: Party) -> Iterator[Engine]:
    yield Engine("runc", party, ["runc", f"--root={folder}/runc"])


def bundle(bench: Bench, image: str, words: list[str]) -> Path:
    """An OCI bundle for runc: the image's files, and what `runc spec` says."""
    engine, ours = bench.engines["runc"], bench.engines["minirt"]
    place = bench.folder / f"bundle-{image}"
    (place / "rootfs").mkdir(parents=True)
    identity = ours.do("create", image).decode().strip()
    run(["tar", "--extract", f"--directory={place}/rootfs"], stdin=ours.do("export", identity))
    ours.do("rm", identity)
    run(["runc", "spec", f"--bundle={place}"])
    config = json.loads((place / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": words}
    config["root"]["readonly"] = False
    config["linux"]["cgroupsPath"] = f"/{engine.party.name}/{image}"
    (place / "config.json").write_text(json.dumps(config))
    return place


def _fill(bench: Bench) -> None:
    """hello-world and toolbox, made by our hub, for everybody."""
    ours = bench.engines["minirt"]
    for image in ("hello-world", BOX):
        ours.do("pull", "--quiet", image)
    saved = bench.folder / "images.tar"
    ours.do("save", "--output", str(saved), "hello-world", BOX)
    for name in ("docker", "podman"):
        if name in bench.engines:
            bench.engines[name].do("load", "--input", str(saved))
    saved.unlink()
    if podman := bench.engines.get("podman"):
        try:
            podman.do(*podman.run_words(), "hello-world")
        except Failed as error:
            if "crun" not in str(error):
                raise
            podman.words.append("--runtime=runc")  # crun will not have a machine with both versions of cgroups


def until(ready: object, what: str) -> None:
    """Wait until the call says yes. Raises Failed."""
    end = time.monotonic() + _PATIENCE
    assert callable(ready)
    while not ready():
        if time.monotonic() > end:
            raise Failed(f"{what} takes longer than {_PATIENCE:.0f} s")
        time.sleep(0.02)


def needs() -> list[str]:
    """What must be there for any case at all and is not."""
    found = [] if os.getuid() == 0 else ["root"]
    found += [] if sys.platform == "linux" else ["Linux"]
    return found + [name for name in ("docker-registry", "skopeo", "unshare", "nsenter", "setpriv", "ip")
                    if not shutil.which(name)]  # fmt: skip
