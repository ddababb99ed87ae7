"""Images between us and docker, podman, buildah, skopeo: what one pushes or saves the others have, with the same ID.

One registry and one network namespace for all (dockerd's). Each cell of the table is a test:

    pushed by      pulled by docker, podman, buildah, skopeo, minirt
    saved by       loaded by docker, podman, minirt
    our store      copied by skopeo in place, into it and out of it

An image's ID is its config's digest: the same everywhere, whatever manifest and compression lie around it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from dockerd import Dockerd
from peers import require

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="dockerd needs root")]
MINIRT = str(Path(sys.executable).with_name("minirt"))
OWN_LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]  # podman's own cannot be had everywhere
# What is pulled from the hub, and what was made of it here: a plain layer on a compressed one.
IMAGES = "kept", "made"


@dataclass(frozen=True)
class Place:
    """All of them, in one network namespace. `run` runs one of them there; its standard output."""

    dockerd: Dockerd
    registry: str
    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "minirt"

    def command(self, who: str) -> list[str]:
        store = ["--root", f"{self.folder}/r", "--runroot", f"{self.folder}/x", "--storage-driver", "vfs"]
        return {
            "docker": self.dockerd.command(),
            "docker on us": ["docker", "-H", f"unix://{self.folder}/m/sock"],
            "podman": ["podman", *store, "--events-backend", "none"],
            "buildah": ["buildah", *store],
            "skopeo": ["skopeo", "--insecure-policy"],
            "minirt": [MINIRT, "-H", f"unix://{self.folder}/m/sock"],
        }[who]

    def run(self, who: str, *words: str, stdin: bytes = b"") -> str:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder)}
        done = subprocess.run(
            self.dockerd.inside(*self.command(who), *words), input=stdin, capture_output=True, env=env, timeout=120
        )
        assert done.returncode == 0, f"{who} {words}: {done.stderr.decode()}"
        return done.stdout.decode()

    def id(self, who: str, name: str) -> str:
        """An image's ID, in whoever's store."""
        if who == "skopeo":
            raw = self.run("skopeo", "inspect", "--tls-verify=false", "--config", "--raw", f"docker://{name}")
            return hashlib.sha256(raw.encode()).hexdigest()
        if who == "buildah":
            return str(json.loads(self.run(who, "inspect", "--type", "image", name))["FromImageID"])
        return self.run(who, "image", "inspect", "--format", "{{.Id}}", name).strip().removeprefix("sha256:")

    def pull(self, who: str, name: str) -> str:
        """Pull it anew; its ID there."""
        if who == "skopeo":
            copy = [
                "copy",
                "-q",
                "--src-tls-verify=false",
                f"docker://{name}",
                f"dir:{tempfile.mkdtemp(dir=self.folder)}",
            ]
            self.run(who, *copy)
        else:
            tls = ["--tls-verify=false"] if who in ("podman", "buildah") else []
            self.run(who, "rmi", "-f", name) if name in self.names(who) else ""
            self.run(who, "pull", "-q", *tls, name)
        return self.id(who, name)

    def names(self, who: str) -> str:
        return self.run(who, "images", *([] if who == "buildah" else ["--format", "{{.Repository}}:{{.Tag}}"]))

    def digest(self, name: str) -> str:
        """Of the manifest in the registry."""
        raw = self.run("skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{name}")
        return "sha256:" + hashlib.sha256(raw.encode()).hexdigest()


@pytest.fixture(scope="module")
def place(dockerd: Dockerd) -> Iterator[Place]:
    for peer in "podman", "buildah", "skopeo", "docker-registry":
        require(peer)
    folder = Path(tempfile.mkdtemp(prefix="i-", dir="/dev/shm"))  # podman wants its runroot within 50 characters
    (folder / "m").mkdir(mode=0o700)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "MINIRT_HUB": "embedded"}
    words = [MINIRT, "-H", f"unix://{folder}/m/sock", "--root", f"{folder}/minirt", "daemon"]
    with (
        dockerd.registry() as registry,
        subprocess.Popen(
            dockerd.inside("setpriv", "--pdeathsig", "TERM", *words), env=environment, stdout=subprocess.PIPE
        ) as ours,
    ):
        made = Place(dockerd, registry, folder)
        try:
            assert ours.stdout and b"listening" in ours.stdout.readline()
            made.run("minirt", "pull", "-q", "toolbox")
            made.run(
                "minirt", "run", "--name", "box", "toolbox", "sh", "-c", "seq 50000 > /numbers; ln -s numbers /link"
            )
            made.run("minirt", "commit", "-c", 'CMD ["tail", "-n1", "/link"]', "box", f"{registry}/ours/made:1")
            made.run("minirt", "rm", "box")
            made.run("minirt", "tag", "toolbox", f"{registry}/ours/kept:1")
            for name in IMAGES:
                made.run("minirt", "push", "-q", f"{registry}/ours/{name}:1")
            yield made
        finally:
            for who in "podman", "buildah":
                subprocess.run(dockerd.inside(*made.command(who), "rmi", "-af"), capture_output=True, check=False)
            ours.terminate()
            ours.wait(20)
            shutil.rmtree(folder)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("who", ["docker", "podman", "buildah", "skopeo"])
def test_what_we_push_they_pull(place: Place, who: str, image: str) -> None:
    name = f"{place.registry}/ours/{image}:1"
    assert place.pull(who, name) == place.id("minirt", name)
    if who in ("docker", "podman") and image == "made":
        where = ["--runtime", require("runc"), *OWN_LIMITS] if who == "podman" else []
        assert place.run(who, "run", "--rm", "--network=none", *where, name) == "50000\n"


def test_what_we_push_keeps_its_digest(place: Place) -> None:
    """What was pulled, byte by byte; and a copy of ours from the registry is the same again."""
    (hub,) = json.loads(place.run("minirt", "image", "inspect", "toolbox"))
    assert place.digest(f"{place.registry}/ours/kept:1") == hub["Manifest"]
    name = f"{place.registry}/ours/made:1"
    (mine,) = json.loads(place.run("minirt", "image", "inspect", name))
    assert mine["RepoDigests"] == [f"{place.registry}/ours/made@{place.digest(name)}"]
    place.run("minirt", "rmi", name)
    place.run("minirt", "pull", "-q", name)
    (again,) = json.loads(place.run("minirt", "image", "inspect", name))
    assert (again["Id"], again["RepoDigests"]) == (mine["Id"], mine["RepoDigests"])
    assert place.run("minirt", "run", "--rm", "--network=none", name) == "50000\n"


@pytest.mark.parametrize("who", ["docker", "podman", "buildah", "skopeo"])
def test_what_they_push_we_pull(place: Place, who: str) -> None:
    source, name = f"{place.registry}/ours/made:1", f"{place.registry}/theirs/{who}:1"
    tls = ["--tls-verify=false"] if who in ("podman", "buildah") else []
    if who == "skopeo":
        no = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        place.run(who, "copy", "-q", *no, "--format", "v2s2", f"docker://{source}", f"docker://{name}")
    else:
        place.pull(who, source)
        place.run(who, "tag", source, name)
        place.run(who, "push", "-q", *tls, name)
    assert place.pull("minirt", name) == place.id("minirt", source)
    assert place.run("minirt", "run", "--rm", "--network=none", name) == "50000\n"


def test_docker_s_command_pushes_through_our_daemon(place: Place) -> None:
    name = f"{place.registry}/through/made:1"
    place.run("docker on us", "tag", f"{place.registry}/ours/made:1", name)
    said = place.run("docker on us", "push", name).splitlines()
    assert said[0] == f"The push refers to repository [{place.registry}/through/made]"
    assert sum(": Mounted from ours/" in line for line in said) == 2
    assert said[-1].startswith(f"1: digest: {place.digest(name)} size: ")
    assert place.pull("docker", name) == place.id("minirt", name)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("who", ["docker", "podman"])
def test_what_we_save_they_load(place: Place, who: str, image: str) -> None:
    name, archive = f"{place.registry}/saved/{image}:{who}", place.folder / "saved.tar"
    place.run("minirt", "tag", f"{place.registry}/ours/{image}:1", name)
    place.run("minirt", "save", "-o", str(archive), name)
    place.run(who, "load", "-q", "-i", str(archive))
    assert place.id(who, name) == place.id("minirt", name)
    # And back: from what they make of it.
    place.run("minirt", "rmi", name)
    kinds = [["--format", "oci-archive"], ["--format", "docker-archive"]] if who == "podman" else [[]]
    for kind in kinds:
        archive.unlink(missing_ok=True)
        place.run(who, "save", "-q", *kind, "-o", str(archive), name) if kind else place.run(
            who, "save", "-o", str(archive), name
        )
        assert place.run("minirt", "load", "-i", str(archive)) == f"Loaded image: {name}\n"
        assert place.id("minirt", name) == place.id(who, name)
        assert place.run("minirt", "load", "-qi", str(archive)) == f"Loaded image: {name}\n"
        assert place.run("minirt", "system", "check") == "Everything in the store verifies\n"


def test_several_images_in_one_compressed_archive(place: Place) -> None:
    """Both in one file, gzip or zstd around it; docker's and ours."""
    import zstandard

    names = [f"{place.registry}/ours/{image}:1" for image in IMAGES]
    for name in names:
        place.pull("docker", name)
    archive = place.folder / "all.tar"
    for who in "docker", "minirt":
        place.run(who, "save", "-o", str(archive), *names)
        content = archive.read_bytes()
        for packed in gzip.compress(content, 1), zstandard.compress(content):
            ids = [place.id("minirt", name) for name in names]
            place.run("minirt", "rmi", "-f", *names)
            said = place.run("minirt", "load", stdin=packed)
            assert sorted(said.splitlines()) == sorted(f"Loaded image: {name}" for name in names)
            assert [place.id("minirt", name) for name in names] == ids
        if who == "minirt":
            place.run("docker", "rmi", "-f", *names)
            place.run("docker", "load", "-i", str(archive), stdin=b"")
            assert [place.id("docker", name) for name in names] == ids


def test_skopeo_copies_into_our_store_and_out_of_it(place: Place) -> None:
    """In place, as an OCI layout. What it puts there is its own: we keep it, and take it over by `load`."""
    name, layout = f"{place.registry}/ours/made:1", f"oci:{place.root}/oci"
    out = f"{place.registry}/skopeo/out:1"
    place.run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"{layout}:{name}", f"docker://{out}")
    assert place.id("skopeo", out) == place.id("minirt", name)
    place.run("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{out}", f"{layout}:theirs")
    place.run("minirt", "rmi", "-f", name)
    place.run("minirt", "image", "prune", "-af")
    assert place.run("minirt", "system", "check") == "Everything in the store verifies\n"
    archive = place.folder / "theirs.tar"
    place.run("skopeo", "copy", "-q", f"{layout}:theirs", f"oci-archive:{archive}:{name}")
    assert place.run("minirt", "load", "-i", str(archive)) == f"Loaded image: {name}\n"
    assert place.id("minirt", name) == place.id("skopeo", out)
    assert place.run("minirt", "run", "--rm", "--network=none", name) == "50000\n"
