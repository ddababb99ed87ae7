"""How a process is born in namespaces of its own: the part of clone(2) and setns(2) that takes two or three processes.

    parent ──clone──▶ child           born in new ones; it joins what may be joined later, and makes a cgroup
                                      namespace itself, once it is in its group: that shows its maker's
    parent ──fork──▶ middle ──fork──▶ child
                     joins and makes  born in all of them,
                     the namespaces   also in the pid namespace

A joined pid namespace holds for children only, and who makes a user namespace must be mapped before it may do more:
then somebody stands between. The middle enters the cgroup first, joins what has a path, makes the rest, forks and goes;
the parent, a subreaper, inherits the child. Only the parent, which stays outside, may map a new user namespace. Each
talks to the parent over a socket of its own and ends when that closes, so a parent killed half-way leaves nobody
behind. A process less is 3 ms less of each start.
Sources: namespaces(7), user_namespaces(7), pid_namespaces(7). Taught in chapter 07.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from minirt import linux, userns
from minirt.errors import MinirtError, StartError
from minirt.runtime import state
from minirt.userns import IdMapping

FLAGS = {
    "user": linux.CLONE_NEWUSER, "mount": linux.CLONE_NEWNS, "uts": linux.CLONE_NEWUTS, "ipc": linux.CLONE_NEWIPC,
    "network": linux.CLONE_NEWNET, "cgroup": linux.CLONE_NEWCGROUP, "pid": linux.CLONE_NEWPID,
}  # fmt: skip
FILES = {
    "user": "user", "mount": "mnt", "uts": "uts", "ipc": "ipc", "network": "net", "cgroup": "cgroup", "pid": "pid",
}  # fmt: skip
_LATER = ("network", "ipc", "uts", "cgroup")  # what a process itself may move to, whatever else it is in
_MAX_MESSAGE = 65536
_ASIDE = 512  # a descriptor above all that a request brings
Fork = Callable[[int], "tuple[int, Callable[[], None]]"]  # with these flags; the pid, and what the child calls first


class Sync:
    """One end of a line between two of the processes: JSON objects, in order, each in one packet."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @classmethod
    def pair(cls) -> tuple[Sync, Sync]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def send(self, message: dict[str, Any]) -> None:
        """Where the other end is gone, what it said before is still to be received: that tells why."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._end.send(json.dumps(message).encode()[:_MAX_MESSAGE])

    def receive(self) -> dict[str, Any] | None:
        """The next message; None where the other end is gone. Raises StartError for one that says so."""
        try:
            data = self._end.recv(_MAX_MESSAGE)
        except ConnectionResetError:  # told first where it left something unread; what it had said comes after
            data = self._end.recv(_MAX_MESSAGE)
        message: dict[str, Any] | None = json.loads(data) if data else None
        if message and "error" in message:
            raise StartError(message["error"], message["exit_code"])
        return message

    def tell(self, error: Exception, where: str = "") -> None:
        """Send a failure as one line."""
        code = error.exit_code if isinstance(error, StartError) else 125
        self.send({"error": describe(error, where)[:4000], "exit_code": code})

    def close(self) -> None:
        self._end.close()


def describe(error: Exception, where: str = "") -> str:
    """One line for whatever went wrong while a container was set up."""
    if isinstance(error, MinirtError):
        return str(error)
    if isinstance(error, OSError):
        path = f" {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        reason = f"{path} {error.strerror}"
    else:
        reason = f" {type(error).__name__}: {error}"
    return f"cannot set up the container: {where.replace('_', ' ')}{':' if where else ''}{reason}".replace(":  ", ": ")


def spawn(
    namespaces: list[dict[str, Any]],
    ids: IdMapping,
    body: Callable[[Sync], NoReturn],
    *,
    fork: Fork = lambda flags: (linux.fork(flags), lambda: None),
    admit: Callable[[int], None] = lambda pid: None,
    enter: Callable[[], None] = lambda: None,
    late: Sequence[str] = (),
) -> tuple[int, int, Sync]:
    """Start `body` in these namespaces (runtime-spec objects); its pid, a pidfd and the line to it.

    `ids` maps a new user namespace. Before any is made or joined but those that the child can be born in: `fork` begins
    it or the middle (in a cgroup), `admit` gets its pid from outside, `enter` is called in it. `late` kinds the child
    makes itself where there is no middle (`fork` had flags then). For a single-threaded process, which becomes the
    child's parent. Raises StartError, Unsupported.
    """
    left = [
        entry for entry in namespaces if entry.get("path") or (entry["type"] not in late and entry["type"] == "cgroup")
    ]
    if (flags := _flags(namespaces)) and (born := _clone(flags, left, body, fork, admit, enter)):
        return born
    forget()
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    middle_end, middle_line = Sync.pair()
    child_end, child_line = Sync.pair()
    middle, begin = fork(0)
    if middle == 0:
        middle_end.close()
        child_end.close()
        _middle(middle_line, child_line, namespaces, begin, enter, body)
    middle_line.close()
    child_line.close()
    pid = 0
    try:
        admit(middle)
        middle_end.send({"go": True})
        message = middle_end.receive()
        if message and message.get("map"):
            userns.write_maps(state.machine_number(middle), ids)
            middle_end.send({"mapped": True})
            message = middle_end.receive()
        if message is None:
            raise StartError("the process that makes the namespaces was killed")
        pid = int(message["pid"])
        return pid, os.pidfd_open(pid), child_end
    except BaseException:
        child_end.close()
        raise
    finally:
        middle_end.close()
        os.waitpid(middle, 0)
        with contextlib.suppress(ChildProcessError):
            while not pid:  # of a child a killed middle did not tell: unreaped, its pid namespace could not end
                os.waitpid(-middle, 0)
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)  # orphans of a shared pid namespace are its own init's to reap


_network = -1  # one that is made already


def foresee() -> None:
    """Make the network namespace of the next child: that takes the kernel as long as a fork. For root's."""
    import fcntl

    global _network
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    linux.unshare(linux.CLONE_NEWNET)
    made = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    linux.setns(own, linux.CLONE_NEWNET)
    _network = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, _ASIDE)
    os.close(made)
    os.close(own)


def bring(place: int) -> int:
    """Have it at this descriptor, where there is one; the first that is free then."""
    global _network
    if _network < 0:
        return place
    _network = os.dup2(_network, place, inheritable=False)
    return place + 1


def forget() -> None:
    """Let it go, where there is one: it is not wanted."""
    global _network
    if _network >= 0:
        os.close(_network)
        _network = -1


@contextlib.contextmanager
def _foreseen(flags: int) -> Iterator[int]:
    """What is still to be made of these, by a child that is born meanwhile."""
    global _network
    if not flags & linux.CLONE_NEWNET or _network < 0:
        forget()
        yield flags
        return
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    linux.setns(_network, linux.CLONE_NEWNET)
    forget()
    try:
        yield flags & ~linux.CLONE_NEWNET
    finally:
        linux.setns(own, linux.CLONE_NEWNET)
        os.close(own)


def _flags(namespaces: list[dict[str, Any]]) -> int:
    """clone(2)'s flags where the child can be born in all but what is joined or made later; else 0."""
    flags = 0
    for entry in namespaces:
        kind, path = entry["type"], entry.get("path")
        if kind == "user":
            if not path or not is_ours(path, kind):
                return 0
        elif path and kind not in _LATER:
            return 0
        elif not path and kind != "cgroup":
            flags |= FLAGS[kind]
    return flags


def _clone(
    flags: int,
    left: list[dict[str, Any]],
    body: Callable[[Sync], NoReturn],
    fork: Fork,
    admit: Callable[[int], None],
    enter: Callable[[], None],
) -> tuple[int, int, Sync] | None:
    """`spawn` without a middle; None where the kernel refuses: the middle tries, and says why not."""
    end, line = Sync.pair()
    try:
        with _foreseen(flags) as rest:
            pid, begin = fork(rest)
            if pid == 0:
                end.close()
                _set_up(line, left, begin, enter, lambda: body(line))
    except OSError:
        end.close()
        line.close()
        return None
    line.close()
    try:
        admit(pid)
        end.send({"go": True})
        return pid, os.pidfd_open(pid), end
    except BaseException:
        end.close()  # by this it ends
        os.waitpid(pid, 0)
        raise


def _set_up(
    line: Sync,
    namespaces: list[dict[str, Any]],
    begin: Callable[[], None],
    enter: Callable[[], None],
    go: Callable[[], None],
) -> NoReturn:
    """In the child or the middle: everything until it can `go` on."""
    step = "cgroup"
    try:
        begin()
        step = "limits"
        if line.receive() is None:
            os._exit(0)
        enter()
        step = "namespaces"
        _enter_namespaces(line, namespaces)
        step = "fork"
        go()
    except Exception as error:  # the process boundary: the parent gets one line, whatever it was
        line.tell(error, step)
    finally:
        os._exit(0)


def _middle(
    line: Sync,
    child_line: Sync,
    namespaces: list[dict[str, Any]],
    begin: Callable[[], None],
    enter: Callable[[], None],
    body: Callable[[Sync], NoReturn],
) -> NoReturn:
    def lead() -> None:
        begin()
        os.setpgid(0, 0)  # the child is in it until it goes on

    def go() -> None:
        pid = os.fork()
        if pid == 0:
            line.close()
            body(child_line)
        line.send({"pid": pid})

    _set_up(line, namespaces, lead, enter, go)


def _enter_namespaces(line: Sync, namespaces: list[dict[str, Any]]) -> None:
    """Join those with a path, make the others. The user namespace decides what the rest is allowed.

    Who is in a joined one already may see us and our child from now on: by then nobody may look into us (not dumpable,
    CVE-2016-9962), and where the files are theirs nothing is loaded any more.
    """
    joined = {
        entry["type"]: os.open(entry["path"], os.O_RDONLY | os.O_CLOEXEC) for entry in namespaces if entry.get("path")
    }
    kinds = [entry["type"] for entry in namespaces]
    user = joined.pop("user", None)
    if "mount" in joined:
        seal()
    if user is not None and is_ours(user, "user"):
        os.close(user)  # setns(2) refuses to join what one is in
        user, kinds = None, [kind for kind in kinds if kind != "user"]
    making = user is None and "user" in kinds
    if not making:
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
    later = {}
    for kind, fd in joined.items():
        try:
            linux.setns(fd, FLAGS[kind])
        except OSError as error:
            if error.errno != errno.EPERM or "user" not in kinds:
                raise OSError(error.errno, f"cannot join the {kind} namespace: {error.strerror}") from error
            later[kind] = fd
    if user is not None:
        linux.setns(user, linux.CLONE_NEWUSER)
    elif making:
        userns.enter_new()
        line.send({"map": True})
        if line.receive() is None:
            os._exit(0)
    if "user" in kinds:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)  # not before the parent has mapped us: it may not touch who is not
    for kind, fd in later.items():
        linux.setns(fd, FLAGS[kind])
    linux.unshare(sum(FLAGS[kind] for kind in kinds if kind != "user" and kind not in joined))


def seal() -> None:
    """From here on the files are the container's: load nothing more."""
    sys.path.clear()
    sys.meta_path.clear()


def is_ours(place: int | str, kind: str) -> bool:
    """Whether the namespace at a path or descriptor is our own. Raises OSError."""
    return os.path.samestat(os.stat(place), os.stat(f"/proc/self/ns/{FILES[kind]}"))


def of(pid: int, kinds: list[str]) -> list[dict[str, Any]]:
    """The namespaces of a process, to be joined."""
    return [{"type": kind, "path": f"/proc/{pid}/ns/{FILES[kind]}"} for kind in kinds]


def user_namespace(ids: IdMapping) -> int:
    """A descriptor of a new user namespace with this mapping, with nobody in it. Raises Unsupported, OSError."""
    ready, made = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            linux.unshare(linux.CLONE_NEWUSER)
            os.write(made, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(made)
    try:
        if not os.read(ready, 1):
            raise StartError("this machine refuses user namespaces: see `minirt doctor`")
        number = state.machine_number(child)
        userns.write_maps(number, ids)
        return os.open(f"/proc/{number}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
