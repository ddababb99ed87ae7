"""A container's state on disk, and the processes it names.

A pid alone names nothing: the kernel hands it out again. A process is its pid, its start time (in clock ticks since
boot, field 22 of /proc/PID/stat) and the boot it lived in. Every look or signal goes through a pidfd opened first and
checked after, so that a recycled pid is never taken for ours. Files change atomically, by rename; there is no fsync,
because a torn file reads as an absent one and run.json means nothing after a reboot. Sources: proc(5), pidfd_open(2).
Taught in chapter 08.
"""

from __future__ import annotations

import functools
import json
import os
import select
import time
from typing import Any

_ROOM = 4096  # bytes: more than the record of an exit takes


def now() -> str:
    """The time as docker writes it: RFC 3339, UTC, nanoseconds."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"


def write_json(path: str, value: dict[str, Any]) -> None:
    """Replace the file as one step. Where `reserve` took the room before, this works on a full disk too.

    All on one line: with an indent Python's encoder is not the C one, and twenty times slower.
    """
    data = json.dumps(value).encode()
    with open(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb", buffering=0) as file:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
        file.truncate()
    os.rename(path + ".new", path)


def reserve(path: str) -> None:
    """Take the room on disk for what `write_json` will have to say. OSError where there is none left."""
    with open(path + ".new", "wb") as file:
        file.write(bytes(_ROOM))


def read_json(path: str) -> dict[str, Any] | None:
    """The object in the file; None where there is no file or it was torn by a crash."""
    try:
        with open(path, "rb", buffering=0) as file:
            value = json.loads(file.read())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@functools.cache
def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
        return file.read().decode().strip()


def identify(pid: int | str) -> dict[str, int]:
    """A living (or unreaped) process as `{"pid", "start_time"}`, in the numbers of the mounted /proc."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        before, _, after = file.read().rpartition(b")")  # the name may hold spaces and parentheses
    return {"pid": int(before.split()[0]), "start_time": int(after.split()[19])}


def machine_pid(pidfd: int) -> int:
    """The pid in the machine's numbers: those of the /proc that is mounted here, whatever namespace we are in."""
    with open(f"/proc/self/fdinfo/{pidfd}", "rb", buffering=0) as file:
        return next(int(line.split()[1]) for line in file.read().splitlines() if line.startswith(b"Pid:"))


def machine_number(child: int) -> int:
    """The machine's number of a child of ours, whose own number we know."""
    fd = os.pidfd_open(child)
    try:
        return machine_pid(fd)
    finally:
        os.close(fd)


def open_process(run: dict[str, Any], role: str) -> int | None:
    """A pidfd for the process that run.json names `shim` or `init`; None where it is no more."""
    process = run[role]
    if run["boot_id"] != boot_id():
        return None
    try:
        fd = os.pidfd_open(local_pid(process["pid"]))
    except (ProcessLookupError, FileNotFoundError):
        return None
    try:
        if identify(process["pid"]) == process and not ended(fd, 0):
            return fd
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended between the two looks
    os.close(fd)
    return None


def local_pid(pid: int) -> int:
    """The number that a process of the machine has in our pid namespace, where system calls take no other."""
    if os.readlink("/proc/self") == str(os.getpid()):
        return pid
    depth = len(numbers("self")) - 1
    found = numbers(pid)
    if len(found) <= depth:
        raise ProcessLookupError(f"process {pid} is not in our pid namespace")
    return found[depth]


def numbers(pid: int | str) -> list[int]:
    """A process' pid in each of its nested namespaces, outermost first, proc(5) NSpid."""
    with open(f"/proc/{pid}/status", "rb") as file:
        return next([int(word) for word in line.split()[1:]] for line in file if line.startswith(b"NSpid:"))


def parent(pid: int | str) -> int:
    """The pid of a process' parent, in the numbers of the mounted /proc."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


def ended(pidfd: int, timeout: float | None) -> bool:
    """Wait up to `timeout` seconds (None: for ever) for the process to end; whether it did."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))
