"""Who notices that a container has ended: one thread over the pidfds and notices of all shims, and the lines of execs.

An end is told once and in order: `die`, then whoever waits is woken, then AutoRemove removes. The status itself is on
disk, written by the shim; what is here may die with the daemon, and `begin` finds the containers again.
Sources: pidfd_open(2), epoll(7); moby daemon/monitor.go, container/state.go. Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minirt.engine.images import epoch
from minirt.errors import InvalidInput, MinirtError, NotFound
from minirt.runtime import container as runtime
from minirt.runtime import state

if TYPE_CHECKING:
    from minirt.engine.answers.containers import ContainerWaitResponse
    from minirt.engine.life import Life
    from minirt.runtime.control import Connection

_AGAIN = 0.2  # seconds
_REMOVERS = 4  # threads that remove ended --rm containers, whose files may take long
KILLED = 128 + 9
_CONDITIONS = ("not-running", "next-exit", "removed")


class Waiter:
    """Somebody who waits for a container: `fileno` can be read once there is a `result`."""

    def __init__(self, forget: Callable[[Waiter], None]) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._forget = forget
        self._result: ContainerWaitResponse  # there once `fileno` can be read

    def fileno(self) -> int:
        return self._fd

    def tell(self, result: ContainerWaitResponse) -> None:
        """The monitor's side."""
        self._result = result
        os.eventfd_write(self._fd, 1)

    def result(self) -> ContainerWaitResponse:
        """`{"StatusCode"}`, and `Error` where there was one; waits for it."""
        state.ended(self._fd, None)
        return self._result

    def close(self) -> None:
        self._forget(self)  # from here on nobody tells us
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Monitor:
    """The ends of containers of one engine. `lock` is held while one is told of: nothing else is said meanwhile."""

    def __init__(self, containers: Life) -> None:
        from concurrent.futures import ThreadPoolExecutor  # brings logging, which a run does without

        self._containers = containers
        self.lock = threading.RLock()
        self.kept: set[str] = set()  # containers that only end to start again: AutoRemove leaves them
        self._shims: dict[str, list[int]] = {}  # a pidfd, and what its notice comes by
        self._calls: dict[int, Callable[[], None]] = {}
        self._waiters: dict[str, list[tuple[str, Waiter]]] = {}
        self._epoll = select.epoll()
        self._over = os.eventfd(0, os.EFD_CLOEXEC)
        self._removers = ThreadPoolExecutor(_REMOVERS, "remover")
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def begin(self) -> None:
        """Take notice of what runs, and of what has ended while nobody looked."""
        self._epoll.register(self._over, select.EPOLLIN)
        self._thread.start()
        for record in list(self._containers.records()):
            status = runtime.status(self._containers.folder(record))
            if status.runs:
                self.watch(record["Id"])
                for path in (self._containers.folder(record) / "exec").glob("*.state"):
                    if (state.read_json(str(path)) or {}).get("exit_code", 0) is None:
                        self._removers.submit(self.watch_exec, record["Id"], path.stem)
            elif status.state != "created" and auto_remove(record):
                self._removers.submit(self._remove, record)

    def end(self) -> None:
        """Containers go on; whoever waits is let go with an error."""
        os.eventfd_write(self._over, 1)
        self._thread.join()
        self._removers.shutdown()
        with self.lock:
            for fds in self._shims.values():
                _close(fds)
            for waiters in self._waiters.values():
                for _, waiter in waiters:
                    waiter.tell({"StatusCode": -1, "Error": {"Message": "the daemon ends"}})
        self._epoll.close()
        os.close(self._over)

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._over:
                    return
                if call := self._calls.get(fd):
                    try:
                        call()
                    except Exception:  # the boundary of a thread: no descriptor is left, a file cannot be read
                        traceback.print_exc(file=sys.stderr)
                        time.sleep(_AGAIN)  # it is still to be told

    def _listen(self, fd: int, call: Callable[[], None]) -> None:
        """Have `call` made by our thread when `fd` can be read."""
        self._calls[fd] = call
        self._epoll.register(fd, select.EPOLLIN)

    def _deaf(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._calls[fd]

    # the end of a container

    def watch(self, identity: str, notice: int | None = None) -> None:
        """It has just been started (or still runs): notice its end, by the shim's `notice` or its going."""
        run = state.read_json(str(self._containers.folder({"Id": identity}) / "run.json"))
        fd = state.open_process(run, "shim") if run else None
        fds = [each for each in (fd, notice) if each is not None]
        with self.lock:
            if fd is None or identity in self._shims:
                _close(fds)
                if fd is None:  # it is over already
                    self._tell(identity)
                return  # else two started it, one after the other: the second's shim is watched already
            self._shims[identity] = fds
            for each in fds:
                self._listen(each, lambda: self._ended(identity))

    def settle(self, identity: str) -> None:
        """Where it has ended, that is told when this returns."""
        with self.lock:
            if identity in self._shims and not runtime.status(self._containers.folder({"Id": identity})).runs:
                self._told(identity)

    def _ended(self, identity: str) -> None:
        with self.lock:
            fds = self._shims.get(identity)
            if fds and any(state.ended(fd, 0) for fd in fds):  # not: it was settled, and the number means another now
                self._told(identity)

    def _told(self, identity: str) -> None:
        self._tell(identity)
        self._let_go(identity)

    def _let_go(self, identity: str) -> None:
        fds = self._shims.pop(identity, [])
        for fd in fds:
            self._deaf(fd)
        _close(fds)

    def _tell(self, identity: str) -> None:
        try:
            record = self._containers.find(identity)
        except NotFound:
            return  # its folder was taken away, by hand or by another program
        status = runtime.status(self._containers.folder(record))
        if status.oom_killed:
            self._containers.tell(record, "oom")
        lasted = max(0, epoch(status.finished or state.now()) - epoch(status.started))
        self._containers.tell(record, "die", exitCode=str(status.exit_code), execDuration=str(lasted))
        self._containers.connected(record, begins=False)
        self._wake(identity, status, _CONDITIONS[:2])
        if auto_remove(record) and identity not in self.kept:
            self._removers.submit(self._remove, record)

    def _remove(self, record: dict[str, Any]) -> None:
        try:
            self._containers.discard(record)
        except Exception as error:  # the boundary of a thread: who waits for the removal is told
            status = runtime.status(self._containers.folder(record))
            self._wake(record["Id"], status, _CONDITIONS, f"cannot remove it: {error}")

    # the end of an exec

    def watch_exec(self, identity: str, exec: str) -> None:
        """It has just been started (or still runs): notice its end."""
        folder = self._containers.folder({"Id": identity})
        try:
            line = runtime.attach(folder, (None, None, None), exec)
        except (MinirtError, OSError):  # it is over already
            known = state.read_json(str(folder / "exec" / f"{exec}.state")) or {}
            self._exec_over(identity, exec, known.get("exit_code"))
            return
        with self.lock:
            self._listen(line.fileno(), lambda: self._exec_said(identity, exec, line))

    def _exec_said(self, identity: str, exec: str, line: Connection) -> None:
        self._deaf(line.fileno())
        end = line.wait() or {}  # nothing: its shim was killed
        line.close()
        self._exec_over(identity, exec, end.get("exit_code"))

    def _exec_over(self, identity: str, exec: str, code: int | None) -> None:
        with contextlib.suppress(NotFound):
            record = self._containers.find(identity)
            self._containers.tell(record, "exec_die", execID=exec, exitCode=str(KILLED if code is None else code))

    # who waits

    def waiter(self, identity: str, condition: str) -> Waiter:
        """POST /containers/{id}/wait; counts from now on."""
        condition = condition or "not-running"
        if condition not in _CONDITIONS:
            raise InvalidInput(f'invalid condition: "{condition[:80]}"')
        waiter = Waiter(lambda waiter: self._forget(identity, waiter))
        folder = self._containers.folder({"Id": identity})
        with self.lock:
            status = runtime.status(folder)
            if identity in self._shims and not status.runs:  # it has ended before
                self._told(identity)
            self._waiters.setdefault(identity, []).append((condition, waiter))
            if not (folder / "container.json").exists():
                self._wake(identity, status, _CONDITIONS)  # removed before we could be told
            elif condition == "not-running" and not status.runs:
                self._wake(identity, status, (condition,))
        return waiter

    def removed(self, identity: str, status: runtime.Status) -> None:
        """It is gone. Whatever they waited for, it will not come any more."""
        with self.lock:
            self._let_go(identity)
            self._wake(identity, status, _CONDITIONS)

    def _wake(self, identity: str, status: runtime.Status, conditions: tuple[str, ...], error: str = "") -> None:
        # A log that is full is no error of the command's, but a stream that did not take its output is one.
        error = error or (status.error if status.error.startswith("write ") else "")
        result: ContainerWaitResponse = {"StatusCode": status.exit_code}
        if error:
            result["Error"] = {"Message": error}
        with self.lock:
            waiters = self._waiters.get(identity, [])
            for condition, waiter in waiters:
                if condition in conditions:
                    waiter.tell(result)
            waiters[:] = [pair for pair in waiters if pair[0] not in conditions]
            if not waiters:
                self._waiters.pop(identity, None)

    def _forget(self, identity: str, waiter: Waiter) -> None:
        with self.lock:
            waiters = self._waiters.get(identity, [])
            waiters[:] = [pair for pair in waiters if pair[1] is not waiter]
            if not waiters:
                self._waiters.pop(identity, None)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def auto_remove(record: dict[str, Any]) -> bool:
    return bool(record["HostConfig"].get("AutoRemove"))
