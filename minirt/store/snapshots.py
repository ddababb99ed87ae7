"""A container's disk: a private write layer over the image's shared, read-only layers.

A snapshot *decides*, it does not mount: it returns the recipe that the container's shim mounts in its own mount
namespace, so no mount of ours is ever in the host's. Recipe: `{"kind": "overlay", "lowers": [top first], "upper",
"work", "userxattr"}`, `{"kind": "fuse-overlayfs"}` with the same, or `{"kind": "directory", "path"}` (by proot:
`proot`) where the layers had to be copied. For lowers in additional stores it also has `held` (all of them: their
owner may remove them), `shared` (those in the shared form) and fuse-overlayfs' `options`. Taught in chapter 06.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from minirt.store import shared
from minirt.store.layers import Place, work
from minirt.userns import IdMapping

MAX_LOWERS = 127


def prepare(folder: Path, places: list[Place], ids: IdMapping, driver: str) -> dict[str, Any]:
    """Make the write layer in `folder` over `places` (base first); returns the recipe. Raises OSError, StoreError.

    `driver` is overlay, fuse-overlayfs or copy; where one of `places` is shared it is fuse-overlayfs.
    """
    lowers = [place.path for place in places]
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
    recipe: dict[str, Any] = {
        "kind": driver,
        "lowers": [str(path) for path in reversed(lowers)],
        "upper": str(folder / "upper"),
        "work": str(folder / "work"),
        "userxattr": ids.rootless,
    }
    top = os.stat(lowers[-1])
    mode = top.st_mode
    if held := [str(place.path) for place in places if place.store]:
        recipe["held"] = held
    if form := [str(place.path) for place in places if place.shared]:
        recipe |= {"kind": "fuse-overlayfs", "shared": form, "options": shared.options(ids)}
        mode = shared.seen(lowers[-1], ids.single).st_mode if places[-1].shared else mode
        words = {"action": "folders", "folders": [name for place in places for name in place.folders]}
        work(words | {key: recipe[key] for key in ("upper", "lowers", "shared")}, ids)
    os.chmod(folder / "upper", mode & 0o7777)
    if not ids.rootless:
        os.chown(folder / "upper", top.st_uid, top.st_gid)
    return recipe
