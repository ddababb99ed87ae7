"""This machine's own resources, which all its processes share and a container gets a slice of: disk, network, RAM, CPU.

Sources: statvfs(3), proc_meminfo(5), sysconf(3). Taught in chapter 06.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes; `disk` is the one that a store lies on. What this system does not tell is 0 or empty."""

    kernel: str
    cpus: int
    memory: int = 0
    memory_free: int = 0
    disk: int = 0
    disk_free: int = 0
    interfaces: tuple[str, ...] = ()


def look(root: Path) -> Machine:
    """As it is now. `root` is a store's folder, which need not be there yet."""
    folder = next((path for path in (root, *root.parents) if path.exists()), Path("/"))
    disk = shutil.disk_usage(folder)
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):  # Linux has it
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            found[name] = 1024 * int(rest.split()[0])
    interfaces = tuple(name for _, name in socket.if_nameindex()) if hasattr(socket, "if_nameindex") else ()
    return Machine(
        kernel=f"{platform.system()} {platform.release()}",
        cpus=os.cpu_count() or 1,
        memory=found.get("MemTotal", 0),
        memory_free=found.get("MemAvailable", 0),
        disk=disk.total,
        disk_free=disk.free,
        interfaces=interfaces,
    )
