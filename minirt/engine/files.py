"""Files of containers: cp both ways, diff, export, commit; and an image made of a tar.

All of it is done by a process that sees the files as the container does (filework.py); here are the verbs, docker's
shapes and its words. A container that does not run is held meanwhile: nobody starts or removes it.
Sources: Engine API 1.44 reference "ContainerArchive", "ContainerChanges", "ImageCommit"; moby daemon/archive.go,
daemon/commit.go. Taught in chapters 05 and 06.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from minirt import child, errors, trace
from minirt.engine import request
from minirt.engine.images import Images
from minirt.engine.pull import name_image
from minirt.engine.recipe import applied, merged, of_container
from minirt.errors import Forbidden, InvalidInput, MinirtError, NotFound, StoreError
from minirt.image.config import ImageConfig
from minirt.image.descriptor import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import Manifest, encode, parse
from minirt.image.platform import Platform
from minirt.image.reference import Reference
from minirt.runtime import container as runtime
from minirt.runtime.state import now, read_json
from minirt.store.inflate import inflate
from minirt.store.store import Image, Store
from minirt.userns import IdMapping

if TYPE_CHECKING:
    from minirt.engine.answers.containers import ContainerPathStat, FilesystemChange
    from minirt.engine.answers.images import CreateImageInfo
    from minirt.engine.answers.system import IDResponse
    from minirt.engine.containers import Containers

_CHUNK = 1 << 18
_UNNAMED = "library/committed"


class Worker:
    """One file worker at one job on a container's folder."""

    def __init__(self, folder: Path, ids: IdMapping, action: str, feed: bool = False, **words: Any) -> None:
        self._trouble = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        read, write = os.pipe()
        job = {"action": action, "folder": str(folder), "ids": ids.to_json(), "answer": write, **words}
        try:
            self._process = subprocess.Popen(
                child.command("minirt.engine.filework", json.dumps(job)),
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._trouble,
                start_new_session=True,  # a Ctrl-C is for us
                cwd="/",
                pass_fds=(write,),
            )
        finally:
            os.close(write)
        self._answers = os.fdopen(read, "rb")

    def line(self) -> Any:
        """What it says next: the value of `stat` or `done`. Raises what it reports, FileNotFoundError among it."""
        answer: dict[str, Any] = json.loads(self._answers.readline() or b"{}")
        if "error" in answer:
            if answer["error"] == "FileNotFoundError":
                raise FileNotFoundError(answer["text"])
            raise getattr(errors, answer["error"])(answer["text"])
        if not answer:
            self._process.wait()
            self._trouble.seek(0)
            why = self._trouble.read().decode(errors="replace").strip().splitlines()[-1:]
            raise StoreError(
                f"the file worker died (status {self._process.returncode}): {''.join(why) or 'it was killed'}"
            )
        return next(iter(answer.values()))

    def feed(self, stream: BinaryIO) -> None:
        """Hand it the stream as its stdin, until either ends."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            while chunk := stream.read(_CHUNK):
                pipe.write(chunk)
                pipe.flush()

    def pieces(self) -> Iterator[bytes]:
        """Its stdout; at the end what `line` raises."""
        assert self._process.stdout
        while chunk := os.read(self._process.stdout.fileno(), _CHUNK):
            yield chunk
        self.line()

    def close(self) -> None:
        """End it, wherever it is."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._answers, self._trouble):
            with contextlib.suppress(BrokenPipeError):
                if pipe:
                    pipe.close()


def populate(folder: Path, ids: IdMapping, volumes: list[tuple[str, str]]) -> None:
    """Fill volumes that are empty with what the image has where they are mounted: (where, folder) of each."""
    with contextlib.closing(Worker(folder, ids, "populate", volumes=volumes)) as worker:
        worker.line()


class Files:
    """The verbs, over the containers."""

    def __init__(self, store: Store, containers: Containers) -> None:
        self._store, self._containers = store, containers
        self._images = Images(store, containers.events)

    @contextlib.contextmanager
    def _worker(self, record: dict[str, Any], action: str, **words: Any) -> Iterator[Worker]:
        folder = self._containers.folder(record)
        with contextlib.ExitStack() as held:
            if not runtime.status(folder).runs:
                held.enter_context(runtime.hold(folder))
            worker = held.enter_context(
                contextlib.closing(Worker(folder, IdMapping.from_json(record["ids"]), action, **words))
            )
            yield worker

    @contextlib.contextmanager
    def _at(self, record: dict[str, Any], action: str, path: str, **words: Any) -> Iterator[Worker]:
        """A worker at a path of the container. Raises NotFound in docker's words."""
        if not path or "\0" in path:
            raise InvalidInput("bad parameter: path must not be empty" if not path else "bad parameter: path")
        try:
            with self._worker(record, action, path=path, binds=True, **words) as worker:
                yield worker
        except FileNotFoundError as error:
            if (self._containers.folder(record) / "container.json").exists():
                raise NotFound(f"Could not find the file {path} in container {record['Name']}") from error
            raise NotFound(f"No such container: {record['Name']}") from error

    def stat(self, name: str, path: str) -> ContainerPathStat:
        """HEAD /containers/{id}/archive: docker's ContainerPathStat. Raises NotFound."""
        record = self._containers.find(name)
        with self._at(record, "stat", path) as worker:
            return _shown(worker.line())

    def get_archive(self, name: str, path: str) -> tuple[ContainerPathStat, Iterator[bytes]]:
        """GET /containers/{id}/archive: the path's stat, and its tar in pieces. Raises NotFound."""
        record = self._containers.find(name)
        pieces = self._archive(record, path)
        stat = json.loads(next(pieces))
        self._containers.tell(record, "archive-path")
        return _shown(stat), pieces

    def _archive(self, record: dict[str, Any], path: str) -> Iterator[bytes]:
        """First the stat, so that what holds the container is let go when the rest is not wanted."""
        with self._at(record, "get", path) as worker:
            yield json.dumps(worker.line()).encode()
            yield from worker.pieces()

    def put_archive(
        self, name: str, path: str, stream: BinaryIO, no_overwrite: bool = False, copy_uidgid: bool = False
    ) -> None:
        """PUT /containers/{id}/archive: extract a tar, perhaps compressed, into a directory.

        `no_overwrite`: no directory takes a file's place, nor a file a directory's. `copy_uidgid`: all is the
        container's user's. Raises NotFound, InvalidInput, UnpackError.
        """
        record = self._containers.find(name)
        _check_writable(record, path)
        user = record["Config"].get("User") if copy_uidgid else None
        with self._at(record, "put", path, feed=True, kinds_stay=no_overwrite, user=user) as worker:
            worker.feed(stream)
            worker.line()
        self._containers.tell(record, "extract-to-dir")

    def changes(self, name: str) -> list[FilesystemChange]:
        """GET /containers/{id}/changes: Path, and Kind: 0 changed, 1 added, 2 deleted."""
        record = self._containers.find(name)
        with self._worker(record, "changes", lowers=self._lowers(record)) as worker:
            return list(worker.line())

    def export(self, name: str) -> Iterator[bytes]:
        """GET /containers/{id}/export: a tar of all its files, without volumes, in pieces."""
        record = self._containers.find(name)
        pieces = self._stream(record, "export")
        next(pieces)
        self._containers.tell(record, "export")
        return pieces

    def _stream(self, record: dict[str, Any], action: str, **words: Any) -> Iterator[bytes]:
        """First nothing, when the worker stands at the files."""
        with self._worker(record, action, **words) as worker:
            worker.line()
            yield b""
            yield from worker.pieces()

    def _lowers(self, record: dict[str, Any]) -> list[str]:
        """The image's unpacked layers, top first: those it stands on, else where they lie."""
        recipe = read_json(str(self._containers.folder(record) / "rootfs.json")) or {}
        if lowers := recipe.get("lowers"):
            return list(lowers)
        image = self._store.image(Digest(record["manifest"]))
        return [str(self._store.layers.path(diff_id)) for _, diff_id in reversed(image.layers)]

    def commit(
        self,
        name: str,
        repo: str = "",
        tag: str = "",
        author: str = "",
        comment: str = "",
        changes: list[str] | tuple[str, ...] = (),
        config: dict[str, Any] | None = None,
        pause: bool = True,
    ) -> IDResponse:
        """POST /commit: an image of what the container is now. `changes` are Dockerfile instructions, `config` takes
        the place of the container's own. Raises NotFound, InvalidInput."""
        record = self._containers.find(name)
        reference = _reference(repo, tag)
        own = of_container(record["Config"])
        settings = merged(applied(request.config(config or {}) or own, changes), own)
        with self._store.using(), self._paused(record, pause):
            base = self._store.image(Digest(record["manifest"]))
            pieces = self._stream(record, "layer", lowers=self._lowers(record))
            layer = self._keep(pieces)
            raw: dict[str, Any] = {key: base.config.raw.get(key) for key in ("architecture", "variant", "os")}
            raw = {key: value for key, value in raw.items() if value}
            entry = {"created": now(), "created_by": " ".join(record["Config"].get("Cmd") or ())}
            entry |= {key: text for key, text in (("author", author), ("comment", comment)) if text}
            raw = {"created": entry["created"], **({"author": author} if author else {}), **raw, "config": settings}
            diff_ids, layers = list(base.config.diff_ids), list(base.manifest.layers)
            history: list[dict[str, Any]] = [*base.config.history, entry | ({} if layer else {"empty_layer": True})]
            if layer:
                layers.append(layer[0])
                diff_ids.append(layer[1])
            raw |= {"rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history}
            image = self._write(raw | ({"comment": comment} if comment else {}), layers, reference)
            about = {"imageID": str(image.id), "imageRef": reference.familiar if reference else ""}
            self._containers.tell(record, "commit", comment=comment, **about)
        trace.publish("image", "committed", id=str(image.id), container=record["Name"])
        return {"Id": str(image.id)}

    @contextlib.contextmanager
    def _paused(self, record: dict[str, Any], pause: bool) -> Iterator[None]:
        """Hold the container still, where it runs and can be held."""
        folder = self._containers.folder(record)
        if not pause or runtime.status(folder).state != "running" or runtime.cgroup(folder) is None:
            yield
            return
        runtime.ask(folder, "pause")
        self._containers.tell(record, "pause")
        try:
            yield
        finally:
            with contextlib.suppress(MinirtError):  # it was killed meanwhile
                runtime.ask(folder, "resume")
                self._containers.tell(record, "unpause")

    def import_image(
        self,
        stream: BinaryIO,
        repo: str = "",
        tag: str = "",
        message: str = "",
        changes: list[str] | tuple[str, ...] = (),
        platform: str | None = None,
    ) -> Iterator[CreateImageInfo]:
        """POST /images/create?fromSrc=-: a tar of files, perhaps compressed, as an image of one layer."""
        reference = _reference(repo, tag)
        settings, message = applied({}, changes), message or "Imported from -"
        where = Platform.parse(platform) if platform else Platform.host()
        plain = inflate(lambda: stream.read(_CHUNK), 1 << 44, 1000)
        with self._store.using():
            layer = self._keep(iter(plain, b""), empty=True)
            assert layer
            created = now()
            raw = {
                "created": created,
                "comment": message,
                "architecture": where.architecture,
                **({"variant": where.variant} if where.variant else {}),
                "os": where.os,
                "config": settings,
                "rootfs": {"type": "layers", "diff_ids": [layer[1]]},
                "history": [{"created": created, "comment": message}],
            }
            image = self._write(raw, [layer[0]], reference)
            self._images.tell("import", image.id)
        yield {"status": str(image.id)}

    def _keep(self, pieces: Iterator[bytes], empty: bool = False) -> tuple[Descriptor, Digest] | None:
        """Keep an archive as a plain layer, unpacked as well; None for one without an entry, unless `empty`."""
        import hashlib

        hasher, size, some = hashlib.sha256(), 0, empty
        with tempfile.NamedTemporaryFile(prefix=".load-", dir=self._store.root, delete=False) as file:
            try:
                for piece in pieces:
                    some = some or piece.strip(b"\0") != b""
                    hasher.update(piece)
                    size += file.write(piece)
                file.flush()
                os.fsync(file.fileno())
                digest = Digest("sha256:" + hasher.hexdigest())
                if not some:
                    os.unlink(file.name)
                    return None
                os.chmod(file.name, 0o644)
                os.replace(file.name, self._store.layout.place(digest))
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        layer = Descriptor(OCI_LAYER, digest, size)
        self._store.pulled.fetch(layer, digest)
        return layer, digest

    def _write(self, raw: dict[str, Any], layers: list[Descriptor], reference: Reference | None) -> Image:
        """Config, manifest and name of a new image."""
        layout, content = self._store.layout, encode(raw)
        config = Descriptor(OCI_CONFIG, layout.write(content), len(content))
        written = Manifest(OCI_MANIFEST, config, tuple(layers), {}).as_oci()
        manifest = parse(written, OCI_MANIFEST)
        assert isinstance(manifest, Manifest)
        image = Image(manifest, layout.write(written), len(written), ImageConfig.parse(content))
        target = Descriptor(OCI_MANIFEST, image.manifest_digest, len(written))
        called = reference or Reference("docker.io", _UNNAMED, None, image.manifest_digest)
        named = name_image(self._store, called, target, manifest, target.digest, image.config, local=True)
        self._store.names.set(named, manifest, len(written))
        if reference:
            self._images.tell("tag", image.id, name=reference.familiar)
        return image


def _shown(stat: dict[str, Any]) -> ContainerPathStat:
    """With the time as Go writes it: RFC 3339, no zeros at the end."""
    seconds, rest = divmod(int(stat["mtime"]), 10**9)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09}".rstrip("0").rstrip(".")
    return {
        "name": stat["name"],
        "size": stat["size"],
        "mode": stat["mode"],
        "mtime": text + "Z",
        "linkTarget": stat["linkTarget"],
    }


def _reference(repo: str, tag: str) -> Reference | None:
    if not repo:
        return None
    reference = Reference.parse(f"{repo}:{tag}" if tag else repo)
    if reference.digest:
        raise InvalidInput("refusing to create a tag with a digest reference")
    return reference


def _check_writable(record: dict[str, Any], path: str) -> None:
    """docker's look, by the path as it is given; the mounts themselves are read-only as well. Raises Forbidden."""
    full = posixpath.normpath("/" + path.lstrip("/"))
    for point in record.get("Mounts") or ():
        place = point["Destination"].rstrip("/")
        if point["Type"] != "tmpfs" and (full == place or full.startswith(place + "/")):
            if not point["RW"]:
                raise Forbidden("mounted volume is marked read-only")
            return
    if record["HostConfig"].get("ReadonlyRootfs"):
        raise Forbidden("container rootfs is marked read-only")
