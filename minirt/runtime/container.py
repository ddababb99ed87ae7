"""A container from outside: start it, look at it, wait for it, signal it. State lives in its folder, not in us.

Whoever starts a container may die; any other process of the same user can go on from the folder. Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal as signals
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt import child
from minirt.errors import Conflict, NotFound, StartError
from minirt.runtime import control, state
from minirt.userns import IdMapping

if TYPE_CHECKING:
    from minirt.runtime.cgroups import Cgroup

Streams = tuple[int | None, int | None, int | None]
Attached = tuple[Streams, int]  # somebody's ends, and the line to hear from them and to tell them the end by
Spawn = Callable[[list[str], list[int]], None]
_PATIENCE = 10  # seconds for what was killed to be gone
_MOMENT = 1  # seconds
_KILLED = 128 + 9  # what a container that went down with its shim exits with


class Removed(NotFound, FileNotFoundError):
    """Somebody removed the container under our eyes."""


class Busy(Conflict):
    """Somebody else has the container, and does not let go."""


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
    attached: Callable[[], Sequence[Attached]] = tuple,
    by: Spawn | None = None,
    notice: int | None = None,
    alone: bool = False,
    **options: Any,
) -> int:
    """Start the created (or exited) container; returns init's pid once the command runs.

    `attached` gives who else is attached before the command runs; asked once nobody can become so any more. `by`: what
    makes the shim, by default `spawn`. `notice`: an eventfd(2) that can be read once all is said; the shim goes then.
    `alone`: the caller knows that it is root's, with a pid namespace of its own.
    The fds stay the caller's; None reads nothing and writes to the log only. `options`: `open_stdin` keeps a stdin for
    who attaches later (by default there is one where `stdin` is given), `stdin_once` ends it with the first that ends,
    `size` (width, height) of the terminal, `runtime` another OCI runtime's command, `cache` a folder for compiled
    filters. Raises StartError with docker's text and exit code, Conflict where it runs already.
    """
    with hold(folder):
        if status(folder).runs:
            raise Conflict("the container is already running")
        _let_go(folder)
        for name in ("run.json", "exit.json"):
            (folder / name).unlink(missing_ok=True)
        word = "alone" if alone else _judge(folder, ids)
        options = {"open_stdin": stdin is not None} | options
        return _start(folder, word, (stdin, stdout, stderr), attached(), by or spawn, notice, options)


def _let_go(folder: Path) -> None:
    """Wait a moment for a shim that has said its last word: its mounts go with it."""
    if (run := state.read_json(f"{folder}/run.json")) and (fd := state.open_process(run, "shim")) is not None:
        state.ended(fd, _MOMENT)  # longer only where somebody does not take the last output
        os.close(fd)


@contextlib.contextmanager
def hold(folder: Path, patience: float = 60) -> Iterator[None]:
    """Keep others from starting or removing the container meanwhile.

    Raises Removed where it is gone already, Busy where another has it for longer than `patience`, in seconds: who
    copies files from it may never read them.
    """
    import fcntl

    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise Removed(f"No such container: {folder.name}") from error
    try:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Busy(f"Container {folder.name} is busy: its files are being copied") from None
                time.sleep(0.01)
        if not os.fstat(fd).st_nlink:  # while we waited
            raise Removed(f"No such container: {folder.name}")
        yield
    finally:
        os.close(fd)


def _judge(folder: Path, ids: IdMapping) -> str:
    """`alone` where the shim can be born as pid 1 of a pid namespace, else empty. Raises StartError.

    config.json is long: it is let go of before the long wait for the container, of which there may be a hundred.
    """
    config = state.read_json(str(folder / "config.json")) or {}
    snapshot = state.read_json(str(folder / "rootfs.json")) or {}
    _check_mapping(config, snapshot, ids)
    return "alone" if _alone(config, snapshot) else ""


def _alone(config: dict[str, Any], snapshot: dict[str, Any]) -> bool:
    """Whether nobody has to do anything before the pid namespace is made."""
    kinds = {entry["type"]: entry.get("path") for entry in config.get("linux", {}).get("namespaces", ())}
    return os.geteuid() == 0 and snapshot.get("kind") != "proot" and not kinds.get("pid", "shared")


def _start(
    folder: Path, alone: str, streams: Streams, attached: Sequence[Attached], by: Spawn, notice: int | None,
    options: dict[str, Any],
) -> int:  # fmt: skip
    options |= {"attached": [[fd is not None for fd in theirs] for theirs, _ in attached]}
    options |= {"notice": notice is not None}
    status_read, status_write = os.pipe()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        fds = [*(null if fd is None else fd for fd in streams), status_write]
        for theirs, line in attached:
            fds += [*(fd for fd in theirs if fd is not None), line]
        fds += [] if notice is None else [notice]
        try:
            by([str(folder.absolute()), json.dumps(options), alone], fds)
        finally:
            os.close(status_write)
        with os.fdopen(status_read, "rb", closefd=False) as pipe:
            answer = json.loads(pipe.readline() or b"{}")
    finally:
        os.close(null)
        os.close(status_read)
    if "pid" not in answer:
        raise StartError(answer.get("error", "the shim died before the command ran"), answer.get("exit_code", 125))
    return int(answer["pid"])


def spawn(arguments: list[str], fds: list[int]) -> None:
    """Run a shim with these descriptors as its 0, 1, 2… They stay the caller's. A launcher does it faster."""
    opened = [child.sealed_interpreter()]
    try:
        # First out of the way of where they go, then into place.
        program, *moved = [_above(fd, len(fds) + 1, opened) for fd in (opened[0], *fds)]
        pid = os.posix_spawn(
            f"/proc/self/fd/{program}",
            child.command("minirt.runtime.entry", *arguments[:2]),
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(moved)],
        )
    finally:
        for fd in opened:
            os.close(fd)
    os.waitpid(pid, 0)


def _check_mapping(config: dict[str, Any], snapshot: dict[str, Any], ids: IdMapping) -> None:
    """The layers and the bundle were made for one id mapping; under another, owners would be wrong."""
    if snapshot.get("idmap"):
        return  # the layers are root's, whatever the container's mapping
    rows = config.get("linux", {}).get("uidMappings", [])
    if tuple((row["containerID"], row["hostID"], row["size"]) for row in rows) != ids.uids:
        raise StartError("the container was created with another id mapping: create it again")


def cgroup(folder: Path) -> Cgroup | None:
    """Where its processes are counted and limited; None where it has none."""
    return _group(state.read_json(f"{folder}/run.json") or {})


def _group(run: dict[str, Any]) -> Cgroup | None:
    if not run.get("cgroup"):
        return None
    from minirt.runtime.cgroups import Cgroup

    return Cgroup.from_json(run["cgroup"])


def attach(folder: Path, fds: Sequence[int | None], id: str = "") -> control.Connection:
    """Join (stdin, stdout, stderr) of ours to the running container's, or its exec's `id`; closing it detaches.

    Raises Conflict where it does not run.
    """
    return _ask(folder, {"do": "attach", "id": id}, fds)[0]


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
    _let_go(folder)
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
    _let_go(folder)
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


def _above(fd: int, lowest: int, opened: list[int]) -> int:
    import fcntl

    opened.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest))
    return opened[-1]


def status(folder: Path) -> Status:
    """What the folder and the processes it names say now."""
    ended, run = _ended(folder), state.read_json(f"{folder}/run.json")
    if run is None:
        return ended or Status("created")
    if ended is None:
        fd = state.open_process(run, "shim")
        if fd is not None:
            os.close(fd)
            group = _group(run)
            now = "paused" if group and group.frozen else "running"
            return Status(now, run["init"]["pid"], started=run["started"])
        ended = _ended(folder)  # it may have ended between the two looks
    return ended or Status("dead", 0, _KILLED, run["started"], error="its shim was killed, and the container with it")


def _ended(folder: Path) -> Status | None:
    end = state.read_json(f"{folder}/exit.json")
    if end is None:
        return None
    started = (state.read_json(f"{folder}/run.json") or {}).get("started", "")
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
