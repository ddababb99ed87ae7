"""What a registry has, looked at without pulling it: GET /distribution/{name}/json, and `manifest inspect`."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from minirt.errors import MinirtError, NotFound, VerificationError
from minirt.image.descriptor import Descriptor
from minirt.image.manifest import Index, Manifest, load_json, parse

if TYPE_CHECKING:
    from minirt.engine.answers.images import DistributionInspect, RemoteManifest
    from minirt.engine.sources import Sources
    from minirt.image.reference import Reference
    from minirt.registry.client import Registry


def distribution(sources: Sources, reference: Reference) -> DistributionInspect:
    """Digest, type and size of what the name points to, and for which platforms there is something. Raises NotFound."""
    registry, (content, media_type, digest), _ = sources.ask(
        reference, lambda registry: registry.manifest(reference.path, reference.target)
    )
    target = Descriptor(media_type, digest, len(content))
    document = parse(content, media_type)
    if isinstance(document, Index):
        entries = load_json(content, "manifest")["manifests"]
        platforms = [entry["platform"] for entry in entries if isinstance(entry.get("platform"), dict)]
    else:
        platforms = [platform] if (platform := _platform(registry, reference, document)) else []
    return {"Descriptor": target.to_json(), "Platforms": platforms}


def manifests(sources: Sources, reference: Reference, verbose: bool) -> list[RemoteManifest]:
    """The document the name points to; where `verbose`, an index is followed by the manifests it lists.

    Raises NotFound, in docker's words.
    """
    try:
        registry, (content, media_type, digest), _ = sources.ask(
            reference, lambda registry: registry.manifest(reference.path, reference.target)
        )
    except NotFound as error:
        raise NotFound(f"no such manifest: {reference.familiar}") from error
    document, top = parse(content, media_type), Descriptor(media_type, digest, len(content)).to_json()
    if isinstance(document, Manifest) and (platform := _platform(registry, reference, document)):
        top["platform"] = platform
    found: list[RemoteManifest] = [_shown(reference.familiar, top, content)]
    for entry in document.manifests if isinstance(document, Index) and verbose else ():
        inner, kind, _ = registry.manifest(reference.path, entry.digest)
        if len(inner) != entry.size or kind != entry.media_type:
            raise VerificationError(f"manifest {entry.digest} is not what its index says (size or media type)")
        found.append(_shown(f"{reference.familiar}@{entry.digest}", entry.to_json(), inner))
    return found


def _shown(name: str, descriptor: dict[str, Any], content: bytes) -> RemoteManifest:
    return {"Ref": name, "Descriptor": descriptor, "Raw": base64.b64encode(content).decode()}


def _platform(registry: Registry, reference: Reference, manifest: Manifest) -> dict[str, str]:
    """As its config says; nothing for what is no container image."""
    content = b"".join(registry.blob(reference.path, manifest.config))
    hasher = manifest.config.digest.hasher()
    hasher.update(content)
    if not manifest.config.digest.matches(hasher):
        raise VerificationError(f"image config does not match its digest {manifest.config.digest}")
    try:
        document = load_json(content, "image config")
    except MinirtError:
        return {}
    keys = "architecture", "os", "os.version", "variant"
    return {key: document[key] for key in keys if isinstance(document.get(key), str) and document[key]}
