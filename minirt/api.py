"""The Python interface, for notebooks and scripts: plain functions over one client, plain results.

Each function stands for the docker command of its name. `root` and `hub` default to the environment (MINIRT_ROOT,
MINIRT_HUB). Errors are `minirt.errors.MinirtError`, one clear line each.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirt.client import Client
from minirt.errors import InvalidInput, MinirtError, NotFound
from minirt.trace import Events

if TYPE_CHECKING:
    from minirt.client.streams import Attached


@dataclass(frozen=True)
class Image:
    """A stored image. `id` is its config's digest; `digest` what its registry calls it; `size` in bytes unpacked."""

    name: str
    id: str
    digest: str
    size: int


@dataclass(frozen=True)
class Result:
    """What a container's command left behind."""

    exit_code: int
    output: bytes
    errors: bytes

    @property
    def stdout(self) -> str:
        return self.output.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.errors.decode(errors="replace")

    def __str__(self) -> str:
        return self.stdout


def pull(name: str, platform: str | None = None, *, root: Path | str | None = None, hub: str | None = None) -> Image:
    """`docker pull`: fetch, verify and keep an image."""
    with Client(root, hub) as client:
        for _ in client.pull(name, platform):
            pass
        return _image(client.inspect_image(name), name)


def run(
    name: str,
    command: Sequence[str] | str | None = None,
    *,
    env: Mapping[str, str] | None = None,
    entrypoint: Sequence[str] | None = None,
    workdir: str | None = None,
    user: str | None = None,
    network: str = "default",
    stdin: bytes | None = None,
    remove: bool = True,
    platform: str | None = None,
    root: Path | str | None = None,
    hub: str | None = None,
) -> Result:
    """`docker run`: pull if it is not here, create, start, wait. A `command` of text is split as a shell would."""
    import shlex

    try:
        words = shlex.split(command) if isinstance(command, str) else list(command or ())
    except ValueError as error:
        raise InvalidInput(f"the command {command!r} cannot be split into words: {error}") from error
    body = {
        "Image": name,
        "Cmd": words,
        "Entrypoint": list(entrypoint) if entrypoint is not None else None,
        "Env": [f"{key}={value}" for key, value in (env or {}).items()],
        "WorkingDir": workdir or "",
        "User": user or "",
        "OpenStdin": stdin is not None,
        "StdinOnce": stdin is not None,
        "AttachStdin": stdin is not None,
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {"NetworkMode": network, "AutoRemove": remove},
    }
    with Client(root, hub) as client:
        try:
            identity = client.create(body, platform=platform)["Id"]
        except NotFound:
            for _ in client.pull(name, platform):
                pass
            identity = client.create(body, platform=platform)["Id"]
        try:
            return _follow(client, identity, stdin, remove)
        except KeyboardInterrupt:  # nobody else will stop it
            with contextlib.suppress(MinirtError):
                client.remove(identity, force=True)
            raise


def _follow(client: Client, identity: str, stdin: bytes | None, removed: bool) -> Result:
    """Start it, give it its input and take its output, until it ends."""
    found: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    with ExitStack() as stack:
        attached = stack.enter_context(client.attach(identity, tty=False, stdin=stdin is not None))
        waiting = stack.enter_context(client.waiting(identity, "removed" if removed else "next-exit"))
        client.start(identity)
        if stdin is None:
            attached.end_input()
        else:
            threading.Thread(target=_type, args=(attached, stdin), daemon=True).start()
        for stream, data in attached.output():
            found[stream].append(data)
        return Result(waiting.result(), b"".join(found["stdout"]), b"".join(found["stderr"]))


def _type(attached: Attached, stdin: bytes) -> None:
    with contextlib.suppress(OSError):  # it ended, and we closed the line under our hands
        attached.send(stdin, wait=True)
    attached.end_input()


def images(*, root: Path | str | None = None) -> list[Image]:
    """`docker images`: every name in the local cache."""
    with Client(root) as client:
        return [_image(image, name) for image in client.images() for name in image["RepoTags"] or ["<none>"]]


def inspect(name: str, *, root: Path | str | None = None) -> dict[str, Any]:
    """`docker inspect`: a container by that name or ID, else an image."""
    with Client(root) as client:
        try:
            return client.inspect_container(name)
        except NotFound:
            return client.inspect_image(name)


def events() -> Events:
    """What happens from now on in this process, box by box: a context manager and an iterator of `trace.Event`."""
    return Events()


def _image(image: dict[str, Any], name: str) -> Image:
    digests = image["RepoDigests"]
    return Image(name, image["Id"], digests[0].partition("@")[2] if digests else "", image["Size"])
