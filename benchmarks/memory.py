"""What an engine weighs: its daemon at rest, and each running container's own processes. In bytes of PSS."""

from __future__ import annotations

import time

from benchmarks.case import Outcome
from benchmarks.engines import BOX, Bench, Engine
from benchmarks.measure import MB, Sample

_REST = 2.0  # seconds of doing nothing, before a daemon counts as at rest
_IDLE, _CONTAINER = 40 * MB, 8 * MB


def weights(bench: Bench, rounds: int) -> list[Outcome]:
    """The daemon after a run and a pull, at rest; and the more that each of some running containers brings."""
    count = 3 if bench.quick else 10
    idle = Outcome("memory-idle", "daemon at rest, all its processes", "bytes", limit=_IDLE)
    each = Outcome("memory-container", f"each of {count} running containers, all its processes", "bytes")
    each.limit = _CONTAINER
    for outcome in (idle, each):
        outcome.missing = bench.absent("docker", "podman")
    for engine in bench:
        if engine.name == "runc":  # its command is gone when the container runs
            continue
        if engine.socket:
            idle.samples[engine.name] = [Sample(_rest(engine), 0.0)]
        each.samples[engine.name] = [Sample(_each(engine, count), 0.0)]
    return [idle, each]


def _rest(engine: Engine) -> float:
    with engine.party.joined():
        engine.do(*engine.run_words(), "hello-world")
    time.sleep(_REST)
    return engine.party.memory()


def _each(engine: Engine, count: int) -> float:
    """What of its processes was not there before: shims, monitors, proxies."""
    names = [f"weight{number}" for number in range(count)]
    before = set(engine.party.processes())
    with engine.party.joined():
        for name in names:
            engine.do(*engine.run_words("--detach", f"--name={name}"), BOX, "sleep", "3600")
    time.sleep(_REST)
    more = [pid for pid in engine.party.processes() if pid not in before]
    try:
        return engine.party.memory(more) / count
    finally:
        for name in names:
            engine.do("kill", name)
