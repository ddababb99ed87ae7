"""One function a parser: takes any bytes, and raises nothing but AssertionError where the parser broke its word.

What the package refuses it refuses with an error of its own family; anything else that comes out is a finding.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import tars

from minirt.errors import InvalidInput, MinirtError, UnpackError, VerificationError
from minirt.hub import elf as elf_reader
from minirt.image.config import ImageConfig
from minirt.image.descriptor import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor
from minirt.image.digest import Digest
from minirt.image.manifest import Index, Manifest, parse
from minirt.image.platform import Platform
from minirt.image.reference import Reference
from minirt.registry import auth, challenge, endpoint, transport
from minirt.registry.credentials import Credential, Credentials
from minirt.registry.settings import Settings, locality
from minirt.store import archive as archives
from minirt.store import tar
from minirt.store.applier import Applier, Owner
from minirt.store.inflate import inflate
from minirt.store.layout import Layout
from minirt.store.limits import Limits
from minirt.store.names import Names
from minirt.store.store import Store
from minirt.store.tree import remove

_KINDS = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX)
_SMALL = Limits(entries=200, bytes_out=1 << 20, ratio=100, file_size=1 << 20)
_PLAIN = 1 << 20  # bytes the inflater may give


def reference(data: bytes) -> None:
    """An image's name: what is read is written back the same, and is safe in a URL."""
    with contextlib.suppress(InvalidInput):
        found = Reference.parse(data.decode("utf-8", "surrogateescape"))
        assert Reference.parse(str(found)) == found and Reference.parse(found.familiar) == found, found
        assert not set(str(found)) & set(" \t\n\\?#%\"'<>") and "/../" not in f"/{found.path}/", found


def challenges(data: bytes) -> None:
    """WWW-Authenticate: never raises."""
    for one in challenge.parse(data.decode("latin-1")):
        assert one.scheme == one.scheme.lower() != ""
        assert all(name == name.lower() != "" for name in one.parameters)


def manifest(data: bytes) -> None:
    """Manifests and indexes: the first byte says as what it came."""
    with contextlib.suppress(VerificationError):
        found = parse(data[1:], _KINDS[data[0] % 4] if data else "")
        if isinstance(found, Index):
            with contextlib.suppress(MinirtError):
                assert found.choose(Platform.parse("linux/arm/v7")) in found.manifests
        else:
            assert all(layer.size >= 0 for layer in found.layers)
            again = parse(found.as_oci(), OCI_MANIFEST)
            assert isinstance(again, Manifest) and again.config.digest == found.config.digest


def config(data: bytes) -> None:
    """An image's config."""
    with contextlib.suppress(VerificationError):
        found = ImageConfig.parse(data)
        assert all(isinstance(word, str) and "\0" not in word for word in found.command())
        found.raw["x"] = str(found.platform)


def _stream(content: bytes, size: int = 4096) -> Callable[[], bytes]:
    pieces = iter(tars.chunks(content, size))
    return lambda: next(pieces, b"")


def archive(data: bytes) -> None:
    """A tar stream, in pieces of the first byte's size: no more comes out than went in."""
    reader = tar.Reader(_stream(data[1:], 1 + data[0] * 8 if data else 1))
    with contextlib.suppress(UnpackError):
        for entry in reader:
            assert 0 <= entry.size <= tar.MAX_SIZE and b"\0" not in entry.name + entry.linkname
            end = 0
            for offset, length in entry.sparse or []:
                assert end <= offset and length >= 0
                end = offset + length
            assert end <= entry.size
            assert sum(map(len, reader.body())) <= len(data)


def header(data: bytes) -> None:
    """A tar header with a right checksum, so that all its fields are looked at, with a PAX header before it.

    The first byte is the length of the records' part.
    """
    length = data[0] if data else 0
    block = bytearray(data[1 + length :][:512].ljust(512, b"\0"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    extended = _extended(data[1 : 1 + length]) if length else b""
    archive(b"\xff" + extended + bytes(block) + data[513 + length :])


def _extended(records: bytes) -> bytes:
    info = tars.tarfile.TarInfo("pax")
    info.type, info.size = b"x", len(records)
    return info.tobuf(tars.tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


def pax(data: bytes) -> None:
    """PAX records, sparse maps among them: the rest of the input is the file's content."""
    length = int.from_bytes(data[:2], "big")
    archive(b"\xff" + _extended(data[2 : 2 + length]) + tars.entry("x", content=data[2 + length :]))


def compressed(data: bytes) -> None:
    """gzip, zstd or neither, in pieces of the first byte's size: never more than the limit comes out."""
    source, total = inflate(_stream(data[1:], 1 + data[0] * 8 if data else 1), _PLAIN, 100), 0
    with contextlib.suppress(UnpackError):
        while piece := source():
            total += len(piece)
    assert total <= _PLAIN


class _Trap:
    """A folder to unpack into, a canary beside it that must not change, and nothing else."""

    def __init__(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="minirt-fuzz-"))
        atexit.register(shutil.rmtree, self.top, ignore_errors=True)
        (self.top / "outside").mkdir(mode=0o755)
        (self.top / "outside" / "canary").write_text("alive")
        self.layer = self.top / "layers" / "l"
        self.layer.parent.mkdir()
        self._before = self._look()

    def _look(self) -> list[tuple[Any, ...]]:
        found = []
        for folder, _, names in os.walk(self.top):
            if Path(folder) == self.layer.parent:
                continue
            for name in [".", *names]:
                status = os.lstat(os.path.join(folder, name))
                facts = (status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns, status.st_nlink)
                found.append((folder, name, facts, os.listxattr(os.path.join(folder, name), follow_symlinks=False)))
        return [row for row in found if not row[0].startswith(str(self.layer.parent)) and row[0] != str(self.top)]

    def unharmed(self) -> None:
        assert self._look() == self._before, "something outside of the layer has changed"
        assert sorted(os.listdir(self.top)) == ["layers", "outside"], os.listdir(self.top)
        assert os.listdir(self.layer.parent) in ([], ["l"]), os.listdir(self.layer.parent)


_trap: list[_Trap] = []
_NAMES = (
    *(b"a", b"b", b"a/b", b"a/b/c", b"b/c", b".wh.a", b"a/.wh.b", b".wh..wh..opq", b"a/.wh..wh..opq", b".wh."),
    *(b"..", b".wh..wh.", b"../outside/canary", b"a/../../outside/canary", b"/a", b"./", b"a/..", b""),
    *(b"a/b/../../../../outside/x", b"a/canary", b"b/canary", b"a/outside/canary", b".wh.b/x", b".wh..", b".wh..."),
    *(b"c" * 255, b"d/" * 300, b"a\n"),
)  # fmt: skip
_LINKS = (
    *(b"a", b"b", b"a/b", b"..", b"../..", b"../../outside", b"/", b".", b"../../outside/canary", b"/proc/self/fd"),
    *(b"", b"a/canary", b"l" * 4000, b"/../../outside", b"b/c", b"./a"),
)  # fmt: skip
_TYPES = (tar.REGULAR, tar.HARDLINK, tar.SYMLINK, tar.CHARACTER, tar.BLOCK_DEVICE, tar.DIRECTORY, tar.FIFO, b"V")
_WHO = (Owner(False, False, "user"), Owner(False, False, "plain", False), Owner(os.geteuid() == 0, False, "user"))


class _Told:
    """Entries as bytes tell them: kind, name, link, size and mode, five bytes an entry."""

    def __init__(self, data: bytes, top: Path) -> None:
        self._data, self._top, self._left = data, top, 0

    def __iter__(self) -> Iterator[tar.Entry]:
        for at in range(0, len(self._data) - 4, 5):
            kind, name, link, size, mode = self._data[at : at + 5]
            where = os.fsencode(self._top / "outside") if link >= 0xF0 else _LINKS[link % len(_LINKS)]
            self._left = size if _TYPES[kind % 8] == tar.REGULAR else 0
            number = mode << 53 if kind & 0x40 else mode
            xattrs = (
                {"user.overlay.opaque": b"y", "trusted.overlay.metacopy": b"", "user.x": b"1"} if kind & 0x80 else {}
            )
            sparse = [(size, self._left)] if kind & 0x20 else None
            entry = tar.Entry(_NAMES[name % len(_NAMES)], _TYPES[kind % 8], mode << 4 & 0o7777, mode, size, self._left,
                              number * 10**9, where, number, size, xattrs, sparse)  # fmt: skip
            if sparse:
                entry.size = 2 * size
            yield entry
            self._left = 0

    def body(self) -> Iterator[memoryview]:
        if self._left:
            yield memoryview(bytes(self._left))


def applier(data: bytes) -> None:
    """Entries of dangerous names and links, in any order: nothing outside of the layer's folder changes."""
    trap = _trap[0] if _trap else _Trap()
    _trap[:] = [trap]
    trap.layer.mkdir()
    try:
        with contextlib.suppress(UnpackError):
            told = cast(tar.Reader, _Told(data[1:200], trap.top))
            Applier(trap.layer, _WHO[data[0] % 3 if data else 0], _SMALL).run(told)
        for folder, _, names in os.walk(trap.layer):
            for name in names:
                status = os.lstat(os.path.join(folder, name))
                device = stat.S_ISBLK(status.st_mode) or (stat.S_ISCHR(status.st_mode) and status.st_rdev != 0)
                assert not device, "a device that policy does not allow"
        trap.unharmed()
    finally:
        remove(str(trap.layer))


def retry_after(data: bytes) -> None:
    """Retry-After: a number of seconds that is none too odd, or nothing."""
    after = transport.retry_after(data.decode("latin-1"))
    assert after is None or (after >= 0 and math.isfinite(after)), after


def links(data: bytes) -> None:
    """Link, of a page of tags: a URL on the same registry and under the same path, nothing, or a refusal."""
    start = "http://127.0.0.1:1/v2/a/b/tags/list"
    with contextlib.suppress(MinirtError):
        following = endpoint.next_page(start, start, data.decode("latin-1"))
        assert following == "" or following.partition("?")[0] == start, following


class _File:
    """What `Path` is to a reader of a small file."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read_text(self, encoding: str) -> str:
        return self._content.decode(encoding)

    def __str__(self) -> str:
        return "config"


def docker_config(data: bytes) -> None:
    """~/.docker/config.json. No helper of this machine is run."""
    path = os.environ.get("PATH", "")
    os.environ["PATH"] = "/nonexistent"
    try:
        for authority in ("docker.io", "r.example:5000"):
            with contextlib.suppress(InvalidInput):
                found = Credentials(cast(Path, _File(data))).look_up(authority)
                assert found is None or (isinstance(found, Credential) and (found.username or found.identity_token))
                assert found is None or auth.basic(found).isascii()
    finally:
        os.environ["PATH"] = path


def settings(data: bytes) -> None:
    """config.toml, and the addresses and authorities that it is asked for."""
    text = data.decode("latin-1")
    locality(text)
    with contextlib.suppress(InvalidInput):
        loaded = Settings.load(cast(Path, _File(data)))
        for authority in ("127.0.0.1:5000", "10.1.2.3"):
            loaded.insecure(authority)
    with contextlib.suppress(InvalidInput):
        Limits.load(cast(Path, _File(data)))


def token(data: bytes) -> None:
    """A token service's answer: what comes out can stand in a header."""
    with contextlib.suppress(MinirtError):
        word, life, _ = auth.read_token(data, "auth.example")
        assert word.isascii() and word.isprintable() and " " not in word and life >= 60


def elf(data: bytes) -> None:
    """A program's loader."""
    with contextlib.suppress(ValueError):
        found = elf_reader.interpreter(data)
        assert found is None or isinstance(found, str)


_places: dict[str, Path] = {}


def _place(name: str) -> Path:
    if name not in _places:
        _places[name] = Path(tempfile.mkdtemp(prefix=f"minirt-fuzz-{name}-"))
        atexit.register(shutil.rmtree, _places[name], ignore_errors=True)
    return _places[name]


def layout(data: bytes) -> None:
    """index.json of a store that another tool, or chance, wrote into."""
    place = _place("layout")
    if not (place / "oci-layout").exists():
        Layout(place).create()
    (place / "index.json").write_bytes(data)
    names = Names(Layout(place))
    with contextlib.suppress(MinirtError):
        for named in names.all():
            assert Reference.parse(str(named.reference)) == named.reference and isinstance(named.size, int)
        assert all(isinstance(name, str) for name in names.damaged())
        names.find("a:1")


def saved(data: bytes) -> None:
    """An archive for `load`: docker's or OCI's. It brings blobs of the digests that it says, or nothing."""
    import io

    place = _place("saved")
    if "store" not in _stores:
        _stores["store"] = Store(place / "store")
    store = _stores["store"]
    with contextlib.suppress(MinirtError):
        for image, names in archives.load(store, io.BytesIO(data)):
            assert store.layout.has(image.id) and all(name.tag or name.digest for name in names)
    assert [path.name for path in store.root.glob(".load-*")] == []


_stores: dict[str, Store] = {}


class _Speaker:
    """A server that answers every request with the bytes it was given."""

    def __init__(self) -> None:
        self.answer = b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            with contextlib.suppress(OSError), connection:
                connection.settimeout(5)
                while b"\r\n\r\n" not in connection.recv(65536, socket.MSG_PEEK):
                    pass
                connection.recv(65536)
                connection.sendall(self.answer)


_speakers: list[tuple[_Speaker, transport.Transport]] = []


def answer(data: bytes) -> None:
    """A registry's answer as it comes over the wire, read as a document and as a blob that goes on at its middle."""
    if not _speakers:
        speaker = _Speaker()
        _speakers.append((speaker, transport.Transport(speaker.url, Settings(), 1, 0.5, 1, 0.001)))
    speaker, exchange = _speakers[0]
    speaker.answer = data
    with contextlib.suppress(MinirtError):
        response = exchange.send(f"{speaker.url}/v2/", {})
        assert len(exchange.read(response, 1000, "document")) <= 1000
    known = endpoint.Endpoint("r.example", "r.example", (speaker.url,), Credentials(), lambda base: exchange)
    known._auth = auth.Anonymous()
    content = bytes(range(100))
    for offset in (0, 50):
        got = 0
        with contextlib.suppress(MinirtError):
            for chunk in known.blob("a/b", Descriptor(OCI_LAYER, Digest.of(content), len(content)), offset):
                got += len(chunk)
            assert got == len(content) - offset
        assert got <= len(content) - offset


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(reference, challenges, manifest, config, archive, header, pax, compressed, applier, retry_after, links),
        *(docker_config, settings, token, elf, layout, saved, answer),
    )
}
