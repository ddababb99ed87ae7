"""Cold pull and unpack of the big image by minirt, docker and podman; `python benchmarks/pull.py [--rounds N]` as root.

All three take it from one docker-registry in one network namespace and unpack onto one tmpfs, turn by turn, so that
what else the machine does meets them alike. A pull begins with an empty store; the clock runs around the whole command.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP / "tests"), str(TOP)]

import dockerd  # noqa: E402
import realimages  # noqa: E402

ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(TOP)}


def timed(command: list[str], **environment: str) -> float:
    """Seconds of wall time; a failure ends the benchmark with what the command said."""
    begin = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | environment, check=False)
    seconds = time.monotonic() - begin
    if result.returncode:
        sys.exit(f"{' '.join(command)}: {result.returncode}\n{result.stderr}")
    return seconds


def minirt(island: dockerd.Island, image: str) -> float:
    root = island.folder / "minirt"
    command = island.inside(sys.executable, "-m", "minirt", "pull", "--quiet", image)
    seconds = timed(command, MINIRT_ROOT=str(root), HOME=str(island.folder))
    shutil.rmtree(root)
    return seconds


def docker(island: dockerd.Island, image: str) -> float:
    assert isinstance(island, dockerd.Dockerd)
    seconds = timed(island.command("pull", "--quiet", image), HOME=str(island.folder))
    island.docker("rmi", "--force", image)
    return seconds


def podman(island: dockerd.Island, image: str) -> float:
    store = island.folder / "podman"
    options = [f"--root={store}/root", f"--runroot={store}/run", "--storage-driver=overlay", "--tmpdir", f"{store}/tmp"]
    settings = island.folder / "containers.conf"
    settings.write_text('[engine]\nlock_type = "file"\n')  # else it leaves its locks in /dev/shm
    home = {"HOME": str(island.folder), "TMPDIR": str(island.folder), "CONTAINERS_CONF": str(settings)}
    seconds = timed(island.inside("podman", *options, "pull", "--quiet", "--tls-verify=false", image), **home)
    timed(["podman", *options, "rmi", "--all", "--force"], **home)
    shutil.rmtree(store)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    rounds = parser.parse_args().rounds
    needed = [name for name in ("docker-registry", "skopeo", "unshare", "nsenter", "setpriv") if not shutil.which(name)]
    if os.getuid() or needed:
        sys.exit(f"this needs root, and {', '.join(needed) or 'nothing else'}")
    try:
        layout = realimages.big()
    except pytest.skip.Exception as reason:
        sys.exit(f"the image cannot be made: {reason}")

    pullers: dict[str, Callable[[dockerd.Island, str], float]] = {"minirt": minirt}
    pullers |= {"docker": docker} if shutil.which("dockerd") and shutil.which("docker") else {}
    pullers |= {"podman": podman} if shutil.which("podman") else {}
    for name in {"docker", "podman"} - pullers.keys():
        print(f"{name}: not on this machine, left out")

    with contextlib.ExitStack() as stack:
        island = stack.enter_context(dockerd.started() if "docker" in pullers else dockerd.island())
        image = f"{stack.enter_context(island.registry())}/big:latest"
        timed(island.inside("skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{image}"))
        seconds: dict[str, list[float]] = {name: [] for name in pullers}
        for number in range(rounds):
            order = list(pullers)[number % len(pullers) :] + list(pullers)[: number % len(pullers)]
            for name in order:
                seconds[name].append(pullers[name](island, image))
            print(f"round {number + 1}: " + "  ".join(f"{name} {seconds[name][-1]:.2f} s" for name in pullers))
    for name, times in seconds.items():
        line = f"{name}: median {statistics.median(times):.2f} s, best {min(times):.2f} s"
        if name != "minirt":
            ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds["minirt"], times, strict=True))
            line += f"; minirt takes {ratio:.2f} of its time (median of {rounds} pairs)"
        print(line)


if __name__ == "__main__":
    main()
