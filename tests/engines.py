"""Our engine and a real dockerd, asked the same: one image, imported by both from one tar.

What both answer has to be the same. A refusal is compared as (status, text), with what is this side's own taken out of
the text; docker 20.10 says 500 for most refusals, so the tests name those whose text is enough.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerd import Dockerd
from peers import require

from minirt.engine import Engine
from minirt.errors import MinirtError

DIRECTORY, LINK, HARDLINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def packed(*entries: tuple[Any, ...]) -> bytes:
    """A tar of (name, content or type or (type, linkname), mode, uid) with a fixed time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, what, *more in entries:
            entry = tarfile.TarInfo(name)
            entry.mtime = 1_600_000_000
            entry.mode, entry.uid = (*more, *(0o755 if what == DIRECTORY else 0o644, 0)[len(more) :])
            entry.gid = entry.uid
            content = b""
            if isinstance(what, tuple):
                entry.type, entry.linkname = what
            elif what in (DIRECTORY, tarfile.FIFOTYPE):
                entry.type = what
            else:
                content, entry.size = what, len(what)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def unpacked(archive: bytes) -> list[tuple[Any, ...]]:
    """What a tar has, in its order."""
    out = []
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r") as tar:
        for entry in tar:
            content = tar.extractfile(entry).read() if entry.isreg() else b""  # type: ignore[union-attr]
            out.append(
                (entry.name, entry.type, oct(entry.mode & 0o7777), entry.uid, entry.gid, entry.linkname, content)
            )
    return out


def image_tar() -> bytes:
    """busybox, and files of many kinds."""
    busybox = Path(require("busybox")).read_bytes()
    return packed(
        ("bin", DIRECTORY), ("bin/busybox", busybox, 0o755), ("bin/sh", (LINK, "busybox")),
        ("dev", DIRECTORY), ("proc", DIRECTORY), ("sys", DIRECTORY), ("tmp", DIRECTORY, 0o1777), ("etc", DIRECTORY),
        ("etc/passwd", b"root:x:0:0::/:/bin/sh\nuser:x:7:8::/:/bin/sh\n"), ("etc/hosts", b""), ("etc/hostname", b""),
        ("etc/resolv.conf", b""), ("data", DIRECTORY, 0o2750, 7), ("data/file", b"in the image", 0o640, 7),
        ("data/sub", DIRECTORY), ("data/sub/deep", b"deep"), ("data/hard", (HARDLINK, "data/file"), 0o640, 7),
        ("data/link", (LINK, "sub/deep")), ("up", (LINK, "../../../../etc")), ("abs", (LINK, "/data/sub")),
        ("dangling", (LINK, "/nowhere/at/all")), ("loop", (LINK, "loop")), ("gone", DIRECTORY), ("gone/a", b"a"),
        ("gone/b", b"b"), ("kept", DIRECTORY), ("kept/a", b"a"), ("kept/b", b"b"), ("one", b"1"), ("two", b"2"),
        ("mode", b""), ("same", b"same"), ("x" * 120, DIRECTORY), ("x" * 120 + "/" + "y" * 200, b"long"),
        ("이름", b"name"), ("dir", DIRECTORY), ("dir/in", b""), ("suid", b"", 0o4755), ("pipe", tarfile.FIFOTYPE),
    )  # fmt: skip


class Ours:
    """Our engine, asked as the daemon's routes ask it."""

    def __init__(self, root: Path) -> None:
        self.engine = Engine(root, "embedded")
        self.made: list[str] = []

    def load(self, archive: bytes, name: str, **more: Any) -> str:
        return str([*self.engine.files.import_image(io.BytesIO(archive), name, "1", **more)][-1]["status"])

    def create(self, command: str, **body: Any) -> str:
        host = {"NetworkMode": "none", **body.pop("HostConfig", {})}
        words = {"Image": "files:1", "Cmd": ["/bin/busybox", "sh", "-c", command], "HostConfig": host}
        identity = str(self.engine.containers.create(words | body)["Id"])
        self.made.append(identity)
        return identity

    def run(self, command: str, **body: Any) -> tuple[str, str]:
        """The id of a container that has ended, and what it said."""
        identity = self.create(command, **body)
        self.engine.containers.start(identity)
        self.engine.containers.wait(identity)
        return identity, b"".join(data for _, data in self.engine.containers.logs(identity)).decode()

    def start(self, identity: str) -> None:
        self.engine.containers.start(identity)
        wait_for(lambda: "ready" in b"".join(d for _, d in self.engine.containers.logs(identity)).decode())

    def get(self, identity: str, path: str) -> Any:
        stat, pieces = self.engine.files.get_archive(identity, path)
        return stat, unpacked(b"".join(pieces))

    def put(self, identity: str, path: str, archive: bytes, keep: bool = False, chown: bool = False) -> None:
        self.engine.files.put_archive(identity, path, io.BytesIO(archive), keep, chown)

    def diff(self, identity: str) -> Any:
        return self.engine.files.changes(identity)

    def export(self, identity: str) -> bytes:
        return b"".join(self.engine.files.export(identity))

    def commit(self, identity: str, **more: Any) -> Any:
        image = self.engine.files.commit(identity, "made", "1", **more)["Id"]
        return self.engine.images.inspect(image)

    def inspect(self, identity: str) -> Any:
        return self.engine.containers.inspect(identity)

    def remove(self, identity: str, volumes: bool = False) -> None:
        self.engine.containers.remove(identity, True, volumes)

    def volumes(self, filters: dict[str, list[str]] | None = None) -> Any:
        return self.engine.volumes.list(filters)["Volumes"]

    def volume(self, verb: str, *arguments: Any) -> Any:
        return getattr(self.engine.volumes, verb)(*arguments)

    def close(self) -> None:
        for identity in self.made:
            with contextlib.suppress(MinirtError):
                self.remove(identity)
        self.engine.close()


class Theirs(Ours):
    """dockerd by docker-py."""

    def __init__(self, daemon: Dockerd) -> None:
        import docker

        self.folder = daemon.folder
        self.api = docker.APIClient(f"unix://{daemon.folder}/docker.sock", version="auto")
        self.made = []

    def load(self, archive: bytes, name: str, **more: Any) -> str:
        more = {"changes": list(more.get("changes", ())), "message": more.get("message", "")}
        params = {"fromSrc": "-", "repo": name, "tag": "1", **more}
        answer = self.api._post(self.api._url("/images/create"), params=params, data=archive)
        return str(json.loads(answer.text.splitlines()[-1])["status"])

    def create(self, command: str, **body: Any) -> str:
        host = {"NetworkMode": "none", **body.pop("HostConfig", {})}
        words = {"Image": "files:1", "Cmd": ["/bin/busybox", "sh", "-c", command], "HostConfig": host}
        identity = str(self.api.create_container_from_config(words | body)["Id"])
        self.made.append(identity)
        return identity

    def run(self, command: str, **body: Any) -> tuple[str, str]:
        identity = self.create(command, **body)
        self.api.start(identity)
        self.api.wait(identity)
        return identity, self.api.logs(identity).decode()

    def start(self, identity: str) -> None:
        self.api.start(identity)
        wait_for(lambda: "ready" in self.api.logs(identity).decode())

    def get(self, identity: str, path: str) -> Any:
        pieces, stat = self.api.get_archive(identity, path)
        return stat, unpacked(b"".join(pieces))

    def put(self, identity: str, path: str, archive: bytes, keep: bool = False, chown: bool = False) -> None:
        params = {"path": path, "noOverwriteDirNonDir": str(keep).lower(), "copyUIDGID": str(chown).lower()}
        answer = self.api._put(self.api._url("/containers/{0}/archive", identity), params=params, data=archive)
        self.api._raise_for_status(answer)

    def diff(self, identity: str) -> Any:
        return self.api.diff(identity)

    def export(self, identity: str) -> bytes:
        return b"".join(self.api.export(identity))

    def commit(self, identity: str, **more: Any) -> Any:
        more = {("message" if key == "comment" else "conf" if key == "config" else key): v for key, v in more.items()}
        image = self.api.commit(identity, "made", "1", **more)["Id"]
        return self.api.inspect_image(image)

    def inspect(self, identity: str) -> Any:
        return self.api.inspect_container(identity)

    def remove(self, identity: str, volumes: bool = False) -> None:
        self.api.remove_container(identity, v=volumes, force=True)

    def volumes(self, filters: dict[str, list[str]] | None = None) -> Any:
        return self.api.volumes(filters)["Volumes"] or []

    def volume(self, verb: str, *arguments: Any) -> Any:
        if verb == "create":
            answer = self.api._post_json(self.api._url("/volumes/create"), data=arguments[0])
            return self.api._result(answer, True)
        name = {"remove": "remove_volume", "inspect": "inspect_volume"}[verb]
        return getattr(self.api, name)(*arguments)

    def close(self) -> None:
        for identity in self.made:
            with contextlib.suppress(Exception):
                self.remove(identity)
        self.api.close()


def wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def answer(side: Ours, ask: Callable[[Ours], Any]) -> Any:
    """What it says, or (status, text) of its refusal, with names of this side taken out."""
    import docker.errors

    try:
        return ask(side)
    except MinirtError as error:
        return error.status, _neutral(str(error))
    except docker.errors.APIError as error:
        return error.status_code, _neutral(error.explanation or "")


def _neutral(text: str) -> str:
    return re.sub(r"[0-9a-f]{64}|[a-z]+_[a-z]+", "ID", text)


def _apart(ours: Any, theirs: Any) -> str:
    if isinstance(ours, list | set) and isinstance(theirs, list | set):
        ours, theirs = [x for x in ours if x not in theirs], [x for x in theirs if x not in ours]
    return f"\nours:   {ours}\ntheirs: {theirs}"


class Both:
    """The two sides."""

    def __init__(self, ours: Ours, theirs: Theirs) -> None:
        self.sides: tuple[Ours, Theirs] = ours, theirs

    def same(self, ask: Callable[[Ours], Any], text: str = "") -> Any:
        """The answer, which has to be both's. With `text` both refuse, and say that among other things."""
        ours, theirs = (answer(side, ask) for side in self.sides)
        if text:
            assert text in ours[1] and text in theirs[1] and ours[0] >= 400 <= theirs[0], (ours, theirs)
        else:
            assert ours == theirs, _apart(ours, theirs)
        return ours

    def create(self, command: str = "echo ready; exec /bin/busybox sleep 1000", **body: Any) -> Pair:
        """A container of each."""
        return Pair(self, [side.create(command, **body) for side in self.sides])

    def start(self, command: str = "echo ready; exec /bin/busybox sleep 1000", **body: Any) -> Pair:
        """The same, and they have said `ready`."""
        pair = self.create(command, **body)
        for side, identity in zip(self.sides, pair.ids, strict=True):
            side.start(identity)
        return pair


class Pair:
    """A container of each side."""

    def __init__(self, both: Both, ids: list[str]) -> None:
        self._both, self.ids = both, ids

    def same(self, ask: Callable[[Ours, str], Any], text: str = "") -> Any:
        """As `Both.same`; the question gets the container."""
        ids = dict(zip(self._both.sides, self.ids, strict=True))
        return self._both.same(lambda side: ask(side, ids[side]), text)

    @property
    def ours(self) -> tuple[Ours, str]:
        return self._both.sides[0], self.ids[0]


@pytest.fixture(scope="module")
def both(dockerd: Dockerd) -> Iterator[Both]:
    pytest.importorskip("docker")
    # A store of this file's own: theirs is emptied where a file begins (tests/dockerd.py).
    sides = Ours(Path(tempfile.mkdtemp(prefix="ours-", dir=dockerd.folder))), Theirs(dockerd)
    try:
        archive = image_tar()
        for side in sides:
            side.load(archive, "files")
        yield Both(*sides)
    finally:
        for side in sides:
            side.close()
