"""Fuzz one parser, guided by what of `minirt` its input makes run. docs/hostile.md has the command.

    python tests/fuzz/run.py TARGET [FOLDER] [options of libFuzzer, as -max_total_time=180]

New inputs are kept in FOLDER (else thrown away); the corpus of this project comes first. It ends at the first finding:
the input is written beside (`crash-…`), and belongs into corpus.FOUND once it is mended.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]


def main() -> None:
    words = sys.argv[1:]
    target = words.pop(0) if words else ""
    with atheris.instrument_imports(include=["minirt", "requests.utils"]):
        from fuzz import corpus
        from fuzz.targets import TARGETS
    if target not in TARGETS:
        sys.exit(f"no such target: {target or '?'}; there are {' '.join(TARGETS)}")
    with tempfile.TemporaryDirectory(prefix="minirt-fuzz-seeds-") as seeds:
        for number, content in enumerate(corpus.seeds(target)):
            Path(seeds, str(number)).write_bytes(content)
        kept = [word for word in words if not word.startswith("-")]
        options = [word for word in words if word.startswith("-")]
        for folder in kept:
            Path(folder).mkdir(parents=True, exist_ok=True)
        atheris.Setup([sys.argv[0], *options, *kept, seeds], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
