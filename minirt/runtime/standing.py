"""Between the runtime and a process of a container on its way: what one tells and does while the other stands still.

Sources: runtime-spec runtime.md "State" and "Lifecycle", prlimit(2). Taught in chapter 08.
"""

from __future__ import annotations

import os
from typing import Any

from minirt.errors import StartError
from minirt.runtime import prepare
from minirt.runtime.namespaces import Sync
from minirt.runtime.process import Process

VERSION = "1.0.2"  # of the runtime-spec


def enter(process: Process) -> None:
    """The last that is done from outside, by the one who will make or join the namespaces."""
    prepare.score(process.process)
    process.keep()


def stands_still(line: Sync, pid: int, process: dict[str, Any]) -> None:
    """Until only the command's start is left to do; it is given its limits on the way."""
    while "ready" not in (message := line.receive() or {}):
        if not message:
            raise StartError("the process was killed while it was set up")
        if "limits" in message:
            prepare.limit(pid, process)
            line.send({"go": True})


def spec_state(known: dict[str, Any], status: str) -> dict[str, Any]:
    pid = known["init"]["pid"] if "init" in known and status != "stopped" else 0
    return {
        "ociVersion": VERSION, "id": known["id"], "status": status, "pid": pid, "bundle": known["bundle"],
        "annotations": known.get("annotations") or {},
    }  # fmt: skip


def run_hooks(known: dict[str, Any], stage: str, now: dict[str, Any], tell: bool = False) -> None:
    """Run the hooks of a stage; with `tell`, the first that fails is only told (poststop)."""
    if not (known.get("hooks") or {}).get(stage):
        return
    from minirt.runtime import hooks

    try:
        hooks.run(known, stage, now)
    except StartError as error:
        if not tell:
            raise
        os.write(2, f"{error}\n".encode())
