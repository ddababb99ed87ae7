"""`cp`: files between a container and this machine, as a tar stream (chapter 05).

The archive names what is copied by its last name. What becomes of it is decided by what stands at the destination:
into a folder that is there it goes by that name; else it gets the destination's, in the folder above. A path that ends
in `/.` is a folder's content. The daemon's side unpacks what we send, and we what it sends, with the store's reader
and extractor: no link is followed there, so a container cannot lead a copy elsewhere (CVE-2018-15664).
Source: docker/cli cli/command/container/cp.go, moby pkg/archive/copy.go (the rules).
"""

from __future__ import annotations

import os
import posixpath
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from minirt import units
from minirt.cli.console import Console
from minirt.cli.flags import UsageError, Values, command
from minirt.client.answer import pieces
from minirt.errors import InvalidInput, MinirtError

_LINK, _DEVICE, _IRREGULAR = 1 << 27, 1 << 26, 1 << 19  # of Go's FileMode
_MOST_LINKS = 10


class _Place(NamedTuple):
    """A destination. Not `there`: its folder is."""

    path: str
    there: bool
    folder: bool


@command(
    "CONTAINER:SRC_PATH|PATH|- CONTAINER:DEST|PATH|-",
    """
    -a, --archive       Keep user and group ids of what goes into the container
    -L, --follow-link   Copy what the source points to where it is a symbolic link
    -q, --quiet         Do not tell what was copied (without a terminal nothing is told)
    """,
)
def cp(console: Console, values: Values, arguments: list[str]) -> None:
    for what, word in zip(("source", "destination"), arguments, strict=True):
        if not word:
            raise UsageError(f"{what} can not be empty", 1)
    (source, path), (target, there) = map(_split, arguments)
    if source and target:
        raise UsageError("copying between containers is not supported", 1)
    if not source and not target:
        raise UsageError("must specify at least one container source", 1)
    console.needs_linux()
    if source:
        where = there if there == "-" else _absolute(there)
        count = _out(console, source, path, where, values["follow-link"])
    else:
        count, where = _in(console, path, target, there, values)
    if where != "-" and not values["quiet"] and sys.stdout is not None and sys.stdout.isatty():
        console.warn(f"Successfully copied {units.size(count, 3)} to {where}")


def _split(word: str) -> tuple[str, str]:
    """`CONTAINER:PATH`, or ("", path) for one of ours: absolute, or with its first part beginning with a dot."""
    container, colon, path = word.partition(":")
    ours = word.startswith("/") or not colon or container.startswith(".")
    return ("", word) if ours else (container, path)


class _Counted:
    """Pieces of a stream as a reader of archives asks for them; `count` bytes so far."""

    def __init__(self, stream: Iterable[bytes]) -> None:
        self._stream, self.count = iter(stream), 0

    def __call__(self) -> bytes:
        data = next(self._stream, b"")
        self.count += len(data)
        return data

    def __iter__(self) -> Iterator[bytes]:
        return iter(self, b"")


def _out(console: Console, container: str, path: str, target: str, follow: bool) -> int:
    """From the container; how many bytes came."""
    from minirt.store import tar
    from minirt.store.applier import Owner
    from minirt.store.extract import Extractor

    client = console.client
    if target != "-":
        _check_target(target)
    called = ""
    if follow:
        path, called = _followed(console, container, path)
    found, stream = client.get_archive(container, path)
    counted = _Counted(stream)
    if target == "-":
        for piece in counted:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return counted.count
    base = _parts(path)[1]
    folder, name = _placed(called or base, bool(found["mode"] & 1 << 31), _destination(target))

    class Renamed(tar.Reader):
        """The entries by the names they get here."""

        def __iter__(self) -> Iterator[tar.Entry]:
            for entry in super().__iter__():
                entry.name = _renamed(entry.name, base, name)
                if entry.type == tar.HARDLINK:
                    entry.linkname = _renamed(entry.linkname, base, name)
                yield entry

    held = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owner = Owner(chown=False, mknod=os.geteuid() == 0)
        Extractor(held, owner, lambda uid, gid: (uid, gid), kinds_stay=True, place=folder).run(Renamed(counted))
    finally:
        os.close(held)
    for _ in counted:
        continue  # to the end of the answer, where what went wrong is told
    return counted.count


def _followed(console: Console, container: str, path: str) -> tuple[str, str]:
    """Where a link of the container's points, and the name that its target is to have."""
    try:
        found = console.client.stat_path(container, path)
    except MinirtError:
        return path, ""  # told by what follows
    if not found["mode"] & _LINK:
        return path, ""
    return _kept(path, posixpath.join(_parts(path)[0], found["linkTarget"]))


def _in(console: Console, path: str, container: str, target: str, values: Values) -> tuple[int, str]:
    """Into the container; how many bytes went, and where to."""
    client = console.client
    place, mode = _Place(target, False, False), 0
    try:
        found = client.stat_path(container, target)
        if found["mode"] & _LINK:
            place = _Place(posixpath.join(_parts(target)[0], found["linkTarget"]), False, False)
            found = client.stat_path(container, place.path)
        mode = found["mode"]
        place = _Place(place.path, True, bool(mode & 1 << 31))
    except MinirtError:
        pass  # it may be made by the copy; if not, that tells why
    if mode & (_DEVICE | _IRREGULAR):
        what = "a device" if mode & _DEVICE else "an irregular file"
        raise InvalidInput(f'destination "{container}:{target}" must be a directory or a regular file: got {what}')
    if path == "-":
        if not place.folder:
            raise InvalidInput(f'destination "{container}:{target}" must be a directory')
        client.put_archive(container, place.path, pieces(sys.stdin.buffer), **_options(values))
        return 0, f"{container}:{place.path}"
    packed, called, folder = _source(_absolute(path), values["follow-link"])
    inside, name = _placed(called, folder, place)
    counted = _Counted(packed(name or called))
    client.put_archive(container, inside, counted, **_options(values))
    return counted.count, f"{container}:{place.path}"


def _options(values: Values) -> dict[str, bool]:
    return {"noOverwriteDirNonDir": True, "copyUIDGID": values["archive"]}


def _source(path: str, follow: bool) -> tuple[Callable[[str], Iterator[bytes]], str, bool]:
    """What of ours is copied: its archive under a name to be given, its own name, and whether it is a folder."""
    from minirt.store import pack

    called = ""
    if follow:
        path, called = _kept(path, os.path.realpath(path, strict=True))
    else:  # links above it are followed
        above, base = os.path.split(path)
        path, asked = os.path.join(os.path.realpath(above or "/", strict=True), base), path
        if asked.endswith("/") and _base(asked) != _base(path):
            called = _base(asked)
    status = os.lstat(path)
    folder, base = _parts(path)

    def packed(name: str) -> Iterator[bytes]:
        held = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            own = b"" if base in (".", "/") else os.fsencode(base)
            yield from pack.Packer().tree(held, own, os.fsencode(name))
            yield pack.END
        finally:
            os.close(held)

    return packed, called or base, stat.S_ISDIR(status.st_mode)


def _placed(called: str, folder: bool, place: _Place) -> tuple[str, str]:
    """The folder to unpack in, and the name that what is `called` so gets there. Raises InvalidInput."""
    above, base = _parts(place.path)
    if place.folder:
        return place.path, called
    if folder and place.there:
        raise InvalidInput("cannot copy directory")
    if not folder and not place.there and (place.path.endswith("/") or _base(place.path) == "."):
        raise InvalidInput("no such directory")
    return above, base


def _renamed(name: bytes, old: str, new: str) -> bytes:
    first, to = os.fsencode(old), os.fsencode(new)
    if old == new:
        return name
    if old == "/":
        return to + b"/" + name.lstrip(b"/")
    return to + name[len(first) :] if name == first or name.startswith(first + b"/") else name


def _destination(path: str) -> _Place:
    """A destination of ours, links followed. Raises OSError where it cannot be one."""
    for _ in range(_MOST_LINKS):
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            above = _parts(path)[0]
            if not stat.S_ISDIR(os.stat(above).st_mode):
                raise NotADirectoryError(20, "not a directory", above) from None
            return _Place(path, False, False)
        if not stat.S_ISLNK(status.st_mode):
            return _Place(path, True, stat.S_ISDIR(status.st_mode))
        path = os.path.join(_parts(path)[0], os.readlink(path))
    raise InvalidInput(f"too many symlinks in {path}")


def _check_target(path: str) -> None:
    """Raises InvalidInput for what no copy can go to."""
    above = os.path.dirname(os.path.normpath(path))
    if not os.path.exists(above):
        raise InvalidInput(f'invalid output path: directory "{above}" does not exist')
    if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
        mode = os.stat(path).st_mode
        what = "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "an irregular file"
        raise InvalidInput(f'invalid output path: "{path}" must be a directory or a regular file: got {what}')


# paths: what ends in `/` or `/.` means a folder, so these ends are kept


def _base(path: str) -> str:
    """The last name, as Go's filepath.Base has it."""
    return (path.rstrip("/").rpartition("/")[2] or "/") if path else "."


def _parts(path: str) -> tuple[str, str]:
    """The folder and the name in it; of `d/.` they are `d` and `.`."""
    clean = "/" + posixpath.normpath(path).lstrip("/") if path.startswith("/") else posixpath.normpath(path)
    if _base(path) == ".":
        return clean, "."
    above, _, name = clean.rpartition("/")
    return above or ("/" if clean.startswith("/") else "."), name or "/"


def _with_end(path: str, like: str) -> str:
    """The path, with the end that `like` has."""
    if _base(like) == "." and _base(path) != ".":
        path = path.rstrip("/") + "/."
    return path + "/" if like.endswith("/") and not path.endswith("/") else path


def _absolute(path: str) -> str:
    return _with_end(os.path.normpath(os.path.join(os.getcwd(), path)), path)


def _kept(path: str, target: str) -> tuple[str, str]:
    """A link's target, with the end that was asked for, and the link's own name where that is another."""
    target = _with_end(target, path)
    return target, _base(path) if _base(path) != _base(target) else ""
