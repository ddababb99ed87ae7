"""The command: `python -m benchmarks [--quick] [--only NAME] [--rounds N]`, as root. See benchmarks/__init__.py."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import TOP, lists, memory, notebook, pull, report, start
from benchmarks.case import Outcome
from benchmarks.engines import Bench, Failed, needs, started

CASES: dict[str, tuple[Callable[[Bench, int], list[Outcome]], int]] = {  # and how many rounds are usual
    "run": (start.run_warm, 20),
    "api-start": (start.api_start, 20),
    "exec": (start.exec_, 20),
    "burst": (start.burst, 3),
    "memory": (memory.weights, 1),
    **{f"pull-{shape}": (functools.partial(pull.cold, shape), 5) for shape in pull.SHAPES},
    "pull-warm": (pull.warm, 10),
    "unpack": (pull.unpack, 5),
    "scale": (pull.scale, 3),
    "images": (lists.images, 5),
    "ps": (lists.containers, 5),
    "notebook": (notebook.click, 5),
}
_QUICK = 2
_REPORT = "benchmarks/report/report.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small images, two rounds: does it work at all?")
    parser.add_argument("--only", action="append", metavar="NAME", help=f"pull (all of them), {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, metavar="N", help="of each case")
    parser.add_argument("--python", type=Path, help="of an environment with minirt; by default a clean one is made")
    parser.add_argument("--peers", default="docker,podman,runc", help="who is measured beside us (default all)")
    parser.add_argument("--report", type=Path, help=f"the page, plots and JSON beside it (default {_REPORT})")
    given = parser.parse_args()
    wanted = [name for name in CASES if _is_meant(name, given.only)]
    if not wanted:
        sys.exit(f"there is no case {' '.join(given.only)}")
    if missing := needs():
        sys.exit(f"benchmarks need {', '.join(missing)}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # all that was started goes
    page = given.report or (None if given.quick else TOP / _REPORT)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="minirt-benchmarks-", dir="/dev/shm") as folder:
        try:
            with started(given.python or _environment(Path(folder)), given.quick, given.peers.split(",")) as bench:
                for name in bench.missing:
                    print(f"{name}: not on this machine, left out")
                for name in wanted:
                    case, usual = CASES[name]
                    for outcome in case(bench, given.rounds or (_QUICK if given.quick else usual)):
                        print(report.line(outcome), flush=True)
                        outcomes.append(outcome)
                        if page:  # after each: a long run that is cut off has shown something
                            report.write(page, outcomes, given.quick)
        except Failed as error:
            sys.exit(str(error))
        except pytest.skip.Exception as reason:  # the tests' own word for what is not on this machine
            sys.exit(f"this cannot be set up: {reason}")


def _is_meant(case: str, only: list[str] | None) -> bool:
    return only is None or any(case == word or case.startswith(f"{word}-") for word in only)


def _environment(folder: Path) -> Path:
    """A clean environment of the distribution's own Python with minirt in it; its Python."""
    print("making a clean environment …", flush=True)
    own = next(path for path in ("/usr/bin/python3", sys.executable) if os.access(path, os.X_OK))
    for words in ([own, "-m", "venv", str(folder / "venv")], [f"{folder}/venv/bin/pip", "install", "-q", str(TOP)]):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(words)}: {done.stderr[-1000:]}")
    return folder / "venv/bin/python"


if __name__ == "__main__":
    main()
