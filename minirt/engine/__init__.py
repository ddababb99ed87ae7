"""The verbs: what the daemon does when it is asked. The only room that sees registry, store, runtime and hub.

    sources.py      which registry answers for a name: a real one, or the embedded hub
    pull.py         name → manifest → layers in parallel → a named image
    images.py       images, inspect, history, tag, rmi, save, load
    containers.py   create, start, wait, kill, rm, ps
    processes.py    exec, attach, resize, top
    update.py       pause, unpause, update
    stats.py        what a container uses

Answers are the Docker Engine API's objects (API 1.44 reference), so that the daemon only has to send them.
Taught in chapters 04 and 06.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt import __version__
from minirt.engine.containers import Containers
from minirt.engine.images import Images
from minirt.engine.pull import Pull
from minirt.engine.sources import Sources
from minirt.errors import InvalidInput
from minirt.image.platform import Platform
from minirt.image.reference import Reference
from minirt.store.layers import work
from minirt.store.store import Store

if TYPE_CHECKING:
    from minirt.engine.processes import Processes
    from minirt.engine.stats import Stats
    from minirt.engine.update import Limits

API_VERSION, MIN_API_VERSION = "1.44", "1.24"


class Engine:
    """Everything under one root. `hub` is auto, embedded or docker.io; `throttle` slows the embedded hub (bytes/s)."""

    def __init__(self, root: Path, hub: str = "auto", throttle: int | None = None) -> None:
        self.store = Store(root)
        self.sources = Sources(root, hub, throttle)

    def close(self) -> None:
        self.sources.close()

    @cached_property
    def images(self) -> Images:
        return Images(self.store)

    @cached_property
    def containers(self) -> Containers:
        return Containers(self.store)

    @cached_property
    def processes(self) -> Processes:
        from minirt.engine.processes import Processes

        return Processes(self.containers)

    @cached_property
    def limits(self) -> Limits:
        from minirt.engine.update import Limits

        return Limits(self.containers)

    @cached_property
    def stats(self) -> Stats:
        from minirt.engine.stats import Stats

        return Stats(self.containers)

    def pull(self, name: str, platform_: str | None = None, all_tags: bool = False) -> Iterator[dict[str, Any]]:
        """Pull an image, or with `all_tags` every tag of its repository; yields progress as docker's JSON lines."""
        reference = Reference.parse(name)
        wanted = Platform.parse(platform_) if platform_ else None
        references = [reference]
        if all_tags:
            if reference.digest or name.rpartition("/")[2].count(":"):
                raise InvalidInput("tag can't be used with --all-tags/-a")
            references = [Reference(reference.domain, reference.path, tag) for tag in self.sources.tags(reference)]
        for each in references:
            yield from Pull(self.store, self.sources, each, wanted).run()

    def version(self) -> dict[str, Any]:
        """GET /version."""
        host = Platform.host()
        return {
            "Platform": {"Name": "minirt"},
            "Version": __version__,
            "ApiVersion": API_VERSION,
            "MinAPIVersion": MIN_API_VERSION,
            "Os": sys.platform,
            "Arch": host.architecture,
            "KernelVersion": platform.release(),
            "PythonVersion": platform.python_version(),
        }

    def info(self) -> dict[str, Any]:
        """GET /info, with what this machine can do."""
        states = [container["State"] for container in self.containers.summaries(all=True)]
        _, reason = self.store.overlay
        ids = self.store.ids
        mode = "refused" if ids is None else "root" if not ids.rootless else "single id" if ids.single else "subuids"
        if ids and ids.faked:
            from minirt.runtime.proot import WALLS

            mode, walls = "proot", [WALLS]
        else:
            walls = []
        return {
            "Containers": len(states),
            "ContainersRunning": states.count("running"),
            "ContainersPaused": states.count("paused"),
            "ContainersStopped": len(states) - states.count("running") - states.count("paused"),
            "Images": len({image["Id"] for image in self.images.summaries()}),
            "Driver": self.store.driver,
            "DriverStatus": [["User ids", mode], *([["Overlay", reason]] if reason else [])],
            "DockerRootDir": str(self.store.root),
            "OperatingSystem": platform.platform(),
            "OSType": "linux",
            "Architecture": platform.machine(),
            "KernelVersion": platform.release(),
            "NCPU": os.cpu_count() or 1,
            "Name": platform.node(),
            "ServerVersion": __version__,
            "DefaultRuntime": "minirt",
            "IndexServerAddress": self.sources.hub_address,
            "Warnings": [f"WARNING: {wall}" for wall in walls],
        }

    def check(self) -> list[dict[str, Any]]:
        """Rows of what is not as it should be; empty when the store verifies."""
        rows = [*self.store.check(), *self.containers.leftovers()]
        return rows + [
            {"what": what, "problem": "nobody uses it: `minirt system prune` removes it"} for what in self._networks()
        ]

    def prune(self) -> dict[str, Any]:
        """Remove what nothing uses: stopped containers, unnamed images, unreachable content, unfinished downloads."""
        containers = self.containers.prune()
        self._networks(remove=True)
        images = self.images.prune()
        _, freed = self.store.sweep(unfinished=True)
        return {
            "ContainersDeleted": containers["ContainersDeleted"],
            "ImagesDeleted": images,
            "SpaceReclaimed": containers["SpaceReclaimed"] + freed,
        }

    def _networks(self, remove: bool = False) -> list[str]:
        """What of our bridge no running container uses; only root has one."""
        if not (self.store.root / "network.json").exists() or os.geteuid() != 0:
            return []
        from minirt.runtime import network

        return network.clean(self.store.root) if remove else network.leftovers(self.store.root)

    def df(self) -> dict[str, Any]:
        """GET /system/df: bytes of disk."""
        folder = self.store.layers.folder
        layers = work({"action": "measure", "paths": [str(folder)]}, self.store.ids)["bytes"]
        with self.store.using():
            blobs = sum(self.store.layout.blob(digest).stat().st_size for digest in self.store.layout.blobs())
        containers = self.containers.summaries(all=True, size=True)
        return {
            "LayersSize": layers + blobs,
            "Images": self.images.usage([container["ImageID"] for container in containers]),
            "Containers": containers,
            "Volumes": [],
            "BuildCache": [],
            "Unfinished": self.store.unfinished(),
        }
