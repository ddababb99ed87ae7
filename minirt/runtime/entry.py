"""The entry: what stands between a starter and a shim for a moment, so that no starter has to reap a shim.

It becomes root over the user's ids (rootless), makes the pid namespace that the shim is pid 1 of, forks it and exits.
Where a launcher has made that, which reaps nobody, it becomes the shim itself. Taught in chapter 08.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import NoReturn

from minirt import linux
from minirt.errors import MinirtError, StartError
from minirt.runtime import prepare, seccomp, state
from minirt.runtime.config import check
from minirt.runtime.shim import STATUS, Shim, tell_failure


def main(folder: str, options: str) -> NoReturn:
    """Start the container in `folder` and stay until it has ended (`child.command` calls this)."""
    asked = json.loads(options)
    last = STATUS + sum(sum(streams) + 1 for streams in asked.get("attached") or ()) + bool(asked.get("notice"))
    linux.close_range(last + 1)
    for fd in range(STATUS, last + 1):
        os.set_inheritable(fd, False)
    try:
        os.setsid()
        os.chdir("/")
        config = state.read_json(os.path.join(folder, "config.json"))
        snapshot = state.read_json(os.path.join(folder, "rootfs.json"))
        if config is None or snapshot is None:
            raise StartError("config.json or rootfs.json of the container is missing or torn")
        if snapshot["kind"] == "proot":
            from minirt.runtime import proot

            if os.fork() == 0:
                proot.Shim(folder, config, snapshot, asked, False).run()
            os._exit(0)
        if os.getpid() == 1:
            Shim(folder, config, snapshot, asked, False).run()
        inside = prepare.enter_user_namespace(config)
        if any(entry["type"] == "pid" and not entry.get("path") for entry in config["linux"]["namespaces"]):
            linux.unshare(linux.CLONE_NEWPID)  # else it shares one that has to be reached from here, setns(2)
        if os.fork() == 0:
            Shim(folder, config, snapshot, asked, inside).run()
    except Exception as error:  # the process boundary: the starter gets one line, whatever it was
        tell_failure(error)
    os._exit(0)


def rehearse(folder: str, cache: str) -> Iterator[None]:
    """What the start of this container begins with, step by step. It only looks, and forgets what it finds."""
    config = state.read_json(os.path.join(folder, "config.json"))
    yield
    if config is None:
        return
    with contextlib.suppress(MinirtError, OSError, KeyError):  # the start itself will say what is wrong
        check(config)
        yield
        if policy := config["linux"].get("seccomp"):
            seccomp.compile(policy, cache)
        yield
        prepare.place(config, "rehearsal", False)
        yield
        json.dumps(config)
