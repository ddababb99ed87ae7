"""The programs networks need (nft, pasta, slirp4netns), run from the shim, and one lock for what a root shares.

A shim's next child is born in the container's pid namespace, where the container could see and stop it (and none is
born once its init is dead): these start in the shim's own, and so die with it. Source: pid_namespaces(7).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator

from minirt import linux

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # where a plain user's PATH does not look


def find(name: str) -> str | None:
    """The path of a program of the machine, or None."""
    for folder in f"{os.environ.get('PATH', os.defpath)}:{_SBIN}".split(":"):
        path = os.path.join(folder, name)
        if folder.startswith("/") and os.access(path, os.X_OK):
            return path
    return None


def run(words: list[str], text: str = "") -> tuple[int, str, str]:
    """Run a program with `text` as its input: exit status, output, errors."""
    pid, out, err = start(words, text)
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        printed, complaints = (os.pread(fd, 1 << 20, 0).decode(errors="replace") for fd in (out, err))
        return status, printed, complaints
    finally:
        os.close(out)
        os.close(err)


def start(words: list[str], text: str = "", keep: tuple[int, ...] = ()) -> tuple[int, int, int]:
    """Start a program: its pid (ours to wait for), and two files that hold its output and errors. `keep` stays open."""
    fds = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("in", "out", "err")]
    try:
        os.pwrite(fds[0], text.encode(), 0)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in keep]  # onto itself: no longer close-on-exec
        with _own_pid_namespace():
            # Python ignores SIGPIPE, and pasta will not start where it is ignored.
            pid = os.posix_spawn(words[0], words, os.environ, file_actions=actions, setsigdef=[signal.SIGPIPE])
    except BaseException:
        os.close(fds[1])
        os.close(fds[2])
        raise
    finally:
        os.close(fds[0])
    return pid, fds[1], fds[2]


@contextlib.contextmanager
def _own_pid_namespace() -> Iterator[None]:
    kinds = ("pid", "pid_for_children")
    own, children = (os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds)
    try:
        other = os.fstat(own).st_ino != os.fstat(children).st_ino
        if other:
            linux.setns(own, linux.CLONE_NEWPID)
        try:
            yield
        finally:
            if other:
                linux.setns(children, linux.CLONE_NEWPID)
    finally:
        os.close(own)
        os.close(children)


@contextlib.contextmanager
def locked(root: str) -> Iterator[None]:
    """One process at a time changes the network of this root."""
    fd = os.open(f"{root}/network.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
