"""`images` with ten thousand images and `ps` with a thousand containers: what long use comes to."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

from realimages import CPU

from benchmarks.case import OURS, Contestant, Outcome, play
from benchmarks.engines import Bench, run

_CREATED = "2024-01-01T00:00:00Z"


def images(bench: Bench, rounds: int) -> list[Outcome]:
    count = 50 if bench.quick else 10_000
    outcome = Outcome("images", f"`images` with {count:,} images", bars={"docker": 1.0}, missing=bench.absent("docker"))
    archive = bench.folder / "many.tar"
    _archive(archive, count)
    contestants = []
    for engine in bench:
        if engine.socket:
            if engine.name == OURS:
                run([str(bench.python), "-c", _MANY, engine.environment["MINIRT_ROOT"], str(archive)])
            else:
                engine.do("load", "--quiet", "--input", str(archive))
            act = lambda e=engine: _lines(e.do("images"), count)  # noqa: E731
            contestants.append(Contestant(engine.name, engine.party, act))
    archive.unlink()
    play(outcome, contestants, rounds, memory=True)
    return [outcome]


# `minirt load`, but the table of names is written once at its end and not after each image.
_MANY = """
import contextlib, sys
from pathlib import Path
from minirt.engine import Engine
engine = Engine(Path(sys.argv[1]), "embedded")
layout = engine.store.layout
with layout.editing() as entries, open(sys.argv[2], "rb") as archive:
    layout.editing = lambda: contextlib.nullcontext(entries)
    for _ in engine.images.load(archive):
        pass
"""


def _archive(path: Path, count: int) -> None:
    """As `docker save` writes one: so many images, each with a config of its own over one small layer."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("file"), io.BytesIO())
    files = {"layer.tar": layer.getvalue()}
    diff_id = f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"
    rows = []
    for number in range(count):
        document = {
            "architecture": CPU, "os": "linux", "created": _CREATED, "config": {"Labels": {"number": str(number)}},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }  # fmt: skip
        config = json.dumps(document).encode()
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        files[name] = config
        rows.append({"Config": name, "RepoTags": [f"many/image{number}:latest"], "Layers": ["layer.tar"]})
    with tarfile.open(path, mode="w") as tar:
        for name, content in {**files, "manifest.json": json.dumps(rows).encode()}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def containers(bench: Bench, rounds: int) -> list[Outcome]:
    count = 20 if bench.quick else 1_000
    listing = Outcome("ps", f"`ps --all` with {count:,} containers", bars={"docker": 1.0})
    starting = Outcome("run-among", f"`run --rm hello-world --network none` beside {count:,} containers")
    listing.missing = starting.missing = bench.absent("docker")
    engines = [engine for engine in bench if engine.socket]
    made: dict[str, list[str]] = {}
    for engine in engines:
        api = engine.api()
        made[engine.name] = [api.create(NetworkMode="none") for _ in range(count)]
        api.close()
    play(
        listing,
        [Contestant(e.name, e.party, lambda e=e: _lines(e.do("ps", "--all"), count)) for e in engines],
        rounds,
    )
    words = ["--network=none", "hello-world"]
    play(
        starting,
        [Contestant(e.name, e.party, lambda e=e: _ignore(e.do(*e.run_words(*words)))) for e in engines],
        rounds,
    )
    for engine in engines:
        api = engine.api()
        for identity in made[engine.name]:
            api.remove(identity)
        api.close()
    return [listing, starting]


def _lines(said: bytes, least: int) -> None:
    assert said.count(b"\n") > least, said[:500]


def _ignore(said: bytes) -> None:
    del said
