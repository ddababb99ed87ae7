"""The client: what the command line and the notebooks speak to. It asks a daemon, in the Docker Engine API's words.

    place.py     where the daemon listens; starting one
    http.py      HTTP over its socket
    answer.py    one request and its answer
    images.py    the calls on images
    files.py     those on containers' files and on volumes
    streams.py   hijacked connections: a container's streams
    tracing.py   what the daemon did for us

Each method is one call of the API, and its answer the API's object, so it drives a real dockerd as well (MINIRT_HOST).
Loads nothing it does not use: its start is the user's wait.
"""

from __future__ import annotations

import _thread
import os
import sys

from minirt import trace
from minirt.client import place
from minirt.client.answer import Answer, Waiting, exec_body, part, spelled, start_error
from minirt.client.files import Files
from minirt.client.http import Connection, Lost
from minirt.client.images import Images
from minirt.client.place import default_root
from minirt.errors import InvalidInput, MinirtError, NotFound, Unsupported
from minirt.lean import dumps

TYPE_CHECKING = False  # typing's own loads for 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Any

    from minirt.client.streams import Attached
    from minirt.client.tracing import Tracer

__all__ = ["Client", "Waiting", "default_root"]


_UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp"}


class Client(Images, Files):
    """`root` and `hub` default to MINIRT_ROOT and MINIRT_HUB, `host` to MINIRT_HOST; `throttle` slows the embedded hub,
    bytes a second; `tell` gets a line when a daemon had to be started."""

    def __init__(
        self,
        root: Path | str | None = None,
        hub: str | None = None,
        throttle: int | None = None,
        host: str | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._root = place.absolute(root) if root else place.default_folder()
        self._host = place.given_host(host) if not root or host else None
        self._hub, self._throttle, self._tell = hub or os.environ.get("MINIRT_HUB"), throttle, tell
        self._idle: list[Connection] = []
        self._tracer: Tracer | None = None
        self._lock = _thread.allocate_lock()
        self._count = 0

    def close(self) -> None:
        """Let go of connections. Containers go on."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        if self._tracer:
            self._tracer.close()
            self._tracer = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def root(self) -> Path:
        """The folder of images and containers."""
        from pathlib import Path

        return Path(self._root)

    @property
    def hub_folder(self) -> Path:
        """Where the embedded hub keeps the images it made."""
        return self.root / "hub"

    # asking

    def _connect(self) -> Connection:
        return place.connect(self._root, self._host, self._hub or "auto", self._tell)

    def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """The answer's head is there, and is no error. `body`: JSON, or an iterable of bytes."""
        target = path + spelled(query or {})
        headers, data = dict(headers or {}), body
        if body is not None and (isinstance(body, dict) or not hasattr(body, "__iter__")):
            data = dumps(body).encode()
            headers["Content-Type"] = "application/json"
        return Answer(self, method, target, headers, data)

    def _taken(self) -> Connection:
        """An idle connection that still stands, else a new one."""
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if not connection.stale:
                    return connection
                connection.close()
        return self._connect()

    def _given_back(self, connection: Connection) -> None:
        with self._lock:
            self._idle.append(connection)

    def _told(self) -> tuple[Tracer | None, str]:
        """Who tells what the daemon does, and this request's tag; nobody where nobody listens."""
        if not trace.heard():
            return None, ""
        from minirt.client.tracing import Tracer

        with self._lock:
            self._count += 1
            if self._tracer is None:
                self._tracer = Tracer(self._connect)
            return self._tracer, str(self._count)

    def _get(self, path: str, **query: Any) -> Any:
        with self._ask("GET", path, query) as answer:
            return answer.head.json()

    def _post(self, path: str, body: Any = None, **query: Any) -> Any:
        with self._ask("POST", path, query, body) as answer:
            return answer.head.json()

    def _bytes(self, path: str, **query: Any) -> Iterator[bytes]:
        answer = self._ask("GET", path, query)  # what is wrong is told before the first piece is asked for

        def pieces() -> Iterator[bytes]:
            with answer:
                yield from answer.head.chunks()

        return pieces()

    # containers

    def create(self, body: dict[str, Any], name: str | None = None, platform: str | None = None) -> dict[str, Any]:
        """A new container; `Id` and `Warnings`. Raises NotFound where the image is not here: then pull it."""
        if sys.platform != "linux" and not self._host:
            raise Unsupported("containers run on Linux only: on Windows use WSL2, on macOS a Linux virtual machine")
        return dict(self._post("/containers/create", body, name=name, platform=platform))

    def start(self, container: str) -> None:
        """Start it; nothing where it runs. Raises StartError."""
        try:
            self._post(f"/containers/{part(container)}/start")
        except NotFound as error:
            if str(error).startswith("No such container"):
                raise
            raise start_error(error) from error
        except MinirtError as error:
            raise error if isinstance(error, Lost) else start_error(error) from error

    def restart(self, container: str, timeout: int | None = None, signal: str | None = None) -> None:
        self._post(f"/containers/{part(container)}/restart", t=timeout, signal=signal)

    def waiting(self, container: str, condition: str = "not-running") -> Waiting:
        """Begin to wait, at once: for a start that follows with `next-exit`, for its removal with `removed`."""
        return Waiting(self._ask("POST", f"/containers/{part(container)}/wait", {"condition": condition}))

    def wait(self, container: str, condition: str = "not-running") -> int:
        """Its exit status, once it ended and all output is written."""
        return self.waiting(container, condition).result()

    def kill(self, container: str, signal: int | str = "KILL") -> None:
        self._post(f"/containers/{part(container)}/kill", signal=signal)

    def stop(self, container: str, timeout: float | None = None, signal: int | str | None = None) -> None:
        """Ask it to end, and after `timeout` seconds end it (below 0: never). By default as it was created to."""
        seconds = None if timeout is None else int(timeout)
        self._post(f"/containers/{part(container)}/stop", t=seconds, signal=signal)

    def rename(self, container: str, name: str) -> None:
        self._post(f"/containers/{part(container)}/rename", name=name)

    def remove(self, container: str, force: bool = False, volumes: bool = False) -> None:
        with self._ask("DELETE", f"/containers/{part(container)}", {"force": force, "v": volumes}):
            pass

    def containers(
        self,
        all: bool = False,
        limit: int | None = None,
        size: bool = False,
        filters: dict[str, list[str]] | None = None,
    ) -> list[dict[str, Any]]:
        return list(self._get("/containers/json", all=all, limit=limit, size=size, filters=filters))

    def inspect_container(self, name: str, size: bool = False) -> dict[str, Any]:
        return dict(self._get(f"/containers/{part(name)}/json", size=size))

    def logs(self, container: str, tty: bool | None = None, **options: Any) -> Iterator[tuple[str, bytes]]:
        """What it wrote, as ("stdout" | "stderr", bytes). `options`: follow, tail, since, until, timestamps."""
        from minirt.client.streams import Frames

        if tty is None:
            tty = bool(self.inspect_container(container)["Config"]["Tty"])
        query = {"stdout": True, "stderr": True} | options
        with self._ask("GET", f"/containers/{part(container)}/logs", query) as answer:
            frames = Frames()
            for data in answer.head.chunks():
                yield from [("stdout", data)] if tty else frames.feed(data)

    # what runs in them

    def attach(
        self,
        container: str,
        tty: bool,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        keys: str | None = None,
        logs: bool = False,
    ) -> Attached:
        """Its streams, from now on, or from its start. `keys` detach, and are looked for by the daemon."""
        query = {
            "stream": True, "stdin": stdin, "stdout": stdout, "stderr": stderr, "logs": logs, "detachKeys": keys
        }  # fmt: skip
        return self._hijack(f"/containers/{part(container)}/attach", query, None, tty)

    def _hijack(self, path: str, query: dict[str, Any], body: Any, tty: bool) -> Attached:
        from minirt.client.streams import Attached

        answer = self._ask("POST", path, query, body, _UPGRADE)
        return Attached(answer.hand_over(), tty)

    def resize(self, container: str, width: int, height: int) -> None:
        """Tell its terminal its size, in characters."""
        self._post(f"/containers/{part(container)}/resize", w=width, h=height)

    def create_exec(self, container: str, body: dict[str, Any]) -> str:
        """The id of one more process, yet to be started, in a running container."""
        return str(self._post(f"/containers/{part(container)}/exec", body)["Id"])

    def start_exec(self, exec: str, tty: bool, size: tuple[int, int] | None = None) -> Attached:
        """Start it, joined to its streams; `size` (width, height) of its terminal."""
        return self._hijack(f"/exec/{part(exec)}/start", {}, exec_body(False, tty, size), tty)

    def start_exec_detached(self, exec: str, tty: bool) -> None:
        """Start it and leave it. Raises StartError."""
        try:
            self._post(f"/exec/{part(exec)}/start", exec_body(True, tty, None))
        except InvalidInput as error:
            raise start_error(error) from error

    def inspect_exec(self, exec: str) -> dict[str, Any]:
        return dict(self._get(f"/exec/{part(exec)}/json"))

    def resize_exec(self, exec: str, width: int, height: int) -> None:
        self._post(f"/exec/{part(exec)}/resize", w=width, h=height)

    def pause(self, container: str) -> None:
        self._post(f"/containers/{part(container)}/pause")

    def unpause(self, container: str) -> None:
        self._post(f"/containers/{part(container)}/unpause")

    def update(self, container: str, body: dict[str, Any]) -> list[str]:
        """Change its limits (HostConfig's fields), now and for its next starts; warnings."""
        return list(self._post(f"/containers/{part(container)}/update", body).get("Warnings") or ())

    def top(self, container: str, options: str = "-ef") -> dict[str, Any]:
        """`Titles` and `Processes`, as the daemon's machine's ps prints them with these options."""
        return dict(self._get(f"/containers/{part(container)}/top", ps_args=options))

    def stats(self, container: str, stream: bool = True) -> Iterator[dict[str, Any]]:
        """What it uses, once a second; without `stream` once, after a second."""
        with self._ask("GET", f"/containers/{part(container)}/stats", {"stream": "1" if stream else "0"}) as answer:
            yield from answer.head.lines()

    # the system

    def prune_nouns(self, nouns: str, filters: dict[str, list[str]] | None = None) -> dict[str, Any]:
        """Remove the unused ones: `containers`, `images`, `volumes` or `networks`."""
        return dict(self._post(f"/{nouns}/prune", filters=filters))

    def networks(self, filters: dict[str, list[str]] | None = None) -> list[dict[str, Any]]:
        return list(self._get("/networks", filters=filters))

    def inspect_network(self, name: str) -> dict[str, Any]:
        return dict(self._get(f"/networks/{part(name)}"))

    def events(self, since: str = "", until: str = "", **filters: list[str]) -> Iterator[dict[str, Any]]:
        """What happens, as docker tells it, from `since` to `until` (UNIX times)."""
        with self._ask("GET", "/events", {"since": since, "until": until, "filters": filters or None}) as answer:
            yield from answer.head.lines()

    def version(self) -> dict[str, Any]:
        return dict(self._get("/version"))

    def info(self) -> dict[str, Any]:
        return dict(self._get("/info"))

    def df(self) -> dict[str, Any]:
        return dict(self._get("/system/df"))

    def _own(self, what: str, query: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> Any:
        """What only our daemon has."""
        try:
            with self._ask("GET", f"/minirt/{what}", query, None, headers) as answer:
                return answer.head.json()
        except NotFound as error:
            if str(error) != "page not found":
                raise
            raise Unsupported(
                f"the daemon that answers is not minirt's: it has no {what.partition('/')[0]!r}"
            ) from error

    def check(self) -> list[dict[str, Any]]:
        """Rows `{"what", "problem"}` of what does not verify."""
        return list(self._own("check"))

    def prune(self) -> dict[str, Any]:
        return dict(self._post("/minirt/prune"))

    def share(self) -> dict[str, Any]:
        """Open the store to other users of the machine: how many `Images` and `Layers` they find."""
        return dict(self._post("/minirt/share"))

    def doctor(self) -> list[dict[str, Any]]:
        """What this machine can do, found by trying: rows as in `doctor.probe`, whether containers run at all first."""
        return list(self._own("doctor"))
