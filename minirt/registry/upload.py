"""The writing half of the distribution-spec: blobs first, the manifest that names them last.

    HEAD  /v2/<path>/blobs/<digest>                             is it there?
    POST  /v2/<path>/blobs/uploads/?mount=<digest>&from=<path>  201: taken over from another repository; else an upload
    POST  /v2/<path>/blobs/uploads/                             202, and a Location where the bytes go
    PATCH <location>                                            the bytes, as one stream; the next Location
    PUT   <location>?digest=<digest>                            the registry checks them, and has the blob
    PUT   /v2/<path>/manifests/<tag>                            the image has a name

A stream that breaks off goes on where the registry says it is, or begins anew where it does not know. Where an upload
goes is the registry's word: the guard of redirects holds for it, and only the registry itself sees our authorization.
Source: OCI distribution-spec, "Push". Taught in chapter 04.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

import requests

from minirt.errors import MinirtError, RegistryError, StoreError, VerificationError
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest
from minirt.registry.endpoint import CHUNK, Endpoint
from minirt.registry.patience import Transient, Unreachable

Tell = Callable[[int], None]
_OCTETS = {"Content-Type": "application/octet-stream"}
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})", re.ASCII)


class Upload:
    """Blobs and manifests for the repository `path` of one registry. Thread-safe."""

    def __init__(self, endpoint: Endpoint, path: str) -> None:
        self._endpoint, self._path = endpoint, path
        self._scope = f"repository:{path}:pull,push"

    def has(self, blob: Descriptor) -> bool:
        """Does the repository have the blob already?"""
        self._endpoint.prepare(self._path, self._scope)
        return self._endpoint.transport.persist(lambda: self._has(blob))

    def _has(self, blob: Descriptor) -> bool:
        response = self._ask("HEAD", f"{self._endpoint.base}/v2/{self._path}/blobs/{blob.digest}")
        size = response.headers.get("Content-Length", "")
        response.close()
        if response.status_code in (200, 301, 302, 303, 307, 308):  # a redirect leads to where it is stored
            return response.status_code != 200 or not size.isdigit() or int(size) == blob.size
        if response.status_code == 404:
            return False
        raise self._endpoint.refusal(response, self._path, self._scope, "blob", blob.digest)

    def mount(self, digest: Digest, source: str) -> bool:
        """Take a blob over from another repository of the registry, if it allows that."""
        query = f"?mount={quote(digest)}&from={quote(source, safe='')}"
        self._endpoint.prepare(self._path, self._scope)
        with suppress(MinirtError):  # then the bytes are sent
            response = self._endpoint.transport.persist(
                lambda: self._ask("POST", self._uploads + query, more=f" repository:{source}:pull")
            )
            response.close()
            return response.status_code == 201
        return False

    def put(self, blob: Descriptor, file: Path, tell: Tell) -> None:
        """Send a blob's bytes from `file`; `tell` gets how many are sent, and may raise to end it.

        Raises Unauthorized, RegistryError, StoreError, VerificationError (the registry got other bytes).
        """
        self._endpoint.prepare(self._path, self._scope)
        patience, location, offset, resumed = self._endpoint.transport.patience(), "", 0, 0
        while True:
            try:
                if not location:
                    location, offset, resumed = self._begin(), 0, 0
                while offset < blob.size:
                    location, offset = self._patch(location, blob, file, offset, tell)
                self._commit(location, blob)
                return
            except (Transient, Unreachable) as error:
                if offset - resumed >= CHUNK:  # it gets on: as patient again as at the start
                    patience, resumed = self._endpoint.transport.patience(), offset
                patience.wait(error)
                if self.has(blob):  # only the answer was lost
                    return
                location, offset = self._where(location, blob) if location else ("", 0)

    def manifest(self, content: bytes, media_type: str, tag: str) -> None:
        """Name an image whose blobs are all there. Raises as `put`."""
        self._endpoint.prepare(self._path, self._scope)
        self._endpoint.transport.persist(lambda: self._manifest(content, media_type, tag))

    def _manifest(self, content: bytes, media_type: str, tag: str) -> None:
        url = f"{self._endpoint.base}/v2/{self._path}/manifests/{tag}"
        response = self._ask("PUT", url, {"Content-Type": media_type}, lambda: _Bytes(content))
        if response.status_code not in (201, 202):
            raise self._endpoint.refusal(response, self._path, self._scope, "manifest", tag)
        stated = response.headers.get("Docker-Content-Digest", "")
        response.close()
        if stated and stated != Digest.of(content):
            raise VerificationError(f"the registry calls the manifest {stated[:80]!r}, not {Digest.of(content)}")

    # an upload

    @property
    def _uploads(self) -> str:
        return f"{self._endpoint.base}/v2/{self._path}/blobs/uploads/"

    def _begin(self) -> str:
        response = self._ask("POST", self._uploads)
        return self._next(response, self._uploads, "upload")

    def _patch(self, location: str, blob: Descriptor, file: Path, offset: int, tell: Tell) -> tuple[str, int]:
        """Send what is left; where it goes on, and how much the registry has."""
        # Whole blobs go without: registries that take pieces only one way or the other all take a stream.
        part = {"Content-Range": f"{offset}-{blob.size - 1}"} if offset else {}
        with _opened(file) as opened:
            response = self._ask(
                "PATCH", location, _OCTETS | part, lambda: _File(opened, offset, blob.size - offset, tell)
            )
        has = _RANGE.fullmatch(response.headers.get("Range", ""))
        following = self._next(response, location, f"layer {blob.digest.short}")
        reached = int(has[1]) + 1 if has else blob.size
        if not offset < reached <= blob.size:
            raise RegistryError(f"the registry says it has {reached} bytes of {blob.digest.short}, of {blob.size}")
        return following, reached

    def _where(self, location: str, blob: Descriptor) -> tuple[str, int]:
        """Where a broken upload goes on; nowhere where the registry has forgotten it."""
        with suppress(MinirtError):
            response = self._ask("GET", location)
            has = _RANGE.fullmatch(response.headers.get("Range", ""))
            if response.status_code == 204 and has and 0 < int(has[1]) < blob.size:
                return self._next(response, location, "upload"), int(has[1]) + 1
            response.close()
        return "", 0

    def _commit(self, location: str, blob: Descriptor) -> None:
        parts = urlsplit(location)
        url = parts._replace(query=f"{parts.query}&digest={blob.digest}".lstrip("&")).geturl()
        response = self._ask("PUT", url, _OCTETS | {"Content-Length": "0"})
        if response.status_code in (201, 204):
            response.close()
            return
        if response.status_code == 400:
            code, words = self._endpoint.transport.said(response)
            what = f"the registry refuses layer {blob.digest.short}: {words or code or 'bad request'}"
            raise VerificationError(f"{what}: does `minirt system check` find it damaged?")
        if response.status_code in (404, 416):  # it has lost what we sent
            response.close()
            raise Transient(f"the registry has lost the upload of layer {blob.digest.short}")
        raise self._endpoint.refusal(response, self._path, self._scope, "layer", blob.digest)

    def _next(self, response: requests.Response, url: str, what: str) -> str:
        """The Location of an answer that takes an upload further; closes it."""
        if response.status_code in (400, 404, 416):  # it has lost what we sent: anew
            words = self._endpoint.transport.said(response)[1]
            raise Transient(f"the registry goes on with the {what} no more" + f": {words}" * bool(words))
        if response.status_code not in (202, 204):
            raise self._endpoint.refusal(response, self._path, self._scope, "the", what)
        response.close()
        found = response.headers.get("Location", "")
        if not found and response.status_code == 202:
            raise RegistryError(f"the registry does not say where the {what} goes on")
        location = urljoin(url, found)
        if urlsplit(url).scheme == "https" and urlsplit(location).scheme != "https":
            raise RegistryError("the registry sends an upload from https to plain http: refused")
        return location

    def _ask(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None = None,
        body: Callable[[], _Bytes | _File] | None = None,
        more: str = "",
    ) -> requests.Response:
        return self._endpoint.ask(method, url, self._path, self._scope + more, headers or {}, body)


class _Bytes:
    """A small body."""

    def __init__(self, content: bytes) -> None:
        self._left = content

    def __len__(self) -> int:
        return len(self._left)

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(CHUNK), b"")

    def read(self, size: int) -> bytes:
        piece, self._left = self._left[:size], self._left[size:]
        return piece


class _File:
    """A part of a file as a body; `tell` hears how far the file is sent."""

    def __init__(self, file: BinaryIO, start: int, size: int, tell: Tell) -> None:
        self._file, self._at, self._size, self._tell = file, start, size, tell
        file.seek(start)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(CHUNK), b"")

    def read(self, size: int) -> bytes:
        self._tell(self._at)
        try:
            piece = self._file.read(min(size, self._size))
        except OSError as error:  # not the line's fault
            raise StoreError(f"cannot read a layer's blob: {error.strerror}") from error
        self._at += len(piece)
        self._size -= len(piece)
        return piece


def _opened(file: Path) -> BinaryIO:
    try:
        return open(file, "rb")
    except OSError as error:
        raise StoreError(f"cannot read blob {file.name[:12]}: {error.strerror}: run `minirt system check`") from error
