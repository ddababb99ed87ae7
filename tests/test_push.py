"""Push: what goes over the line, what happens where it breaks, what is sent where, and what the registry has then."""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from peers import require
from registries import (
    PASSWORD,
    USER,
    Fault,
    Reply,
    Scripted,
    Server,
    docker_registry,
    header,
    image_config,
    image_manifest,
    redirect,
    status,
    tls,
)
from tars import archive, entry
from twins import on_terminal

from minirt.client import Client
from minirt.errors import MinirtError, NotFound, RegistryError, Unauthorized, VerificationError
from minirt.image.descriptor import DOCKER_FOREIGN_LAYER, DOCKER_MANIFEST, OCI_CONFIG, Descriptor
from minirt.image.digest import Digest
from minirt.registry.client import Registry
from minirt.registry.credentials import Given
from minirt.registry.settings import Settings
from minirt.registry.upload import Upload

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a daemon needs Linux")

MINIRT = str(Path(sys.executable).with_name("minirt"))
BLOB = random.Random(1).randbytes(3 << 20)
LAYER = Descriptor("x", Digest.of(BLOB), len(BLOB))
LOGIN = {"username": USER, "password": PASSWORD}
Open = Callable[..., Upload]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(BLOB)
    return path


@pytest.fixture
def into(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens a repository of a registry to write to, for an impatient user who has logged in."""
    opened: list[Registry] = []
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def open_(domain: str, path: str = "team/app", login: dict[str, str] = LOGIN, **options: object) -> Upload:
        quick: dict[str, object] = {"stall_timeout": 0.3, "connect_timeout": 2, "attempts": 4, "backoff": 0.01}
        quick |= {"credentials": Given(domain, login)} | options
        opened.append(Registry(domain, Settings(), **quick))  # type: ignore[arg-type]
        return opened[-1].upload(path)

    yield open_
    for registry in opened:
        registry.close()


def nothing(count: int) -> None:
    """Nobody wants to hear."""


def exchanges(hub: Scripted) -> list[str]:
    """Method and path of what the registry was asked, but for the digests and what it asked authorization for."""
    found = []
    for request in hub.seen("registry"):
        path = request.path.replace("/v2/team/app/", "").replace(str(LAYER.digest), "LAYER")
        if request.headers.get("authorization") or hub._auth == "none":
            found.append(f"{request.method} {path.partition('upload-')[0]}")
    return found


def sent(hub: Scripted) -> int:
    """Bytes of blobs that reached the registry."""
    return sum(len(request.body) for request in hub.seen("registry") if request.method == "PATCH")


# --- the way of a blob ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["none", "basic", "token"])
def test_a_blob_goes_the_specs_way(file: Path, into: Open, auth: str) -> None:
    with Scripted(auth) as hub:
        upload, heard = into(hub.domain), [0]
        assert not upload.has(LAYER)
        upload.put(LAYER, file, heard.append)
        assert upload.has(LAYER) and hub.blobs[LAYER.digest] == BLOB
        way = exchanges(hub)
        if auth == "none":
            assert way.pop(0) == "GET /v2/"
        assert way == [
            "HEAD blobs/LAYER", "POST blobs/uploads/", "PATCH blobs/uploads/", "PUT blobs/uploads/", "HEAD blobs/LAYER"
        ]  # fmt: skip
        (patch,) = hub.seen("registry", "upload-")[:1]
        assert patch.headers["content-length"] == str(len(BLOB)) and "content-range" not in patch.headers
        assert patch.query == {"_state": ["s=1"]}, "the Location is the registry's word, query and all"
        assert heard == sorted(heard) and heard[-1] == len(BLOB) and len(heard) > 20
        if auth == "token":
            scopes = {scope for request in hub.seen("token") for scope in request.query.get("scope", ())}
            assert scopes == {"repository:team/app:pull,push"} and len(hub.seen("token")) == 1


@pytest.mark.parametrize("resumes", [True, False])
def test_an_upload_that_breaks_off_goes_on_or_begins_anew(file: Path, into: Open, resumes: bool) -> None:
    with Scripted("none", resumes=resumes) as hub:
        hub.hang_up("registry", "PATCH ", 1 << 20)
        hub.hang_up("registry", "PATCH ", 100)
        into(hub.domain).put(LAYER, file, nothing)
        assert hub.blobs[LAYER.digest] == BLOB
        assert sent(hub) == len(BLOB) + (0 if resumes else (1 << 20) + 100)
        assert exchanges(hub).count("POST blobs/uploads/") == (1 if resumes else 3)


def test_only_the_answer_was_lost(file: Path, into: Open) -> None:
    with Scripted("none") as hub:
        hub.hang_up("registry", "PUT ", 0)
        into(hub.domain).put(LAYER, file, nothing)
        assert hub.blobs[LAYER.digest] == BLOB and sent(hub) == len(BLOB)


@pytest.mark.parametrize(
    "fault",
    [status(503), status(429, Retry_After="0"), status(404), status(416)],
    ids=["503", "429", "forgotten", "another offset"],
)
@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
def test_another_try(file: Path, into: Open, fault: Fault, method: str) -> None:
    def once(request: object, reply: Reply) -> Reply:
        return fault(request, reply) if request.method == method else reply  # type: ignore[attr-defined,arg-type]

    with Scripted("none") as hub:
        hub.script("registry", "/uploads/", once, times={"POST": 1, "PATCH": 2, "PUT": 3}[method])
        into(hub.domain).put(LAYER, file, nothing)
        assert hub.blobs[LAYER.digest] == BLOB


def test_a_registry_that_takes_a_part_gets_the_rest(file: Path, into: Open) -> None:
    def part(request: object, reply: Reply) -> Reply:
        (identity,) = hub.uploads
        hub.uploads[identity] = hub.uploads[identity][: 1 << 20]
        return Reply(202, reply.headers | {"Range": f"0-{(1 << 20) - 1}"})

    with Scripted("none") as hub:
        hub.script("registry", "/uploads/upload-", part)
        into(hub.domain).put(LAYER, file, nothing)
        assert hub.blobs[LAYER.digest] == BLOB
        ranges = [request.headers.get("content-range") for request in hub.seen("registry") if request.method == "PATCH"]
        assert ranges == [None, f"{1 << 20}-{len(BLOB) - 1}"]


def test_patience_ends(file: Path, into: Open) -> None:
    with Scripted("none", resumes=False) as hub:
        hub.hang_up("registry", "PATCH ", 1000, times=100)
        with pytest.raises(RegistryError, match="broke the connection off"):
            into(hub.domain).put(LAYER, file, nothing)
        assert len([request for request in hub.seen("registry") if request.method == "PATCH"]) == 4


def test_a_layer_from_another_repository(into: Open) -> None:
    """Mounted where we may read there; else the bytes are to be sent."""
    with Scripted() as hub:
        hub.homes |= {("team/home", LAYER.digest), ("private/home", LAYER.digest)}
        hub.blobs[LAYER.digest] = BLOB
        upload = into(hub.domain)
        assert upload.mount(LAYER.digest, "team/home") and upload.has(LAYER)
        scopes = [request.query["scope"] for request in hub.seen("token")]
        assert ["repository:team/app:pull,push", "repository:team/home:pull"] in scopes
        assert not upload.mount(LAYER.digest, "team/nowhere")
        hub.script("registry", "/uploads/", status(401, WWW_Authenticate='Basic realm="x"'), times=9)
        assert not upload.mount(LAYER.digest, "private/home")


# --- where an upload may go, and with what --------------------------------------------------------------------------


def test_our_authorization_does_not_go_where_an_upload_is_sent(file: Path, into: Open) -> None:
    storage = Server(lambda request: Reply(202, {"Location": "/next"}) if request.method == "PATCH" else Reply(201))
    try:
        with Scripted("basic") as hub:
            hub.script("registry", "/uploads/$", header("Location", f"{storage.url}/here?sig=1"))
            into(hub.domain).put(LAYER, file, nothing)
            assert [request.method for request in storage.requests] == ["PATCH", "PUT"]
            assert all("authorization" not in request.headers for request in storage.requests)
            assert storage.requests[0].body == BLOB and storage.requests[1].query == {"digest": [LAYER.digest]}
            assert "authorization" in hub.seen("registry", "/uploads/$")[-1].headers
    finally:
        storage.close()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (header("Location", "https://169.254.169.254/latest"), "sends us to 169.254.169.254, a link-local address"),
        (header("Location", "ftp://127.0.0.1/x"), "not an http URL"),
        (header("Location", "http://u:p@127.0.0.1/x"), "with a user name in the URL"),
        (header("Location", None), "does not say where the upload goes on"),
        (redirect("http://127.0.0.2:9/x"), "redirects an upload: refused"),
        (header("Range", "0-99999999999"), "says it has 100000000000 bytes"),
        (status(413), "unexpected HTTP status"),
    ],
)
def test_uploads_that_are_refused(file: Path, into: Open, fault: Fault, reason: str) -> None:
    with Scripted("basic") as hub:
        hub.script("registry", "/uploads/" if "has" not in reason else "/upload-", fault, times=9)
        with pytest.raises(RegistryError, match=reason):
            into(hub.domain).put(LAYER, file, nothing)


def test_an_upload_never_leaves_https(file: Path, into: Open, tmp_path: Path) -> None:
    with Scripted("none", context=tls(tmp_path)) as hub:
        hub.script("registry", "/uploads/$", header("Location", f"http://{hub.domain}/x"))
        with pytest.raises(RegistryError, match="from https to plain http: refused"):
            into(hub.domain).put(LAYER, file, nothing)


def test_what_the_registry_finds_wrong(file: Path, into: Open) -> None:
    file.write_bytes(BLOB[:-1] + b"?")
    with Scripted("none") as hub:
        upload = into(hub.domain)
        with pytest.raises(VerificationError, match=f"refuses layer {LAYER.digest.short}: .* system check"):
            upload.put(LAYER, file, nothing)
        with pytest.raises(RegistryError, match="blob unknown to registry"):
            upload.manifest(image_manifest(LAYER, [LAYER]), OCI_CONFIG, "1")
        hub.homes.add(("team/app", LAYER.digest))
        hub.script("registry", "/manifests/", header("Docker-Content-Digest", "sha256:" + "0" * 64))
        with pytest.raises(VerificationError, match="the registry calls the manifest 'sha256:000"):
            upload.manifest(image_manifest(LAYER, [LAYER]), OCI_CONFIG, "1")


@pytest.mark.parametrize(
    ("auth", "login", "words"),
    [
        ("basic", {}, "no basic auth credentials: pushing to .*/team/app needs a docker login"),
        ("basic", {**LOGIN, "password": "wrong"}, r"denied: authentication required \(pushing to .*/team/app\)"),
        ("token", {}, r"denied: authentication required \(pushing to .*/team/app\)"),
        ("token", {**LOGIN, "password": "wrong"}, "unauthorized: incorrect username or password"),
    ],
)
def test_who_may_not_push(file: Path, into: Open, auth: str, login: dict[str, str], words: str) -> None:
    with Scripted(auth) as hub:
        none = {} if login else {"credentials": Given("elsewhere", LOGIN)}
        with pytest.raises(Unauthorized, match=f"^{words}"):
            into(hub.domain, login=login, **none).put(LAYER, file, nothing)
        assert sent(hub) == 0


# --- whole images ---------------------------------------------------------------------------------------------------


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    with Client(root) as made:
        yield made


def lines(objects: Iterator[dict[str, object]]) -> list[str]:
    """The lines of a push, in an order of their own where layers are beside each other."""
    found = [f"{line.get('id', '')}: {line['status']}".removeprefix(": ") for line in objects if "status" in line]
    found = [line for line in found if ": Pushing" not in line]
    return [found[0], *sorted(found[1:-1]), found[-1]]


def pull(client: Client, name: str) -> None:
    for _ in client.pull(name):
        pass


def served(hub: Scripted, path: str, tag: str) -> bytes:
    return hub.manifests[path, tag][0]


def test_an_image_keeps_its_bytes_from_registry_to_registry(client: Client) -> None:
    """What was pulled by an index is pushed as its own platform's manifest, byte by byte; then all is there, or taken
    over from where we know it to be."""
    layers = [gzip.compress(archive(entry("base", content=b"1")), mtime=0), archive(entry("top", content=b"2"))]
    with Scripted() as source, Scripted("none") as hub:
        index = json.loads(served(source, "team/app", source.image("team/app", "1", layers)))
        pull(client, f"{source.domain}/team/app:1")
        for name in "app:1", "app:2", "other:1":
            client.tag(f"{source.domain}/team/app:1", f"{hub.domain}/team/{name}")
        ids = [client.inspect_image(f"{hub.domain}/team/app:1")["RootFS"]["Layers"][n][7:19] for n in (0, 1)]
        digest = index["manifests"][0]["digest"]
        size = index["manifests"][0]["size"]

        def told(name: str, tag: str, *words: str) -> list[str]:
            return [
                f"The push refers to repository [{hub.domain}/{name}]",
                *sorted(f"{identity}: {word}" for identity in ids for word in words),
                f"{tag}: digest: {digest} size: {size}",
            ]

        objects = list(client.push(f"{hub.domain}/team/app:1"))
        assert lines(iter(objects)) == told("team/app", "1", "Preparing", "Pushed")
        assert objects[-1] == {"progressDetail": {}, "aux": {"Tag": "1", "Digest": digest, "Size": size}}
        assert Digest.of(served(hub, "team/app", "1")) == digest
        assert served(hub, "team/app", "1") == served(source, "team/app", digest)
        assert [hub.blobs[Digest.of(layer)] for layer in layers] == layers
        assert (
            client.inspect_image(f"{hub.domain}/team/app:1")["RepoDigests"].count(f"{hub.domain}/team/app@{digest}")
            == 1
        )
        assert lines(client.push(f"{hub.domain}/team/app:1")) == told(
            "team/app", "1", "Preparing", "Layer already exists"
        )
        other = told("team/other", "1", "Preparing", "Mounted from team/app")
        assert lines(client.push(f"{hub.domain}/team/other:1")) == other
        every = [line.get("status", "") for line in client.push(f"{hub.domain}/team/app", all_tags=True)]
        assert [line for line in every if "digest:" in line] == [f"{n}: digest: {digest} size: {size}" for n in (1, 2)]
        bodies = [request.body for request in hub.seen("registry") if request.method == "PATCH"]
        assert sorted(body for body in bodies if body in layers) == sorted(layers), "each once"
        # And back, by digest: nothing has to be downloaded.
        client.remove_image(f"{hub.domain}/team/app:2")
        pull(client, f"{hub.domain}/team/app@{digest}")
        assert client.check() == []


def test_a_docker_manifest_stays_one(client: Client, tmp_path: Path) -> None:
    with docker_registry(tmp_path) as real, Scripted("none") as hub:
        hub.image("team/app", "1", [gzip.compress(archive(entry("a")))], ("amd64",))
        copy = ["copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", "--format", "v2s2"]
        words = [f"docker://{hub.domain}/team/app:1", f"docker://{real.domain}/x:1"]
        subprocess.run([require("skopeo"), "--insecure-policy", *copy, *words], check=True, capture_output=True)
        pull(client, f"{real.domain}/x:1")
        client.tag(f"{real.domain}/x:1", f"{real.domain}/y:1")
        assert "Mounted from x" in [line.get("status") for line in client.push(f"{real.domain}/y:1")]
        found = [client.manifests(f"{real.domain}/{name}:1")[0] for name in "xy"]
        assert found[0]["Descriptor"] == found[1]["Descriptor"] and found[0]["Raw"] == found[1]["Raw"]
        assert found[0]["Descriptor"]["mediaType"] == DOCKER_MANIFEST


def test_what_was_made_here_is_pushed_compressed_and_keeps_its_id(client: Client, tmp_path: Path) -> None:
    content = archive(entry("big", content=b"0123456789" * 200_000))
    with Scripted("none") as hub:
        name = f"{hub.domain}/team/made:1"
        with (tmp_path / "tar").open("wb+") as stream:
            stream.write(content)
            stream.seek(0)
            list(client.import_image(stream, f"{hub.domain}/team/made", "1", "", [], None))
        before = client.inspect_image(name)
        client.tag(name, f"{hub.domain}/team/made:2")
        first, second, third = (
            [line["status"] for line in client.push(name) if "status" in line][-1]
            for name in (name, name, name[:-1] + "2")
        )
        assert first == second and third.partition(":")[2] == first.partition(":")[2]
        (layer,) = json.loads(served(hub, "team/made", "1"))["layers"]
        assert layer["mediaType"].endswith("+gzip") and layer["size"] < 100_000
        assert gzip.decompress(hub.blobs[layer["digest"]]) == content
        after = client.inspect_image(name)
        assert after["Id"] == before["Id"] and after["RootFS"] == before["RootFS"]
        assert after["RepoDigests"] == [f"{hub.domain}/team/made@{first.split()[2]}"]
        assert client.check() == []
        with Client(tmp_path / "other", hub="embedded") as other:
            pull(other, name)
            assert other.inspect_image(name)["Id"] == before["Id"]


def test_foreign_layers_stay_with_their_publisher(client: Client) -> None:
    layers = [archive(entry("theirs")), archive(entry("ours"))]
    with Scripted() as source, Scripted("none") as hub:
        config = source.blob(image_config(layers), OCI_CONFIG)
        described = [source.blob(layers[0], DOCKER_FOREIGN_LAYER), source.blob(layers[1])]
        source.manifest(
            "team/app", "1", image_manifest(config, described), "application/vnd.oci.image.manifest.v1+json"
        )
        pull(client, f"{source.domain}/team/app:1")
        client.tag(f"{source.domain}/team/app:1", f"{hub.domain}/team/app:1")
        hub.homes.add(("team/app", described[0].digest))  # this registry does not ask for it
        hub.script("registry", f"{described[0].digest}$", status(404), times=9)
        told = [line.get("status") for line in client.push(f"{hub.domain}/team/app:1")]
        assert told.count("Skipped foreign layer") == 1 and told.count("Pushed") == 1
        assert described[0].digest not in hub.blobs


def test_what_is_not_there_to_push(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(client, "hello-world")
    with Scripted("none") as hub:
        client.tag("hello-world", f"{hub.domain}/team/app:1")
        for name, words in (
            (f"{hub.domain}/team/none", f"An image does not exist locally with the tag: {hub.domain}/team/none"),
            (f"{hub.domain}/team/app", f"tag does not exist: {hub.domain}/team/app:latest"),
            (f"{hub.domain}/team/app@sha256:{'0' * 64}", "cannot push a digest reference"),
            ("Bad", "repository name .* must be lowercase"),
        ):
            with pytest.raises(MinirtError, match=words):
                list(client.push(name))
        with pytest.raises(MinirtError, match="can't be used with --all-tags"):
            list(client.push(f"{hub.domain}/team/app:1", all_tags=True))
        with pytest.raises(MinirtError, match="the embedded one, which is read-only: tag it for another registry"):
            list(client.push("hello-world"))
        with pytest.raises(NotFound, match=f"^no such manifest: {hub.domain}/team/app:none$"):
            client.manifests(f"{hub.domain}/team/app:none")
        assert hub.seen("registry", "/uploads/") == []
    client.tag("hello-world", "127.0.0.1:1/x:1")
    with pytest.raises(MinirtError, match=r"cannot reach 127.0.0.1:1: .*refused"):
        list(client.push("127.0.0.1:1/x:1"))


def test_through_a_proxy(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's environment says so; a proxy is asked for the whole URL, and is a registry here."""
    config = tmp_path / "home" / ".config" / "minirt"
    config.mkdir(parents=True)
    (config / "config.toml").write_text('insecure-registries = ["registry.invalid:5000"]')
    with Scripted("none", redirects=False) as hub:
        hub.image("team/app", "1", [archive(entry("a"))], ("amd64",))
        monkeypatch.setenv("HTTP_PROXY", hub.url)
        with Client(root) as client:
            pull(client, "registry.invalid:5000/team/app:1")
            client.tag("registry.invalid:5000/team/app:1", "registry.invalid:5000/team/copy:1")
            assert "digest:" in list(client.push("registry.invalid:5000/team/copy:1"))[-2]["status"]
        assert {request.headers["host"] for request in hub.seen("registry")} == {"registry.invalid:5000"}
        assert ("team/copy", "1") in hub.manifests
        monkeypatch.setenv("NO_PROXY", "registry.invalid")
        asked = len(hub.seen("registry"))
        with (
            Client(tmp_path / "other") as client,
            pytest.raises(MinirtError, match="cannot reach registry.invalid:5000"),
        ):
            pull(client, "registry.invalid:5000/team/app:1")
        assert len(hub.seen("registry")) == asked


def test_manifest_inspect_as_docker_shows_it(client: Client, tmp_path: Path) -> None:
    """Of an index and of one image, whole or in brief; what is not there, in docker's words."""
    docker, layers = require("docker"), [gzip.compress(archive(entry("a")))]
    with Scripted("none") as source, docker_registry(tmp_path) as real:
        source.image("team/app", "1", layers)
        copy = ["copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"]
        for more, tag in (["--all"], "all"), (["--format", "v2s2"], "one"):
            words = [*more, f"docker://{source.domain}/team/app:1", f"docker://{real.domain}/x:{tag}"]
            subprocess.run([require("skopeo"), "--insecure-policy", *copy, *words], check=True, capture_output=True)
        for tag in "all", "one", "none":
            for verbose in [], ["-v"]:
                words = ["manifest", "inspect", "--insecure", *verbose, f"{real.domain}/x:{tag}"]
                theirs, ours = (
                    subprocess.run([*command, *words], capture_output=True, text=True, check=False)
                    for command in ([docker], [MINIRT, "--root", str(client.root)])
                )
                assert ours.returncode == (tag == "none"), ours.stderr
                if tag == "all" and theirs.stderr.startswith("no such manifest"):  # 20.10 knows no OCI index
                    continue
                assert theirs.returncode == ours.returncode
                if tag == "none":
                    assert ours.stderr == f"minirt: {theirs.stderr}"
                elif "OCI" in theirs.stdout or tag == "one" or not verbose:  # 20.10 knows no OCI manifest
                    said, known = json.loads(ours.stdout), json.loads(theirs.stdout)
                    if verbose and "Raw" not in theirs.stdout:  # 20.10 shows no raw bytes
                        for each in said if isinstance(said, list) else [said]:
                            del each["Raw"]
                    assert said == known
                    assert {line[:1] for line in ours.stdout.splitlines()} == {
                        line[:1] for line in theirs.stdout.splitlines()
                    }


def test_what_is_waited_for_is_told(client: Client) -> None:
    """Of a layer and of the name; what was sent is not sent again."""
    pull(client, "hello-world")
    with Scripted("none") as hub:
        client.tag("hello-world", f"{hub.domain}/team/app:1")
        hub.script("registry", "/uploads/$", status(429, Retry_After="1"))
        hub.script("registry", "/manifests/", status(503, Retry_After="1"))
        told = list(client.push(f"{hub.domain}/team/app:1"))
        waits = [line for line in told if line.get("status", "").startswith("Retrying in 1 second")]
        assert [bool(line.get("id")) for line in waits] == [True, False] and told[-1]["aux"]["Tag"] == "1"


def test_on_a_terminal(client: Client) -> None:
    """A line a layer, redrawn in place; in the end each says what became of it."""
    pull(client, "greeter:1.0")
    with Scripted("none") as hub:
        client.tag("greeter:1.0", f"{hub.domain}/team/app")
        hub.servers["registry"].script("/uploads/$", lambda request, reply: time.sleep(0.3) or reply, times=2)
        said, code = on_terminal([MINIRT, "--root", str(client.root), "push", f"{hub.domain}/team/app"], [])
        assert code == 0, said
        plain = [line.strip() for line in re.sub(r"\x1b\[\d*[A-Z]|\r", "", said).split("\n") if line.strip()]
        assert plain[:2] == ["Using default tag: latest", f"The push refers to repository [{hub.domain}/team/app]"]
        assert sum(line.endswith(": Pushed") for line in plain[-3:]) == 2 and "latest: digest: sha256:" in plain[-1]
        assert "\x1b[2A" in said, "the two lines are redrawn"


def test_a_push_that_nobody_waits_for_ends(client: Client) -> None:
    layer = random.Random(2).randbytes(8 << 20)
    with Scripted() as source, Scripted("none") as hub:
        source.image("team/app", "1", [archive(entry("big", content=layer))], ("amd64",))
        pull(client, f"{source.domain}/team/app:1")
        client.tag(f"{source.domain}/team/app:1", f"{hub.domain}/team/app:1")
        hub.servers["registry"].script("/uploads/$", lambda request, reply: time.sleep(1) or reply)
        push = client.push(f"{hub.domain}/team/app:1")
        assert "push refers" in next(push)["status"]
        next(push)
        push.close()  # type: ignore[attr-defined]
        time.sleep(3)
        assert not any(request.method == "PUT" for request in hub.seen("registry"))
        assert ("team/app", "1") not in hub.manifests
        assert "Pushed" in [line.get("status") for line in client.push(f"{hub.domain}/team/app:1")]
