"""The store under attack: odd places, odd neighbours, crashes at any moment, and several processes at once."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import pwd
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from peers import require
from registries import Scripted, image_manifest
from tars import DIR, archive, entry

import minirt
from minirt.client import Client, default_root
from minirt.engine import Engine
from minirt.errors import InvalidInput, MinirtError, NotFound
from minirt.image.descriptor import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from minirt.image.manifest import encode
from minirt.store.store import Store

PATH = os.pathsep.join(word for word in sys.path if word)


def layer(name: str, size: int = 2000) -> bytes:
    """A gzip layer with one incompressible file."""
    return gzip.compress(archive(entry(name, content=random.Random(name).randbytes(size))), mtime=0)


@pytest.fixture
def hub() -> Iterator[Scripted]:
    with Scripted(auth="none") as server:
        yield server


@pytest.fixture
def client(root: Path, hub: Scripted) -> Iterator[Client]:
    with Client(root) as made:
        yield made


def pull(client: Client, name: str) -> list[str]:
    return [line["status"] for line in client.pull(name)]


def image(hub: Scripted, path: str, tag: str, layers: list[bytes], diff_ids: list[str] | None = None) -> str:
    """One plain manifest (no index); `diff_ids` where the config shall say something else. Returns its name."""
    rootfs = {"type": "layers", "diff_ids": diff_ids or [f"sha256:{_sha(plain(content))}" for content in layers]}
    config = encode({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/hello"]}, "rootfs": rootfs})
    blobs = [hub.blob(content, OCI_LAYER) for content in layers]
    hub.manifest(path, tag, image_manifest(hub.blob(config, OCI_CONFIG), blobs), OCI_MANIFEST)
    return f"{hub.domain}/{path}:{tag}"


def plain(content: bytes) -> bytes:
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def clean(client: Client) -> None:
    assert client.check() == []
    assert [p.name for p in client.root.glob("layers/*/.*")] == []


# --- one diff ID, several blobs; several processes --------------------------------------------------------------------


def test_one_content_in_two_compressions_unpacks_whole(client: Client, hub: Scripted) -> None:
    content = archive(*(entry(f"d{n % 50}/f{n}", content=b"x" * 50) for n in range(2500)))
    blobs = [gzip.compress(content, level, mtime=0) for level in (1, 6)] + [content]
    name = image(hub, "team/app", "1", blobs)
    for _ in range(2):
        pull(client, name)
        (folder,) = client.root.glob(f"layers/*/{_sha(content)}")
        assert sum(len(files) for _, _, files in os.walk(folder)) == 2500
        client.remove_image(name)
    clean(client)


def test_a_worker_that_outlives_its_client_keeps_the_layer_locked(client: Client, hub: Scripted) -> None:
    """The lock goes with whoever still writes: kill -9 must not let the next pull in beside an old worker."""
    content = gzip.compress(archive(*(entry(f"f{n}", content=b"y" * 3000) for n in range(6000))), 1, mtime=0)
    name = image(hub, "team/app", "1", [content])
    code = "import sys; from minirt.client import Client; list(Client(sys.argv[1]).pull(sys.argv[2]))"
    for wait in (0.02, 0.1, 0.3):
        process = subprocess.Popen(
            [sys.executable, "-c", code, client.root, name], env={**os.environ, "PYTHONPATH": PATH}
        )
        for _ in range(500):
            if list(client.root.glob("layers/*/.*")):
                break
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.wait()
        pull(client, name)
        (folder,) = client.root.glob(f"layers/*/{_sha(plain(content))}")
        assert len(os.listdir(folder)) == 6000
        clean(client)
        client.remove_image(name)


def test_a_pull_whose_name_is_removed_at_its_last_word_has_succeeded(root: Path, hub: Scripted) -> None:
    engine = Engine(root)
    name = image(hub, "team/app", "1", [layer("base")])
    for line in engine.pull(name):
        if line and line["status"].startswith("Status: "):
            engine.images.remove(name)
    assert engine.images.summaries() == []


def test_everything_at_once(client: Client, hub: Scripted) -> None:
    base = layer("base", 300_000)
    names = [image(hub, "team/app", str(n), [base, layer(f"top{n}", 50_000)]) for n in range(3)]
    script = """
import sys, time, random
from minirt.client import Client
from minirt.errors import Conflict, NotFound
end = time.monotonic() + 6
what, root, *names = sys.argv[1:]
client, number = Client(root), 0
while time.monotonic() < end:
    number += 1
    try:
        if what == "pull":
            list(client.pull(random.choice(names)))
        elif what == "rmi":
            client.remove_image(random.choice(names))
        elif what == "create":
            made = client.create({"Image": random.choice(names)})["Id"]
            client.inspect_container(made)
            client.remove(made)
        elif what == "save":
            b"".join(client.save([random.choice(names)]))
        elif what == "tag":
            client.tag(random.choice(names), f"mine:{random.choice('abc')}")
            client.remove_image("mine:" + random.choice("abc"))
        else:
            client.prune(), client.df(), client.images(), client.containers(all=True, size=True)
            bad = [row for row in client.check() if "half" not in row["problem"]]
            assert not bad, bad
    except (NotFound, Conflict):
        pass
"""
    verbs = ["pull", "pull", "rmi", "create", "prune", "save", "tag"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, verb, client.root, *names],
            env={**os.environ, "PYTHONPATH": PATH},
            stderr=subprocess.PIPE,
            text=True,
        )
        for verb in verbs
    ]
    told = [(verb, process.communicate(timeout=90)[1].strip()) for verb, process in zip(verbs, running, strict=True)]
    assert [(verb, text) for verb, text in told if text] == []
    for name in names:
        pull(client, name)
    client.prune()
    clean(client)


# --- killed at any moment ---------------------------------------------------------------------------------------------


def test_killed_at_random_moments_the_store_verifies_and_prune_cleans(client: Client, hub: Scripted) -> None:
    names = [image(hub, "team/app", str(n), [layer("base", 400_000), layer(f"top{n}", 200_000)]) for n in range(2)]
    saved = client.root / "saved.tar"
    pull(client, names[0])
    saved.write_bytes(b"".join(client.save([names[0]])))
    script = """
import sys
import threading
from minirt.client import Client
client, names = Client(sys.argv[1]), sys.argv[3:]
while True:
    for name in names:
        list(client.pull(name))
        made = client.create({"Image": name})["Id"]
        client.tag(name, "mine:1")
        with open(sys.argv[2], "rb") as file:
            list(client.load(file))
        client.remove(made)
        client.remove_image("mine:1")
        client.remove_image(name, force=True)
"""
    chance = random.Random(4)
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", script, client.root, saved, *names],
            env={**os.environ, "PYTHONPATH": PATH},
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(0.3 + chance.random() * 0.9)
        process.kill()
        assert process.communicate()[1] == ""
        assert all("prune` removes it" in row["problem"] for row in client.check())
    for name in names:
        pull(client, name)
    saved.unlink()
    client.prune()
    clean(client)
    assert sorted(path.name for path in client.root.iterdir() if path.name.startswith(".")) == []
    assert list((client.root / "ingest").iterdir()) == [] and list((client.root / "containers").iterdir()) == []
    assert not [path for path in (client.root / "oci").rglob(".*.new")]


def test_what_a_killed_load_or_write_leaves_is_told_and_pruned(client: Client) -> None:
    pull(client, "hello-world")
    (client.root / ".load-abc").mkdir()
    (client.root / ".load-abc" / "1").write_bytes(bytes(100_000))
    (client.root / "oci" / "blobs" / "sha256" / ".x.new").write_bytes(b"x")
    (client.root / "oci" / ".y.new").write_bytes(b"x")
    assert {row["problem"] for row in client.check()} == {"half made: `minirt system prune` removes it"}
    assert client.prune()["SpaceReclaimed"] >= 0
    clean(client)
    assert not list(client.root.glob(".*")) and not list((client.root / "oci").rglob(".*.new"))


# --- content that other tools, or chance, put there -------------------------------------------------------------------


def test_what_other_tools_put_into_the_layout_stays_and_breaks_nothing(client: Client, hub: Scripted) -> None:
    hub.image("team/app", "1", [layer("a")])
    foreign = client.root / "oci" / "index.json"
    pull(client, "hello-world")
    subprocess.run(
        [require("skopeo"), "copy", "--all", "--src-tls-verify=false", f"docker://{hub.domain}/team/app:1",
         f"oci:{client.root}/oci:theirs"],
        check=True, capture_output=True,
    )  # fmt: skip
    document = json.loads(foreign.read_bytes())
    document["manifests"] += [
        None,
        {"mediaType": "application/x", "digest": "sha256:" + "1" * 64, "size": 3, "annotations": None},
        {"annotations": {"io.minirt.name": "docker.io/library/broken:1"}},
    ]
    foreign.write_text(json.dumps(document))
    for odd in ("oci/blobs/.DS_Store", "oci/blobs/sha256/readme", "containers/note", "ingest/x"):
        (client.root / odd).parent.mkdir(exist_ok=True)
        (client.root / odd).write_bytes(b"odd")
    client.tag("hello-world", "mine:1")
    client.prune(), client.df(), client.containers(all=True)
    (row,) = client.check()
    assert row["what"] == "name docker.io/library/broken:1"
    assert client.remove_image("mine:1") and client.remove_image("hello-world") and client.images() == []
    for platform in ("amd64", "arm64"):
        subprocess.run(
            [require("skopeo"), "--override-arch", platform, "copy", f"oci:{client.root}/oci:theirs",
             f"oci:{client.root}/copy"],
            check=True, capture_output=True,
        )  # fmt: skip


def test_damaged_documents_are_healed_by_the_next_pull(client: Client, hub: Scripted) -> None:
    name = image(hub, "team/app", "1", [layer("a")])
    pull(client, name)
    for blob in (client.root / "oci" / "blobs" / "sha256").iterdir():
        if blob.stat().st_size < 1500:
            blob.write_bytes(b"{}")
    assert len(client.check()) >= 2
    pull(client, name)
    clean(client)


def test_a_missing_layer_blob_is_named_and_pulled_again(client: Client, hub: Scripted) -> None:
    content = layer("a")
    name = image(hub, "team/app", "1", [content])
    pull(client, name)
    (client.root / "oci" / "blobs" / "sha256" / _sha(content)).unlink()
    with pytest.raises(MinirtError, match="missing"):
        b"".join(client.save([name]))
    with pytest.raises(NotFound, match="not in the store: pull the image again"):
        client.create({"Image": name})
    pull(client, name)
    clean(client)


def test_a_sha512_diff_id_does_not_break_prune(client: Client, hub: Scripted) -> None:
    content = layer("a")
    name = image(hub, "team/app", "1", [content], [f"sha512:{hashlib.sha512(plain(content)).hexdigest()}"])
    pull(client, name)
    clean(client)
    client.remove_image(name)
    assert client.df()["LayersSize"] == 0


def test_a_config_that_lists_another_number_of_layers_is_refused_everywhere(
    client: Client, hub: Scripted, tmp_path: Path
) -> None:
    content = plain(layer("a"))
    name = image(hub, "team/app", "1", [content], [f"sha256:{_sha(content)}"] * 2)
    with pytest.raises(MinirtError, match="1 layers but its config lists 2"):
        pull(client, name)
    files = dict(hub.blobs)
    manifest, media_type = hub.manifests["team/app", "1"]
    files[f"sha256:{_sha(manifest)}"] = manifest
    described = {"mediaType": media_type, "digest": f"sha256:{_sha(manifest)}", "size": len(manifest)}
    index = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described]})
    parts = [entry(f"blobs/sha256/{digest[7:]}", content=data) for digest, data in files.items()]
    with pytest.raises(MinirtError, match="1 layers but its config lists 2"):
        list(client.load(io.BytesIO(archive(entry("index.json", content=index), *parts))))
    assert client.images() == []


def test_a_thousand_stale_layers_are_pruned(client: Client) -> None:
    pull(client, "hello-world")
    (form,) = (client.root / "layers").iterdir()
    for number in range(1000):
        (form / _sha(b"%d" % number)).mkdir()
    client.prune()
    assert len([path for path in form.iterdir() if path.is_dir()]) == 1


def test_many_layers_one_twice_and_none(client: Client, hub: Scripted) -> None:
    for count in (0, 127, 130):
        blobs = [archive(entry(f"f{n % 120}", content=b"%d" % n)) for n in range(count)]
        name = image(hub, "team/app", str(count), blobs + blobs[:1])
        pull(client, name)
        made = client.create({"Image": name, "Cmd": ["/x"]})["Id"]
        assert (client.inspect_container(made)["Driver"] == "overlay") == (count < 100) or os.geteuid()
        assert b"".join(client.save([name]))
        client.remove(made)
        client.history(name)
    clean(client)


# --- names, as docker has them ----------------------------------------------------------------------------------------


def test_names_with_tag_and_digest(client: Client, hub: Scripted) -> None:
    name = image(hub, "team/app", "1", [layer("a")])
    digest = f"sha256:{_sha(hub.manifests['team/app', '1'][0])}"
    by_digest = name.removesuffix(":1") + "@" + digest
    pull(client, f"{name}@{digest}")
    (found,) = client.images()
    assert (found["RepoTags"], found["RepoDigests"]) == ([], [by_digest])
    assert client.inspect_image(f"{name}@{digest}")["Id"] == found["Id"]
    client.tag(by_digest, "mine:a")
    assert client.remove_image(by_digest) == [{"Untagged": by_digest}]
    assert [i["RepoTags"] for i in client.images()] == [["mine:a"]]
    assert {"Untagged": "mine:a"} in client.remove_image("mine:a") and client.images() == []
    # a digest goes alone while its tag stays, and with the last tag of its repository
    pull(client, name)
    assert client.remove_image(by_digest) == [{"Untagged": by_digest}]
    (found,) = client.images()
    assert (found["RepoTags"], found["RepoDigests"]) == ([name], [])
    pull(client, name)
    pull(client, by_digest)
    client.tag(name, "other:1")
    assert client.remove_image(name) == [{"Untagged": name}, {"Untagged": by_digest}]
    assert client.images()[0]["RepoTags"] == ["other:1"] and client.images()[0]["RepoDigests"] == []
    # two tags of one repository: an ID names both, and that is not enough
    client.tag("other:1", "other:2")
    with pytest.raises(MinirtError, match="must be forced"):
        client.remove_image(found["Id"][7:19])
    clean(client)


# --- odd places, odd users --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["with space", "a:b,c", "한글-ü%s", "l" * 200, "link"])
def test_odd_roots(tmp_path: Path, folder: str, hub: Scripted) -> None:
    where = tmp_path / folder
    if folder == "link":
        (tmp_path / "real").mkdir()
        where.symlink_to(tmp_path / "real")
    with Client(where, hub="embedded") as client:
        assert minirt.run("hello-world", root=where, hub="embedded").exit_code == 0
        made = client.create({"Image": "hello-world"})
        assert made["Warnings"] == []
        client.remove(made["Id"])
        assert client.prune() and client.check() == []


def test_umask_does_not_reach_the_image(client: Client, hub: Scripted) -> None:
    old = os.umask(0o077)
    try:
        name = image(hub, "team/app", "1", [layer("a")])
        pull(client, name)
        made = client.create({"Image": name})["Id"]
        empty = client.create(
            {"Image": (pull(client, image(hub, "team/none", "1", [])), f"{hub.domain}/team/none:1")[1]}
        )
    finally:
        os.umask(old)
    (folder,) = client.root.glob(f"layers/*/{_sha(plain(layer('a')))}")
    for path in (folder, *(client.root / "containers" / i / "upper" for i in (made, empty["Id"]))):
        assert path.stat().st_mode & 0o777 == 0o755


def test_the_default_root_is_absolute_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_root().is_absolute()

    def homeless(user: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", homeless)
    with pytest.raises(InvalidInput, match="set MINIRT_ROOT"):
        default_root()


def test_a_full_disk_is_one_clear_line_and_the_next_pull_resumes(tmp_path: Path, hub: Scripted) -> None:
    if os.geteuid():
        pytest.skip("mounting a small tmpfs needs root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=True)
    try:
        name = image(hub, "team/app", "1", [layer("base", 1000), layer("big", 2_000_000)])
        with Client(small / "s") as client:
            for _ in range(2):
                with pytest.raises(MinirtError, match="(?i)no space left on device"):
                    pull(client, name)
                assert client.check() == [] and client.images() == []
            subprocess.run(["mount", "-o", "remount,size=30m", small], check=True)
            pull(client, name)
            client.prune()
            clean(client)
            with contextlib.suppress(OSError), open(small / "fill", "wb") as fill:
                while True:
                    fill.write(bytes(1 << 16))
            for act in (lambda: client.tag(name, "mine:1"), lambda: client.create({"Image": name})):
                with pytest.raises(MinirtError, match="(?i)no space left"):
                    act()
            (small / "fill").unlink()
            clean(client)
            client.create({"Image": name})
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


def test_a_read_only_store_can_be_looked_at(client: Client, tmp_path: Path) -> None:
    """By a daemon of its own, started where it is read-only."""
    if os.geteuid():
        pytest.skip("remounting needs root")
    pull(client, "hello-world")
    made = client.create({"Image": "hello-world"})["Id"]
    client.inspect_image("hello-world")
    subprocess.run([sys.executable, "-m", "minirt", "daemon", "stop"], check=True)
    (tmp_path / "run").mkdir()
    code = f"""
from minirt.client import Client
from minirt.errors import MinirtError
client = Client({str(client.root)!r})
assert client.images() and client.inspect_image("hello-world") and client.check() == [], client.check()
assert client.containers(all=True) and b"".join(client.save(["hello-world"])) and client.df() and client.info()
for act in (lambda: client.tag("hello-world", "x:1"), lambda: client.create({{"Image": "hello-world"}}),
            lambda: list(client.pull("hello-world")), lambda: client.remove_image("hello-world", force=True),
            client.prune):
    try:
        act()
    except MinirtError as error:
        assert "read-only file system" in str(error).lower(), error
    else:
        raise AssertionError("that cannot be")
"""
    bind = f"mount --bind -o ro {client.root} {client.root} && mount -o remount,ro,bind {client.root}"
    done = subprocess.run(
        [require("unshare"), "-m", "sh", "-c", f'{bind} && exec "$@"', "sh", sys.executable, "-c", code],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": PATH, "XDG_RUNTIME_DIR": f"{tmp_path}/run"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    client.remove(made)


RESTRICTED = {
    "root without capabilities": ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps=-sys_admin", "sh", "-c"],
    "root of a user namespace with one id": ["unshare", "-Ur", "sh", "-c"],
    "root of a user namespace with many ids": [sys.executable, "-c", """
import os, sys
from minirt.userns import IdMapping, become_root
rows = ((0, 0, 2000),)
become_root(IdMapping(rows, rows))
os.execvp("sh", ["sh", "-c", sys.argv[1]])
"""],
    "no user namespaces": ["unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces; eval "$0"'],
}  # fmt: skip


@pytest.mark.parametrize("where", RESTRICTED)
def test_lesser_rights(where: str, client: Client, hub: Scripted) -> None:
    """Pull works whatever we may not; run works or says one clear line. Opaque folders are the hard part."""
    if os.geteuid() and not where.startswith(("root of a user namespace with one", "no user")):
        pytest.skip("needs root to begin with")
    blobs = [archive(entry("d", DIR), entry("d/a", content=b"1")), archive(entry("d/.wh..wh..opq"), entry("d/.wh.a"))]
    name = image(hub, "team/app", "1", blobs)
    code = f"""
import minirt, os
from minirt.client import Client
from minirt.errors import Unsupported
with Client({str(client.root)!r}) as client:
    list(client.pull({name!r}))
    list(client.pull("hello-world"))
    client.df(), client.info(), client.inspect_image("hello-world"), client.prune()
    assert client.check() == [], client.check()
    try:
        made = client.create({{"Image": {name!r}}})
        client.remove(made["Id"])
        assert minirt.run("hello-world", root=client.root).exit_code == 0
        print("ran")
    except Unsupported as error:
        assert "cannot run containers" in str(error), error
        print("refused")
    client.remove_image({name!r})
"""
    script = "exec " + shlex.join([sys.executable, "-c", code])
    done = subprocess.run(
        [*RESTRICTED[where], script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": PATH}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("ran\n", "refused\n")


def test_what_did_not_work_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows the doctor's hint (a sysctl, an apt-get) is not told the old answer until the next boot."""
    record = tmp_path / "s" / "rights.json"
    assert Store(tmp_path / "s").overlay[0] and json.loads(record.read_bytes())["overlay"]
    record.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minirt.store.store.detect", lambda: None)
        store = Store(tmp_path / "s")
        assert store.ids is None and store.layers.ids is None
    assert not record.exists() and Store(tmp_path / "s").ids is not None
    # a daemon has one store for long
    store.again()
    assert store.ids is None
    monkeypatch.setattr("minirt.store.store._AGAIN", 0)
    store.again()
    assert store.ids is not None and store.layers.ids is not None


# --- the copy fallback ------------------------------------------------------------------------------------------------


def test_a_copied_rootfs_keeps_holes_and_hides_what_is_whited_out(client: Client, hub: Scripted) -> None:
    tars = []
    for kind in ("base", "top"):
        stream = client.root.parent / kind
        stream.mkdir()
        if kind == "base":
            (stream / "d").mkdir()
            (stream / "d" / "a").write_bytes(b"a")
            with open(stream / "sparse", "wb") as file:
                file.truncate(1 << 30)
                file.seek(1 << 20)
                file.write(b"middle")
        else:
            (stream / ".wh.d").write_bytes(b"")
        made = subprocess.run([require("tar"), "-C", stream, "-Sc", "."], check=True, capture_output=True)
        tars.append(made.stdout)
    name = image(hub, "team/app", "1", tars)
    pull(client, name)
    engine = Engine(client.root, "embedded")
    engine.store._rights.update(overlay=False, reason="refused by the test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minirt.store.store._AGAIN", 1e9)
        made = engine.containers.create({"Image": name})
    assert "were copied" in made["Warnings"][0]
    rootfs = client.root / "containers" / made["Id"] / "rootfs"
    status = (rootfs / "sparse").stat()
    assert status.st_size == 1 << 30 and status.st_blocks * 512 < 1 << 22
    with open(rootfs / "sparse", "rb") as file:
        file.seek(1 << 20)
        assert file.read(6) == b"middle"
    assert sorted(os.listdir(rootfs)) == ["sparse"]


# --- the Python interface ---------------------------------------------------------------------------------------------


def test_bad_words_and_filters_are_one_clear_line(client: Client) -> None:
    pull(client, "hello-world")
    with pytest.raises(InvalidInput, match="cannot be split"):
        minirt.run("hello-world", "it's", root=client.root)
    client.create({"Image": "hello-world"}, name="some")
    with pytest.raises(InvalidInput, match="invalid filter"):
        client.containers(all=True, filters={"name": ["("]})


def test_waiting_for_a_container_removed_by_force_says_137(client: Client) -> None:
    pull(client, "toolbox")
    for _ in range(5):
        made = client.create({"Image": "toolbox", "Cmd": ["sleep", "100"]})["Id"]
        client.start(made)
        codes: list[int] = []
        waiting = threading.Thread(target=lambda made=made, codes=codes: codes.append(client.wait(made)))
        waiting.start()
        time.sleep(0.05)
        client.remove(made, force=True)
        waiting.join(20)
        assert codes == [137]


def test_an_interrupted_run_leaves_no_container(client: Client) -> None:
    pull(client, "toolbox")
    us = threading.get_ident()

    def interrupt() -> None:
        while not client.containers():
            time.sleep(0.02)
        signal.pthread_kill(us, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        minirt.run("toolbox", ["sleep", "100"], root=client.root, hub="embedded")
    assert client.containers(all=True) == []
