"""The life of containers: found, started, waited for, stopped, removed; each step told as an event.

Nothing lives only in memory but who is attached before a start, and who waits. An opened engine (a daemon's) has a
monitor, which tells the ends and removes with AutoRemove; without one whoever waits or stops does so.
Sources: Engine API 1.44 reference "Container"; moby daemon/start.go, stop.go, delete.go. Taught in chapter 04.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt import trace
from minirt.engine import logs, networks, signals
from minirt.engine.attachments import Attachment, Attachments
from minirt.engine.events import Events
from minirt.engine.joining import connect
from minirt.engine.monitor import Monitor, Waiter, auto_remove
from minirt.engine.settings import driven
from minirt.engine.volumes import Volumes
from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound, StartError, Unsupported
from minirt.runtime import container as runtime
from minirt.runtime.container import Streams
from minirt.runtime.state import now
from minirt.store.files import write_atomic
from minirt.store.store import Store
from minirt.userns import IdMapping

if TYPE_CHECKING:
    from minirt.runtime.launcher import Launcher

_PATIENCE = 10  # seconds between the stop signal and SIGKILL


class Life:
    """What `Containers` is made on."""

    def __init__(self, store: Store, events: Events | None = None) -> None:
        self._store, self.events = store, events or Events()
        self.monitor: Monitor | None = None  # an opened engine has one
        self.launcher: Launcher | None = None  # and one of these
        self.attachments = Attachments()
        self.volumes = Volumes(store, self.events)
        self._names: dict[str, tuple[tuple[int, int], str]] = {}  # by id: which file was read, and the name in it

    def tell(self, record: dict[str, Any], action: str, **attributes: str) -> None:
        """Publish what happened to this container, with what docker says of one: labels, image, name."""
        labels = record["Config"].get("Labels") or {}
        about = {"image": record["Asked"], "name": record["Name"]}
        self.events.publish("container", action, record["Id"], **(labels | about | attributes))

    def connected(self, record: dict[str, Any], begins: bool) -> None:
        """Tell that it begins, or ends, to use its network and its volumes."""
        mode = str(record["HostConfig"].get("NetworkMode") or "none")
        about = {"container": record["Id"]}
        if not mode.startswith("container:"):
            kind, network = networks.DRIVERS.get(mode, mode), networks.network_id(self._store.root, mode)
            self.events.publish(
                "network", "connect" if begins else "disconnect", network, **about, name=mode, type=kind
            )
        for point in record.get("Mounts") or ():
            if point["Type"] == "volume":
                how = {"destination": point["Destination"], "propagation": point.get("Propagation") or ""}
                how |= {"read/write": "true" if point["RW"] else "false"}
                about["driver"] = point["Driver"]
                verb, more = ("mount", how) if begins else ("unmount", {})
                self.events.publish("volume", verb, point["Name"], **about, **more)

    def records(self) -> Iterator[dict[str, Any]]:
        """`container.json` of each."""
        for identity in self._identities():
            if record := self._record(identity):  # else it is being removed
                yield record

    def _identities(self) -> list[str]:
        """Of all containers, and of what is just being made or removed."""
        try:
            return os.listdir(self._store.containers)
        except FileNotFoundError:  # a store that we may only read, and nobody has run anything
            return []

    def find(self, name: str) -> dict[str, Any]:
        """By name, ID or unambiguous ID prefix."""
        wanted = name.removeprefix("/")
        if re.fullmatch("[0-9a-f]{64}", wanted) and (record := self._record(wanted)):
            return record
        names = self.names()
        found = [names[wanted]] if wanted in names else []
        if not found and re.fullmatch("[0-9a-f]{1,64}", wanted):
            found = [identity for identity in names.values() if identity.startswith(wanted)]
        if len(found) > 1:
            raise InvalidInput(f"Multiple IDs found with provided prefix: {wanted}")
        if not found or not (record := self._record(found[0])):
            raise NotFound(f"No such container: {name}")
        return record

    def names(self) -> dict[str, str]:
        """The id behind each name. Only what changed since the last time is read: there may be thousands."""
        before, now = self._names, dict[str, tuple[tuple[int, int], str]]()
        place = os.fspath(self._store.containers)
        for identity in self._identities():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # being made or removed
                status = os.stat(f"{place}/{identity}/container.json")
                file = status.st_ino, status.st_mtime_ns
                if identity in before and before[identity][0] == file:
                    now[identity] = before[identity]
                elif record := self._record(identity):
                    now[identity] = file, record["Name"]
        self._names = now
        return {name: identity for identity, (_, name) in now.items()}

    def _record(self, identity: str) -> dict[str, Any] | None:
        """`container.json` of this one; None where there is none."""
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            open(f"{self._store.containers}/{identity}/container.json", "rb", buffering=0) as file,
        ):
            record: dict[str, Any] = json.loads(file.read())
            return record
        return None

    def folders(self) -> Iterator[Path]:
        """Of all containers."""
        return (path.parent for path in self._store.containers.glob("*/container.json"))

    def folder(self, record: dict[str, Any]) -> Path:
        return self._store.containers / str(record["Id"])

    def start(self, name: str, streams: Streams = (None, None, None), size: tuple[int, int] | None = None) -> bool:
        """POST /containers/{id}/start, with the streams to attach, and the terminal's `size` (width, height).

        False where it runs already. Raises StartError, Conflict.
        """
        record = self.find(name)
        folder = self.folder(record)
        if self.monitor:
            self.monitor.settle(record["Id"])
        notice = os.eventfd(0, os.EFD_CLOEXEC) if self.monitor else None
        waiting: list[Attachment] = []
        pid = 0

        def attached() -> list[runtime.Attached]:
            waiting.extend(self.attachments.take(record["Id"]))
            return [attachment.attached for attachment in waiting]

        try:
            connect(folder, lambda name: self.folder(self.find(name)))
            options = _streams(record, size) | driven(record["HostConfig"], self._store.root)
            ids = IdMapping.from_json(record["ids"])
            by = self.launcher.spawn if self.launcher else None
            alone = os.geteuid() == 0 and not ids.faked and not record["HostConfig"].get("PidMode")
            pid = runtime.start(folder, ids, *streams, attached, by, notice, alone, **options)
        except runtime.Busy:
            raise
        except Conflict:
            if runtime.status(folder).state == "paused":
                raise Conflict("cannot start a paused container, try unpause instead") from None
            return False
        except FileNotFoundError as error:
            if folder.exists():
                raise
            raise NotFound(f"No such container: {name}") from error  # it has just been removed
        except StartError as error:
            ended = {"exit_code": error.exit_code, "finished": now(), "error": str(error), "oom_killed": False}
            write_atomic(folder / "exit.json", json.dumps(ended).encode())
            if auto_remove(record):
                self.discard(record)
            raise
        finally:
            for attachment in waiting:
                attachment.hand_over()
            if notice is not None and not pid:
                os.close(notice)
        trace.publish("container", "start", id=record["Id"], name=record["Name"], pid=pid)
        self.connected(record, begins=True)
        self.tell(record, "start")
        if self.monitor:
            self.monitor.watch(record["Id"], notice)
        return True

    def waiter(self, name: str, condition: str = "not-running") -> Waiter:
        """POST /containers/{id}/wait: `condition` is not-running, next-exit or removed. For an opened engine."""
        if self.monitor is None:
            raise Unsupported("only a daemon's engine tells whoever waits")
        return self.monitor.waiter(str(self.find(name)["Id"]), condition)

    def wait(self, name: str) -> int:
        """POST /containers/{id}/wait: the exit status, once all output is written. Removes with AutoRemove.

        Raises MinirtError where a given stdout or stderr could not take the output.
        """
        record = self.find(name)
        folder = self.folder(record)
        if self.monitor:
            with contextlib.closing(self.monitor.waiter(record["Id"], "not-running")) as waiter:
                return int(waiter.result()["StatusCode"])
        code = runtime.wait(folder)
        if not code and runtime.status(folder).state == "created":
            code = 128 + signals.KILL  # removed by force under our eyes, its status with it
        lost = runtime.status(self.folder(record)).error
        trace.publish("container", "exit", id=record["Id"], name=record["Name"], exit_code=code)
        if auto_remove(record):
            self.discard(record)
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
        try:
            self._signal(record, number, ends)
        except Conflict as error:  # it has just ended
            raise Conflict(f"Cannot kill container: {name}: Container {record['Id']} is not running") from error
        if number == signals.KILL:  # as dockerd: who asks next finds it ended
            signals.ended(folder, signals.SURE)
            if self.monitor:
                self.monitor.settle(record["Id"])

    def _signal(self, record: dict[str, Any], number: int, ends: bool) -> None:
        with self.monitor.lock if self.monitor else contextlib.nullcontext():  # its end is told after this
            signals.send(self.folder(record), number, ends)
            self.tell(record, "kill", signal=str(number))

    def _end(self, record: dict[str, Any], number: int, seconds: float | None) -> None:
        """Send it, and SIGKILL after `seconds` (None: never). Raises MinirtError where it does not end by that."""
        folder = self.folder(record)
        for value, patience in ((number, seconds), (signals.KILL, signals.SURE)):
            with contextlib.suppress(Conflict):  # it has just ended
                self._signal(record, value, ends=True)
            if signals.ended(folder, patience):
                break
        else:
            raise MinirtError(f"the container still runs {signals.SURE} s after SIGKILL")
        if self.monitor:
            self.monitor.settle(record["Id"])

    def stop(self, name: str, timeout: float | None = None, signal: int | str | None = None) -> bool:
        """POST /containers/{id}/stop: its stop signal, then SIGKILL after `timeout` seconds (below 0: never).

        By default they are what the container was created with, else the image's, else SIGTERM and 10 seconds.
        False where it does not run.
        """
        record = self.find(name)
        if not self._stop(record, timeout, signal):
            return False
        if auto_remove(record) and not self.monitor:
            self.discard(record)
        return True

    def _stop(self, record: dict[str, Any], timeout: float | None, signal: int | str | None) -> bool:
        folder, config = self.folder(record), record["Config"]
        number = signals.number(signal or config.get("StopSignal") or "TERM")
        if not runtime.status(folder).runs:
            return False
        if timeout is None:
            timeout = _PATIENCE if config.get("StopTimeout") is None else config["StopTimeout"]
        self._end(record, number, timeout if timeout >= 0 else None)
        self.tell(record, "stop")
        return True

    def restart(self, name: str, timeout: float | None = None, signal: int | str | None = None) -> None:
        """POST /containers/{id}/restart: as `stop`, where it runs, and `start`."""
        record = self.find(name)
        kept = self.monitor.kept if self.monitor else set()
        kept.add(record["Id"])
        try:
            self._stop(record, timeout, signal)
            self.start(record["Id"])
        finally:
            kept.discard(record["Id"])
        self.tell(record, "restart")

    def remove(self, name: str, force: bool = False, volumes: bool = False) -> None:
        """DELETE /containers/{id}, with `volumes` also those it had to itself. Raises Conflict for a running one
        without `force`."""
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
                self._end(record, signals.KILL, signals.SURE)
            if self._remove(record, volumes):
                return
        if volumes:
            self.volumes.release(record.get("Mounts") or [])

    def _remove(self, record: dict[str, Any], volumes: bool) -> bool:
        """Whether it was we who removed it. It is told when its volumes are gone, too: whoever hears of it is done.

        With API 1.24 docker's command removes what had --rm, and does not even wait for the answer then."""
        folder = self.folder(record)
        if not (folder / "container.json").exists():
            return False
        status = runtime.status(folder)
        runtime.clean(folder)
        self._store.remove_folder(folder, IdMapping.from_json(record["ids"]))
        if volumes:
            self.volumes.release(record.get("Mounts") or [])
        self.attachments.drop(record["Id"])
        self.tell(record, "destroy")
        if self.monitor:
            self.monitor.removed(record["Id"], status)
        return True

    def discard(self, record: dict[str, Any], patience: float = 60) -> bool:
        """Remove it unless it runs by now; whether it was we who removed it. Raises Busy, see `runtime.hold`."""
        folder = self.folder(record)
        with contextlib.suppress(FileNotFoundError), runtime.hold(folder, patience):
            if not runtime.status(folder).runs:
                if not self._remove(record, volumes=auto_remove(record)) and auto_remove(record):
                    self.volumes.release(record.get("Mounts") or [])
                return True
        return False


def _streams(record: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """How the shim is to keep the container's streams."""
    config, (height, width) = record["Config"], record["HostConfig"].get("ConsoleSize") or (0, 0)
    size = size or ((width, height) if width and height else None)
    log = logs.limits(record["HostConfig"].get("LogConfig"))
    return {"open_stdin": config["OpenStdin"], "stdin_once": bool(config.get("StdinOnce")), "size": size, "log": log}
