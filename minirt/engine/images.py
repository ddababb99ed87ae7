"""The verbs on stored images: list, inspect, history, tag, remove, save, load."""

from __future__ import annotations

import contextlib
import datetime
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from minirt.engine.events import Events
from minirt.engine.filters import Filters, check, matches, moment, prune, truth
from minirt.engine.pull import name_image
from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound
from minirt.image.config import ImageConfig
from minirt.image.descriptor import Descriptor
from minirt.image.digest import Digest
from minirt.image.reference import Reference
from minirt.store.names import Named
from minirt.store.store import Image, Store

if TYPE_CHECKING:
    from minirt.engine.answers.images import (
        CreateImageInfo,
        HistoryResponseItem,
        ImageDeleteResponseItem,
        ImageInspect,
        ImagePruneResponse,
        ImageSummary,
        Variant,
    )


class Images:
    """Image verbs over one store."""

    def __init__(self, store: Store, events: Events | None = None) -> None:
        self._store, self._events = store, events or Events()
        self._read: dict[Digest, dict[str, str] | None] = {}  # labels, of images that are there

    def tell(self, action: str, image: Digest, id: str = "", name: str = "") -> None:
        """Publish what happened to it, with what docker says of an image: its labels, and a name."""
        about = (self._labels(image) or {}) | {"name": name or str(image)}
        self._events.publish("image", action, id or str(image), **about)

    def summaries(self, filters: Filters | None = None) -> list[ImageSummary]:
        """GET /images/json: one object an image, newest first. Sizes in bytes, `Created` in seconds of the epoch."""
        given = filters or {}
        others = [value for key in ("before", "since") for value in given.get(key) or ()]
        created = {value: _created(self._store.names.find(value)) for value in others}
        patterns, dangling = given.get("reference"), truth(filters, "dangling", False)
        tests = prune(filters) | {
            "dangling": lambda image, value: dangling == (not image["RepoTags"]),
            "reference": lambda image, value: bool(image["RepoTags"] or image["RepoDigests"]),
            "before": lambda image, value: image["created"] < created[value],
            "since": lambda image, value: image["created"] > created[value],
        }
        check(filters, tests)
        out = []
        families = self._families()
        self._read = {names[0].id: self._labels(names[0].id) for names in families}
        for names in families:
            image = _summary(names, self._labels(names[0].id))
            if patterns:  # only these names are shown
                for shown in image["RepoTags"], image["RepoDigests"]:
                    shown[:] = [name for name in shown if any(_called(name, pattern) for pattern in patterns)]
            if matches(image | {"created": _created(names[0])}, filters, tests):
                out.append(image)
        return sorted(out, key=lambda image: (-image["Created"], image["RepoTags"]))

    def _families(self, own: bool = False) -> list[list[Named]]:
        """The names of each image; with `own` but those given here."""
        images: dict[Digest, list[Named]] = {}
        for named in self._store.names.own() if own else self._store.names.all():
            images.setdefault(named.id, []).append(named)
        return list(images.values())

    def _labels(self, image: Digest) -> dict[str, str] | None:
        if image in self._read:  # an image's config never changes
            return self._read[image]
        with contextlib.suppress(MinirtError):  # damaged: `inspect` tells
            return ImageConfig.parse(self._store.layout.read(image)).labels or None
        return None

    def usage(self, users: list[str]) -> list[ImageSummary]:
        """`summaries` with what GET /system/df adds: bytes shared with other images, and how many of `users`
        (the image IDs of containers) it has. A layer in an additional store is shared: its bytes are not ours."""
        with self._store.using():
            layers = {str(n.id): set(self._store.image(n.manifest).config.diff_ids) for n in self._store.names.all()}
        owners = Counter(diff_id for diff_ids in layers.values() for diff_id in diff_ids)
        images = self.summaries()
        for image in images:  # one that came this moment shares nothing yet
            shared = [d for d in layers.get(image["Id"], ()) if owners[d] > 1 or self._elsewhere(d)]
            image["SharedSize"] = sum(self._store.pulled.facts(diff_id).get("size", 0) for diff_id in shared)
            image["Containers"] = users.count(image["Id"])
        return images

    def _elsewhere(self, diff_id: Digest) -> bool:
        place = self._store.pulled.find(diff_id)
        return place is not None and place.store is not None

    def inspect(self, name: str) -> ImageInspect:
        """GET /images/{name}/json. Raises NotFound."""
        from minirt.engine.inspect import config

        named = self._store.names.find(name)
        image = self._store.image(named.manifest)
        tags, digests = self._names_of(named.id)
        raw, platform = image.config.raw, image.config.platform
        variant: Variant = {"Variant": platform.variant} if platform.variant else {}
        folders = [str(self._store.pulled.path(diff_id)) for _, diff_id in reversed(image.layers)] or [""]
        return {
            "Id": str(named.id),
            "RepoTags": tags,
            "RepoDigests": digests,
            "Parent": "",
            "Comment": raw.get("comment", ""),
            "Created": image.config.created,
            "Container": "",
            "ContainerConfig": config({}),
            "DockerVersion": raw.get("docker_version", ""),
            "Author": raw.get("author", ""),
            "Config": config(raw.get("config") or {}),
            "Architecture": platform.architecture,
            **variant,
            "Os": platform.os,
            "Size": named.size,
            "VirtualSize": named.size,
            "GraphDriver": {"Name": "overlay", "Data": {"LowerDir": ":".join(folders[1:]), "UpperDir": folders[0]}},
            "RootFS": {"Type": "layers", "Layers": [str(diff_id) for diff_id in image.config.diff_ids]},
            "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
            "Descriptor": named.target.to_json(),
            "Manifest": str(named.manifest),
            "Blobs": [layer.to_json() for layer, _ in image.layers],
            "Store": str(named.store or self._store.root),
        }

    def history(self, name: str) -> list[HistoryResponseItem]:
        """GET /images/{name}/history: newest first; sizes in bytes unpacked."""
        named = self._store.names.find(name)
        image = self._store.image(named.manifest)
        layers = iter(image.layers)
        rows: list[HistoryResponseItem] = []
        for entry in image.config.history:
            size = 0
            if not entry.get("empty_layer"):
                layer = next(layers, None)
                size = self._store.pulled.facts(layer[1]).get("size", layer[0].size) if layer else 0
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
        self.tell("tag", image.id, name=reference.familiar)

    def _name(self, image: Image, reference: Reference, target: Descriptor, local: bool) -> None:
        new = name_image(self._store, reference, target, image.manifest, image.manifest_digest, image.config, local)
        for digest in (target.digest, image.manifest_digest, image.id):  # so that our name says something on its own
            with contextlib.suppress(NotFound):  # an index that did not come along
                self._store.layout.keep(digest, self._store.layout.read(digest))
        self._store.names.set(new, image.manifest, image.manifest_size)

    def remove(self, name: str, force: bool = False) -> list[ImageDeleteResponseItem]:
        """DELETE /images/{name}: take the name away, and with the last name the image. Raises NotFound, Conflict.

        Only one's own names go. What an additional store names is there still, and is not removed.
        """
        named = self._store.names.find(name)
        if named.store:
            raise Conflict(
                f"conflict: unable to delete {named.id.short} (cannot be forced) - "
                f"cannot remove read-only image of the additional store {named.store}"
            )
        family = [n for n in self._store.names.own() if n.id == named.id]
        stays = any(n.id == named.id for n in self._store.names.others())
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
        every = len(going) == len(family)
        last = every and not stays
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
        out: list[ImageDeleteResponseItem] = [{"Untagged": n.reference.familiar} for n in going if n.reference.tag]
        still = {n.repo_digest for n in family if n not in going and n not in kept}
        digests = {n.repo_digest for n in (*going, *kept) if n.repo_digest} - still
        out += [{"Untagged": str(digest)} for digest in sorted(map(str, digests))]
        if last and not users:
            out.append({"Deleted": str(named.id)})
        if every and not users:
            out += [{"Deleted": str(digest)} for digest in self._store.sweep()[0]]
        self._gone(out, named.id)
        return out

    def _gone(self, rows: list[ImageDeleteResponseItem], image: Digest) -> None:
        """Tell what such rows say of this image; digests go with the tag, untold."""
        for row in rows:
            if "@" not in row.get("Untagged", "@"):
                self.tell("untag", image)
        if {"Deleted": str(image)} in rows:
            self.tell("delete", image)

    def prune(self, filters: Filters | None = None) -> ImagePruneResponse:
        """POST /images/prune: remove images that no container uses, and (but for `dangling=false`) no tag names.

        Bytes freed. Raises InvalidInput.
        """
        tests = prune(filters) | {"dangling": lambda image, value: True}
        check(filters, tests)
        dangling = truth(filters, "dangling", True)
        used, going = set(self._store.container_images().values()), []
        for names in self._families(own=True):
            about = {"Created": _created(names[0]), "Labels": self._labels(names[0].id)}
            kept = any(n.manifest in used or (dangling and n.reference.tag) for n in names)
            if not kept and matches(about, filters, tests):
                going.append(names)
        with self._store.using():
            self._store.names.remove(n.reference for names in going for n in names)
        gone: list[ImageDeleteResponseItem] = []
        for names in going:
            named = {n.reference.familiar for n in names if n.reference.tag} | {str(n.repo_digest) for n in names}
            rows: list[ImageDeleteResponseItem] = [{"Untagged": name} for name in sorted(named - {"None"})]
            rows.append({"Deleted": str(names[0].id)})
            self._gone(rows, names[0].id)
            gone += rows
        layers, freed = self._store.sweep()
        self._events.publish("image", "prune", "", reclaimed=str(freed))
        gone += [{"Deleted": str(layer)} for layer in layers]
        return {"ImagesDeleted": gone, "SpaceReclaimed": freed}

    def save(self, names: list[str]) -> Iterator[bytes]:
        """GET /images/get: a tar that docker, podman and skopeo load. Raises NotFound before the first byte."""
        wanted = []
        for name in names:
            named = self._store.names.find(name)
            tag = named.reference if named.reference.tag and _is_name(name, named) else None
            wanted.append((self._store.image(named.manifest), tag))
        for image, _ in wanted:
            self.tell("save", image.id)
        return self._save(wanted)

    def _save(self, wanted: list[tuple[Image, Reference | None]]) -> Iterator[bytes]:
        from minirt.store import archive  # brings tarfile, which a run does without

        with self._store.using():
            yield from archive.save(self._store.layout, wanted)

    def load(self, stream: BinaryIO) -> Iterator[CreateImageInfo]:
        """POST /images/load: from `docker save`'s or an OCI archive. Yields `{"stream": …}` lines."""
        from minirt.store import archive  # brings tarfile, which a run does without

        with self._store.using():
            for image, references in archive.load(self._store, stream):
                for layer, diff_id in image.layers:
                    self._store.pulled.fetch(layer, diff_id)
                target = Descriptor(image.manifest.media_type, image.manifest_digest, image.manifest_size)
                if not references:
                    unnamed = Reference("docker.io", "library/loaded", None, image.manifest_digest)
                    self._name(image, unnamed, target, local=True)
                    yield {"stream": f"Loaded image ID: {image.id}\n"}
                for reference in references:
                    self._name(image, reference, target, local=True)
                    yield {"stream": f"Loaded image: {reference.familiar}\n"}
                self.tell("load", image.id)

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


def _summary(names: list[Named], labels: dict[str, str] | None) -> ImageSummary:
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
        "Labels": labels,
    }


def epoch(text: str) -> int:
    """Seconds of the epoch of an RFC 3339 time; 0 where there is none."""
    try:
        return int(datetime.datetime.fromisoformat(text[:19] + "+00:00").timestamp())
    except ValueError:
        return 0


def _created(named: Named) -> float:
    """Seconds of the epoch, with their fraction; 0 where the image does not say."""
    try:
        return moment(named.created)
    except InvalidInput:
        return 0


def _called(name: str, pattern: str) -> bool:
    """Does a name, with its tag or digest or without, match the pattern? A `*` ends at a slash."""
    from fnmatch import fnmatchcase

    short = name.partition("@")[0] if "@" in name else name.rpartition(":")[0]
    wanted = pattern.split("/")
    return any(
        len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
        for parts in (name.split("/"), short.split("/"))
    )
