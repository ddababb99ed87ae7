"""The verbs on stored images: list, inspect, history, tag, remove, save, load."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from minirt.engine.filters import matches
from minirt.engine.pull import name_image
from minirt.errors import Conflict, InvalidInput
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest
from minirt.image.reference import Reference
from minirt.store.names import Named
from minirt.store.store import Image, Store


class Images:
    """Image verbs over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def summaries(self, filters: dict[str, list[str]] | None = None) -> list[dict[str, Any]]:
        """GET /images/json: one object an image, newest first. Sizes in bytes, `Created` in seconds of the epoch."""
        images: dict[Digest, list[Named]] = {}
        for named in self._store.names.all():
            images.setdefault(named.id, []).append(named)
        out = [_summary(names) for names in images.values()]
        out = [image for image in out if matches(image, filters, _FILTERS)]
        return sorted(out, key=lambda image: (-image["Created"], image["RepoTags"]))

    def usage(self, users: list[str]) -> list[dict[str, Any]]:
        """`summaries` with what GET /system/df adds: bytes shared with other images, and how many of `users`
        (the image IDs of containers) it has."""
        with self._store.using():
            layers = {str(n.id): set(self._store.image(n.manifest).config.diff_ids) for n in self._store.names.all()}
        owners = Counter(diff_id for diff_ids in layers.values() for diff_id in diff_ids)
        images = self.summaries()
        for image in images:  # one that came this moment shares nothing yet
            shared = [diff_id for diff_id in layers.get(image["Id"], ()) if owners[diff_id] > 1]
            image["SharedSize"] = sum(self._store.layers.facts(diff_id).get("size", 0) for diff_id in shared)
            image["Containers"] = users.count(image["Id"])
        return images

    def inspect(self, name: str) -> dict[str, Any]:
        """GET /images/{name}/json. Raises NotFound."""
        named = self._store.names.find(name)
        image = self._store.image(named.manifest)
        tags, digests = self._names_of(named.id)
        raw = image.config.raw
        folders = [str(self._store.layers.path(diff_id)) for _, diff_id in reversed(image.layers)] or [""]
        return {
            "Id": str(named.id),
            "RepoTags": tags,
            "RepoDigests": digests,
            "Parent": "",
            "Comment": raw.get("comment", ""),
            "Created": image.config.created,
            "Author": raw.get("author", ""),
            "Config": raw.get("config") or {},
            "Architecture": image.config.platform.architecture,
            "Variant": image.config.platform.variant,
            "Os": image.config.platform.os,
            "Size": named.size,
            "GraphDriver": {"Name": "overlay", "Data": {"LowerDir": ":".join(folders[1:]), "UpperDir": folders[0]}},
            "RootFS": {"Type": "layers", "Layers": [str(diff_id) for diff_id in image.config.diff_ids]},
            "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
            "Descriptor": named.target.to_json(),
            "Manifest": str(named.manifest),
            "Blobs": [layer.to_json() for layer, _ in image.layers],
        }

    def history(self, name: str) -> list[dict[str, Any]]:
        """GET /images/{name}/history: newest first; sizes in bytes unpacked."""
        named = self._store.names.find(name)
        image = self._store.image(named.manifest)
        layers = iter(image.layers)
        rows = []
        for entry in image.config.history:
            size = 0
            if not entry.get("empty_layer"):
                layer = next(layers, None)
                size = self._store.layers.facts(layer[1]).get("size", layer[0].size) if layer else 0
            rows.append(
                {
                    "Id": "<missing>",
                    "Created": epoch(str(entry.get("created", ""))),
                    "CreatedBy": str(entry.get("created_by", "")),
                    "Tags": None,
                    "Size": size,
                    "Comment": str(entry.get("comment", "")),
                }
            )
        if rows:
            rows[-1] |= {"Id": str(named.id), "Tags": self._names_of(named.id)[0]}
        return rows[::-1]

    def tag(self, source: str, target: str) -> None:
        """POST /images/{name}/tag: give an image one more name. Raises NotFound, InvalidInput."""
        reference = Reference.parse(target)
        if reference.digest:
            raise InvalidInput("refusing to create a tag with a digest reference")
        with self._store.using():
            named = self._store.names.find(source)
            image = self._store.image(named.manifest)
            self._name(image, reference, named.target, local=named.local or reference.name != named.reference.name)

    def _name(self, image: Image, reference: Reference, target: Descriptor, local: bool) -> None:
        new = name_image(self._store, reference, target, image.manifest, image.manifest_digest, image.config, local)
        self._store.names.set(new, image.manifest, image.manifest_size)

    def remove(self, name: str, force: bool = False) -> list[dict[str, str]]:
        """DELETE /images/{name}: take the name away, and with the last name the image. Raises NotFound, Conflict."""
        named = self._store.names.find(name)
        family = [n for n in self._store.names.all() if n.id == named.id]
        tagged = [n for n in family if n.reference.tag]
        by_id = not _is_name(name, named)
        mine = [n for n in family if n.reference.name == named.reference.name]
        if by_id and (len(tagged) > 1 or len(mine) < len(family)) and not force:
            raise Conflict(
                f"conflict: unable to delete {named.id.short} (must be forced) - "
                "image is referenced in multiple repositories"
            )
        going, kept = family, []
        if not by_id and Reference.parse(name).digest:  # its tags stay, and no longer say what the registry calls it
            going, kept = [n for n in mine if not n.reference.tag], [n for n in mine if n.reference.tag]
        elif not by_id:  # with the repository's last tag its digests go
            others = any(n.reference.tag and n.reference != named.reference for n in mine)
            going = [named] if others else mine
        last = len(going) == len(family)
        users = [i for i, m in self._store.container_images().items() if m == named.manifest]
        if users and last and not force:
            what = f"unable to delete {named.id.short}" if by_id else f'unable to remove repository reference "{name}"'
            raise Conflict(
                f"conflict: {what} (must force) - container {users[0][:12]} "
                f"is using its referenced image {named.id.short}"
            )
        with self._store.using():
            self._store.names.remove(n.reference for n in going)
            for n in kept:
                self._name(self._store.image(n.manifest), n.reference, n.target, local=True)
        out = [{"Untagged": n.reference.familiar} for n in going if n.reference.tag]
        still = {n.repo_digest for n in family if n not in going and n not in kept}
        digests = {n.repo_digest for n in (*going, *kept) if n.repo_digest} - still
        out += [{"Untagged": str(digest)} for digest in sorted(map(str, digests))]
        if last and not users:
            out.append({"Deleted": str(named.id)})
            out += [{"Deleted": str(digest)} for digest in self._store.sweep()[0]]
        return out

    def prune(self) -> list[dict[str, str]]:
        """Remove images that no tag names and no container uses."""
        used = set(self._store.container_images().values())
        names = self._store.names.all()
        tagged = {named.id for named in names if named.reference.tag}
        dangling = [n for n in names if n.id not in tagged and n.manifest not in used]
        with self._store.using():
            self._store.names.remove(n.reference for n in dangling)
        return [{"Deleted": str(image)} for image in dict.fromkeys(n.id for n in dangling)]

    def save(self, names: list[str]) -> Iterator[bytes]:
        """GET /images/get: a tar that docker, podman and skopeo load. Raises NotFound before the first byte."""
        wanted = []
        for name in names:
            named = self._store.names.find(name)
            tag = named.reference if named.reference.tag and _is_name(name, named) else None
            wanted.append((self._store.image(named.manifest), tag))
        return self._save(wanted)

    def _save(self, wanted: list[tuple[Image, Reference | None]]) -> Iterator[bytes]:
        from minirt.store import archive  # brings tarfile, which a run does without

        with self._store.using():
            yield from archive.save(self._store.layout, wanted)

    def load(self, stream: BinaryIO) -> Iterator[dict[str, Any]]:
        """POST /images/load: from `docker save`'s or an OCI archive. Yields `{"stream": …}` lines."""
        from minirt.store import archive  # brings tarfile, which a run does without

        with self._store.using():
            for image, references in archive.load(self._store, stream):
                for layer, diff_id in image.layers:
                    self._store.layers.fetch(layer, diff_id)
                target = Descriptor(image.manifest.media_type, image.manifest_digest, image.manifest_size)
                if not references:
                    unnamed = Reference("docker.io", "library/loaded", None, image.manifest_digest)
                    self._name(image, unnamed, target, local=True)
                    yield {"stream": f"Loaded image ID: {image.id}\n"}
                for reference in references:
                    self._name(image, reference, target, local=True)
                    yield {"stream": f"Loaded image: {reference.familiar}\n"}

    def _names_of(self, image: Digest) -> tuple[list[str], list[str]]:
        names = [n for n in self._store.names.all() if n.id == image]
        tags = sorted(n.reference.familiar for n in names if n.reference.tag)
        return tags, sorted({n.repo_digest for n in names if n.repo_digest})


def _is_name(text: str, named: Named) -> bool:
    """Was the image asked for by this name (not by its ID)?"""
    if text.startswith("sha256:"):
        return False
    try:
        wanted = Reference.parse(text)
    except InvalidInput:
        return False
    return wanted == named.reference or (wanted.digest is not None and wanted.name == named.reference.name)


def _summary(names: list[Named]) -> dict[str, Any]:
    first = names[0]
    return {
        "Id": str(first.id),
        "ParentId": "",
        "RepoTags": sorted(n.reference.familiar for n in names if n.reference.tag),
        "RepoDigests": sorted({n.repo_digest for n in names if n.repo_digest}),
        "Created": epoch(first.created),
        "Size": first.size,
        "VirtualSize": first.size,  # the same, for clients of API 1.43 and older
        "SharedSize": -1,
        "Containers": -1,
        "Labels": None,
    }


def epoch(text: str) -> int:
    """Seconds of the epoch of an RFC 3339 time; 0 where there is none."""
    try:
        return int(datetime.datetime.fromisoformat(text[:19] + "+00:00").timestamp())
    except ValueError:
        return 0


def _reference(image: dict[str, Any], value: str) -> bool:
    from fnmatch import fnmatchcase

    names = [tag for tag in image["RepoTags"]] + [digest.partition("@")[0] for digest in image["RepoDigests"]]
    return any(fnmatchcase(n, value) or fnmatchcase(n.rpartition(":")[0], value) for n in names)


_FILTERS = {
    "dangling": lambda image, value: (not image["RepoTags"]) == (value in ("1", "true", "True")),
    "reference": _reference,
}
