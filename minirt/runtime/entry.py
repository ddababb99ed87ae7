"""The entry: what stands between a starter and a shim for a moment, so that no starter has to reap a shim.

It becomes root over the user's ids (rootless), makes the pid namespace that the shim is pid 1 of, forks it and exits.
Where a launcher has made that, which reaps nobody, it becomes the shim itself. Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any, NoReturn

from minirt import linux
from minirt.errors import StartError
from minirt.runtime import namespaces, prepare, seccomp, state
from minirt.runtime.answer import STATUS, tell_failure
from minirt.runtime.config import check
from minirt.runtime.shim import Shim


def main(folder: str, options: str) -> NoReturn:
    """Start the container in `folder` and stay until it has ended (`child.command` calls this)."""
    asked = json.loads(options)
    last = STATUS + sum(sum(streams) + 1 for streams in asked.get("attached") or ()) + bool(asked.get("notice"))
    linux.close_range(namespaces.bring(last + 1))
    for fd in range(STATUS, last + 1):
        os.set_inheritable(fd, False)
    try:
        os.setsid()
        os.chdir("/")
        config, checked = _config(folder)
        snapshot = state.read_json(os.path.join(folder, "rootfs.json"))
        if config is None or snapshot is None:
            raise StartError("config.json or rootfs.json of the container is missing or torn")
        if snapshot["kind"] == "proot":
            from minirt.runtime import proot

            if os.fork() == 0:
                proot.Shim(folder, config, snapshot, asked, False).run()
            os._exit(0)
        if os.getpid() == 1:
            Shim(folder, config, snapshot, asked, False, checked).run()
        inside = prepare.enter_user_namespace(config)
        if prepare.own(config, "pid"):
            linux.unshare(linux.CLONE_NEWPID)  # else it shares one that has to be reached from here, setns(2)
        if os.fork() == 0:
            Shim(folder, config, snapshot, asked, inside).run()
    except Exception as error:  # the process boundary: the starter gets one line, whatever it was
        tell_failure(error)
    os._exit(0)


_rehearsed: tuple[list[int], dict[str, Any]] | None = None  # which file, and what is in it: it was checked


def rehearse(folder: str, cache: str) -> Iterator[None]:
    """What the start of this container begins with, step by step. It changes nothing but this process."""
    global _rehearsed
    key, config = _key(folder), state.read_json(_path(folder))
    yield
    if config is None:
        return
    check(config)
    _rehearsed = key, config
    yield
    if policy := config["linux"].get("seccomp"):
        seccomp.foresee(policy, cache)
    yield
    prepare.foresee(config, os.path.basename(folder))
    yield
    if prepare.own(config, "network") and not prepare.own(config, "user"):
        namespaces.foresee()
    yield
    json.dumps(config)


def _config(folder: str) -> tuple[dict[str, Any] | None, bool]:
    """config.json, and whether it is checked already."""
    with contextlib.suppress(FileNotFoundError):
        if _rehearsed and _rehearsed[0] == _key(folder):
            return _rehearsed[1], True
    return state.read_json(_path(folder)), False


def _path(folder: str) -> str:
    return os.path.join(folder, "config.json")


def _key(folder: str) -> list[int]:
    """Which file it is: it changes by rename alone."""
    file = os.stat(_path(folder))
    return [file.st_dev, file.st_ino, file.st_mtime_ns, file.st_size]
