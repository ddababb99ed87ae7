"""The fuzz targets without the fuzzer: the whole corpus, and what chance makes of it. tests/fuzz has the fuzzer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import corpus
from fuzz.targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
# JSON of any shape, for those that read JSON: random bytes seldom are.
_WORDS = st.sampled_from(
    [
        "mediaType",
        "digest",
        "size",
        "schemaVersion",
        "manifests",
        "layers",
        "config",
        "annotations",
        "platform",
        "auths",
    ]
    + ["rootfs", "diff_ids", "type", "Cmd", "Env", "Labels", "auth", "credsStore", "credHelpers", "token"]
    + [
        "expires_in",
        "identitytoken",
        "https://index.docker.io/v1/",
        "io.minirt.name",
        "io.minirt.size",
        "history",
        "os",
        "limits",
    ]
)
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | _WORDS
_ITEMS = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS | st.text(max_size=3), inner, max_size=4),
)
_JSON = ("manifest", "config", "docker-config", "token", "layout")
SLOW = ("saved", "answer", "applier")  # a disk or a socket each time


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_breaks_nothing(target: str) -> None:
    for content in corpus.seeds(target):
        TARGETS[target](content)
        for cut in (0, 1, len(content) // 2, len(content) - 1):
            TARGETS[target](content[:cut])


@pytest.mark.parametrize("target", TARGETS)
def test_what_chance_makes_of_it_breaks_nothing(target: str) -> None:
    """Pieces of the corpus, mended together with random bytes; for readers of JSON also documents of any shape."""
    import json

    pieces = st.sampled_from(corpus.seeds(target)).flatmap(
        lambda seed: st.tuples(st.integers(0, len(seed)), st.integers(0, len(seed))).map(
            lambda ends: seed[min(ends) : max(ends)]
        )
    )
    mixed = st.lists(pieces | st.binary(max_size=12), max_size=4).map(b"".join)
    if target in _JSON:
        mixed |= _ITEMS.map(lambda item: (b"\x01" if target == "manifest" else b"") + json.dumps(item).encode())

    @settings(
        max_examples=20 if target in SLOW else 150,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(mixed)
    def hold(content: bytes) -> None:
        TARGETS[target](content)

    hold()


def test_seeds_are_small_and_every_target_has_some() -> None:
    assert set(corpus.SEEDS) == set(TARGETS) >= {name for name, _ in corpus.FOUND}
    largest = {name: max(map(len, corpus.seeds(name))) for name in TARGETS}
    assert {
        name: size for name, size in largest.items() if size > (8192 if name in ("saved", "answer") else 3072)
    } == {}
    assert not [path for path in (HERE / "fuzz").rglob("*") if path.suffix not in (".py", ".pyc", "")]


def test_the_fuzzer_runs() -> None:
    """A moment of the real thing, where it is installed."""
    pytest.importorskip("atheris")
    command = [sys.executable, HERE / "fuzz" / "run.py", "links", "-runs=2000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "Done 2000 runs" in done.stderr, done.stderr
    done = subprocess.run([*command[:2], "nobody"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "no such target: nobody; there are reference " in done.stderr
