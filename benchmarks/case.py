"""What a case is, and how its rounds go: everybody once a round, in an order that turns, so that what else the machine
does meets all alike. A ratio is the median of the rounds' own ratios: ours over theirs, of the same round.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import Party, Sample, peak, timed

OURS = "minirt"


def nothing() -> None:
    """For who leaves nothing behind."""


@dataclass(frozen=True)
class Contestant:
    """`act` is measured; `reset` makes everything as it was before, unmeasured."""

    name: str
    party: Party
    act: Callable[[], float | None]
    reset: Callable[[], object] = nothing


@dataclass
class Outcome:
    """What came of one case. `bars`: peer → our time over its time, at most; `limit`: of ours alone, in `unit`."""

    name: str
    title: str
    unit: str = "s"
    bars: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    peak_limit: float | None = None  # bytes
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    note: str = ""
    load: float = 0.0  # of the machine when it was over: how many wanted its processors

    def median(self, name: str) -> float:
        return statistics.median(sample.wall for sample in self.samples[name])

    def spread(self, name: str) -> tuple[float, float]:
        """The quickest and the slowest round."""
        walls = [sample.wall for sample in self.samples[name]]
        return min(walls), max(walls)

    def cpu(self, name: str) -> float:
        return statistics.median(sample.cpu for sample in self.samples[name])

    def ratio(self, peer: str) -> float:
        pairs = zip(self.samples[OURS], self.samples[peer], strict=True)
        return statistics.median(ours.wall / theirs.wall for ours, theirs in pairs)

    def cpu_ratio(self, peer: str) -> float:
        """Of processor time: what else the machine does disturbs it less."""
        pairs = zip(self.samples[OURS], self.samples[peer], strict=True)
        return statistics.median(ours.cpu / theirs.cpu if theirs.cpu else 0.0 for ours, theirs in pairs)

    def met(self) -> bool | None:
        """Whether all its bars are met; None where it has none that could be looked at."""
        found = [self.ratio(peer) <= bar for peer, bar in self.bars.items() if peer in self.samples]
        if self.limit is not None:
            found.append(self.median(OURS) <= self.limit)
        if self.peak_limit is not None and OURS in self.peaks:
            found.append(self.peaks[OURS] <= self.peak_limit)
        return all(found) if found else None

    def to_json(self) -> dict[str, Any]:
        peers = [name for name in self.samples if name != OURS]
        return {
            "name": self.name, "title": self.title, "unit": self.unit, "note": self.note, "missing": self.missing,
            "load": self.load,
            "bars": self.bars, "limit": self.limit, "peak_limit": self.peak_limit, "met": self.met(),
            "median": {name: self.median(name) for name in self.samples},
            "spread": {name: self.spread(name) for name in self.samples},
            "cpu": {name: self.cpu(name) for name in self.samples},
            "ratio": {name: self.ratio(name) for name in peers if OURS in self.samples},
            "cpu_ratio": {name: self.cpu_ratio(name) for name in peers if OURS in self.samples},
            "peak_bytes": self.peaks,
            "rounds": {name: [vars(sample) for sample in rows] for name, rows in self.samples.items()},
        }  # fmt: skip

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Outcome:
        """As an earlier run wrote it."""
        own = {key: row[key] for key in ("name", "title", "unit", "note", "missing", "load", "bars", "limit")}
        samples = {name: [Sample(**sample) for sample in rows] for name, rows in row["rounds"].items()}
        return cls(**own, peak_limit=row["peak_limit"], samples=samples, peaks=row["peak_bytes"])


def play(outcome: Outcome, contestants: list[Contestant], rounds: int, memory: bool = False, warm: bool = True) -> None:
    """Rounds of all of them into `outcome`; `warm`: one before that does not count; `memory`: one for their peak."""
    outcome.samples = {one.name: [] for one in contestants}
    for number in range(-int(warm), rounds):
        for one in contestants[number % len(contestants) :] + contestants[: number % len(contestants)]:
            sample = timed(one.party, one.act)
            one.reset()
            if number >= 0:
                outcome.samples[one.name].append(sample)
    outcome.load = round(os.getloadavg()[0], 1)
    for one in contestants if memory else ():
        outcome.peaks[one.name] = peak(one.party, one.act)
        one.reset()
