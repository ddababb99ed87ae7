"""A container's disk: a private write layer over the image's shared, read-only layers.

A snapshot *decides*, it does not mount: it returns the recipe that the container's shim mounts in its own mount
namespace, so no mount of ours is ever in the host's. Recipe: `{"kind": "overlay", "lowers": [top first], "upper",
"work", "userxattr"}`, `{"kind": "fuse-overlayfs"}` with the same, or `{"kind": "directory", "path"}` (by proot:
`proot`) where the layers had to be copied. Taught in chapter 06.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from minirt.store.layers import work
from minirt.userns import IdMapping

MAX_LOWERS = 127


def prepare(folder: Path, lowers: list[Path], ids: IdMapping, driver: str) -> dict[str, Any]:
    """Make the write layer in `folder` over `lowers` (base first); returns the recipe. Raises OSError, StoreError.

    `driver` is overlay, fuse-overlayfs or copy.
    """
    if driver == "copy" or len(lowers) > MAX_LOWERS:
        path = folder / "rootfs"
        path.mkdir()
        path.chmod(0o755)  # whatever our umask
        work({"action": "copy", "lowers": [str(p) for p in reversed(lowers)], "target": str(path)}, ids)
        return {"kind": "proot" if ids.faked else "directory", "path": str(path)}
    for name in ("upper", "work", "rootfs"):
        (folder / name).mkdir(mode=0o755)
    if not lowers:  # overlayfs wants at least one
        (folder / "empty").mkdir()
        (folder / "empty").chmod(0o755)
        lowers = [folder / "empty"]
    top = os.stat(lowers[-1])
    os.chmod(folder / "upper", top.st_mode & 0o7777)
    if not ids.rootless:
        os.chown(folder / "upper", top.st_uid, top.st_gid)
    return {
        "kind": driver,
        "lowers": [str(path) for path in reversed(lowers)],
        "upper": str(folder / "upper"),
        "work": str(folder / "work"),
        "userxattr": ids.rootless,
    }
