"""The verbs on containers: create, start, wait, kill, stop, remove, list, inspect, logs.

A container is a folder under `containers/`: what was asked (`container.json`, written last, so a folder without it is
half made), the OCI bundle, the write layer and what the shim recorded. Nothing lives only in memory.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minirt import trace
from minirt.engine import networks, signals, states
from minirt.engine.filters import matches
from minirt.engine.images import epoch
from minirt.engine.joining import connect
from minirt.engine.naming import random_name
from minirt.engine.settings import driven, settle
from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound, StartError, Unsupported
from minirt.image.platform import Platform
from minirt.runtime import container as runtime
from minirt.runtime.spec import write_bundle
from minirt.runtime.state import now
from minirt.store import snapshots
from minirt.store.files import locked, write_atomic
from minirt.store.layers import work
from minirt.store.store import Image, Store
from minirt.userns import IdMapping

_NAME = re.compile("[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)
_PATIENCE = 10  # seconds between the stop signal and SIGKILL
Streams = tuple[int | None, int | None, int | None]
_AUTO_REMOVE_GRACE = 60  # seconds an exited --rm container may wait for whoever waits for it


class Containers:
    """Container verbs over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, body: dict[str, Any], name: str | None = None, platform: str | None = None) -> dict[str, Any]:
        """POST /containers/create. Raises NotFound for an image that is not here, Conflict for a taken name."""
        ids = self._store.ids
        if ids is None:
            raise Unsupported(
                f"this machine cannot run containers ({self._store.overlay[1]}): see `minirt doctor` for how to allow "
                "user namespaces, or install proot (sudo apt install proot), which does without"
            )
        if name is not None and not _NAME.fullmatch(name.removeprefix("/")):
            raise InvalidInput(
                f"Invalid container name ({name[:80]}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed (two or more)"
            )
        with self._store.using(), locked(self._store.root / "containers.lock"):
            self._reap()
            asked = str(body.get("Image") or "")
            image, warnings = self._image(asked, platform)
            taken = {record["Name"]: record["Id"] for record in self._records()}
            name = name.removeprefix("/") if name else random_name(taken)
            if name in taken:
                raise Conflict(
                    f'Conflict. The container name "/{name}" is already in use by container "{taken[name]}". '
                    "You have to remove (or rename) that container to be able to reuse that name."
                )
            identity = secrets.token_hex(32)
            folder = self._store.containers / identity
            folder.mkdir(mode=0o700)
            try:
                if ids.faked:
                    from minirt.engine import faked

                    body, missing = faked.adapt(body)
                    warnings += missing
                settled = settle(body, image.config, identity, ids, lambda name: str(self.find(name)["Id"]))
                record = {
                    "Id": identity,
                    "Name": name,
                    "Created": now(),
                    "Image": str(image.id),
                    "Asked": asked,
                    "Platform": str(image.config.platform),
                    "Config": settled.config,
                    "HostConfig": settled.host,
                    "manifest": str(image.manifest_digest),
                    "ids": ids.to_json(),
                }
                lowers = [self._store.layers.path(diff_id) for _, diff_id in image.layers]
                driver = self._store.driver
                recipe = snapshots.prepare(folder, lowers, ids, driver)
                if driver != "overlay" and not ids.faked:
                    how = (
                        "the image's files were copied" if driver == "copy" else "fuse-overlayfs does its work, slower"
                    )
                    warnings.append(f"overlay does not work here ({self._store.overlay[1]}): {how}")
                (folder / "rootfs.json").write_text(json.dumps(recipe | settled.rootfs))
                (folder / "user").write_text(settled.config["User"])
                write_bundle(folder, settled.options)
                write_atomic(folder / "container.json", json.dumps(record).encode())
            except BaseException:
                self._store.remove_folder(folder, ids)
                raise
        trace.publish("container", "create", id=identity, name=name, image=asked)
        return {"Id": identity, "Warnings": warnings + settled.warnings}

    def _image(self, asked: str, platform: str | None) -> tuple[Image, list[str]]:
        """The image to use, its layers unpacked, and warnings. Raises NotFound, so that the client pulls."""
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
        for layer, diff_id in image.layers:
            if not self._store.layers.complete(layer, diff_id):
                self._store.layers.fetch(layer, diff_id)
        return image, warnings

    def start(self, name: str, streams: Streams = (None, None, None), size: tuple[int, int] | None = None) -> None:
        """POST /containers/{id}/start, with the streams to attach, and the terminal's `size` (width, height).

        Raises StartError, Conflict.
        """
        record = self.find(name)
        folder = self.folder(record)
        try:
            connect(folder, lambda name: self.folder(self.find(name)))
            options = _streams(record, size) | driven(record["HostConfig"], self._store.root)
            pid = runtime.start(folder, IdMapping.from_json(record["ids"]), *streams, **options)
        except Conflict:  # it runs already
            return
        except StartError as error:
            ended = {"exit_code": error.exit_code, "finished": now(), "error": str(error), "oom_killed": False}
            write_atomic(folder / "exit.json", json.dumps(ended).encode())
            if _auto_remove(record):
                self._store.remove_folder(folder, IdMapping.from_json(record["ids"]))
            raise
        trace.publish("container", "start", id=record["Id"], name=record["Name"], pid=pid)

    def wait(self, name: str) -> int:
        """POST /containers/{id}/wait: the exit status, once all output is written. Removes with AutoRemove.

        Raises MinirtError where a given stdout or stderr could not take the output.
        """
        record = self.find(name)
        folder = self.folder(record)
        code = runtime.wait(folder)
        if not code and runtime.status(folder).state == "created":
            code = 128 + signals.KILL  # removed by force under our eyes, its status with it
        lost = runtime.status(self.folder(record)).error
        trace.publish("container", "exit", id=record["Id"], name=record["Name"], exit_code=code)
        if _auto_remove(record):
            self._remove(record)
        if lost.startswith("write "):
            raise MinirtError(lost)
        return code

    def kill(self, name: str, signal: int | str = "KILL") -> None:
        """POST /containers/{id}/kill. Raises Conflict where it is not running, InvalidInput for an unknown signal."""
        number = signals.number(signal)
        try:
            record = self.find(name)
        except NotFound as error:
            raise NotFound(f"Cannot kill container: {name}: {error}") from error
        folder = self.folder(record)
        if not runtime.status(folder).runs:
            raise Conflict(f"Cannot kill container: {name}: Container {record['Id']} is not running")
        stops = record["Config"].get("StopSignal")
        ends = number == signals.KILL or not stops or number == signals.number(stops)
        signals.send(folder, number, ends)

    def stop(self, name: str, timeout: float | None = None, signal: int | str | None = None) -> None:
        """POST /containers/{id}/stop: its stop signal, then SIGKILL after `timeout` seconds (below 0: never).

        By default they are what the container was created with, else the image's, else SIGTERM and 10 seconds.
        """
        record = self.find(name)
        folder, config = self.folder(record), record["Config"]
        number = signals.number(signal or config.get("StopSignal") or "TERM")
        if not runtime.status(folder).runs:
            return
        if timeout is None:
            timeout = _PATIENCE if config.get("StopTimeout") is None else config["StopTimeout"]
        if not signals.end(folder, number, timeout if timeout >= 0 else None):
            signals.kill(folder)
        if _auto_remove(record):
            self._remove(record)

    def remove(self, name: str, force: bool = False) -> None:
        """DELETE /containers/{id}. Raises Conflict for a running one without `force`."""
        record = self.find(name)
        folder = self.folder(record)
        with contextlib.suppress(FileNotFoundError), runtime.hold(folder):  # gone: someone else removed it
            status = runtime.status(folder)
            if status.runs:
                if not force:
                    before = "unpause and then stop" if status.state == "paused" else "stop"
                    raise Conflict(
                        f'cannot remove container "/{record["Name"]}": container is {status.state}: '
                        f"{before} the container before removing or force remove"
                    )
                signals.kill(folder)
            self._remove(record)

    def _remove(self, record: dict[str, Any]) -> None:
        with contextlib.suppress(FileNotFoundError):  # someone else removes it too
            runtime.clean(self.folder(record))
            self._store.remove_folder(self.folder(record), IdMapping.from_json(record["ids"]))

    def _discard(self, record: dict[str, Any]) -> bool:
        """Remove it unless it runs by now; whether it was we who removed it."""
        folder = self.folder(record)
        with contextlib.suppress(FileNotFoundError), runtime.hold(folder):
            if not runtime.status(folder).runs:
                self._remove(record)
                return True
        return False

    def summaries(
        self,
        all: bool = False,
        limit: int | None = None,
        size: bool = False,
        filters: dict[str, list[str]] | None = None,
    ) -> list[dict[str, Any]]:
        """GET /containers/json, newest first."""
        out = []
        for record in sorted(self._records(), key=lambda record: str(record["Created"]), reverse=True):
            status = runtime.status(self.folder(record))
            if not (all or limit or (filters or {}).get("status")) and not status.runs:
                continue
            summary = self._summary(record, status)
            if not matches(summary, filters, _FILTERS):
                continue
            if size:
                summary["SizeRw"] = self._size(record)
                summary["SizeRootFs"] = summary["SizeRw"] + self._image_size(record)
            out.append(summary)
        return out[:limit] if limit else out

    def _summary(self, record: dict[str, Any], status: runtime.Status) -> dict[str, Any]:
        return {
            "Id": record["Id"],
            "Names": ["/" + record["Name"]],
            "Image": record["Asked"],
            "ImageID": record["Image"],
            "Command": " ".join(record["Config"]["Path"]),
            "Created": epoch(record["Created"]),
            "State": status.state,
            "Status": states.text(status),
            "Ports": networks.summary(self.folder(record)),
            "Labels": record["Config"].get("Labels") or {},
            "HostConfig": {"NetworkMode": record["HostConfig"].get("NetworkMode") or "none"},
            "Mounts": [],
        }

    def inspect(self, name: str) -> dict[str, Any]:
        """GET /containers/{id}/json."""
        record = self.find(name)
        folder = self.folder(record)
        status = runtime.status(folder)
        config = {key: value for key, value in record["Config"].items() if key != "Path"}
        recipe = json.loads((folder / "rootfs.json").read_bytes())
        layers = {
            "LowerDir": ":".join(recipe.get("lowers", [])),
            "UpperDir": recipe.get("upper", ""),
            "WorkDir": recipe.get("work", ""),
            "MergedDir": str(folder / "rootfs"),
        }
        return {
            "Id": record["Id"],
            "Created": record["Created"],
            "Path": record["Config"]["Path"][0],
            "Args": record["Config"]["Path"][1:],
            "State": states.state(status),
            "Image": record["Image"],
            "LogPath": str(folder / "log"),
            "Name": "/" + record["Name"],
            "RestartCount": 0,
            "Driver": recipe["kind"],
            "Platform": "linux",
            "BundlePath": str(folder),
            "HostConfig": record["HostConfig"] | {"LogConfig": {"Type": "json-file", "Config": {}}},
            "GraphDriver": {"Name": recipe["kind"], "Data": layers},
            "Mounts": [],
            "Config": config,
            "NetworkSettings": networks.shown(folder, record["HostConfig"].get("NetworkMode") or "none"),
        }

    def logs(self, name: str) -> Iterator[tuple[str, bytes]]:
        """What the command wrote, as ("stdout" | "stderr", bytes)."""
        from minirt.runtime.log import read

        path = self.folder(self.find(name)) / "log"
        yield from read(path)

    def prune(self) -> dict[str, Any]:
        """POST /containers/prune, and what half-made containers left."""
        gone, freed = [], 0
        with locked(self._store.root / "containers.lock"):
            for record in list(self._records()):
                size = self._size(record)
                if self._discard(record):
                    freed += size
                    gone.append(record["Id"])
            for folder in self._store.half_made():
                self._store.remove_folder(folder, self._store.ids)
        return {"ContainersDeleted": gone, "SpaceReclaimed": freed}

    def leftovers(self) -> Iterator[dict[str, Any]]:
        """What containers that no longer run left outside their folders: rows as those of `Store.check`."""
        for record in self._records():
            for what in runtime.leftovers(self.folder(record)):
                problem = f"{what}: its shim was killed; `minirt rm` or `minirt system prune` removes it"
                yield {"what": f"container {record['Name']}", "problem": problem}

    def _reap(self) -> None:
        """Remove --rm containers that ended with nobody waiting."""
        for record in list(self._records()):
            if _auto_remove(record):
                status = runtime.status(self.folder(record))
                ended = epoch(status.finished or "")
                if status.state == "dead" or (ended and time.time() - ended > _AUTO_REMOVE_GRACE):
                    self._discard(record)

    def _records(self) -> Iterator[dict[str, Any]]:
        for path in self._store.containers.glob("*/container.json"):
            with contextlib.suppress(FileNotFoundError):  # being removed
                record: dict[str, Any] = json.loads(path.read_bytes())
                yield record

    def find(self, name: str) -> dict[str, Any]:
        """By name, ID or unambiguous ID prefix."""
        wanted = name.removeprefix("/")
        records = list(self._records())
        found = [r for r in records if wanted in (r["Name"], r["Id"])]
        found = found or [r for r in records if re.fullmatch("[0-9a-f]{1,64}", wanted) and r["Id"].startswith(wanted)]
        if not found:
            raise NotFound(f"No such container: {name}")
        if len(found) > 1:
            raise InvalidInput(f"Multiple IDs found with provided prefix: {wanted}")
        return found[0]

    def folders(self) -> Iterator[Path]:
        """Of all containers."""
        return (path.parent for path in self._store.containers.glob("*/container.json"))

    def folder(self, record: dict[str, Any]) -> Path:
        return self._store.containers / str(record["Id"])

    def _size(self, record: dict[str, Any]) -> int:
        """Bytes of the write layer."""
        folder = self.folder(record)
        path = folder / "upper" if (folder / "upper").exists() else folder
        return int(work({"action": "measure", "paths": [str(path)]}, IdMapping.from_json(record["ids"]))["bytes"])

    def _image_size(self, record: dict[str, Any]) -> int:
        return next((named.size for named in self._store.names.all() if str(named.id) == record["Image"]), 0)


def _auto_remove(record: dict[str, Any]) -> bool:
    return bool(record["HostConfig"].get("AutoRemove"))


def _streams(record: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """How the shim is to keep the container's streams."""
    config, (height, width) = record["Config"], record["HostConfig"].get("ConsoleSize") or (0, 0)
    size = size or ((width, height) if width and height else None)
    return {"open_stdin": config["OpenStdin"], "stdin_once": bool(config.get("StdinOnce")), "size": size}


_FILTERS = {
    "id": lambda c, value: str(c["Id"]).startswith(value),
    "name": lambda c, value: re.search(value, str(c["Names"][0]).lstrip("/")) is not None,
    "status": lambda c, value: c["State"] == value,
    "ancestor": lambda c, value: value in (c["Image"], c["Image"].partition(":")[0], c["ImageID"]),
    "label": lambda c, value: (
        value in c["Labels"] or value.partition("=")[::2] in [(k, "=", v)[::2] for k, v in c["Labels"].items()]
    ),
    "exited": lambda c, value: c["Status"].startswith(f"Exited ({value})"),
}
