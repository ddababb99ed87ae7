"""The hub speaks the distribution-spec: to any client, in the spec's words, and says nothing else."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dockerd import Dockerd
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from peers import require

import minirt
from minirt.errors import RegistryError
from minirt.hub import toolbox
from minirt.hub.hello import MESSAGE
from minirt.hub.names import REPOSITORIES
from minirt.hub.server import Hub
from minirt.image.descriptor import OCI_INDEX, OCI_MANIFEST
from minirt.image.digest import Digest
from minirt.image.platform import Platform

ZERO = "sha256:" + "0" * 64
OCTETS = "application/octet-stream"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder) as hub:
        yield hub


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def code(self) -> str:
        """The error code; also checks that the error is as the spec wants it, in one line."""
        (error,) = json.loads(self.body)["errors"]
        assert self.headers["Content-Type"] == "application/json" and "\n" not in error["message"]
        return str(error["code"])


def connect(hub: Hub) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", hub.server_address[1], timeout=20)


def ask(hub: Hub, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = connect(hub)
    try:
        connection.request(method, path, headers=headers)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def layer_of(hub: Hub, name: str) -> str:
    manifest = json.loads(ask(hub, f"/v2/{name}").body)
    if "manifests" in manifest:
        manifest = json.loads(ask(hub, f"/v2/{name.rpartition('/')[0]}/{manifest['manifests'][0]['digest']}").body)
    return str(manifest["layers"][-1]["digest"])


def test_every_image_by_tag_by_digest_and_blob_by_blob(hub: Hub) -> None:
    assert ask(hub, "/v2/").status == 200
    for repository, tags in REPOSITORIES.items():
        for name in (repository, repository.removeprefix("library/")):
            for tag in tags:
                todo, kind = [f"manifests/{tag}"], {}
                while todo:
                    path = f"/v2/{name}/{todo.pop()}"
                    got, head = ask(hub, path), ask(hub, path, "HEAD")
                    digest = Digest.of(got.body)
                    assert (got.status, got.headers["Docker-Content-Digest"]) == (200, digest)
                    assert path.endswith(digest) or path.endswith(tag)
                    assert got.headers["Content-Type"] == kind.get(path.rpartition("/")[2], got.headers["Content-Type"])
                    assert (head.status, head.body) == (200, b"")
                    for field in ("Content-Length", "Content-Type", "Docker-Content-Digest"):
                        assert head.headers[field] == got.headers[field]
                    if got.headers["Content-Type"] in (OCI_INDEX, OCI_MANIFEST):
                        document = json.loads(got.body)
                        todo += [f"manifests/{d['digest']}" for d in document.get("manifests", [])]
                        blobs = [*document.get("layers", []), *filter(None, [document.get("config")])]
                        todo += [f"blobs/{d['digest']}" for d in blobs]
                        kind |= {d["digest"]: OCTETS for d in blobs} | {
                            d["digest"]: OCI_MANIFEST for d in document.get("manifests", [])
                        }


def test_who_knows_only_the_digest_is_served_by_a_fresh_hub(hub: Hub, tmp_path: Path) -> None:
    digest = ask(hub, "/v2/hello-world/manifests/latest").headers["Docker-Content-Digest"]
    layer = layer_of(hub, "hello-world/manifests/latest")
    for number, path in enumerate((f"manifests/{digest}", f"blobs/{layer}")):
        with Hub(tmp_path / str(number)) as fresh:
            assert ask(fresh, f"/v2/hello-world/{path}").status == 200


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/nothing/manifests/latest", 404, "NAME_UNKNOWN"),
        ("/v2/nothing/tags/list", 404, "NAME_UNKNOWN"),
        ("/v2/nothing/blobs/" + ZERO, 404, "NAME_UNKNOWN"),
        ("/v2/library/library/toolbox/tags/list", 404, "NAME_UNKNOWN"),
        ("/v2/../../hello-world/tags/list", 404, "NAME_UNKNOWN"),
        ("/v2/hello-world/manifests/1.0", 404, "MANIFEST_UNKNOWN"),
        ("/v2/hello-world/manifests/" + ZERO, 404, "MANIFEST_UNKNOWN"),
        ("/v2/hello-world/manifests/sha512:" + "0" * 128, 404, "MANIFEST_UNKNOWN"),
        ("/v2/hello-world/manifests/..%2f..%2findex.json", 404, "NAME_UNKNOWN"),
        ("/v2/hello-world/manifests/sha256:..%2f", 404, "NAME_UNKNOWN"),
        ("/v2/hello-world/manifests/sha256:..", 400, "DIGEST_INVALID"),
        ("/v2/hello-world/blobs/" + ZERO, 404, "BLOB_UNKNOWN"),
        ("/v2/hello-world/blobs/latest", 400, "DIGEST_INVALID"),
        ("/v2/hello-world/blobs/..", 400, "DIGEST_INVALID"),
        ("/v2/hello-world/blobs/sha256:" + "0" * 63 + "G", 400, "DIGEST_INVALID"),
        ("/v2/hello-world/blobs/md5:" + "0" * 32, 400, "DIGEST_INVALID"),
        ("/v2/hello-world/referrers/" + ZERO, 404, "NAME_UNKNOWN"),
        ("/v2/hello-world/tags/list?n=-1", 400, "PAGINATION_NUMBER_INVALID"),
        ("/v2/_catalog?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        ("/", 404, "NAME_UNKNOWN"),
        ("/index.json", 404, "NAME_UNKNOWN"),
        ("/v1/search", 404, "NAME_UNKNOWN"),
    ],
)
def test_errors_are_the_specs(hub: Hub, path: str, status: int, code: str) -> None:
    answer = ask(hub, path)
    assert (answer.status, answer.code) == (status, code)
    head = ask(hub, path, "HEAD")
    assert (head.status, head.body) == (status, b"")


def test_a_layer_is_no_manifest(hub: Hub) -> None:
    for name in ("hello-world/manifests/latest", "toolbox/manifests/latest"):
        answer = ask(hub, f"/v2/{name.rpartition('/')[0]}/{layer_of(hub, name)}")
        assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_writing_is_refused(hub: Hub, folder: Path, method: str) -> None:
    before = sorted(folder.rglob("*"))
    for path in ("/v2/hello-world/blobs/uploads/", "/v2/hello-world/manifests/latest", "/v2/nothing/manifests/x"):
        answer = ask(hub, path, method)
        assert (answer.status, answer.code, answer.headers["Allow"]) == (405, "UNSUPPORTED", "GET, HEAD")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-", 206, slice(0, None)),
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=100-199", 206, slice(100, 200)),
        ("bytes=100-99999999", 206, slice(100, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=-99999999", 206, slice(0, None)),
        ("bytes=5-4", 200, slice(0, None)),
        ("bytes=-", 200, slice(0, None)),
        ("bytes=0-1,3-4", 200, slice(0, None)),
        ("lines=1-2", 200, slice(0, None)),
        ("bytes=99999999-", 416, None),
        ("bytes=-0", 416, None),
    ],
)
def test_ranges(hub: Hub, asked: str, status: int, part: slice | None) -> None:
    path = f"/v2/hello-world/blobs/{layer_of(hub, 'hello-world/manifests/latest')}"
    whole = ask(hub, path).body
    answer = ask(hub, path, Range=asked)
    assert answer.status == status
    if part is None:
        assert (answer.code, answer.headers["Content-Range"]) == ("RANGE_INVALID", f"bytes */{len(whole)}")
        return
    assert answer.body == whole[part] and answer.headers["Accept-Ranges"] == "bytes"
    start, stop, _ = part.indices(len(whole))
    expected = f"bytes {start}-{stop - 1}/{len(whole)}" if status == 206 else None
    assert answer.headers["Content-Range"] == expected


def test_a_download_cut_anywhere_goes_on_where_it_stopped(hub: Hub) -> None:
    path = f"/v2/hello-world/blobs/{layer_of(hub, 'hello-world/manifests/latest')}"
    whole = ask(hub, path).body
    start = ask(hub, path, Range=f"bytes={len(whole) - 1}-")
    assert start.body == whole[-1:]
    assert ask(hub, path, Range=f"bytes={len(whole)}-").status == 416


def test_lists_come_in_pages(hub: Hub) -> None:
    def page(path: str) -> tuple[list[str], str | None]:
        answer = ask(hub, path)
        document = json.loads(answer.body)
        return document.get("tags", document.get("repositories")), answer.headers["Link"]

    assert page("/v2/greeter/tags/list") == (["1.0", "2.0"], None)
    assert page("/v2/greeter/tags/list?n=1") == (["1.0"], '</v2/greeter/tags/list?n=1&last=1.0>; rel="next"')
    assert page("/v2/greeter/tags/list?n=1&last=1.0") == (["2.0"], None)
    assert page("/v2/greeter/tags/list?last=2.0") == ([], None)
    assert page("/v2/greeter/tags/list?n=0") == ([], None)
    assert json.loads(ask(hub, "/v2/greeter/tags/list").body)["name"] == "greeter"
    found, path = [], "/v2/_catalog?n=1"
    while path:
        names, link = page(path)
        found += names
        path = link[1 : link.index(">")] if link else ""
    assert found == sorted(REPOSITORIES)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:5000", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:80", 200),
        ("evil.example", 403), ("evil.example:5000", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil", 403),
        ("10.0.0.1", 403), ("192.168.1.7:80", 403), ("", 403), ("[", 403), ("a@127.0.0.1", 403), ("127.1", 403),
    ],
)  # fmt: skip
def test_another_host_name_gets_nothing(hub: Hub, host: str, status: int) -> None:
    """DNS rebinding: a page's own name now leads to 127.0.0.1, and its scripts ask us in that name."""
    for method in ("GET", "HEAD", "POST"):
        answer = ask(hub, "/v2/", method, Host=host)
        assert answer.status == (405 if status == 200 and method == "POST" else status)


def test_listening_everywhere_any_address_will_do_but_no_name(folder: Path) -> None:
    with Hub(folder, host="0.0.0.0") as hub:
        assert ask(hub, "/v2/", Host="192.168.1.7:80").status == 200
        assert ask(hub, "/v2/", Host="evil.example").status == 403


def talk(hub: Hub, sent: bytes) -> bytes:
    """Send bytes as they are, read until the hub closes."""
    with socket.create_connection(hub.server_address[:2], timeout=10) as line:
        line.sendall(sent)
        return b"".join(iter(lambda: line.recv(65536), b""))


def test_a_request_without_or_with_two_hosts_is_refused(hub: Hub) -> None:
    for hosts in (b"", b"Host: localhost\r\nHost: localhost\r\n"):
        assert b" 403 " in talk(hub, b"GET /v2/ HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n").split(b"\r\n")[0]


def test_a_body_does_not_pass_for_the_next_request(hub: Hub) -> None:
    inner = b"GET /v2/_catalog HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    for method in (b"GET", b"PUT"):
        for framing in (b"Content-Length: %d\r\n" % len(inner), b"Transfer-Encoding: chunked\r\n"):
            got = talk(hub, method + b" /v2/ HTTP/1.1\r\nHost: localhost\r\n" + framing + b"\r\n" + inner)
            assert got.count(b"HTTP/1.1 ") == 1 and b"repositories" not in got


def test_head_sends_no_body(hub: Hub) -> None:
    for path in (b"/v2/", b"/v2/nothing/tags/list", b"/v2/hello-world/manifests/latest"):
        got = talk(hub, b"HEAD " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert got.endswith(b"\r\n\r\n") and got.count(b"\r\n\r\n") == 1


def test_one_connection_serves_many_requests(hub: Hub) -> None:
    connection = connect(hub)
    sockets = set()
    layer = layer_of(hub, "hello-world/manifests/latest")
    for path in ("/v2/", "/v2/nothing/tags/list", f"/v2/hello-world/blobs/{layer}", "/v2/hello-world/manifests/latest"):
        for method in ("HEAD", "GET"):
            connection.request(method, path)
            connection.getresponse().read()
            assert connection.sock is not None
            sockets.add(connection.sock.fileno())
    connection.close()
    assert len(sockets) == 1


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"").replace(b" ", b"")))
@example(b"http://[")
@example(b"//[::")
@example(b"/v2/hello-world/tags/list?n=1&last=%ff")
@example(b"/v2/%00/tags/list")
def test_any_request_line_gets_an_answer(hub: Hub, capfd: pytest.CaptureFixture[str], path: bytes) -> None:
    got = talk(hub, b"GET " + (path or b"/") + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    simple = len(path.decode("latin-1").split()) != 1  # white space in it: HTTP/0.9, which has no head, or no HTTP
    assert got.startswith(b"HTTP/1.1 ") or (simple and got)
    assert capfd.readouterr().err == ""


def test_a_throttled_hub_is_as_slow_as_it_says_for_all_together(hub: Hub, folder: Path) -> None:
    layer = layer_of(hub, "hello-world/manifests/latest")
    size = len(ask(hub, f"/v2/hello-world/blobs/{layer}").body)

    with Hub(folder, throttle=size * 4) as slow:
        begin = time.monotonic()
        readers = [threading.Thread(target=ask, args=(slow, f"/v2/hello-world/blobs/{layer}")) for _ in range(3)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert 0.6 < time.monotonic() - begin < 2.5  # 3/4 second, and a loaded machine
        connection = connect(slow)
        connection.request("GET", f"/v2/hello-world/blobs/{layer}")
        begin, reads = time.monotonic(), []
        response = connection.getresponse()
        while response.read1(65536):
            reads.append(time.monotonic() - begin)
        connection.close()
        assert len(reads) > 3 and reads[0] < 0.15, "it flows, it does not come in one lump"


def test_close_ends_everything_even_in_mid_answer(folder: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    layer = layer_of(hub, "hello-world/manifests/latest")
    slow = Hub(folder, throttle=100).start()
    idle, busy = connect(slow), connect(slow)
    idle.request("GET", "/v2/")
    idle.getresponse().read()
    busy.request("GET", f"/v2/hello-world/blobs/{layer}")
    response = busy.getresponse()
    begin = time.monotonic()
    slow.close()
    slow.close()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        response.read()
    with pytest.raises((http.client.BadStatusLine, ConnectionError)):
        idle.request("GET", "/v2/")
        idle.getresponse()
    with pytest.raises(ConnectionError):
        connect(slow).connect()
    assert time.monotonic() - begin < 2
    idle.close()
    busy.close()
    assert capfd.readouterr().err == ""


def test_a_hub_never_started_closes(folder: Path) -> None:
    Hub(folder).close()


def test_a_port_in_use_is_said_so(hub: Hub, folder: Path) -> None:
    with pytest.raises(RegistryError, match=r"the hub cannot listen on 127\.0\.0\.1:\d+: "):
        Hub(folder, port=hub.server_address[1])
    with pytest.raises(RegistryError, match="cannot listen"):
        Hub(folder, port=70000)


def test_what_this_machine_cannot_make_is_told_the_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolbox, "PATH", str(tmp_path))
    with Hub(tmp_path / "hub") as hub:
        answer = ask(hub, "/v2/toolbox/manifests/latest")
        assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN") and b"use hello-world" in answer.body
        assert ask(hub, "/v2/hello-world/manifests/latest").status == 200
    (tmp_path / "file").write_text("")
    with Hub(tmp_path / "file") as hub:
        answer = ask(hub, "/v2/hello-world/manifests/latest")
        assert (answer.status, answer.code) == (500, "UNKNOWN") and b"cannot write" in answer.body


# --- other people's clients -------------------------------------------------------------------------------------------


def test_skopeo_copies_and_inspects(hub: Hub, tmp_path: Path) -> None:
    skopeo = require("skopeo")
    host = hub.url.removeprefix("http://")
    for name in ("hello-world", "toolbox", "greeter:1.0", "library/greeter:2.0"):
        source, target = f"docker://{host}/{name}", f"oci:{tmp_path / 'oci'}:{name.replace('/', '.')}"
        copy = [skopeo, "--insecure-policy", "copy", "-q", "--all", "--src-tls-verify=false", source, target]
        done = subprocess.run(copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        path, _, tag = name.partition(":")
        served = ask(hub, f"/v2/{path}/manifests/{tag or 'latest'}").headers["Docker-Content-Digest"]
        raw = subprocess.run([skopeo, "inspect", "--raw", target], capture_output=True, check=True).stdout
        assert Digest.of(raw) == served
    done = subprocess.run(
        [skopeo, "inspect", "--tls-verify=false", f"docker://{host}/greeter:1.0"], capture_output=True, check=True
    )
    assert json.loads(done.stdout)["RepoTags"] == ["1.0", "2.0"]


def test_podman_pulls(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tempfile.TemporaryDirectory(prefix="hub-")  # podman wants its runroot within 50 characters
    podman = [require("podman"), "--root", str(tmp_path / "root"), "--runroot", f"{short.name}/run"]
    monkeypatch.setenv("XDG_RUNTIME_DIR", short.name)
    podman += ["--storage-driver", "vfs", "--events-backend", "none"]
    host = hub.url.removeprefix("http://")
    try:
        for name in ("hello-world", "greeter:1.0", "greeter:2.0"):
            done = subprocess.run(
                [*podman, "pull", "-q", "--tls-verify=false", f"{host}/{name}"], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
        done = subprocess.run([*podman, "image", "inspect", f"{host}/greeter:2.0"], capture_output=True, check=True)
        (image,) = json.loads(done.stdout)
        assert image["Config"]["Cmd"] == ["greeter"] and len(image["RootFS"]["Layers"]) == 2
        assert image["Digest"] == ask(hub, "/v2/greeter/manifests/2.0").headers["Docker-Content-Digest"]
        other = [*podman, "pull", "-q", "--arch", "arm64", "--tls-verify=false", f"{host}/hello-world"]
        assert subprocess.run(other, capture_output=True).returncode == 0
    finally:
        subprocess.run([*podman, "rmi", "-a", "-f"], capture_output=True)
        for pause in Path(short.name).rglob("pause.pid"):  # a plain user's podman leaves a process behind
            os.kill(int(pause.read_text()), signal.SIGKILL)
        short.cleanup()


def test_buildah_pulls(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tempfile.TemporaryDirectory(prefix="hub-")
    buildah = [require("buildah"), "--root", str(tmp_path / "root"), "--runroot", f"{short.name}/run"]
    buildah += ["--storage-driver", "vfs"]
    monkeypatch.setenv("XDG_RUNTIME_DIR", short.name)
    host = hub.url.removeprefix("http://")
    with short:
        for name in "hello-world:latest", "greeter:2.0":
            pull = [*buildah, "pull", "-q", "--tls-verify=false", f"{host}/{name}"]
            done = subprocess.run(pull, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            manifest = json.loads(ask(hub, f"/v2/{name.replace(':', '/manifests/')}").body)
            if "manifests" in manifest:
                (digest,) = (
                    each["digest"] for each in manifest["manifests"]
                    if Platform.from_json(each["platform"]) == Platform.host()
                )  # fmt: skip
                manifest = json.loads(ask(hub, f"/v2/{name.partition(':')[0]}/manifests/{digest}").body)
            assert done.stdout.strip() == manifest["config"]["digest"].removeprefix("sha256:"), "its id"
        subprocess.run([*buildah, "rmi", "-a", "-f"], capture_output=True)


SERVE = """
import sys; from pathlib import Path
from minirt.hub.server import Hub
with Hub(Path(sys.argv[1])) as hub:
    print(hub.url.removeprefix("http://"), flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_docker_pulls_and_runs(dockerd: Dockerd, hub: Hub, tmp_path: Path) -> None:
    source = str(Path(minirt.__file__).parents[1])
    command = dockerd.inside("env", f"PYTHONPATH={source}", sys.executable, "-c", SERVE, str(tmp_path / "hub"))
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin and server.stdout
    try:
        host = server.stdout.readline().strip()
        said = dockerd.docker("pull", f"{host}/hello-world").stdout.decode()
        assert "Digest: " + ask(hub, "/v2/hello-world/manifests/latest").headers["Docker-Content-Digest"] in said
        assert b"Already exists" not in dockerd.docker("pull", f"{host}/greeter:1.0").stdout
        assert b"Already exists" in dockerd.docker("pull", f"{host}/library/greeter:2.0").stdout
        run = ["run", "--rm", "--network", "none"]
        assert dockerd.docker(*run, f"{host}/hello-world").stdout.decode() == MESSAGE
        greeting = dockerd.docker(*run, f"{host}/library/greeter:2.0").stdout
        assert greeting == b"greeter 2.0 with greetlib 2.0.0: Hello, world\n"
    finally:
        server.stdin.close()
        server.wait(20)
        for name in ("hello-world", "greeter:1.0", "library/greeter:2.0"):
            dockerd.docker("rmi", "-f", f"{host}/{name}", check=False)
