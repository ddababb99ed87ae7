"""A descriptor: how one piece of content points to another (media type, digest, size in bytes).

Source: OCI image-spec, descriptor.md and media-types.md; Docker's image manifest v2 schema 2.
Invariant: the digest is well formed and the size is a non-negative integer. Taught in chapter 05.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minirt.errors import InvalidInput, VerificationError
from minirt.image.digest import Digest
from minirt.image.platform import Platform

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
# What each layer type is compressed with, and its OCI name (for the written twin of a Docker manifest).
LAYER_TYPES: dict[str, tuple[str, str]] = {
    f"{OCI_LAYER}": ("none", OCI_LAYER),
    f"{OCI_LAYER}+gzip": ("gzip", f"{OCI_LAYER}+gzip"),
    f"{OCI_LAYER}+zstd": ("zstd", f"{OCI_LAYER}+zstd"),
    f"{DOCKER_LAYER}": ("none", OCI_LAYER),
    f"{DOCKER_LAYER}.gzip": ("gzip", f"{OCI_LAYER}+gzip"),
    f"{DOCKER_LAYER}.zstd": ("zstd", f"{OCI_LAYER}+zstd"),
    f"{OCI_FOREIGN_LAYER}": ("none", OCI_LAYER),
    f"{OCI_FOREIGN_LAYER}+gzip": ("gzip", f"{OCI_LAYER}+gzip"),
    f"{OCI_FOREIGN_LAYER}+zstd": ("zstd", f"{OCI_LAYER}+zstd"),
    f"{DOCKER_FOREIGN_LAYER}": ("none", OCI_LAYER),
    f"{DOCKER_FOREIGN_LAYER}.gzip": ("gzip", f"{OCI_LAYER}+gzip"),
}
# Those that only their publisher may hand on.
FOREIGN_LAYERS = frozenset(kind for kind in LAYER_TYPES if kind.startswith((OCI_FOREIGN_LAYER, DOCKER_FOREIGN_LAYER)))
_MAX_SIZE = 2**63 - 1


@dataclass(frozen=True)
class Descriptor:
    """`size` in bytes; `annotations` as given; `platform` only inside an index."""

    media_type: str
    digest: Digest
    size: int
    annotations: dict[str, str] = field(default_factory=dict, compare=False)
    platform: Platform | None = None

    @classmethod
    def from_json(cls, value: Any, where: str) -> Descriptor:
        """Parse one descriptor; `where` names it in errors. Raises VerificationError."""
        if not isinstance(value, dict):
            raise VerificationError(f"{where} is not a descriptor object")
        media_type, size = value.get("mediaType"), value.get("size")
        if not isinstance(media_type, str) or not media_type:
            raise VerificationError(f"{where} has no mediaType")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
            raise VerificationError(f"{where} has no valid size")
        try:
            digest = Digest(value.get("digest") or "")
        except (InvalidInput, AttributeError, TypeError) as error:
            raise VerificationError(f"{where}: {error}") from error
        notes = value.get("annotations") or {}
        if not isinstance(notes, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in notes.items()):
            raise VerificationError(f"{where} has annotations that are not strings")
        platform = Platform.from_json(value["platform"]) if isinstance(value.get("platform"), dict) else None
        return cls(media_type, digest, size, notes, platform)

    def to_json(self) -> dict[str, Any]:
        """The JSON object, fields in the spec's order, empty ones left out."""
        out: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.annotations:
            out["annotations"] = self.annotations
        if self.platform:
            named = {"architecture": self.platform.architecture, "os": self.platform.os}
            out["platform"] = named | ({"variant": self.platform.variant} if self.platform.variant else {})
        return out
