"""The OCI image layout on disk: `oci-layout`, `index.json` and content-addressed blobs.

Invariant: a file under `blobs/` has the content its name says; it appears by rename only after its digest was checked.
What is not here may lie in an additional store's layout, where it is only read (additional.py).
`skopeo` and `umoci` read this directory as it lies. Source: OCI image-spec, image-layout.md. Taught in chapter 04.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from minirt.errors import InvalidInput, NotFound, StoreError, VerificationError
from minirt.image.descriptor import OCI_INDEX
from minirt.image.digest import Digest
from minirt.image.manifest import MAX_DOCUMENT
from minirt.store.files import locked, sync_directory, write_atomic

_READABLE = 100  # descriptors: a longer table has no indent, with which Python's encoder is slow (10,000: 0.5 s)
_EMPTY: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


def nobody() -> Sequence[Layout]:
    """A layout alone has no others."""
    return ()


class Layout:
    """One image layout. `index()` reads the names' table, `editing()` changes it under the lock.

    `others()`: layouts of additional stores. Blobs are looked up in them too; all that is written lands here.
    """

    def __init__(self, path: Path, others: Callable[[], Sequence[Layout]] = nobody) -> None:
        self.path, self.others = path, others
        self._index = path / "index.json"

    def create(self) -> None:
        """Make an empty layout, or leave the one there is. Raises StoreError for a version we do not know."""
        (self.path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        marker = self.path / "oci-layout"
        try:
            version = json.loads(marker.read_bytes()).get("imageLayoutVersion")
        except FileNotFoundError:
            write_atomic(marker, b'{"imageLayoutVersion":"1.0.0"}', 0o644)
            version = "1.0.0"
        except (ValueError, AttributeError):
            version = None
        if version != "1.0.0":
            raise StoreError(f"{marker} is not an OCI image layout of version 1.0.0: not a store of ours")
        if not self._index.exists():
            with self.editing():
                pass

    def place(self, digest: Digest) -> Path:
        """Where the blob is here, or would be."""
        return self.path / "blobs" / digest.algorithm / digest.hex

    def blob(self, digest: Digest) -> Path:
        """Where the blob is to be read: here, else in the first other that has it."""
        own = self.place(digest)
        if not own.is_file():
            for other in self.others():
                if (place := other.place(digest)).is_file():
                    return place
        return own

    def has(self, digest: Digest) -> bool:
        return self.blob(digest).is_file()

    def read(self, digest: Digest, own: bool = False) -> bytes:
        """A small blob (manifest, config), whole and checked again; with `own` none of the others'.

        Raises NotFound, VerificationError, StoreError.
        """
        try:
            with open(self.place(digest) if own else self.blob(digest), "rb") as file:
                content = file.read(MAX_DOCUMENT + 1)
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not in the local store") from None
        except OSError as error:
            raise StoreError(f"cannot read blob {digest.short}: {error.strerror}") from error
        hasher = digest.hasher()
        hasher.update(content)
        if not digest.matches(hasher):
            raise VerificationError(f"blob {digest} in the local store is damaged: run `minirt system check`")
        return content

    def write(self, content: bytes) -> Digest:
        """Keep a small blob; returns its digest."""
        digest = Digest.of(content)
        self.keep(digest, content)
        return digest

    def keep(self, digest: Digest, content: bytes) -> None:
        """Keep a small blob whose digest the caller has checked; one that is here but damaged is replaced.

        Also where another layout has it: its owner may remove it, and what is named here stays readable.
        """
        try:
            self.read(digest, own=True)
        except (NotFound, VerificationError):
            self.place(digest).parent.mkdir(exist_ok=True)
            write_atomic(self.place(digest), content, 0o644)

    def take(self, pieces: Iterable[bytes]) -> tuple[Digest, int]:
        """Keep a blob of any size that is only now read; its digest, and its size in bytes. Raises OSError."""
        hasher, size = hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(prefix=".", suffix=".new", dir=self.path, delete=False) as file:
            try:
                for piece in pieces:
                    hasher.update(piece)
                    size += file.write(piece)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                digest = Digest("sha256:" + hasher.hexdigest())
                os.replace(file.name, self.place(digest))
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        sync_directory(self.place(digest).parent)
        return digest, size

    def index(self) -> list[dict[str, Any]]:
        """The descriptors of index.json, other tools' as well. Raises StoreError where it is damaged."""
        try:
            manifests = json.loads(self._index.read_bytes())["manifests"]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self._index} is damaged ({error}): run `minirt system check`") from error
        if not isinstance(manifests, list):
            raise StoreError(f"{self._index} is damaged: run `minirt system check`")
        return [entry for entry in manifests if isinstance(entry, dict)]

    def stamp(self) -> tuple[int, int] | None:
        """Another one whenever index.json is: it is never written in place. None where there is none."""
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(self._index)
            return status.st_ino, status.st_mtime_ns
        return None

    @contextlib.contextmanager
    def editing(self) -> Iterator[list[dict[str, Any]]]:
        """Change the descriptors in place; written atomically at the end, under the lock, unless it raised."""
        with locked(self.path / ".lock"):
            manifests = self.index()
            before = json.dumps(manifests)
            yield manifests
            if json.dumps(manifests) != before or not self._index.exists():
                document = _EMPTY | {"manifests": manifests}
                indent = 1 if len(manifests) < _READABLE else None
                write_atomic(self._index, json.dumps(document, indent=indent, ensure_ascii=False).encode(), 0o644)

    def blobs(self) -> Iterator[Digest]:
        """Every blob there is here; a file of another name is not ours."""
        for path in sorted((self.path / "blobs").glob("*/*")):
            with contextlib.suppress(InvalidInput):
                yield Digest(f"{path.parent.name}:{path.name}")
