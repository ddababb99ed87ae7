"""The client: what the command line and the notebooks speak to.

Methods and answers are the Docker Engine API's, call for call. Until the daemon stands, the engine answers in this
process; each call is told to the trace as the request it stands for. Loads nothing it does not use.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from minirt import trace
from minirt.errors import InvalidInput, MinirtError, StoreError, Unsupported

if TYPE_CHECKING:
    from minirt.engine import Engine
    from minirt.runtime.control import Connection


def default_root() -> Path:
    """MINIRT_ROOT, else /var/lib/minirt for root and ~/.local/share/minirt (XDG_DATA_HOME) for a user."""
    if value := os.environ.get("MINIRT_ROOT"):
        return Path(value).absolute()
    if sys.platform == "linux" and os.geteuid() == 0:
        return Path("/var/lib/minirt")
    data = Path(os.environ.get("XDG_DATA_HOME") or ".")
    try:  # a relative one is to be ignored (XDG base directory specification)
        return (data if data.is_absolute() else Path.home() / ".local" / "share") / "minirt"
    except RuntimeError as error:
        raise InvalidInput("this user has no home directory: set MINIRT_ROOT to a folder for the store") from error


class Client:
    """`root` and `hub` default to MINIRT_ROOT and MINIRT_HUB; `throttle` slows the embedded hub, bytes a second."""

    def __init__(self, root: Path | str | None = None, hub: str | None = None, throttle: int | None = None) -> None:
        self.root = Path(root).absolute() if root else default_root()
        self._hub = hub or os.environ.get("MINIRT_HUB") or "auto"
        self._throttle = throttle

    @cached_property
    def _engine(self) -> Engine:
        from minirt.engine import Engine

        return Engine(self.root, self._hub, self._throttle)

    def close(self) -> None:
        """Let go of connections. Containers go on."""
        if "_engine" in self.__dict__:
            self._engine.close()
            del self.__dict__["_engine"]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def hub_folder(self) -> Path:
        """Where the embedded hub keeps the images it made."""
        return self.root / "hub"

    @contextmanager
    def _request(self, method: str, path: str, status: int = 200) -> Iterator[None]:
        """Tell the trace what is asked and how it ended."""
        start = time.monotonic()
        trace.publish("client", "request", method=method, path=path)
        try:
            yield
        except MinirtError as error:
            status = error.status
            raise
        except OSError as error:
            status = StoreError.status
            where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
            raise StoreError(f"{error.strerror or error}{where}") from error
        finally:
            ms = (time.monotonic() - start) * 1000
            trace.publish("client", "response", method=method, path=path, status=status, ms=ms)

    # images

    def pull(self, name: str, platform: str | None = None, all_tags: bool = False) -> Iterator[dict[str, Any]]:
        """Progress objects as they come; raises MinirtError where it fails."""
        with self._request("POST", f"/images/create?fromImage={name}"):
            yield from self._engine.pull(name, platform, all_tags)

    def images(self, all: bool = False, filters: dict[str, list[str]] | None = None) -> list[dict[str, Any]]:
        """Stored images, newest first. `all` is docker's; we keep no intermediate images."""
        with self._request("GET", "/images/json"):
            return self._engine.images.summaries(filters)

    def inspect_image(self, name: str) -> dict[str, Any]:
        with self._request("GET", f"/images/{name}/json"):
            return self._engine.images.inspect(name)

    def history(self, name: str) -> list[dict[str, Any]]:
        with self._request("GET", f"/images/{name}/history"):
            return self._engine.images.history(name)

    def tag(self, source: str, target: str) -> None:
        with self._request("POST", f"/images/{source}/tag", 201):
            self._engine.images.tag(source, target)

    def remove_image(self, name: str, force: bool = False) -> list[dict[str, str]]:
        with self._request("DELETE", f"/images/{name}"):
            return self._engine.images.remove(name, force)

    def save(self, names: list[str]) -> Iterator[bytes]:
        """A tar archive in pieces."""
        with self._request("GET", "/images/get"):
            return self._engine.images.save(names)

    def load(self, stream: BinaryIO) -> Iterator[dict[str, Any]]:
        with self._request("POST", "/images/load"):
            yield from self._engine.images.load(stream)

    # containers

    def create(self, body: dict[str, Any], name: str | None = None, platform: str | None = None) -> dict[str, Any]:
        """A new container; `Id` and `Warnings`. Raises NotFound where the image is not here: then pull it."""
        if sys.platform != "linux":
            raise Unsupported("containers run on Linux only: on Windows use WSL2, on macOS a Linux virtual machine")
        with self._request("POST", "/containers/create", 201):
            return self._engine.containers.create(body, name, platform)

    def start(
        self,
        container: str,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Start it with these descriptors attached (None: not attached); `size` (width, height) of its terminal.

        Raises StartError.
        """
        with self._request("POST", f"/containers/{container}/start", 204):
            self._engine.containers.start(container, (stdin, stdout, stderr), size)

    def wait(self, container: str) -> int:
        """Its exit status, once it ended and all output is written."""
        with self._request("POST", f"/containers/{container}/wait"):
            return self._engine.containers.wait(container)

    def kill(self, container: str, signal: int | str = "KILL") -> None:
        with self._request("POST", f"/containers/{container}/kill", 204):
            self._engine.containers.kill(container, signal)

    def stop(self, container: str, timeout: float | None = None, signal: int | str | None = None) -> None:
        """Ask it to end, and after `timeout` seconds end it (below 0: never). By default as it was created to."""
        with self._request("POST", f"/containers/{container}/stop", 204):
            self._engine.containers.stop(container, timeout, signal)

    def remove(self, container: str, force: bool = False) -> None:
        with self._request("DELETE", f"/containers/{container}", 204):
            self._engine.containers.remove(container, force)

    def containers(
        self,
        all: bool = False,
        limit: int | None = None,
        size: bool = False,
        filters: dict[str, list[str]] | None = None,
    ) -> list[dict[str, Any]]:
        with self._request("GET", "/containers/json"):
            return self._engine.containers.summaries(all, limit, size, filters)

    def inspect_container(self, name: str) -> dict[str, Any]:
        with self._request("GET", f"/containers/{name}/json"):
            return self._engine.containers.inspect(name)

    def logs(self, container: str) -> Iterator[tuple[str, bytes]]:
        """What it wrote, as ("stdout" | "stderr", bytes)."""
        with self._request("GET", f"/containers/{container}/logs"):
            yield from self._engine.containers.logs(container)

    # what runs in them

    def attach(
        self, container: str, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
    ) -> Connection:
        """Join our descriptors to it. The connection's `wait` gives `{"exit_code"}`; closing it detaches."""
        with self._request("POST", f"/containers/{container}/attach"):
            return self._engine.processes.attach(container, (stdin, stdout, stderr))

    def resize(self, container: str, width: int, height: int) -> None:
        """Tell its terminal its size, in characters."""
        with self._request("POST", f"/containers/{container}/resize?w={width}&h={height}"):
            self._engine.processes.resize(container, width, height)

    def create_exec(self, container: str, body: dict[str, Any]) -> str:
        """The id of one more process, yet to be started, in a running container."""
        with self._request("POST", f"/containers/{container}/exec", 201):
            return str(self._engine.processes.create_exec(container, body)["Id"])

    def start_exec(
        self,
        exec: str,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Connection:
        """Start it with these descriptors; a connection as of `attach`. Raises StartError."""
        with self._request("POST", f"/exec/{exec}/start"):
            return self._engine.processes.start_exec(exec, (stdin, stdout, stderr), size)

    def inspect_exec(self, exec: str) -> dict[str, Any]:
        with self._request("GET", f"/exec/{exec}/json"):
            return self._engine.processes.inspect_exec(exec)

    def resize_exec(self, exec: str, width: int, height: int) -> None:
        with self._request("POST", f"/exec/{exec}/resize?w={width}&h={height}"):
            self._engine.processes.resize_exec(exec, width, height)

    def pause(self, container: str) -> None:
        with self._request("POST", f"/containers/{container}/pause", 204):
            self._engine.limits.pause(container)

    def unpause(self, container: str) -> None:
        with self._request("POST", f"/containers/{container}/unpause", 204):
            self._engine.limits.unpause(container)

    def update(self, container: str, body: dict[str, Any]) -> list[str]:
        """Change its limits (HostConfig's fields), now and for its next starts; warnings."""
        with self._request("POST", f"/containers/{container}/update"):
            return list(self._engine.limits.update(container, body)["Warnings"])

    def top(self, container: str, options: str = "-ef") -> dict[str, Any]:
        """`Titles` and `Processes`, as this machine's ps prints them with these options."""
        with self._request("GET", f"/containers/{container}/top"):
            return self._engine.processes.top(container, options)

    def stats(self, container: str, stream: bool = True) -> Iterator[dict[str, Any]]:
        """What it uses, once a second; without `stream` once, after a second."""
        with self._request("GET", f"/containers/{container}/stats"):
            yield from self._engine.stats.stream(container, stream)

    # the system

    def version(self) -> dict[str, Any]:
        with self._request("GET", "/version"):
            return self._engine.version()

    def info(self) -> dict[str, Any]:
        with self._request("GET", "/info"):
            return self._engine.info()

    def df(self) -> dict[str, Any]:
        with self._request("GET", "/system/df"):
            return self._engine.df()

    def check(self) -> list[dict[str, Any]]:
        """Rows `{"what", "problem"}` of what does not verify."""
        with self._request("GET", "/minirt/check"):
            return self._engine.check()

    def prune(self) -> dict[str, Any]:
        with self._request("POST", "/minirt/prune"):
            return self._engine.prune()

    def doctor(self) -> list[dict[str, Any]]:
        """What this machine can do, found by trying: rows as in `doctor.probe`, whether containers run at all first."""
        from minirt.runtime.doctor import probe

        return probe()
