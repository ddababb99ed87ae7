"""Volumes: folders of ours that containers mount and that outlive them.

    volumes/NAME/_data          what containers see
    volumes/NAME/volume.json    what it was made as; written last, so a folder without it is half made

A volume is used by every container whose record lists it among its mounts. Making and removing one, and a container's
record that names one, happen under `volumes.lock`, so nothing is removed between being chosen and being used.
Sources: Engine API 1.44 reference "Volume"; moby volume/local, volume/service. Taught in chapter 09.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from minirt.engine import request
from minirt.engine.events import Events
from minirt.engine.filters import check, label, matches, truth
from minirt.errors import Conflict, InvalidInput, NotFound, Unsupported
from minirt.store.files import locked, write_atomic
from minirt.store.layers import remove_tree, work
from minirt.store.store import Store

if TYPE_CHECKING:
    from minirt.engine.answers.containers import MountPoint
    from minirt.engine.answers.system import Problem, Volume, VolumeListResponse, VolumePruneResponse

    Points = list[MountPoint]
    Rows = list[Volume]

_NAME = re.compile("[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)
_ANONYMOUS = "com.docker.volume.anonymous"  # docker's label


class Volumes:
    """Volume verbs over one store."""

    def __init__(self, store: Store, events: Events | None = None) -> None:
        self._store, self._events = store, events or Events()
        self._folder = store.root / "volumes"

    def create(self, body: dict[str, Any]) -> Volume:
        """POST /volumes/create: a new one, or the one that has the name. Raises InvalidInput, NotFound, Unsupported."""
        body = request.spelled(body, request.VOLUME)
        request.shaped(body, request.VOLUME)
        with self._locked():
            return self.make(body)

    def make(self, body: dict[str, Any]) -> Volume:
        """The same for who holds the lock."""
        name, driver, options = str(body.get("Name") or ""), body.get("Driver") or "local", body.get("DriverOpts")
        labels = body.get("Labels")
        if driver not in ("local", "default"):
            raise NotFound(
                f"create {name}: error looking up volume plugin {driver}: plugin {json.dumps(driver)} not found"
            )
        if options:
            raise Unsupported(f"create {name}: a volume with options ({next(iter(options))}) is not supported")
        if not name:
            name, labels = secrets.token_hex(32), {_ANONYMOUS: "", **(labels or {})}
        if len(name) < 2:
            raise InvalidInput(
                f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
            )
        if not _NAME.fullmatch(name) or len(name) > 255:
            raise InvalidInput(
                f"create {name[:80]}: {json.dumps(name[:80])} includes invalid characters for a local volume name, "
                'only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
                "If you intended to pass a host directory, use absolute path"
            )
        folder = self._folder / name
        with contextlib.suppress(NotFound):
            return self.inspect(name)
        made = {
            "CreatedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "Driver": "local",
            "Labels": labels,
            "Name": name,
            "Options": options,
            "Scope": "local",
        }
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            (folder / "_data").mkdir(exist_ok=True)
            (folder / "_data").chmod(0o755)
            write_atomic(folder / "volume.json", json.dumps(made).encode())
        except BaseException:
            remove_tree(folder, self._store.ids)
            raise
        self._events.publish("volume", "create", name, driver="local")
        return self.inspect(name)

    def inspect(self, name: str) -> Volume:
        """GET /volumes/{name}. Raises NotFound."""
        try:
            if not _NAME.fullmatch(name):
                raise FileNotFoundError
            known: Volume = json.loads((self._folder / name / "volume.json").read_bytes())
        except (FileNotFoundError, OSError, ValueError):
            raise NotFound(f"get {name[:255]}: no such volume") from None
        return known | {"Mountpoint": str(self._folder / name / "_data")}

    def list(self, filters: dict[str, Any] | None = None) -> VolumeListResponse:
        """GET /volumes."""
        users = self._users()
        check(filters, _FILTERS)
        found = [v for v in self._all() if _passes(v, filters or {}, lambda volume: volume["Name"] in users)]
        return {"Volumes": found, "Warnings": None}

    def usage(self) -> Rows:
        """`list` with what GET /system/df adds: bytes, and how many containers use it."""
        users = self._users()
        return [
            volume | {"UsageData": {"Size": self._size(volume), "RefCount": len(users.get(volume["Name"], ()))}}
            for volume in self._all()
        ]

    def remove(self, name: str, force: bool = False) -> None:
        """DELETE /volumes/{name}; with `force` it may be gone already. Raises NotFound, Conflict."""
        with self._locked():
            try:
                volume = self.inspect(name)
            except NotFound:
                if force:
                    return
                raise
            if users := self._users().get(name):
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
            self._remove(volume)

    def prune(self, filters: dict[str, Any] | None = None) -> VolumePruneResponse:
        """POST /volumes/prune: those that nobody uses and nobody named, or with the filter `all` also named ones."""
        filters = dict(filters or {})
        everything = truth(filters, "all", False)
        filters.pop("all", None)
        if unknown := filters.keys() - {"label", "label!"}:
            raise InvalidInput(f"invalid filter '{min(unknown)}'")
        gone, freed = [], 0
        with self._locked():
            users = self._users()
            for volume in self._all():
                named = _ANONYMOUS not in (volume["Labels"] or {})
                if volume["Name"] in users or (named and not everything) or not _passes(volume, filters):
                    continue
                freed += self._size(volume)
                self._remove(volume)
                gone.append(volume["Name"])
        self._events.publish("volume", "prune", "", reclaimed=str(freed))
        return {"VolumesDeleted": gone, "SpaceReclaimed": freed}

    def sweep(self) -> None:
        """Remove what was half made."""
        if self._half_made():  # else nobody waits for the lock
            with self._locked():
                for folder in self._half_made():
                    remove_tree(folder, self._store.ids)

    def release(self, points: Points) -> None:
        """Remove the volumes that a container, which is gone, had to itself: unnamed ones that nobody else uses."""
        names = [str(point["Name"]) for point in points if point["Type"] == "volume"]
        if not names:
            return
        with self._locked():
            users = self._users()
            for name in names:
                with contextlib.suppress(NotFound):
                    volume = self.inspect(name)
                    if _ANONYMOUS in (volume["Labels"] or {}) and name not in users:
                        self._remove(volume)

    def claim(self, points: Callable[[str], Points]) -> Claim:
        """For a container that is being made; `points` tells another container's mounts."""
        return Claim(self, points)

    def leftovers(self) -> Iterator[Problem]:
        """Rows as those of `Store.check`."""
        for folder in self._half_made():
            yield {"what": f"volume {folder.name}", "problem": "half made: `minirt system prune` removes it"}

    def _half_made(self) -> Iterable[Path]:
        folders = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        return [folder for folder in folders if not (folder / "volume.json").exists()]

    def _locked(self) -> contextlib.AbstractContextManager[int | None]:
        return locked(self._store.root / "volumes.lock")

    def _all(self) -> Iterator[Volume]:
        for path in sorted(self._folder.glob("*/volume.json")):
            with contextlib.suppress(NotFound):  # being removed
                yield self.inspect(path.parent.name)

    def _users(self) -> dict[str, Any]:
        """The ids of the containers that use each volume that is used."""
        found: dict[str, Any] = {}
        for path in self._store.containers.glob("*/container.json"):
            with contextlib.suppress(OSError, ValueError):  # being removed
                for name in {point.get("Name") for point in json.loads(path.read_bytes()).get("Mounts") or ()}:
                    found.setdefault(name, []).append(path.parent.name)
        return found

    def _size(self, volume: Volume) -> int:
        return int(work({"action": "measure", "paths": [volume["Mountpoint"]]}, self._store.ids)["bytes"])

    def _remove(self, volume: Volume) -> None:
        folder = self._folder / volume["Name"]
        (folder / "volume.json").unlink(missing_ok=True)
        remove_tree(folder, self._store.ids)
        self._events.publish("volume", "destroy", volume["Name"], driver="local")


class Claim:
    """Volumes taken for a container until its record names them; a failure takes back the unnamed ones."""

    def __init__(self, volumes: Volumes, points: Callable[[str], Points]) -> None:
        self._volumes, self.points = volumes, points
        self._held = contextlib.ExitStack()
        self._made: list[Volume] = []
        self._locked = False

    def take(self, name: str = "", labels: dict[str, str] | None = None, driver: str = "") -> tuple[str, Path]:
        """A volume's name and folder; made where it is not there. Without `name` a new one."""
        if not self._locked:
            self._held.enter_context(self._volumes._locked())
            self._locked = True
        volume = self._volumes.make({"Name": name, "Labels": labels, "Driver": driver})
        if not name:
            self._made.append(volume)
        return volume["Name"], Path(volume["Mountpoint"])

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._held:
            for volume in self._made if kind else ():
                self._volumes._remove(volume)


_FILTERS = ("dangling", "name", "driver", "label", "label!")


def _passes(
    volume: Volume, filters: dict[str, Any], used: Callable[[Mapping[str, Any]], bool] = lambda volume: False
) -> bool:
    dangling = truth(filters, "dangling", True)
    known = {
        "dangling": lambda volume, value: used(volume) != dangling,
        "name": lambda volume, value: value in volume["Name"],
        "driver": lambda volume, value: volume["Driver"] == value,
        "label": label,
        "label!": lambda volume, value: not label(volume, value),
    }
    return matches(volume, filters, known)
