"""Pulls and unpacking: cold by the image's shape, warm, by size, and one layer unpacked without any network."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack

from benchmarks.case import OURS, Contestant, Outcome, play
from benchmarks.engines import Bench, Engine, run
from benchmarks.images import shaped

SHAPES = {
    "big": "about 600 MB, 24,000 files, 4 layers",
    "small-files": "24,000 small files, 4 layers",
    "large-files": "large files, 480 MB, 4 layers",
    "many-layers": "60 layers, 150 MB",
    "one-layer": "one layer of 560 MB, 24,000 files",
}
SIZES = ("1x", "4x", "16x")
PEERS = ("docker", "podman")
_MEMORY = 150e6  # bytes, whatever the image's size


def cold(shape: str, bench: Bench, rounds: int) -> list[Outcome]:
    """Of one of the shapes."""
    bars = dict.fromkeys(PEERS, 0.35)
    title = f"cold pull: {SHAPES[shape]}" + (" (a sixteenth of it)" if bench.quick else "")
    outcome = Outcome(f"pull-{shape}", title, bars=bars, peak_limit=_MEMORY, missing=bench.absent(*PEERS))
    image = bench.push(shaped(shape, bench.quick), shape)
    play(outcome, [_puller(engine, image) for engine in _pullers(bench)], rounds, memory=True, warm=False)
    return [outcome]


def _pullers(bench: Bench) -> list[Engine]:
    return [engine for engine in bench if engine.name != "runc"]


def _puller(engine: Engine, image: str) -> Contestant:
    insecure = ["--tls-verify=false"] if engine.name == "podman" else []

    def act() -> None:
        engine.do("pull", "--quiet", *insecure, image)

    return Contestant(engine.name, engine.party, act, lambda: engine.do("rmi", "--force", image))


def warm(bench: Bench, rounds: int) -> list[Outcome]:
    outcome = Outcome("pull-warm", "warm pull: all is here already", missing=bench.absent(*PEERS))
    image = bench.push(shaped("many-layers", bench.quick), "warm")
    contestants = []
    with ExitStack() as stack:
        for engine in _pullers(bench):
            one = _puller(engine, image)
            one.act()
            stack.callback(one.reset)
            contestants.append(Contestant(one.name, one.party, one.act))
        play(outcome, contestants, rounds)
    return [outcome]


def scale(bench: Bench, rounds: int) -> list[Outcome]:
    """One layer of 1, 4 and 16 times as many bytes and files."""
    out = []
    for size in SIZES:
        image = bench.push(shaped(size, bench.quick), size)
        title = f"cold pull of one layer, {size} (1x: 40 MB, 1,800 files)" + ", a sixteenth of it" * bench.quick
        outcome = Outcome(f"scale-{size}", title)
        outcome.missing = bench.absent("docker")
        engines = [engine for engine in _pullers(bench) if engine.name != "podman"]
        play(outcome, [_puller(engine, image) for engine in engines], rounds, memory=True, warm=False)
        out.append(outcome)
        times = outcome.median(OURS) / out[0].median(OURS) if out else 1.0
        outcome.note = f"minirt takes {times:.1f} times as long as for 1x"
    return out


_OURS = """
import json, sys
from pathlib import Path
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest
from minirt.store.store import Store
root, layer, diff_id = Path(sys.argv[1]), json.loads(sys.argv[2]), Digest(sys.argv[3])
Store(root).layers.fetch(Descriptor(layer["mediaType"], Digest(layer["digest"]), layer["size"]), diff_id)
"""


def unpack(bench: Bench, rounds: int) -> list[Outcome]:
    """One gzipped layer that lies on tmpfs, into an empty folder there. Only we and umoci check its digests."""
    outcome = Outcome(
        "unpack", "unpack only: the one layer of 560 MB, from a file", missing=bench.absent("tar", "bsdtar", "umoci")
    )
    layout = bench.folder / "layout"
    shutil.copytree(shaped("one-layer", bench.quick), layout)
    blob = lambda digest: layout / "blobs/sha256" / digest.removeprefix("sha256:")  # noqa: E731
    manifest = json.loads(blob(json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]).read_text())
    (layer,) = manifest["layers"]
    (diff_id,) = json.loads(blob(manifest["config"]["digest"]).read_text())["rootfs"]["diff_ids"]
    root, target = bench.folder / "unpack-store", bench.folder / "unpacked"
    digest = layer["digest"].removeprefix("sha256:")
    words = [str(bench.python), "-c", _OURS, str(root), json.dumps(layer), diff_id]
    # A store that has the blob already: what is measured never reads a network.
    (root / "oci/blobs/sha256").mkdir(parents=True)
    (root / "oci/blobs/sha256" / digest).hardlink_to(blob(digest))
    target.mkdir()

    def empty() -> None:
        shutil.rmtree(target)
        target.mkdir()

    commands = {
        "tar": ["tar", "--extract", "--gzip", "--same-owner", f"--directory={target}", f"--file={blob(digest)}"],
        "bsdtar": ["bsdtar", "-x", "-p", "-C", str(target), "-f", str(blob(digest))],
        "umoci": ["umoci", "unpack", f"--image={layout}:latest", str(target / "bundle")],
    }
    party = bench.engines[OURS].party  # one after the other: they can share it
    contestants = [Contestant(OURS, party, lambda: _do(words), lambda: shutil.rmtree(root / "layers"))]
    for name, command in commands.items():
        if shutil.which(name):
            contestants.append(Contestant(name, party, lambda command=command: _do(command), empty))
    play(outcome, contestants, rounds)
    for path in (root, target, layout):
        shutil.rmtree(path)
    return [outcome]


def _do(words: list[str]) -> None:
    run(words)
