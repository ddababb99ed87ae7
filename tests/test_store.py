"""The store: what other tools read in it, what a crash leaves, what is shared, and what is let go."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from peers import require
from registries import Scripted, body, cut, docker_registry, stall
from tars import archive, entry

from minirt.client import Client
from minirt.errors import Conflict, MinirtError, NotFound, StoreError
from minirt.image.descriptor import DOCKER_MANIFEST
from minirt.image.digest import Digest
from minirt.store.store import Store
from minirt.userns import mapping

SLOW = 8 << 20


def layer(name: str, size: int = 2000) -> bytes:
    """A gzip layer with one incompressible file."""
    return gzip.compress(archive(entry(name, content=random.Random(name).randbytes(size))), mtime=0)


@pytest.fixture
def hub() -> Iterator[Scripted]:
    with Scripted() as server:
        yield server


@pytest.fixture
def client(root: Path, hub: Scripted) -> Iterator[Client]:
    with Client(root) as made:
        yield made


def pull(client: Client, name: str) -> list[str]:
    return [line["status"] for line in client.pull(name)]


def name(hub: Scripted, path: str) -> str:
    return f"{hub.domain}/{path}"


def clean(client: Client) -> None:
    assert client.check() == []
    assert [p.name for p in client.root.glob("layers/*/.*")] == []


def test_layers_are_shared_and_a_second_pull_downloads_nothing(client: Client, hub: Scripted) -> None:
    base = layer("base")
    hub.image("team/app", "1", layers=[base, layer("one")])
    hub.image("team/app", "2", layers=[base, layer("two")])
    assert pull(client, name(hub, "team/app:1")).count("Pull complete") == 2
    asked = len(hub.seen("storage"))
    second = pull(client, name(hub, "team/app:2"))
    assert second.count("Already exists") == 1 and second.count("Pull complete") == 1
    assert len(hub.seen("storage")) - asked == 2  # the config and one layer
    asked = len(hub.seen("storage"))
    third = pull(client, name(hub, "team/app:2"))
    assert third[-1].startswith("Status: Image is up to date") and len(hub.seen("storage")) == asked
    clean(client)


def test_skopeo_and_umoci_read_the_store_as_it_lies(client: Client, hub: Scripted, tmp_path: Path) -> None:
    hub.image("team/app", "1", layers=[layer("a"), layer("b")])
    reference = name(hub, "team/app:1")
    pull(client, reference)
    found = json.loads(
        subprocess.run(
            [require("skopeo"), "inspect", f"oci:{client.root}/oci:{reference}"], capture_output=True, check=True
        ).stdout
    )
    assert len(found["Layers"]) == 2
    rootless = ["--rootless"] if os.geteuid() else []
    subprocess.run(
        [require("umoci"), "unpack", *rootless, "--image", f"{client.root}/oci:{reference}", tmp_path / "bundle"],
        check=True,
        capture_output=True,
    )
    assert {p.name for p in (tmp_path / "bundle" / "rootfs").iterdir()} == {"a", "b"}


def test_a_docker_v2s2_image_has_an_oci_twin_beside_the_original(client: Client, tmp_path: Path, root: Path) -> None:
    with Scripted() as source, docker_registry(tmp_path) as registry:
        source.image("team/app", "1", layers=[layer("a")])
        pull(client, name(source, "team/app:1"))
        subprocess.run(
            [
                require("skopeo"), "copy", "--dest-tls-verify=false", "--format", "v2s2",
                f"oci:{root}/oci:{name(source, 'team/app:1')}", f"docker://{registry.domain}/x:v2s2",
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        pull(client, f"{registry.domain}/x:v2s2")
        (original,) = [n for n in Store(root).names.all() if n.reference.tag == "v2s2"]
        assert original.target.media_type == DOCKER_MANIFEST
        for tool in (
            ["skopeo", "inspect", f"oci:{root}/oci:{registry.domain}/x:v2s2"],
            ["umoci", "stat", "--image", f"{root}/oci:{registry.domain}/x:v2s2"],
        ):
            subprocess.run([require(tool[0]), *tool[1:]], check=True, capture_output=True)
        pulled = client.inspect_image(f"{registry.domain}/x:v2s2")["RepoDigests"]
        assert f"{registry.domain}/x@{original.target.digest}" in pulled
    clean(client)


def test_a_moved_tag_keeps_the_old_image_by_digest_until_pruned(client: Client, hub: Scripted) -> None:
    hub.image("team/app", "1", layers=[layer("old")])
    pull(client, name(hub, "team/app:1"))
    old = client.images()[0]["Id"]
    hub.image("team/app", "1", layers=[layer("new")])
    pull(client, name(hub, "team/app:1"))
    images = {image["Id"]: image for image in client.images()}
    assert len(images) == 2 and images[old]["RepoTags"] == [] and images[old]["RepoDigests"]
    assert client.inspect_image(images[old]["RepoDigests"][0])["Id"] == old
    assert [i["Id"] for i in client.images(filters={"dangling": ["true"]})] == [old]
    assert {"Deleted": old} in client.prune()["ImagesDeleted"]
    assert len(client.images()) == 1 and len(list(client.root.glob("layers/*/[0-9a-f]*[0-9a-f]"))) == 1
    clean(client)


def test_disk_usage_tells_what_is_shared_and_used(client: Client) -> None:
    for tag in ("1.0", "2.0"):
        pull(client, f"greeter:{tag}")
    identity = client.create({"Image": "greeter:1.0"})["Id"]
    images = {image["RepoTags"][0]: image for image in client.df()["Images"]}
    first, second = images["greeter:1.0"], images["greeter:2.0"]
    assert (first["Containers"], second["Containers"]) == (1, 0)
    assert first["SharedSize"] == second["SharedSize"] and 0 < first["SharedSize"] < first["Size"]
    client.remove(identity)


def test_removing_the_last_name_frees_what_nothing_else_needs(client: Client, hub: Scripted) -> None:
    base = layer("base")
    hub.image("team/app", "1", layers=[base, layer("one")])
    hub.image("team/app", "2", layers=[base, layer("two")])
    for tag in "12":
        pull(client, name(hub, f"team/app:{tag}"))
    client.tag(name(hub, "team/app:1"), "mine:v1")
    gone = client.remove_image(name(hub, "team/app:1"))
    assert [list(row) for row in gone] == [["Untagged"]] * 2  # with a repository's last tag its digest, as docker does
    gone = client.remove_image("mine:v1")
    assert sum("Deleted" in row for row in gone) == 2  # the image and the one layer only it had
    client.remove_image(client.images()[0]["Id"][7:19])
    assert client.images() == [] and client.df()["LayersSize"] == 0
    clean(client)


def test_lookups_by_id_prefix_digest_and_name(client: Client, hub: Scripted) -> None:
    hub.image("team/app", "1", layers=[layer("a")])
    pull(client, name(hub, "team/app:1"))
    image = client.images()[0]
    wanted = [image["Id"], image["Id"][7:], image["Id"][7:13], image["RepoDigests"][0], name(hub, "team/app:1")]
    assert {client.inspect_image(text)["Id"] for text in wanted} == {image["Id"]}
    for text in ("nothing", "f" * 64, "sha256:" + "e" * 64, name(hub, "team/app:2")):
        with pytest.raises(NotFound, match="No such image"):
            client.inspect_image(text)
    with pytest.raises(MinirtError, match="invalid reference format"):
        client.inspect_image("No Such")


def test_wrong_bytes_leave_nothing(client: Client, hub: Scripted) -> None:
    content = layer("a")
    hub.image("team/app", "1", layers=[content])
    hub.script("storage", Digest.of(content).hex, body(content[:-1] + bytes([content[-1] ^ 1])))
    with pytest.raises(MinirtError, match="does not match its digest"):
        pull(client, name(hub, "team/app:1"))
    assert client.images() == [] and list((client.root / "ingest").glob("sha256-*")) == []
    hub_ok = pull(client, name(hub, "team/app:1"))
    assert hub_ok[-1].startswith("Status: Downloaded")
    clean(client)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is no archive at all" * 40, "not a tar archive"),
        (gzip.compress(b"\0" * 100 + b"junk" * 400, mtime=0), "not a tar archive"),
        (layer("x")[:-20], "truncated"),
    ],
    ids=["plain", "gzip", "cut"],
)
def test_a_layer_that_is_no_layer_is_refused(client: Client, hub: Scripted, content: bytes, words: str) -> None:
    hub.image("team/app", "1", layers=[content])
    with pytest.raises(MinirtError, match=words) as caught:
        pull(client, name(hub, "team/app:1"))
    assert "\n" not in str(caught.value)
    assert client.images() == []
    clean(client)


CHILD = """
import sys
from minirt.client import Client
for line in Client(sys.argv[1]).pull(sys.argv[2]):
    print(line, flush=True)
"""


def _pulling(client: Client, reference: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, client.root, reference],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_pull_leaves_a_store_that_verifies_and_the_next_resumes(
    client: Client, hub: Scripted, how: signal.Signals
) -> None:
    content = layer("big", SLOW)
    hub.image("team/app", "1", layers=[content])
    hub.script("storage", Digest.of(content).hex, stall(2 << 20))
    process = _pulling(client, name(hub, "team/app:1"))
    ingest = client.root / "ingest"
    _until(lambda: any(p.stat().st_size > 1 << 20 for p in ingest.glob("sha256-*") if p.suffix != ".lock"))
    process.send_signal(how)
    process.wait(20)
    _until(lambda: not list(client.root.glob("layers/*/.*")))  # the worker sees its input end
    (kept,) = [p.stat().st_size for p in ingest.glob("sha256-*") if p.suffix != ".lock"]
    assert client.check() == [] and client.images() == [] and kept >= 1 << 20
    pull(client, name(hub, "team/app:1"))
    ranges = [r.headers["range"] for r in hub.seen("storage") if "range" in r.headers]
    assert ranges and int(ranges[-1].removeprefix("bytes=").rstrip("-")) >= 1 << 20
    clean(client)


def _until(ready: Callable[[], bool]) -> None:
    for _ in range(1000):
        if ready():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to that in 20 seconds")


def test_a_link_that_drops_is_resumed_within_one_pull(client: Client, hub: Scripted) -> None:
    content = layer("big", SLOW)
    hub.image("team/app", "1", layers=[content])
    hub.script("storage", Digest.of(content).hex, cut(3 << 20), times=2)
    assert pull(client, name(hub, "team/app:1"))[-1].startswith("Status: Downloaded")
    assert len([r for r in hub.seen("storage") if "range" in r.headers]) == 2
    clean(client)


def test_ten_pulls_at_once_download_each_layer_once(client: Client, hub: Scripted) -> None:
    layers = [layer(f"l{n}", 50_000) for n in range(3)]
    hub.image("team/app", "1", layers=layers)
    errors: list[BaseException] = []

    def one() -> None:
        try:
            with Client(client.root) as mine:
                pull(mine, name(hub, "team/app:1"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    asked = [request.path.removeprefix("/blob/") for request in hub.seen("storage")]
    assert [asked.count(Digest.of(content)) for content in layers] == [1, 1, 1]
    clean(client)


def test_save_and_load_keep_the_image(client: Client, hub: Scripted, tmp_path: Path) -> None:
    hub.image("team/app", "1", layers=[layer("a"), layer("b")])
    reference = name(hub, "team/app:1")
    pull(client, reference)
    client.tag(reference, "mine:v1")
    saved = b"".join(client.save(["mine:v1", reference]))
    with tarfile.open(fileobj=io.BytesIO(saved)) as tar:
        names = tar.getnames()
        (described,) = json.load(tar.extractfile("manifest.json") or io.BytesIO())
    assert {"oci-layout", "index.json", "manifest.json"} <= set(names) and len(set(names)) == len(names)
    assert described["RepoTags"] == sorted(["mine:v1", reference])
    for wrapped in (saved, gzip.compress(saved), lzma.compress(saved)):
        with Client(tmp_path / f"other{len(wrapped)}") as other:
            told = [line["stream"] for line in other.load(io.BytesIO(wrapped))]
            assert sorted(told) == [f"Loaded image: {reference}\n", "Loaded image: mine:v1\n"]
            assert {i["Id"] for i in other.images()} == {i["Id"] for i in client.images()}
            clean(other)
    (tmp_path / "saved.tar").write_bytes(saved)
    for kind in ("docker-archive", "oci-archive"):
        subprocess.run(
            [require("skopeo"), "inspect", f"{kind}:{tmp_path}/saved.tar:mine:v1"], check=True, capture_output=True
        )


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_load_reads_what_skopeo_writes(client: Client, hub: Scripted, tmp_path: Path, kind: str) -> None:
    hub.image("team/app", "1", layers=[layer("a"), layer("b")])
    pull(client, name(hub, "team/app:1"))
    subprocess.run(
        [
            require("skopeo"), "copy", f"oci:{client.root}/oci:{name(hub, 'team/app:1')}",
            f"{kind}:{tmp_path}/saved.tar:docker.io/library/mine:v2",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    with Client(tmp_path / "other") as other, open(tmp_path / "saved.tar", "rb") as file:
        assert [line["stream"] for line in other.load(file)] == ["Loaded image: mine:v2\n"]
        assert other.images()[0]["Id"] == client.images()[0]["Id"]
        clean(other)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"junk" * 400, "not a tar"),
        (archive(entry("a", content=b"1")), "not an image"),
        (archive(entry("manifest.json", content=b"{}")), "damaged|no image"),
        (archive(entry("d/" * 3000)), "name is longer than 4096 bytes"),
        (archive(entry("manifest.json", content=b'[{"Config":"../../x","Layers":[]}]')), "not in it"),
        (
            archive(entry("manifest.json", content=b'[{"Config":"c","Layers":["l"]}]'), entry("c", content=b"{}")),
            "damaged",
        ),
    ],
)
def test_a_damaged_archive_is_refused(client: Client, content: bytes, words: str) -> None:
    with pytest.raises(MinirtError, match=words):
        list(client.load(io.BytesIO(content)))
    assert client.images() == [] and not list(client.root.glob(".load-*"))


def test_check_names_what_is_damaged(client: Client, hub: Scripted) -> None:
    hub.image("team/app", "1", layers=[layer("a")])
    pull(client, name(hub, "team/app:1"))
    blob = max((client.root / "oci" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    assert [row["what"] for row in client.check()] == [f"blob sha256:{blob.name}"]


@pytest.mark.timeout(60)
def test_check_of_a_store_that_was_never_used(tmp_path: Path) -> None:
    """It has not tried yet what this machine can do: that takes the lock that `check` holds at its end."""
    assert list(Store(tmp_path / "s").check()) == []


def test_a_store_from_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "version").write_text("99\n")
    with pytest.raises(StoreError, match="written by a newer minirt .its format is 99, ours 1.: use that one, or set"):
        Store(tmp_path / "s")
    (tmp_path / "s" / "version").write_text("one\n")
    with pytest.raises(StoreError, match="not a store of ours: its format is 'one'"):
        Store(tmp_path / "s")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot use"):
        Store(tmp_path / "file")


def test_a_store_of_an_older_format_is_brought_up_to_ours(client: Client, hub: Scripted) -> None:
    """Format 0: no number, and unpacked layers of one form, directly in their folder. Nothing is fetched again."""
    hub.image("team/app", "1", layers=[layer("a"), layer("b")])
    pull(client, name(hub, "team/app:1"))
    stop(client)
    root = client.root
    (form,) = root.glob("layers/*")
    for path in form.iterdir():
        path.rename(root / "layers" / path.name)
    form.rmdir()
    (root / "version").unlink()
    asked = len(hub.seen("storage"))
    clean(client)
    assert (root / "version").read_text() == "1\n"
    assert sorted(path.suffix for path in form.iterdir()) == ["", "", ".json", ".json"]
    pull(client, name(hub, "team/app:1"))
    assert len(hub.seen("storage")) == asked
    identity = client.create({"Image": name(hub, "team/app:1"), "Cmd": ["/hello"]})["Id"]
    client.remove(identity)


def test_a_migration_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    Store(tmp_path / "s")
    (tmp_path / "s" / "version").unlink()
    for digit in "ab":
        (tmp_path / "s" / "layers" / (digit * 64)).mkdir(parents=True)
        (tmp_path / "s" / "layers" / f"{digit * 64}.json").write_text("{}")
    form = tmp_path / "s" / "layers" / mapping().form
    form.mkdir()
    (tmp_path / "s" / "layers" / ("a" * 64)).rename(form / ("a" * 64))
    Store(tmp_path / "s")
    assert len(list(form.iterdir())) == 4 and [form] == list((tmp_path / "s" / "layers").iterdir())


def stop(client: Client) -> None:
    """No daemon runs over it any more."""
    client.close()
    subprocess.run([sys.executable, "-m", "minirt", "daemon", "stop"], check=True)


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "s").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        Store(tmp_path / "s")


def test_an_image_in_use_is_not_removed(client: Client) -> None:
    pull(client, "hello-world")
    client.create({"Image": "hello-world"}, name="user")
    with pytest.raises(Conflict, match="is using its referenced image"):
        client.remove_image("hello-world")
    client.remove_image("hello-world", force=True)
    client.start("user")
    assert client.wait("user") == 0
    client.remove("user")
    client.prune()
    clean(client)
