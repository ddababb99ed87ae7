"""The verbs on containers: create, start, wait, kill, stop, remove, list, inspect, logs.

A container is a folder under `containers/`: what was asked (`container.json`, written last, so a folder without it is
half made), the OCI bundle, the write layer and what the shim recorded. Nothing lives only in memory.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import signal as signals
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minirt import trace
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
from minirt.units import age
from minirt.userns import IdMapping

_NAME = re.compile("[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)
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
                settled = settle(body, image.config, identity, ids, lambda name: str(self._find(name)["Id"]))
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

    def start(self, name: str, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None) -> None:
        """POST /containers/{id}/start, with the streams to attach. Raises StartError, Conflict."""
        record = self._find(name)
        folder = self._folder(record)
        try:
            connect(folder, lambda name: self._folder(self._find(name)))
            options = driven(record["HostConfig"], self._store.root)
            pid = runtime.start(folder, IdMapping.from_json(record["ids"]), stdin, stdout, stderr, **options)
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
        record = self._find(name)
        folder = self._folder(record)
        code = runtime.wait(folder)
        if not code and runtime.status(folder).state == "created":
            code = 128 + signals.SIGKILL  # removed by force under our eyes, its status with it
        lost = runtime.status(self._folder(record)).error
        trace.publish("container", "exit", id=record["Id"], name=record["Name"], exit_code=code)
        if _auto_remove(record):
            self._remove(record)
        if lost.startswith("write "):
            raise MinirtError(lost)
        return code

    def kill(self, name: str, signal: int | str = "KILL") -> None:
        """POST /containers/{id}/kill. Raises Conflict where it is not running, InvalidInput for an unknown signal."""
        record = self._find(name)
        folder = self._folder(record)
        number = _signal(signal)
        if runtime.status(folder).state != "running":
            raise Conflict(f"Cannot kill container: {name}: Container {record['Id']} is not running")
        runtime.signal(folder, number)

    def stop(self, name: str, timeout: float = 10) -> None:
        """POST /containers/{id}/stop: the image's stop signal, then SIGKILL after `timeout` seconds."""
        record = self._find(name)
        folder = self._folder(record)
        if runtime.status(folder).state != "running":
            return
        if not _end(folder, _signal(record["Config"].get("StopSignal") or "TERM"), timeout):
            _kill(folder)
        if _auto_remove(record):
            self._remove(record)

    def remove(self, name: str, force: bool = False) -> None:
        """DELETE /containers/{id}. Raises Conflict for a running one without `force`."""
        record = self._find(name)
        folder = self._folder(record)
        with contextlib.suppress(FileNotFoundError), runtime.hold(folder):  # gone: someone else removed it
            if runtime.status(folder).state == "running":
                if not force:
                    raise Conflict(
                        f'cannot remove container "/{record["Name"]}": container is running: '
                        "stop the container before removing or force remove"
                    )
                _kill(folder)
            self._remove(record)

    def _remove(self, record: dict[str, Any]) -> None:
        with contextlib.suppress(FileNotFoundError):  # someone else removes it too
            self._store.remove_folder(self._folder(record), IdMapping.from_json(record["ids"]))

    def _discard(self, record: dict[str, Any]) -> bool:
        """Remove it unless it runs by now; whether it was we who removed it."""
        folder = self._folder(record)
        with contextlib.suppress(FileNotFoundError), runtime.hold(folder):
            if runtime.status(folder).state != "running":
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
            status = runtime.status(self._folder(record))
            if not (all or limit or (filters or {}).get("status")) and status.state != "running":
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
            "Status": _status_text(status),
            "Ports": [],
            "Labels": record["Config"].get("Labels") or {},
            "HostConfig": {"NetworkMode": record["HostConfig"].get("NetworkMode") or "none"},
            "Mounts": [],
        }

    def inspect(self, name: str) -> dict[str, Any]:
        """GET /containers/{id}/json."""
        record = self._find(name)
        folder = self._folder(record)
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
            "State": {
                "Status": status.state,
                "Running": status.state == "running",
                "Paused": False,
                "Restarting": False,
                "OOMKilled": False,
                "Dead": status.state == "dead",
                "Pid": status.pid or 0,
                "ExitCode": status.exit_code or 0,
                "Error": status.error or "",
                "StartedAt": status.started or "0001-01-01T00:00:00Z",
                "FinishedAt": status.finished or "0001-01-01T00:00:00Z",
            },
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
            "NetworkSettings": {"Networks": {}, "Ports": {}},
        }

    def logs(self, name: str) -> Iterator[tuple[str, bytes]]:
        """What the command wrote, as ("stdout" | "stderr", bytes)."""
        from minirt.runtime.log import read

        path = self._folder(self._find(name)) / "log"
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

    def _reap(self) -> None:
        """Remove --rm containers that ended with nobody waiting."""
        for record in list(self._records()):
            if _auto_remove(record):
                status = runtime.status(self._folder(record))
                ended = epoch(status.finished or "")
                if status.state == "dead" or (ended and time.time() - ended > _AUTO_REMOVE_GRACE):
                    self._discard(record)

    def _records(self) -> Iterator[dict[str, Any]]:
        for path in self._store.containers.glob("*/container.json"):
            with contextlib.suppress(FileNotFoundError):  # being removed
                record: dict[str, Any] = json.loads(path.read_bytes())
                yield record

    def _find(self, name: str) -> dict[str, Any]:
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

    def _folder(self, record: dict[str, Any]) -> Path:
        return self._store.containers / str(record["Id"])

    def _size(self, record: dict[str, Any]) -> int:
        """Bytes of the write layer."""
        folder = self._folder(record)
        path = folder / "upper" if (folder / "upper").exists() else folder
        return int(work({"action": "measure", "paths": [str(path)]}, IdMapping.from_json(record["ids"]))["bytes"])

    def _image_size(self, record: dict[str, Any]) -> int:
        return next((named.size for named in self._store.names.all() if str(named.id) == record["Image"]), 0)


def _auto_remove(record: dict[str, Any]) -> bool:
    return bool(record["HostConfig"].get("AutoRemove"))


def _end(folder: Path, signal: int, seconds: float) -> bool:
    """Send the signal; whether the container ends in time. Its shim may stay for a reader slow with the last output."""
    with contextlib.suppress(Conflict):  # it has just ended
        runtime.signal(folder, signal)
    end = time.monotonic() + seconds
    while (running := runtime.status(folder).state == "running") and time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            runtime.wait(folder, min(seconds, 0.05))
    return not running


def _kill(folder: Path) -> None:
    if not _end(folder, signals.SIGKILL, 10):
        raise MinirtError("the container still runs 10 s after SIGKILL")


def _signal(signal: int | str) -> int:
    """A signal's number from 9, "9", "KILL" or "SIGKILL"."""
    text = str(signal).upper().removeprefix("SIG")
    if text.isdigit() and 0 < int(text) <= 64:
        return int(text)
    try:
        return int(signals.Signals[f"SIG{text}"])
    except KeyError:
        raise InvalidInput(f"Invalid signal: {str(signal)[:40]}") from None


def _status_text(status: runtime.Status) -> str:
    """The STATUS column, as docker words it."""
    if status.state == "running":
        return f"Up {age(time.time() - epoch(status.started or ''))}"
    if status.state == "exited":
        return f"Exited ({status.exit_code}) {age(time.time() - epoch(status.finished or ''))} ago"
    return "Dead" if status.state == "dead" else "Created"


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
