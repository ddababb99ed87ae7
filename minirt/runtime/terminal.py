"""Terminals: a pair of ends, made inside the container, whose master is handed out to whoever shows it to a person.

The pair comes from the container's own /dev/pts, so its name means something inside. What stands there may be the
image's doing, so it must be a real devpts before we believe it, and the other end is opened by the master itself
(TIOCGPTPEER), never by a name (CVE-2025-52565). Sources: pty(7), ioctl_tty(2), runtime-spec config.md "terminal".
Taught in chapter 08.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
from typing import Any

from minirt import linux
from minirt.errors import StartError

_DEVPTS_MAGIC, _TIOCGPTPEER, _TIOCSPTLCK = 0x1CD1, 0x5441, 0x40045431


def open_inside(console: int, size: dict[str, int] | None, uid: int) -> None:
    """Make a terminal of the container's, send its master to the socket `console`, and make it our 0, 1, 2."""
    try:
        master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise StartError(f"cannot open a terminal in the container: /dev/pts/ptmx: {error.strerror}") from error
    if linux.file_system(master) != _DEVPTS_MAGIC:
        raise StartError("/dev/pts of the container is not a devpts: refused")
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    end = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if size:
        resize(master, size.get("width", 0), size.get("height", 0))
    if os.fstat(end).st_uid != uid:
        os.fchown(end, uid, -1)
    with socket.socket(fileno=os.dup(console)) as line:
        line.sendmsg([b"/dev/ptmx"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))])
    os.close(master)
    fcntl.ioctl(end, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(end, number)
    os.close(end)


def show_console() -> None:
    """/dev/console is the terminal we have: a bind mount, made from its descriptor."""
    target = os.open("/dev/console", os.O_CREAT | os.O_NOFOLLOW | os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
    os.close(target)
    target = os.open("/dev/console", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    tree = linux.open_tree(0, "", linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_EMPTY_PATH)
    linux.move_mount(tree, target)
    os.close(tree)
    os.close(target)


def console_pair() -> tuple[socket.socket, socket.socket]:
    """A console socket of our own: where the master will come out, and what the runtime is given."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def receive(line: socket.socket) -> int:
    """The master that came over a console socket. Raises StartError where none did."""
    _, ancillary, _, _ = line.recvmsg(4096, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    for _, kind, data in ancillary:
        if kind == socket.SCM_RIGHTS:
            return int(array.array("i", data[:4])[0])
    raise StartError("the runtime sent no terminal")


def resize(master: int, width: int, height: int) -> None:
    """Tell the terminal its size, in characters; whoever runs in it gets SIGWINCH."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", height & 0xFFFF, width & 0xFFFF, 0, 0))


def raw(terminal: int) -> list[Any]:
    """Let every key through as it is, cfmakeraw(3); returns what `tcsetattr` takes to undo it."""
    before = termios.tcgetattr(terminal)
    after = termios.tcgetattr(terminal)
    i, o, c, local = 0, 1, 2, 3
    after[i] &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
        | termios.ICRNL | termios.IXON
    )  # fmt: skip
    after[o] &= ~termios.OPOST
    after[c] = after[c] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    after[local] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    after[6][termios.VMIN], after[6][termios.VTIME] = 1, 0
    termios.tcsetattr(terminal, termios.TCSANOW, after)
    return before
