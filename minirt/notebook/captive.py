"""The process that becomes a container by hand: it builds the walls it is told, then tries to get out.

A fresh single-threaded interpreter runs this file (`byhand` starts it), for unshare(CLONE_NEWUSER) refuses threads. It
reads one order from its input: sources of walls, of escapes, what to look at, a command; and writes what came of each
to a descriptor, a JSON object a line. Invariants: the first wall is a new user namespace, or nothing else is tried;
until then root has no more power than that needs, so no call of a learner's reaches the machine. Taught in chapter 07.
"""

from __future__ import annotations

import codecs
import ctypes
import errno
import json
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from minirt import linux

_SETFCAP, _SYS_ADMIN = 1 << 31, 1 << 21
# What a wall or an escape may name; nothing else of the notebook comes along.
_NAMES: dict[str, Any] = {
    "ctypes": ctypes, "errno": errno, "linux": linux, "os": os, "signal": signal, "socket": socket, "struct": struct,
    "time": time, "Path": Path,
}  # fmt: skip


class Captive:
    """One order at work. `host` is what was made on the machine for the escapes."""

    def __init__(self, order: dict[str, Any], fd: int) -> None:
        self._order, self._fd = order, fd
        self._host = SimpleNamespace(**order["host"])

    def tell(self, **message: Any) -> None:
        os.write(self._fd, json.dumps(message, default=str).encode() + b"\n")

    def carry_out(self) -> None:
        walls = self._order["walls"]
        if not walls:
            linux.capset(0, 0, 0)  # an ordinary process, for root too
        for number, (name, source) in enumerate(walls):
            able = number > 0 or _lower()
            try:
                _function(name, source)(self._host)
            except Exception as error:
                if isinstance(error, OSError) and able and not number and not self._fenced():
                    self.tell(unfenced=name)
                else:
                    self.tell(failed=name, refused=not able, **_describe(error, name, source))
                return
            if not number and not self._fenced():
                self.tell(unfenced=name)
                return
        for name, source in self._order["escapes"]:
            self._try(name, source)
        if look := self._order.get("look"):
            try:
                self.tell(value=_function(*look)(self._host))
            except Exception as error:
                self.tell(failed=look[0], **_describe(error, *look))
        if command := self._order.get("command"):
            environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
            try:
                os.execvpe(command[0], command, environment)
            except OSError as error:
                self.tell(failed=command[0], **_describe(error, "", ""))

    def _fenced(self) -> bool:
        return bool(os.readlink("/proc/self/ns/user") != self._host.user)

    def _try(self, name: str, source: str) -> None:
        """One escape, in a child of its own: it may spoil what is its own."""
        child = os.fork()
        if child == 0:
            try:
                self.tell(escape=name, out=bool(_function(name, source)(self._host)), error="")
            except Exception as error:
                self.tell(escape=name, out=False, **_describe(error, name, source))
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            self.tell(escape=name, out=False, error=signal.Signals(os.WTERMSIG(status)).name, line="")


def _function(name: str, source: str) -> Callable[[SimpleNamespace], Any]:
    names = dict(_NAMES)
    exec(compile(source, f"<{name}>", "exec"), names)
    function: Callable[[SimpleNamespace], Any] = names[name]
    return function


def _describe(error: Exception, name: str, source: str) -> dict[str, str]:
    """The error's kernel name (or its type and text), and the line of the learner's that met it."""
    number = error.errno if isinstance(error, OSError) else None
    rows = [row.lineno or 0 for row in traceback.extract_tb(error.__traceback__) if row.filename == f"<{name}>"]
    line = source.splitlines()[rows[-1] - 1].strip() if rows else ""
    return {"error": errno.errorcode.get(number or 0, f"{type(error).__name__}: {error}"), "line": line}


def _lower() -> bool:
    """Give up what making a user namespace does not need: a first wall that is another one cannot harm, not by root.

    CAP_SETFCAP maps id 0, user_namespaces(7); some systems let only CAP_SYS_ADMIN make one. Whether one can be made.
    """
    ours = linux.capget()[1]
    enough = next((keep & ours for keep in (_SETFCAP, _SETFCAP | _SYS_ADMIN) if _suffices(keep & ours)), None)
    linux.capset(enough or 0, enough or 0, 0)
    return enough is not None


def _suffices(powers: int) -> bool:
    child = os.fork()
    if child == 0:
        try:
            linux.capset(powers, powers, 0)
            linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _die_with_parent() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    fd = int(sys.argv[3])
    os.set_inheritable(fd, False)
    order = json.loads(sys.stdin.readline())
    _die_with_parent()
    os.register_at_fork(after_in_child=_die_with_parent)
    codecs.lookup("idna")  # what socket loads late: behind the walls the library's files are out of reach
    Captive(order, fd).carry_out()


if __name__ == "__main__":
    main()
