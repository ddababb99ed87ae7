"""Where the daemon of a root folder listens, and starting one where none answers.

    root's default folder      /run/minirt/minirt.sock
    a user's                   $XDG_RUNTIME_DIR/minirt/minirt.sock, else /tmp/minirt-UID/minirt.sock (also where the
                               former is too long for a socket)
    any other folder           the same, in a folder named by its device and inode: however it is spelled
    MINIRT_HOST, -H            what it says (unix:///path), and nothing is started there

The link `daemon.sock` in a root folder leads to where its daemon listens; who answers elsewhere has another folder, one
that was removed, or a user's of the same number.

Source: XDG base directory specification. Taught in chapter 04.
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from minirt.client.http import Connection
from minirt.errors import InvalidInput, MinirtError, StoreError
from minirt.lean import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    StrPath = str | os.PathLike[str]  # pathlib itself loads for 3 ms, with all of urllib.parse

_PATIENCE = 30.0  # seconds for a daemon to be there
_LONGEST = 55  # bytes of XDG_RUNTIME_DIR: a socket's whole path has 107 at most, unix(7)
_IDLE = "600"  # seconds after which one that we started ends, when nobody wants it and nothing runs


def default_root() -> Path:
    """`default_folder`, for who has pathlib loaded."""
    from pathlib import Path

    return Path(default_folder())


def default_folder() -> str:
    """MINIRT_ROOT, else /var/lib/minirt for root and ~/.local/share/minirt (XDG_DATA_HOME) for a user."""
    if value := os.environ.get("MINIRT_ROOT"):
        return absolute(value)
    if sys.platform == "linux" and os.geteuid() == 0:
        return "/var/lib/minirt"
    data = os.environ.get("XDG_DATA_HOME") or "."
    if os.path.isabs(data):  # a relative one is to be ignored (XDG base directory specification)
        return os.path.join(data, "minirt")
    home = os.path.expanduser("~")
    if home == "~":
        raise InvalidInput("this user has no home directory: set MINIRT_ROOT to a folder for the store")
    return os.path.join(home, ".local", "share", "minirt")


def absolute(path: StrPath) -> str:
    """From where we are; `..` stays, for what stands before it may be a link."""
    return os.path.join(os.getcwd(), path)


def given_host(text: str | None) -> str | None:
    """The path of a host's socket: of `text`, else of MINIRT_HOST; None where nothing is said. Raises InvalidInput."""
    text = text or os.environ.get("MINIRT_HOST")
    if not text:
        return None
    scheme, _, path = text.partition("://")
    if scheme != "unix" or not path.startswith("/"):
        raise InvalidInput(f"host {text!r} is not one that minirt can speak to: it is unix:///path/to/socket")
    return path


def socket_path(root: StrPath) -> str:
    """Where the daemon of this root folder listens, if it is there. Raises StoreError."""
    folder = _runtime_folder()
    if os.path.normpath(root) != _usual_root():
        try:
            _make(root)
            place = os.stat(root)
        except OSError as error:
            raise StoreError(f"{root}: {(error.strerror or str(error)).lower()}: set MINIRT_ROOT to another") from error
        folder += f"/{place.st_dev:x}-{place.st_ino:x}"
    return f"{folder}/minirt.sock"


def _make(root: StrPath) -> None:
    """The root folder, which others may not look into; those above it as usual."""
    if not os.path.isdir(root):
        os.makedirs(os.path.dirname(os.path.abspath(root)), exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(root, 0o700)


def _usual_root() -> str | None:
    """This user's default folder, whatever HOME and the like say now."""
    user = os.geteuid()
    if user == 0:
        return "/var/lib/minirt"
    import pwd

    try:
        return os.path.join(pwd.getpwuid(user).pw_dir, ".local", "share", "minirt")
    except KeyError:
        return None


def _runtime_folder() -> str:
    given, user = os.environ.get("XDG_RUNTIME_DIR", ""), os.geteuid()
    with suppress(OSError):
        if given.startswith("/") and len(os.fsencode(given)) <= _LONGEST and os.stat(given).st_uid == user:
            return os.path.join(given, "minirt")
    if user == 0 and os.access("/run", os.W_OK):
        return "/run/minirt"
    return f"/tmp/minirt-{user}"


def connect(root: str, host: str | None, hub: str, tell: Callable[[str], None] | None) -> Connection:
    """A connection to the host, else to the root folder's daemon, which is started where none answers.

    `tell` gets a line when one was started. Raises MinirtError.
    """
    if not hasattr(_socket, "AF_UNIX"):
        return _within(root, hub)
    if host is not None:
        try:
            return Connection(host)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise MinirtError(f"cannot connect to the daemon at unix://{host}: {why}. Is it running?") from error
    path = socket_path(root)
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        for place in (told(root), *(() if _writable(root) else (path,))):
            with suppress(FileNotFoundError, ConnectionRefusedError):
                try:
                    return Connection(place)
                except PermissionError as error:
                    raise StoreError(f"{place}: permission denied: the daemon is another user's") from error
        if started := _start(root, path, hub):
            if tell:
                tell(f"minirt: started the daemon (process {started}), listening on unix://{path}")
            continue
        time.sleep(0.05)
    raise StoreError(f"no daemon answers for {root}: see {root}/daemon.log")


def _writable(root: str) -> bool:
    """Or to be made. Of another folder nobody can say there where its daemon listens."""
    return os.access(root, os.W_OK) or not os.path.exists(root)


def told(root: StrPath) -> str:
    """Where the running daemon says it listens: it may have been started with another XDG_RUNTIME_DIR."""
    try:
        return os.readlink(os.path.join(root, "daemon.sock"))
    except OSError:
        return "/nonexistent"


def peer(path: str) -> int:
    """The pid of who listens on a socket. Raises OSError. Source: unix(7), SO_PEERCRED."""
    import socket

    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        return int.from_bytes(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)


def _start(root: str, path: str, hub: str) -> int:
    """Start a daemon that outlives us; its pid once it answers, 0 where there is one already. Raises StoreError."""
    import select

    from minirt import child

    read, write = os.pipe()
    os.set_inheritable(write, True)
    log = os.path.join(root, "daemon.log") if _writable(root) else os.devnull
    try:
        _make(root)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        idle = os.environ.get("MINIRT_DAEMON_IDLE", _IDLE)
        pid = os.posix_spawn(
            sys.executable,
            child.command("minirt.daemon", root, path, hub, idle, str(write)),
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        os.close(write)
        write = -1
        os.waitpid(pid, 0)  # it goes on as a child of nobody's
        ready, _, _ = select.select([read], [], [], _PATIENCE)
        word, _, rest = os.read(read, 4096).decode(errors="replace").strip().partition(" ") if ready else ("", "", "")
    except OSError as error:
        raise StoreError(f"the daemon cannot be started: {(error.strerror or str(error)).lower()}: {root}") from error
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)
    if word == "failed":
        raise StoreError(f"the daemon cannot start: {rest}")
    if word not in ("ready", "busy"):
        raise StoreError(f"the daemon did not start: see {log}")
    return int(rest) if word == "ready" else 0


def _within(root: str, hub: str) -> Connection:
    """Where there are no unix sockets (Windows), the daemon's half of the conversation runs in this process."""
    import socket
    from importlib import import_module
    from threading import Thread

    ours, theirs = socket.socketpair()
    Thread(target=import_module("minirt.daemon.within").converse, args=(root, hub, theirs), daemon=True).start()
    return Connection.over(ours)
