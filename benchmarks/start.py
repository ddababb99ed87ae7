"""Starts: `run --rm` from the command line, start to exit through the API, `exec`, and many at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from benchmarks.case import Contestant, Outcome, play
from benchmarks.engines import BOX, Bench, Engine, bundle


def run_warm(bench: Bench, rounds: int) -> list[Outcome]:
    """With each engine's usual network, and with none (what `runc spec` has, too)."""
    usual = Outcome(
        "run", "`run --rm hello-world`, image here, from the command line",
        bars={"docker": 0.2, "podman": 0.2, "runc": 2.5}, missing=bench.absent("docker", "podman", "runc"),
        note="each with its usual network; runc has a namespace without any",
    )  # fmt: skip
    alone = Outcome("run-alone", "the same with `--network none`", missing=usual.missing)
    hello = bundle(bench, "hello-world", ["/hello"]) if "runc" in bench.engines else None
    for outcome, options in ((usual, []), (alone, ["--network=none"])):
        contestants = []
        for engine in bench:
            if engine.name == "runc":
                words = ["run", f"--bundle={hello}", "hello"]
            else:
                words = [*engine.run_words(*options), "hello-world"]
            contestants.append(Contestant(engine.name, engine.party, lambda e=engine, w=words: _said(e, w)))
        play(outcome, contestants, rounds)
    if hello:
        shutil.rmtree(hello)
    return [usual, alone]


def _said(engine: Engine, words: list[str]) -> None:
    assert b"Hello" in engine.do(*words)


def api_start(bench: Bench, rounds: int) -> list[Outcome]:
    usual = Outcome("api-start", "start to exit of hello-world through the API", bars={"docker": 0.2}, limit=0.015)
    alone = Outcome("api-start-alone", "the same with NetworkMode none", limit=0.015)
    for outcome, mode in ((usual, "default"), (alone, "none")):
        outcome.missing = bench.absent("docker")
        with ExitStack() as stack:
            contestants = []
            for engine in _daemons(bench):
                api = engine.api()
                stack.callback(api.close)
                made: list[str] = []

                def once(api=api, made=made) -> float:
                    return api.start_to_exit(made[-1])

                def again(api=api, made=made, mode=mode) -> None:
                    if made:
                        api.remove(made.pop())
                    made.append(api.create(NetworkMode=mode))

                again()
                stack.callback(lambda api=api, made=made: api.remove(made.pop()))
                contestants.append(Contestant(engine.name, engine.party, once, again))
            play(outcome, contestants, rounds)
    return [usual, alone]


def _daemons(bench: Bench) -> list[Engine]:
    return [engine for engine in bench if engine.socket]


def exec_(bench: Bench, rounds: int) -> list[Outcome]:
    outcome = Outcome(
        "exec", "`exec` of `true` in a running container, from the command line",
        bars={"docker": 0.5}, missing=bench.absent("docker", "podman", "runc"),
    )  # fmt: skip
    contestants = []
    with ExitStack() as stack:
        for engine in bench:
            if engine.name == "runc":
                box = bundle(bench, BOX, ["sleep", "3600"])
                stack.callback(shutil.rmtree, box)
                words = [*engine.words, "run", "--detach", f"--bundle={box}", "box"]
                with open(os.devnull, "r+b") as null, engine.party.joined():  # its container would keep our pipes
                    subprocess.run(words, stdin=null, stdout=null, stderr=null, check=True)
                stack.callback(engine.do, "delete", "--force", "box")
            else:
                with engine.party.joined():
                    engine.do(*engine.run_words("--detach", "--name=box", "--network=none"), BOX, "sleep", "3600")
                stack.callback(engine.do, "kill", "box")
            act = lambda e=engine: engine_true(e)  # noqa: E731
            contestants.append(Contestant(engine.name, engine.party, act))
        play(outcome, contestants, rounds)
    return [outcome]


def engine_true(engine: Engine) -> None:
    engine.do("exec", "box", "true")


def burst(bench: Bench, rounds: int) -> list[Outcome]:
    """Containers made before, all started at once; the clock runs until the last one has ended."""
    out = []
    for count in (5,) if bench.quick else (20, 100):
        outcome = Outcome(
            f"burst-{count}", f"{count} containers started at once through the API, until all have ended",
            bars={"docker": 0.2} if count == 100 else {}, missing=bench.absent("docker"),
            note="a ratio of 0.2 is five times the rate",
        )  # fmt: skip
        with ExitStack() as stack:
            contestants = []
            for engine in _daemons(bench):
                crowd = _Crowd(engine, count)
                stack.callback(crowd.close)
                contestants.append(Contestant(engine.name, engine.party, crowd.start, crowd.again))
            play(outcome, contestants, rounds, warm=False)
        out.append(outcome)
    return out


class _Crowd:
    def __init__(self, engine: Engine, count: int) -> None:
        self._lines = [engine.api() for _ in range(count)]
        self._pool = ThreadPoolExecutor(count)
        self._made: list[str] = []
        self.again()

    def start(self) -> float:
        begin = time.perf_counter()
        list(self._pool.map(lambda line, identity: line.start_to_exit(identity), self._lines, self._made))
        return time.perf_counter() - begin

    def again(self) -> None:
        for line, identity in zip(self._lines, self._made, strict=False):
            line.remove(identity)
        self._made = [line.create() for line in self._lines]

    def close(self) -> None:
        for line, identity in zip(self._lines, self._made, strict=True):
            line.remove(identity)
            line.close()
        self._pool.shutdown()
