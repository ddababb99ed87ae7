"""Registries that mean harm, below and above HTTP: the client gives up in bounded time and memory, with one clear line.

Whole pulls too: through the engine, into a store that verifies afterwards.
"""

from __future__ import annotations

import email.utils
import functools
import gzip
import json
import random
import re
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from raw import Raw, Speech, dripping, flooding, saying
from registries import BASIC, Fault, Reply, Request, Scripted, Server, cut, header, image_config, image_manifest, status
from tars import archive, entry

from minirt.cli import progress
from minirt.engine import Engine
from minirt.errors import MinirtError, RegistryError, VerificationError
from minirt.image.descriptor import (
    DOCKER_FOREIGN_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
)
from minirt.image.digest import Digest
from minirt.registry.client import Registry
from minirt.registry.credentials import Credentials
from minirt.registry.patience import retry_after, telling
from minirt.registry.settings import Settings

APP = "library/app"
CONTENT = random.Random(1).randbytes(3_000_000)
BLOB = Descriptor(OCI_LAYER, Digest.of(CONTENT), len(CONTENT))
QUICK = {"stall_timeout": 0.3, "connect_timeout": 2, "attempts": 2, "backoff": 0.01}
Open = Callable[..., Registry]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    opened: list[Registry] = []
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def open_client(domain: str, **options: object) -> Registry:
        words: dict[str, object] = {**QUICK, "credentials": Credentials(tmp_path / "absent.json"), **options}
        settings = words.pop("settings", Settings())
        opened.append(Registry(domain, settings, **words))  # type: ignore[arg-type]
        return opened[-1]

    yield open_client
    for registry in opened:
        registry.close()


# --- below HTTP -------------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
WIRE: dict[str, tuple[Speech, str]] = {
    "a head that drips": (dripping(OK, b"X-Slow: aaaaaaaaaaaaaaaa\r\n"), "does not answer"),
    "a status line that drips": (dripping(b"HTTP/1.1 200 ", b"O"), "does not answer"),
    "headers without end": (flooding(OK, b"X-More: yes\r\n"), "broke the connection off"),
    "one header without end": (flooding(OK + b"X-Long: ", b"a"), "broke the connection off"),
    "continue without end": (flooding(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "does not answer"),
    "headers of continue without end": (flooding(b"HTTP/1.1 100 C\r\n", b"A: b\r\n"), "broke the connection off"),
    "a chunk's size without end": (flooding(CHUNKED, b"0"), "broke off"),
    "a chunk's size that drips": (dripping(CHUNKED, b"0"), "stalled"),
    "an extension that drips": (dripping(CHUNKED + b"5;", b"a"), "stalled"),
    "trailers without end": (flooding(CHUNKED + b"2\r\n{}\r\n0\r\n", b"T: x\r\n"), "stalled|broke off"),
    "trailers that drip": (dripping(CHUNKED + b"2\r\n{}\r\n0\r\n", b"T: x\r\n"), "stalled"),
    "chunks without end": (flooding(CHUNKED, b"400\r\n" + b" " * 1024 + b"\r\n"), "larger than 4194304 bytes"),
    "a body without end": (flooding(OK + b"\r\n", b" " * 1024), "larger than 4194304 bytes"),
    "a body that drips": (dripping(OK + b"Content-Length: 100000\r\n\r\n", b" "), "stalled"),
    "no status": (saying(b"hello\r\n\r\n"), "broke the connection off"),
    "nothing": (saying(b""), "broke the connection off"),
    "a length that is none": (saying(OK + b"Content-Length: \xb2\r\n\r\n{}"), "media type|JSON"),
    "a length of many digits": (saying(OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}"), "media type|JSON"),
    "a negative length": (saying(OK + b"Content-Length: -5\r\n\r\n{}"), "media type|JSON"),
    "two lengths": (
        saying(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x"), "media type|JSON|broke|unmatching",
    ),
    "a redirect to nowhere": (saying(b"HTTP/1.1 302 F\r\nLocation: http://1.0.]:1\r\n\r\n"), "malformed URL"),
    "a redirect to a port that is none": (
        saying(b"HTTP/1.1 302 F\r\nLocation: http://a:b/\r\nContent-Length: 0\r\n\r\n"), "malformed URL",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WIRE)
def test_what_comes_over_the_wire(client: Open, name: str) -> None:
    speech, reason = WIRE[name]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with Raw(speech) as server, pytest.raises(MinirtError, match=reason) as caught:
        client(server.domain).manifest(APP, "1")
    assert time.monotonic() - started < 6  # two tries of 0.3 seconds, on a busy machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(b" " * (200 << 20), 1)


@pytest.mark.parametrize("kind", ["gzip", "x-gzip", "deflate", "br", "zstd"])
def test_a_document_that_comes_compressed_is_not_inflated(client: Open, kind: str) -> None:
    """A bomb of 400 to 1, or a mistake: no encoding was asked for."""
    bomb = _bomb()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Scripted(auth="none") as hub:
        hub.image(APP, "1", [b"x"])
        hub.script("registry", "/manifests/", lambda q, r: header("Content-Encoding", kind)(q, replace(r, body=bomb)))
        with pytest.raises(VerificationError, match=rf"manifest comes compressed \({kind}\), which was not asked for"):
            client(hub.domain).manifest(APP, "1")
        assert hub.seen("registry", "/manifests/")[0].headers["accept-encoding"] == "identity"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_blob_whose_storage_says_it_is_compressed_is_taken_as_it_is(client: Open) -> None:
    """Some storage marks a .tar.gz so: its bytes are still what the digest is of."""
    with Scripted(auth="none") as hub:
        hub.blob(CONTENT)
        hub.script("storage", "", header("Content-Encoding", "gzip"))
        assert b"".join(client(hub.domain).blob(APP, BLOB)) == CONTENT


# --- documents and descriptors ----------------------------------------------------------------------------------------


def test_a_config_that_is_another_is_refused(root: Path, hub: Scripted) -> None:
    name = one(hub, [WHOLE])
    hub.script("storage", f"(?<!{Digest.of(WHOLE).hex})$", lambda q, r: replace(r, body=b"!" + r.body[1:]), times=9)
    with pytest.raises(VerificationError, match="image config does not match its digest"):
        pull(root, name)
    engine = Engine(root)
    assert engine.images.summaries() == [] and list(engine.store.check()) == []


@pytest.mark.parametrize("change", ["nested", "size", "type"])
def test_indexes_do_not_nest_and_say_what_they_hold(root: Path, hub: Scripted, change: str) -> None:
    one(hub, [WHOLE])
    content, _ = hub.manifests[APP, "1"]
    entries = json.loads(content)["manifests"]
    if change == "nested":
        inner = {"mediaType": OCI_INDEX, "digest": str(Digest.of(content)), "size": len(content)}
        entries = [inner | {"platform": entry["platform"]} for entry in entries]
    elif change == "size":
        entries = [entry | {"size": entry["size"] + 1} for entry in entries]
    else:
        entries = [entry | {"mediaType": DOCKER_MANIFEST} for entry in entries]
    outer = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    hub.manifest(APP, "2", outer, OCI_INDEX)
    with pytest.raises(VerificationError, match="an index inside an index|is not what its index says"):
        pull(root, f"{hub.domain}/{APP}:2")


def test_plain_http_is_for_loopback_and_for_whom_the_user_lists(
    client: Open, hub: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """registry.example is this machine here, by a name that does not say so."""
    import socket

    real, port = socket.getaddrinfo, hub.domain.rpartition(":")[2]

    def resolve(host: str, *words: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host == "registry.example" else host, *words, **options)

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    hub.image(APP, "1", [b"x"])
    name = f"registry.example:{port}"
    with pytest.raises(RegistryError, match="registry.example"):
        client(name).manifest(APP, "1")
    assert not hub.seen("registry")
    assert client(name, settings=Settings(insecure_registries=(name,))).manifest(APP, "1")


# --- credentials ------------------------------------------------------------------------------------------------------


def test_a_foreign_layers_url_is_not_fetched(client: Open, root: Path) -> None:
    """Nor is anything shown to who stands there (CVE-2020-15157): the registry is asked for the digest, or nobody."""
    with Scripted(auth="none") as hub:
        content = archive(entry("x"))
        url = f"{hub.servers['storage'].url}/layer"
        described = Descriptor(DOCKER_FOREIGN_LAYER, Digest.of(content), len(content)).to_json() | {"urls": [url]}
        config = hub.blob(image_config([content]), OCI_CONFIG)
        document = json.loads(image_manifest(config, [])) | {"layers": [described]}
        hub.manifest(APP, "1", json.dumps(document).encode(), OCI_MANIFEST)
        with pytest.raises(MinirtError, match="blob sha256:.* not found: blob unknown"):
            list(Engine(root).pull(f"{hub.domain}/{APP}:1"))
        assert hub.seen("registry", "/blobs/") and not [r for r in hub.seen("storage") if "layer" in r.path]


def test_a_proxys_password_stays_with_that_proxy(client: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2023-32681: not with the host behind a redirect, and not with the other scheme's proxy."""
    tunnel = Raw(saying(b"HTTP/1.1 502 no\r\nContent-Length: 0\r\n\r\n"))

    def answer(request: Request) -> Reply:
        if "blobs" in request.path:
            return Reply(307, {"Location": "https://storage.example/blob"})
        return Reply(200, {"Content-Type": "application/json"}, b"{}")

    proxy = Server(answer)
    monkeypatch.setenv("http_proxy", f"http://user:first@{proxy.domain}")
    monkeypatch.setenv("https_proxy", f"http://user:second@{tunnel.domain}")
    registry = client("registry.example:80", settings=Settings(insecure_registries=("registry.example:80",)))
    with tunnel, pytest.raises(MinirtError, match="storage.example"):
        b"".join(registry.blob(APP, BLOB))
    proxy.close()
    first, second = (_basic(f"user:{word}") for word in ("first", "second"))
    assert {request.headers["proxy-authorization"] for request in proxy.requests} == {first}
    # The first two are https to the registry itself, which was tried before http.
    assert tunnel.heads and all(head.startswith(b"CONNECT ") for head in tunnel.heads)
    assert b"CONNECT storage.example:443" in tunnel.heads[-1]
    for head in tunnel.heads:
        assert second.encode() in head and first.encode() not in head and b"\nauthorization" not in head.lower()


def _basic(pair: str) -> str:
    import base64

    return "Basic " + base64.b64encode(pair.encode()).decode()


def test_credentials_are_not_for_a_redirect_of_the_first_answer(client: Open, tmp_path: Path) -> None:
    """Nor may the challenge of where it leads to ask for them."""
    (tmp_path / "absent.json").write_text(json.dumps({"auths": {}}))
    with Scripted(auth="basic") as other, Scripted(auth="basic") as hub:
        auths = {name: {"username": "ada", "password": "correct horse"} for name in (hub.domain, other.domain)}
        (tmp_path / "absent.json").write_text(json.dumps({"auths": auths}))
        hub.script("registry", "/v2/", status(307, Location=f"{other.url}/v2/"), times=9)
        with pytest.raises(RegistryError, match="is not a registry: /v2/ answers 401"):
            client(hub.domain).manifest(APP, "1")
        assert other.seen("registry") and not [
            r for r in other.seen("registry") if r.headers.get("authorization") == BASIC
        ]


# --- waiting, and who is told -----------------------------------------------------------------------------------------


def test_retry_after_in_both_forms() -> None:
    for text, expected in (("5", 5), (" 7 ", 7), ("", None), ("-3", None), ("1e3", None), ("²", None), ("soon", None)):
        assert retry_after(text) == expected, text
    for seconds in (-100, 0, 20, 4000):
        found = retry_after(email.utils.formatdate(time.time() + seconds, usegmt=True))
        assert found is not None and max(0, seconds) - 2 <= found <= max(0, seconds)
    assert 18 <= (retry_after(email.utils.formatdate(time.time() + 20)) or 0) <= 20  # -0000 is GMT, wherever we are


@pytest.mark.parametrize("code", [429, 503])
def test_a_date_to_wait_for_is_waited_for_and_told(client: Open, code: int) -> None:
    told: list[str] = []
    with Scripted(auth="none") as hub:
        hub.image(APP, "1", [b"x"])
        started = time.monotonic()
        date = email.utils.formatdate(time.time() + 3, usegmt=True)
        hub.script("registry", "/manifests/", status(code, Retry_After=date))
        with telling(told.append):
            client(hub.domain).manifest(APP, "1")
        assert 1.9 <= time.monotonic() - started < 20
        far = email.utils.formatdate(time.time() + 3600, usegmt=True)
        hub.script("registry", "/manifests/", status(code, Retry_After=far), times=9)
        before = len(hub.seen("registry"))
        with pytest.raises(RegistryError):
            client(hub.domain).manifest(APP, "1")
        assert len(hub.seen("registry", "/manifests/")) == before  # asked once more, and not waited for an hour
    seconds = [int(re.match(r"Retrying in (\d+) seconds?: ", line)[1]) for line in told]  # type: ignore[index]
    assert seconds == sorted(seconds, reverse=True) and seconds[-1] == 1 and len(seconds) <= 4, told


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    from minirt.registry.patience import Patience, Transient

    slept: list[float] = []
    clock = iter(range(10**6))
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    asked: list[tuple[float, float]] = []
    monkeypatch.setattr("random.uniform", lambda low, high: asked.append((low, high)) or high)
    patience = Patience(9, 0.5)
    with pytest.raises(Transient, match="x"):
        while True:
            patience.wait(Transient("x"))
    assert asked == [(0, pause) for pause in (0.5, 1, 2, 4, 8, 8, 8, 8)]


# --- whole pulls over bad links ---------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[Scripted]:
    with Scripted(auth="none") as scripted:
        yield scripted


def layer(size: int, seed: int = 0) -> bytes:
    return archive(entry(f"f{seed}", content=random.Random(seed).randbytes(size)))


def one(hub: Scripted, layers: list[bytes]) -> str:
    hub.image(APP, "1", layers)
    return f"{hub.domain}/{APP}:1"


def pull(root: Path, name: str) -> list[str]:
    engine = Engine(root)
    said = [f"{line.get('id', '')} {line['status']}" for line in engine.pull(name) if line]
    assert list(engine.store.check()) == []
    return said


def sent(hub: Scripted, size: int, cut_at: int) -> int:
    """Bytes of the blob that storage sent, when each answer ends after `cut_at`."""
    total = 0
    for request in hub.seen("storage"):
        start = int(request.headers.get("range", "bytes=0-")[6:-1])
        total += min(cut_at, size - start)
    return total


@pytest.mark.parametrize("how", ["reset", "end"])
def test_a_link_that_drops_every_two_megabytes_costs_each_byte_once(root: Path, hub: Scripted, how: str) -> None:
    """Counted where they are sent. A reset throws away what the kernels still hold; an end does not."""
    big, step = layer(24_000_000), 2_000_000
    hub.blob(big)
    name = one(hub, [big])
    fault = cut(step) if how == "reset" else ended(step)
    hub.script("storage", Digest.of(big), fault, times=999)
    said = pull(root, name)
    assert Digest.of(big).hex[:12] + " Pull complete" in said
    total = sent(hub, len(big), step)
    assert total <= len(big) * (1.25 if how == "reset" else 1.0) + step, (total, len(big))
    assert len([line for line in said if "Retrying in 1 second: the transfer from " in line]) >= len(big) // step - 2


def ended(after: int) -> Fault:
    """The connection ends, as if that had been all."""

    def fault(request: Request, reply: Reply) -> Reply:
        headers = {**reply.headers, "Content-Length": str(len(reply.body)), "Connection": "close"}
        return replace(reply, headers=headers, body=reply.body[:after])

    return fault


FAULTS: dict[str, Fault] = {
    "ignores Range": lambda q, r: Reply(200, {}, WHOLE) if "range" in q.headers else cut(1_500_000)(q, r),
    "answers 416": lambda q, r: Reply(416) if "range" in q.headers else r,
    "changes its ETag": lambda q, r: header("ETag", f'"{random.random()}"')(q, ended(1_500_000)(q, r)),
    "has a weak ETag": lambda q, r: header("ETag", 'W/"1"')(q, ended(1_000_000)(q, r)),
}
WHOLE = layer(3_000_000)


@pytest.mark.parametrize("name", FAULTS)
def test_a_resumed_blob_is_whole_whatever_the_server_thinks_of_ranges(root: Path, hub: Scripted, name: str) -> None:
    reference = one(hub, [WHOLE])
    hub.script("storage", "", cut(1_500_000))
    hub.script("storage", "", FAULTS[name], times=99)
    if name == "answers 416":
        hub.script("storage", "", cut(1_500_000))
    assert any(line.endswith("Pull complete") for line in pull(root, reference))
    asked = [request.headers for request in hub.seen("storage")]
    assert not [headers for headers in asked if "if-range" in headers]  # a digest is the better validator
    assert len(asked) <= 6


def test_a_blob_that_is_shorter_than_promised_ends_a_416(client: Open, hub: Scripted) -> None:
    hub.blobs[BLOB.digest] = CONTENT[:1_000_000]
    with pytest.raises(VerificationError, match="sends 1000000 bytes where 3000000 are left"):
        b"".join(client(hub.domain).blob(APP, BLOB, 1_500_000))


def test_other_content_behind_the_same_digest_is_fetched_anew_and_refused(root: Path, hub: Scripted) -> None:
    """The file changed while it was read: nothing of the mixture is kept, and the honest one comes the next time."""
    reference = one(hub, [WHOLE])
    hub.script("storage", "", cut(1_500_000))
    hub.script("storage", "", lambda q, r: replace(r, body=bytes(len(r.body))), times=9)
    with pytest.raises(VerificationError, match="does not match its digest"):
        pull(root, reference)
    assert list((root / "ingest").glob("sha256-*")) == []
    for server in hub.servers.values():
        server._faults.clear()
    assert any(line.endswith("Pull complete") for line in pull(root, reference))


def test_bad_bytes_that_an_earlier_pull_left_are_fetched_anew(root: Path, hub: Scripted) -> None:
    reference = one(hub, [WHOLE])
    engine = Engine(root)
    (root / "ingest").mkdir(exist_ok=True)
    (root / "ingest" / f"sha256-{Digest.of(WHOLE).hex}").write_bytes(bytes(1_000_000))
    pull(root, reference)
    assert engine.images.summaries()
    blob = [request.headers.get("range") for request in hub.seen("storage", str(Digest.of(WHOLE)))]
    assert blob[-1] is None and len(blob) <= 2


# --- mirrors ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirrored(root: Path, hub: Scripted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scripted]:
    """Docker Hub is `hub`, and before it stands the mirror that this gives."""
    monkeypatch.setattr("minirt.registry.client.DOCKER_HUB", hub.url)
    monkeypatch.setenv("MINIRT_HUB", "docker.io")
    with Scripted(auth="none", redirects=False) as mirror:
        config = tmp_path / "home" / ".config" / "minirt" / "config.toml"
        config.parent.mkdir(parents=True)
        config.write_text(f'registry-mirrors = ["{mirror.url}"]\n')
        hub.image(APP, "1", [WHOLE])
        mirror.image(APP, "1", [WHOLE])
        yield mirror


def test_a_mirror_that_fails_in_the_middle_is_left_and_no_byte_is_fetched_twice(
    root: Path, hub: Scripted, mirrored: Scripted
) -> None:
    mirrored.script("registry", Digest.of(WHOLE), ended(1_200_000), times=1)
    mirrored.script("registry", "/blobs/", status(404), times=99)
    engine = Engine(root, "docker.io")
    assert list(engine.pull("app:1")) and list(engine.store.check()) == []
    blob = f"/blob/{Digest.of(WHOLE)}"
    (request,) = hub.seen("storage", blob)
    assert request.headers["range"] == "bytes=1200000-" and not hub.seen("registry", "/manifests/")


@pytest.mark.parametrize("what", ["layer", "config"])
def test_a_mirror_that_lies_is_left_for_docker_hub(root: Path, hub: Scripted, mirrored: Scripted, what: str) -> None:
    pattern = str(Digest.of(WHOLE)) if what == "layer" else "/blobs/(?!sha256:" + Digest.of(WHOLE).hex + ")"
    mirrored.script("registry", pattern, lambda q, r: replace(r, body=b"x" + r.body[1:]), times=99)
    engine = Engine(root, "docker.io")
    said = [line["status"] for line in engine.pull("app:1") if line]
    assert any(line.startswith("Status: Downloaded newer image") for line in said)
    assert list(engine.store.check()) == [] and len(hub.seen("storage")) == 1
    assert ("Verification failed, downloading again" in said) == (what == "layer")


# --- what the user sees -----------------------------------------------------------------------------------------------


class _Screen:
    """A stream that is a terminal, or is none."""

    def __init__(self, terminal: bool) -> None:
        self.text, self._terminal = "", terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return self._terminal

    def fileno(self) -> int:
        raise OSError


@pytest.mark.parametrize("terminal", [False, True])
def test_the_user_sees_what_is_waited_for(
    root: Path, hub: Scripted, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    name = one(hub, [WHOLE])
    hub.script("registry", "/manifests/", status(429, Retry_After="1"))
    hub.script("storage", str(Digest.of(WHOLE)), status(503, Retry_After="2"))
    screen = _Screen(terminal)
    progress.show((line for line in Engine(root).pull(name) if line), screen)  # type: ignore[arg-type,misc]
    short = Digest.of(WHOLE).short
    assert re.search(r"^Retrying in [12] seconds?: toomanyrequests: the rate limit of", screen.text, re.MULTILINE)
    for seconds in ("2 seconds", "1 second"):
        assert f"{short}: Retrying in {seconds}: 127.0.0.2:" in screen.text, screen.text
    assert screen.text.index("Retrying in 2 seconds: 127") < screen.text.rindex(f"{short}: Pull complete")
    assert ("\x1b[" in screen.text) == terminal


def test_a_terminal_shows_a_wait_though_it_just_showed_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = _Screen(True)
    lines = ("Pulling fs layer", "Retrying in 2 seconds: x", "Retrying in 1 second: x", "Pull complete")
    progress.show(({"status": line, "id": "a", "progressDetail": {}} for line in lines), screen)  # type: ignore[arg-type]
    assert all(f"a: {line}" in screen.text for line in lines)
