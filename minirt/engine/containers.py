"""The verbs on containers: create, rename, list, inspect, logs, prune; life.py has those that start and end one.

A container is a folder under `containers/`: what was asked (`container.json`, written last, so a folder without it is
half made), the OCI bundle, the write layer and what the shim recorded. Nothing lives only in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt import trace
from minirt.engine import logs
from minirt.engine.images import epoch
from minirt.engine.life import Life
from minirt.engine.monitor import auto_remove
from minirt.engine.naming import random_name
from minirt.engine.request import BODY, COMMAND, spelled
from minirt.engine.settings import settle
from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound, Unsupported
from minirt.image.platform import Platform
from minirt.runtime import container as runtime
from minirt.runtime.spec import write_bundle
from minirt.runtime.state import now
from minirt.store import snapshots
from minirt.store.files import locked, sync_files, write_atomic
from minirt.store.layers import Place, work
from minirt.store.store import Image
from minirt.userns import IdMapping

if TYPE_CHECKING:
    from minirt.engine.answers.containers import (
        ContainerCreateResponse,
        ContainerInspectResponse,
        ContainerPruneResponse,
        ContainerSummary,
    )
    from minirt.engine.answers.system import Problem

_NAME = re.compile("[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)
_BRIEF = 2.0  # seconds a container may be busy while all wait
_AUTO_REMOVE_GRACE = 60  # seconds an exited --rm container may wait for whoever waits for it


class Containers(Life):
    """Container verbs over one store."""

    def create(
        self, body: dict[str, Any], name: str | None = None, platform: str | None = None
    ) -> ContainerCreateResponse:
        """POST /containers/create. Raises NotFound for an image that is not here, Conflict for a taken name."""
        self._store.again()
        ids = self._store.ids
        if ids is None:
            raise Unsupported(
                f"this machine cannot run containers ({self._store.overlay[1]}): see `minirt doctor` for how to allow "
                "user namespaces, or install proot (sudo apt install proot), which does without"
            )
        if name is not None:
            _check_name(name)
        body = spelled(body, BODY | COMMAND)
        with self._store.using(), locked(self._store.root / "containers.lock"), contextlib.ExitStack() as held:
            self._reap()
            claim = held.enter_context(self.volumes.claim(lambda name: self.find(name).get("Mounts") or []))
            asked = str(body.get("Image") or "")
            image, warnings = self._image(asked, platform)
            taken = self.names()
            name = name.removeprefix("/") if name else random_name(taken)
            _check_free(name, taken)
            identity = secrets.token_hex(32)
            folder = self._store.containers / identity
            folder.mkdir(mode=0o700)
            try:
                if ids.faked:
                    from minirt.engine import faked

                    body, missing = faked.adapt(body)
                    warnings += missing
                settled = settle(body, image.config, identity, ids, lambda name: str(self.find(name)["Id"]), claim)
                record = {
                    "Id": identity,
                    "Name": name,
                    "Created": now(),
                    "Image": str(image.id),
                    "Asked": asked,
                    "Platform": str(image.config.platform),
                    "Config": settled.config,
                    "HostConfig": settled.host,
                    "Mounts": settled.bound.points,
                    "manifest": str(image.manifest_digest),
                    "ids": ids.to_json(),
                }
                places, driver = self._places(image), self._store.driver
                lowers = [place.path for place in places]
                recipe = snapshots.prepare(folder, places, ids, driver)
                if driver != "overlay" and not ids.faked:
                    how = (
                        "the image's files were copied" if driver == "copy" else "fuse-overlayfs does its work, slower"
                    )
                    warnings.append(f"overlay does not work here ({self._store.overlay[1]}): {how}")
                elif store := next((place.store for place in places if place.shared), None):
                    warnings.append(f"layers are shared from {store}: fuse-overlayfs lays them, slower than overlay")
                (folder / "rootfs.json").write_text(json.dumps(recipe | settled.rootfs))
                (folder / "user").write_bytes(os.fsencode(settled.config["User"]))
                write_bundle(folder, settled.options)
                if self.launcher:  # mostly it is started next
                    self.launcher.ahead(str(folder.absolute()), str(self._store.root / "seccomp"))
                mapped = settled.rootfs.get("idmap")
                if copies := [copy for copy in settled.bound.copies if mapped or _has(lowers, copy[0])]:
                    from minirt.engine import files

                    files.populate(folder, ids, copies)
                if not settled.host.get("AutoRemove"):  # one that goes with its command need not outlive a power cut
                    sync_files(folder)
                write_atomic(folder / "container.json", json.dumps(record).encode())
            except BaseException:
                self._store.remove_folder(folder, ids)
                raise
        trace.publish("container", "create", id=identity, name=name, image=asked)
        self.tell(record, "create")
        return {"Id": identity, "Warnings": warnings + settled.warnings}

    def _image(self, asked: str, platform: str | None) -> tuple[Image, list[str]]:
        """The image to use, and warnings. Raises NotFound, so that the client pulls."""
        try:
            named = self._store.names.find(asked)
        except NotFound:
            trace.publish("cache", "look-up", image=asked, found=False)
            raise
        image = self._store.image(named.manifest)
        actual, warnings = image.config.platform, []
        if platform and actual not in Platform.parse(platform).acceptable():
            trace.publish("cache", "look-up", image=asked, found=False)
            raise NotFound(
                f"image with reference {asked} was found but does not match the specified platform: "
                f"wanted {platform}, actual: {actual}"
            )
        if not platform and actual not in Platform.host().acceptable():
            warnings.append(
                f"The requested image's platform ({actual}) does not match the detected host platform "
                f"({Platform.host()}) and no specific platform was requested"
            )
        trace.publish("cache", "look-up", image=asked, found=True)
        return image, warnings

    def _places(self, image: Image) -> list[Place]:
        """Where the image's layers lie, base first; what is not unpacked yet is now. Raises NotFound."""
        places = self._found(image, direct=len(image.layers) > snapshots.MAX_LOWERS)  # then they are copied
        if any(place.shared for place in places):  # how those are laid, nobody's files look like root's (shared.py)
            own = [diff_id for place, diff_id in zip(places, image.config.diff_ids, strict=True) if not place.shared]
            if any(self._store.layers.facts(diff_id).get("nobody") for diff_id in own):
                return self._found(image, direct=True)
        return places

    def _found(self, image: Image, direct: bool) -> list[Place]:
        layers, found = self._store.layers, []
        for layer, diff_id in image.layers:
            if not layers.complete(layer, diff_id, direct):
                layers.fetch(layer, diff_id, direct=direct)
            place = layers.find(diff_id, direct)
            if place is None:
                raise NotFound(f"layer {layer.digest.short} went away this moment: try again")
            found.append(place)
        return found

    def rename(self, name: str, new: str) -> None:
        """POST /containers/{id}/rename. Raises NotFound, InvalidInput, Conflict for a taken name."""
        if not name or not new:
            raise InvalidInput("Neither old nor new names may be empty")
        with locked(self._store.root / "containers.lock"):
            record = self.find(name)
            new = new.removeprefix("/")
            if record["Name"] == new:
                raise InvalidInput("Renaming a container with the same name as its current name")
            try:
                _check_name(f"/{new}")
                _check_free(new, self.names())
            except MinirtError as error:
                raise type(error)(f"Error when allocating new name: {error}") from error
            with runtime.hold(self.folder(record), _BRIEF):  # others cannot make any meanwhile
                record = self.find(record["Id"])
                old, record["Name"] = record["Name"], new
                write_atomic(self.folder(record) / "container.json", json.dumps(record).encode())
        self.tell(record, "rename", oldName=f"/{old}")

    def summaries(
        self,
        all: bool = False,
        limit: int | None = None,
        size: bool = False,
        filters: Mapping[str, list[str]] | None = None,
    ) -> list[ContainerSummary]:
        """GET /containers/json, newest first. Raises InvalidInput, NotFound for filters that make no sense."""
        from minirt.engine import inspect

        return inspect.summaries(self, self._store, all, limit, size, filters)

    def inspect(self, name: str, size: bool = False) -> ContainerInspectResponse:
        """GET /containers/{id}/json."""
        from minirt.engine.inspect import inspect

        record = self.find(name)
        folder = self.folder(record)
        found = inspect(record, folder, runtime.status(folder))
        if size:
            found["SizeRw"], found["SizeRootFs"] = self.sizes(record)
        return found

    def logs(self, name: str, stdout: bool = True, stderr: bool = True, **options: Any) -> Iterator[tuple[str, bytes]]:
        """What the command wrote, as ("stdout" | "stderr", bytes); the options are those of `logs.read`."""
        record = self.find(name)
        return logs.read(self.folder(record), record["HostConfig"].get("LogConfig"), stdout, stderr, **options)

    def prune(self, filters: Mapping[str, list[str]] | None = None) -> ContainerPruneResponse:
        """POST /containers/prune, and what half-made containers left. Raises InvalidInput."""
        from minirt.engine.filters import check, matches, moment, prune

        gone, freed, tests = [], 0, prune(filters)
        check(filters, tests)
        with locked(self._store.root / "containers.lock"):
            for record in list(self.records()):
                about = {"Created": moment(record["Created"]), "Labels": record["Config"].get("Labels")}
                if not matches(about, filters, tests) or runtime.status(self.folder(record)).runs:
                    continue
                size = self._size(record)
                with contextlib.suppress(runtime.Busy):
                    if self.discard(record, _BRIEF):
                        freed += size
                        gone.append(record["Id"])
        self.sweep()
        self.events.publish("container", "prune", "", reclaimed=str(freed))
        return {"ContainersDeleted": gone, "SpaceReclaimed": freed}

    def sweep(self) -> None:
        """Remove containers whose making or removal was cut short."""
        if self._store.half_made():  # else nobody waits for the lock
            with locked(self._store.root / "containers.lock"):
                for folder in self._store.half_made():
                    self._store.remove_folder(folder, self._store.ids)

    def leftovers(self) -> Iterator[Problem]:
        """What containers that no longer run left outside their folders: rows as those of `Store.check`."""
        for record in self.records():
            for what in runtime.leftovers(self.folder(record)):
                problem = f"{what}: its shim was killed; `minirt rm` or `minirt system prune` removes it"
                yield {"what": f"container {record['Name']}", "problem": problem}

    def _reap(self) -> None:
        """Remove --rm containers that ended with nobody waiting."""
        for record in list(self.records()) if self.monitor is None else ():
            if auto_remove(record):
                status = runtime.status(self.folder(record))
                ended = epoch(status.finished or "")
                if status.state == "dead" or (ended and time.time() - ended > _AUTO_REMOVE_GRACE):
                    with contextlib.suppress(runtime.Busy):
                        self.discard(record, _BRIEF)

    def _size(self, record: dict[str, Any]) -> int:
        """Bytes of the write layer."""
        folder = self.folder(record)
        path = folder / "upper" if (folder / "upper").exists() else folder
        return int(work({"action": "measure", "paths": [str(path)]}, IdMapping.from_json(record["ids"]))["bytes"])

    def sizes(self, record: dict[str, Any]) -> tuple[int, int]:
        """What it wrote, and that with its image's files, in bytes."""
        written = self._size(record)
        image = next((named.size for named in self._store.names.all() if str(named.id) == record["Image"]), 0)
        return written, written + image


def _has(lowers: list[Path], place: str) -> bool:
    """Whether an image of these layers may have something at `place`: by the path's first part, no link is followed.

    Most volumes lie where it has nothing, and all who create wait for a process that looks into it.
    """
    first = place.strip("/").partition("/")[0]
    for lower in lowers:
        try:
            os.lstat(lower / first)
            return True
        except FileNotFoundError:
            continue
        except OSError:  # not ours to see: the process is
            return True
    return False


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name.removeprefix("/")):
        raise InvalidInput(f"Invalid container name ({name[:80]}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")


def _check_free(name: str, taken: dict[str, str]) -> None:
    """`taken`: names and ids."""
    if name in taken:
        raise Conflict(
            f'Conflict. The container name "/{name}" is already in use by container "{taken[name]}". '
            "You have to remove (or rename) that container to be able to reuse that name."
        )
