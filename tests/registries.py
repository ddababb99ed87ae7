"""Registries on loopback for tests: Debian's `docker-registry`, and `Scripted`, which behaves as Docker Hub does.

    with docker_registry(tmp_path, auth="token") as registry:     # "none", "htpasswd" or "token"
        registry.push(layout_folder, "tag-in-layout", "team/app:1")
        registry.domain                                           # "127.0.0.1:34567"

    with Scripted() as hub:                                       # token service and blob storage on other ports
        hub.image("library/app", "1", layers=[b"…"])              # an index for amd64 and arm64
        hub.script("storage", "/blob/", cut(1000), times=2)       # what goes wrong, and how often
        hub.hang_up("registry", "/uploads/", 1000)                # the connection, in the middle of what is sent to us
    hub.seen("registry")                                      # the requests so far

Both listen on ports the kernel chose and are gone after the `with`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from peers import require

from minirt.image.descriptor import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import encode

USER, PASSWORD = "ada", "correct horse"
_HTPASSWD = "ada:$2y$05$F23SVFYkzvPMs5pxOYG0cOjLmb5eLlXTjKG9t85cAlJ9oXvk3MteS\n"  # bcrypt, cost 5
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


# --- small HTTP servers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One request as a server saw it; `headers` by lower-case name."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    connection: int  # the client's port: the same for requests over one connection


@dataclass(frozen=True)
class Reply:
    """What a server answers. Content-Length is added unless `headers` names it or Transfer-Encoding.

    `cut`: reset the connection after that many bytes of body; `stall`: stop sending there, for as long as the server
    lives; `drip`: seconds between single bytes.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    stall: int | None = None
    drip: float = 0


Fault = Callable[[Request, Reply], Reply]


def status(code: int, body: bytes = b"", **headers: str) -> Fault:
    """Another answer altogether; header names are written with `_` for `-`."""
    return lambda _, __: Reply(code, {k.replace("_", "-"): v for k, v in headers.items()}, body)


def redirect(location: str) -> Fault:
    return status(307, Location=location)


def header(name: str, value: str | None) -> Fault:
    """The right answer but for one header; None removes it."""

    def fault(_: Request, reply: Reply) -> Reply:
        headers = {k: v for k, v in reply.headers.items() if k.lower() != name.lower()}
        return replace(reply, headers=headers if value is None else headers | {name: value})

    return fault


def body(content: bytes) -> Fault:
    return lambda _, reply: replace(reply, body=content)


def cut(after: int) -> Fault:
    return lambda _, reply: replace(reply, cut=after)


def stall(after: int) -> Fault:
    return lambda _, reply: replace(reply, stall=after)


def drip(seconds: float) -> Fault:
    return lambda _, reply: replace(reply, drip=seconds)


class Server:
    """A threaded HTTP/1.1 server that asks `answer` for each reply, lets scripted faults change it, and remembers."""

    def __init__(
        self, answer: Callable[[Request], Reply], host: str = "127.0.0.1", context: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[Request] = []
        self._faults: list[tuple[re.Pattern[str], Fault, list[int]]] = []
        self._cuts: list[tuple[re.Pattern[str], int, list[int]]] = []
        self._closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16
            timeout = 30

            def handle(self) -> None:
                if context:  # here, not at accept: a client that is no good at TLS must not hold up the others
                    try:
                        self.connection = context.wrap_socket(self.request, server_side=True)
                    except (OSError, ssl.SSLError):
                        return
                    self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 1 << 16)
                with suppress(ConnectionError, ssl.SSLError):  # the client went away, as some tests make it
                    super().handle()

            def serve(self) -> None:
                parts = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                stop = outer._stop(self.command, parts.path)
                request = Request(
                    self.command,
                    parts.path,
                    parse_qs(parts.query),
                    {k.lower(): v for k, v in self.headers.items()},
                    self.rfile.read(length if stop is None else min(stop, length)),
                    self.client_address[1],
                )
                outer.requests.append(request)
                if stop is not None:
                    answer(request)
                    self.hang_up()
                    return
                reply = outer._reply(request, answer(request))
                self.send_response(reply.status)
                names = {name.lower() for name in reply.headers}
                if not names & {"content-length", "transfer-encoding"}:
                    self.send_header("Content-Length", str(len(reply.body)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.send_body(reply)

            do_GET = do_POST = do_HEAD = do_PUT = do_PATCH = do_DELETE = serve

            def hang_up(self) -> None:
                """RST, not FIN: unread and unsent data is thrown away."""
                time.sleep(0.02)  # so that the client has read what was sent
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True

            def send_body(self, reply: Reply) -> None:
                stop = min(n for n in (reply.cut, reply.stall, len(reply.body)) if n is not None)
                if reply.drip:
                    for byte in reply.body[:stop]:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        if outer._closing.wait(reply.drip):
                            break
                else:
                    self.wfile.write(reply.body[:stop])
                self.wfile.flush()
                if reply.stall is not None:
                    outer._closing.wait(30)
                    self.close_connection = True
                if reply.cut is not None:
                    self.hang_up()

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128  # fifty clients at once

            def handle_error(self, *_: Any) -> None:
                pass  # what went wrong shows in the client

        self._server = Quiet((host, 0), Handler)
        self.domain = f"{host}:{self._server.server_port}"
        self.url = f"{'https' if context else 'http'}://{self.domain}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,), daemon=True)
        self._thread.start()

    def script(self, pattern: str, fault: Fault, times: int = 1) -> None:
        """Let `fault` change the next `times` replies to paths that match `pattern`. Earlier scripts come first."""
        self._faults.append((re.compile(pattern), fault, [times]))

    def hang_up(self, pattern: str, after: int, times: int = 1) -> None:
        """Of the next requests whose method and path match, take `after` bytes of body and break the connection."""
        self._cuts.append((re.compile(pattern), after, [times]))

    def _stop(self, method: str, path: str) -> int | None:
        for pattern, after, left in self._cuts:
            if left[0] > 0 and pattern.search(f"{method} {path}"):
                left[0] -= 1
                return after
        return None

    def _reply(self, request: Request, reply: Reply) -> Reply:
        for pattern, fault, left in self._faults:
            if left[0] > 0 and pattern.search(request.path):
                left[0] -= 1
                return fault(request, reply)
        return reply

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def tls(folder: Path) -> ssl.SSLContext:
    """A server's TLS with a certificate that nobody signed."""
    key, certificate = make_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """An RSA key and its self-signed certificate, as PEM files."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [require("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


# --- a registry that behaves as Docker Hub does --------------------------------------------------------------------


class Scripted:
    """Token service on another port, blobs redirected to another host, an index per platform, rate-limit headers.

    `auth`: "token" (Bearer; anonymous pulls of `library/…` and `team/…` allowed, anything else for USER only), "basic"
    or "none". `context` puts the registry itself (not the others) behind TLS. Where `redirects` is false the registry
    sends blobs itself, and honours Range there. What is pushed is kept; `resumes`: whether a broken upload goes on
    where it was.
    """

    def __init__(
        self, auth: str = "token", redirects: bool = True, context: ssl.SSLContext | None = None, resumes: bool = True
    ) -> None:
        self._auth, self._redirects, self._resumes = auth, redirects, resumes
        self.uploads: dict[str, bytes] = {}  # those begun and not ended
        self.homes: set[tuple[str, str]] = set()  # (repository, digest) of what was pushed
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.tokens: dict[str, str] = {}  # token → the scope it opens
        self.life = 300  # seconds a token is announced to live
        self.servers = {
            "registry": Server(self._registry, context=context),
            "token": Server(self._token),
            "storage": Server(self._storage, host="127.0.0.2"),
        }
        self.domain, self.url = self.servers["registry"].domain, self.servers["registry"].url

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for server in self.servers.values():
            server.close()

    def script(self, role: str, pattern: str, fault: Fault, times: int = 1) -> None:
        """`role`: "registry", "token" or "storage"."""
        self.servers[role].script(pattern, fault, times)

    def hang_up(self, role: str, pattern: str, after: int, times: int = 1) -> None:
        self.servers[role].hang_up(pattern, after, times)

    def seen(self, role: str, pattern: str = "") -> list[Request]:
        return [request for request in self.servers[role].requests if re.search(pattern, request.path)]

    def blob(self, content: bytes, media_type: str = OCI_LAYER) -> Descriptor:
        digest = Digest.of(content)
        self.blobs[digest] = content
        return Descriptor(media_type, digest, len(content))

    def manifest(self, path: str, tag: str | None, content: bytes, media_type: str) -> Descriptor:
        digest = Digest.of(content)
        for target in {tag or digest, digest}:
            self.manifests[path, target] = content, media_type
        return Descriptor(media_type, digest, len(content))

    def image(
        self, path: str, tag: str, layers: list[bytes], architectures: tuple[str, ...] = ("amd64", "arm64")
    ) -> Digest:
        """An index of one manifest per architecture over the same `layers` (plain or gzip); the index's digest."""
        entries = []
        for architecture in architectures:
            config = self.blob(image_config(layers, architecture), OCI_CONFIG)
            kinds = [OCI_LAYER + ("+gzip" if layer[:2] == b"\x1f\x8b" else "") for layer in layers]
            manifest = image_manifest(config, [self.blob(*pair) for pair in zip(layers, kinds, strict=True)])
            descriptor = self.manifest(path, None, manifest, OCI_MANIFEST)
            entries.append(descriptor.to_json() | {"platform": {"os": "linux", "architecture": architecture}})
        index = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
        return self.manifest(path, tag, index, OCI_INDEX).digest

    def _registry(self, request: Request) -> Reply:
        _, _, rest = request.path.partition("/v2/")
        name, kind, target = re.fullmatch(r"(?:(.+)/(manifests|blobs|tags)/(.+))?", rest).groups()  # type: ignore[union-attr]
        if refused := self._refuse(request, name):
            return refused
        if kind is None:
            return Reply(
                200, {"Content-Type": "application/json", "Docker-Distribution-Api-Version": "registry/2.0"}, b"{}"
            )
        if request.method in ("POST", "PUT", "PATCH", "HEAD") or target.startswith("uploads/"):
            return self._write(request, name, kind, target)
        if kind == "manifests" and (name, target) in self.manifests:
            content, media_type = self.manifests[name, target]
            extra = {"Docker-Content-Digest": str(Digest.of(content)), "ratelimit-limit": "100;w=21600"}
            return Reply(200, {"Content-Type": media_type, **extra}, content)
        if kind == "blobs" and target in self.blobs:
            if self._redirects:
                to = f"{self.servers['storage'].url}/blob/{target}?X-Signature=s3cret"
                return Reply(307, {"Location": to}, b"moved")
            return _ranged(request, self.blobs[target])
        if kind == "tags":
            return self._tags(request, name)
        code = {"manifests": "MANIFEST_UNKNOWN", "blobs": "BLOB_UNKNOWN"}[kind]
        return _error(404, code, "not known to registry")

    def _write(self, request: Request, name: str, kind: str, target: str) -> Reply:
        """What a push asks for; HEAD knows only what was pushed."""
        if kind == "manifests" and request.method == "PUT":
            missing = [
                d for d in re.findall(rb"sha256:[0-9a-f]{64}", request.body) if (name, d.decode()) not in self.homes
            ]
            if missing:
                return _error(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
            descriptor = self.manifest(name, target, request.body, request.headers["content-type"])
            return Reply(201, {"Docker-Content-Digest": str(descriptor.digest)})
        if request.method == "HEAD":
            known = (name, target) in self.homes
            return Reply(200, {"Content-Length": str(len(self.blobs[target]))}) if known else Reply(404)
        identity, query = target.removeprefix("uploads/"), request.query
        if request.method == "POST":
            digest, home = query.get("mount", [""])[0], query.get("from", [""])[0]
            if (home, digest) in self.homes or any(
                digest.encode() in content
                for (path, _), (content, _) in self.manifests.items()
                if digest and path == home
            ):
                self.homes.add((name, digest))
                return Reply(201, {"Location": f"/v2/{name}/blobs/{digest}"})
            identity = f"upload-{len(self.seen('registry'))}"
            self.uploads[identity] = b""
        elif identity not in self.uploads:
            return _error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        have = self.uploads[identity]
        here = {"Location": f"/v2/{name}/blobs/uploads/{identity}?_state=s%3D1"}
        if request.method == "GET" and not self._resumes:
            del self.uploads[identity]
            return _error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        if request.method == "PATCH":
            begin = int(request.headers.get("content-range", "0").partition("-")[0])
            if begin != len(have):
                return Reply(416, here | {"Range": f"0-{len(have) - 1}"})
            have = self.uploads[identity] = have + request.body
        if request.method == "PUT":
            if Digest.of(have + request.body) != query["digest"][0]:
                return _error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            self.blobs[query["digest"][0]] = self.uploads.pop(identity) + request.body
            self.homes.add((name, query["digest"][0]))
            return Reply(201, {"Location": f"/v2/{name}/blobs/{query['digest'][0]}"})
        return Reply(204 if request.method == "GET" else 202, here | {"Range": f"0-{max(len(have) - 1, 0)}"})

    def _tags(self, request: Request, name: str) -> Reply:
        """Two tags a page."""
        tags = sorted(tag for path, tag in self.manifests if path == name and ":" not in tag)
        tags = [tag for tag in tags if tag > request.query.get("last", [""])[0]]
        link = {"Link": f'</v2/{name}/tags/list?n=2&last={tags[1]}>; rel="next"'} if len(tags) > 2 else {}
        return Reply(200, {"Content-Type": "application/json", **link}, encode({"name": name, "tags": tags[:2]}))

    def _refuse(self, request: Request, name: str | None) -> Reply | None:
        given = request.headers.get("authorization", "")
        if self._auth == "none" or (self._auth == "basic" and given == BASIC):
            return None
        if self._auth == "basic":
            return _error(401, "UNAUTHORIZED", "authentication required", 'Basic realm="Registry"')
        writes = request.method in ("POST", "PUT", "PATCH") or "/uploads/" in request.path
        scope = f"repository:{name}:{'pull,push' if writes else 'pull'}" if name else ""
        home = request.query.get("from", [""])[0] if request.method == "POST" else ""
        wanted = {scope} | ({f"repository:{home}:pull"} if home else set())
        opens = set(self.tokens.get(given[7:], "").split()) if given.startswith("Bearer ") else set()
        opens |= {each.replace(":pull,push", ":pull") for each in opens}
        if given.startswith("Bearer ") and (wanted <= opens or not scope):
            return None
        asked = f'Bearer realm="{self.servers["token"].url}/token",service="registry.test"'
        if scope and given:
            asked += f',scope="{" ".join(sorted(wanted))}",error="insufficient_scope"'
        return _error(401, "UNAUTHORIZED", "authentication required", asked)

    def _token(self, request: Request) -> Reply:
        form = parse_qs(request.body.decode()) if request.method == "POST" else request.query
        given, scope = request.headers.get("authorization"), " ".join(form.get("scope", []))
        known = given == BASIC or form.get("refresh_token") == ["identity"]
        if (given and not known) or (request.method == "POST" and not known):
            return Reply(401, {"Content-Type": "application/json"}, b'{"details": "incorrect username or password"}')
        token = f"token-{len(self.tokens)}"
        public = re.match("repository:(library|team)/[^ ]*:pull$", scope)
        self.tokens[token] = scope if known or public else ""
        key = "access_token" if request.method == "POST" else "token"
        more = {"refresh_token": "identity"} if known and form.get("offline_token") else {}
        return Reply(200, {"Content-Type": "application/json"}, encode({key: token, "expires_in": self.life, **more}))

    def _storage(self, request: Request) -> Reply:
        content = self.blobs.get(request.path.removeprefix("/blob/"))
        return Reply(404) if content is None else _ranged(request, content)


def _ranged(request: Request, content: bytes) -> Reply:
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if not asked:
        return Reply(200, {"Content-Type": "application/octet-stream"}, content)
    start = int(asked[1])
    if start >= len(content):
        return Reply(416)
    return Reply(206, {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}, content[start:])


def _error(code: int, name: str, message: str, challenge: str = "") -> Reply:
    headers = {"Content-Type": "application/json"} | ({"WWW-Authenticate": challenge} if challenge else {})
    return Reply(code, headers, encode({"errors": [{"code": name, "message": message}]}))


# --- images made by hand --------------------------------------------------------------------------------------------


def image_config(layers: list[bytes], architecture: str = "amd64") -> bytes:
    diff_ids = ["sha256:" + hashlib.sha256(_plain(layer)).hexdigest() for layer in layers]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    return encode({"architecture": architecture, "os": "linux", "config": {"Cmd": ["/hello"]}, "rootfs": rootfs})


def _plain(layer: bytes) -> bytes:
    """What a layer unpacks to; as it is where it is not, or not wholly, gzip."""
    try:
        return gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer
    except (EOFError, OSError, zlib.error):
        return layer


def image_manifest(config: Descriptor, layers: list[Descriptor]) -> bytes:
    described = [layer.to_json() for layer in layers]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.to_json(), "layers": described}
    return encode(document)


def write_layout(folder: Path, tag: str, layers: list[bytes]) -> Path:
    """An OCI image layout of one image over uncompressed `layers` (tar archives, or any bytes where nobody unpacks)."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def add(content: bytes, media_type: str) -> Descriptor:
        digest = Digest.of(content)
        (blobs / digest.hex).write_bytes(content)
        return Descriptor(media_type, digest, len(content))

    described = [add(layer, OCI_LAYER) for layer in layers]
    manifest = add(image_manifest(add(image_config(layers), OCI_CONFIG), described), OCI_MANIFEST)
    entry = manifest.to_json() | {"annotations": {"org.opencontainers.image.ref.name": tag}}
    (folder / "index.json").write_bytes(encode({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
    return folder


# --- Debian's docker-registry ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealRegistry:
    """A running docker-registry; USER and PASSWORD may push where it wants authorization."""

    domain: str
    auth: str
    folder: Path  # its storage, to break by hand
    log: Path

    def push(self, layout: Path, tag: str, name: str) -> None:
        """Copy an image of an OCI layout to `name` (`team/app:1`), bytes and digests unchanged."""
        self.copy(f"oci:{layout}:{tag}", name)

    def copy(self, source: str, name: str) -> None:
        """skopeo's copy, from any source it knows (`docker-archive:…`, `dir:…`), all platforms."""
        command = [require("skopeo"), "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests"]
        if self.auth != "none":
            command += ["--dest-creds", f"{USER}:{PASSWORD}"]
        command += ["--dest-tls-verify=false", source, f"docker://{self.domain}/{name}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


@contextmanager
def docker_registry(tmp_path: Path, auth: str = "none", within: Sequence[str] = ()) -> Iterator[RealRegistry]:
    """Debian's `docker-registry` (distribution 2.8). With "token", tokens are JWTs of a service in this process.

    `within`: words that start a command somewhere else (`nsenter --net=…`).
    """
    program = require("docker-registry")
    root = tmp_path / f"docker-registry-{auth}"
    root.mkdir()
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"accesslog": {"disabled": True}, "level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(root / "data")}},
        "http": {"addr": "127.0.0.1:0"},
    }
    service: Server | None = None
    if auth == "htpasswd":
        (root / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(root / "htpasswd")}}
    elif auth == "token":
        key, certificate = make_certificate(root)
        service = Server(lambda request: _jwt_reply(request, key, certificate))
        config["auth"] = {
            "token": {
                "realm": f"{service.url}/token",
                "service": "registry.test",
                "issuer": "issuer.test",
                "rootcertbundle": str(certificate),
            }
        }
    (root / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    log = root / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*within, program, "serve", str(root / "config.yml")],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd=root,
        )
    try:
        yield RealRegistry(_listening(process, log), auth, root / "data", log)
    finally:
        process.kill()
        process.wait()
        if service:
            service.close()


def _listening(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address the registry says it listens on."""
    for _ in range(500):
        if found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text()):
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def _jwt_reply(request: Request, key: Path, certificate: Path) -> Reply:
    """A token as distribution's `docs/spec/auth/jwt.md` has it: USER may do anything, others pull `team/…`."""
    given = request.headers.get("authorization")
    if given not in (None, BASIC):
        return Reply(401, {"Content-Type": "application/json"}, b'{"details": "incorrect username or password"}')
    access = []
    for scope in request.query.get("scope", []):
        kind, name, actions = scope.split(":")
        allowed = actions.split(",") if given else ["pull"] if name.startswith("team/") else []
        access.append({"type": kind, "name": name, "actions": allowed})
    der = "".join(line for line in certificate.read_text().splitlines() if "-----" not in line)
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": "issuer.test",
        "aud": "registry.test",
        "sub": USER if given else "",
        "access": access,
    }
    claims |= {"iat": now, "nbf": now - 5, "exp": now + 300, "jti": str(time.monotonic_ns())}
    signed = b".".join(map(_base64url, (encode({"typ": "JWT", "alg": "RS256", "x5c": [der]}), encode(claims))))
    command = [require("openssl"), "dgst", "-sha256", "-sign", str(key)]
    signature = subprocess.run(command, input=signed, capture_output=True, check=True).stdout
    token = (signed + b"." + _base64url(signature)).decode()
    return Reply(200, {"Content-Type": "application/json"}, encode({"token": token, "expires_in": 300}))


def _base64url(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")
