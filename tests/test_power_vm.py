"""The power is cut while a store is written: a virtual machine is killed, its disk looked at as it was at any moment.

One machine does the same on two disks; on the second with one fsync taken out of the package, which has to show. It
then dies by SIGKILL in the middle of a pull. powercut.py has every state that the disks could have been left in.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import powercut
import pytest
import vm

from minirt.engine import Engine
from minirt.errors import MinirtError
from minirt.userns import IdMapping

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a disk")]

SECONDS = 240
STEPS = {  # command: what is there from then on
    "minirt pull -q hello-world": "hello-world:latest",
    "minirt tag hello-world mine:1": "mine:1",
    "minirt pull -q greeter:1.0": "greeter:1.0",
    "minirt create --name kept greeter:1.0": "kept",
    "minirt save -o saved.tar greeter:1.0; minirt rmi mine:1; minirt load -qi saved.tar": "not mine:1",
}
# A package that forgets one fsync, of a layer's bytes.
CARELESS = """mkdir /srv/careless; cp -a /srv/minirt/minirt /srv/careless/
    sed -i 's/os.fsync(self._file.fileno())/pass/' /srv/careless/minirt/store/worker.py"""


@dataclass
class Findings:
    """Over all states of a disk: how many there were, and what was wrong in them."""

    states: int
    problems: list[str]


def use(machine: vm.Machine, number: int, package: str, disk: powercut.Disk) -> dict[str, int]:
    """Do the steps on the machine's disk; how long the log was when each was done."""
    machine.run(f"mkdir /disk{number}; mount -t ext4 -o commit=1 /dev/nvme{number}n1 /disk{number}")
    ends = {}
    for step, what in STEPS.items():
        machine.run(f"{begin(number, package)}; {step}", timeout=SECONDS)
        ends[what] = disk.written
    return ends


def begin(number: int, package: str) -> str:
    return f"cd /disk{number}; export MINIRT_ROOT=$PWD/minirt MINIRT_HUB=embedded PYTHONPATH=/srv/{package}"


def look(disk: powercut.Disk, ends: dict[str, int], folder: Path, enough: int) -> Findings:
    """At all states, or until so many problems were found."""
    found = Findings(0, [])
    for at, image in disk.states():
        if len(found.problems) >= enough:
            break
        found.states += 1
        with powercut.mounted(image, folder) as top:
            if not (top / "minirt/version").exists():
                found.problems += [f"{at}: nothing there"] if any(at >= end for end in ends.values()) else []
                continue
            try:
                found.problems += [f"{at}: {what}" for what in problems(top / "minirt", at, ends)]
            except (MinirtError, OSError, ValueError) as error:
                found.problems.append(f"{at}: {error!r}")
    return found


def problems(root: Path, at: int, ends: dict[str, int]) -> list[str]:
    """What the first daemon after the next boot finds, and that nothing is lost of what a command had said was done."""
    engine = Engine(root, "embedded")
    # As the first look would find it out; a mount and two processes for each of hundreds of states.
    rights = {"ids": IdMapping().to_json(), "overlay": True, "reason": "", "fuse": False}
    engine.store.__dict__["_rights"] = rights
    engine.mend()
    found = [str(row) for row in engine.check()]
    there = {name for image in engine.images.summaries() for name in image["RepoTags"]}
    there |= {engine.containers.inspect(record["Id"])["Name"][1:] for record in engine.containers.records()}
    for what, end in ends.items():
        name = what.removeprefix("not ")
        removed = ends.get(f"not {name}")
        if at >= end and (name in there) != (name == what) and not (name == what and removed):
            found.append(f"{what} was done, and is not so")
    for record in list(engine.containers.records()):
        folder = engine.containers.folder(record)
        found += [f"{name} is empty" for name in ("rootfs.json", "hosts") if not (folder / name).stat().st_size]
        engine.containers.remove(record["Id"], force=True)
    engine.store.names.remove(named.reference for named in engine.store.names.all())
    engine.prune()
    left = [path for place in ("oci/blobs/*/*", "ingest/*", "layers/*/*", "containers/*") for path in root.glob(place)]
    return found + [f"prune left {path}" for path in left]


@pytest.mark.timeout(900)
def test_power_cuts(tmp_path: Path) -> None:
    disks = [powercut.Disk.make(tmp_path / name) for name in ("careful", "careless")]
    devices = [word for disk in disks for word in disk.devices(disk.folder.name)]
    with vm.started("minirt.bare", devices) as machine:
        careful = use(machine, 1, "minirt", disks[0])
        machine.run(CARELESS)
        careless = use(machine, 2, "careless", disks[1])
        before = disks[0].written
        machine.run(f"{begin(1, 'minirt')}; minirt pull greeter:2.0 >&2 &")
        end = time.monotonic() + SECONDS
        while disks[0].written < before + 20_000:
            assert time.monotonic() < end
            time.sleep(0.01)
        machine.process.kill()
        machine.process.wait()
    found = look(disks[0], careful, tmp_path / "mounted", enough=100)
    print(f"\n{found.states} power cuts: {found.problems}")
    assert found.problems == [] and found.states > 50
    found = look(disks[1], careless, tmp_path / "mounted", enough=1)
    print(f"{found.states} without one fsync: {found.problems}")
    assert any("do not match its digest" in problem for problem in found.problems)
