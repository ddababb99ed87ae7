"""Additional stores, of one user: whose images are seen, what is taken from them, what can change, whom they may trust.

Here both stores are the same user's, so layers are used as they lie; test_class.py has other users' stores.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import image_tar, packed, wait_for
from registries import Scripted

from minirt import config
from minirt.engine import Engine
from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound, StartError, VerificationError
from minirt.store.additional import fault

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers need Linux")


class Pair:
    """`theirs` has the images `files:1` and, of its layer and one more, `more:1`; `ours` reads it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "theirs"
        self.theirs, self.ours = Engine(self.path, "embedded"), Engine(folder / "ours", "embedded")
        [*self.theirs.files.import_image(io.BytesIO(image_tar()), "files", "1")]
        made = self.create(self.theirs, "files:1", "echo more > /more")
        self.finish(self.theirs, made)
        self.theirs.files.commit(made, "more", "1")
        self.theirs.containers.remove(made)

    def create(self, engine: Engine, image: str, command: str, **host: Any) -> str:
        words = {"Image": image, "Cmd": ["/bin/busybox", "sh", "-c", command]}
        return str(engine.containers.create(words | {"HostConfig": {"NetworkMode": "none", **host}})["Id"])

    def finish(self, engine: Engine, identity: str) -> str:
        engine.containers.start(identity)
        engine.containers.wait(identity)
        return b"".join(data for _, data in engine.containers.logs(identity)).decode()

    def recipe(self, identity: str) -> dict[str, Any]:
        return dict(json.loads((self.ours.store.containers / identity / "rootfs.json").read_bytes()))

    def names(self) -> list[str]:
        return sorted(name for image in self.ours.images.summaries() for name in image["RepoTags"])


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setenv("MINIRT_ADDITIONAL_STORES", "")
    made = Pair(tmp_path)
    monkeypatch.setenv("MINIRT_ADDITIONAL_STORES", str(made.path))
    yield made
    for engine in (made.ours, made.theirs):
        for container in engine.containers.summaries(all=True):
            engine.containers.remove(container["Id"], True)
        engine.close()


def state(folder: Path) -> dict[str, tuple[int, ...]]:
    """What a writer would change. Our locks lie in it only where its owner made them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns)
    return found


# Seen and used


def test_images_are_used_as_ones_own_and_the_store_is_only_read(pair: Pair) -> None:
    before = state(pair.path)
    ours, theirs = pair.ours, pair.theirs
    assert pair.names() == ["files:1", "more:1"]
    identity = str(theirs.images.inspect("more:1")["Id"])
    for name in ("more:1", identity, identity[7:19]):
        assert ours.images.inspect(name) == theirs.images.inspect(name)
    assert ours.images.inspect("more:1")["Store"] == str(pair.path)
    assert ours.images.history("more:1") == theirs.images.history("more:1")
    assert b"".join(ours.images.save(["more:1"])) == b"".join(theirs.images.save(["more:1"]))
    made = pair.create(ours, "more:1", "cat /more; echo new > /data/new; rm /one")
    assert pair.finish(ours, made) == "more\n"
    recipe = pair.recipe(made)
    assert recipe["lowers"] == [str(pair.path / "layers" / theirs.store.layers.folder.name / Path(lower).name)
                                for lower in recipe["lowers"]]  # fmt: skip
    changes = [(change["Kind"], change["Path"]) for change in ours.files.changes(made)]
    assert changes == [(0, "/data"), (1, "/data/new"), (2, "/one")]
    ours.files.commit(made, "mine", "1")
    assert pair.finish(ours, pair.create(ours, "mine:1", "cat /data/new; test -e /one || echo gone")) == "new\ngone\n"
    assert ours.check() == [] and state(pair.path) == before
    assert list(ours.store.layers.folder.iterdir()) and len([*ours.store.layout.blobs()]) == 3  # mine's own
    used = ours.df()
    assert [row["Path"] for row in used["AdditionalStores"]] == [str(pair.path)]
    row = used["AdditionalStores"][0]
    assert (row["Images"], row["Active"]) == (2, 1) and row["Size"] > 100_000 > used["LayersSize"]
    assert all(image["SharedSize"] == image["Size"] for image in used["Images"] if "mine:1" not in image["RepoTags"])
    shown = [line for line in ours.info()["DriverStatus"] if str(pair.path) in line[0]]
    assert len(shown) == 1 and shown[0][1].startswith("2 image(s)")
    assert [row["works"] for row in ours.doctor() if row["capability"] == "additional store"] == [True]


def test_a_store_reads_no_additional_store_that_is_itself(pair: Pair) -> None:
    assert pair.theirs.store.additional.paths() == [] and pair.theirs.images.inspect("files:1")["Store"]


def test_only_ones_own_names_change(pair: Pair) -> None:
    ours, before = pair.ours, state(pair.path)
    for name in ("files:1", str(ours.images.inspect("files:1")["Id"])):
        for force in (False, True):
            with pytest.raises(Conflict, match=r"cannot be forced.*cannot remove read-only image .*/theirs$"):
                ours.images.remove(name, force)
    ours.images.tag("files:1", "mine:1")
    ours.images.tag("more:1", "files:1")  # hides theirs
    assert pair.names() == ["files:1", "mine:1", "more:1"]
    assert ours.images.inspect("files:1")["Id"] == pair.theirs.images.inspect("more:1")["Id"]
    assert ours.images.inspect("mine:1")["Id"] == pair.theirs.images.inspect("files:1")["Id"]
    assert ours.images.remove("files:1") == [{"Untagged": "files:1"}]  # and theirs is seen again
    assert ours.images.inspect("files:1")["Id"] == ours.images.inspect("mine:1")["Id"]
    assert ours.images.prune({"dangling": ["false"]})["ImagesDeleted"] == [
        {"Untagged": "mine:1"},
        {"Deleted": ours.images.inspect("files:1")["Id"]},
    ]
    assert ours.prune()["ImagesDeleted"] == [] and pair.names() == ["files:1", "more:1"]
    assert [*ours.store.layout.blobs()] == [] and state(pair.path) == before


def test_what_is_named_here_stays_readable_and_says_what_went(pair: Pair) -> None:
    """Its owner removes an image that we have a name for: the name is ours, the layers were not."""
    ours = pair.ours
    ours.images.tag("files:1", "mine:1")
    for name in ("more:1", "files:1"):
        pair.theirs.images.remove(name)
    assert pair.names() == ["mine:1"] and ours.images.inspect("mine:1")["Config"]
    assert [row["what"] for row in ours.check()] == ["image mine:1"] * 2
    with pytest.raises(NotFound, match="is not in the store: pull the image again"):
        pair.create(ours, "mine:1", "true")
    assert [row["Untagged"] for row in ours.images.remove("mine:1") if "Untagged" in row] == ["mine:1"]
    assert ours.check() == []


# Pulled


def test_a_pull_takes_layers_from_it_and_not_from_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIRT_ADDITIONAL_STORES", "")
    with Scripted() as hub, contextlib.ExitStack() as closing:
        small = packed(("a", b"a" * 5000))
        hub.image("library/app", "1", layers=[small, packed(("b", b"b" * 5000))])
        hub.image("library/app", "2", layers=[small, packed(("c", b"c" * 5000))])
        theirs, ours = (Engine(tmp_path / name, "docker.io") for name in ("theirs", "ours"))
        closing.callback(theirs.close)
        closing.callback(ours.close)
        name = f"{hub.domain}/library/app"
        [*theirs.pull(f"{name}:1")]
        monkeypatch.setenv("MINIRT_ADDITIONAL_STORES", str(tmp_path / "theirs"))
        before = len(hub.seen("storage"))
        lines = [str(line["status"]) for line in ours.pull(f"{name}:1") if line and "status" in line]
        assert lines.count("Already exists") == 2 and "up to date" in lines[-1]
        assert len(hub.seen("storage")) == before
        assert [layer for layer in ours.store.layers.folder.glob("*")] == []  # nor unpacked again
        lines = [str(line["status"]) for line in ours.pull(f"{name}:2") if line and "status" in line]
        assert lines.count("Already exists") == 1 and lines.count("Pull complete") == 1
        assert len([*ours.store.layers.folder.glob("*[0-9a-f]")]) == 1

        # A damaged blob of theirs is no blob: it comes by the network.
        blob = theirs.store.image(theirs.store.names.own()[0].manifest).layers[0][0].digest
        theirs.store.layout.place(blob).write_bytes(b"lies")
        for folder in theirs.store.layers.folder.iterdir():
            folder.rename(folder.with_name("gone-" + folder.name))
        assert [row for row in ours.check() if str(blob) in row["what"]]
        ours.images.remove(f"{name}:1")
        ours.images.remove(f"{name}:2")
        [*ours.pull(f"{name}:1")]
        assert ours.store.layout.place(blob).is_file() and "lies" not in str(ours.store.layout.place(blob).read_bytes())


# While its owner pulls and removes


def test_a_running_container_keeps_its_layers_and_a_stopped_one_says_that_they_went(pair: Pair) -> None:
    ours, theirs = pair.ours, pair.theirs
    running = pair.create(ours, "more:1", "echo ready; read x < /pipe; cat /data/file")
    ours.containers.start(running)
    wait_for(lambda: "ready" in b"".join(data for _, data in ours.containers.logs(running)).decode())
    lowers = [Path(lower) for lower in pair.recipe(running)["lowers"]]
    rows = [*theirs.images.remove("more:1"), *theirs.images.remove("files:1")]
    assert [row for row in rows if "Deleted" in row and row["Deleted"].endswith(lowers[0].name)] == []
    assert all(lower.is_dir() for lower in lowers) and pair.names() == []
    assert ours.files.get_archive(running, "/more")[0]["size"] == 5
    ours.containers.kill(running)
    ours.containers.wait(running)
    assert theirs.store.sweep()[0] and not any(lower.exists() for lower in lowers)
    for verb in (lambda: ours.containers.start(running), lambda: ours.files.get_archive(running, "/more")):
        with pytest.raises(MinirtError) as caught:
            verb()
        said = str(caught.value)
        assert "was removed from the additional store" in said and str(pair.path) in said
        assert "pull the image again and make a new container" in said and "\n" not in said
    ours.containers.remove(running)


def test_a_layer_that_is_being_removed_is_gone_at_once(pair: Pair) -> None:
    made = pair.create(pair.ours, "files:1", "true")
    with _opened(pair.recipe(made)["lowers"][0]) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(StartError, match="was removed from the additional store"):
            pair.ours.containers.start(made)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_reading_while_its_owner_pulls_and_removes(pair: Pair) -> None:
    """Everything that a reader meets is an image, or that it is not there."""
    over, met, trouble = threading.Event(), set(), []

    def read() -> None:
        while not over.is_set():
            try:
                for image in pair.ours.images.summaries():
                    pair.ours.images.inspect(str(image["Id"]))
                made = pair.create(pair.ours, "brief:1", "true")
                met.add("created")
                pair.ours.containers.remove(made)
            except NotFound:
                met.add("not there")
            except BaseException as error:
                trouble.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(6):
        [*pair.theirs.files.import_image(io.BytesIO(packed(("file", b"%d" % number * 1000))), "brief", "1")]
        wait_for(lambda: "created" in met or bool(trouble))
        pair.theirs.images.remove("brief:1")
        wait_for(lambda: "not there" in met or bool(trouble))
        met.clear()
    over.set()
    reader.join()
    assert trouble == [] and pair.ours.check() == [] and pair.theirs.check() == []


# Trusted


PLACES = ("", "oci", "oci/index.json", "oci/blobs", "oci/blobs/sha256", "version", "..")


def test_which_stores_are_left_aside(pair: Pair) -> None:
    """Those that a third user could write to, or put another in place of; root's eyes and ours are the same."""
    for place in PLACES:
        path = Path(os.path.normpath(pair.path / place))
        before = path.stat().st_mode & 0o7777
        for mode in (0o020, 0o002):
            path.chmod(before | mode)
            assert fault(pair.path) == f"others than root and you may write to {path}"
            path.chmod(before | mode | 0o1000)  # as /tmp is: nobody moves there what is not theirs
            assert bool(fault(pair.path)) == (place != "..")
        path.chmod(before)
        if os.geteuid() == 0:
            owner = path.stat().st_uid
            os.chown(path, 12345, -1)
            assert fault(pair.path) == f"{path} belongs to user 12345, who is neither root nor you"
            os.chown(path, owner, -1)
        assert fault(pair.path) == ""


def test_a_store_left_aside_is_told_of_everywhere(pair: Pair) -> None:
    (pair.path / "oci").chmod(0o777)
    why = f"others than root and you may write to {pair.path / 'oci'}"
    assert pair.ours.images.summaries() == []
    assert not pair.ours.store.layout.has(pair.theirs.store.names.own()[0].manifest)
    assert pair.ours.check() == [{"what": f"additional store {pair.path}", "problem": f"not used: {why}"}]
    row = next(row for row in pair.ours.doctor() if row["capability"] == "additional store")
    assert not row["works"] and why in row["detail"] and row["hint"]
    assert [line[1] for line in pair.ours.info()["DriverStatus"] if str(pair.path) in line[0]] == [f"not used: {why}"]
    told = [str(line.get("status")) for line in pair.ours.pull("hello-world") if line]
    assert f"additional store {pair.path} is not used: {why}" in told


def test_a_layer_that_others_can_write_to_is_not_used(pair: Pair) -> None:
    """It has no digest any more; its blob has, and is unpacked again."""
    form = pair.path / "layers" / pair.theirs.store.layers.folder.name
    form.chmod(0o755)
    made = pair.create(pair.ours, "files:1", "cat /one")
    assert pair.recipe(made)["lowers"][0].startswith(str(pair.ours.store.root))
    assert pair.finish(pair.ours, made) == "1"


def test_what_is_no_store_is_said_in_one_line(tmp_path: Path, pair: Pair) -> None:
    assert fault(tmp_path / "absent") == "it is not there"
    assert fault(tmp_path).startswith("it is no store: there is no ")
    link = tmp_path / "link"
    link.symlink_to(pair.path)
    assert fault(link) == ""
    (pair.path / "version").write_text("99\n")
    assert "written by another minirt (format '99'" in fault(pair.path)
    (pair.path / "version").unlink()
    os.mkfifo(pair.path / "version")
    assert fault(pair.path) == f"{pair.path / 'version'} is neither a folder nor a file"
    (pair.path / "version").unlink()
    (pair.path / "version").symlink_to("/etc/hostname")
    assert "is neither a folder nor a file" in fault(pair.path)


def test_a_store_full_of_lies_harms_nobody_else(pair: Pair) -> None:
    """Its table damaged, its documents changed, its layers links to elsewhere: told in one line, and ours goes on."""
    layout, ours = pair.theirs.store.layout, pair.ours
    named = pair.theirs.store.names.own()[0]
    layer = pair.theirs.store.image(named.manifest).layers[0]
    folder = pair.theirs.store.layers.path(layer[1])
    folder.rename(folder.with_name("x"))
    folder.symlink_to("/")
    assert not ours.store.layers.ready(layer[1])
    layout.place(layer[0].digest).write_bytes(b"\0" * layer[0].size)
    with pytest.raises(VerificationError):
        pair.create(ours, "files:1", "true")
    layout.place(named.id).write_bytes(b"{}")
    with pytest.raises(VerificationError):
        ours.images.inspect("files:1")
    (pair.path / "oci/index.json").write_text("[")
    assert pair.names() == []
    found = next(row for row in ours.check() if row["what"] == f"additional store {pair.path}")
    assert "damaged" in found["problem"]
    [*ours.pull("hello-world")]
    assert pair.names() == ["hello-world:latest"]


# The settings


def test_the_users_file_takes_the_place_of_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, own = tmp_path / "etc.toml", tmp_path / "minirt" / "config.toml"
    own.parent.mkdir()
    monkeypatch.setattr(config, "MACHINE", machine)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.additional_stores() == ()
    machine.write_text('additional-stores = ["/srv/a", "/srv/b"]\nregistry-mirrors = ["https://m.example"]\n')
    assert config.additional_stores() == (Path("/srv/a"), Path("/srv/b"))
    own.write_text("insecure-registries = []\n")
    assert config.additional_stores() == (Path("/srv/a"), Path("/srv/b"))
    own.write_text('additional-stores = ["/home/c"]\n')
    assert config.additional_stores() == (Path("/home/c"),)
    assert config.read(None, "registry-mirrors") == (machine, {
        "registry-mirrors": ["https://m.example"], "additional-stores": ["/home/c"]
    })  # fmt: skip
    own.write_text("additional-stores = []\n")
    assert config.additional_stores() == ()
    own.write_text('additional-stores = ["srv"]\n')
    with pytest.raises(InvalidInput, match=r"minirt/config.toml: additional-stores: 'srv' is not an absolute path"):
        config.additional_stores()
    monkeypatch.setenv("MINIRT_ADDITIONAL_STORES", "/x:/y:/x")
    assert config.additional_stores() == (Path("/x"), Path("/y"))
    monkeypatch.setenv("MINIRT_ADDITIONAL_STORES", "")
    assert config.additional_stores() == ()
