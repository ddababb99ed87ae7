"""The registry's verbs: a manifest by tag or digest, a blob as a stream, the tags of a repository.

A `Registry` stands for a name's domain. Behind `docker.io` are the user's mirrors, then Docker Hub; each such endpoint
has its own authorization and is asked in that order, as dockerd does. Taught in chapter 04.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from minirt.errors import MinirtError
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest
from minirt.image.reference import DEFAULT_DOMAIN
from minirt.registry.credentials import Credentials
from minirt.registry.endpoint import Endpoint
from minirt.registry.patience import Unreachable, telling
from minirt.registry.settings import Settings
from minirt.registry.transport import Transport

if TYPE_CHECKING:
    from minirt.registry.upload import Upload

__all__ = ["Registry", "Unreachable", "telling"]

T = TypeVar("T")
DOCKER_HUB = "https://registry-1.docker.io"


class Registry:
    """A registry as a name's domain means it. Thread-safe. Close it, or use it as long as the process."""

    def __init__(
        self,
        domain: str,
        settings: Settings,
        *,
        endpoint: str | None = None,
        connect_timeout: float = 10,
        stall_timeout: float = 30,
        attempts: int = 5,
        backoff: float = 0.5,
        credentials: Credentials | None = None,
    ) -> None:
        """`endpoint`: an explicit base URL instead of what `domain` says (the embedded hub). Times in seconds.

        An insecure registry is asked by https first and by http only where that fails, as docker does.
        """
        urls: list[tuple[str, tuple[str, ...]]]
        if endpoint:
            urls = [(urlsplit(endpoint).netloc, (endpoint.rstrip("/"),))]
        elif domain == DEFAULT_DOMAIN:
            mirrors = [(urlsplit(url).netloc, (url,)) for url in settings.registry_mirrors]
            urls = [*mirrors, (domain, (DOCKER_HUB,))]
        else:
            schemes = ("https", "http") if settings.insecure(domain) else ("https",)
            urls = [(domain, tuple(f"{scheme}://{domain}" for scheme in schemes))]
        known = credentials or Credentials()

        def transport(base: str) -> Transport:
            return Transport(base, settings, connect_timeout, stall_timeout, attempts, backoff)

        self._spoilt: set[Digest] = set()
        self._endpoints = [Endpoint(domain, owner, bases, known, transport) for owner, bases in urls]

    def manifest(self, path: str, target: str) -> tuple[bytes, str, Digest]:
        """The document a tag or digest names: content, media type, digest. At most MAX_DOCUMENT bytes, verified.

        Raises NotFound, Unauthorized, VerificationError, Unreachable, RegistryError.
        """
        return self._first(lambda endpoint: endpoint.manifest(path, target))

    def blob(self, path: str, descriptor: Descriptor, offset: int = 0) -> Iterator[bytes]:
        """The blob's bytes from `offset` on, in chunks of at most 1 MiB: exactly `size - offset` in all, or an error.

        A transfer that drops or stalls goes on where it was. The digest is for the reader to check.
        """
        *mirrors, last = self._endpoints
        for mirror in mirrors if descriptor.digest not in self._spoilt else ():
            try:
                for chunk in mirror.blob(path, descriptor, offset):
                    offset += len(chunk)
                    yield chunk
                return
            except MinirtError:
                continue  # the next endpoint goes on where this one stopped
        yield from last.blob(path, descriptor, offset)

    def distrust(self, digest: Digest) -> bool:
        """The bytes that came for this blob are not it: mirrors are not asked for it again. Were any?"""
        asked = len(self._endpoints) > 1 and digest not in self._spoilt
        self._spoilt.add(digest)
        return asked

    def tags(self, path: str) -> list[str]:
        """All tags of a repository, in the registry's order."""
        return self._first(lambda endpoint: endpoint.tags(path))

    def upload(self, path: str) -> Upload:
        """What a repository is written by. Mirrors are for reading: it is the registry itself."""
        from minirt.registry.upload import Upload

        return Upload(self._endpoints[-1], path)

    def login(self) -> str:
        """Show the credentials to the registry itself; what it gives in the password's place, "" where nothing."""
        return self._endpoints[-1].login()

    def close(self) -> None:
        for endpoint in self._endpoints:
            endpoint.close()

    def _first(self, verb: Callable[[Endpoint], T]) -> T:
        """The first endpoint that can; where none can, Docker Hub's (the last one's) error counts, as with dockerd."""
        *mirrors, last = self._endpoints
        for mirror in mirrors:
            try:
                return verb(mirror)
            except MinirtError:
                continue
        return verb(last)
