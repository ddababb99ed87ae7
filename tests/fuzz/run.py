"""Fuzz one parser, guided by what of `minirt` its input makes run. docs/hostile.md has the command.

    python tests/fuzz/run.py TARGET [FOLDER] [options of libFuzzer, as -max_total_time=180]

New inputs are kept in FOLDER (else thrown away); the corpus of this project comes first. It ends at the first finding:
the input is written beside (`crash-…`), and belongs into corpus.FOUND once it is mended.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]


def main() -> None:
    """In a child: libFuzzer ends its process without a word to Python, and something has to be cleared up."""
    words = sys.argv[1:]
    target = words.pop(0) if words else ""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="minirt-fuzz-", dir=memory) as folder:
        child = os.fork()
        if child == 0:
            tempfile.tempdir = folder
            fuzz(target, words, Path(folder, "seeds"))
            os._exit(0)
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def fuzz(target: str, words: list[str], seeds: Path) -> None:
    """Until libFuzzer has done what its options in `words` say; other words are folders."""
    with atheris.instrument_imports(include=["minirt", "requests.utils"]):
        from fuzz import corpus
        from fuzz.targets import TARGETS
    if target not in TARGETS:
        print(f"no such target: {target or '?'}; there are {' '.join(TARGETS)}", file=sys.stderr, flush=True)
        os._exit(2)
    seeds.mkdir()
    for number, content in enumerate(corpus.seeds(target)):
        Path(seeds, str(number)).write_bytes(content)
    kept = [word for word in words if not word.startswith("-")]
    for folder in kept:
        Path(folder).mkdir(parents=True, exist_ok=True)
    options = [word for word in words if word.startswith("-")]
    atheris.Setup([sys.argv[0], *options, *kept, str(seeds)], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
