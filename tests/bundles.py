"""Bundles for tests: a root file system made from this machine's static busybox, and containers over it.

Imports nothing but the package and the standard library, so that a plain user's Python can use it too (users.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from minirt.runtime import container, spec
from minirt.userns import IdMapping

APPLETS = """sh cat id env pwd ls mount sleep hostname grep head sort awk seq stat true touch ip wc echo chmod tail"""
PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n"
GROUP = "root:x:0:\nweb:x:1000:\nextra:x:2000:web\n"


class Result(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


def tree(folder: Path, busybox: str) -> Path:
    """Fill `folder` with a small system; some of its programs cannot run."""
    for name in ("bin", "etc", "tmp", "root"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(busybox, folder / "bin" / "busybox")
    for name in APPLETS.split():
        os.symlink("busybox", folder / "bin" / name)
    (folder / "etc" / "passwd").write_text(PASSWD)
    (folder / "etc" / "group").write_text(GROUP)
    (folder / "etc" / "plain").write_text("not a program\n")
    (folder / "bin" / "garbage").write_bytes(b"\0garbage")
    (folder / "bin" / "orphan").write_text("#!/no/such/interpreter\n")
    for name in ("garbage", "orphan"):
        (folder / "bin" / name).chmod(0o755)
    folder.chmod(0o755)
    return folder


def create(
    folder: Path, image: Path, args: list[str], ids: IdMapping, user: str = "", overlay: bool = True, **options: Any
) -> Path:
    """A container in a new folder under `folder`: over `image` as the one layer, or (overlay=False) a copy of it."""
    place = Path(tempfile.mkdtemp(dir=folder))
    env = spec.environment("box", [], options.pop("env", []))
    spec.write_bundle(place, spec.ContainerOptions(args, env, hostname="box", ids=ids, **options))
    (place / "user").write_text(user)
    rootfs: dict[str, Any] = {"kind": "directory", "path": str(place / "rootfs")}
    if overlay:
        for name in ("upper", "work"):
            (place / name).mkdir()
        rootfs = {"kind": "overlay", "lowers": [str(image)], "userxattr": ids.rootless}
        rootfs |= {name: str(place / name) for name in ("upper", "work")}
    else:
        subprocess.run(["cp", "-a", f"{image}/.", place / "rootfs"], check=True)
    (place / "rootfs.json").write_text(json.dumps(rootfs))
    return place


def run(place: Path, ids: IdMapping, stdin: bytes | None = None) -> Result:
    """Start, wait, and give back what came out of the given descriptors (not the log)."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin or b"")
        given.seek(0)
        container.start(place, ids, None if stdin is None else given.fileno(), out.fileno(), err.fileno())
        code = container.wait(place, 20)
        out.seek(0), err.seek(0)
        return Result(code, out.read().decode(), err.read().decode())
