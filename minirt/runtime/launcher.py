"""The launcher: the nursery (minirt/nursery.py) of shims. It has their code loaded and makes one a container.

    daemon ──requests──▶ launcher ──clone──▶ shim                   root's, with a pid namespace of its own: "alone"
                                  ──fork──▶ entry ──fork──▶ shim    others

It runs from the sealed interpreter, and so do they. A request is `[folder, options, "alone" or ""]` (see
`container.start`), with the descriptors that become the shim's 0, 1, 2… (see shim.py). As a container is created, one
that will be "alone" is cloned ahead, and rehearses (entry.py). Taught in chapter 08.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import resource
from typing import NoReturn

from minirt import linux
from minirt.child import seal
from minirt.nursery import Nursery, serve


class Launcher(Nursery):
    """The daemon's side of it. What it launches has this moment's limit of open files."""

    def __init__(self) -> None:
        limits, kind = resource.getrlimit(resource.RLIMIT_NOFILE), "alone" if os.geteuid() == 0 else ""
        super().__init__("minirt.runtime.launcher", *map(str, limits), sealed=True, kind=kind)


def main(soft: str, hard: str) -> None:
    """Serve until the line ends (`child.command` calls this)."""
    seal()
    # Loaded and asked once here, not once a container.
    from minirt.runtime import entry, state

    codecs.lookup("ascii")
    state.boot_id()
    if os.geteuid() == 0:
        from minirt.runtime.network import bridge  # noqa: F401

    def fork(folder: str, options: str, alone: str) -> int:
        if alone:
            with contextlib.suppress(OSError):  # a kernel that refuses: the entry tries, and says why
                return linux.fork(linux.CLONE_NEWPID)
        return os.fork()

    def become(folder: str, options: str, alone: str) -> NoReturn:
        entry.main(folder, options)

    resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))
    serve(become, fork, entry.rehearse, ("", "", "alone") if os.geteuid() == 0 else ())
