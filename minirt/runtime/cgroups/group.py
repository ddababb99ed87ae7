"""The verbs on a control group: make it, move processes in, change, freeze, kill, remove. Taught in chapter 08."""

from __future__ import annotations

import contextlib
import errno
import os
import signal as signals
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from minirt import linux
from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound, Unsupported
from minirt.runtime import state
from minirt.runtime.cgroups import devices, hierarchy, resources

_FREEZING = 10  # seconds until we give up
_DYING = 2  # seconds for killed processes to leave
_ROUNDS = 100  # of killing, before we say that new processes come faster than we kill


class Cgroup:
    """`groups`: the group's folder by v1 controller, `name=…` or "" for v2; `points`: the mount each lies in.
    `unit`, `slice`, `bus`: the systemd scope, whose folders are known once it is made."""

    def __init__(
        self, groups: dict[str, str], points: dict[str, str], rootless: bool, unit: str = "", slice: str = "",
        bus: str = "",
    ) -> None:  # fmt: skip
        self.groups, self.points, self.rootless = groups, points, rootless
        self.unit, self.slice, self.bus = unit, slice, bus

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cgroup) and self.to_json() == other.to_json()

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Cgroup:
        return cls(**value)

    def folders(self) -> list[tuple[str, str]]:
        """(mount point, folder) of the group in each tree."""
        return list(dict.fromkeys((self.points[name], folder) for name, folder in self.groups.items()))

    @property
    def v2(self) -> bool:
        """Whether the limits are v2's. On a hybrid machine they are v1's, though the group is in the v2 tree too."""
        return all(not name or name.startswith("name=") for name in self.groups)

    def begin(self, made: list[str] | None = None) -> None:
        """Make what a process is born in, the v2 group, and see that it is empty: `create`, `begun`, does the rest."""
        if self.pids():
            raise Conflict(f"the control group {self._main()} has processes in it already")
        if "" in self.groups:
            self._try(hierarchy.make, self.points[""], self.groups[""], [] if made is None else made)

    def create(self, limits: dict[str, Any], pid: int | None = None, begun: bool = False) -> None:
        """Make the group with runtime-spec `linux.resources` and move process `pid` (the machine's number) in.

        A systemd scope needs a pid, and ends with its last process; elsewhere it may `enter` later. If a step fails,
        what was made is removed (a scope's process gets SIGTERM). A user namespace opens no device nodes, so with
        `rootless` device rules have nothing to add and are skipped. Raises Unsupported, InvalidInput, Conflict.
        """
        resources.check(limits)
        policy = devices.policy(limits.get("devices") or [])
        made: list[str] = []
        try:
            if self.unit:
                self._start_scope(limits, pid)
            elif not begun:
                self.begin(made)
            for point, folder in self.folders():
                self._try(hierarchy.make, point, folder, made)
            self._set(self._settings(limits))
            if not self.rootless:
                self._hold_devices(policy)
            if pid is not None:
                self.add(pid)
        except BaseException:
            for folder in reversed(made):
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    os.rmdir(folder)
            if self.unit:
                self._manager().stop(self.bus, self.unit)
            raise

    def _start_scope(self, limits: dict[str, Any], pid: int | None) -> None:
        if pid is None:
            raise ValueError("a systemd scope begins with a process")
        trees = hierarchy.mounted()
        convert = resources.v2 if hierarchy.only_v2(trees) else resources.v1
        name = self._manager().start(self.bus, self.unit, self.slice, pid, convert(limits, lambda file: None))
        seen = next((path for tree in trees if (path := tree.seen(name)) is not None), None)
        if seen is None:
            raise Unsupported(f"systemd made the group {name} where we cannot see it")
        self.groups, self.points = hierarchy.places(trees, seen)

    def _manager(self) -> Any:
        from minirt.runtime.cgroups import systemd

        return systemd

    def enter(self) -> None:
        """Move this single-threaded process in."""
        self._enter([])

    def _enter(self, already: list[str]) -> None:
        for folder in self._unique():
            if folder in already:
                continue
            # A thread that moves itself alone (v1 `tasks`) spares the kernel the wait for all other CPUs.
            file = "tasks" if os.path.exists(f"{folder}/tasks") else "cgroup.procs"
            self._move(folder, file, 0)

    def fork(self, flags: int = 0) -> tuple[int, Callable[[], None]]:
        """`linux.fork` for the group; for a single-threaded process. The pid, and what the child calls to be in it.

        A process that is born in a v2 group spares the kernel the wait for all other CPUs: 1 ms instead of 10.
        """
        entered = []
        if v2 := self.groups.get(""):
            try:
                fd = os.open(v2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    pid = linux.fork(flags, fd)
                finally:
                    os.close(fd)
                entered = [v2]
            except OSError:  # before kernel 5.7, or not ours to do: the move says why
                pid = linux.fork(flags)
        else:
            pid = linux.fork(flags)
        return pid, lambda: self._enter(entered)

    def add(self, pid: int) -> None:
        """Move a process in, by its machine's number. Raises Conflict where the group is frozen: it would hang."""
        if self.frozen:
            raise Conflict("the container is paused: unpause it first")
        for folder in self._unique():
            self._move(folder, "cgroup.procs", pid)

    def _move(self, folder: str, file: str, pid: int) -> None:
        number = str(state.local_pid(pid) if pid else 0)  # the kernel takes ours, systemd the machine's
        try:
            hierarchy.write(folder, file, number)
        except PermissionError as error:
            if not self.unit:
                raise self._refused(folder, error) from error
            self._manager().attach(self.bus, self.unit, pid or int(os.readlink("/proc/self")))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise self._refused(folder, error) from error
            # v2: the container passes controllers on to sub-groups, so only those take processes: join its own.
            below = next((sub for sub in _tree(folder) if (hierarchy.read(sub, "cgroup.procs") or "").strip()), None)
            if below is None:
                raise self._refused(folder, error) from error
            self._try(hierarchy.write, below, file, number)

    def update(self, limits: dict[str, Any]) -> None:
        """Change what `limits` names and nothing else. Raises as `create`; what was set before an error stays set."""
        resources.check(limits)
        policy = devices.policy(limits["devices"]) if limits.get("devices") else None
        settings = self._settings(limits)
        if self.unit:
            self._manager().change(self.bus, self.unit, settings)
        self._set(settings)
        if policy and not self.rootless:
            self._hold_devices(policy)

    def _settings(self, limits: dict[str, Any]) -> list[resources.Setting]:
        return (resources.v2 if self.v2 else resources.v1)(limits, self._read)

    def _set(self, settings: Iterable[resources.Setting]) -> None:
        """Some values fit only once another is set (v1 memory and memsw; quota, period and burst): try in rounds."""
        waiting = list(settings)
        while waiting:
            failed = []
            for file, value in waiting:
                folder = self._folder(file)
                if folder is None:
                    raise Unsupported(f"cannot set {file}: this machine has no such cgroup controller")
                try:
                    hierarchy.write(folder, file, value)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise self._refused(folder, error, file, value) from error
                    failed.append((file, value))
            if len(failed) == len(waiting):
                raise InvalidInput("the kernel refuses " + ", ".join(f"{value!r} for {file}" for file, value in failed))
            waiting = failed

    def _hold_devices(self, policy: devices.Policy) -> None:
        if self.v2:
            self._try(devices.attach, self.groups[""], policy)
        elif folder := self.groups.get("devices"):
            for file, line in devices.v1_changes(hierarchy.read(folder, "devices.list") or "", policy):
                self._try(hierarchy.write, folder, file, line)
        else:
            raise Unsupported("cannot hold the container to its devices: this machine has no devices controller")

    @property
    def frozen(self) -> bool:
        """Whether the group itself was told to freeze (`pause`), not one around it."""
        if "freezer" in self.groups:
            return (self._read("freezer.self_freezing") or "").strip() == "1"
        return (self._read("cgroup.freeze") or "").strip() == "1"

    def freeze(self) -> None:
        """Stop every process where it is; returns once all stand. Raises MinirtError, thawed again, if they do not."""
        until, pause = time.monotonic() + _FREEZING, 0.0005
        try:
            while time.monotonic() < until:
                self._switch(True)
                stands = self._read("freezer.state") if "freezer" in self.groups else self._read("cgroup.events")
                if stands is None:
                    raise NotFound("the container is not running")
                if "FROZEN" in stands or "frozen 1" in stands:
                    return
                time.sleep(pause)
                pause = min(pause * 2, 0.02)
        except BaseException:
            with contextlib.suppress(OSError):
                self._switch(False)
            raise
        self.thaw()
        raise MinirtError(f"the container's processes did not stand still within {_FREEZING} s")

    def thaw(self) -> None:
        """Let them go on; no error if they are not frozen, nor where a removal was cut short."""
        if self.frozen:
            self._try(self._switch, False)

    def _switch(self, freeze: bool) -> None:
        if "freezer" in self.groups:
            hierarchy.write(self.groups["freezer"], "freezer.state", "FROZEN" if freeze else "THAWED")
        else:
            hierarchy.write(self.groups[""], "cgroup.freeze", "1" if freeze else "0")

    def pids(self) -> list[int]:
        """Every process of the group and its sub-groups, in the numbers of our pid namespace (those it can name)."""
        found = set[int]()
        for folder in _tree(self._main()) if self.groups else ():
            found.update(map(int, (hierarchy.read(folder, "cgroup.procs") or "").split()))
        return sorted(found - {0})

    def kill(self, signal: int) -> None:
        """Send every process the signal. With SIGKILL none is left alive, though they may fork or be frozen."""
        if not self.groups:  # a scope that did not come to be
            return
        if signal != signals.SIGKILL:
            with self._still():
                self._signal(signal)
            return
        if (v2 := self.groups.get("")) and os.path.exists(f"{v2}/cgroup.kill"):
            self._try(hierarchy.write, v2, "cgroup.kill", "1")
            if "freezer" in self.groups:
                self.thaw()  # v1's frozen processes do not even die
            return
        for _ in range(_ROUNDS):
            with self._still():
                self._signal(signal)
            with contextlib.suppress(MinirtError):
                self.thaw()
            if not self.pids():
                return
            time.sleep(0.005)
        raise MinirtError("the container's processes did not die")

    @contextlib.contextmanager
    def _still(self) -> Iterator[None]:
        """Freeze meanwhile, where that works: no process forks, or ends and gives its number to another."""
        was = self.frozen
        with contextlib.suppress(MinirtError, OSError):
            self.freeze()
        try:
            yield
        finally:
            if not was:
                with contextlib.suppress(MinirtError):
                    self.thaw()

    def _signal(self, signal: int) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal)

    def delete(self) -> None:
        """Remove the group and all below it; no error if it is gone. Raises Conflict while processes live in it."""
        if self.unit:
            self._manager().stop(self.bus, self.unit)
        until, pause = time.monotonic() + _DYING, 0.0005
        for folder in self._unique():
            while (busy := _remove(folder)) is not None:
                if time.monotonic() > until:
                    raise Conflict(f"cannot remove the control group {busy}: processes still live in it")
                time.sleep(pause)
                pause = min(pause * 2, 0.02)

    def oom_kills(self) -> int:
        """How many processes the kernel killed for want of memory within the limit; 0 where it does not say."""
        text = self._read("memory.events") if self.v2 else self._read("memory.oom_control")
        counts = dict(line.split() for line in (text or "").splitlines())
        return int(counts.get("oom_kill", 0))

    def stats(self) -> dict[str, Any]:
        """What was used so far; module stats tells the keys and units."""
        from minirt.runtime.cgroups import stats

        return (stats.v2 if self.v2 else stats.v1)(self._read)

    def _unique(self) -> list[str]:
        return [folder for _, folder in self.folders()]

    def _main(self) -> str:
        return self.groups.get("") or self.groups.get("devices") or next(iter(self.groups.values()))

    def _folder(self, file: str) -> str | None:
        return self.groups.get("" if self.v2 else file.partition(".")[0]) or (
            self.groups.get("") if file.startswith("cgroup.") else None
        )

    def _read(self, file: str) -> str | None:
        folder = self._folder(file)
        return None if folder is None else hierarchy.read(folder, file)

    def _try(self, step: Any, *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except OSError as error:
            raise self._refused(error.filename or self._main(), error) from error

    def _refused(self, folder: str | bytes, error: OSError, file: str = "", value: str = "") -> MinirtError:
        """The kernel's refusal as one line."""
        what = f"cannot set {file} to {value!r}" if file else f"cannot use the control group {os.fsdecode(folder)}"
        if file and self.v2 and error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):
            controller, point = file.partition(".")[0], self.points[""]
            if controller not in (hierarchy.read(os.fsdecode(folder), "cgroup.controllers") or "").split():
                return Unsupported(f"{what}: {hierarchy.why_absent(point, os.fsdecode(folder), controller)}")
        if error.errno == errno.ENOENT:
            return Unsupported(f"{what}: " + ("this kernel has no such limit" if file else "it is gone"))
        if error.errno in (errno.EINVAL, errno.ERANGE, errno.EACCES) and file:
            return InvalidInput(f"{what}: the kernel refuses the value, or the group above does not allow it")
        if error.errno == errno.EBUSY and file:
            return Conflict(f"{what}: the container uses more than that now")
        return Unsupported(f"{what}: {error.strerror}")


def _tree(folder: str) -> list[str]:
    """The group and all below it, itself first."""
    return [path for path, _, _ in os.walk(folder)]


def _remove(folder: str) -> str | None:
    """Remove what is empty; returns a group that is not."""
    with contextlib.suppress(OSError):  # most have none below them; else the walk says what stands in the way
        os.rmdir(folder)
        return None
    for path in reversed(_tree(folder)):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError:
            return path
    return None
