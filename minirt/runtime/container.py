"""A container from outside: start it, look at it, wait for it, signal it. State lives in its folder, not in us.

Whoever starts a container may die; any other process of the same user can go on from the folder. Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal as signals
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt import child
from minirt.errors import Conflict, NotFound, StartError
from minirt.runtime import control, state
from minirt.userns import IdMapping

if TYPE_CHECKING:
    from minirt.runtime.cgroups import Cgroup

_PATIENCE = 10  # seconds for what was killed to be gone
_KILLED = 128 + 9  # what a container that went down with its shim exits with


@dataclass(frozen=True)
class Status:
    """`state` is created, running, paused, exited or dead (its shim was killed). Times are RFC 3339, or empty."""

    state: str
    pid: int = 0
    exit_code: int = 0
    started: str = ""
    finished: str = ""
    error: str = ""
    oom_killed: bool = False

    @property
    def runs(self) -> bool:
        return self.state in ("running", "paused")


def start(
    folder: Path,
    ids: IdMapping,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    **options: Any,
) -> int:
    """Start the created (or exited) container; returns init's pid once the command runs.

    The fds stay the caller's; None reads nothing and writes to the log only. `options`: `open_stdin` keeps a stdin for
    who attaches later (by default there is one where `stdin` is given), `stdin_once` ends it with the first that ends,
    `size` (width, height) of the terminal, `runtime` another OCI runtime's command, `cache` a folder for compiled
    filters. Raises StartError with docker's text and exit code, Conflict where it runs already.
    """
    with hold(folder):
        if status(folder).runs:
            raise Conflict("the container is already running")
        for name in ("run.json", "exit.json"):
            (folder / name).unlink(missing_ok=True)
        _check_mapping(folder, ids)
        return _start(folder, stdin, stdout, stderr, {"open_stdin": stdin is not None} | options)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep others from starting or removing the container meanwhile. FileNotFoundError where it is removed already."""
    import fcntl

    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _start(folder: Path, stdin: int | None, stdout: int | None, stderr: int | None, options: dict[str, Any]) -> int:
    status_read, status_write = os.pipe()
    opened = [status_read, status_write, os.open(os.devnull, os.O_RDWR), child.sealed_interpreter()]
    try:
        given = [opened[2] if fd is None else fd for fd in (stdin, stdout, stderr)]
        # First out of the way of 0…3, then into place.
        moved = [_above(fd, opened) for fd in (*given, status_write)]
        pid = os.posix_spawn(
            f"/proc/self/fd/{opened[3]}",
            child.command("minirt.runtime.shim", str(folder.absolute()), json.dumps(options)),
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(moved)],
        )
        for fd in (status_write, moved[3]):
            os.close(fd)
            opened.remove(fd)
        with os.fdopen(status_read, "rb", closefd=False) as pipe:
            answer = json.loads(pipe.readline() or b"{}")
        os.waitpid(pid, 0)
    finally:
        for fd in opened:
            os.close(fd)
    if "pid" not in answer:
        raise StartError(answer.get("error", "the shim died before the command ran"), answer.get("exit_code", 125))
    return int(answer["pid"])


def _check_mapping(folder: Path, ids: IdMapping) -> None:
    """The layers and the bundle were made for one id mapping; under another, owners would be wrong."""
    if (state.read_json(str(folder / "rootfs.json")) or {}).get("idmap"):
        return  # the layers are root's, whatever the container's mapping
    config = state.read_json(str(folder / "config.json")) or {}
    rows = config.get("linux", {}).get("uidMappings", [])
    if tuple((row["containerID"], row["hostID"], row["size"]) for row in rows) != ids.uids:
        raise StartError("the container was created with another id mapping: create it again")


def cgroup(folder: Path) -> Cgroup | None:
    """Where its processes are counted and limited; None where it has none."""
    run = state.read_json(str(folder / "run.json")) or {}
    if not run.get("cgroup"):
        return None
    from minirt.runtime.cgroups import Cgroup

    return Cgroup.from_json(run["cgroup"])


def attach(folder: Path, fds: Sequence[int | None]) -> control.Connection:
    """Join (stdin, stdout, stderr) of ours to the running container's; closing the connection detaches.

    Raises Conflict where it does not run.
    """
    return _ask(folder, {"do": "attach"}, fds)[0]


def exec(
    folder: Path, id: str, process: dict[str, Any], user: str, fds: Sequence[int | None]
) -> tuple[control.Connection, int]:
    """Run one more process in it: `process` is laid over the container's own (runtime-spec); `user` as USER, or empty.

    The connection tells `{"exit_code"}` at its end. Returns it, and the process' pid. Raises StartError, Conflict.
    """
    connection, answer = _ask(folder, {"do": "exec", "id": id, "process": process, "user": user}, fds)
    return connection, int(answer["pid"])


def ask(folder: Path, what: str, **details: Any) -> None:
    """`resize` (id, width, height), `pause`, `resume`, `update` (resources)."""
    control.ask(folder, {"do": what, **details})[0].close()


def _ask(folder: Path, request: dict[str, Any], fds: Sequence[int | None]) -> tuple[control.Connection, dict[str, Any]]:
    given = [fd is not None for fd in fds]
    return control.ask(folder, {**request, "streams": given}, [fd for fd in fds if fd is not None])


def leftovers(folder: Path) -> list[str]:
    """What a container that does not run still has outside its folder, a line each: its shim was killed."""
    if status(folder).runs:
        return []
    group, found = cgroup(folder), []
    run = state.read_json(str(folder / "run.json"))
    fd = state.open_process(run, "init") if run else None
    if fd is not None and run is not None:  # in a pid namespace that is not its own
        os.close(fd)
        found = [f"process {run['init']['pid']}"]
    found += ["its control group"] if group and any(os.path.isdir(place) for _, place in group.folders()) else []
    half_made = [] if found or not (folder / "oci" / folder.name).is_dir() else ["a container that was not finished"]
    return found + half_made + (["its place in the network"] if (folder / "network-state.json").exists() else [])


def clean(folder: Path) -> None:
    """Remove `leftovers`; for whoever holds the container (see `hold`)."""
    if status(folder).runs:
        return
    if (folder / "oci" / folder.name).is_dir():
        from minirt.runtime import oci

        oci.Container(str(folder / "oci"), folder.name).delete(force=True)
    run = state.read_json(str(folder / "run.json"))
    fd = state.open_process(run, "init") if run else None
    if fd is not None:
        with contextlib.suppress(ProcessLookupError):
            signals.pidfd_send_signal(fd, signals.SIGKILL)
        state.ended(fd, _PATIENCE)
        os.close(fd)
    if group := cgroup(folder):
        group.kill(signals.SIGKILL)
        group.delete()
    if (folder / "network-state.json").exists():
        from minirt.runtime import network

        network.detach(folder.parent.parent, folder)


def _above(fd: int, opened: list[int]) -> int:
    import fcntl

    opened.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10))
    return opened[-1]


def status(folder: Path) -> Status:
    """What the folder and the processes it names say now."""
    ended, run = _ended(folder), state.read_json(str(folder / "run.json"))
    if run is None:
        return ended or Status("created")
    if ended is None:
        fd = state.open_process(run, "shim")
        if fd is not None:
            os.close(fd)
            group = cgroup(folder)
            now = "paused" if group and group.frozen else "running"
            return Status(now, run["init"]["pid"], started=run["started"])
        ended = _ended(folder)  # it may have ended between the two looks
    return ended or Status("dead", 0, _KILLED, run["started"], error="its shim was killed, and the container with it")


def _ended(folder: Path) -> Status | None:
    end = state.read_json(str(folder / "exit.json"))
    if end is None:
        return None
    started = (state.read_json(str(folder / "run.json")) or {}).get("started", "")
    return Status("exited", 0, end["exit_code"], started, end["finished"], end["error"], end.get("oom_killed", False))


def wait(folder: Path, timeout: float | None = None) -> int:
    """The exit status (code, or 128 + signal), once all output has been handed over.

    `timeout` in seconds. Raises TimeoutError, and NotFound for a container that was never started.
    """
    run = state.read_json(str(folder / "run.json"))
    if run is None:
        raise NotFound("the container was not started")
    fd = state.open_process(run, "shim")
    if fd is not None:
        try:
            if not state.ended(fd, timeout):
                raise TimeoutError(f"the container still runs after {timeout:g} s" if timeout is not None else "")
        finally:
            os.close(fd)
    end = status(folder)
    return _KILLED if end.state == "created" else end.exit_code  # created: its folder is gone, removed by force


def signal(folder: Path, signum: int) -> None:
    """Send a signal to the container's init. Raises Conflict where it does not run."""
    run = state.read_json(str(folder / "run.json"))
    fd = state.open_process(run, "init") if run else None
    if fd is None:
        raise Conflict("the container is not running")
    try:
        signals.pidfd_send_signal(fd, signum)
    except ProcessLookupError as error:
        raise Conflict("the container is not running") from error
    finally:
        os.close(fd)
