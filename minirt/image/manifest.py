"""Manifest and index: the two documents a name can resolve to.

A *manifest* lists one image's config and layers, base layer first. An *index* lists manifests by platform.
Source: OCI image-spec manifest.md and image-index.md; Docker image manifest v2 schema 2. A document must be one or the
other and say what it was announced as (CVE-2021-41190). Schema 1 is refused. Taught in chapter 05.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from minirt.errors import NotFound, VerificationError
from minirt.image.descriptor import (
    CONFIG_TYPES,
    DOCKER_SCHEMA1,
    INDEX_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
)
from minirt.image.platform import Platform

MAX_DOCUMENT = 4 << 20  # bytes: manifests and configs are read whole, so they are capped
_MAX_ENTRIES = 10_000


@dataclass(frozen=True)
class Manifest:
    """One image: `layers` run from the base upwards."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str]

    def as_oci(self) -> bytes:
        """The OCI twin of a Docker v2s2 manifest: same config and layers (same digests), OCI media types."""
        config = Descriptor(OCI_CONFIG, self.config.digest, self.config.size)
        layers = [Descriptor(LAYER_TYPES[d.media_type][1], d.digest, d.size) for d in self.layers]
        return encode(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": config.to_json(),
                "layers": [layer.to_json() for layer in layers],
            }
        )


@dataclass(frozen=True)
class Index:
    """Manifests by platform, in the publisher's order."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str]

    def choose(self, wanted: Platform) -> Descriptor:
        """The manifest for `wanted`. Raises NotFound with the platforms there are."""
        real = [d for d in self.manifests if d.annotations.get("vnd.docker.reference.type") != "attestation-manifest"]
        offered = [d.platform or Platform("", "") for d in real]
        found = wanted.choose(offered)
        if found is not None:
            return real[found]
        if len(real) == 1 and real[0].platform is None:
            return real[0]
        there = ", ".join(sorted({str(p) for p in offered if str(p)})) or "none"
        raise NotFound(f"no matching manifest for {wanted} in the manifest list entries (there are: {there})")


def load_json(content: bytes, what: str) -> dict[str, Any]:
    """Decode a JSON object; `what` names it in errors. Duplicate keys are refused: parsers disagree about them."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return out

    def unheard(word: str) -> None:  # Python's own extension: NaN, Infinity
        raise ValueError(f"{word} is no JSON value")

    if len(content) > MAX_DOCUMENT:
        raise VerificationError(f"{what} is larger than {MAX_DOCUMENT} bytes")
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=unique, parse_constant=unheard)
        if b"\\u" in content:
            encode({"": value})  # half a surrogate pair is no character: nobody could write it down again
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise VerificationError(f"{what} is not a JSON object")
    return value


def encode(document: dict[str, Any]) -> bytes:
    """One canonical form for what we write: compact, keys in the order given, UTF-8."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def parse(content: bytes, announced: str) -> Manifest | Index:
    """Parse a manifest or an index that was announced as media type `announced` (by Content-Type or a descriptor).

    Raises VerificationError where the document and its announcement disagree, or it is ambiguous or malformed.
    """
    announced = announced.partition(";")[0].strip()
    document = load_json(content, "manifest")
    stated = document.get("mediaType")
    if stated is not None and stated != announced:
        raise VerificationError(f"manifest says it is {str(stated)[:80]!r} but came as {announced[:80]!r}")
    if announced in DOCKER_SCHEMA1 or document.get("schemaVersion") == 1:
        raise VerificationError("this image is in Docker's old schema 1 format, which is no longer supported")
    if document.get("schemaVersion") != 2:
        raise VerificationError("manifest has no schemaVersion 2")
    has_manifests = "manifests" in document
    has_layers = "layers" in document or "config" in document or "fsLayers" in document
    if has_manifests and has_layers:
        raise VerificationError("manifest is ambiguous: it has both manifests and layers (CVE-2021-41190)")
    if announced in INDEX_TYPES and has_manifests:
        return Index(announced, _descriptors(document, "manifests"), _annotations(document))
    if announced in MANIFEST_TYPES and "layers" in document:
        return _manifest(document, announced)
    raise VerificationError(f"media type {announced[:80]!r} is not an image manifest or index")


def _manifest(document: dict[str, Any], announced: str) -> Manifest:
    config = Descriptor.from_json(document.get("config"), "manifest config")
    if config.media_type not in CONFIG_TYPES:
        raise VerificationError(f"this is not a container image: its config is {config.media_type[:80]!r}")
    if config.size > MAX_DOCUMENT:
        raise VerificationError(f"image config is larger than {MAX_DOCUMENT} bytes")
    layers = _descriptors(document, "layers")
    for layer in layers:
        if layer.media_type not in LAYER_TYPES:
            raise VerificationError(f"unsupported layer media type {layer.media_type[:80]!r}")
    return Manifest(announced, config, layers, _annotations(document))


def _descriptors(document: dict[str, Any], key: str) -> tuple[Descriptor, ...]:
    entries = document[key]
    if not isinstance(entries, list) or len(entries) > _MAX_ENTRIES:
        raise VerificationError(f"manifest {key} is not a list of at most {_MAX_ENTRIES}")
    return tuple(Descriptor.from_json(entry, f"{key}[{n}]") for n, entry in enumerate(entries))


def _annotations(document: dict[str, Any]) -> dict[str, str]:
    notes = document.get("annotations") or {}
    if not isinstance(notes, dict):
        raise VerificationError("manifest annotations are not an object")
    return {k: v for k, v in notes.items() if isinstance(v, str)}
