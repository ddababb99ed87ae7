"""fuse-overlayfs: the layers laid over one another by a program, where the kernel refuses to do it for us.

The kernel asks that program about every file, by /dev/fuse: slower than overlay, but nothing is copied. It runs as a
child of the shim, inside its namespaces, and so ends with it. Sources: fuse(4), fuse-overlayfs(1). Chapter 06.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from typing import Any

from minirt import linux
from minirt.errors import StartError

_PATIENCE = 10  # seconds until it has mounted


def mount(folder: str, rootfs: dict[str, Any], attributes: int) -> None:
    """Mount the layers of rootfs.json on `folder/rootfs`. Raises StartError."""
    program, place = shutil.which("fuse-overlayfs"), os.path.join(folder, "rootfs")
    if program is None:
        raise StartError("fuse-overlayfs is not installed any more: sudo apt install fuse-overlayfs")
    links = os.path.join(folder, "lowers")  # short names without a character that means something
    os.makedirs(links, mode=0o700, exist_ok=True)
    for name, path in (("u", rootfs["upper"]), ("w", rootfs["work"]), *enumerate(rootfs["lowers"])):
        if not os.path.islink(os.path.join(links, str(name))):
            os.symlink(path, os.path.join(links, str(name)))
    options = f"lowerdir={':'.join(map(str, range(len(rootfs['lowers']))))},upperdir=u,workdir=w"
    options += f",{rootfs['options']}" if rootfs.get("options") else ""  # for layers that other users share
    before = os.stat(place).st_dev
    with tempfile.TemporaryFile() as trouble:
        pid = os.fork()
        if pid == 0:
            try:
                os.chdir(links)
                os.dup2(trouble.fileno(), 2)
                linux.close_range(3, cloexec=True)
                os.execv(program, [program, "-f", "-o", options, place])
            finally:
                os._exit(127)
        end = time.monotonic() + _PATIENCE
        while os.stat(place).st_dev == before:
            if os.waitpid(pid, os.WNOHANG)[0] or time.monotonic() > end:
                trouble.seek(0)
                why = trouble.read()[-200:].decode(errors="replace").strip()
                raise StartError(f"fuse-overlayfs cannot mount the layers: {why or 'it does not answer'}")
            time.sleep(0.002)
    if attributes:
        fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        linux.mount_setattr(fd, "", linux.AT_EMPTY_PATH, attributes)
        os.close(fd)
