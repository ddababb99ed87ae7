"""The registry client against a Docker Hub on loopback that does what each test scripts: its ways, and its faults."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from registries import (
    BASIC,
    PASSWORD,
    USER,
    Fault,
    Reply,
    Request,
    Scripted,
    Server,
    body,
    cut,
    drip,
    header,
    redirect,
    stall,
    status,
    tls,
)

from minirt import trace
from minirt.errors import MinirtError, NotFound, RegistryError, Unauthorized, VerificationError
from minirt.image.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import MAX_DOCUMENT, Index, Manifest, parse
from minirt.image.platform import Platform
from minirt.registry.client import Registry, Unreachable
from minirt.registry.credentials import Credentials
from minirt.registry.settings import Settings
from minirt.registry.transport import Transport

LAYERS = [bytes(range(256)) * 10_000, b"small"]  # 2.56 MB
APP = "library/app"
Open = Callable[..., Registry]


@pytest.fixture
def hub() -> Iterator[Scripted]:
    with Scripted() as scripted:
        scripted.image(APP, "1", LAYERS)
        yield scripted


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens impatient clients of users who are not logged in, unless `auths` says so."""
    opened: list[Registry] = []
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def open_client(
        domain: str, auths: dict[str, dict[str, str]] | None = None, config: Settings | None = None, **options: object
    ) -> Registry:
        file = tmp_path / f"config-{len(opened)}.json"
        file.write_text(json.dumps({"auths": auths or {}}))
        quick: dict[str, object] = {"stall_timeout": 0.3, "connect_timeout": 2, "attempts": 4, "backoff": 0.01}
        quick |= {"credentials": Credentials(file)} | options
        opened.append(Registry(domain, config or Settings(), **quick))  # type: ignore[arg-type]
        return opened[-1]

    yield open_client
    for registry in opened:
        registry.close()


def login(password: str = PASSWORD) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}


def layer(n: int = 0) -> Descriptor:
    return Descriptor("x", Digest.of(LAYERS[n]), len(LAYERS[n]))


def pulled(registry: Registry, n: int = 0, offset: int = 0) -> bytes:
    return b"".join(registry.blob(APP, layer(n), offset))


# --- the way of a pull ------------------------------------------------------------------------------------------


def test_a_pull_as_from_docker_hub(hub: Scripted, client: Open) -> None:
    with trace.Events() as events:
        registry = client(hub.domain)
        content, media_type, digest = registry.manifest(APP, "1")
        index = parse(content, media_type)
        assert isinstance(index, Index) and digest == Digest.of(content)
        chosen = index.choose(Platform.parse("linux/arm64"))
        content, media_type, _ = registry.manifest(APP, chosen.digest)
        manifest = parse(content, media_type)
        assert isinstance(manifest, Manifest) and media_type == OCI_MANIFEST
        with ThreadPoolExecutor(4) as pool:
            whole = list(pool.map(lambda one: b"".join(registry.blob(APP, one)), manifest.layers * 3))
        assert whole == LAYERS * 3
    assert len(hub.seen("token")) == 1  # one token serves all threads
    assert hub.seen("token")[0].query == {"service": ["registry.test"], "scope": [f"repository:{APP}:pull"]}
    assert len(hub.seen("registry", "/v2/$")) == 1
    for request in hub.seen("storage"):
        assert "authorization" not in request.headers and request.headers["accept-encoding"] == "identity"
    exchanges = [event.detail for event in events if event.action == "exchange"]
    shown = json.dumps(exchanges, ensure_ascii=False)
    assert {e["status"] for e in exchanges} == {0, 200, 307, 401}  # 0: https was tried first, and there is none
    assert "Bearer …" in shown and "token-0" not in shown and "s3cret" not in shown and "X-Signature=…" in shown
    assert f"scope=repository:{APP}:pull" in shown and all(e["ms"] >= 0 for e in exchanges)


def test_connections_are_used_again(hub: Scripted, client: Open) -> None:
    registry = client(hub.domain)
    for _ in range(3):
        registry.manifest(APP, "1")
        assert pulled(registry, 1) == LAYERS[1] and pulled(registry) == LAYERS[0]
    assert len({request.connection for request in hub.seen("registry")}) == 1
    assert len({request.connection for request in hub.seen("storage")}) == 1


def test_tags_come_page_by_page_and_from_nowhere_else(
    hub: Scripted, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tag in "abcd":
        hub.image(APP, tag, [b"x"], ("amd64",))
    registry = client(hub.domain)
    assert registry.tags(APP) == ["1", "a", "b", "c", "d"]
    hub.script("registry", "/tags/", header("Link", '<http://127.0.0.3/v2/x>; rel="next"'))
    with pytest.raises(RegistryError, match="goes on at .*: refused"):
        registry.tags(APP)
    hub.script("registry", "/tags/", body(b'{"tags": ["../../x"]}'))
    with pytest.raises(VerificationError, match="not a tag"):
        registry.tags(APP)
    monkeypatch.setattr("minirt.registry.endpoint._MAX_TAGS", 3)
    with pytest.raises(RegistryError, match="has no end"):
        registry.tags(APP)
    again = header("Link", f'</v2/{APP}/tags/list>; rel="next"')
    hub.script("registry", "/tags/", lambda q, r: again(q, body(b'{"tags": []}')(q, r)), times=2000)
    monkeypatch.setattr("minirt.registry.endpoint._MAX_PAGES", 20)
    with pytest.raises(RegistryError, match="has no end"):
        registry.tags(APP)


def test_mirrors_come_first_and_docker_hub_is_next(
    hub: Scripted, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minirt.registry.client.DOCKER_HUB", hub.url)
    with Scripted(auth="none", redirects=False) as mirror:
        mirror.image(APP, "1", LAYERS)
        mirror.script("registry", "/blobs/", cut(1_500_000), times=99)
        registry = client("docker.io", {"docker.io": login()}, Settings(("http://127.0.0.1:1", mirror.url)), attempts=1)
        registry.manifest(APP, "1")
        assert not hub.seen("registry")
        assert pulled(registry) == LAYERS[0]  # half from the mirror, the rest from the hub
        assert int(hub.seen("storage")[0].headers["range"][6:-1]) >= 1 << 20
        hub.image(APP, "2", LAYERS)
        assert registry.manifest(APP, "2")[1] == OCI_INDEX
        with pytest.raises(NotFound, match="^manifest for app:3 not found: manifest unknown$"):
            registry.manifest(APP, "3")
        assert hub.seen("token")[0].headers["authorization"] == BASIC
        assert not [request for request in mirror.seen("registry") if "authorization" in request.headers]
        elsewhere = client("127.0.0.1:1", config=Settings((mirror.url,)))
        with pytest.raises(Unreachable):  # mirrors are Docker Hub's only
            elsewhere.manifest(APP, "1")


# --- authorization ----------------------------------------------------------------------------------------------


def test_private_repositories_need_the_right_login(hub: Scripted, client: Open) -> None:
    hub.image("private/app", "1", LAYERS)
    with pytest.raises(Unauthorized, match=r"^pull access denied for .*/private/app, repository does not exist or may"):
        client(hub.domain).manifest("private/app", "1")
    assert len(hub.seen("registry", "/manifests/")) <= 2
    with pytest.raises(Unauthorized, match=r"unauthorized: incorrect username or password"):
        client(hub.domain, {hub.domain: login("wrong")}).manifest("private/app", "1")
    assert client(hub.domain, {hub.domain: login()}).manifest("private/app", "1")
    assert client(hub.domain, {hub.domain: {"identitytoken": "identity"}}).manifest("private/app", "1")
    assert hub.seen("token")[-1].method == "POST" and b"grant_type=refresh_token" in hub.seen("token")[-1].body


def test_basic_authorization(client: Open) -> None:
    with Scripted(auth="basic") as hub:
        hub.image(APP, "1", LAYERS)
        registry = client(hub.domain, {hub.domain: login()})
        assert registry.manifest(APP, "1") and pulled(registry) == LAYERS[0]
        assert not [request for request in hub.seen("storage") if "authorization" in request.headers]
        for auths in ({hub.domain: login("wrong")}, {"other.example": login()}, {}):
            with pytest.raises(Unauthorized, match="pull access denied"):
                client(hub.domain, auths).manifest(APP, "1")


def test_docker_hubs_login_is_not_for_mirrors_nor_for_the_embedded_hub(
    hub: Scripted, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minirt.registry.client.DOCKER_HUB", hub.url)
    with Scripted(auth="basic") as greedy:
        greedy.image(APP, "1", LAYERS)
        auths = {"https://index.docker.io/v1/": login()}
        assert client("docker.io", auths, Settings((greedy.url,))).manifest(APP, "1")
        assert hub.seen("token")[0].headers["authorization"] == BASIC
        with pytest.raises(Unauthorized):
            client("docker.io", auths, endpoint=greedy.url).manifest(APP, "1")
        assert greedy.seen("registry") and not [r for r in greedy.seen("registry") if "authorization" in r.headers]


def test_a_token_that_ran_out_is_replaced(hub: Scripted, client: Open) -> None:
    registry = client(hub.domain)
    registry.manifest(APP, "1")
    hub.tokens.clear()  # the registry forgets it, long before it was to expire
    hub.tokens["one"] = "taken"  # so that the next token has another name
    assert pulled(registry) == LAYERS[0] and len(hub.seen("token")) == 2


def test_401_for_ever_ends(hub: Scripted, client: Open) -> None:
    turn = iter(range(1000))

    def another_scope(_: Request, reply: Reply) -> Reply:
        asked = f'Bearer realm="{hub.servers["token"].url}/token",service="registry.test",scope="x{next(turn)}"'
        return Reply(401, {"WWW-Authenticate": asked})

    hub.script("registry", "/manifests/", another_scope, times=1000)
    with pytest.raises(Unauthorized, match="pull access denied"):
        client(hub.domain).manifest(APP, "1")
    assert len(hub.seen("registry", "/manifests/")) == 3


def challenge(realm: str) -> Fault:
    return status(401, WWW_Authenticate=f'Bearer realm="{realm}",service="s"')


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (challenge("http://registry.example/token"), "plain http to registry.example is refused"),
        (challenge("https://169.254.169.254/token"), "169.254.169.254, a link-local address: refused"),
        (challenge("file:///etc/passwd"), "not an http URL"),
        (challenge("https://["), "cannot reach https://.: Invalid IPv6 URL"),
        (challenge("https://127.0.0.1:99999/t"), "Port out of range"),
        (challenge("https://127.0.0.1:x/t"), "Port could not be cast"),
        (challenge("https://me:pw@127.0.0.1/t"), "with a user name in the URL"),
        (status(401), "neither Basic nor Bearer"),
        (status(401, WWW_Authenticate="Negotiate"), "neither Basic nor Bearer"),
        (status(200, b"<html>", Content_Type="text/html"), "is not a registry: /v2/ answers 200 OK text/html"),
        (status(404), "is not a registry: /v2/ answers 404"),
    ],
)
def test_a_first_answer_that_is_refused(hub: Scripted, client: Open, fault: Fault, reason: str) -> None:
    hub.script("registry", "/v2/$", fault, times=9)
    with pytest.raises(RegistryError, match=reason) as caught:
        client(hub.domain, {hub.domain: login()}).manifest(APP, "1")
    assert "\n" not in str(caught.value) and "pw" not in str(caught.value)


def test_a_realm_on_loopback_is_only_for_registries_there() -> None:
    """What a registry elsewhere would meet; the home address needs no network, as nothing is sent to it."""
    away = Transport("https://registry.example", Settings(), 1, 1, 1, 0.01)
    with Scripted() as local:
        for url in (f"https://{local.domain}/", f"https://localhost:{local.domain[10:]}/", "https://0.0.0.0/"):
            with pytest.raises(RegistryError, match="a loopback address: refused"):
                away.send(url, {})
        with pytest.raises(RegistryError, match="plain http"):
            away.send(local.url, {})
        # Not seen in the URL, but in the address the connection got.
        away._permit = lambda parts, home: None  # type: ignore[method-assign]
        for url in (local.url, f"http://localhost:{local.domain[10:]}/"):
            with pytest.raises(RegistryError, match="a loopback address: refused"):
                away.send(url, {})
        assert not local.seen("registry")
    away.close()


@pytest.mark.parametrize(
    "answer", [b"x" * (1 << 20) + b"x", b"[]", b"{}", b'{"token": "a\\nX: y"}', b'{"token": 5}', b"\xff"]
)
def test_a_token_that_is_none(hub: Scripted, client: Open, answer: bytes) -> None:
    hub.script("token", "", body(answer), times=9)
    with pytest.raises(MinirtError, match="token") as caught:
        client(hub.domain).manifest(APP, "1")
    assert "\n" not in str(caught.value)


# --- where redirects lead ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data", "a link-local address: refused|plain http"),
        ("https://169.254.169.254/latest/meta-data", "a link-local address: refused"),
        ("https://[fe80::1]/x", "a link-local address: refused"),
        ("http://storage.example/x", "plain http to storage.example is refused"),
        ("ftp://127.0.0.2/x", "not an http URL"),
        ("http://me:pw@127.0.0.2/x", "with a user name in the URL"),
        ("http://127.0.0.2:99999/x", "malformed URL"),
        ("/v2/library/app/blobs/again", "redirects more than 5 times"),
    ],
)
def test_redirects_that_are_refused(hub: Scripted, client: Open, location: str, reason: str) -> None:
    hub.script("registry", "/blobs/", redirect(location), times=9)
    with pytest.raises(RegistryError, match=reason) as caught:
        pulled(client(hub.domain, {hub.domain: login()}))
    assert "pw" not in str(caught.value)


def test_the_body_of_a_redirect_is_nothing_to_wait_for(hub: Scripted, client: Open) -> None:
    registry = client(hub.domain)
    registry.manifest(APP, "1")
    hub.script("registry", "/blobs/", lambda q, r: replace(r, body=bytes(1 << 20), drip=0.01))
    started = time.monotonic()
    assert pulled(registry) == LAYERS[0] and time.monotonic() - started < 2


def test_https_never_becomes_http(hub: Scripted, client: Open, tmp_path: Path) -> None:
    with Scripted(auth="none", context=tls(tmp_path)) as secure:
        secure.image(APP, "1", LAYERS)
        registry = client(secure.domain)  # loopback: its certificate need not be signed
        assert registry.manifest(APP, "1")
        with pytest.raises(RegistryError, match="redirects from https to plain http: refused"):
            pulled(registry)
        assert not secure.seen("storage")
        with pytest.raises(Unreachable, match="certificate"):  # anywhere else it must be
            transport = Transport(secure.url, Settings(), 1, 1, 1, 0.01)
            transport._settings = type("Strict", (Settings,), {"insecure": lambda *_: False})()
            transport.send(secure.url, {})


def test_credentials_stay_at_home(hub: Scripted, client: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to storage, not to the origin once it was left, not from .netrc, not for storage's own challenge."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.2 login a password b\nmachine 127.0.0.1 login x password y\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with Scripted(auth="basic") as basic:
        basic.image(APP, "1", LAYERS)
        basic.script("storage", "", redirect(f"{basic.url}/v2/{APP}/blobs/{layer().digest}"))
        basic.script("storage", "", status(401, WWW_Authenticate='Basic realm="phishing"'), times=9)
        registry = client(basic.domain, {basic.domain: login(), basic.servers["storage"].domain: login()})
        with pytest.raises(Unauthorized):
            pulled(registry)
        with pytest.raises(RegistryError, match="401"):
            pulled(registry)
        assert len(basic.seen("storage")) >= 2
        assert not [request for request in basic.seen("storage") if "authorization" in request.headers]
    hub.script("registry", "", header("Set-Cookie", "a=b; Path=/"), times=9)
    registry = client(hub.domain)
    registry.manifest(APP, "1")
    assert not [r for r in hub.seen("registry") if "cookie" in r.headers or r.headers.get("authorization") == BASIC]


def test_a_proxy_of_the_environment(hub: Scripted, client: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for other hosts, never for loopback; it sees no Authorization of ours."""
    proxy = Server(lambda request: Reply(200, {"Content-Type": "application/json"}, b"{}"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://u:p@{proxy.domain}")
    assert pulled(client(hub.domain)) == LAYERS[0] and not proxy.requests
    settings = Settings(insecure_registries=("registry.example:80",))
    registry = client("registry.example:80", config=settings)
    assert registry.manifest(APP, "1")[2] == Digest.of(b"{}")
    assert [request.headers["host"] for request in proxy.requests] == ["registry.example:80"] * 2
    assert not [request for request in proxy.requests if "authorization" in request.headers]
    proxy.close()


def chunked(content: bytes) -> Fault:
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    return lambda _, reply: Reply(reply.status, {**reply.headers, "Transfer-Encoding": "chunked"}, framed)


# --- documents that lie -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (body(b"x" * (MAX_DOCUMENT + 1)), "manifest is larger than 4194304 bytes"),
        (chunked(b"x" * (MAX_DOCUMENT + 1)), "manifest is larger than 4194304 bytes"),
        (header("Docker-Content-Digest", Digest.of(b"other")), "Docker-Content-Digest does not match its digest"),
        (header("Docker-Content-Digest", "sha256:../.."), "Docker-Content-Digest: invalid checksum digest length"),
        (header("Docker-Content-Digest", "md5:0"), "Docker-Content-Digest: unsupported digest algorithm"),
        (
            lambda q, r: header("Content-Type", None)(q, body(b"{}")(q, header("Docker-Content-Digest", None)(q, r))),
            "no media type",
        ),
    ],
)
def test_manifests_that_lie(hub: Scripted, client: Open, fault: Fault, reason: str) -> None:
    hub.script("registry", "/manifests/", fault)
    with pytest.raises(VerificationError, match=reason):
        client(hub.domain).manifest(APP, "1")


def test_a_manifest_is_what_its_digest_says(hub: Scripted, client: Open) -> None:
    registry = client(hub.domain)
    digest = registry.manifest(APP, "1")[2]
    hub.script("registry", "/manifests/", lambda q, r: header("Docker-Content-Digest", None)(q, body(b"{}")(q, r)))
    with pytest.raises(VerificationError, match="does not match its digest"):
        registry.manifest(APP, digest)
    hub.script("registry", "/manifests/", header("Content-Type", None))
    assert registry.manifest(APP, digest)[1] == OCI_INDEX  # then the document says what it is


# --- transfers that fail ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [cut(1_234_567), stall(1_234_567), cut(0), stall(0), status(503), status(500)])
def test_a_blob_goes_on_where_it_broke(hub: Scripted, client: Open, fault: Fault) -> None:
    hub.script("storage", "", fault, times=2)
    assert pulled(client(hub.domain)) == LAYERS[0]
    assert len(hub.seen("storage")) == 3


def test_a_server_that_ignores_range_is_read_from_the_start(hub: Scripted, client: Open) -> None:
    hub.script("storage", "", lambda q, r: Reply(200, {}, LAYERS[0]), times=9)
    assert pulled(client(hub.domain), offset=1_500_000) == LAYERS[0][1_500_000:]
    assert pulled(client(hub.domain), offset=len(LAYERS[0])) == b"" and len(hub.seen("storage")) == 1


def test_a_body_in_http_chunks(hub: Scripted, client: Open) -> None:
    hub.script("storage", "", chunked(LAYERS[0]))
    assert pulled(client(hub.domain)) == LAYERS[0]


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("how", [body, chunked], ids=["announced", "chunked"])
@pytest.mark.parametrize("change", [-1, 1, 3_000_000])
def test_bodies_of_another_length(
    hub: Scripted, client: Open, n: int, how: Callable[[bytes], Fault], change: int
) -> None:
    """Never a byte more than the descriptor says, and an error where there are fewer."""
    content = LAYERS[n] + b"x" * change if change > 0 else LAYERS[n][:change]
    hub.script("storage", "", lambda q, r: how(content)(q, Reply(200)), times=9)
    got = 0
    with pytest.raises((VerificationError, RegistryError), match="sends|ended 1 bytes early"):
        for chunk in client(hub.domain).blob(APP, layer(n)):
            got += len(chunk)
    assert got <= len(LAYERS[n])


@pytest.mark.parametrize("claimed", ["bytes 0-2559999/2560000", "bytes 1000000-2559999/9999999", "nonsense", None])
def test_another_range_than_was_asked_for(hub: Scripted, client: Open, claimed: str | None) -> None:
    hub.script("storage", "", header("Content-Range", claimed))
    with pytest.raises(VerificationError, match="another range"):
        pulled(client(hub.domain), offset=1_000_000)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(cut(10), "broke off"), (stall(10), "stalled"), (drip(0.05), "stalled"), (status(502), "HTTP status: 502")],
)
def test_patience_ends(hub: Scripted, client: Open, fault: Fault, reason: str) -> None:
    hub.script("storage", "", fault, times=99)
    with pytest.raises(RegistryError, match=reason) as caught:
        pulled(client(hub.domain, attempts=3))
    assert len(hub.seen("storage")) == 3 and "\n" not in str(caught.value)


def test_many_drops_are_no_matter_while_it_gets_on(hub: Scripted, client: Open) -> None:
    hub.blob(big := bytes(8 << 20))
    hub.script("storage", "", cut(1_200_000), times=6)
    registry = client(hub.domain, attempts=2)
    assert b"".join(registry.blob(APP, Descriptor("x", Digest.of(big), len(big)))) == big


def test_rate_limits(hub: Scripted, client: Open) -> None:
    hub.script("registry", "/manifests/", status(429, Retry_After="0"), times=2)
    registry = client(hub.domain)
    assert registry.manifest(APP, "1")
    reached = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": "You have reached\n\x1b[31m your limit"}]})
    for after in ({"Retry_After": "3600"}, {"Retry_After": "Fri, 31 Dec 2100 23:59:59 GMT"}, {}):
        before = len(hub.seen("registry", "/manifests/"))
        hub.script("registry", "/manifests/", status(429, reached.encode(), **after))
        with pytest.raises(RegistryError, match=r"^toomanyrequests: You have reached \?\[31m your limit"):
            registry.manifest(APP, "1")
        assert len(hub.seen("registry", "/manifests/")) == before + 1
    hub.script("registry", "/manifests/", status(429, Retry_After="1"))
    started = time.monotonic()
    assert registry.manifest(APP, "1") and time.monotonic() - started >= 1


def test_a_registry_that_is_not_there(client: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = Server(lambda _: Reply())
    nobody.close()
    registry = client(nobody.domain, attempts=9, backoff=5)
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(Unreachable, match=f"^cannot reach {nobody.domain}: Connection refused$"):
            registry.manifest(APP, "1")
    assert time.monotonic() - started < 2  # nobody waits for a registry that never answered

    with pytest.raises(RegistryError, match=r"^cannot reach https://localhost:99999: Port out of range 0-65535$"):
        client("localhost:99999")

    asked = []

    def unknown(*_: object, **__: object) -> None:
        asked.append(1)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)  # no test asks the real DNS
    registry = client("registry.invalid")
    for _ in range(2):
        with pytest.raises(Unreachable, match="^cannot reach registry.invalid: Name or service not known$"):
            registry.manifest(APP, "1")
    assert len(asked) == 1  # and it is not tried again for each layer


def test_a_token_service_that_fails(hub: Scripted, client: Open) -> None:
    hub.script("token", "", status(503), times=2)
    assert client(hub.domain).manifest(APP, "1")
    hub.script("token", "", status(503), times=99)
    with pytest.raises(RegistryError, match="HTTP status: 503"):
        client(hub.domain).manifest(APP, "1")
    assert len(hub.seen("token")) == 3 + 4


def test_an_explicit_endpoint(client: Open) -> None:
    with Scripted(auth="none") as hub:
        hub.image(APP, "1", LAYERS)
        registry = client("docker.io", endpoint=hub.url + "/")
        assert registry.manifest(APP, "1")
        with pytest.raises(NotFound, match="^manifest for app:9 not found"):
            registry.manifest(APP, "9")
