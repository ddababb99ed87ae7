"""One act measured: wall time, processor time of all processes that take part, peak memory.

Who takes part is a control group: the engine's daemon, its client, all their children. The kernel adds their processor
time up, also of those that are long gone. Memory is PSS (what is shared counts in parts), summed over the group's
processes and looked at every few milliseconds, in rounds of their own: looking costs time.
Sources: cgroups(7), kernel Documentation/admin-guide/cgroup-v1/cpuacct.rst, proc(5) smaps_rollup.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MB = 1e6
_LOOK = 0.01  # seconds between looks at memory


@dataclass(frozen=True)
class Sample:
    """One round of one engine, in seconds."""

    wall: float
    cpu: float


class Party:
    """A control group for all who work for one engine. Its containers' groups may be below it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._top, self._second = _hierarchy()
        self.folder = self._top / name
        self._peer = self.folder / "peer"  # version 2 wants processes in leaves only
        self._peer.mkdir(parents=True, exist_ok=True)
        (self._before,) = {line.rpartition(":")[2] for line in _own_groups() if self._mine(line)}

    def _mine(self, line: str) -> bool:
        controllers = line.split(":")[1].split(",")
        return ("" if self._second else "cpuacct") in controllers

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """We, and what we start meanwhile, belong to it."""
        (self._peer / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self._top / self._before.strip("/") / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def cpu(self) -> float:
        """Seconds of processor time so far, of all that was ever in it."""
        if self._second:
            rows = dict(line.split() for line in (self.folder / "cpu.stat").read_text().splitlines())
            return int(rows["usage_usec"]) / 1e6
        return int((self.folder / "cpuacct.usage").read_text()) / 1e9

    def processes(self) -> list[int]:
        """The engine's own: not those inside its containers (another root), and not us."""
        found = []
        for path in self.folder.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):  # a container's group, being removed
                found += [int(word) for word in path.read_text().split()]
        return [pid for pid in found if pid != os.getpid() and _is_outside(pid)]

    def memory(self, pids: list[int] | None = None) -> int:
        """PSS in bytes, of these or of all its processes."""
        return sum(pss(pid) for pid in (self.processes() if pids is None else pids))

    def close(self) -> None:
        """Engines made it in every tree there is."""
        tops = {self._top.parent, *self._top.parent.iterdir(), self._top}
        for top in tops:
            for path, _, _ in os.walk(top / self.name, topdown=False):
                with contextlib.suppress(OSError):  # something still ends in it
                    os.rmdir(path)


def timed(party: Party, act: Callable[[], float | None]) -> Sample:
    """Do it once. What it returns is its wall time, where it knows better than we."""
    with party.joined():
        before, begin = party.cpu, time.perf_counter()
        own = act()
        wall = time.perf_counter() - begin
        return Sample(wall if own is None else own, party.cpu - before)


def peak(party: Party, act: Callable[[], float | None]) -> int:
    """The most memory that the party had at once meanwhile, in bytes."""
    over, most = threading.Event(), 0

    def look() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, party.memory())
            over.wait(_LOOK)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        with party.joined():
            act()
    finally:
        over.set()
        thread.join()
    return most


def pss(pid: int) -> int:
    """Of one process, in bytes; 0 where it has just ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        return 0


def _is_outside(pid: int) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/root"), os.stat("/"))
    except OSError:  # it has just ended
        return False


def _hierarchy() -> tuple[Path, bool]:
    """Where processor time is counted, and whether that is version 2."""
    rows = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for row in rows:
        if row[2] == "cgroup" and "cpuacct" in row[3].split(","):
            return Path(row[1]), False
    return next(Path(row[1]) for row in rows if row[2] == "cgroup2"), True


def _own_groups() -> list[str]:
    return Path("/proc/self/cgroup").read_text().splitlines()
