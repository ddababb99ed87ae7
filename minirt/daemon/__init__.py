"""The daemon: the Docker Engine API on a unix socket, over one root folder. HTTP in, engine calls out, streams back.

    server.py      HTTP on the socket, a thread per connection; versions and errors
    exchange.py    one request and its answer
    routes.py      the table of paths; containers.py, processes.py, images.py, system.py fill it
    streams.py     hijacked connections: docker's frames

One daemon has a root folder (a lock on `daemon.lock`; the link `daemon.sock` leads to where it listens, and can be made
on a full disk). Nothing that matters lives only in its memory: containers, their logs and exits are on disk, kept by
their shims, and go on without it. One that a client started ends when nobody has asked it anything for a while and no
container runs. Taught in chapter 04.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from minirt.child import seal
from minirt.errors import MinirtError, StoreError

DOOR = "daemon.sock"  # in the root folder
_LOOK = 1.0  # seconds between looks whether there is still a root folder, and anybody
_ARENA_MAX = -8  # of malloc.h
_LAST, _LASTS = 0.3, 20  # seconds without anybody, at the end; and how often we look for them


class Busy(MinirtError):
    """Another daemon has this root folder."""


def main(root: str, host: str, hub: str, idle: str, ready: str) -> int:
    """Serve `root` on the unix socket at path `host` until SIGTERM or SIGINT; the exit status.

    `idle`: seconds without anybody after which to end ("": never). `ready`: a descriptor that gets a line when the
    socket answers, or what went wrong ("": tell it on standard output).
    """
    seal()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.umask(0o022)  # as dockerd: what is private lies in folders of 0700
    os.chdir("/")
    if ready:  # whoever started us goes on, and has nobody to reap
        if os.fork():
            os._exit(0)
        os.setsid()
        os.set_inheritable(int(ready), False)
    try:
        with _Life(Path(root), Path(host)) as life:
            life.serve(hub, float(idle) if idle else None, int(ready) if ready else None)
    except Busy as error:
        _tell(ready, f"busy {error}")
        return 1
    except OSError as error:
        _tell(ready, f"failed {(error.strerror or str(error)).lower()}: {error.filename or root}")
        return 1
    except MinirtError as error:
        _tell(ready, f"failed {error}")
        return 1
    return 0


def _end(number: int, frame: Any) -> None:
    raise SystemExit(0)


def _tell(ready: str, line: str) -> None:
    if ready:
        with contextlib.suppress(OSError):  # whoever started us did not wait
            os.write(int(ready), line.encode() + b"\n")
    else:
        print(f"minirt daemon: {line.partition(' ')[2]}", file=sys.stderr, flush=True)


class _Life:
    """The lock, the socket, and taking them away at the end."""

    def __init__(self, root: Path, host: Path) -> None:
        self._root, self._host = root, host
        self._aside = host.with_name(f".{host.name}")
        self._lock = -1

    def __enter__(self) -> _Life:
        import fcntl

        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._lock = os.open(self._root / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another daemon has {self._root}") from None
        except OSError as error:  # a store we may only read needs no lock
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
        with contextlib.suppress(OSError):  # of a daemon that was killed
            os.unlink(self._aside)
        self._listener = listen(self._host)
        self._places = [(path, os.stat(path)) for path in (self._root, self._host)]
        return self

    def _same(self, number: int) -> bool:
        """Whether the root folder (0) or the socket (1) is still there, and the one we began with."""
        path, before = self._places[number]
        try:
            return os.path.samestat(os.stat(path), before)
        except FileNotFoundError:
            return False

    def _move_away(self) -> bool:
        """Nobody finds us from now on, until we move back: whether the socket was still ours."""
        if ours := self._same(1):
            os.rename(self._host, self._aside)
        return ours

    def _hide(self) -> None:
        """Nobody finds us any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._aside)
        if self._same(1):
            os.unlink(self._host)
            with contextlib.suppress(OSError):  # others have theirs there
                self._host.parent.rmdir()

    def __exit__(self, *_: object) -> None:
        self._hide()
        if self._lock >= 0:
            if self._same(0):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._root / DOOR)
            os.close(self._lock)

    def serve(self, hub: str, idle: float | None, ready: int | None) -> None:
        from minirt.daemon.server import Server
        from minirt.engine import Engine

        _guess_nothing()
        _heap("mallopt", _ARENA_MAX, 1)  # one heap for all threads, which take turns anyway: 3 MB less
        engine = Engine(self._root, hub)
        engine.open()
        _more_descriptors()
        server = Server(engine, self._listener)
        if self._lock >= 0:
            with contextlib.suppress(FileNotFoundError):  # of a daemon that was killed
                os.unlink(self._root / DOOR)
            os.symlink(self._host, self._root / DOOR)
        threading.Thread(target=server.serve_forever, args=(0.5,), daemon=True).start()
        if ready is None:
            print(f"minirt daemon: listening on unix://{self._host}", flush=True)
        else:
            os.write(ready, f"ready {os.getpid()}\n".encode())
            os.close(ready)
        try:
            self._rest(server, engine, idle)
            looks = 0
            while looks < _LASTS:
                moved = self._move_away()
                signal.sigtimedwait([], _LAST)
                if server.idle >= _LAST:
                    break
                if moved and self._same(0):
                    # Somebody came through the door before it was closed, and has more to say: to us, not to another.
                    os.rename(self._aside, self._host)
                    self._rest(server, engine, idle)
                else:
                    looks += 1
        finally:
            server.shutdown()
            engine.close()

    def _rest(self, server: Any, engine: Any, idle: float | None) -> None:
        """Until it is over."""
        rested = False
        while not self._over(server, engine, idle):
            signal.sigtimedwait([], _LOOK)
            if server.idle < _LOOK:
                rested = False
            elif not rested:
                rested = True
                gc.collect()
                _heap("malloc_trim", 0)  # what the last requests took is the machine's again: 2 MB after a pull

    def _over(self, server: Any, engine: Any, idle: float | None) -> bool:
        """The root folder is gone, or nobody has wanted anything for a while."""
        if not self._same(0):
            return True
        return idle is not None and server.idle > idle and not engine.containers.summaries()


def _guess_nothing() -> None:
    """Have requests do without what guesses a text's encoding (2 MB): we never ask for one. It says that it does."""
    import warnings

    sys.modules |= dict.fromkeys(("chardet", "charset_normalizer"))  # type: ignore[arg-type]
    warnings.filterwarnings("ignore", message="Unable to find acceptable character detection dependency")


def _heap(call: str, *arguments: int) -> None:
    """Tell the C library how to keep memory, malloc_trim(3), mallopt(3); another than GNU's does as it likes."""
    import ctypes

    with contextlib.suppress(AttributeError):
        getattr(ctypes.CDLL(None), call)(*arguments)


def listen(path: Path) -> socket.socket:
    """A socket that only this user may open: 0600, in a folder of its own with 0700. Raises StoreError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = os.stat(path.parent)
    if place.st_uid != os.geteuid() or place.st_mode & 0o022:
        raise StoreError(
            f"{path.parent} belongs to another user or is writable by others: the socket is not safe there"
        )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a daemon that was killed: we hold the root folder's lock
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise StoreError(f"cannot listen on {path}: {error.strerror or error}: set MINIRT_HOST to another") from error
    os.chmod(path, 0o600)
    listener.listen(512)
    return listener


def _more_descriptors() -> None:
    """Two hundred clients attached at once have many. Containers get what we began with, see the launcher."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
