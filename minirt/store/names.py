"""Names: which image is called what, kept as annotations in the layout's index.json, so that `images` reads one file.

One descriptor per name. It points to what the registry served under it (manifest or index), whose digest is the one the
user sees, and carries ours: `io.minirt.name` (the normalised reference), `.manifest` (this platform's manifest), `.id`
(the config's digest: docker's image ID), `.created`, `.size` (bytes unpacked), `.platform`, `.local` (made or named
here, so no registry knows this name by this digest).
For other tools `org.opencontainers.image.ref.name` (the familiar name) is added where its grammar allows, always on one
OCI-typed manifest: on the same descriptor if that is one, else on a second descriptor beside it.
An image whose tag moved away keeps a name by digest (`x@sha256:…`), shown as `<none>`, until it is removed.
Names of additional stores come after one's own and are hidden by them; only one's own can be changed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound, StoreError
from minirt.image.descriptor import OCI_MANIFEST, Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import Manifest
from minirt.image.reference import Reference
from minirt.store.layout import Layout

_OURS = "io.minirt."
_REF_NAME = "org.opencontainers.image.ref.name"
_REF_GRAMMAR = re.compile(
    r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*)*"
)


@dataclass(frozen=True)
class Named:
    """One name of one image. `size` in bytes unpacked; `created` as the image's config says; `store`: the additional
    store it is named in."""

    reference: Reference
    target: Descriptor
    manifest: Digest
    id: Digest
    created: str
    size: int
    platform: str
    local: bool = False
    store: Path | None = None

    @property
    def repo_digest(self) -> str | None:
        """`name@digest` by which a registry knows it, familiar form."""
        return None if self.local else f"{self.reference.familiar_name}@{self.target.digest}"


class Names:
    """The table of names in a layout, and in the others it looks into."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: tuple[tuple[int, int] | None, list[Named]] = None, []  # the table's stamp, and what stands in it

    def own(self) -> list[Named]:
        """Every name given here, in the order given. Read again only where the table is another: it may have
        thousands."""
        stamp, (before, known) = self._layout.stamp(), self._known
        if stamp is None or stamp != before:
            known = [named for entry in self._layout.index() if (named := _named(entry))]
            self._known = stamp, known
        return list(known)

    def all(self) -> list[Named]:
        """One's own names, then those of additional stores that are not among them."""
        found = {named.reference: named for named in self.own()}
        for named in self.others():
            found.setdefault(named.reference, named)
        return list(found.values())

    def others(self) -> list[Named]:
        """What additional stores name, the first store first."""
        found = []
        for other in self._layout.others():
            with contextlib.suppress(StoreError):  # `system check` tells
                found += [replace(named, store=other.path.parent) for named in Names(other).own()]
        return found

    def damaged(self) -> list[str]:
        """Names whose entry cannot be read: another tool wrote into it."""
        return [str(name) for entry in self._layout.index() if (name := _name(entry)) and not _named(entry)]

    def find(self, text: str) -> Named:
        """By reference (a tag's or a digest's), image ID or its prefix, as docker does. Raises NotFound, Conflict."""
        names = self.all()
        hexadecimal = text.removeprefix("sha256:")
        by_id = [n for n in names if re.fullmatch("[0-9a-f]{1,64}", hexadecimal) and n.id.hex.startswith(hexadecimal)]
        if len(hexadecimal) == 64 or text.startswith("sha256:"):
            exact: list[Named] = []
        else:
            exact = self._by_reference(names, Reference.parse(text))
        found = exact or by_id
        if not found:
            try:
                shown = Reference.parse(text).familiar
            except InvalidInput:
                shown = text
            raise NotFound(f"No such image: {shown}")
        if len({named.id for named in found}) > 1:
            raise Conflict(f"image ID prefix {text} is ambiguous: give more digits")
        return found[0]

    @staticmethod
    def _by_reference(names: Iterable[Named], wanted: Reference) -> list[Named]:
        if wanted.digest is None:
            return [n for n in names if n.reference == wanted]
        same = [n for n in names if n.reference.name == wanted.name]
        return [n for n in same if wanted.digest in (n.target.digest, n.manifest, n.reference.digest)]

    def set(self, named: Named, manifest: Manifest, manifest_size: int) -> None:
        """Give the image this name. An image that had it before keeps its digest as a name."""
        with self._layout.editing() as entries:
            for entry in [e for e in entries if _name(e) == str(named.reference)]:
                old = _named(entry)
                entries.remove(entry)
                if old and old.id != named.id and not any(n and n.id == old.id for n in map(_named, entries)):
                    by_digest = str(old.reference.with_digest(old.target.digest))
                    entries.append(_entry(old, by_digest))
            entries[:] = [e for e in entries if _twin_of(e) != str(named.reference)]
            by_digest = str(named.reference.with_digest(named.target.digest))
            if named.reference.tag:
                entries[:] = [e for e in entries if _name(e) != by_digest]
            entries.append(_entry(named, str(named.reference)))
            self._add_ref_name(entries, named, manifest, manifest_size)

    def _add_ref_name(self, entries: list[dict[str, Any]], named: Named, manifest: Manifest, size: int) -> None:
        """Let skopeo and umoci find it: a ref.name on one OCI manifest."""
        familiar = named.reference.familiar
        if not _REF_GRAMMAR.fullmatch(familiar):
            return
        if named.target.digest == named.manifest and manifest.media_type == OCI_MANIFEST:
            entries[-1]["annotations"][_REF_NAME] = familiar
            return
        digest = named.manifest
        if manifest.media_type != OCI_MANIFEST:
            twin = manifest.as_oci()
            digest, size = self._layout.write(twin), len(twin)
        notes = {_REF_NAME: familiar, _OURS + "twin-of": str(named.reference)}
        entries.append(Descriptor(OCI_MANIFEST, digest, size, notes).to_json())

    def remove(self, references: Iterable[Reference]) -> None:
        """Forget these names; content stays until it is collected."""
        gone = {str(reference) for reference in references}
        with self._layout.editing() as entries:
            entries[:] = [e for e in entries if _name(e) not in gone and _twin_of(e) not in gone]


def _name(entry: dict[str, Any]) -> str | None:
    return _note(entry, "name")


def _twin_of(entry: dict[str, Any]) -> str | None:
    return _note(entry, "twin-of")


def _note(entry: dict[str, Any], key: str) -> str | None:
    """One of our annotations, where there is one: another tool may have written anything."""
    notes = entry.get("annotations")
    note = notes.get(_OURS + key) if isinstance(notes, dict) else None
    return note if isinstance(note, str) else None


def _entry(named: Named, name: str) -> dict[str, Any]:
    notes = {
        "name": name,
        "manifest": str(named.manifest),
        "id": str(named.id),
        "created": named.created,
        "size": str(named.size),
        "platform": named.platform,
    } | ({"local": "true"} if named.local else {})
    target = Descriptor(named.target.media_type, named.target.digest, named.target.size)
    return target.to_json() | {"annotations": {_OURS + key: value for key, value in notes.items()}}


def _named(entry: dict[str, Any]) -> Named | None:
    """Our view of a descriptor; None for one that is not ours (a twin, or another tool's) or damaged."""
    if not _name(entry):
        return None
    try:
        target = Descriptor.from_json(entry, "index.json")
        get = {key.removeprefix(_OURS): value for key, value in target.annotations.items()}.get
        return Named(
            Reference.parse(get("name", "")),
            target,
            Digest(get("manifest", "")),
            Digest(get("id", "")),
            get("created", ""),
            int(get("size", "0")),
            get("platform", ""),
            get("local") == "true",
        )
    except (MinirtError, ValueError):
        return None
