"""A container from outside: start it, look at it, wait for it, signal it. State lives in its folder, not in us.

Whoever starts a container may die; any other process of the same user can go on from the folder. Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal as signals
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minirt import child
from minirt.errors import Conflict, NotFound, StartError
from minirt.runtime import state
from minirt.userns import IdMapping

_KILLED = 128 + 9  # what a container that went down with its shim exits with
_MFD_EXEC = 0x10  # memfd_create(2): needed where sysctl vm.memfd_noexec is 1


@dataclass(frozen=True)
class Status:
    """`state` is created, running, exited or dead (its shim was killed). Times are RFC 3339, empty where not yet."""

    state: str
    pid: int = 0
    exit_code: int = 0
    started: str = ""
    finished: str = ""
    error: str = ""


def start(
    folder: Path, ids: IdMapping, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
) -> int:
    """Start the created (or exited) container; returns init's pid once the command runs.

    The fds stay the caller's; None reads nothing and writes to the log only. Raises StartError with docker's text and
    exit code, Conflict where it runs already.
    """
    with hold(folder):
        if status(folder).state == "running":
            raise Conflict("the container is already running")
        for name in ("run.json", "exit.json"):
            (folder / name).unlink(missing_ok=True)
        _check_mapping(folder, ids)
        return _start(folder, stdin, stdout, stderr)


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


def _start(folder: Path, stdin: int | None, stdout: int | None, stderr: int | None) -> int:
    status_read, status_write = os.pipe()
    opened = [status_read, status_write, os.open(os.devnull, os.O_RDWR), _interpreter()]
    try:
        given = [opened[2] if fd is None else fd for fd in (stdin, stdout, stderr)]
        # First out of the way of 0…3, then into place.
        moved = [_above(fd, opened) for fd in (*given, status_write)]
        pid = os.posix_spawn(
            f"/proc/self/fd/{opened[3]}",
            child.command("minirt.runtime.shim", str(folder.absolute())),
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
    config = state.read_json(str(folder / "config.json")) or {}
    rows = config.get("linux", {}).get("uidMappings", [])
    if tuple((row["containerID"], row["hostID"], row["size"]) for row in rows) != ids.uids:
        raise StartError("the container was created with another id mapping: create it again")


def _above(fd: int, opened: list[int]) -> int:
    import fcntl

    opened.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10))
    return opened[-1]


def _interpreter() -> int:
    """A sealed copy of this interpreter in memory: what a hostile image can reach by /proc/PID/exe (CVE-2019-5736)."""
    import fcntl

    with open(sys.executable, "rb") as file:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            copy = os.memfd_create("python", flags | _MFD_EXEC)
        except OSError:  # before kernel 6.3 every memfd may be executed
            copy = os.memfd_create("python", flags)
        while os.sendfile(copy, file.fileno(), None, 1 << 30):
            pass
    fcntl.fcntl(
        copy, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    )
    return copy


def status(folder: Path) -> Status:
    """What the folder and the processes it names say now."""
    ended, run = _ended(folder), state.read_json(str(folder / "run.json"))
    if run is None:
        return ended or Status("created")
    if ended is None:
        fd = state.open_process(run, "shim")
        if fd is not None:
            os.close(fd)
            return Status("running", run["init"]["pid"], started=run["started"])
        ended = _ended(folder)  # it may have ended between the two looks
    return ended or Status("dead", 0, _KILLED, run["started"], error="its shim was killed, and the container with it")


def _ended(folder: Path) -> Status | None:
    end = state.read_json(str(folder / "exit.json"))
    if end is None:
        return None
    started = (state.read_json(str(folder / "run.json")) or {}).get("started", "")
    return Status("exited", 0, end["exit_code"], started, end["finished"], end["error"])


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
