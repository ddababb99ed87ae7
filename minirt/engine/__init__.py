"""The verbs: what the daemon does when it is asked. The only room that sees registry, store, runtime and hub.

    sources.py      which registry answers for a name: a real one, or the embedded hub
    remote.py       what a registry has, looked at
    pull.py         name → manifest → layers in parallel → a named image
    push.py         and back: what a registry lacks of an image, its name last
    images.py       images, inspect, history, tag, rmi, save, load, prune
    containers.py   create, rename, ps, logs
    life.py         start, wait, stop, kill, rm
    processes.py    exec, attach, resize, top
    update.py       pause, unpause, update
    stats.py        what a container uses
    volumes.py      folders that outlive containers
    files.py        cp, diff, export, commit, import
    events.py       what happens, told to whoever listens
    monitor.py      who notices that a container has ended
    request.py      what may be asked
    answers/        the shape of each answer

Answers are the Docker Engine API's objects (API 1.44 reference), so that the daemon only has to send them.
Taught in chapters 04 and 06.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt.config import additional_stores
from minirt.engine.containers import Containers
from minirt.engine.events import Events
from minirt.engine.images import Images
from minirt.engine.monitor import Monitor
from minirt.engine.pull import Pull
from minirt.engine.sources import Sources
from minirt.engine.volumes import Volumes
from minirt.errors import InvalidInput, MinirtError, StoreError
from minirt.image.platform import Platform
from minirt.image.reference import Reference
from minirt.store.store import Store

if TYPE_CHECKING:
    from minirt.engine.answers.images import (
        CreateImageInfo,
        DistributionInspect,
        ImagePruneResponse,
        PushImageInfo,
        RemoteManifest,
    )
    from minirt.engine.answers.system import (
        AuthenticateOKResponse,
        Problem,
        PruneResponse,
        ShareResponse,
        SystemDataUsageResponse,
        SystemInfo,
        SystemVersion,
    )
    from minirt.engine.files import Files
    from minirt.engine.networks import Networks
    from minirt.engine.processes import Processes
    from minirt.engine.stats import Stats
    from minirt.engine.update import Limits
    from minirt.runtime.doctor import Row


class Engine:
    """Everything under one root. `hub` is auto, embedded or docker.io; `throttle` slows the embedded hub (bytes/s)."""

    def __init__(self, root: Path, hub: str = "auto", throttle: int | None = None) -> None:
        self.store = Store(root, additional_stores)
        self.sources, self._throttle = Sources(root, hub, throttle), throttle
        self.events = Events()

    def open(self) -> None:
        """What a daemon does once: notice the ends of containers from now on, and those since the last daemon's."""
        from minirt.runtime import network
        from minirt.runtime.launcher import Launcher

        self.mend()
        self.containers.launcher = Launcher()
        with suppress(OSError):  # a store we may only read
            network.keep(self.store.root)
        self.containers.monitor = Monitor(self.containers)
        self.containers.monitor.begin()

    def mend(self) -> None:
        """Take away what killed processes left half made; what stays, `check` tells and `prune` takes."""
        self.store.mend()
        with suppress(OSError, StoreError):  # it may be read-only, full or broken
            self.containers.sweep()
            self.volumes.sweep()

    def close(self) -> None:
        """Containers go on."""
        from minirt.runtime import network

        if monitor := self.containers.monitor:
            self.containers.monitor = None
            monitor.end()
        if launcher := self.containers.launcher:
            self.containers.launcher = None
            launcher.close()
            with suppress(MinirtError):  # `system prune` finds what stays
                network.let_go(self.store.root)

    @cached_property
    def images(self) -> Images:
        return Images(self.store, self.events)

    @cached_property
    def containers(self) -> Containers:
        return Containers(self.store, self.events)

    @property
    def volumes(self) -> Volumes:
        return self.containers.volumes

    @cached_property
    def files(self) -> Files:
        from minirt.engine.files import Files

        return Files(self.store, self.containers)

    @cached_property
    def networks(self) -> Networks:
        from minirt.engine.networks import Networks

        return Networks(self.containers, self.store.root, self.store.ids)

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

    def pull(
        self,
        name: str,
        platform_: str | None = None,
        all_tags: bool = False,
        hub: str | None = None,
        throttle: int | None = None,
        auth: dict[str, Any] | None = None,
    ) -> Iterator[CreateImageInfo | None]:
        """POST /images/create: pull an image, or with `all_tags` every tag of its repository; docker's JSON lines,
        and None where there is none for a while.

        `hub` and `throttle` as of the engine, for this pull; `auth` is what the client shows the image's registry
        (`username`, `password`, `identitytoken`).
        """
        self.store.again()
        reference = Reference.parse(name)
        wanted = Platform.parse(platform_) if platform_ else None
        references = [reference]
        if all_tags and (reference.digest or name.rpartition("/")[2].count(":")):
            raise InvalidInput("tag can't be used with --all-tags/-a")
        # Each pull has its own, as with dockerd: settings and credentials as they are now, and no connection is kept.
        sources = Sources(self.store.root, hub or self.sources.hub, throttle or self._throttle, shown(reference, auth))
        with closing(sources):
            if all_tags:
                references = [Reference(reference.domain, reference.path, tag) for tag in sources.tags(reference)]
            newer = False
            for each in references:
                pull = Pull(self.store, sources, each, wanted)
                image = yield from pull.run()
                newer |= pull.newer
                self.images.tell("pull", image, each.familiar, each.familiar_name)
        new = "Downloaded newer image" if newer else "Image is up to date"
        yield {"status": f"Status: {new} for {reference.familiar_name if all_tags else reference.familiar}"}

    def push(
        self, name: str, tag: str = "", auth: dict[str, Any] | None = None, hub: str | None = None
    ) -> Iterator[PushImageInfo | None]:
        """POST /images/{name}/push: push a tag, or every tag of a repository where none is given; docker's JSON lines,
        and None where there is none for a while. `auth` and `hub` as of `pull`. Raises InvalidInput, Forbidden."""
        from minirt.engine.push import Push, names_to_push

        reference = Reference.parse(f"{name}:{tag}" if tag else name)
        if reference.digest:
            raise InvalidInput("cannot push a digest reference")
        with closing(Sources(self.store.root, hub or self.sources.hub, None, shown(reference, auth))) as sources:
            registry = sources.writable(reference)
            yield {"status": f"The push refers to repository [{reference.name}]"}
            push = Push(self.store, registry, reference)
            for named in names_to_push(self.store, reference, all_tags=not tag):
                yield from push.run(named)
                self.images.tell("push", named.id, named.reference.familiar, named.reference.familiar_name)

    def login(self, auth: dict[str, Any]) -> AuthenticateOKResponse:
        """POST /auth: show a user name and password to a registry (`serveraddress`). Raises Unauthorized."""
        from minirt.registry.credentials import host

        if not (auth.get("username") and auth.get("password")) and not auth.get("identitytoken"):
            raise InvalidInput("a user name and a password are needed to log in")
        domain = host(str(auth.get("serveraddress") or ""))
        with closing(Sources(self.store.root, self.sources.hub, None, (domain, auth))) as sources:
            return {"IdentityToken": sources.login(domain), "Status": "Login Succeeded"}

    def distribution(self, name: str, auth: dict[str, Any] | None = None) -> DistributionInspect:
        """GET /distribution/{name}/json: what the registry has by this name."""
        from minirt.engine.remote import distribution

        reference = Reference.parse(name)
        with closing(Sources(self.store.root, self.sources.hub, None, shown(reference, auth))) as sources:
            return distribution(sources, reference)

    def manifests(
        self, name: str, verbose: bool, auth: dict[str, Any] | None = None, hub: str | None = None
    ) -> list[RemoteManifest]:
        """The manifest that the registry has by this name; where `verbose`, after an index those that it lists."""
        from minirt.engine.remote import manifests

        reference = Reference.parse(name)
        with closing(Sources(self.store.root, hub or self.sources.hub, None, shown(reference, auth))) as sources:
            return manifests(sources, reference, verbose)

    def version(self) -> SystemVersion:
        """GET /version."""
        from minirt.engine import system

        return system.version()

    def info(self) -> SystemInfo:
        """GET /info."""
        from minirt.engine import system

        return system.info(self)

    def df(self) -> SystemDataUsageResponse:
        """GET /system/df."""
        from minirt.engine import system

        return system.df(self)

    def check(self) -> list[Problem]:
        """Rows of what is not as it should be; empty when the store verifies."""
        rows: list[Problem] = [{"what": row["what"], "problem": row["problem"]} for row in self.store.check()]
        rows += [*self.containers.leftovers(), *self.volumes.leftovers()]
        nobodys = "nobody uses it: `minirt system prune` removes it"
        return rows + [{"what": what, "problem": nobodys} for what in self._networks()]

    def prune(self) -> PruneResponse:
        """Remove what nothing uses: stopped containers, unnamed images, unreachable content, unfinished downloads."""
        containers = self.containers.prune()
        self._networks(remove=True)
        self.volumes.sweep()
        images = self.prune_images()
        _, freed = self.store.sweep(unfinished=True)
        return {
            "ContainersDeleted": containers["ContainersDeleted"],
            "ImagesDeleted": images["ImagesDeleted"],
            "SpaceReclaimed": containers["SpaceReclaimed"] + images["SpaceReclaimed"] + freed,
        }

    def doctor(self) -> list[Row]:
        """What this machine can do, and what is there of others' stores."""
        from minirt.engine import system

        return system.doctor(self)

    def share(self) -> ShareResponse:
        """Open this store to other users of the machine."""
        from minirt.store.share import share

        images, layers = share(self.store)
        return {"Images": images, "Layers": layers}

    def prune_images(self, filters: Mapping[str, list[str]] | None = None) -> ImagePruneResponse:
        """POST /images/prune."""
        return self.images.prune(filters)

    def _networks(self, remove: bool = False) -> list[str]:
        """What of our bridge no running container uses; only root has one."""
        if not any(self.store.root.glob("network.json*")) or os.geteuid() != 0:
            return []
        from minirt.runtime import network

        return network.clean(self.store.root) if remove else network.leftovers(self.store.root)


def shown(reference: Reference, auth: dict[str, Any] | None) -> tuple[str, dict[str, Any]] | None:
    """What a client shows a registry, and to which one; None where it has nothing: then our user's own logins count."""
    return (reference.domain, auth) if auth and (auth.get("username") or auth.get("identitytoken")) else None
