"""One base URL's registry: how it is met, what it wants to see, and what its answers mean.

Documents are capped and verified before they are handed out. A blob is a stream of exactly the bytes its descriptor
promises, resumed by Range after a drop; its digest is checked by the reader, as it stores them. Foreign-layer URLs are
never fetched: a descriptor's digest, asked of the registry, is the only way to a blob.
Source: OCI distribution-spec, "Pull". Taught in chapter 04.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urljoin, urlsplit

import requests

from minirt.errors import InvalidInput, MinirtError, NotFound, RegistryError, Unauthorized, VerificationError
from minirt.image.descriptor import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import MAX_DOCUMENT, load_json
from minirt.image.reference import Reference
from minirt.registry import challenge
from minirt.registry.auth import Anonymous, Auth, Basic, Bearer
from minirt.registry.credentials import Credentials
from minirt.registry.patience import Transient, Unreachable
from minirt.registry.transport import Sent, Transport, announced_size, printable

CHUNK = 1 << 20  # bytes
_HOLD = 0.1  # seconds until what has arrived is handed on, though it is less: progress moves on a slow line too
_ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))
_MAX_PAGES, _MAX_TAGS = 1000, 1_000_000
_NO_HEADERS: Mapping[str, str] = {}
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


class Endpoint:
    """One base URL's registry and what it wants to see. `bases` are candidates: the first that answers stays."""

    def __init__(
        self,
        domain: str,
        owner: str,
        bases: tuple[str, ...],
        credentials: Credentials,
        transport: Callable[[str], Transport],
    ) -> None:
        self._domain, self._owner, self._credentials = domain, owner, credentials
        self._candidates = [(base, transport(base)) for base in bases]
        self._base, self._transport = self._candidates[0]
        self._auth: Auth | None = None
        self._down: Unreachable | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        for _, transport in self._candidates:
            transport.close()

    @property
    def base(self) -> str:
        """The URL in force, once prepared."""
        return self._base

    @property
    def transport(self) -> Transport:
        """What carries our requests, once prepared."""
        return self._transport

    def manifest(self, path: str, target: str) -> tuple[bytes, str, Digest]:
        self.prepare(path)
        return self._transport.persist(lambda: self._manifest(path, target))

    def _manifest(self, path: str, target: str) -> tuple[bytes, str, Digest]:
        response = self._get(f"/v2/{path}/manifests/{target}", path, {"Accept": _ACCEPT})
        if response.status_code != 200:
            raise self.refusal(response, path, "", "manifest", target)
        headers = response.headers
        content = self._transport.read(response, MAX_DOCUMENT, "manifest")
        wanted = Digest(target) if ":" in target else Digest.of(content)
        _verify(content, wanted, f"manifest for {target}")
        if stated := headers.get("Docker-Content-Digest"):
            try:
                _verify(content, Digest(stated), "Docker-Content-Digest")
            except InvalidInput as error:
                raise VerificationError(f"Docker-Content-Digest: {error}") from error
        media_type = headers.get("Content-Type", "").partition(";")[0].strip()
        if not media_type:
            inside = load_json(content, "manifest").get("mediaType")
            if not isinstance(inside, str):
                raise VerificationError("manifest has no media type, neither announced nor inside")
            media_type = inside
        return content, media_type, wanted

    def tags(self, path: str) -> list[str]:
        self.prepare(path)
        found: list[str] = []
        start = url = f"{self._base}/v2/{path}/tags/list"
        for _ in range(_MAX_PAGES):
            page, link = self._transport.persist(lambda url=url: self._tags(url, path))  # type: ignore[misc]
            found += page
            if len(found) > _MAX_TAGS:
                break
            following = next_page(url, start, link)
            if not following:
                return found
            url = following
        raise RegistryError(f"{self._domain}: the list of tags has no end")

    def _tags(self, url: str, path: str) -> tuple[list[str], str]:
        """One page, and its Link header."""
        response = self._get(url.removeprefix(self._base), path, {"Accept": "application/json"})
        if response.status_code != 200:
            raise self.refusal(response, path, "", "tags", "")
        link = response.headers.get("Link", "")
        names = (
            load_json(self._transport.read(response, MAX_DOCUMENT, "list of tags"), "list of tags").get("tags") or []
        )
        if not isinstance(names, list) or not all(isinstance(name, str) and _TAG.fullmatch(name) for name in names):
            raise VerificationError(f"{self._domain}: the list of tags holds something that is not a tag")
        return names, link

    def blob(self, path: str, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        size = descriptor.size
        if offset < size:
            self.prepare(path)
        patience, resumed = self._transport.patience(), offset
        while offset < size:
            try:
                for chunk in self._transfer(path, descriptor, offset):
                    offset += len(chunk)
                    yield chunk
            except (Transient, Unreachable) as error:
                if offset - resumed >= CHUNK:  # it gets on: as patient again as at the start
                    patience, resumed = self._transport.patience(), offset
                patience.wait(error)

    def _transfer(self, path: str, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """One response's worth of a blob. What arrived before a failure is handed out before it is raised."""
        digest, size = descriptor.digest, descriptor.size
        with self._open(path, descriptor, offset) as response:
            skip = self._skip(response, path, descriptor, offset)
            left, announced = size - offset, announced_size(response)
            if announced not in (None, skip + left):
                raise VerificationError(
                    f"blob {digest}: the registry sends {announced} bytes where {skip + left} are left"
                )
            held: list[bytes] = []
            have, since = 0, time.monotonic()
            try:
                for piece in self._transport.pieces(response):
                    if skip:
                        dropped = min(skip, len(piece))
                        skip, piece = skip - dropped, piece[dropped:]
                    if have + len(piece) > left:
                        raise VerificationError(f"blob {digest}: the registry sends more than {size} bytes")
                    if have and (have + len(piece) > CHUNK or time.monotonic() - since > _HOLD):
                        yield b"".join(held)
                        left, held, have, since = left - have, [], 0, time.monotonic()
                    held.append(piece)
                    have += len(piece)
            except Transient:
                if have:
                    yield b"".join(held)
                raise
            # The last chunk waited until the body had ended: nothing trails it.
            if have:
                yield b"".join(held)
            if have < left:
                raise Transient(f"blob {digest}: the transfer ended {left - have} bytes early")

    def _open(self, path: str, descriptor: Descriptor, offset: int) -> requests.Response:
        """The blob from `offset` on. No If-Range: its name is its digest, and that will tell whether it changed."""
        resource = f"/v2/{path}/blobs/{descriptor.digest}"
        if offset:
            response = self._get(resource, path, {"Range": f"bytes={offset}-"})
            if response.status_code != 416:
                return response
            self._transport.said(response)  # it cannot send a part, or has none: its whole will show
        return self._get(resource, path, {})

    def _skip(self, response: requests.Response, path: str, descriptor: Descriptor, offset: int) -> int:
        """How many bytes of this body come before `offset`: some servers ignore Range and send it all."""
        digest = descriptor.digest
        if response.status_code == 200:
            return offset
        if response.status_code != 206 or not offset:
            raise self.refusal(response, path, "", "blob", digest)
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != offset or match[3] not in ("*", str(descriptor.size)):
            raise VerificationError(f"blob {digest}: the registry sends another range than was asked for")
        return 0

    def prepare(self, path: str, scope: str = "") -> None:
        """Ask `/v2/`, once: is this a registry, and which authorization does it want?"""
        with self._lock:
            if self._auth is not None:
                return
            if self._down:
                raise self._down
            failed: list[Unreachable] = []
            for base, transport in self._candidates:
                self._base, self._transport = base, transport
                try:
                    self._auth = transport.persist(lambda: self._ping(path, scope))
                    return
                except Unreachable as error:
                    failed.append(error)
            self._down = failed[-1]
            raise self._down

    def _ping(self, path: str, scope: str) -> Auth:
        response = self._transport.send(f"{self._base}/v2/", {})
        if response.status_code == 401 and self._transport.at_home(response):
            return self._escalate(Anonymous(), response, None, scope, 0.0, path)
        self._transport.said(response)
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
        page = kind.lower() == "text/html" and "Docker-Distribution-Api-Version" not in response.headers
        if response.status_code != 200 or page:
            what = f"{response.status_code} {response.reason} {kind}"
            raise RegistryError(f"{self._domain} is not a registry: /v2/ answers {printable(what)}")
        return Anonymous()

    def login(self) -> str:
        """Show the credentials to the registry; what it gives in the password's place ("" where it gives none).

        Raises Unauthorized where it does not take them.
        """
        self.prepare("")
        if isinstance(self._auth, Bearer):
            self._auth.offline = True
        with self.ask("GET", f"{self._base}/v2/", "", "") as response:
            if response.status_code != 200:
                raise self._refused_login(response.status_code, response.reason)
        return self._auth.identity if isinstance(self._auth, Bearer) else ""

    def _refused_login(self, status: int, reason: str) -> Unauthorized:
        """docker's line."""
        error = Unauthorized(f"login attempt to {self._base}/v2/ failed with status: {status} {printable(reason)}")
        error.status = 401
        return error

    def ask(
        self,
        method: str,
        url: str,
        path: str,
        scope: str,
        headers: Mapping[str, str] = _NO_HEADERS,
        body: Callable[[], Sent] | None = None,
    ) -> requests.Response:
        """One request with the authorization in force, escalating on a 401 a bounded number of times.

        `path` is the repository, for messages; `body` makes what is sent, anew for each try.
        """
        since = time.monotonic()
        for _ in range(3):
            auth = self._auth or Anonymous()
            # Where a registry sends us elsewhere with an upload, it has signed that URL itself.
            used = auth.header(scope) if self._transport.is_home(url) else None
            response = self._transport.send(url, headers, used, method=method, body=body() if body else None)
            # A 401 from a host we were redirected to is nobody's challenge to us.
            if response.status_code != 401 or not self._transport.at_home(response):
                return response
            self._auth = self._escalate(auth, response, used, scope, since, path)
        raise self._denied(path, scope)

    def _get(self, resource: str, path: str, headers: Mapping[str, str]) -> requests.Response:
        return self.ask("GET", self._base + resource, path, f"repository:{path}:pull", headers)

    def _escalate(
        self, auth: Auth, response: requests.Response, used: str | None, scope: str, since: float, path: str
    ) -> Auth:
        """What to try after this 401; closes it. Raises Unauthorized where there is nothing more to try."""
        words = self._transport.said(response)[1]
        asked = challenge.parse(response.headers.get("WWW-Authenticate", ""))
        for bearer in asked:
            if bearer.scheme != "bearer" or not bearer.parameters.get("realm"):
                continue
            if not isinstance(auth, Bearer) or not auth.serves(bearer):
                return Bearer(bearer, self._credentials.look_up(self._owner), self._transport)
            if auth.renew(used, scope, bearer, since):
                return auth
            raise self._denied(path, scope, words)
        if any(one.scheme == "basic" for one in asked):
            owned = self._credentials.look_up(self._owner)
            if owned and owned.username and not isinstance(auth, Basic):
                return Basic(owned)
            none = "" if owned else "no basic auth credentials"  # docker's words
            raise self._denied(path, scope, words, none)
        raise RegistryError(f"{self._domain} wants an authorization that is neither Basic nor Bearer")

    def _denied(self, path: str, scope: str, words: str = "", none: str = "") -> Unauthorized:
        """docker's line, plus the registry's own words and what a credential helper had to say; `none`: nobody has
        logged in, in words of their own."""
        name, note = _familiar(self._domain, path), self._credentials.note
        if not path:
            return self._refused_login(401, "Unauthorized")
        if "push" not in scope:
            extra = "".join(f": {text}" for text in (words, note) if text)
            why = f"pull access denied for {name}, repository does not exist or may require 'docker login'{extra}"
        elif none:
            why = f"{none}: {note or f'pushing to {name} needs a docker login'}"
        else:
            why = f"denied: {words or note or 'requested access to the resource is denied'} (pushing to {name})"
        return Unauthorized(why)

    def refusal(self, response: requests.Response, path: str, scope: str, what: str, target: str) -> MinirtError:
        """The error a status means, in docker's words; closes the response."""
        status, home = response.status_code, self._transport.at_home(response)
        code, words = self._transport.said(response)
        name = _familiar(self._domain, path)
        if status in (401, 403) and home:
            return self._denied(path, scope, words)
        if status == 404 and (code == "NAME_UNKNOWN" or what == "tags"):
            return NotFound(f"repository {name} not found: name unknown")
        if status == 404 and what == "manifest":
            mark = "@" if ":" in target else ":"
            return NotFound(f"manifest for {name}{mark}{target} not found: manifest unknown")
        if status == 404:
            return NotFound(f"{what} {target} of {name} not found: {what} unknown")
        host = urlsplit(response.url).netloc
        return RegistryError(f"{host}: received unexpected HTTP status for {what} {target}: {status} {words}".rstrip())


def next_page(url: str, start: str, link: str) -> str:
    """Where the list at `url` goes on, by its Link header (RFC 8288); empty at its end.

    Raises RegistryError for anywhere else than `start` with another query.
    """
    links = requests.utils.parse_header_links(link) if link else []
    following = next((one.get("url", "") for one in links if one.get("rel", "").lower() == "next"), "")
    if not following:
        return ""
    try:
        found = urljoin(url, following)
    except ValueError:
        found = following
    if found.partition("?")[0] != start or "#" in found:
        raise RegistryError(f"the list of tags goes on at {printable(found)}: refused")
    return found


def _verify(content: bytes, digest: Digest, what: str) -> None:
    hasher = digest.hasher()
    hasher.update(content)
    if not digest.matches(hasher):
        raise VerificationError(
            f"{what} does not match its digest: want {digest}, got {digest.algorithm}:{hasher.hexdigest()}"
        )


def _familiar(domain: str, path: str) -> str:
    return Reference(domain, path).familiar_name
