"""The runtime-spec's operations on one container: create, start, state, kill, delete, exec, pause, resume, update.

    create ──▶ created ──start──▶ running ⇄ paused        a folder named by the id holds state.json, config.json and,
                  └───────kill / exit──────▶ stopped      until start, `start.sock`, at which init stands still
                                                ──delete──▶ gone

Init mounts while its control groups are made and its network is connected. Each operation may be called by another
process than the one before: nothing lives in memory. state.json is written before anything is made, so that `delete
--force` finds what a create that was killed left behind.
Sources: runtime-spec runtime.md, runc(8). Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import signal as signals
import socket
from collections.abc import Callable
from typing import Any

from minirt.errors import Conflict, InvalidInput, MinirtError, NotFound, StartError, Unsupported
from minirt.runtime import cgroups, namespaces, prepare, seccomp, state
from minirt.runtime import config as config_json
from minirt.runtime.control import Place
from minirt.runtime.exec import Exec
from minirt.runtime.init import START, Init
from minirt.runtime.namespaces import Sync
from minirt.runtime.standing import enter, run_hooks, spec_state, stands_still
from minirt.userns import IdMapping

_ID = re.compile(r"[\w+-][\w+.-]*", re.ASCII)
_MAX_ID = 1024
_PATIENCE = 10  # seconds for what was killed to be gone


class Container:
    """The container `id` under the state folder `root`; `cache` keeps compiled filters."""

    def __init__(self, root: str, id: str, cache: str | None = None) -> None:
        if not _ID.fullmatch(id) or len(id) > _MAX_ID:
            raise InvalidInput(f"invalid container ID format: {id[:80]!r}")
        self.id, self.folder = id, os.path.join(os.path.abspath(root), id)
        self._cache = cache

    # what is known

    def _load(self) -> dict[str, Any]:
        found = state.read_json(os.path.join(self.folder, "state.json"))
        if found is None:
            raise NotFound(f"container does not exist: {self.id}")
        return found

    def _save(self, known: dict[str, Any]) -> None:
        state.write_json(os.path.join(self.folder, "state.json"), known)

    def _cgroup(self, known: dict[str, Any]) -> cgroups.Cgroup | None:
        return cgroups.Cgroup.from_json(known["cgroup"]) if known.get("cgroup") else None

    def _status(self, known: dict[str, Any]) -> str:
        if "init" not in known:
            return "creating"
        fd = state.open_process(known, "init")
        if fd is None:
            return "stopped"
        os.close(fd)
        if self._waits():
            return "created"
        cgroup = self._cgroup(known)
        return "paused" if cgroup and cgroup.frozen else "running"

    def _waits(self) -> bool:
        """Does init wait for its start? With that it closes the socket, whoever lived to unlink it."""
        with contextlib.suppress(FileNotFoundError), Place(self.folder) as place, _packets() as gate:
            gate.setblocking(False)
            return gate.connect_ex(f"{place}/start.sock") in (0, errno.EAGAIN)  # the latter: others ask, too
        return False  # it was just deleted

    def state(self) -> dict[str, Any]:
        """The runtime-spec's state, with what runc adds: rootfs, created, owner."""
        known = self._load()
        return {
            **spec_state(known, self._status(known)),
            "rootfs": os.path.join(known["bundle"], known["root"]),
            "created": known["created"],
            "owner": "",
        }

    @property
    def config(self) -> dict[str, Any]:
        """config.json as it was at create. Raises NotFound."""
        self._load()
        return state.read_json(os.path.join(self.folder, "config.json")) or {}

    @property
    def pid(self) -> int:
        """Of init, in the numbers of the machine."""
        return int(self._load()["init"]["pid"])

    # the life

    def create(
        self,
        bundle: str,
        *,
        config: dict[str, Any] | None = None,
        streams: tuple[int | None, int, int] = (0, 1, 2),
        console: int | None = None,
        preserve: int = 0,
        pivots: bool = True,
        keyring: bool = True,
        systemd: bool = False,
        peers: dict[int, int] | None = None,
        announce: Callable[[int], None] = lambda pid: None,
        connect: Callable[[int], None] = lambda pid: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> tuple[int, int]:
        """Make everything but the command's start; init's pid as we see it, and a pidfd. All or nothing.

        `announce` is called with the pid before init may go on, to write a pid file; `connect` with the machine's, for
        its network, while init mounts, and then `meanwhile`. We become the parent of init.
        """
        bundle = os.path.abspath(bundle)
        config_ = config_json.load(bundle) if config is None else config
        process = config_["process"]
        if bool(process.get("terminal")) != (console is not None):
            told = "a terminal is asked for, and no console socket" if console is None else "no terminal is asked for"
            raise InvalidInput(f"{told}: process.terminal and --console-socket belong together")
        filter_ = self._filter(config_["linux"].get("seccomp"))
        group = prepare.place(config_, self.id, systemd)
        os.makedirs(os.path.dirname(self.folder), mode=0o711, exist_ok=True)
        try:
            os.mkdir(self.folder, 0o700)
        except FileExistsError:
            raise Conflict(f"container with given ID already exists: {self.id}") from None
        known: dict[str, Any] = {
            "id": self.id, "bundle": bundle, "created": state.now(), "boot_id": state.boot_id(),
            "root": config_["root"]["path"], "annotations": config_.get("annotations"), "hooks": config_.get("hooks"),
        }  # fmt: skip
        pidfd, pid = -1, 0
        known |= {"cgroup": group.to_json()} if group else {}
        try:
            self._save(known)
            init = Init(
                config_, bundle, self._gate(), prepare.sources(config_, bundle, peers), streams=streams,
                console=console, filter=filter_, preserve=preserve, pivots=pivots, keyring=keyring,
            )  # fmt: skip
            limits = config_["linux"].get("resources") or {}
            options: dict[str, Any] = {"enter": lambda: enter(init)}
            if group and group.unit:  # a scope of systemd's begins with a process
                options["admit"] = lambda pid: group.create(limits, state.machine_number(pid))
            elif group:
                options |= {"fork": lambda flags: _fork(flags, init, group, limits), "late": ("cgroup",)}
            pid, pidfd, line = namespaces.spawn(
                config_["linux"]["namespaces"], prepare.mapping(config_), init.run, **options
            )
            if group:
                known["cgroup"] = group.to_json()  # a scope's folders are known by now
            init.gate.close()
            known["init"] = state.identify(state.machine_pid(pidfd))
            line.send({"go": True})
            if group and init.join:
                group.create(limits, begun=True)
                line.send({"go": True})
            self._follow(known, line, connect)
            state.write_json(os.path.join(self.folder, "config.json"), config_)
            meanwhile()
            stands_still(line, pid, process)
            self._save(known)
            announce(pid)
            line.send({"go": True})
            line.close()
            return pid, pidfd
        except BaseException:
            if pidfd >= 0:
                os.close(pidfd)
            self._discard(known)
            if pid:
                os.waitpid(pid, 0)
            raise

    def _follow(self, known: dict[str, Any], line: Sync, connect: Callable[[int], None]) -> None:
        """Do what acts on init from here while it mounts: its network, and hooks."""
        connect(known["init"]["pid"])
        stages = ("prestart", "createRuntime")
        if any((known["hooks"] or {}).get(stage) for stage in stages):  # else nobody has to wait until all is mounted
            if line.receive() is None:
                raise StartError("the container's init was killed while it was set up")
            for stage in stages:
                run_hooks(known, stage, spec_state(known, "creating"))
        line.send(spec_state(known, "created"))

    def start(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Let the command run. Raises Conflict where it is not `created`, StartError where it does not come to run."""
        known = self._load()
        with Place(self.folder) as place, _packets() as gate:
            if "init" not in known or gate.connect_ex(f"{place}/start.sock"):  # nobody waits there
                status = self._status(known).replace("running", "already started")
                raise Conflict(f"cannot start a container that has {status}")
            gate.send(START)
            meanwhile()
            os.unlink(f"{place}/start.sock")
            Sync(gate).receive()
        try:
            run_hooks(known, "poststart", spec_state(known, "running"))
        except StartError:
            self.kill(signals.SIGKILL)
            raise

    def kill(self, signal: int, all: bool = False) -> None:
        """Send a signal to init, or to all processes of the container. Raises Conflict where none runs."""
        known = self._load()
        group = self._cgroup(known)
        if all and group:
            group.kill(signal)
            return
        fd = state.open_process(known, "init") if "init" in known else None
        if fd is None:
            raise Conflict("container not running")
        try:
            signals.pidfd_send_signal(fd, signal)
            if signal == signals.SIGKILL and group and group.frozen:
                group.thaw()
        except ProcessLookupError as error:
            raise Conflict("container not running") from error
        finally:
            os.close(fd)

    def delete(self, force: bool = False) -> None:
        """Remove what is left of a stopped container; with `force`, also of one that is not."""
        try:
            known = self._load()
        except NotFound:
            if not force:
                raise
            if os.path.isdir(self.folder):  # killed before it wrote anything
                self._remove()
            return
        if not force and (status := self._status(known)) in ("running", "paused"):
            raise Conflict(f"cannot delete container {self.id} that is not stopped: {status}")
        self._discard(known)
        run_hooks(known, "poststop", spec_state(known, "stopped"), tell=True)

    def _discard(self, known: dict[str, Any]) -> None:
        """End what runs of it and remove what was made, as far as it came."""
        fd = state.open_process(known, "init") if "init" in known else None
        group = self._cgroup(known)
        if fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signals.pidfd_send_signal(fd, signals.SIGKILL)
        if group:
            group.kill(signals.SIGKILL)
        if fd is not None:
            gone = state.ended(fd, _PATIENCE)
            os.close(fd)
            if not gone:
                raise MinirtError(f"container {self.id} still runs {_PATIENCE} s after SIGKILL")
        if group:
            group.delete()
        self._remove()

    def _remove(self) -> None:
        for name in os.listdir(self.folder):
            os.unlink(os.path.join(self.folder, name))
        os.rmdir(self.folder)

    # while it runs

    def exec(
        self,
        process: dict[str, Any],
        *,
        streams: tuple[int | None, int, int] = (0, 1, 2),
        console: int | None = None,
        preserve: int = 0,
        even_paused: bool = False,
        announce: Callable[[int], None] = lambda pid: None,
    ) -> tuple[int, int]:
        """Run one more process in it; its pid as we see it, and a pidfd. We become its parent."""
        config_json.check_process(process)
        known = self._load()
        status = self._status(known)
        if status not in ("created", "running", "paused")[: 2 + even_paused]:
            hint = " (use --ignore-paused to override)" if status == "paused" else ""
            raise Conflict(f"cannot exec in a {status} container{hint}")
        with prepare.held(known) as init:
            config, group = self.config, self._cgroup(known)
            filter_ = self._filter(config["linux"].get("seccomp"))
            body = Exec(process, streams=streams, console=console, filter=filter_, preserve=preserve)
            options: dict[str, Any] = {"enter": functools.partial(enter, body)}
            options |= {"fork": group.fork} if group else {}
            with prepare.joined(config, known["init"]["pid"], init) as wanted:
                pid, pidfd, line = namespaces.spawn(wanted, IdMapping(), body.run, **options)
        try:
            line.send({"go": True})
            stands_still(line, pid, process)
            announce(pid)
            line.send({"go": True})
            line.receive()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                signals.pidfd_send_signal(pidfd, signals.SIGKILL)
            os.close(pidfd)
            os.waitpid(pid, 0)  # unreaped, it would keep the container's pid namespace from ending
            raise
        finally:
            line.close()
        return pid, pidfd

    def pause(self) -> None:
        self._running_group("pause").freeze()

    def resume(self) -> None:
        known = self._load()
        group = self._cgroup(known)
        if group is None or self._status(known) != "paused":
            raise Conflict("container not paused")
        group.thaw()

    def update(self, resources: dict[str, Any]) -> None:
        """Change the limits that are given (runtime-spec linux.resources)."""
        cgroups.check(resources)
        group = self._running_group("update", states=("created", "running", "paused"))
        group.update(resources)

    def processes(self) -> list[int]:
        """The pids in it, in the numbers of whoever asks."""
        return self._running_group("list the processes of", states=("created", "running", "paused")).pids()

    @property
    def cgroup(self) -> cgroups.Cgroup | None:
        return self._cgroup(self._load())

    def _running_group(self, what: str, states: tuple[str, ...] = ("running",)) -> cgroups.Cgroup:
        known = self._load()
        status, group = self._status(known), self._cgroup(known)
        if status not in states:
            raise Conflict(f"cannot {what} container {self.id}: it is {status}")
        if group is None:
            raise Unsupported(f"cannot {what} a container that has no cgroup: see `minirt doctor`")
        return group

    # the parts of create

    def _filter(self, policy: dict[str, Any] | None) -> seccomp.Filter | None:
        return seccomp.Filter(seccomp.compile(policy, self._cache), policy.get("flags")) if policy else None

    def _gate(self) -> socket.socket:
        gate = _packets()
        with Place(self.folder) as place:
            gate.bind(f"{place}/start.sock")
        gate.listen()
        return gate


def containers(root: str) -> list[str]:
    """The ids under a state folder."""
    try:
        return sorted(name for name in os.listdir(root) if os.path.exists(os.path.join(root, name, "state.json")))
    except FileNotFoundError:
        return []


def _fork(flags: int, init: Init, group: cgroups.Cgroup, limits: dict[str, Any]) -> tuple[int, Callable[[], None]]:
    """Where it is init itself that is born, it begins to mount while its groups are made; a middle is in them first."""
    if not flags:
        group.create(limits)
        return group.fork()
    group.begin()
    pid, init.join = group.fork(flags)
    return pid, lambda: None


def _packets() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
